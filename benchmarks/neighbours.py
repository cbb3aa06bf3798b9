"""What a neighbour notices of a hostile guest or client: the p95 of its GET and exec, beside those of a quiet server.

Each attack is a process of its own (`python -m benchmarks.neighbours ATTACK`) that goes on until it is ended. Guests that
attack have half a core: what is measured is how much of the server's one loop they get, not of the machine.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

from benchmarks.rows import Row, timed

LABEL = "hostile"
MOST = 3.0
FOLLOWERS = 20
FOLLOWED = 150 << 20
_PR_SET_PDEATHSIG = 1
_LEAVE_WITHIN_S = 20.0
URL, KEY = "HOSTILE_URL", "HOSTILE_KEY"


class Attacker:
    """A client of the service with a sandbox of its own."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        limits = httpx.Limits(max_connections=64)
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=120, limits=limits)
        self.path = ""

    def create(self) -> None:
        """A sandbox that a benchmark knows to be an attacker's, and that ends by itself should nobody end it."""
        request = {"image": "python", "timeout_s": 300, "labels": {LABEL: "1"}, "resources": {"cpu": 0.5}}
        self.path = f"/v1/sandboxes/{self.http.post('/v1/sandboxes', json=request).raise_for_status().json()['id']}"

    def start(self, *argv: str, **fields: Any) -> str:
        """Run something in it, in the background."""
        answer = self.http.post(f"{self.path}/exec", json={"argv": list(argv), "wait": False, **fields})
        return str(answer.raise_for_status().json()["id"])

    def socket(self, path: str) -> Any:
        """A websocket to a path below it."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return connect(f"ws{self.url[4:]}{self.path}{path}", additional_headers=headers, proxy=None, max_size=None)


def begun() -> None:
    """Tell whoever started us."""
    print("attacking", flush=True)


def for_ever() -> None:
    """Until somebody ends us."""
    begun()
    threading.Event().wait()


def unread(attacker: Attacker) -> None:
    """Followers of a long log that go away and read nothing, again and again."""
    attacker.create()
    script = f"import os\nb = b'x' * (1 << 20)\nfor _ in range({FOLLOWED >> 20}): os.write(1, b)"
    exec_ = attacker.start("python3", "-c", script)
    while attacker.http.get(f"{attacker.path}/execs/{exec_}").json()["state"] == "running":
        time.sleep(0.2)
    begun()
    while True:
        with contextlib.ExitStack() as stack:
            for _ in range(FOLLOWERS):
                stack.enter_context(attacker.http.stream("GET", f"{attacker.path}/execs/{exec_}/stream"))
            time.sleep(0.2)


def greedy(attacker: Attacker) -> None:
    """Followers of a long log that read as fast as they can."""
    attacker.create()
    script = f"import os\nb = b'x' * (1 << 20)\nfor _ in range({FOLLOWED >> 20}): os.write(1, b)"
    exec_ = attacker.start("python3", "-c", script)

    def follow() -> None:
        while True:
            with attacker.socket(f"/execs/{exec_}/stream") as socket, contextlib.suppress(Exception):
                while True:
                    socket.recv()

    for _ in range(4):
        threading.Thread(target=follow, daemon=True).start()
    for_ever()


def bulk(attacker: Attacker) -> None:
    """A guest that prints as much as it can."""
    attacker.create()
    attacker.start("yes")
    for_ever()


def bytewise(attacker: Attacker) -> None:
    """A guest that prints byte by byte, on both streams, while somebody asks for all of it."""
    attacker.create()
    exec_ = attacker.start("python3", "-c", "import os\nwhile True: os.write(1, b'x'); os.write(2, b'y')")
    begun()
    while True:
        attacker.http.get(f"{attacker.path}/execs/{exec_}", params={"max_output_bytes": 1 << 20})


def context(attacker: Attacker) -> None:
    """Code in a context that prints, and forges small frames of its runner's, as fast as it can."""
    attacker.create()
    code = """
import os, sys
token = sys.argv[1] if len(sys.argv) > 1 else "0" * 16
frame = b"x\\x1eisobox:" + token.encode() + b"R0000.0014" + b'{"text/plain": "1"}'.ljust(20)
while True:
    os.write(1, frame * 100)
"""
    attacker.http.post(f"{attacker.path}/run", json={"language": "python", "code": code, "wait": False})
    for_ever()


def function(attacker: Attacker) -> None:
    """A function that prints as fast as it can."""
    from benchmarks import bench_functions as fns

    with fns.app.run(url=attacker.url, api_key=attacker.key):
        fns.one.remote(0)
        begun()
        while True:
            fns.loud.remote(60.0)


def port(attacker: Attacker) -> None:
    """A program that answers in chunks of one byte, to clients that read all of them."""
    attacker.create()
    script = """
import socket, threading
body = b"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n" + b"1\\r\\nx\\r\\n" * 100_000 + b"0\\r\\n\\r\\n"
def serve(connection):
    with connection:
        connection.recv(65536); connection.sendall(body)
listener = socket.create_server(("", 8000))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
    attacker.start("python3", "-c", script)
    attacker.http.get(f"{attacker.path}/ports/8000/wait", params={"timeout_s": 30})
    begun()
    while True:
        attacker.http.get(f"{attacker.path}/ports/8000/")


def stopped(attacker: Attacker) -> None:
    """A client that feeds, resizes and signals processes whose PID 1 root inside has stopped."""
    attacker.create()
    ids = [attacker.start("sleep", "1000", pty={"rows": 9, "cols": 9}) for _ in range(4)]
    attacker.start("sh", "-c", "kill -STOP 1", user="root")
    begun()

    def feed(exec_: str) -> None:
        while True:
            with attacker.socket(f"/execs/{exec_}/stream") as socket, contextlib.suppress(Exception):
                for n in range(1_000_000):
                    socket.send(json.dumps({"type": "resize", "rows": 1 + n % 900, "cols": 9}))
                    socket.send(json.dumps({"type": "signal", "signal": "SIGWINCH"}))
                    socket.send(json.dumps({"type": "stdin", "data": "x" * 1000}))

    for exec_ in ids:
        threading.Thread(target=feed, args=(exec_,), daemon=True).start()
    threading.Event().wait()


def forged(attacker: Attacker) -> None:
    """Root inside writes frames of numbers never given into PID 1's pipe, where it can; again in another sandbox."""
    script = """
import os, struct
frames = b"".join(struct.pack("<IBBHIIQ", 0, 67, 0, 0, 1 << 20 | n, 7, 0) for n in range(2000))
pipe = os.open("/proc/1/fd/1", os.O_WRONLY)
while True: os.write(pipe, frames)
"""
    begun()
    while True:
        attacker.create()
        attacker.http.post(
            f"{attacker.path}/exec", json={"argv": ["python3", "-c", script], "user": "root", "timeout_s": 20}
        )
        attacker.http.delete(attacker.path)


ATTACKS: dict[str, Callable[[Attacker], None]] = {
    each.__name__: each for each in (unread, greedy, bulk, bytewise, context, function, port, stopped, forged)
}


@contextmanager
def attacked(url: str, key: str, *attacks: str) -> Iterator[None]:
    """A server under these attacks; nothing is left of them."""
    environment = os.environ | {URL: url, KEY: key}
    root = Path(__file__).parents[1]
    running: list[subprocess.Popen[str]] = []
    try:
        for name in attacks:
            command = [sys.executable, "-m", "benchmarks.neighbours", name]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root))
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "attacking\n"
        yield
        assert not [process.args for process in running if process.poll() is not None], "an attack ended by itself"
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=_LEAVE_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            listed = http.get("/v1/sandboxes", params={"state": "running", "label": f"{LABEL}:1", "limit": 100}).json()
            for each in listed["sandboxes"]:
                http.delete(f"/v1/sandboxes/{each['id']}")


def measured(http: httpx.Client, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a neighbour's GETs and execs."""
    path = f"/v1/sandboxes/{http.post('/v1/sandboxes', json={'image': 'python'}).raise_for_status().json()['id']}"
    gets, execs = [], []

    def run() -> None:
        answer = http.post(f"{path}/exec", json={"argv": ["true"]}).raise_for_status().json()
        assert answer["outcome"]["exit_code"] == 0, answer

    try:
        run()
        for _ in range(rounds):
            gets.append(timed(lambda: http.get(path).raise_for_status()))
            execs.append(timed(run))
    finally:
        http.delete(path)
    return gets, execs


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[int(len(values) * 0.95)]


def _row(name: str, values: list[float], quiet: list[float]) -> Row:
    ours, base = p95(values), p95(quiet)
    ratio = ours / base
    target = f"<= {MOST:g} x quiet"
    return Row(
        name, "ms", len(values), round(ours, 2), round(max(values), 2), "quiet", round(base, 2), round(ratio, 2), target, ratio <= MOST
    )  # fmt: skip


def rows(url: str, key: str, rounds: int, attacks: tuple[str, ...] = tuple(ATTACKS)) -> list[Row]:
    """All of it: p95 where others have medians, and the largest in the place of p99."""
    found = []
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120) as http:
        measured(http, 5)
        quiet = measured(http, rounds)
        for name in attacks:
            with attacked(url, key, name):
                gets, execs = measured(http, rounds)
            found += [
                _row(f"p95 of GET beside `{name}`", gets, quiet[0]),
                _row(f"p95 of exec beside `{name}`", execs, quiet[1]),
            ]
    return found


def main() -> None:
    """One attack, by its name; without one, all of it."""
    if len(sys.argv) > 1 and sys.argv[1] in ATTACKS:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody is attacked once nobody measures
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the function's run is closed
        with contextlib.suppress(KeyboardInterrupt):
            ATTACKS[sys.argv[1]](Attacker(os.environ[URL], os.environ[KEY]))
        return
    from benchmarks.__main__ import serving
    from benchmarks.rows import table

    with serving() as server:
        time.sleep(4)
        print(table(rows(server.url, server.key, int(os.environ.get("ISOBOX_BENCH_ROUNDS", "100")))))


if __name__ == "__main__":
    main()
