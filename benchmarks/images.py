"""What images and files cost: lazy starts from a slow store, imports, deduplication, reads, uploads, archives."""

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from benchmarks.rows import Row, alone, beside, over, timed
from fs.images import ImageStore
from fs.progress import Progress
from isolation.guest import build

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/e2e"))

from server import Server

LATENCY_S = 0.002
REST_S = 3.0
BIG = 500 << 20
GIB = 1 << 30


class SlowStore(ThreadingHTTPServer):
    """A published folder over HTTP, the way a node serves it, each request LATENCY_S later."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                time.sleep(LATENCY_S)
                path = folder / self.path.removeprefix("/v1/store/")
                if not path.is_file():
                    self.send_error(404)
                    return
                first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
                with path.open("rb") as file:
                    file.seek(int(first))
                    data = file.read(int(last) - int(first) + 1 if last else -1)
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def far_from(store: str, cache: Path, profiles: Path | None = None) -> Iterator[Server]:
    """A server on a machine that has no image, only that store."""
    with tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder:
        there = Path(folder) / "cache"
        there.mkdir()
        for name in ("runsc", "init", "platform.json"):
            (there / name).symlink_to(cache / name)
        if profiles is not None:
            shutil.copytree(profiles, there / "profiles")
        server = Server(
            Path(folder) / "state",
            ISOBOX_CACHE=str(there),
            ISOBOX_STORES=store,
            ISOBOX_POOL_FLOOR="0",
            ISOBOX_POOL_CEILING="0",
        ).start()
        try:
            yield server
        finally:
            server.end()


def first_run(http: httpx.Client, image: str) -> float:
    """Milliseconds from the request to the end of `python3 -c pass` in a new sandbox, the machine at rest before."""
    found: dict[str, Any] = {}
    time.sleep(REST_S)  # a server that has just started makes its network slots, and the last one's are taken away

    def work() -> None:
        found.update(http.post("/v1/sandboxes", json={"image": image}, timeout=120).json())
        assert "id" in found, found
        answer = http.post(f"/v1/sandboxes/{found['id']}/exec", json={"argv": ["python3", "-c", "pass"]})
        assert answer.json()["outcome"]["exit_code"] == 0, answer.text

    took = timed(work)
    http.delete(f"/v1/sandboxes/{found['id']}")
    return took


def lazy_starts(local: httpx.Client, store: str, cache: Path, size: int, rounds: int) -> list[Row]:
    """Starts of an image that was never seen here, beside those of one that is here."""
    cold, profiled, ours, fetched = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        profiles = Path(folder) / "profiles"
        for _ in range(rounds):
            with far_from(store, cache) as far, far.client() as http:
                cold.append(first_run(http, "python"))
                lazy = Path(far.environment["ISOBOX_CACHE"])
                fetched.append(sum(path.stat().st_size for path in (lazy / "lazy").glob("*/*")) / size * 100)
                if not profiles.exists():
                    time.sleep(16)
                    first_run(http, "python")
                    shutil.copytree(lazy / "profiles", profiles)
            with far_from(store, cache, profiles) as far, far.client() as http:
                profiled.append(first_run(http, "python"))
            ours.append(first_run(local, "python"))
    return [
        beside("first python3 -c pass, image never seen, 2 ms a request", cold, "image here", ours, most=3),
        beside("the same with its start-up profile", profiled, "image here", ours),
        alone("fetched of the image, of its size", "%", fetched, most=20),
    ]


def read_rate(http: httpx.Client, sandbox: str) -> float:
    """MB/s of reading /big inside."""
    argv = ["dd", "if=/big", "of=/dev/null", "bs=1M"]
    answer = http.post(f"/v1/sandboxes/{sandbox}/exec", json={"argv": argv}).json()
    assert answer["outcome"]["exit_code"] == 0, answer
    return BIG / 1e6 / float(answer["duration_s"])


def warm_reads(local: httpx.Client, store: str, cache: Path, rounds: int) -> Row:
    """A large file of a lazy image, read again, beside the same of a local one."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with far_from(store, cache) as far, far.client() as http:
        pair = [(http, True), (local, False)]
        ids = [each.post("/v1/sandboxes", json={"image": "bench-big"}).json()["id"] for each, _ in pair]
        for (each, _), id_ in zip(pair, ids, strict=True):
            read_rate(each, id_)
        for _ in range(rounds):
            for (each, lazy), id_ in zip(pair, ids, strict=True):
                rates[lazy].append(read_rate(each, id_))
        for (each, _), id_ in zip(pair, ids, strict=True):
            each.delete(f"/v1/sandboxes/{id_}")
    return over("500 MiB file of a lazy image, warm", rates[True], "plain EROFS root", rates[False], least=0.8)


def layer_set(folder: Path) -> int:
    """An OCI layout of two gzipped layers with about a GiB of this machine's own files: bytes of contents."""
    import hashlib

    total, blobs = 0, folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    files = [path for path in sorted(Path("/usr").rglob("*")) if path.is_file() and not path.is_symlink()]
    descriptors, diff_ids, each = [], [], iter(files)
    for share in (GIB // 2, GIB):
        raw = folder / "layer.tar"
        with tarfile.open(raw, "w") as archive:
            for path in each:
                total += path.stat().st_size
                archive.add(path, str(path).lstrip("/"))
                if total >= share:
                    break
        with raw.open("rb") as file:
            diff_ids.append(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
        subprocess.run(["gzip", "-1", "-n", str(raw)], check=True)
        packed = folder / "layer.tar.gz"
        with packed.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        descriptors.append({"digest": f"sha256:{name}", "size": packed.stat().st_size})
        packed.rename(blobs / name)

    def document(body: dict[str, Any]) -> dict[str, Any]:
        raw_body = json.dumps(body).encode()
        name = hashlib.sha256(raw_body).hexdigest()
        (blobs / name).write_bytes(raw_body)
        return {"digest": f"sha256:{name}", "size": len(raw_body)}

    config = document({"rootfs": {"diff_ids": diff_ids}, "config": {}})
    manifest = document({"config": config, "layers": descriptors})
    (folder / "index.json").write_text(json.dumps({"manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return total


def imports(rounds: int) -> list[Row]:
    """Import of a GiB of layers; what a second image adds that shares nine files of ten."""
    rates, added = [], []
    with tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder:
        top = Path(folder)
        init = top / "init-0"
        init.write_bytes(b"x")
        size = layer_set(top / "layout")
        for number in range(rounds):
            store = ImageStore(top / f"images{number}", guest=lambda: (init,))
            took = timed(lambda store=store: store.import_path("layers", top / "layout"))  # type: ignore[misc]
            rates.append(size / 1e6 / (took / 1000))
            shutil.rmtree(top / f"images{number}")
        chance, tree = random.Random(1), top / "tree"
        files = [p for p in sorted(Path("/usr/lib").rglob("*")) if p.is_file() and not p.is_symlink()][:6000]
        for path in files:
            target = tree / str(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        store = ImageStore(top / "images", guest=lambda: (init,))
        store.import_path("one", tree)
        before = store.store.stats().stored_bytes
        for path in chance.sample(files, len(files) // 10):
            with (tree / str(path).lstrip("/")).open("r+b") as file:
                file.write(os.urandom(16))
        store.import_path("two", tree)
        added.append((store.store.stats().stored_bytes - before) / before * 100)
    return [
        alone("import of a 1 GiB layer set", "MB/s", rates, least=60),
        alone("added by an image that shares 90 % of its files", "%", added, most=15),
    ]


def rss_mib(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / (1 << 20)


def transfers(server: Server, http: httpx.Client, rounds: int) -> list[Row]:
    """A GiB into a sandbox and out of it, and ten thousand small files."""
    resources = {"disk_mb": 1400, "memory_mb": 3000}
    id_ = http.post("/v1/sandboxes", json={"resources": resources}).json()["id"]
    path = f"/v1/sandboxes/{id_}/files"
    assert server.process is not None
    base = highest = rss_mib(server.process.pid)
    up, down = [], []

    def gib() -> Iterator[bytes]:
        nonlocal highest
        piece = os.urandom(1 << 20)
        for number in range(1024):
            if number % 32 == 0:
                highest = max(highest, rss_mib(server.process.pid))  # type: ignore[union-attr]
            yield piece

    for _ in range(rounds):
        took = timed(
            lambda: http.put(path, params={"path": "/home/user/big"}, content=gib(), timeout=300).raise_for_status()
        )
        up.append(GIB / 1e6 / (took / 1000))

        def read() -> None:
            nonlocal highest
            with http.stream("GET", path, params={"path": "/home/user/big"}, timeout=300) as answer:
                for number, _ in enumerate(answer.iter_raw(1 << 20)):
                    if number % 32 == 0:
                        highest = max(highest, rss_mib(server.process.pid))  # type: ignore[union-attr]

        down.append(GIB / 1e6 / (timed(read) / 1000))
        http.delete(path, params={"path": "/home/user/big"})  # a replaced file needs its place twice
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for number in range(10_000):
            info = tarfile.TarInfo(f"{number % 100}/{number}")
            info.size = 200
            archive.addfile(info, io.BytesIO(bytes(200)))

    def archive_to(target: str) -> None:
        http.put(f"{path}/archive", params={"path": target}, content=raw.getvalue(), timeout=120).raise_for_status()

    whole = [timed(lambda n=n: archive_to(f"/home/user/a{n}")) for n in range(rounds)]  # type: ignore[misc]
    few = 500  # one by one, times twenty
    single = [
        timed(lambda: [http.put(path, params={"path": f"/home/user/s/{n}"}, content=bytes(200)) for n in range(few)])
        * (10_000 / few)
        for _ in range(rounds)
    ]
    http.delete(f"/v1/sandboxes/{id_}")
    return [
        alone("upload of 1 GiB", "MB/s", up, least=150),
        alone("download of 1 GiB", "MB/s", down, least=150),
        alone("server growth meanwhile", "MiB", [highest - base], most=64),
        beside("10,000 small files by archive", whole, "one by one", single, most=1 / 6),
    ]


def rows(server: Server, http: httpx.Client, cache: Path, rounds: int) -> list[Row]:
    """All of it; the server has no pool."""
    store = ImageStore(cache / "images", guest=lambda: build.guest(cache))
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="isobox-bench-") as folder:
        published = Path(folder) / "published"
        published.mkdir()
        python = store.elsewhere.publish("python", str(published), Progress())
        if store.ready("bench-big") is None:
            tree = Path(folder) / "tree"
            shutil.copytree(
                "/bin", tree / "bin", symlinks=True, ignore=lambda _, names: [n for n in names if n != "dd"]
            )
            libraries = subprocess.run(["ldd", "/bin/dd"], capture_output=True, text=True, check=True).stdout.split()
            for library in (each for each in libraries if each.startswith("/")):
                (tree / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(library, tree / library.lstrip("/"))
                (tree / library.lstrip("/")).chmod(0o755)
            chance = random.Random(2)
            with (tree / "big").open("wb") as file:
                for _ in range(BIG >> 20):
                    file.write(chance.randbytes(1 << 19) + bytes(1 << 19))
            store.import_path("bench-big", tree)
        store.elsewhere.publish("bench-big", str(published), Progress())
        slow = SlowStore(published)
        try:
            found += lazy_starts(http, slow.url, cache, python.size, rounds)
            found.append(warm_reads(http, slow.url, cache, rounds))
        finally:
            slow.shutdown()
            slow.server_close()
            store.remove("bench-big")
    found += imports(2)
    found += transfers(server, http, 3)
    return found
