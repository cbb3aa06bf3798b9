"""Slots, rules and the table of connections on the real kernel, without the service."""

import asyncio
import contextlib
import functools
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from netpolicy import conntrack, nft
from netpolicy.errors import NetworkUnavailable
from netpolicy.floor import Floor
from netpolicy.gateway.dns import query
from netpolicy.match import Rules
from netpolicy.network import Egress, NetworkSettings, open_network
from netpolicy.nftables import Nftables
from netpolicy.plan import GATEWAY_MAC, GUEST_MAC, PEER, tag_of
from netpolicy.policy import Policy, parse
from netpolicy.slots import Slots, open_slots
from netpolicy.supervisor import OnRecords

BLOCK = IPv4Network("198.19.0.0/16")
RICH = parse(
    {
        "allow": [
            {"host": "*.example.org", "ports": [443, "8000-8100"]},
            {"cidr": "203.0.113.0/24", "ports": [5432]},
            {"cidr": "203.0.113.128/25", "ports": [5432, "5000-6000"]},
            {"cidr": "192.0.2.7/32", "proto": "udp"},
        ],
        "deny": [{"cidr": "203.0.113.9/32"}, {"host": "bad.example.org"}],
        "limits": {"connections": 9, "new_connections_per_s": 5, "tx_bytes": 1 << 20, "dns_per_s": 3},
    }
)


def on_slots(folder: Path, work: Any, **options: Any) -> None:
    async def run() -> None:
        nftables = Nftables()
        try:
            async with open_slots(folder, BLOCK, nftables, ready=2) as slots:
                await slots.begin([])
                nftables.run(nft.base(slots.place, Floor(), []))
                await work(slots)
        finally:
            nftables.close()

    asyncio.run(run())


def tables() -> list[str]:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout.splitlines()


def nothing_left(folder: Path) -> bool:
    links, spaces = (
        Path("/sys/class/net").glob(f"ib{tag_of(folder)}x*"),
        Path("/run/netns").glob(f"isobox-{tag_of(folder)}*"),
    )
    return not [*links, *spaces]


def heard_in(records: list[dict[str, Any]]) -> OnRecords:
    """Write records down in a list."""

    async def heard(news: list[dict[str, Any]]) -> None:
        records.extend(news)

    return heard


def test_a_slot_is_made_leased_and_made_like_new(tmp_path: Path) -> None:
    async def work(slots: Slots) -> None:
        slot = await slots.lease()
        fd = await slots.open_socket(slot)
        try:
            packets = socket.socket(fileno=os.dup(fd))
            assert packets.family == socket.AF_PACKET
            assert packets.getsockname()[0] == PEER
            packets.close()
        finally:
            os.close(fd)
        device = Path("/sys/class/net") / slots.place.device(slot.number)
        assert int((device / "mtu").read_text()) == 65000
        assert Path(f"/proc/sys/net/ipv6/conf/{device.name}/disable_ipv6").read_text().strip() == "1"
        inside = subprocess.run(
            ["ip", "-n", slots.place.namespace(slot.number), "-o", "addr"], capture_output=True, text=True, check=True
        ).stdout
        assert inside == "", "no address in the namespace"
        links = subprocess.run(
            ["ip", "-n", slots.place.namespace(slot.number), "-o", "link"], capture_output=True, text=True, check=True
        ).stdout
        assert len(links.splitlines()) == 2, "the loopback and its own link: no other sandbox's"
        await slots.release(slot)
        assert await slots.lease() == slot
        await slots.release(slot)
        await slots.release(slot)

    on_slots(tmp_path, work)
    assert nothing_left(tmp_path)


def test_two_servers_take_different_shares(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    async def work(first: Slots) -> None:
        nftables = Nftables()
        async with open_slots(tmp_path / "two", BLOCK, nftables, ready=2) as second:
            await second.begin([])
            assert not first.place.share.overlaps(second.place.share)
            assert first.place.table != second.place.table
        async with open_slots(tmp_path / "two", BLOCK, nftables, ready=2) as again:
            await again.begin([])
            assert again.place == second.place, "the share it had"
        nftables.close()

    on_slots(tmp_path / "one", work)


def test_without_a_free_share_it_says_how_to_mend_it(tmp_path: Path) -> None:
    small = IPv4Network("198.19.255.0/26")
    subprocess.run(["ip", "addr", "add", "198.19.255.9/32", "dev", "lo"], check=True)
    try:

        async def run() -> None:
            nftables = Nftables()
            try:
                with pytest.raises(NetworkUnavailable, match="no part of") as refused:
                    async with open_slots(tmp_path, small, nftables, ready=1):
                        pass
                assert "ISOBOX_EGRESS_BLOCK" in refused.value.hint
            finally:
                nftables.close()

        asyncio.run(run())
    finally:
        subprocess.run(["ip", "addr", "del", "198.19.255.9/32", "dev", "lo"], check=True)


def test_the_kernel_takes_every_form_of_rule(tmp_path: Path) -> None:
    async def work(slots: Slots) -> None:
        slot = await slots.lease()
        had = False
        for policy in (
            RICH,
            parse({}),
            parse({"default": "allow"}),
            parse({"default": "allow", "deny": [{"host": "a.example.org"}]}),
            parse({"allow": [{"host": "a.example.org", "ports": ["1-65535"]}]}),
            parse({"allow": [{"cidr": "0.0.0.0/0"}], "deny": [{"cidr": "0.0.0.0/1", "ports": [25]}]}),
            parse({"allow": [{"host": f"h{n}.example.org", "ports": [n + 1]} for n in range(1000)]}),
        ):
            rules = Rules(policy, Floor(), parse({"deny": [{"cidr": "198.51.100.0/24"}]}).deny)
            slots.nftables.run(nft.policy(slots.place, slot.number, rules, had_quota=had))
            had = policy.limits.tx_bytes is not None
        slots.nftables.run(nft.policy(slots.place, slot.number, Rules(RICH), had_quota=False, used=4096))
        listed = slots.nftables.run(f"list quotas table ip {slots.place.table}")
        assert "over 1 mbytes used 4 kbytes" in listed or "used 4096 bytes" in listed
        await slots.release(slot)

    on_slots(tmp_path, work)


def test_a_script_that_fails_changes_nothing() -> None:
    nftables = Nftables()
    try:
        before = nftables.run("list ruleset")
        with pytest.raises(NetworkUnavailable, match="refused the rules"):
            nftables.run("add table ip isobox_zz\nadd rule ip isobox_zz nowhere accept\n")
        assert nftables.run("list ruleset") == before
    finally:
        nftables.close()


def test_connections_are_seen_and_forgotten(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.2", 0))
    client = socket.socket()
    client.bind(("127.0.0.3", 0))
    nftables = Nftables()  # connections are tracked where rules look at them
    nftables.run("add table ip isobox_ct\nadd chain ip isobox_ct c { type filter hook output priority 0 ; }\n")
    nftables.run("add rule ip isobox_ct c ip daddr 127.0.0.2 ct state new accept\n")
    try:
        client.connect(listener.getsockname())
        mine = IPv4Address("127.0.0.3")
        found = conntrack.connections(mine)
        assert [(each.proto, str(each.destination), each.port, each.lives) for each in found] == [
            ("tcp", "127.0.0.2", listener.getsockname()[1], True)
        ]
        assert conntrack.cut(mine, lambda _: True) == 0
        assert conntrack.cut(mine, lambda _: False) == 1
        assert conntrack.connections(mine) == []
    finally:
        nftables.run("delete table ip isobox_ct\n")
        nftables.close()
        client.close()
        listener.close()


def ethernet(payload: bytes, kind: int = 0x0800) -> bytes:
    return bytes.fromhex((GATEWAY_MAC + GUEST_MAC).replace(":", "")) + kind.to_bytes(2) + payload


def datagram(source: str, destination: str, port: int, payload: bytes = b"x") -> bytes:
    """A UDP packet over IPv4, its header's checksum right."""
    size = 8 + len(payload)
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0, 64, 17, 0, *(IPv4Address(a).packed for a in (source, destination))
    )
    total = sum(struct.unpack(">10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + (~total & 0xFFFF).to_bytes(2) + head[12:]
    return head + struct.pack(">HHHH", 5555, port, size, 0) + payload


def test_what_a_sentry_that_was_taken_over_could_send_goes_nowhere(tmp_path: Path) -> None:
    async def run() -> None:
        records: list[dict[str, Any]] = []
        async with open_network(tmp_path, NetworkSettings(ready=1), heard_in(records)) as network:
            await network.begin({})
            _, fd = await network.lease("sbx")
            await network.apply("sbx", Egress(parse({"default": "allow"}), generation=1))
            with socket.socket(fileno=fd) as link:
                for frame in (
                    ethernet(datagram("10.200.0.9", "203.0.113.1", 7)),  # another's address
                    ethernet(datagram("198.19.0.9", "203.0.113.1", 7)),
                    ethernet(bytes(40), 0x86DD),  # IPv6
                    ethernet(bytes(28), 0x0806),  # ARP
                    ethernet(b"\0\5\x08\0" + datagram("10.200.0.2", "203.0.113.1", 7), 0x8100),  # a VLAN's
                    ethernet(b"\x45"),  # cut
                    ethernet(datagram("10.200.0.2", "127.0.0.1", 7)),
                    ethernet(datagram("10.200.0.2", "255.255.255.255", 67)),
                    ethernet(datagram("10.200.0.2", "224.0.0.251", 5353)),
                ):
                    link.send(frame)
                for _ in range(100):
                    await asyncio.sleep(0.02)
                    if len(records) >= 5:
                        break
            await network.release("sbx")
        assert [each["rule"] for each in records[:2]] == ["spoof", "spoof"], records
        assert {each["destination"]: each["rule"] for each in records[2:]} == {
            "127.0.0.1": "floor",
            "255.255.255.255": "floor",
            "224.0.0.251": "floor",
        }, records
        assert {each["verdict"] for each in records} == {"refuse"}

    asyncio.run(run())


def segment(destination: str, port: int, flags: int, *, checksum: int | None = None) -> bytes:
    """A TCP segment from the guest without data, its checksums right unless one is given."""
    addresses = IPv4Address("10.200.0.2").packed + IPv4Address(destination).packed
    tcp = struct.pack(">HHIIBBHHH", 5555, port, 7, 0, 0x50, flags, 1024, 0, 0)
    total = sum(struct.unpack(">16H", addresses + struct.pack(">HH", 6, 20) + tcp))
    total = (total & 0xFFFF) + (total >> 16)
    tcp = tcp[:16] + (checksum if checksum is not None else ~total & 0xFFFF).to_bytes(2) + tcp[18:]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + addresses
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + (~total & 0xFFFF).to_bytes(2) + head[12:] + tcp


@contextlib.contextmanager
def wire(address: str, neighbour: str) -> Iterator[socket.socket]:
    """A link of the machine with an address and a neighbour; the socket hears all that goes out there."""
    near, far = f"wn{os.getpid()}"[:15], f"wf{os.getpid()}"[:15]
    run = functools.partial(subprocess.run, shell=True, check=True, capture_output=True)
    run(f"ip link add {near} type veth peer name {far}")
    try:
        run(f"ip addr add {address}/24 dev {near} && ip link set {near} up && ip link set {far} up")
        run(f"ip neigh add {neighbour} lladdr 02:00:00:00:00:01 dev {near} nud permanent")
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as heard:
            heard.bind((far, 0x0800))
            heard.settimeout(10)
            yield heard
    finally:
        run(f"ip link del {near}")


def test_what_belongs_to_no_connection_does_not_leave_with_an_inner_address(tmp_path: Path) -> None:
    """Conntrack finds it invalid, so that no address of it is translated."""
    there = "198.18.79.2"
    fin, syn, rst, ack = 1, 2, 4, 16

    async def run(policy: Policy) -> list[tuple[str, int]]:
        settings = NetworkSettings(ready=1, holes=(IPv4Network("198.18.79.0/24"),))
        async with open_network(tmp_path, settings, heard_in([])) as network:
            await network.begin({})
            _, fd = await network.lease("sbx")
            await network.apply("sbx", Egress(policy, generation=1))
            with socket.socket(fileno=fd) as link, wire("198.18.79.1", there) as heard:
                for number, flags in enumerate((rst, rst | ack, syn | fin, syn | rst, 0, 63)):
                    link.send(ethernet(segment(there, 1000 + number, flags)))
                link.send(ethernet(segment(there, 1100, syn, checksum=0xDEAD)))
                link.send(ethernet(segment(there, 2000, syn)))
                found: list[tuple[str, int]] = []
                while (there, 2000) not in [(there, port) for _, port in found]:
                    packet = heard.recv(1 << 16)
                    if packet[16:20] == IPv4Address(there).packed:
                        found.append((str(IPv4Address(packet[12:16])), int.from_bytes(packet[22:24])))
            await network.release("sbx")
        return found

    for document in ({"default": "allow"}, {"allow": [{"cidr": "198.18.79.0/24"}]}):
        assert asyncio.run(run(parse(document))) == [("198.18.79.1", 2000)]


@contextlib.contextmanager
def flooding(link: socket.socket, frame: bytes) -> Iterator[None]:
    """Send a frame again and again as fast as two programs can."""
    script = (
        "import socket, sys\n"
        "link, frame = socket.socket(fileno=int(sys.argv[1])), bytes.fromhex(sys.argv[2])\n"
        "for n in range(2000): link.send(frame)\n"
        "print('flooding', flush=True)\n"
        "while True: link.send(frame)\n"
    )
    command = [sys.executable, "-c", script, str(link.fileno()), frame.hex()]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[link.fileno()]) for _ in range(2)]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == b"flooding\n"
        yield
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def test_a_flood_of_questions_takes_no_answer_from_a_neighbour(tmp_path: Path) -> None:
    questions = [query(number, f"n{number}.test") for number in range(50)]
    flood = ethernet(datagram("10.200.0.2", "10.200.0.1", 53, query(7, "flood.test")))
    policy = Egress(parse({"allow": [{"host": "a.test"}]}))

    async def run() -> int:
        answered = 0
        async with open_network(tmp_path, NetworkSettings(ready=2), heard_in([])) as network:
            await network.begin({})
            with contextlib.ExitStack() as stack:
                links = {}
                for name in ("noisy", "quiet"):
                    _, fd = await network.lease(name)
                    links[name] = stack.enter_context(socket.socket(fileno=fd))
                    await network.apply(name, policy)
                links["quiet"].settimeout(5)
                stack.enter_context(flooding(links["noisy"], flood))
                for question in questions:
                    links["quiet"].send(ethernet(datagram("10.200.0.2", "10.200.0.1", 53, question)))
                    with contextlib.suppress(TimeoutError):  # it is not asked again: a lost one counts
                        await asyncio.to_thread(wait_for_answer, links["quiet"], question)
                        answered += 1
            for name in links:
                await network.release(name)
        return answered

    assert asyncio.run(run()) == len(questions)


def wait_for_answer(link: socket.socket, question: bytes) -> None:
    """Wait for the answer to a question; TimeoutError."""
    while True:
        frame = link.recv(1 << 16)
        if frame[14 + 28 : 14 + 30] == question[:2] and frame[23] == 17:
            return


def test_a_network_gives_all_back_and_the_gateway_ends(tmp_path: Path) -> None:
    async def run() -> None:
        records: list[dict[str, Any]] = []
        async with open_network(tmp_path, NetworkSettings(ready=2), heard_in(records)) as network:
            await network.begin({})
            for n in range(3):
                _, fd = await network.lease(f"sbx{n}")
                os.close(fd)
                began = time.monotonic()
                await network.apply(f"sbx{n}", Egress(RICH, generation=n))
                assert time.monotonic() - began < 30
            assert await network.connections("sbx0") == 0
            with pytest.raises(NetworkUnavailable):
                await network.apply("sbx9", Egress())
            for n in range(3):
                await network.release(f"sbx{n}")
                await network.release(f"sbx{n}")
            assert network.gateway_starts == 1

    asyncio.run(run())
    assert nothing_left(tmp_path)
    if not any("isobox_" in line for line in tables()):
        assert not Path("/run/isobox-forwarding").exists()
