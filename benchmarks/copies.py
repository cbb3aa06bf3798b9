"""What pools, contexts, forks, pauses and ports cost, beside the raw control calls and podman with runsc."""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

from benchmarks.peers import Podman
from benchmarks.rows import Row, alone, beside, timed
from common.ids import new_id
from common.signals import unwind_on_signals
from fs.images import ImageStore
from isolation import cgroups, runsc
from isolation.execs import Exec, ExecSpec
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.sandbox import Machine
from isolation.sandbox import Sandbox as Raw
from isolation.snapshots import Copy
from isolation.spec import DEFAULT

PRINT = ["python3", "-c", "print(1)"]
APP64 = """
import http.server, numpy
heap = numpy.ones(64 << 17)  # 64 MiB of float64
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(heap.sum()).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


TICKS = """
import time
last = time.monotonic()
while True:
    now = time.monotonic()
    print(int((now - last) * 1e6))
    last = now
    time.sleep(0.001)
"""


class Api:
    """The API by a plain HTTP client; operator is one with the operator's key, for the metrics."""

    def __init__(self, http: httpx.Client, operator: httpx.Client | None = None) -> None:
        self.http = http
        self.operator = operator

    def create(self, **fields: object) -> str:
        """A sandbox's path."""
        answer = self.http.post("/v1/sandboxes", json=fields, timeout=300)
        assert answer.status_code == 201, answer.text
        return f"/v1/sandboxes/{answer.json()['id']}"

    def run(self, path: str, code: str) -> str:
        """Code in the default context: its last result."""
        answer = self.http.post(f"{path}/run", json={"code": code}).raise_for_status().json()
        assert answer["error"] is None, answer["error"]
        return str(answer["results"][-1]["text/plain"]) if answer["results"] else ""

    def exec(self, path: str, argv: list[str]) -> None:
        """A command to its end."""
        assert (
            self.http.post(f"{path}/exec", json={"argv": argv}).raise_for_status().json()["outcome"]["exit_code"] == 0
        )

    def fork(self, path: str, count: int) -> tuple[float, list[str]]:
        """So many children: milliseconds, and their paths."""
        began = time.perf_counter()
        answer = self.http.post(f"{path}/fork", json={"count": count}, timeout=300).raise_for_status().json()
        took = (time.perf_counter() - began) * 1000
        assert not answer["errors"], answer["errors"]
        return took, [f"/v1/sandboxes/{each['id']}" for each in answer["sandboxes"]]

    def delete(self, path: str) -> None:
        """End it."""
        self.http.delete(path).raise_for_status()

    def ready(self, kind: str, least: int, seconds: float = 30.0) -> None:
        """Wait until the pool holds so many of a kind."""
        assert self.operator is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            lines = self.operator.get("/metrics").text.splitlines()
            if any(
                line.startswith("isobox_pool_ready") and f'kind="{kind}"' in line and float(line.split()[-1]) >= least
                for line in lines
            ):
                return
            time.sleep(0.1)
        raise TimeoutError(f"the pool never held {least} of {kind}")


def pooled(api: Api, podman: Podman | None, rounds: int) -> list[Row]:
    """Create from the pool and the first output of a program, beside podman."""
    ours: list[float] = []
    first: list[float] = []
    theirs: list[float] = []
    their_first: list[float] = []
    for n in range(rounds):
        api.ready("started", 2)
        time.sleep(0.05)
        paths: list[str] = []
        create = timed(lambda paths=paths: paths.append(api.create()))  # type: ignore[misc]
        ours.append(create)
        first.append(create + timed(lambda paths=paths: api.exec(paths[0], PRINT)))  # type: ignore[misc]
        api.delete(paths[0])
        if podman is not None and n < rounds // 2:
            theirs.append(timed(podman.create))
            their_first.append(theirs[-1] + timed(lambda: podman.run(PRINT)))
            podman.terminate()
    rows = [alone("create from the pool", "ms", ours, most=8)]
    if theirs:
        rows.append(beside("create from the pool", ours, Podman.name, theirs, most=1 / 20))
        rows.append(beside("create to first output of python3", first, Podman.name, their_first, most=1 / 5))
    return rows


def contexts(api: Api, rounds: int) -> list[Row]:
    """Runs in warm contexts; snapshots with one, restored and from a template's pool."""
    path = api.create()
    api.run(path, "x = 1")
    warm = [timed(lambda: api.run(path, "1+1")) for _ in range(rounds)]
    api.delete(path)
    source = api.create(image="data")
    api.run(source, "import numpy; a = numpy.arange(10)")

    def use(id_: str, paths: list[str]) -> None:
        paths.append(api.create(snapshot=id_))
        assert api.run(paths[-1], "int(a.sum())") == "45"

    cold, hot = [], []
    for _ in range(rounds // 2):
        # A snapshot of its own each time: nothing was restored from it beforehand.
        snapshot = api.http.post(f"{source}/snapshots", json={}).raise_for_status().json()["id"]
        time.sleep(0.5)
        paths: list[str] = []
        cold.append(timed(lambda snapshot=snapshot, paths=paths: use(snapshot, paths)))  # type: ignore[misc]
        api.http.delete(f"/v1/snapshots/{snapshot}")
        api.delete(paths[0])
    template = api.http.post(f"{source}/snapshots", json={"template": True}).raise_for_status().json()["id"]
    for _ in range(rounds):
        api.ready("restored", 2)
        time.sleep(0.1)
        paths = []
        hot.append(timed(lambda paths=paths: use(template, paths)))  # type: ignore[misc]
        api.delete(paths[0])
    api.http.delete(f"/v1/snapshots/{template}")
    api.delete(source)
    return [
        alone("run of 1+1 in a warm context", "ms", warm, most=5),
        alone("create from a snapshot, numpy warm, to a result", "ms", cold, most=120),
        alone("the same from a template's pool", "ms", hot, most=20),
    ]


class RawCopies:
    """A sandbox like ours, copied by the bare control calls `Checkpoint` and `Restore`."""

    def __init__(self, folder: Path, heap_mb: int) -> None:
        self._folder = folder
        self._runner = asyncio.Runner()
        self._runner.run(self._begin(heap_mb))

    async def _begin(self, heap_mb: int) -> None:
        cache = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))
        store = ImageStore(cache / "images", guest=lambda: build.guest(cache))
        self._image = store.path(store.ensure("python"))
        self._keeper = Keeper(self._folder / "keeper.sock")
        self._keeper.connect()
        (self._folder / "run").mkdir()
        found = await runsc.find(os.environ.get("ISOBOX_RUNSC"), cache)
        self._machine = Machine(
            found,
            cgroups.detect(),
            self._keeper,
            self._folder / "run",
            build.brought(cache),
        )
        self._source = await Raw.create(self._machine, new_id("sbx"), image=self._image, resources=DEFAULT)
        self._exec = Exec(ExecSpec(["python3", "-c", holding(heap_mb)], "user"), self._folder / "log")
        await self._exec.start(self._source.link, number=self._source.link.reserve(), timeout=10)
        await self._exec.changed(0, "bench")

    def once(self) -> float:
        """Milliseconds of the two calls, one after the other."""
        return self._runner.run(self._once())

    async def _once(self) -> float:
        target = await Raw.prepare(self._machine, new_id("sbx"), image=self._image, resources=DEFAULT)
        await asyncio.sleep(0.5)
        copy = Copy(self._folder)
        began = time.perf_counter()
        await self._source.control.checkpoint(copy.emptied())
        with copy.reading() as fds:
            await target.control.restore(fds)
        took = (time.perf_counter() - began) * 1000
        copy.close()
        await target.destroy()
        return took

    def close(self) -> None:
        """End it."""
        self._runner.run(self._source.destroy())
        self._exec.log.close()
        self._keeper.close()
        self._runner.close()


def holding(heap_mb: int) -> str:
    """A program that holds so much memory, and sleeps."""
    return f"import os, time; x = os.urandom({heap_mb} << 20); print('up', flush=True); time.sleep(1000)"


def forks(api: Api, rounds: int) -> list[Row]:
    """Forks beside the raw calls, in turn; eight at once; how long the parent stands still."""
    rows = []
    for heap_mb, most in ((0, 1.5), (200, 1.3)):
        size = "small" if not heap_mb else f"{heap_mb} MiB heap"
        n = rounds if heap_mb == 0 else rounds // 5
        path = api.create()
        api.http.post(f"{path}/exec", json={"argv": ["python3", "-c", holding(heap_mb)], "wait": False})
        ours, theirs, eight = [], [], []
        with tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder:
            raw = RawCopies(Path(folder), heap_mb)
            for _ in range(n):
                theirs.append(raw.once())
                time.sleep(0.6)  # the pool's refill is part of the service, not of a fork
                took, children = api.fork(path, 1)
                ours.append(took)
                for child in children:
                    api.delete(child)
            raw.close()
        rows.append(beside(f"fork, {size}", ours, "raw Checkpoint + Restore", theirs, most=most))
        if not heap_mb:
            for _ in range(max(3, rounds // 10)):
                time.sleep(3)
                took, children = api.fork(path, 8)
                eight.append(took)
                for child in children:
                    api.delete(child)
            rows.append(beside("8 forks at once, small", eight, "one fork", ours, most=4))
        rows.append(alone(f"the parent stands still, {size}", "ms", standstill(api, path, max(10, n // 5))))
        api.delete(path)
    return rows


def standstill(api: Api, path: str, rounds: int) -> list[float]:
    """Milliseconds that a program of the parent, which looks at the clock all the time, misses at each fork."""
    body = {"argv": ["python3", "-u", "-c", TICKS], "wait": False}
    ticking = api.http.post(f"{path}/exec", json=body).json()["id"]
    found = []
    for _ in range(rounds):
        time.sleep(0.6)
        offset = api.http.get(f"{path}/execs/{ticking}").json()["stdout_bytes"]
        _, children = api.fork(path, 1)
        text = api.http.get(f"{path}/execs/{ticking}/output", params={"from": offset}).text
        found.append(max(int(line) for line in text.split("\n")[1:-1]) / 1000)
        for child in children:
            api.delete(child)
    return found


def app64(api: Api, rounds: int) -> list[Row]:
    """A server with 64 MiB that it reads on each request: from a template, by restore, woken; 20 copies."""
    path = api.create(image="data")
    api.http.put(f"{path}/files", params={"path": "/home/user/app.py"}, content=APP64.encode())
    api.exec(path, ["sh", "-c", "python3 ~/app.py > /dev/null 2>&1 &"])
    assert api.http.get(f"{path}/ports/8000/wait").json()["listening"]

    def ask(there: str) -> None:
        assert api.http.get(f"{there}/ports/8000/").text == "8388608.0"

    running = [timed(lambda: ask(path)) for _ in range(rounds)]
    snapshot = api.http.post(f"{path}/snapshots", json={"template": True}).raise_for_status().json()["id"]
    frozen, parked, hot, cold = [], [], [], []
    for _ in range(rounds // 5):
        time.sleep(1.2)  # ISOBOX_FREEZE_AFTER_S is 0.5 in this run
        frozen.append(timed(lambda: ask(path)))
    for _ in range(rounds // 5):
        api.http.patch(path, json={"park_after_s": 0.1})
        while api.http.get(path).json()["state"] != "paused":
            time.sleep(0.05)
        parked.append(timed(lambda: ask(path)))
        api.http.patch(path, json={"park_after_s": 1000})
    for _ in range(rounds // 2):
        api.ready("restored", 1, 60)
        time.sleep(0.3)
        paths: list[str] = []

        def first(paths: list[str] = paths) -> None:
            paths.append(api.create(snapshot=snapshot))
            ask(paths[0])

        hot.append(timed(first))
        api.delete(paths[0])
    api.http.delete(f"/v1/snapshots/{snapshot}")
    for _ in range(max(3, rounds // 5)):
        plain = api.http.post(f"{path}/snapshots", json={}).raise_for_status().json()["id"]
        time.sleep(0.5)
        paths = []

        def restored(paths: list[str] = paths, plain: str = plain) -> None:
            paths.append(api.create(snapshot=plain))
            ask(paths[0])

        cold.append(timed(restored))
        api.http.delete(f"/v1/snapshots/{plain}")
        api.delete(paths[0])
    twenty, made = api.fork(path, 20)
    for each in made:
        ask(each)
    sizes = [pss_mib(each.split("/")[-1]) for each in made]
    for each in [*made, path]:
        api.delete(each)
    base = statistics.median(running)
    return [
        alone("app64: a request to one that runs", "ms", running),
        alone("app64: woken from frozen, longer by", "ms", [each - base for each in frozen], most=15),
        alone("app64: woken from disk, longer by", "ms", [each - base for each in parked], most=300),
        alone("app64: from a template's pool to its first 200", "ms", hot, most=60),
        alone("app64: by restore to its first 200", "ms", cold, most=250),
        alone("app64: clone into 20", "ms", [twenty]),
        alone("app64: memory of each of 20 (PSS)", "MiB", sizes),
    ]


def pss_mib(sandbox: str) -> float:
    """Proportional memory of all host processes of a sandbox."""
    total = 0
    for pid in cgroups.Cgroup(cgroups.detect(), "isobox", sandbox).processes():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def raw_tcp(api: Api, url: str, key: str, rounds: int) -> list[Row]:
    """Bytes through `ports/{port}/tcp`, each way."""
    path = api.create()
    program = (
        "import socket\nlistener = socket.create_server(('127.0.0.1', 9000))\nwhile True:\n c, _ = listener.accept()\n"
        " if c.recv(1) == b's':\n  for _ in range(256): c.sendall(b'x' * (1 << 20))\n"
        " else:\n  n = 0\n  while d := c.recv(1 << 20): n += len(d)\n  c.sendall(str(n).encode())\n c.close()\n"
    )
    api.http.put(f"{path}/files", params={"path": "/home/user/raw.py"}, content=program.encode())
    api.http.post(f"{path}/exec", json={"argv": ["python3", "/home/user/raw.py"], "wait": False})
    api.http.get(f"{path}/ports/9000/wait")
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {key}"},
        "proxy": None,
        "max_size": None,
        "compression": None,
    }
    down, up = [], []
    for _ in range(rounds):
        with connect(f"ws{url[4:]}{path}/ports/9000/tcp", **options) as socket:
            began, size = time.perf_counter(), 0
            socket.send(b"s")
            for piece in socket:
                size += len(piece)
            down.append(size / 1e6 / (time.perf_counter() - began))
        with connect(f"ws{url[4:]}{path}/ports/9000/tcp", **options) as socket:
            began = time.perf_counter()
            socket.send(b"r")
            for _ in range(100):
                socket.send(b"x" * (1 << 20))
            socket.send(b"")
            size = int(socket.recv())
            up.append(size / 1e6 / (time.perf_counter() - began))
    api.delete(path)
    return [
        alone("raw TCP out of a sandbox", "MB/s", down, least=200),
        alone("raw TCP into a sandbox", "MB/s", up, least=200),
    ]


def idle(api: Api, seconds: float = 20.0) -> list[Row]:
    """40 running sandboxes that nobody uses, and the pool beside them: CPU and memory."""
    paths = [api.create(timeout_s=600) for _ in range(40)]
    deadline = time.monotonic() + 120
    layout = cgroups.detect()
    names = [path.split("/")[-1] for path in paths]
    while time.monotonic() < deadline and not all(_frozen(layout, name) for name in names):
        time.sleep(0.5)
    before = {name: cgroups.Cgroup(layout, "isobox", name).usage() for name in _groups(layout)}
    time.sleep(seconds)
    # Without those that the pool let go meanwhile.
    after = {name: cgroups.Cgroup(layout, "isobox", name).usage() for name in _groups(layout) if name in before}
    share = sum(use.cpu_s - before[name].cpu_s for name, use in after.items()) / seconds * 100
    sizes = [use.memory_bytes / (1 << 20) for use in after.values()]
    for path in paths:
        api.delete(path)
    return [
        alone(f"{len(after)} idle and pooled sandboxes: CPU of a core", "%", [share], most=3),
        alone("memory of each, in its control group", "MiB", sizes, most=14),
    ]


def _groups(layout: cgroups.Layout) -> list[str]:
    root = layout.unified if layout.unified is not None else layout.v1["memory"]
    return [each.name for each in (root / "isobox").iterdir() if each.name.startswith("sbx")]


def _frozen(layout: cgroups.Layout, name: str) -> bool:
    if layout.unified is not None:
        return "frozen 1" in (layout.unified / "isobox" / name / "cgroup.events").read_text()
    return (layout.v1["freezer"] / "isobox" / name / "freezer.state").read_text().strip() == "FROZEN"


def parked_crowd(api: Api, state: Path, count: int = 200) -> list[Row]:
    """So many paused sandboxes: no memory but their records', each woken rightly when called at random."""
    import random

    paths = []
    for n in range(count):
        path = api.create(timeout_s=3600)
        api.exec(path, ["sh", "-c", f"echo {n} > ~/number"])
        api.http.post(f"{path}/pause").raise_for_status()
        paths.append(path)
    left = [path for path in paths if (state / "run" / path.split("/")[-1]).exists()]
    assert not left, left
    wakes = []
    for n in random.Random(3).sample(range(count), 40):
        wakes.append(timed(lambda n=n: api.http.post(f"{paths[n]}/resume").raise_for_status()))  # type: ignore[misc]
        answer = api.http.post(f"{paths[n]}/exec", json={"argv": ["cat", "/home/user/number"]}).json()
        assert answer["stdout"] == f"{n}\n"
        api.http.post(f"{paths[n]}/pause").raise_for_status()
    size = (
        sum(each.stat().st_blocks * 512 for each in (state / "snapshots").rglob("*") if each.is_file())
        / count
        / (1 << 20)
    )
    for path in paths:
        api.delete(path)
    return [
        alone(f"{count} parked: a resume", "ms", wakes),
        alone(f"{count} parked: disk of each", "MiB", [size]),
    ]


def main() -> None:
    """Only these, or some of them, into a table: `python -m benchmarks.copies [forks contexts …]`."""
    unwind_on_signals()
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
    from server import Server

    from benchmarks.rows import table

    with tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder:
        server = Server(Path(folder) / "state", ISOBOX_FREEZE_AFTER_S="0.5", ISOBOX_MAX_SANDBOXES="400").start()
        try:
            with server.client() as http, server.operator() as operator:
                rounds = int(os.environ.get("ISOBOX_BENCH_ROUNDS", "50"))
                print(table(rows(Api(http, operator), server, None, rounds, sys.argv[1:])))
        finally:
            server.end()


def rows(api: Api, server: Any, podman: Podman | None, rounds: int, only: Sequence[str] = ()) -> list[Row]:
    """All of them, or those named, in one run."""
    parts: dict[str, Callable[[], list[Row]]] = {
        "pooled": lambda: pooled(api, podman, rounds),
        "contexts": lambda: contexts(api, rounds),
        "forks": lambda: forks(api, rounds),
        "app64": lambda: app64(api, rounds),
        "raw_tcp": lambda: raw_tcp(api, server.url, server.key, 5),
        "idle": lambda: idle(api),
        "parked": lambda: parked_crowd(api, server.state),
    }
    return [row for name, part in parts.items() if not only or name in only for row in part()]


if __name__ == "__main__":
    main()
