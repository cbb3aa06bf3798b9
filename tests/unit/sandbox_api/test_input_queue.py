from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.services.functions.queue import InputQueue, Waiting


def test_calls_take_turns_and_keep_their_order() -> None:
    queue = InputQueue()
    for n in range(3):
        queue.put(Waiting("long", n))
    queue.put(Waiting("short", 0))
    taken = [queue.take() for _ in range(5)]
    assert [(each.call, each.index) for each in taken if each] == [("long", 0), ("short", 0), ("long", 1), ("long", 2)]
    assert taken[-1] is None


def test_what_waits_for_its_moment_comes_first_then() -> None:
    queue = InputQueue()
    queue.put(Waiting("a", 1))
    queue.put(Waiting("a", 0, not_before=50.0))
    assert (len(queue), queue.later) == (1, 1)
    assert queue.ripen(49.0) == 50.0
    assert queue.ripen(50.0) is None
    assert queue.take() == Waiting("a", 0)


def test_a_place_that_is_lent_takes_deeper_ones_alone() -> None:
    queue = InputQueue()
    queue.put(Waiting("shallow", 0))
    queue.put(Waiting("deep", 0, depth=2))
    assert queue.take(below=2) is None
    assert queue.take(below=1) == Waiting("deep", 0, depth=2)
    assert queue.take(below=0) is None
    queue.put(Waiting("deep", 1, not_before=1.0, depth=2))
    queue.ripen(2.0)
    assert queue.take(below=1) == Waiting("deep", 1, depth=2)


def test_a_call_can_be_taken_out() -> None:
    queue = InputQueue()
    for call in ("a", "b"):
        queue.put(Waiting(call, 0))
        queue.put(Waiting(call, 1, not_before=9.0))
    assert len(queue.drop("a")) == 2
    assert queue.ripen(10.0) is None
    assert sorted(each.call for each in queue.drain()) == ["b", "b"]
    assert len(queue) == queue.later == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_nothing_is_lost_or_given_twice(puts: list[tuple[str, bool]]) -> None:
    queue = InputQueue()
    for n, (call, first) in enumerate(puts):
        queue.put(Waiting(call, n), first=first)
    taken = []
    while (each := queue.take()) is not None:
        taken.append(each.index)
    assert sorted(taken) == list(range(len(puts)))
