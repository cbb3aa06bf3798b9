import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu import allocate
from gpu.allocate import Ask
from gpu.device import Device
from gpu.errors import GpuImpossible


def device(n: int, kind: str = "h100", *, memory_mb: int = 80_000, numa: int = 0, links: str = "") -> Device:
    return Device(f"GPU-{n}", n, n, kind, kind, memory_mb, f"0:{n}", numa, frozenset(f"GPU-{x}" for x in links))


EIGHT = [device(n, numa=n // 4, links="0123" if n < 4 else "4567") for n in range(8)]


def test_those_near_each_other_are_given_together() -> None:
    free = [EIGHT[0], EIGHT[3], EIGHT[5], EIGHT[6]]
    chosen = allocate.pick(Ask(2), free)
    assert chosen is not None
    assert {each.index for each in chosen} in ({0, 3}, {5, 6})
    four = allocate.pick(Ask(4), EIGHT[1:])
    assert four is not None
    assert {each.index for each in four} == {4, 5, 6, 7}


def test_kinds_in_their_order_and_small_ones_first() -> None:
    mixed = [device(0, "a100-80gb"), device(1, "l4", memory_mb=23_000), device(2, "a100-40gb", memory_mb=40_000)]

    def got(*kinds: str, count: int = 1, memory_mb: int = 0) -> list[str] | None:
        chosen = allocate.pick(Ask(count, kinds, memory_mb), mixed)
        return None if chosen is None else [each.kind for each in chosen]

    assert got("h100", "a100") == ["a100-40gb"]
    assert got("any") == ["l4"]
    assert got("any", memory_mb=30_000) == ["a100-40gb"]
    assert got("a100", count=2) is None  # a mixed lot is nobody's wish
    assert got("h100") is None


def test_one_who_wants_many_is_not_passed_by() -> None:
    asks = [Ask(4, ("h100",)), Ask(1, ("h100",)), Ask(1, ("l4",))]
    free = [*EIGHT[:3], device(9, "l4")]
    found = allocate.serve(asks, free)
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert allocate.serve(asks, EIGHT[:5])[1] is not None


@pytest.mark.parametrize(
    ("ask", "devices", "words"),
    [
        (Ask(), [], "this machine has no GPU"),
        (Ask(9), EIGHT, "it has 8 x h100"),
        (Ask(1, ("b200",)), EIGHT, "does not have 1 x b200"),
        (Ask(1, ("h100",), 90_000), EIGHT, "of at least 90000 MiB"),
    ],
)
def test_what_can_never_be(ask: Ask, devices: list[Device], words: str) -> None:
    with pytest.raises(GpuImpossible) as refused:
        allocate.check(ask, devices)
    assert words in f"{refused.value.detail} {refused.value.hint}"


def test_who_is_refused_hears_what_is_free() -> None:
    mixed = [*EIGHT[:2], device(9, "l4")]
    error = allocate.busy(Ask(2, ("h100",)), mixed, {"GPU-0": "used", "GPU-1": "quarantined"})
    assert error.detail == "2 x h100 cannot be had now: 1 quarantined, 1 used"
    assert "free now: 1 x l4" in error.hint


ASKS = st.builds(
    Ask, st.integers(1, 4), st.lists(st.sampled_from(["any", "h100", "l4", "b200"]), min_size=1, max_size=2).map(tuple)
)


@given(st.lists(ASKS, max_size=8), st.lists(st.sampled_from(["h100", "l4", "a100-80gb"]), max_size=8))
def test_nothing_is_given_twice(asks: list[Ask], kinds: list[str]) -> None:
    free = [device(n, kind) for n, kind in enumerate(kinds)]
    found = allocate.serve(asks, free)
    given_ = [each.uuid for chosen in found if chosen is not None for each in chosen]
    assert len(given_) == len(set(given_))
    for ask, chosen in zip(asks, found, strict=True):
        if chosen is not None:
            assert len(chosen) == ask.count
            assert len({each.kind for each in chosen}) == 1
            assert all(any(ask.fits(each, kind) for kind in ask.kinds) for each in chosen)


def test_a_hundred_thousand_operations() -> None:
    """Taken and given back at random, with crashes after which only what was written down is known."""
    chance = random.Random(7)
    held: dict[int, tuple[str, ...]] = {}
    written: dict[int, tuple[str, ...]] = {}
    for number in range(100_000):
        what = chance.random()
        if what < 0.5:
            taken = {uuid for uuids in held.values() for uuid in uuids}
            free = [each for each in EIGHT if each.uuid not in taken]
            asks = [Ask(chance.randint(1, 4)) for _ in range(chance.randint(1, 3))]
            for at, chosen in enumerate(allocate.serve(asks, free)):
                if chosen is not None:
                    written[number * 8 + at] = held[number * 8 + at] = tuple(each.uuid for each in chosen)
        elif what < 0.99 and held:
            gone = chance.choice(list(held))
            del held[gone], written[gone]
        else:
            held = dict(written)
        every = [uuid for uuids in held.values() for uuid in uuids]
        assert len(every) == len(set(every)) <= 8
