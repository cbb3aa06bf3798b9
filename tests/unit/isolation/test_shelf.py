from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from isolation.shelf import Demand, Shelf


class Claims(RuleBasedStateMachine):
    """Many callers, one shelf: whatever the order, nothing is handed out twice and nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf: Shelf[int] = Shelf(Demand(floor=1, ceiling=5))
        self.now = 0.0
        self.made = 0
        self.given: list[int] = []
        self.discarded: list[int] = []
        self.dead: set[int] = set()

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def make(self) -> None:
        for _ in range(min(1, self.shelf.shortage(self.now))):
            self.shelf.put(self.now, self.made)
            self.made += 1

    @rule(which=st.integers(0, 50))
    def die(self, which: int) -> None:
        self.dead.add(which)

    @rule()
    def claim(self) -> None:
        before = self.shelf.hits + self.shelf.misses
        found, doubtful = self.shelf.claim(self.now, lambda each: each not in self.dead)
        assert self.shelf.hits + self.shelf.misses == before + 1
        self.discarded += doubtful
        assert all(each in self.dead for each in doubtful)
        if found is not None:
            assert found not in self.dead
            self.given.append(found)

    @rule()
    def trim(self) -> None:
        self.discarded += self.shelf.surplus(self.now, max_age_s=60)

    @rule()
    def fail(self) -> None:
        pause = self.shelf.failed(self.now)
        assert 0.5 <= pause <= 60
        assert self.shelf.shortage(self.now) == 0

    @invariant()
    def each_thing_is_in_one_place(self) -> None:
        out = self.given + self.discarded
        assert len(set(out)) == len(out)
        assert len(out) + len(self.shelf) == self.made
        assert self.shelf.demand.floor <= self.shelf.demand.target(self.now) <= self.shelf.demand.ceiling


TestClaims = Claims.TestCase


@given(st.lists(st.floats(0, 10), max_size=50), st.integers(0, 3), st.integers(3, 20))
def test_demand_rises_with_claims_and_falls_with_silence(gaps: list[float], floor: int, ceiling: int) -> None:
    demand, now = Demand(floor=floor, ceiling=ceiling), 0.0
    assert demand.target(now) == floor
    for gap in gaps:
        now += gap
        before = demand.target(now)
        demand.asked(now)
        assert before <= demand.target(now) <= ceiling
    assert demand.target(now + 1000) == floor


def test_back_off_grows_and_a_success_ends_it() -> None:
    shelf: Shelf[str] = Shelf(Demand(floor=1, ceiling=1))
    pauses = [shelf.failed(0.0) for _ in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60
    assert shelf.shortage(59) == 0
    assert shelf.shortage(61) == 1
    shelf.put(61, "it")
    assert shelf.failed(62) == 0.5
    assert shelf.clear() == ["it"]
