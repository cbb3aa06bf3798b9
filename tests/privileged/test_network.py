"""Slots, rules and the table of connections on the real kernel, without the service."""

import asyncio
import os
import socket
import struct
import subprocess
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from netpolicy import conntrack, nft
from netpolicy.errors import NetworkUnavailable
from netpolicy.floor import Floor
from netpolicy.match import Rules
from netpolicy.network import Egress, NetworkSettings, open_network
from netpolicy.nftables import Nftables
from netpolicy.plan import GATEWAY_MAC, GUEST_MAC, PEER, tag_of
from netpolicy.policy import parse
from netpolicy.slots import Slots, open_slots

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


def datagram(source: str, destination: str, port: int) -> bytes:
    """A UDP packet over IPv4, its header's checksum right."""
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, *(IPv4Address(a).packed for a in (source, destination))
    )
    total = sum(struct.unpack(">10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + (~total & 0xFFFF).to_bytes(2) + head[12:]
    return head + struct.pack(">HHHH", 5555, port, 9, 0) + b"x"


def test_what_a_sentry_that_was_taken_over_could_send_goes_nowhere(tmp_path: Path) -> None:
    async def run() -> None:
        records: list[dict[str, Any]] = []
        async with open_network(tmp_path, NetworkSettings(ready=1), records.extend) as network:
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


def test_a_network_gives_all_back_and_the_gateway_ends(tmp_path: Path) -> None:
    async def run() -> None:
        records: list[dict[str, Any]] = []
        async with open_network(tmp_path, NetworkSettings(ready=2), records.extend) as network:
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
