import struct
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from netpolicy import conntrack, netlink


def message(proto: int, state: int) -> bytes:
    addresses = netlink.attribute(1, bytes((198, 19, 0, 2))) + netlink.attribute(2, bytes((203, 0, 113, 1)))
    ports = (
        netlink.attribute(1, bytes([proto]))
        + netlink.attribute(2, (4321).to_bytes(2))
        + netlink.attribute(3, (443).to_bytes(2))
    )
    whole = netlink.attribute(0x8001, addresses) + netlink.attribute(0x8002, ports)
    info = netlink.attribute(0x8001, netlink.attribute(1, bytes([state])))
    body = b"\2\0\0\0" + netlink.attribute(0x8001, whole) + netlink.attribute(0x8004, info)
    return struct.pack("=IHHII", 16 + len(body), 0x100, 2, 1, 0) + body


def test_a_connection_as_the_kernel_tells_it() -> None:
    found = [conntrack.parse(body) for _, body in netlink.messages(message(6, 3) + message(17, 0) + message(47, 0))]
    assert found[0] is not None
    assert (found[0].proto, found[0].source_port, found[0].port, found[0].lives) == ("tcp", 4321, 443, True)
    assert found[0].destination == IPv4Address("203.0.113.1")
    assert found[1] is not None
    assert (found[1].proto, found[1].lives) == ("udp", False)
    assert found[2] is None


def test_an_end_tells_its_bytes_and_who_answered() -> None:
    def ended(answerer: bytes) -> bytes:
        reply = netlink.attribute(0x8002, netlink.attribute(0x8001, netlink.attribute(1, answerer)))
        counters = netlink.attribute(0x8009, netlink.attribute(2, (700).to_bytes(8))) + netlink.attribute(
            0x800A, netlink.attribute(2, (90).to_bytes(8))
        )
        body = message(6, 7)[16:] + reply + counters
        return struct.pack("=IHHII", 16 + len(body), 0x102, 0, 0, 0) + body

    found = conntrack.ends(ended(bytes((203, 0, 113, 1))) + ended(bytes((198, 19, 0, 1))) + message(6, 3))
    assert [(each.forwarded, each.tx_bytes, each.rx_bytes) for each in found] == [(True, 700, 90), (False, 700, 90)]


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    conntrack.ends(data)
    for _, body in netlink.messages(data):
        conntrack.parse(body)
    conntrack.parse(data)


@given(st.data())
def test_a_damaged_message_is_read(data: st.DataObject) -> None:
    whole = bytearray(message(6, 3))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for _, body in netlink.messages(bytes(whole)):
        conntrack.parse(body)
