"""What egress costs: connections and downloads by cidr rule and by name, beside a plain one and raw veth with runsc."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from benchmarks.copies import Api
from benchmarks.rows import Row, alone, beside, over, timed
from common import addresses
from common.ids import new_id
from common.signals import unwind_on_signals
from fs.images import ImageStore
from isolation import cgroups, runsc
from isolation.execs import Exec, ExecSpec
from isolation.guest import build
from isolation.keeper import Keeper
from isolation.network import Link
from isolation.sandbox import Machine, Sandbox
from isolation.spec import DEFAULT
from netpolicy import nft
from netpolicy.floor import Floor
from netpolicy.nftables import Nftables
from netpolicy.plan import GATEWAY_MAC, GUEST_MAC, MTU
from netpolicy.slots import open_slots

SIZE = 256 << 20
BULK, ECHO, CONNECTS = 9100, 7000, 9101
OUTSIDE = "198.18.77.3"
SERVE = f"""
import socket, sys, tempfile, threading
file = tempfile.TemporaryFile(); file.truncate({SIZE})
def serve(connection):
    with connection:
        connection.recv(1); connection.sendfile(file)
def listen(port, work):
    listener = socket.create_server((sys.argv[1], port), backlog=1024)
    while True: threading.Thread(target=work, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=listen, args=({CONNECTS}, lambda c: c.close()), daemon=True).start()
print("ready", flush=True)
listen({BULK}, serve)
"""
DOWNLOAD = f"""
import socket, sys, time
buffer, size = bytearray(1 << 20), 0
s = socket.create_connection((sys.argv[1], {BULK})); s.sendall(b"x"); began = time.perf_counter()
while size < {SIZE}:
    n = s.recv_into(buffer)
    if not n: sys.exit("cut off")
    size += n
print(size / 1e6 / (time.perf_counter() - began))
"""
CONNECT = f"""
import socket, sys, time
address = socket.gethostbyname(sys.argv[1])
for n in range(int(sys.argv[2])):
    began = time.perf_counter(); s = socket.create_connection((address, {CONNECTS})); took = time.perf_counter() - began
    s.close(); print(took * 1000)
"""
ASK = """
import socket, sys, time, struct
q = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\\x05files\\x04test\\0" + struct.pack(">HH", 1, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("10.200.0.1", 53))
for n in range(int(sys.argv[1])):
    began = time.perf_counter(); s.send(q); s.recv(999); print((time.perf_counter() - began) * 1000)
"""


@contextlib.contextmanager
def serving(namespace: str, address: str) -> Iterator[None]:
    """The bulk server in a namespace."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", SERVE, address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class RawLinks:
    """The plain way: a veth pair, one end the sentry's, the other with an address and a server. No rules of any kind."""

    namespace = f"isobox-raw-{os.getpid()}"

    def __enter__(self) -> "RawLinks":
        run = f"ip netns add {self.namespace}; ip -n {self.namespace} link add outer type veth peer name guest; "
        for command in (
            f"link set outer address {GATEWAY_MAC} mtu {MTU} up",
            f"link set guest address {GUEST_MAC} mtu {MTU} arp off up",
            f"addr add {addresses.GATEWAY}/{addresses.PREFIX} dev outer",
            f"neigh add {addresses.GUEST} lladdr {GUEST_MAC} dev outer nud permanent",
        ):
            run += f"ip -n {self.namespace} {command}; "
        subprocess.run(f"set -e; {run}", shell=True, check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "netns", "del", self.namespace], check=True)

    async def lease(self, sandbox: str) -> Link:
        """See `isolation.network.Links`."""
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\n"
            "for option in (32, 33): s.setsockopt(socket.SOL_SOCKET, option, 4 << 20)\n"
            "s.bind(('guest', 3)); socket.send_fds(socket.socket(fileno=0), [b'x'], [s.fileno()])"
        )
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = ["ip", "netns", "exec", self.namespace, sys.executable, "-c", script]
            await asyncio.to_thread(subprocess.run, command, stdin=theirs, check=True)
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        inside = str(addresses.GUEST), addresses.PREFIX, str(addresses.GATEWAY)
        return Link(0, fds[0], *inside, GUEST_MAC, GATEWAY_MAC, MTU)

    def number(self, sandbox: str) -> int | None:
        """See `Links`."""
        return 0

    async def release(self, sandbox: str) -> None:
        """See `Links`."""


async def _raw(work: Callable[[Callable[[list[str]], Any]], Any]) -> None:
    """A sandbox on a raw link: work gets a way to run a program in it."""
    cache = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))
    store = ImageStore(cache / "images", guest=lambda: build.guest(cache))
    image = store.path(store.ensure("python"))
    with tempfile.TemporaryDirectory() as folder, RawLinks() as links:
        keeper = Keeper(Path(folder) / "keeper.sock")
        keeper.connect()
        (Path(folder) / "run").mkdir()
        found = await runsc.find(os.environ.get("ISOBOX_RUNSC"), cache)
        machine = Machine(found, cgroups.detect(), keeper, Path(folder) / "run", build.brought(cache), links)
        sandbox = await Sandbox.create(machine, new_id("sbx"), image=image, resources=DEFAULT)
        try:

            async def execute(argv: list[str]) -> str:
                path = Path(folder) / new_id("exe")
                process = Exec(ExecSpec(argv=argv, user="user"), path)
                await process.start(sandbox.link, number=sandbox.link.reserve(), timeout=10)
                await process.wait()
                process.close()
                return path.with_name(path.name + ".data").read_text()

            with serving(links.namespace, str(addresses.GATEWAY)):
                await work(execute)
        finally:
            await sandbox.destroy()
            keeper.close()


def _output(api: Api, path: str, argv: list[str]) -> str:
    answer = api.http.post(f"{path}/exec", json={"argv": argv, "timeout_s": 120}, timeout=200).raise_for_status().json()
    assert answer["outcome"]["exit_code"] == 0, answer
    return str(answer["stdout"])


def _times(text: str) -> list[float]:
    return [float(line) for line in text.split()]


def _plain(count: int) -> list[float]:
    def connect() -> None:
        socket.create_connection((OUTSIDE, CONNECTS)).close()

    return [timed(connect) for _ in range(count)]


def rows(api: Api, namespace: str, rounds: int) -> list[Row]:
    """All of them, interleaved; the server knows the network outside."""
    names = {"allow": [{"host": "files.test", "ports": [BULK, CONNECTS]}]}
    crowded = {"allow": [*({"host": f"host-{n}.example.net"} for n in range(1000)), *names["allow"]]}
    numbers = {"allow": [{"cidr": f"{OUTSIDE}/32", "ports": [BULK, CONNECTS]}]}
    python = ["python3", "-c"]
    with serving(namespace, OUTSIDE):
        by_name, by_number, by_many = (
            api.create(network=policy, timeout_s=900) for policy in (names, numbers, crowded)
        )
        found: dict[str, list[float]] = {
            name: [] for name in ("plain", "cidr", "name", "many", "dns", "raw MB/s", "cidr MB/s", "name MB/s")
        }

        async def work(execute: Callable[[list[str]], Any]) -> None:
            each = max(1, rounds // 5)
            for _ in range(5):
                found["raw MB/s"] += _times(await execute([*python, DOWNLOAD, str(addresses.GATEWAY)]))
                found["cidr MB/s"] += _times(_output(api, by_number, [*python, DOWNLOAD, OUTSIDE]))
                found["name MB/s"] += _times(_output(api, by_name, [*python, DOWNLOAD, "files.test"]))
                found["plain"] += _plain(each)
                found["cidr"] += _times(_output(api, by_number, [*python, CONNECT, OUTSIDE, str(each)]))
                for kind, path in (("name", by_name), ("many", by_many)):
                    found[kind] += _times(_output(api, path, [*python, CONNECT, "files.test", str(each)]))
                found["dns"] += _times(_output(api, by_name, [*python, ASK, str(each)]))

        asyncio.run(_raw(work))
        kept = _crowd(api)
        changes = [
            timed(lambda policy=policy: api.http.put(f"{by_number}/network", json=policy))  # type: ignore[misc]
            for policy in (names, numbers) * (rounds // 2)
        ]
        for path in (by_name, by_number, by_many):
            api.http.delete(path)
    return [
        beside("TCP connect by a cidr rule", found["cidr"], "plain, from the host", found["plain"]),
        beside("TCP connect by a name rule", found["name"], "plain, from the host", found["plain"]),
        beside("TCP connect, policy of 1,000 names", found["many"], "policy of one", found["name"], most=1.1),
        over("download by a cidr rule", found["cidr MB/s"], "raw veth + runsc", found["raw MB/s"], least=0.6),
        over("download by a name rule", found["name MB/s"], "raw veth + runsc", found["raw MB/s"], least=0.25),
        alone("DNS answer for a pinned name", "ms", found["dns"], most=3),
        alone("another policy (PUT …/network)", "ms", changes),
        alone("lease of a slot", "ms", leases(rounds), most=3),
        alone("of 40 sandboxes with policies of their own, those that kept them", "", [float(kept)], least=40),
    ]


def _crowd(api: Api, count: int = 40) -> int:
    """How many of so many sandboxes reach what their own policy allows, and nothing that another's does."""
    ports = (8080, 8443, ECHO)
    resources = {"memory_mb": 128, "disk_mb": 32, "cpu": 0.5}
    made = [
        api.create(
            network={"allow": [{"cidr": f"{OUTSIDE}/32", "ports": [ports[n % 3]]}]}, resources=resources, timeout_s=600
        )
        for n in range(count)
    ]
    script = (
        "import socket\n"
        f"for port in {ports}:\n"
        f"    try: socket.create_connection(({OUTSIDE!r}, port), 5).close(); print(port)\n"
        "    except OSError: pass"
    )
    kept = [_output(api, path, ["python3", "-c", script]).split() == [str(ports[n % 3])] for n, path in enumerate(made)]
    for path in made:
        api.http.delete(path)
    return sum(kept)


def leases(rounds: int) -> list[float]:
    """Milliseconds that a lease takes where a slot is ready, socket included."""

    async def run() -> list[float]:
        nftables, found = Nftables(), []
        with tempfile.TemporaryDirectory() as folder:
            block = IPv4Network("198.19.0.0/16")
            async with open_slots(Path(folder), block, nftables, ready=4) as slots:
                await slots.begin([])
                nftables.run(nft.base(slots.place, Floor(), []))
                await slots.release(await slots.lease())
                for _ in range(rounds):
                    began = time.perf_counter()
                    slot = await slots.lease()
                    fd = await slots.open_socket(slot)
                    found.append((time.perf_counter() - began) * 1000)
                    os.close(fd)
                    await slots.release(slot)
        nftables.close()
        return found

    return asyncio.run(run())


def main() -> None:
    """This part alone: `python -m benchmarks.egress`."""
    unwind_on_signals()
    from benchmarks.__main__ import ROUNDS, serving_outside
    from benchmarks.rows import table

    with serving_outside() as (server, namespace), server.client() as http:
        print(table(rows(Api(http), namespace, max(ROUNDS, 50))))


if __name__ == "__main__":
    main()
