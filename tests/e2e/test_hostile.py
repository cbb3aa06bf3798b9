"""A guest that breaks the channel, or does nothing any more: everybody who waits for it is answered, with a reason."""

import contextlib
import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from nursery import Nursery
from server import Server, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benchmarks.neighbours import ATTACKS, attacked, measured
from isobox import Sandbox

_F_GETPIPE_SZ = 1032
HANGING = "#!/bin/sh\nexec /bin/sleep 100000\n"
FLOODING = "#!/bin/sh\nexec /usr/bin/yes\n"
LYING = "#!/bin/sh\nprintf 'error\\0%s\\0/x\\0' 99999999999999999999 >&2\nexit 1\n"
NONE_OF_OURS = "#!/bin/sh\necho 'no entry of ours' >&2\n"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Server]:
    """A server that gives up soon on what gives no sign of life, and has no sandboxes but the test's."""
    running = Server(
        tmp_path_factory.mktemp("hostile") / "state",
        nursery,
        ISOBOX_GUEST_SILENCE_S="4",
        ISOBOX_POOL_FLOOR="0",
        ISOBOX_POOL_CEILING="0",
    ).start()
    yield running
    running.end()
    log = running.log()
    assert "Traceback" not in log, log
    assert '"level": "error"' not in log, log


def say_rubbish(server: Server) -> None:
    """As if PID 1 did: into the one pipe that the server reads from, by its other end."""
    assert server.process is not None
    written = 0
    for fd in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if not stat.S_ISFIFO(fd.stat().st_mode):
                continue
            flags = int((fd.parents[1] / "fdinfo" / fd.name).read_text().split("flags:")[1].split()[0], 8)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                continue
            pipe = os.open(fd, os.O_WRONLY | os.O_NONBLOCK)
            try:
                if is_channel(pipe):
                    written += os.write(pipe, b"\xff" * 4096)
            finally:
                os.close(pipe)
    assert written


def is_channel(pipe: int) -> bool:
    return fcntl.fcntl(pipe, _F_GETPIPE_SZ) == 1 << 20  # no other pipe of the server's is that large


class Asked(threading.Thread):
    """A request of a client's that waits: its status, or what became of it."""

    def __init__(self, deed: Callable[[], Any]) -> None:
        super().__init__()
        self._deed = deed
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._deed()
        except Exception as error:
            self.answer = error


def follow_socket(server: Server, path: str) -> str:
    headers = {"Authorization": f"Bearer {server.key}"}
    last = ""
    url = f"ws{server.url[4:]}{path}"
    with connect(url, additional_headers=headers, proxy=None) as socket, contextlib.suppress(ConnectionClosed):
        while True:
            last = str(socket.recv(timeout=90))
    return last


@pytest.mark.parametrize("end", ["rubbish", "stopped"])
def test_however_a_guest_goes_everybody_who_waits_is_answered(watched: Server, end: str) -> None:
    with watched.client(timeout=100) as http:
        id_ = http.post("/v1/sandboxes", json={"image": "python", "timeout_s": 600}).raise_for_status().json()["id"]
        path = f"/v1/sandboxes/{id_}"

        def post(below: str, **json_: Any) -> httpx.Response:
            return http.post(f"{path}{below}", json=json_)

        sleeps = {"argv": ["sleep", "100000"]}
        background = post("/exec", **sleeps, wait=False, stdin=True).json()["id"]
        context = post("/contexts", language="python").raise_for_status().json()["id"]
        server = ["python3", "-c", "import socket, time; s = socket.create_server(('', 8000)); time.sleep(100000)"]
        post("/exec", argv=server, wait=False)
        until(lambda: http.get(f"{path}/ports").json()["ports"])
        waiting = {
            "exec that is waited for": Asked(lambda: post("/exec", **sleeps)),
            "run": Asked(lambda: post(f"/contexts/{context}/run", code="import time; time.sleep(100000)")),
            "server-sent events": Asked(lambda: http.get(f"{path}/execs/{background}/stream")),
            "websocket": Asked(lambda: follow_socket(watched, f"{path}/execs/{background}/stream")),
            "stdin": Asked(lambda: http.post(f"{path}/execs/{background}/stdin", content=bytes(8 << 20))),
            "port": Asked(lambda: http.get(f"{path}/ports/8000/")),
            "watched folder": Asked(lambda: follow_socket(watched, f"{path}/files/watch?path=/tmp")),
            "wait": Asked(lambda: http.get(f"{path}/wait", params={"timeout_s": 90})),
        }
        until(
            lambda: len([each for each in http.get(f"{path}/execs").json()["execs"] if each["state"] == "running"]) > 2
        )
        if end == "rubbish":
            say_rubbish(watched)
        else:
            post("/exec", argv=["sh", "-c", "kill -STOP 1"], user="root", wait=False)
        for name, asked in waiting.items():
            asked.join(timeout=100)
            assert not asked.is_alive(), f"{name} waits still"
        answers = {name: asked.answer for name, asked in waiting.items()}
        assert not any(isinstance(answer, httpx.Response) and answer.status_code == 500 for answer in answers.values())
        assert answers["exec that is waited for"].json()["outcome"]["reason"] == "lost"
        assert answers["run"].json()["outcome"]["reason"] == "lost"
        assert '"reason":"lost"' in answers["server-sent events"].text.replace(" ", "")
        assert "sandbox_ended" in answers["watched folder"]
        assert json.loads(answers["websocket"])["data"]["outcome"]["reason"] == "lost"
        sandbox = http.get(path).json()
        assert sandbox["state"] == "failed" or sandbox["termination"]["reason"] == "lost", sandbox
        for each in http.get(f"{path}/execs").json()["execs"]:
            assert each["state"] == "exited", each
            assert each["outcome"]["reason"] in ("lost", "exit"), each


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [
        (LYING, 502, "helper_broken"),
        (NONE_OF_OURS, 502, "helper_broken"),
        (HANGING, 504, "guest_unresponsive"),
        (FLOODING, 504, "guest_unresponsive"),
    ],
)
def test_a_program_in_the_place_of_ours_is_told_as_what_it_is(
    watched: Server, program: str, status: int, code: str
) -> None:
    with watched.client() as http:
        id_ = http.post("/v1/sandboxes", json={"image": "python"}).raise_for_status().json()["id"]
        path = f"/v1/sandboxes/{id_}"
        put = f"cat > /.isobox/files <<'END'\n{program}END\nchmod 755 /.isobox/files"
        assert http.post(f"{path}/exec", json={"shell": put, "user": "root"}).json()["outcome"]["exit_code"] == 0
        name = {"path": "/etc/hostname"}
        for read in ("files", "files/stat"):
            answer = http.get(f"{path}/{read}", params=name)
            assert answer.status_code == status, answer.text
            assert answer.json()["code"] == code
        http.post(f"{path}/exec", json={"argv": ["rm", "/.isobox/files"], "user": "root"})
        assert http.get(f"{path}/files", params=name).json()["code"] == "helper_broken", "nor is this want of memory"
        assert http.post(f"{path}/exec", json={"argv": ["true"]}).json()["outcome"]["exit_code"] == 0, "it goes on"
        http.delete(path)


def test_an_exec_whose_end_pid_1_does_not_tell_has_one_all_the_same(watched: Server) -> None:
    with watched.client(timeout=100) as http:
        id_ = http.post("/v1/sandboxes", json={"image": "python"}).raise_for_status().json()["id"]
        path = f"/v1/sandboxes/{id_}"
        exec_ = http.post(f"{path}/exec", json={"argv": ["sleep", "1000"], "timeout_s": 1, "wait": False}).json()["id"]
        http.post(f"{path}/exec", json={"argv": ["sh", "-c", "kill -STOP 1"], "user": "root", "wait": False})
        until(lambda: http.get(f"{path}/execs/{exec_}").json()["state"] == "exited", timeout=60)
        assert http.get(f"{path}/execs/{exec_}").json()["outcome"]["reason"] in ("timeout", "lost")
        assert http.delete(path).status_code < 300


def test_a_server_whose_guest_broke_its_channel_stops(own_server: Server) -> None:
    own_server.environment |= {"ISOBOX_POOL_FLOOR": "0", "ISOBOX_POOL_CEILING": "0"}
    own_server.start()
    with own_server.client(timeout=100) as http:
        id_ = http.post("/v1/sandboxes", json={"image": "python"}).raise_for_status().json()["id"]
        waiting = Asked(lambda: http.post(f"/v1/sandboxes/{id_}/exec", json={"argv": ["sleep", "1000"]}))
        until(lambda: http.get(f"/v1/sandboxes/{id_}/execs").json()["execs"])
        say_rubbish(own_server)
        waiting.join(timeout=60)
        assert waiting.answer.json()["outcome"]["reason"] == "lost"
    own_server.stop()
    assert "Cancel" not in own_server.log(), "nothing had to be given up after a while"


def largest_turn(server: Server) -> float:
    with server.operator() as operator:
        lines = operator.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("isobox_turn_largest_bytes ")).split()[1])


@pytest.mark.timeout(300)
def test_neighbours_are_served_while_every_kind_of_attack_goes_on(
    tmp_path_factory: pytest.TempPathFactory, nursery: Nursery
) -> None:
    """How quickly is for `make bench` to tell (benchmarks/neighbours.py); here what a turn of the loop does is counted."""
    server = Server(tmp_path_factory.mktemp("neighbours") / "state", nursery).start()
    try:
        with server.client(timeout=120) as http:
            with attacked(server.url, server.key, *ATTACKS):
                gets, execs = measured(http, 8)
            assert (len(gets), len(execs)) == (8, 8)
            assert 0 < largest_turn(server) <= 4 << 20
            assert '"level": "error"' not in server.log(), server.log()
    finally:
        server.end()


OPEN_PIPES = """
import os
for place in ("/proc/1/fd", "/proc/1/task/1/fd"):
    for number, way in (("0", os.O_RDONLY), ("1", os.O_WRONLY)):
        try:
            os.open(f"{place}/{number}", way | os.O_NONBLOCK)
        except OSError:
            continue
        print(f"{place}/{number}")
"""


def test_root_inside_reaches_no_pipe_of_pid_1_in_copies_and_after_a_pause_either(sandbox: Sandbox) -> None:
    def opened(each: Sandbox) -> str:
        found = each.exec("python3", "-c", OPEN_PIPES, user="root")
        assert found.exit_code == 0, found.stderr
        return found.stdout

    assert opened(sandbox) == ""
    (child,) = sandbox.fork()
    with child:
        assert opened(child) == ""
    sandbox.pause()
    sandbox.resume()
    assert opened(sandbox) == ""
