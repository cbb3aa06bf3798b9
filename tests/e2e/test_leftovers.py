"""What a dead server leaves: told, taken back by its own, swept; and who comes first on the machine."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import httpx
import pytest
from machine import found
from nursery import ROOT, Nursery
from server import Server, until

from common import owners, processes
from isolation import cgroups
from sandbox_api.host import sweeping


def left_of(owner: owners.Owner) -> dict[str, object]:
    """What is on the machine of an owner, by everything that carries its id or its tag."""
    layout = cgroups.detect()
    with Path("/proc/self/mountinfo").open() as file:
        mounts = [line.split()[4] for line in file if line.split()[4].startswith(owner.state + "/")]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    addresses = subprocess.run(["ip", "-4", "addr", "show", "lo"], capture_output=True, text=True, check=True).stdout
    gateway = str(IPv4Network(owner.share)[1])
    # What is free again may be another server's by now.
    taken = any(tagged.gateway == gateway and tagged.tag != owner.tag for tagged in sweeping.survey().tagged)
    return {
        name: things
        for name, things in {
            "groups": cgroups.groups_below(layout, f"isobox/{owner.id}"),
            "helpers": [helper for helper in processes.helpers() if helper.owner == owner.id],
            "links": list(Path("/sys/class/net").glob(f"ib{owner.tag}x*")),
            "namespaces": list(Path("/run/netns").glob(f"isobox-{owner.tag}-*")),
            "tables": [line for line in tables.splitlines() if line.endswith(f"isobox_{owner.tag}")],
            "address": [gateway] if f" {gateway}/32 " in addresses and not taken else [],
            "mounts": mounts,
            "record": [owner] if owners.read(owners.FOLDER / owner.id) else [],
        }.items()
        if things
    }


def record(server: Server) -> owners.Owner:
    owner = owners.read(owners.FOLDER / (server.state / owners.IDENTITY).read_text().strip())
    assert owner is not None
    return owner


def doctor(*arguments: str) -> str:
    argv = [sys.executable, "-m", "isobox.cli.main", "doctor", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT).stdout


def sweep(state: Path) -> str:
    return doctor("--sweep", "--only", str(state))


def create(server: Server) -> str:
    with server.client() as http:
        answer = http.post("/v1/sandboxes", json={"image": "python", "timeout_s": 600})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def destroyed(server: Server) -> owners.Owner:
    """A server with a sandbox is killed, and its state directory removed."""
    server.start()
    create(server)
    until(lambda: len(left_of(record(server)).get("groups", ())) > 1)  # one waits in the pool, frozen
    owner = record(server)
    server.kill()
    # Mount points of sandboxes that were just being made cannot be removed.
    shutil.rmtree(server.state, ignore_errors=True)
    return owner


def test_a_dead_servers_things_are_told_and_swept_and_nobody_elses(
    server: Server, tmp_path: Path, nursery: Nursery
) -> None:
    owner = destroyed(Server(tmp_path / "state", nursery))
    until(lambda: "helpers" not in left_of(owner))  # keeper and gateway end by themselves: their state is gone
    assert {"groups", "links", "namespaces", "tables", "record"} <= set(left_of(owner))
    assert create(server), "they are in nobody's way"

    other = Server(tmp_path / "other", nursery).start()
    try:
        ready = httpx.get(f"{other.url}/readyz")
        assert ready.status_code == 200
        told = [words for words in ready.json()["leftovers"] if owner.state in words]
        assert len(told) == 1
        assert f"pid {owner.pid}" in told[0]
        assert any(owner.state in line and "dead server" in line for line in other.log().splitlines())

        line = next(line for line in doctor().splitlines() if " leftovers: " in line)
        assert "dead servers left" in line
        assert owner.state in line
        assert f"{tmp_path / 'other'} (living, pid " in line.partition("; servers: ")[2], "the others are told as well"
        mine, here = create(other), record(other)
        assert "removed" in sweep(tmp_path / "state")
        assert left_of(owner) == {}
        assert mine in left_of(here)["groups"]  # type: ignore[operator]
        with other.client() as http:
            done = http.post(f"/v1/sandboxes/{mine}/exec", json={"argv": ["true"]}).json()
        assert done["outcome"]["exit_code"] == 0
        assert sweep(tmp_path / "other").count("removed") == 0, "a living server's are its own"
        assert mine in left_of(here)["groups"]  # type: ignore[operator]
    finally:
        other.end()
    assert left_of(here) == {}


def test_a_state_begun_anew_takes_back_what_the_one_before_left(own_server: Server) -> None:
    before = destroyed(own_server)
    own_server.start()
    create(own_server)
    after = record(own_server)
    assert after.id != before.id
    left = left_of(before)
    assert {name: things for name, things in left.items() if name in ("groups", "helpers", "record")} == {}
    if after.tag != before.tag:
        assert not {"links", "namespaces", "tables"} & set(left)
    with own_server.client() as http:
        ready = http.get("/readyz").json()
    assert ready["status"] == "ok"
    assert not [words for words in ready["leftovers"] if before.state in words]


def test_what_waits_for_its_next_server_is_not_swept(own_server: Server) -> None:
    own_server.start()
    sandbox = create(own_server)
    own_server.kill()
    assert sweep(own_server.state).count("removed") == 0
    own_server.start()
    with own_server.client() as http:
        assert http.get(f"/v1/sandboxes/{sandbox}").json()["state"] == "running"
        done = http.post(f"/v1/sandboxes/{sandbox}/exec", json={"argv": ["true"]}).json()
    assert done["outcome"]["exit_code"] == 0


def test_helpers_that_cannot_be_reached_are_replaced(own_server: Server) -> None:
    """Their sockets were removed: the gateway would keep its addresses for ever, the keeper its sandboxes."""
    own_server.start()
    create(own_server)
    before = {helper.pid for helper in processes.helpers() if helper.owner == record(own_server).id}
    own_server.kill()
    for name in ("gateway.sock", "keeper.sock"):
        (own_server.state / name).unlink()
    own_server.start()
    create(own_server)
    with own_server.client() as http:
        until(lambda: http.get("/readyz").status_code == 200)
    after = [helper for helper in processes.helpers() if helper.owner == record(own_server).id]
    assert sorted(helper.kind for helper in after) == ["gateway", "keeper"]
    assert not before & {helper.pid for helper in after}


def test_readyz_is_503_while_nothing_can_be_created(tmp_path: Path, nursery: Nursery) -> None:
    runsc = tmp_path / "runsc"
    runsc.symlink_to(found().path)
    own = Server(tmp_path / "state", nursery, ISOBOX_RUNSC=str(runsc), ISOBOX_POOL_CEILING="0").start()
    try:
        with own.client() as http:
            assert http.get("/readyz").status_code == 200
            runsc.unlink()
            problem = http.get("/readyz")
            assert (problem.status_code, problem.json()["code"]) == (503, "not_ready")
            assert f"runsc is gone: {runsc}" in problem.json()["detail"]
            runsc.symlink_to("/bin/false")
            assert http.post("/v1/sandboxes", json={"image": "python"}).status_code >= 500
            until(lambda: http.get("/readyz").status_code == 503)  # one of its own has failed as well
            assert "a sandbox could not be created" in http.get("/readyz").json()["detail"]
            runsc.unlink()
            runsc.symlink_to(found().path)
            until(lambda: http.get("/readyz").status_code == 200)  # it has tried by itself
    finally:
        own.end()


def test_readyz_names_who_has_the_gateways_address(own_server: Server) -> None:
    own_server.start()
    gateway = str(IPv4Network(record(own_server).share)[1])
    own_server.stop()
    free_bind = 15  # the address is nobody's now
    script = (
        f"import socket, sys; s = socket.socket(); s.setsockopt(0, {free_bind}, 1); s.bind(('{gateway}', 4443))\n"
        "s.listen(); print('taken', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as thief:
        assert thief.stdout is not None
        assert thief.stdout.readline() == b"taken\n"
        own_server.start()
        with own_server.client() as http:
            until(lambda: http.get("/readyz").status_code == 503)
            detail = http.get("/readyz").json()["detail"]
            assert f"tcp {gateway}:4443 is taken by" in detail
            assert f"(pid {thief.pid})" in detail
            thief.communicate()
            until(lambda: http.get("/readyz").status_code == 200)


def test_a_copied_state_directory_is_another_owner(own_server: Server, tmp_path: Path, nursery: Nursery) -> None:
    own_server.start()
    sandbox = create(own_server)
    shutil.copytree(own_server.state, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock", "run", "lazy", "logs"))
    copy = Server(tmp_path / "copy", nursery).start()
    try:
        first, second = record(own_server), record(copy)
        assert first.id != second.id
        assert first.tag != second.tag
        assert first.share != second.share
        with own_server.client() as http:
            done = http.post(f"/v1/sandboxes/{sandbox}/exec", json={"argv": ["true"]}).json()
        assert done["outcome"]["exit_code"] == 0
    finally:
        copy.end()


def test_guests_come_after_the_server(server: Server) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    sandbox, owner, layout = create(server), record(server), cgroups.detect()
    guests = cgroups.Cgroup(layout, f"isobox/{owner.id}", sandbox).processes()
    assert guests
    assert {score(pid) for pid in guests} == {500}
    assert server.process is not None
    helpers = [helper.pid for helper in processes.helpers() if helper.owner == owner.id]
    assert len(helpers) >= 2
    assert all(score(pid) < 500 for pid in (server.process.pid, *helpers))
    for controller, name, value in cgroups.plan_root(layout):
        mount = layout.unified if layout.unified is not None else layout.v1[controller]
        assert (mount / "isobox" / name).read_text().strip() == value


def state_of(output: str, prefix: str) -> Path:
    """Where the server that says so keeps its state."""
    assert "ready on" in output, output
    living = [owner for owner, standing in owners.owners().values() if standing is owners.Standing.LIVING]
    return next(Path(owner.state) for owner in living if prefix in owner.state and _descends(owner.pid))


def _descends(pid: int) -> bool:
    while pid > 1:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            pid = int(stat.rpartition(")")[2].split()[1])
            if pid == os.getpid():
                return True
            continue
        return False
    return False


BENCH = """
import time
from common.signals import unwind_on_signals
from benchmarks.__main__ import serving
unwind_on_signals()
with serving() as server, server.client() as http:
    assert http.post("/v1/sandboxes", json={"image": "python"}).status_code == 201
    print("bench: ready on", server.url, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("program", ["demo", "bench"])
def test_demo_and_bench_leave_nothing_when_a_signal_ends_them(program: str, number: signal.Signals) -> None:
    argv = ["-m", "agent_examples.demo"] if program == "demo" else ["-c", BENCH]
    # In a group of its own: a terminal's Ctrl-C goes to the whole group, and so does ours.
    with subprocess.Popen(
        [sys.executable, *argv], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        state = state_of(process.stdout.readline(), f"isobox-{program}-")
        owner = owners.read(owners.FOLDER / (state / owners.IDENTITY).read_text().strip())
        assert owner is not None
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number
    assert left_of(owner) == {}
    assert not state.exists()


def test_records_are_whole(server: Server) -> None:
    raw = json.loads((owners.FOLDER / record(server).id).read_text())
    assert raw["state"] == str(server.state)
    assert server.process is not None
    assert raw["pid"] == server.process.pid
