"""The server may die at any moment: what runs goes on, and nobody loses or repeats a byte."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server import COMMAND, Server, until

from isobox import AsyncSandbox, Sandbox

COUNTER = "i=0; while [ $i -lt {n} ]; do echo line $i; i=$((i+1)); done; exit 7"


def follow_all(sandbox: Sandbox, exec_id: str, into: dict[str, object]) -> None:
    events = list(sandbox.process(exec_id))
    into["stdout"] = b"".join(event.data for event in events if event.type == "stdout").decode()
    into["seqs"] = [event.seq for event in events]
    into["exit"] = events[-1].info["outcome"]["exit_code"]


def test_execs_and_followers_survive_kill_9_at_any_moment(own_server: Server) -> None:
    own_server.start()
    lines = 60_000
    with Sandbox.create(url=own_server.url, api_key=own_server.key, timeout_s=600) as sandbox:
        process = sandbox.start("/bin/sh", "-c", COUNTER.format(n=lines))
        quick = sandbox.start("/bin/sh", "-c", "sleep 0.3; echo quick; exit 3")
        into: dict[str, object] = {}
        follower = threading.Thread(target=follow_all, args=(sandbox, process.id, into))
        follower.start()
        rng = random.Random(7)
        for _ in range(6):
            time.sleep(rng.uniform(0.05, 0.5))
            own_server.kill()
            time.sleep(rng.uniform(0.0, 0.2))
            own_server.start()
        follower.join(timeout=90)
        assert not follower.is_alive()
        assert into["stdout"] == "".join(f"line {i}\n" for i in range(lines))
        seqs = into["seqs"]
        assert isinstance(seqs, list)
        assert seqs == sorted(set(seqs))
        assert into["exit"] == 7
        result = quick.wait()
        assert (result.stdout, result.exit_code) == ("quick\n", 3)
        assert sandbox.exec("echo", "still here").stdout == "still here\n"


def test_what_ended_meanwhile_has_its_exit_code(own_server: Server) -> None:
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        process = sandbox.start("/bin/sh", "-c", "sleep 0.5; echo done; exit 41")
        late = sandbox.start("sleep", "100", timeout_s=1)
        own_server.kill()
        time.sleep(1.5)
        own_server.start()
        result = process.wait()
        assert (result.stdout, result.exit_code) == ("done\n", 41)
        outcome = late.wait().outcome
        assert outcome is not None
        assert outcome.reason == "timeout"


def test_a_record_that_is_behind_its_log_is_brought_up_to_it(own_server: Server) -> None:
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        process = sandbox.start("/bin/sh", "-c", "echo done; exit 41")
        assert process.wait().exit_code == 41
        own_server.kill()  # as if between the end of the log and the record, when PID 1 had been told to forget it
        with contextlib.closing(sqlite3.connect(own_server.state / "isobox.db")) as db:
            doc = json.loads(db.execute("select doc from execs where id = ?", (process.id,)).fetchone()[0])
            doc |= {"state": "running", "outcome": None, "ended_at": None}
            db.execute("update execs set state = 'running', doc = ? where id = ?", (json.dumps(doc), process.id))
            db.commit()
        own_server.start()
        result = process.wait()
        assert (result.stdout, result.exit_code) == ("done\n", 41)


def test_an_upgrade_is_a_restart_that_no_agent_notices(own_server: Server) -> None:
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        results: list[object] = []
        waiting = threading.Thread(target=lambda: results.append(sandbox.exec(shell="sleep 2; echo through").stdout))
        waiting.start()
        time.sleep(0.4)
        process = subprocess.Popen(["sleep", "0"])
        process.wait()
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGTERM)
        own_server.process.wait(timeout=30)
        own_server._close()
        own_server.start()
        waiting.join(timeout=30)
        assert results == ["through\n"]


def test_without_the_keeper_what_runs_is_lost_and_nothing_is_left(own_server: Server) -> None:
    own_server.environment["ISOBOX_POOL_CEILING"] = "0"
    own_server.start()
    sandbox = Sandbox.create(url=own_server.url, api_key=own_server.key)
    process = sandbox.start("sleep", "100")
    keeper = own_server.keeper_pid()
    assert keeper is not None
    own_server.kill()
    os.kill(keeper, signal.SIGKILL)
    until(lambda: own_server.keeper_pid() is None)
    own_server.start()
    info = sandbox.refresh()
    assert info.termination is not None
    assert (info.state, info.termination["reason"]) == ("failed", "lost")
    outcome = process.poll().outcome
    assert outcome is not None
    assert outcome.reason == "lost"
    assert [event.type for event in process][-1] == "exit"
    assert list((own_server.state / "run").iterdir()) == []
    sandbox.close()


def held_pipes(pid: int | None) -> int:
    try:
        return sum(os.readlink(fd).startswith("pipe:") for fd in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # not there yet
        return 0


def test_a_keeper_that_dies_alone_is_replaced(own_server: Server) -> None:
    own_server.start()
    with Sandbox.create(url=own_server.url, api_key=own_server.key) as sandbox:
        first = own_server.keeper_pid()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: own_server.keeper_pid() not in (None, first))
        until(lambda: held_pipes(own_server.keeper_pid()) == 2)
        own_server.kill()
        own_server.start()
        assert sandbox.exec("echo", "alive").stdout == "alive\n"


def create_if_possible(http: httpx.Client) -> None:
    with contextlib.suppress(httpx.TransportError):
        http.post("/v1/sandboxes", json={})


@pytest.mark.parametrize("ceiling", ["0", "4"])
def test_kill_9_during_create_or_claim_leaves_nothing(own_server: Server, ceiling: str) -> None:
    own_server.environment["ISOBOX_POOL_CEILING"] = ceiling
    own_server.start()
    rng = random.Random(11)
    for _ in range(20):
        with own_server.client() as http:
            threads = [threading.Thread(target=create_if_possible, args=(http,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.0, 0.25))
            own_server.kill()
            for thread in threads:
                thread.join()
        began = time.time()
        own_server.start()
        with own_server.client() as http:
            states = {s["id"]: s["state"] for s in http.get("/v1/sandboxes", params={"limit": 500}).json()["sandboxes"]}
            alive = {id_ for id_, state in states.items() if state == "running"}
            here = {path.name: path.stat().st_ctime for path in (own_server.state / "run").iterdir()}
            assert alive <= set(here)
            assert all(made > began for id_, made in here.items() if id_ not in alive), "only the new pool's own"
            assert set(states.values()) <= {"running", "failed", "terminated"}
            for id_ in alive:
                result = http.post(f"/v1/sandboxes/{id_}/exec", json={"argv": ["true"]}).json()
                assert result["outcome"]["exit_code"] == 0
                http.delete(f"/v1/sandboxes/{id_}")


def test_oom_while_no_server_runs_is_told_as_oom(own_server: Server) -> None:
    own_server.start()
    resources = {"memory_mb": 96, "disk_mb": 16}
    sandbox = Sandbox.create(url=own_server.url, api_key=own_server.key, resources=resources)
    process = sandbox.start("python3", "-c", "import time; time.sleep(1); x = bytearray(500_000_000)")
    time.sleep(0.3)
    own_server.kill()
    time.sleep(2.5)
    own_server.start()
    # Nobody was there to act before the kernel did: it may have taken the sentry, or one of its stubs.
    result = process.wait()
    assert result.error is not None
    assert result.error.kind == "oom"
    info = sandbox.refresh()
    assert info.state == "running" or (info.termination or {})["reason"] == "oom"
    sandbox.terminate()
    sandbox.close()


def test_a_clean_restart_is_a_pause_that_no_client_notices(own_server: Server) -> None:
    own_server.start()
    where = {"url": own_server.url, "api_key": own_server.key}
    with Sandbox.create(**where) as sandbox, ThreadPoolExecutor() as threads:
        sandbox.run("1")  # the context is there

        def ask() -> httpx.Response:
            with own_server.client() as http:
                return http.post(f"/v1/sandboxes/{sandbox.id}/exec", json={"argv": ["sleep", "300"]})

        async def ask_async() -> str:
            same = await AsyncSandbox.connect(sandbox.id, **where)
            try:
                return (
                    await same.exec("sh", "-c", "touch async; while [ ! -e go ]; do sleep 0.1; done; echo a")
                ).stdout
            finally:
                await same.close()  # not its end: it is the others' too

        waiting = "import os, time\nopen('context', 'w')\nwhile not os.path.exists('go'):\n    time.sleep(0.1)\n6 * 7"
        plain = threads.submit(ask)
        blocking = threads.submit(sandbox.exec, "sh", "-c", "touch exec; while [ ! -e go ]; do sleep 0.1; done; echo b")
        run = threads.submit(sandbox.run, waiting)
        asynchronous = threads.submit(lambda: asyncio.run(ask_async()))
        until(lambda: {"exec", "context", "async"} <= {entry.name for entry in sandbox.files.list("/home/user")})
        own_server.stop()
        told = plain.result(30)
        assert (told.status_code, told.json()["code"], told.json()["retryable"]) == (503, "restarting", True)
        own_server.start()
        sandbox.files.write("/home/user/go", b"")
        assert blocking.result(60).stdout == "b\n"
        assert run.result(60).text == "42"
        assert asynchronous.result(60) == "a\n"
        sandbox.terminate()


def test_a_second_server_on_the_same_state_refuses(server: Server) -> None:
    done = subprocess.run(
        [*COMMAND, "--state", str(server.state), "--listen", "127.0.0.1:0"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "another server uses" in done.stderr
    assert "--state" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--listen", "nonsense"], "HOST:PORT"), (["--listen", "127.0.0.1:99999"], "HOST:PORT"), (["--listen", "192.0.2.1:1"], "another address")],
)  # fmt: skip
def test_bad_settings_are_one_clear_line(arguments: list[str], words: str, tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isobox.cli.main", "serve", "--state", str(tmp_path), *arguments],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_cannot_start_says_why_in_a_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isobox.cli.main", "serve", "--state", str(tmp_path / "s"), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"ISOBOX_RUNSC": "/nonexistent"},
    )
    assert done.returncode == 1
    assert "isobox: no usable runsc: /nonexistent: " in done.stderr
    assert "ISOBOX_RUNSC" in done.stderr
    assert "Traceback" not in done.stderr
