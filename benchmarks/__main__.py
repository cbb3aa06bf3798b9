"""`make bench`: everything in one run, interleaved, medians; a table and benchmarks/results.json."""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
from websockets.sync.client import connect

from benchmarks import copies, egress, functions, images, neighbours
from benchmarks.bare import Bare
from benchmarks.peers import Peer, Podman, available
from benchmarks.rows import Row, alone, beside, p99, save, table, timed
from common.signals import unwind_on_signals
from fs.images import ImageStore
from isobox import Sandbox
from isolation import runsc
from isolation.guest import build
from sandbox_api.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))

from outside import outside
from server import Server

ROUNDS = int(os.environ.get("ISOBOX_BENCH_ROUNDS", "30"))
TRUE, PYTHON = ["true"], ["python3", "-c", "pass"]
GIB = 1 << 30


class Ours:
    """isobox over HTTP, with a plain HTTP client."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._path = ""

    def create(self) -> None:
        """POST /v1/sandboxes."""
        answer = self._http.post("/v1/sandboxes", json={"image": "python"}).raise_for_status().json()
        self._path = f"/v1/sandboxes/{answer['id']}"

    def run(self, argv: Sequence[str]) -> None:
        """POST …/exec with wait."""
        answer = self._http.post(f"{self._path}/exec", json={"argv": list(argv)}).raise_for_status().json()
        assert answer["outcome"]["exit_code"] == 0, answer

    def terminate(self) -> None:
        """DELETE."""
        self._http.delete(self._path).raise_for_status()


def lifecycle(http: httpx.Client, peers: list[Peer], bare: Bare) -> list[Row]:
    """create, exec, terminate: a round of ours, of ours without the service, then of each peer, and so on."""
    sides: dict[str, Ours | Peer] = {"ours": Ours(http), bare.name: bare, **{peer.name: peer for peer in peers}}
    found: dict[str, dict[str, list[float]]] = {
        name: {"create": [], "true": [], "python": [], "terminate": []} for name in sides
    }
    for _ in range(ROUNDS):
        for name, side in sides.items():
            into = found[name]
            into["create"].append(timed(side.create))
            side.run(TRUE)  # the first exec of a sandbox warms nothing that lasts, yet nobody counts it
            into["true"].append(timed(lambda side=side: side.run(TRUE)))  # type: ignore[misc]
            into["python"].append(timed(lambda side=side: side.run(PYTHON)))  # type: ignore[misc]
            into["terminate"].append(timed(side.terminate))
    most = {"create": 1.3, "true": 0.5, "python": 0.6, "terminate": 0.1}
    words = {"create": "create", "true": "exec true", "python": "exec python3 -c pass", "terminate": "terminate"}
    return [
        beside(
            words[deed],
            found["ours"][deed],
            peer.name,
            found[peer.name][deed],
            most=most[deed] if peer is peers[0] else None,
        )
        for deed in words
        for peer in peers
    ] + [
        beside(f"{words[deed]}: {bare.name}", found[bare.name][deed], peers[0].name, found[peers[0].name][deed])
        for deed in ("true", "python")
    ]


def throughput(server: Server, protocol: str) -> float:
    """MB/s of 1 GiB from the guest to one websocket client."""
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        url = f"ws{server.url[4:]}/v1/sandboxes/{sandbox.id}/exec"
        headers = {"Authorization": f"Bearer {server.key}"}
        with connect(
            url, additional_headers=headers, subprotocols=[protocol], max_size=None, compression=None, proxy=None
        ) as socket:  # type: ignore[list-item]
            began, size = time.perf_counter(), 0
            # Text, so that JSON carries it as text.
            script = "import os\nb = b'x' * (1 << 20)\nfor _ in range(1024): os.write(1, b)"
            socket.send(json.dumps({"argv": ["python3", "-c", script], "overflow": "block"}))
            while True:
                frame = socket.recv()
                if isinstance(frame, bytes):
                    size += len(frame) - 9
                elif '"type":"stdout"' in frame[:100]:
                    size += len(frame) - frame.index('"data":"') - len('"data":""}')
                elif '"type":"exit"' in frame:
                    break
            seconds = time.perf_counter() - began
        assert size == GIB, size
    return size / 1e6 / seconds


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def flood(server: Server) -> float:
    """MiB that the server grows while a client reads nothing of a flood of 2 GiB."""
    assert server.process is not None
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        url = f"ws{server.url[4:]}/v1/sandboxes/{sandbox.id}/exec"
        headers = {"Authorization": f"Bearer {server.key}"}
        before = highest = rss_mib(server.process.pid)
        with connect(
            url, additional_headers=headers, max_size=None, max_queue=1, compression=None, proxy=None
        ) as socket:
            socket.send(json.dumps({"argv": ["dd", "if=/dev/zero", "bs=1M", "count=2048"]}))
            while any(each.outcome is None for each in sandbox.execs()) or not sandbox.execs():
                highest = max(highest, rss_mib(server.process.pid))
                time.sleep(0.05)
    return highest - before


def many_execs(http: httpx.Client) -> list[float]:
    """200 execs, 32 at a time, in one sandbox."""
    ours = Ours(http)
    ours.create()
    try:
        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(lambda _: timed(lambda: ours.run(TRUE)), range(200)))
    finally:
        ours.terminate()


def many_cycles(http: httpx.Client) -> list[float]:
    """100 times create, exec, terminate, 4 at a time."""

    def cycle() -> None:
        ours = Ours(http)
        ours.create()
        ours.run(TRUE)
        ours.terminate()

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: timed(cycle), range(100)))


@contextmanager
def serving(**environment: str) -> Iterator[Server]:
    """A server of its own; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder:
        server = Server(Path(folder) / "state", **environment).start()
        try:
            yield server
        finally:
            server.end()


@contextmanager
def serving_outside() -> Iterator[tuple[Server, str]]:
    """A server, and a network outside in the namespace of that name."""
    with (
        tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder,
        outside(Path(folder)) as net,
        serving(ISOBOX_FREEZE_AFTER_S="0.5", ISOBOX_POOL_CEILING="2", **net.environment) as server,
    ):
        yield server, net.namespace


def main() -> None:
    """Run everything."""
    unwind_on_signals()
    settings = Settings.from_environment()
    found = asyncio.run(runsc.find(settings.runsc, settings.cache))
    store = ImageStore(settings.cache / "images", guest=lambda: build.guest(settings.cache))
    peers, notes = available(found.path, store.path(store.ensure("python")))
    rows: list[Row] = []
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    try:
        with serving(ISOBOX_POOL_CEILING="0") as server, server.client(limits=limits) as http:
            with closing(Bare(store.path(store.ensure("python")), settings.cache)) as bare:
                rows += lifecycle(http, peers, bare)
            for protocol, least in (("isobox.v1.bin", 200), ("isobox.v1.json", 60)):
                rates = [throughput(server, protocol) for _ in range(5)]
                rows.append(alone(f"1 GiB to one client, {protocol}", "MB/s", rates, least=least))
            rows.append(alone("server growth, 2 GiB unread", "MiB", [flood(server) for _ in range(3)], most=64))
            execs = many_execs(http)
            rows.append(alone("200 execs, 32 at a time: each", "ms", execs))
            cycles = many_cycles(http)
            rows.append(alone("100 cycles, 4 at a time: each", "ms", cycles))
            notes.append(
                f"200 execs at 32: none failed, p99 {p99(execs):.0f} ms; 100 cycles at 4: none failed, p99 {p99(cycles):.0f} ms"
            )
            left = list((server.state / "run").iterdir())
            assert not left, left
        with (
            serving(ISOBOX_FREEZE_AFTER_S="0.5", ISOBOX_MAX_SANDBOXES="400") as server,
            server.client() as http,
            server.operator() as operator,
        ):
            podman = next((peer for peer in peers if isinstance(peer, Podman)), None)
            rows += copies.rows(copies.Api(http, operator), server, podman, max(ROUNDS, 50))
        with serving_outside() as (server, namespace), server.client() as http:
            rows += egress.rows(copies.Api(http), namespace, max(ROUNDS, 50))
        with serving(ISOBOX_POOL_FLOOR="0", ISOBOX_POOL_CEILING="0") as server, server.client() as http:
            rows += images.rows(server, http, settings.cache, 5)
        with serving() as server:
            time.sleep(4)
            rows += functions.rows(server.url, server.key, max(ROUNDS, 200))
        with serving() as server:
            rows += neighbours.rows(server.url, server.key, max(ROUNDS, 100))
    finally:
        for peer in peers:
            peer.close()
    save(rows, notes)
    print(table(rows))
    for note in notes:
        print(f"* {note}")


if __name__ == "__main__":
    main()
