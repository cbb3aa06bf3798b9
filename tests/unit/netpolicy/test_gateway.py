import asyncio
import itertools
import struct
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from netpolicy import netlink
from netpolicy.audit import Record
from netpolicy.floor import Floor
from netpolicy.gateway import nflog
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.pins import LONGEST_S, NAMES_MAX, PAIRS_MAX, SHORTEST_S, Pins
from netpolicy.gateway.ward import Authority, Bucket, Credentials, Ward
from netpolicy.gateway.wire import Guarded, decode_guarded, encode_guarded
from netpolicy.match import Rules
from netpolicy.policy import parse

ONE, TWO = IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2")


def test_a_pin_lasts_a_minute_at_least_and_an_hour_at_most() -> None:
    pins = Pins()
    pins.add("short.test", [ONE], 1, now=0)
    pins.add("long.test", [ONE], 1e6, now=0)
    assert sorted(pins.names(ONE, SHORTEST_S - 1)) == ["long.test", "short.test"]
    assert pins.names(ONE, SHORTEST_S + 1) == ["long.test"]
    assert pins.names(ONE, LONGEST_S + 1) == []
    assert pins.answer("short.test", 0.5) == ((ONE,), 1)
    assert pins.answer("short.test", 2) is None, "asked again, while the pin holds"


def test_an_older_pin_holds_beside_a_newer_one() -> None:
    pins = Pins()
    pins.add("a.test", [ONE], 60, now=0)
    pins.add("a.test", [TWO], 60, now=30)
    assert pins.names(ONE, 59) == pins.names(TWO, 59) == ["a.test"]
    assert pins.names(ONE, 61) == []
    pins.keep([])
    assert pins.names(TWO, 59) == []
    assert pins.answer("a.test", 31) is None


def test_pins_are_bounded() -> None:
    pins = Pins()
    assert all(pins.add(f"n{n}.test", [ONE], 60, now=0) for n in range(NAMES_MAX))
    assert not pins.add("more.test", [ONE], 60, now=1)
    assert pins.add("more.test", [ONE], 60, now=SHORTEST_S + 1), "the old ones have expired"


def test_a_name_that_has_other_addresses_each_time_takes_no_room_without_end() -> None:
    pins, first = Pins(), int(ONE)
    fresh = ([IPv4Address(first + 64 * n + i) for i in range(64)] for n in itertools.count())
    for now in range(1500):
        pins.add("a.test", next(fresh), 0, now=now)
        if now % 100 == 0:
            assert sum(map(len, pins._at.values())) <= PAIRS_MAX
    assert pins.add("b.test", [ONE], 60, now=now + SHORTEST_S + 1), "the old ones have expired"
    pins = Pins()
    assert all(pins.add("a.test", next(fresh), 1e9, now=0) for _ in range(PAIRS_MAX // 64))
    assert not pins.add("b.test", [ONE], 60, now=1), "all of them are in use"
    assert pins.add("b.test", [ONE], 60, now=LONGEST_S + 1)


@given(st.integers(1, 50), st.lists(st.floats(0, 2), max_size=60))
def test_a_bucket_gives_no_more_than_its_rate(per_s: int, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(per_s), 100.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now)
    assert taken <= per_s + per_s * sum(gaps) + 1


def record(number: int) -> Record:
    return Record("flow", f"sbx{number}", 1, "allow", "default")


def test_records_wait_until_they_are_written_down() -> None:
    async def run() -> None:
        journal = Journal(limit=2000)
        for n in range(10):
            journal.add(record(n))
        assert [each.seq for each in await journal.after(0, 4)] == [1, 2, 3, 4]
        assert [each.seq for each in await journal.after(4, 99)] == [5, 6, 7, 8, 9, 10]
        journal.acknowledged(7)
        assert [each.seq for each in await journal.after(0, 99)] == [8, 9, 10], "again, for another server"
        waiting = asyncio.get_running_loop().create_task(journal.after(10, 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        journal.add(record(11))
        assert [each.seq for each in await waiting] == [11]

    asyncio.run(run())


def test_without_room_nothing_new_begins() -> None:
    async def run() -> None:
        journal = Journal(limit=2000)
        for n in range(976):
            assert not journal.full("sbx")
            journal.add(record(n))
        assert journal.full("sbx")
        for n in range(1100):
            journal.add(record(n))
        assert journal.lost == 76

    asyncio.run(run())


def test_no_sandbox_takes_all_the_room() -> None:
    async def run() -> None:
        journal = Journal(limit=4000)
        for _ in range(1000):
            assert not journal.full("noisy")
            journal.add(Record("flow", "noisy", 1, "allow", "default"))
        assert journal.full("noisy")
        assert not journal.full("quiet")
        journal.acknowledged(1)
        assert not journal.full("noisy")

    asyncio.run(run())


def test_refusals_of_one_sandbox_do_not_stop_others() -> None:
    """The kernel's rules log what they refuse, as fast as a sandbox tries."""

    async def run() -> None:
        journal = Journal(limit=4000)
        for sandbox in ("one", "two", "three"):
            for _ in range(9000):
                journal.add(Record("refused", sandbox, 1, "refuse", "limit connections"))
        assert journal.lost
        assert not journal.full("quiet")
        journal.add(Record("refused", "quiet", 1, "refuse", "default"))
        assert (await journal.after(0, 4000))[-1].sandbox == "quiet"

    asyncio.run(run())


def test_a_ward_tells_which_flows_lose() -> None:
    async def run() -> None:
        from netpolicy.gateway.ward import Flow

        ward = Ward("sbx", ONE, 3)
        ward.guard(Rules(parse({"allow": [{"host": "a.test"}, {"host": "b.test"}]})), Credentials(), 1)
        ward.pins.add("a.test", [TWO], 60, 0)
        flows = [Flow(n, name, name, None, TWO, 443, end=lambda: None) for n, name in enumerate(("a.test", "b.test"))]
        ward.flows.update(flows)
        lost = ward.guard(Rules(parse({"allow": [{"host": "b.test"}]})), Credentials(), 2)
        assert [flow.name for flow in lost] == ["a.test"]
        assert ward.pins.names(TWO, 1) == []
        lost = ward.guard(
            Rules(parse({"allow": [{"host": "b.test"}], "deny": [{"cidr": f"{TWO}/32"}]})), Credentials(), 3
        )
        assert {flow.name for flow in lost} == {"a.test", "b.test"}

    asyncio.run(run())


def test_tunnels_through_names_are_bounded() -> None:
    ward = Ward("sbx", ONE, 3)
    ward.guard(Rules(parse({"allow": [{"host": "*.wild.example"}]})), Credentials(), 1)
    found = [ward.ask(f"n{n}.wild.example", 0.0).allowed for n in range(2100)]
    assert found.count(True) == 2000
    assert ward.ask("n1.wild.example", 1.0).allowed, "known already"
    assert ward.ask("new.wild.example", 3601.0).allowed
    assert not ward.ask("x" * 63 + "." + "y" * 63 + "." + "z" * 63 + ".q" * 8 + ".wild.example", 0.0).allowed


def test_what_the_gateway_is_told_arrives() -> None:
    rules = Rules(
        parse({"allow": [{"host": "a.test"}], "inject": [{"host": "a.test", "env": "K", "secret": "s"}]}),
        Floor((IPv4Network("10.0.0.0/8"),)),
        parse({"deny": [{"host": "b.test"}, {"cidr": "1.0.0.0/8", "proto": "udp"}]}).deny,
    )
    credentials = Credentials({"s": "value"}, {"K": "mark"}, Authority("certificate", "key"))
    guarded = Guarded("sbx", ONE, 3, 7, rules, credentials)
    assert decode_guarded(encode_guarded(guarded)) == guarded
    assert "value" not in repr(guarded)


@given(st.binary(max_size=400))
def test_any_datagram_of_the_kernels_is_read(data: bytes) -> None:
    nflog.parse(data)
    size = struct.pack("=IHHII", 16 + 4 + len(data), 0x400, 0, 0, 0)
    nflog.parse(size + b"\0\0\0\0" + data)


def test_a_logged_packet() -> None:
    packet = bytes([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]) + ONE.packed + TWO.packed + struct.pack(">HH", 1234, 443)
    body = (
        b"\2\0\0\0"
        + netlink.attribute(4, (9).to_bytes(4))
        + netlink.attribute(10, b"isobox refused\0")
        + netlink.attribute(9, packet)
    )
    message = struct.pack("=IHHII", 16 + len(body), 0x400, 0, 0, 0) + body
    assert nflog.parse(message * 2) == [nflog.Logged("isobox refused", 9, ONE, TWO, "tcp", 443)] * 2
