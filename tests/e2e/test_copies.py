"""Snapshots, forks, pauses: what runs goes on in each copy, and only there."""

import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from server import Server, running, until

from isobox import Sandbox

COUNT = ["python3", "-u", "-c", "import time\nfor i in range(100000):\n    print(i)\n    time.sleep(0.02)"]


@pytest.fixture
def counting(server: Server, http: httpx.Client) -> Iterator[tuple[str, str]]:
    """A sandbox in which something counts: its path and the exec's id."""
    with Sandbox.create(url=server.url, api_key=server.key, labels={"of": "copies"}) as sandbox:
        process = sandbox.start(*COUNT)
        until(lambda: "5\n" in process.poll().stdout)
        yield f"/v1/sandboxes/{sandbox.id}", process.id


def numbers(http: httpx.Client, path: str, exec_id: str) -> list[int]:
    raw = http.get(f"{path}/execs/{exec_id}/output").text
    return [int(line) for line in raw.splitlines()[1:-1]]  # the first may be cut by the copy, the last by now


def execs(http: httpx.Client, path: str) -> list[dict[str, Any]]:
    return http.get(f"{path}/execs").json()["execs"]  # type: ignore[no-any-return]


def run(http: httpx.Client, path: str, shell: str) -> str:
    answer = http.post(f"{path}/exec", json={"shell": shell})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def consecutive(found: list[int]) -> bool:
    return not found or found == list(range(found[0], found[0] + len(found)))


def test_children_go_on_side_by_side_with_their_parent(http: httpx.Client, counting: tuple[str, str]) -> None:
    path, process = counting
    run(http, path, "echo before > ~/file; echo tmp > /tmp/file")
    fork = http.post(f"{path}/fork", json={"count": 3, "labels": {"child": "yes"}}).json()
    assert (len(fork["sandboxes"]), fork["errors"]) == (3, [])
    seen = set()
    for child in fork["sandboxes"]:
        there = f"/v1/sandboxes/{child['id']}"
        assert (child["parent"], child["labels"], child["state"]) == (path.split("/")[-1], {"child": "yes"}, "running")
        copied = execs(http, there)
        assert [each["forked_from"] for each in copied] == [process]
        until(lambda there=there, copied=copied: len(numbers(http, there, copied[0]["id"])) > 10)  # type: ignore[misc]
        found = numbers(http, there, copied[0]["id"])
        assert consecutive(found)
        assert found[0] > 5, "its output begins at the fork"
        text = run(
            http, there, "hostname; cat ~/file /tmp/file; head -c 8 /dev/urandom | od -An -tx1; echo own > ~/file"
        )
        hostname, home, tmp, noise = text.splitlines()
        assert (hostname, home, tmp) == (child["id"], "before", "tmp")
        seen.add(noise)
        assert http.post(f"{there}/execs/{copied[0]['id']}/signal", json={"signal": "TERM"}).status_code == 204
    assert len(seen) == 3, "each has random numbers of its own"
    assert run(http, path, "cat ~/file") == "before\n"
    assert consecutive(numbers(http, path, process)), "the parent lost nothing"
    for child in fork["sandboxes"]:
        ended = execs(http, f"/v1/sandboxes/{child['id']}")
        assert ended[-1]["outcome"]["signal"] == "SIGTERM"
        http.delete(f"/v1/sandboxes/{child['id']}")


def test_input_reaches_the_copy_it_was_sent_to(server: Server, http: httpx.Client) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        reader = sandbox.start(shell="while read line; do echo got $line; done")
        reader.write(b"one\n")
        until(lambda: "got one" in reader.poll().stdout)
        child = http.post(f"/v1/sandboxes/{sandbox.id}/fork", json={}).json()["sandboxes"][0]
        there = f"/v1/sandboxes/{child['id']}"
        copied = execs(http, there)[0]["id"]
        http.post(f"{there}/execs/{copied}/stdin?eof=true", content=b"two\n")
        reader.write(b"three\n")
        reader.close_stdin()
        assert reader.wait().stdout == "got one\ngot three\n"
        until(lambda: http.get(f"{there}/execs/{copied}").json()["state"] == "exited")
        assert http.get(f"{there}/execs/{copied}").json()["stdout"] == "got two\n"
        http.delete(there)


def test_a_terminal_goes_on_in_a_copy(server: Server, http: httpx.Client) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        shell = sandbox.start("bash", "--norc", pty={"rows": 24, "cols": 80})
        shell.write(b"X=kept\n")
        time.sleep(0.5)
        child = http.post(f"/v1/sandboxes/{sandbox.id}/fork", json={}).json()["sandboxes"][0]
        there = f"/v1/sandboxes/{child['id']}"
        copied = execs(http, there)[0]["id"]
        http.post(f"{there}/execs/{copied}/stdin", content=b"echo $X-$(stty size | tr ' ' x)\n")
        until(lambda: "kept-24x80" in http.get(f"{there}/execs/{copied}").json()["stdout"])
        http.delete(there)


def test_a_snapshot_is_kept_and_starts_many(server: Server, http: httpx.Client, counting: tuple[str, str]) -> None:
    path, process = counting
    run(http, path, "echo kept > ~/file")
    answer = http.post(f"{path}/snapshots", json={"name": "counting"})
    assert answer.status_code == 201
    snapshot = answer.json()
    assert (snapshot["name"], snapshot["kind"], snapshot["execs"]) == ("counting", "memory", [process])
    assert snapshot["size_bytes"] > 1 << 20
    run(http, path, "echo later > ~/file")
    assert http.get(f"/v1/snapshots/{snapshot['id']}").json() == snapshot
    assert snapshot["id"] in [each["id"] for each in http.get("/v1/snapshots").json()["snapshots"]]
    began = []
    for _ in range(2):
        made = http.post(
            "/v1/sandboxes", json={"snapshot": snapshot["id"], "env": {"FOO": "bar"}, "labels": {"a": "b"}}
        )
        assert made.status_code == 201, made.text
        sandbox = made.json()
        there = f"/v1/sandboxes/{sandbox['id']}"
        assert (sandbox["snapshot"], sandbox["labels"]) == (snapshot["id"], {"a": "b"})
        assert run(http, there, "cat ~/file; echo $FOO") == "kept\nbar\n"
        copied = execs(http, there)[-1]
        assert copied["forked_from"] == process
        until(lambda there=there, copied=copied: len(numbers(http, there, copied["id"])) > 5)  # type: ignore[misc]
        began.append(numbers(http, there, copied["id"])[0])
        http.delete(there)
    assert began[0] == began[1]
    assert http.delete(f"/v1/snapshots/{snapshot['id']}").status_code == 204
    assert http.delete(f"/v1/snapshots/{snapshot['id']}").status_code == 404
    gone = http.post("/v1/sandboxes", json={"snapshot": snapshot["id"]})
    assert (gone.status_code, gone.json()["code"]) == (404, "snapshot_not_found")
    assert not (server.state / "snapshots" / snapshot["id"]).exists()


def test_a_snapshot_ends_with_its_time(server: Server, http: httpx.Client, path: str) -> None:
    snapshot = http.post(f"{path}/snapshots", json={"ttl_s": 1}).json()
    until(lambda: http.get(f"/v1/snapshots/{snapshot['id']}").status_code == 404)
    until(lambda: not (server.state / "snapshots" / snapshot["id"]).exists())


@pytest.mark.parametrize("name", ["checkpoint.img", "pages_meta.img", "pages.img"])
def test_a_damaged_snapshot_is_refused_before_runsc_sees_it(
    server: Server, http: httpx.Client, path: str, name: str
) -> None:
    snapshot = http.post(f"{path}/snapshots", json={}).json()
    file = server.state / "snapshots" / snapshot["id"] / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    before = running(http)
    refused = http.post("/v1/sandboxes", json={"snapshot": snapshot["id"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "snapshot_unusable")
    assert name in refused.json()["detail"]
    assert running(http) <= before
    http.delete(f"/v1/snapshots/{snapshot['id']}")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"count": 0}, "invalid_request"),
        ({"count": 65}, "invalid_request"),
        ({"count": "many"}, "invalid_request"),
        ({"child": 1}, "invalid_request"),
    ],
)
def test_a_fork_that_cannot_be_is_refused(http: httpx.Client, path: str, body: dict[str, object], code: str) -> None:
    answer = http.post(f"{path}/fork", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_what_a_snapshot_fixes_cannot_be_asked_otherwise(http: httpx.Client, path: str) -> None:
    snapshot = http.post(f"{path}/snapshots", json={}).json()["id"]
    for body in ({"image": "base"}, {"command": ["true"]}, {"resources": {"disk_mb": 16}}):
        refused = http.post("/v1/sandboxes", json={"snapshot": snapshot, **body})
        assert refused.status_code == 422, body
        assert refused.json()["detail"]
    http.delete(f"/v1/snapshots/{snapshot}")


def test_what_root_put_in_the_place_of_process_one_gains_nothing_by_a_fork(server: Server, http: httpx.Client) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        forged = "rm /.isobox/init; printf '#!/bin/sh\\ncat /proc/self/status > /tmp/caught\\n' > /.isobox/init; chmod 755 /.isobox/init"
        assert sandbox.exec(shell=forged, user="root").exit_code == 0
        child = http.post(f"/v1/sandboxes/{sandbox.id}/fork", json={}).json()["sandboxes"][0]["id"]
        assert run(http, f"/v1/sandboxes/{child}", "hostname; ls /tmp") == f"{child}\n"
        http.delete(f"/v1/sandboxes/{child}")


def test_too_many_children_are_told_so(own_server: Server) -> None:
    own_server.environment["ISOBOX_MAX_SANDBOXES"] = "3"
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        refused = http.post(f"/v1/sandboxes/{sandbox.id}/fork", json={"count": 3})
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_sandboxes")
        assert len(http.post(f"/v1/sandboxes/{sandbox.id}/fork", json={"count": 2}).json()["sandboxes"]) == 2


def test_a_pause_frees_everything_and_a_resume_loses_nothing(own_server: Server) -> None:
    own_server.environment["ISOBOX_POOL_CEILING"] = "0"
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        path = f"/v1/sandboxes/{sandbox.id}"
        process = sandbox.start(
            "python3", "-u", "-c", "import time\nfor i in range(150):\n    print(i)\n    time.sleep(0.02)"
        )
        follower = ThreadPoolExecutor(1)
        followed = follower.submit(lambda: "".join(e.text for e in process if e.type == "stdout"))
        until(lambda: "20\n" in process.poll().stdout)
        paused = http.post(f"{path}/pause").json()
        assert (paused["state"], paused["paused_by"]) == ("paused", "request")
        assert not list((own_server.state / "run").iterdir())
        assert http.post(f"{path}/pause").status_code == 200, "again and again the same"
        refused = http.post(f"{path}/exec", json={"argv": ["true"]})
        assert (refused.status_code, refused.json()["code"]) == (409, "sandbox_paused")
        at = process.poll().stdout
        time.sleep(0.3)
        assert process.poll().stdout == at
        own_server.kill()
        own_server.start()
        http.base_url = own_server.url
        assert http.get(path).json()["state"] == "paused"
        assert http.post(f"{path}/resume").json()["state"] == "running"
        assert process.wait().stdout == "".join(f"{i}\n" for i in range(150))
        assert followed.result(timeout=20) == "".join(f"{i}\n" for i in range(150))
        follower.shutdown()
        assert not list((own_server.state / "snapshots").iterdir())
        http.post(f"{path}/pause")
        assert http.delete(path).json()["state"] == "terminated"
        assert not list((own_server.state / "snapshots").iterdir())


def test_times_count_while_it_is_paused(own_server: Server) -> None:
    own_server.start()
    with own_server.client() as http:
        made = http.post("/v1/sandboxes", json={"timeout_s": 3}).json()
        path = f"/v1/sandboxes/{made['id']}"
        late = http.post(f"{path}/exec", json={"shell": "sleep 60", "wait": False, "timeout_s": 1.0}).json()
        http.post(f"{path}/pause")
        until(lambda: http.get(path).json()["state"] == "terminated")
        assert http.get(path).json()["termination"]["reason"] == "timeout"
        assert http.get(f"{path}/execs/{late['id']}").json()["outcome"]["reason"] in ("timeout", "sandbox_ended")


def test_who_is_idle_is_parked_and_one_wake_serves_all(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_FREEZE_AFTER_S": "0.2", "ISOBOX_PARK_AFTER_S": "0.5", "ISOBOX_POOL_CEILING": "0"}
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
        path = f"/v1/sandboxes/{sandbox.id}"
        sandbox.exec(shell="echo kept > ~/file")
        for _ in range(2):
            until(lambda: http.get(path).json()["paused_by"] == "idle")
            until(lambda: not list((own_server.state / "run").iterdir()))
            with ThreadPoolExecutor(6) as threads:
                found = list(threads.map(lambda _: sandbox.exec(shell="cat ~/file; hostname").stdout, range(6)))
            assert found == [f"kept\n{sandbox.id}\n"] * 6
        until(lambda: http.get(path).json()["paused_by"] == "idle")
        assert http.post(f"{path}/pause").json()["paused_by"] == "request"
        assert http.post(f"{path}/exec", json={"argv": ["true"]}).status_code == 409
        assert http.post(f"{path}/resume").json()["state"] == "running"


def test_who_was_parked_goes_on_in_a_sandbox_that_is_ready(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_POOL_FLOOR": "1", "ISOBOX_POOL_CEILING": "1"}
    own_server.start()
    with own_server.client() as http, own_server.operator() as operator:
        path = f"/v1/sandboxes/{http.post('/v1/sandboxes', json={}).json()['id']}"
        id_ = path.split("/")[-1]
        folder = own_server.state / "run" / id_

        def ready() -> bool:
            text = operator.get("/metrics").text
            return re.search(r'^isobox_pool_ready\{.*kind="created".*\} 1\.0$', text, re.MULTILINE) is not None

        def works() -> None:
            answer = http.post(f"{path}/exec", json={"shell": "cat ~/file; hostname; cat ~/file"}).json()
            assert answer["stdout"] == f"kept\n{id_}\nkept\n"

        http.post(f"{path}/exec", json={"shell": "echo kept > ~/file"})
        for _ in range(2):
            http.post(f"{path}/pause").raise_for_status()
            until(ready)
            http.post(f"{path}/resume").raise_for_status()
            born = (folder / "born").read_text()
            assert born != id_
            works()
        own_server.kill()
        own_server.start()
        http.base_url = own_server.url
        works()
        assert http.get(f"{path}/stats").json()["memory_bytes"] > 0
        assert http.delete(path).json()["state"] == "terminated"
        assert not folder.exists()
        assert not list(Path("/sys/fs/cgroup").glob(f"**/{born}"))


def test_a_full_disk_is_told_and_the_sandbox_goes_on(own_server: Server, tmp_path: Any) -> None:
    from isolation import mounts

    own_server.state.mkdir()
    full = own_server.state / "snapshots"
    full.mkdir()
    mounts.mount_tmpfs(full, size_mb=1)
    try:
        own_server.start()
        with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox, own_server.client() as http:
            path = f"/v1/sandboxes/{sandbox.id}"
            sandbox.exec(shell="head -c 4000000 /dev/urandom > ~/large")
            for deed in ("pause", "snapshots", "fork"):
                refused = http.post(f"{path}/{deed}", json={})
                assert refused.status_code in (409, 507), refused.text
                assert refused.json()["code"] in ("disk_full", "checkpoint_refused")
                assert sandbox.exec(shell="echo on").stdout == "on\n"
            assert http.get(path).json()["state"] == "running"
            assert not list(full.iterdir())
    finally:
        mounts.detach(full)


@pytest.mark.timeout(400)
def test_a_fork_bomb_is_copied_or_told_to_be_in_the_way_and_the_sandbox_goes_on(
    server: Server, http: httpx.Client
) -> None:
    with Sandbox.create(url=server.url, api_key=server.key, resources={"pids": 60}) as sandbox:
        path = f"/v1/sandboxes/{sandbox.id}"
        bomb = sandbox.start("sh", "-c", "while :; do (sh -c 'sleep 0.01 & sleep 0.01 & true' &) 2> /dev/null; done")
        time.sleep(0.5)
        for _ in range(5):
            for kind in ("memory", "filesystem"):
                taken = http.post(f"{path}/snapshots", json={"kind": kind})
                assert taken.status_code in (201, 409), taken.text
                if taken.status_code == 201:
                    http.delete(f"/v1/snapshots/{taken.json()['id']}")
            forked = http.post(f"{path}/fork", json={"count": 1})
            assert forked.status_code in (201, 409), forked.text
            for child in forked.json().get("sandboxes", []):
                http.delete(f"/v1/sandboxes/{child['id']}")
        bomb.kill()
        bomb.wait()
        until(
            lambda: http.post(f"{path}/exec", json={"shell": "pkill sleep; echo calm"}).json().get("stdout") == "calm\n"
        )


@pytest.mark.timeout(240)  # sixty restarts
def test_kill_9_at_any_moment_of_a_copy_leaves_nothing_half_made(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_POOL_CEILING": "0"}
    own_server.start()
    rng = random.Random(5)
    sandbox = Sandbox.create(url=own_server.url, api_key=own_server.key, timeout_s=600)
    process = sandbox.start(*COUNT)
    path = f"/v1/sandboxes/{sandbox.id}"

    def attempt(http: httpx.Client, deed: str) -> None:
        try:
            if deed == "move":
                http.post(f"{path}/pause")
                http.post(f"{path}/resume")
            else:
                http.post(f"{path}/{deed}", json={})
        except httpx.TransportError:
            pass

    for deed in ["move", "fork", "snapshots"] * 20:
        with own_server.client() as http:
            thread = threading.Thread(target=attempt, args=(http, deed))
            thread.start()
            time.sleep(rng.uniform(0.0, 0.4))
            own_server.kill()
            thread.join()
        own_server.start()
        with own_server.client() as http:
            here = http.get(path).json()
            assert here["state"] in ("running", "paused"), here
            http.post(f"{path}/resume")
            known = {each["id"] for each in http.get("/v1/snapshots").json()["snapshots"]}
            assert set(os.listdir(own_server.state / "snapshots")) == known
            alive = running(http)
            assert {each.name for each in (own_server.state / "run").iterdir()} == alive
            for child in alive - {sandbox.id}:
                there = f"/v1/sandboxes/{child}"
                assert consecutive(numbers(http, there, execs(http, there)[-1]["id"]))
                http.delete(there)
            for each in known:
                made = http.post("/v1/sandboxes", json={"snapshot": each}).json()
                assert http.delete(f"/v1/sandboxes/{made['id']}").json()["state"] == "terminated"
                http.delete(f"/v1/snapshots/{each}")
    with own_server.client() as http:
        raw = http.get(f"{path}/execs/{process.id}/output").text.splitlines()
        assert consecutive([int(line) for line in raw[:-1]]), "not a line lost or repeated"
        assert raw[0] == "0"
    sandbox.terminate()
    sandbox.close()


def test_a_template_is_kept_ready_and_each_claim_is_a_copy_of_its_own(own_server: Server) -> None:
    own_server.start()
    with (
        Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox,
        own_server.client() as http,
        own_server.operator() as operator,
    ):
        path = f"/v1/sandboxes/{sandbox.id}"
        sandbox.run("x = 1")
        process = sandbox.start(*COUNT)
        until(lambda: "5\n" in process.poll().stdout)
        snapshot = http.post(f"{path}/snapshots", json={"template": True}).json()
        assert snapshot["template"]

        def restored() -> float:
            lines = operator.get("/metrics").text.splitlines()
            found = [line for line in lines if line.startswith("isobox_pool_ready") and 'kind="restored"' in line]
            return float(found[0].split()[-1]) if found else 0.0

        until(lambda: restored() >= 2)
        children = [http.post("/v1/sandboxes", json={"snapshot": snapshot["id"]}).json()["id"] for _ in range(2)]
        for n, child in enumerate(children):
            there = f"/v1/sandboxes/{child}"
            assert run(http, there, "hostname") == f"{child}\n"
            answer = http.post(f"{there}/run", json={"code": f"x += {n}; x"}).json()
            assert answer["results"][0]["text/plain"] == str(1 + n)
            copied = next(each for each in execs(http, there) if each["forked_from"] == process.id)
            until(lambda there=there, copied=copied: len(numbers(http, there, copied["id"])) > 5)  # type: ignore[misc]
            assert consecutive(numbers(http, there, copied["id"]))
        # A restart finds what was claimed, and the template again.
        own_server.kill()
        own_server.start()
        for n, child in enumerate(children):
            assert http.post(f"/v1/sandboxes/{child}/run", json={"code": "x"}).json()["results"][0][
                "text/plain"
            ] == str(1 + n)
        until(lambda: restored() >= 1)
        for child in children:
            http.delete(f"/v1/sandboxes/{child}")
        http.delete(f"/v1/snapshots/{snapshot['id']}")
        until(lambda: restored() == 0)
