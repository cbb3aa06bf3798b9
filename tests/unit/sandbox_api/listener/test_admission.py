"""Who is let in: never more than the bounds say, and never a request in favour of somebody who only waits."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox_api.listener.admission import Admission, Full, address_of
from sandbox_api.listener.pieces import PieceSize

MOST, PER_ADDRESS = 5, 3


def test_who_waits_longest_makes_room() -> None:
    admission: Admission[str] = Admission(most=10, per_address=2)
    assert admission.admit("a", "1") is None
    assert admission.admit("b", "1") is None
    assert admission.admit("c", "1") == "a"
    admission.busy("b")
    admission.busy("c")
    assert admission.admit("d", "1") is Full.ADDRESS
    assert admission.admit("d", "2") is None  # another address is none of their business
    admission.idle("c")
    assert admission.admit("e", "1") == "c"


def test_a_full_server_refuses_only_when_all_are_busy() -> None:
    admission: Admission[int] = Admission(most=3, per_address=3)
    for n in range(3):
        assert admission.admit(n, str(n)) is None
    assert admission.admit(3, "3") == 0
    for n in (1, 2, 3):
        admission.busy(n)
    assert admission.admit(4, "4") is Full.SERVER
    admission.leave(2)
    assert admission.admit(4, "4") is None


def test_addresses() -> None:
    assert address_of("192.0.2.7") == address_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert address_of("2001:db8:1:2:3::4") == address_of("2001:db8:1:2::") != address_of("2001:db8:1:3::")
    assert address_of("fe80::1%eth0") == "fe80::"
    assert address_of("") == ""


class Connections(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission[int] = Admission(most=MOST, per_address=PER_ADDRESS)
        self.model: dict[int, tuple[str, bool]] = {}
        self.number = 0

    @rule(address=st.sampled_from("abc"))
    def admit(self, address: str) -> None:
        self.number += 1
        found = self.admission.admit(self.number, address)
        if isinstance(found, Full):
            beside = [busy for there, busy in self.model.values() if there == address or found is Full.SERVER]
            assert all(beside)
            assert len(beside) == (PER_ADDRESS if found is Full.ADDRESS else MOST)
            return
        if found is not None:
            assert not self.model.pop(found)[1], "a request made room for somebody who waits"
        self.model[self.number] = (address, False)

    @rule(number=st.integers(1, 30), busy=st.booleans())
    def work(self, number: int, busy: bool) -> None:
        (self.admission.busy if busy else self.admission.idle)(number)
        if number in self.model:
            self.model[number] = (self.model[number][0], busy)

    @rule(number=st.integers(1, 30))
    def leave(self, number: int) -> None:
        self.admission.leave(number)
        self.model.pop(number, None)

    @invariant()
    def bounded(self) -> None:
        assert len(self.admission) == len(self.model) <= MOST
        for address in "abc":
            assert sum(there == address for there, _ in self.model.values()) <= PER_ADDRESS


TestConnections = Connections.TestCase


@given(st.lists(st.integers(0, 30000), max_size=60))
def test_a_piece_is_bounded_and_small_after_a_flood(floods: list[int]) -> None:
    size = PieceSize()
    for frames in floods:
        size.parsed(frames)
        assert 1 << 10 <= size.bytes <= 64 << 10
        assert frames <= 16 or size.bytes == 1 << 10
