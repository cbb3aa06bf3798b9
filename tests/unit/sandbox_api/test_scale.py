from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.functions.scale import Bounds, Container, Lately, Pace, Plan, plan


def test_as_many_as_there_is_work_for() -> None:
    assert plan(Bounds(), 0, [], 0.0).start == 0
    assert plan(Bounds(), 3, [], 0.0).start == 3
    assert plan(Bounds(most=2), 30, [], 0.0).start == 2
    assert plan(Bounds(concurrency=4), 9, [], 0.0).start == 3
    assert plan(Bounds(buffer=2), 1, [], 0.0).start == 3
    assert plan(Bounds(buffer=2), 0, [], 0.0).start == 0
    assert plan(Bounds(least=2), 0, [], 0.0).start == 2
    assert plan(Bounds(), 2, [Container("a", starting=True), Container("b", busy=1)], 0.0).start == 1


def test_none_is_started_for_what_is_done_before_it_is_ready() -> None:
    two = [Container("a", busy=1), Container("b", busy=1)]
    quick, slow = Pace(0.002, 0.3), Pace(30.0, 0.3)
    assert plan(Bounds(), 20, two, 5.0, quick) == Plan(look_at=5.3)
    assert plan(Bounds(), 20, two, 5.0, slow).start == 6
    assert plan(Bounds(), 600, two, 5.0, quick) == Plan(start=2, look_at=5.3)
    assert plan(Bounds(), 20, [], 5.0, quick).start == 8
    assert plan(Bounds(buffer=1), 20, two, 5.0, quick).start == 1


def test_the_pace_follows_what_was_seen_lately() -> None:
    lately = Lately()
    assert lately.pace(0.0) is None
    lately.done(1.0)
    lately.started(0.5)
    assert lately.pace(0.0) == Pace(1.0, 0.5)
    lately.done(2.0)
    assert lately.pace(0.0) == Pace(1.2, 0.5)
    assert lately.pace(7.0) == Pace(7.0, 0.5)


def test_those_without_work_go_in_their_time() -> None:
    idle = [Container("old", idle_since=10.0), Container("new", idle_since=50.0), Container("busy", busy=1)]
    early = plan(Bounds(scaledown_s=60), 0, idle, 60.0)
    assert (early.stop, early.look_at) == ([], 70.0)
    later = plan(Bounds(scaledown_s=60), 0, idle, 75.0)
    assert (later.stop, later.look_at) == (["old"], 110.0)
    assert plan(Bounds(scaledown_s=60, least=2), 0, idle, 500.0).stop == ["old"]
    assert plan(Bounds(scaledown_s=60), 2, idle, 500.0).stop == []


CONTAINERS = st.lists(
    st.builds(Container, st.uuids().map(str), st.integers(0, 3), st.booleans(), st.floats(0, 100)), max_size=12
)


@given(
    st.builds(Bounds, st.integers(0, 4), st.integers(1, 8), st.integers(0, 3), st.integers(1, 4), st.floats(1, 60)),
    st.integers(0, 50),
    CONTAINERS,
    st.floats(0, 200),
    st.none() | st.builds(Pace, st.floats(0, 100), st.floats(0, 100)),
)
def test_a_plan_keeps_the_bounds(
    bounds: Bounds, queued: int, containers: list[Container], now: float, pace: Pace | None
) -> None:
    found = plan(bounds, queued, containers, now, pace)
    assert not (found.start and found.stop)
    if found.start:
        assert len(containers) + found.start <= bounds.most
    stopped = [each for each in containers if each.name in found.stop]
    assert all(not each.busy and not each.starting for each in stopped)
    assert len(containers) - len(stopped) >= min(len(containers), bounds.least, bounds.most)
    if queued and not found.start and pace is None:
        assert len(containers) >= min(bounds.most, -(-queued // bounds.concurrency))
    if queued and not containers:
        assert found.start
    if queued and not found.start and len(containers) < min(bounds.most, -(-queued // bounds.concurrency)):
        assert found.look_at is not None
