"""Who gets which: first come, first served, nobody's device twice, and those that are near each other together. Pure.

An ask that cannot be served yet keeps what it could use from those behind it, so that one who wants four is not passed
by for ever by those who want one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from gpu.device import Device
from gpu.errors import GpuBusy, GpuImpossible
from gpu.kinds import fits

_COMBINATIONS_MAX = 5000


@dataclass(frozen=True, slots=True)
class Ask:
    """So many of the first of these kinds that can be had, with at least that much memory each (MiB)."""

    count: int = 1
    kinds: tuple[str, ...] = ("any",)
    memory_mb: int = 0

    def fits(self, device: Device, wanted: str) -> bool:
        """Whether a device is of that kind and large enough."""
        return fits(device.kind, wanted) and device.memory_mb >= self.memory_mb and not device.slices


def check(ask: Ask, devices: Sequence[Device]) -> None:
    """GpuImpossible, with what there is, if these devices could never serve it."""
    there = ", ".join(f"{count} x {kind}" for kind, count in sorted(supply(devices).items()))
    if not devices:
        raise GpuImpossible("this machine has no GPU", hint="leave `gpu` out, or ask a server that has one")
    possible = [sum(ask.fits(each, kind) for each in devices) for kind in ask.kinds]
    if max(possible) >= ask.count:
        return
    wanted = f"{ask.count} x {' or '.join(ask.kinds)}"
    of_size = f" of at least {ask.memory_mb} MiB" if ask.memory_mb else ""
    raise GpuImpossible(f"this machine does not have {wanted}{of_size}", hint=f"it has {there}")


def supply(devices: Iterable[Device]) -> dict[str, int]:
    """How many there are of each kind."""
    found: dict[str, int] = {}
    for each in devices:
        if not each.slices:
            found[each.kind] = found.get(each.kind, 0) + 1
    return found


def pick(ask: Ask, free: Sequence[Device]) -> tuple[Device, ...] | None:
    """Devices for an ask, all of one of its kinds, the nearest to each other; None where there are too few."""
    for kind in ask.kinds:
        fitting = [each for each in free if ask.fits(each, kind)]
        families: dict[str, list[Device]] = {}
        for each in fitting:
            families.setdefault(each.kind, []).append(each)
        # A mixed lot is nobody's wish: all of one kind, the smallest that fits first, so that large ones stay free.
        for family in sorted(families.values(), key=lambda each: (each[0].memory_mb, each[0].kind)):
            if len(family) >= ask.count:
                return _nearest(family, ask.count)
    return None


def _nearest(devices: list[Device], count: int) -> tuple[Device, ...]:
    ordered = sorted(devices, key=lambda each: each.index)
    best, best_distance = tuple(ordered[:count]), _distance(ordered[:count])
    for number, chosen in enumerate(combinations(ordered, count)):
        if number >= _COMBINATIONS_MAX or best_distance == 0:
            break
        if (distance := _distance(chosen)) < best_distance:
            best, best_distance = chosen, distance
    return best


def _distance(chosen: Sequence[Device]) -> int:
    """Pairs without NVLink count 1, those on different NUMA nodes 2 more."""
    return sum(
        (b.uuid not in a.links) + 2 * (a.numa != b.numa and -1 not in (a.numa, b.numa))
        for a, b in combinations(chosen, 2)
    )


def busy(ask: Ask, devices: Sequence[Device], why_not: Mapping[str, str]) -> GpuBusy:
    """What to tell somebody who does not wait; why_not says of each device that is not free what it does."""
    fitting = [each for each in devices if any(ask.fits(each, kind) for kind in ask.kinds)]
    states: dict[str, int] = {}
    for each in fitting:
        state = why_not.get(each.uuid, "free")
        states[state] = states.get(state, 0) + 1
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    free = supply(each for each in devices if each.uuid not in why_not)
    there = ", ".join(f"{count} x {kind}" for kind, count in sorted(free.items())) or "none"
    return GpuBusy(
        f"{ask.count} x {' or '.join(ask.kinds)} cannot be had now: {said}",
        hint=f"free now: {there}. Ask for that, or wait for yours with gpu.wait_s",
    )


def serve(waiting: Sequence[Ask], free: Sequence[Device]) -> list[tuple[Device, ...] | None]:
    """For each of the waiting, in their order, what is theirs now; None for those who go on waiting."""
    left = {each.uuid: each for each in free}
    found = []
    for ask in waiting:
        chosen = pick(ask, list(left.values()))
        found.append(chosen)
        kept = chosen or [each for each in left.values() if any(ask.fits(each, kind) for kind in ask.kinds)]
        for each in kept:
            del left[each.uuid]
    return found
