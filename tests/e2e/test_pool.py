"""Sandboxes that wait ready, and sandboxes that nobody uses: seen from outside."""

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from machine import found as found_runsc
from server import Server, until

from isobox import Sandbox
from isolation import cgroups
from isolation.pidfd import Process
from isolation.runsc import read_state


def ready(server: Server) -> float:
    with server.operator() as http:
        text = http.get("/metrics").text
    return sum(float(value) for value in re.findall(r"^isobox_pool_ready{.*} (\S+)$", text, re.MULTILINE))


def claims(server: Server, found: str) -> float:
    with server.operator() as http:
        text = http.get("/metrics").text
    pattern = rf'^isobox_pool_claims{{found="{found}",.*}} (\S+)$'
    return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


def group(mount: Path, sandbox: str) -> Path:
    """Below its owner's group."""
    return next((mount / "isobox").glob(f"own*/{sandbox}"))


def frozen(sandbox: str) -> bool:
    layout = cgroups.detect()
    if layout.unified is not None:
        events = (group(layout.unified, sandbox) / "cgroup.events").read_text()
        return "frozen 1" in events
    return (group(layout.v1["freezer"], sandbox) / "freezer.state").read_text().strip() == "FROZEN"


def test_claims_at_once_get_sandboxes_of_their_own(own_server: Server) -> None:
    own_server.environment["ISOBOX_POOL_FLOOR"] = "3"
    own_server.start()
    until(lambda: ready(own_server) >= 3)

    def one(number: int) -> tuple[str, str, str]:
        with Sandbox.create(url=own_server.url, api_key=own_server.key, resources={"cpu": 1, "pids": 100}) as sandbox:
            text = sandbox.exec(shell=f"hostname; touch ~/{number}; ls ~").stdout.split()
            return sandbox.id, text[0], " ".join(text[1:])

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(one, range(6)))
    assert len({id_ for id_, _, _ in found}) == 6
    assert all(id_ == hostname for id_, hostname, _ in found)
    assert sorted(files for _, _, files in found) == [str(n) for n in range(6)]
    assert claims(own_server, "hit") >= 3
    assert claims(own_server, "hit") + claims(own_server, "miss") == 6


def test_a_claimed_sandbox_has_the_limits_that_were_asked_for(own_server: Server) -> None:
    own_server.start()
    until(lambda: ready(own_server) >= 1)
    with Sandbox.create(url=own_server.url, api_key=own_server.key, resources={"cpu": 0.5, "pids": 40}) as sandbox:
        assert claims(own_server, "hit") == 1
        layout = cgroups.detect()
        if layout.unified is None:
            quota = group(layout.v1["cpu"], sandbox.id) / "cpu.cfs_quota_us"
            assert quota.read_text().strip() == "50000"
        forked = sandbox.exec(shell="for i in $(seq 60); do sleep 5 & done; wait", timeout_s=20)
        assert "fork" in forked.stderr.lower()


def test_what_died_in_the_pool_is_not_given_out(own_server: Server) -> None:
    own_server.start()
    until(lambda: ready(own_server) >= 2)
    import os
    import signal

    for folder in (own_server.state / "run").iterdir():
        for line in Path("/proc").iterdir():
            if line.name.isdecimal():
                try:
                    command = (line / "cmdline").read_bytes()
                except OSError:
                    continue
                if folder.name.encode() in command and b"runsc-sandbox" in command:
                    os.kill(int(line.name), signal.SIGKILL)
    layout = cgroups.detect()
    if layout.unified is None:  # its freezer holds the signal back: as if they had died while thawed
        for folder in (own_server.state / "run").iterdir():
            (group(layout.v1["freezer"], folder.name) / "freezer.state").write_text("THAWED")
    time.sleep(0.3)
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        assert sandbox.exec("true").exit_code == 0


def test_a_killed_server_leaves_no_pool_behind(own_server: Server) -> None:
    own_server.start()
    until(lambda: ready(own_server) >= 2)
    before = {path.name for path in (own_server.state / "run").iterdir()}
    own_server.kill()
    own_server.environment["ISOBOX_POOL_CEILING"] = "0"
    own_server.start()
    assert len(before) >= 2
    assert not list((own_server.state / "run").iterdir())


freezes = pytest.mark.skipif(
    not found_runsc().bears_freezing, reason="this runsc parks what is idle: nothing is frozen"
)


@freezes
def test_who_is_idle_is_frozen_and_thawed_unnoticed(own_server: Server) -> None:
    own_server.environment["ISOBOX_FREEZE_AFTER_S"] = "0.3"
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        sandbox.exec("true")
        until(lambda: frozen(sandbox.id))
        assert sandbox.exec(shell="echo there").stdout == "there\n"
        until(lambda: frozen(sandbox.id))
        assert sandbox.files.stat("/etc/passwd").size > 0
        until(lambda: frozen(sandbox.id))
        assert sandbox.stats()["processes"] == 1
        busy = sandbox.start(shell="sleep 1.5; echo done")
        time.sleep(1)
        assert not frozen(sandbox.id), "an exec runs"
        assert busy.wait().stdout == "done\n"
        # Works in the background, then falls asleep for long.
        sandbox.exec(shell="(timeout 1.5 sh -c 'while :; do :; done'; sleep 100) > /dev/null 2>&1 &")
        time.sleep(1)
        assert not frozen(sandbox.id), "the background works"
        until(lambda: frozen(sandbox.id))


@freezes
def test_a_frozen_sandbox_outlives_its_server_and_ends_in_time(own_server: Server) -> None:
    own_server.environment["ISOBOX_FREEZE_AFTER_S"] = "0.2"
    own_server.start()
    sandbox = Sandbox.create(url=own_server.url, api_key=own_server.key)
    short = Sandbox.create(url=own_server.url, api_key=own_server.key, timeout_s=3)
    until(lambda: frozen(sandbox.id))
    own_server.kill()
    own_server.start()
    assert sandbox.exec(shell="echo still here").stdout == "still here\n"
    ended = short.wait(timeout_s=10)
    assert ended.termination is not None
    assert ended.termination["reason"] == "timeout"
    sandbox.terminate()
    sandbox.close()
    short.close()


@pytest.mark.parametrize("value", ["x", "-1", "1.5"])
def test_a_setting_that_cannot_be_used_is_named(own_server: Server, value: str) -> None:
    own_server.environment["ISOBOX_POOL_FLOOR"] = value
    with pytest.raises(AssertionError, match="ISOBOX_POOL_FLOOR"):
        own_server.start()
    assert own_server.process is not None
    own_server.process.wait()
    own_server._close()
    del own_server.environment["ISOBOX_POOL_FLOOR"]


def sentry_of(server: Server, sandbox: str) -> Process | None:
    """The sentry of a sandbox that may wait in the pool."""
    try:
        return Process(read_state(server.state / "run" / sandbox / "runsc").pid)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None


def test_a_sandbox_that_ends_during_a_claim_is_nobodys_or_has_ended(own_server: Server) -> None:
    own_server.environment["ISOBOX_POOL_FLOOR"] = "1"
    own_server.start()
    chance, reached = random.Random(7), set()
    with own_server.client() as http, ThreadPoolExecutor(1) as threads:
        for _ in range(20):
            until(lambda: ready(own_server) >= 1, timeout=30)
            waiting = [path.name for path in (own_server.state / "run").iterdir()]
            sentries = [each for name in waiting if (each := sentry_of(own_server, name)) is not None]
            created = threads.submit(http.post, "/v1/sandboxes", json={})
            time.sleep(chance.uniform(0, 0.012))
            for each in sentries:
                each.kill()
                each.close()
            answer = created.result()
            assert answer.status_code in (201, 409, 503), answer.text
            if answer.status_code != 201:
                continue
            path = f"/v1/sandboxes/{answer.json()['id']}"
            done = http.post(f"{path}/exec", json={"argv": ["echo", "here"]})
            if done.status_code == 200 and done.json()["stdout"] == "here\n":
                reached.add("whole")  # another one was claimed, or made
                http.delete(path)
            else:
                reached.add("ended")
                until(lambda path=path: http.get(path).json()["state"] in ("terminated", "failed"))  # type: ignore[misc]
                assert http.get(path).json()["termination"]["reason"] in ("exited", "lost")
    assert reached, "no claim was answered"
