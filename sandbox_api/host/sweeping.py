"""Finds what servers made on this machine, and removes what has no owner any more (`leftovers.py` tells which)."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import structlog
from pyroute2 import IPRoute, NetlinkError

from common import owners, processes
from common.errors import IsoboxError
from common.owners import Standing
from isolation import cgroups, mounts
from isolation.cgroups import Cgroup, Layout
from netpolicy import namespaces, nft
from netpolicy.errors import NetworkUnavailable
from netpolicy.network import disable_forwarding
from netpolicy.nftables import Nftables
from netpolicy.plan import PROBE_TAG, PROXY_PORT, Place
from netpolicy.slots import recorded_tag
from sandbox_api.host.leftovers import Belongings, Group, Survey, Tagged, belongings, gone

_log = structlog.get_logger(__name__)
_ENDS_WITHIN_S: Final = 20.0
_LOOPBACK: Final = 1
_NOWHERE: Final = IPv4Network("0.0.0.0/32")
_MOUNT: Final = re.compile(r"(/.+)/(?:run/(sbx[a-z2-7]{26})/(?:overlay|runsc/null-netns)|lazy/images)")


def survey() -> Survey:
    """Look at this machine, as root.

    What was made comes first, whose it is second: what a server makes meanwhile is not seen, and the server is.
    """
    layout = cgroups.detect()
    helpers, groups, tagged, mounted = processes.helpers(), _groups(layout), _tagged(), _mounts()
    named = {helper.state for helper in helpers} | {group.state for group in groups} | {state for state, _ in mounted}
    locked = processes.state_locks()
    records = owners.owners()
    paths = (named | set(locked) | {owner.state for owner, _ in records.values()}) - {""}
    anchored = frozenset(helper.pid for helper in helpers if processes.anchored(helper))
    states = {path: Standing.WAITING for path in paths if Path(path, "isobox.db").exists()}
    # Sandboxes without a server (benchmarks make some) have a keeper at least.
    states |= {helper.state: Standing.WAITING for helper in helpers if helper.pid in anchored}
    states |= dict.fromkeys(locked, Standing.LIVING)
    return Survey(
        owners=records,
        states=states,
        identities={path: id_ for path in paths if (id_ := owners.read_identity(Path(path)))},
        servers=locked,
        networks={path: tag for path in paths if (tag := recorded_tag(Path(path)))},
        sandboxes={path: _sandboxes(Path(path)) for path in paths},
        helpers=tuple(helpers),
        anchored=anchored,
        groups=tuple(groups),
        tagged=tuple(tagged),
        mounts=tuple(mounted),
    )


def _groups(layout: Layout) -> list[Group]:
    names = {(owner, name) for owner in _owner_groups(layout) for name in cgroups.groups_below(layout, owner)}
    found = [
        _group(layout, owner.removeprefix(cgroups.ROOT).strip("/"), owner, name)
        for owner, name in sorted(names)
        if name.startswith("sbx")
    ]
    # An owner's group with nothing in it is something to remove as well.
    empty = {owner for owner in _owner_groups(layout) if owner != cgroups.ROOT} - {owner for owner, _ in names}
    return found + [Group("", owner.removeprefix(f"{cgroups.ROOT}/")) for owner in sorted(empty)]


def _owner_groups(layout: Layout) -> list[str]:
    below = cgroups.groups_below(layout, cgroups.ROOT)
    return [cgroups.ROOT, *(f"{cgroups.ROOT}/{name}" for name in sorted(below) if name.startswith("own"))]


def _group(layout: Layout, owner: str, parent: str, name: str) -> Group:
    pids = frozenset(Cgroup(layout, parent, name).processes())
    named = (processes.sandbox_of(processes.arguments(pid)) for pid in sorted(pids))
    return Group(name, owner, next((found[0] for found in named if found), ""), pids)


def _sandboxes(state: Path) -> frozenset[str]:
    """Names by which groups of a state directory's sandboxes go: those of the folders, or what they were made under."""
    names = set()
    with contextlib.suppress(OSError):
        for folder in (state / "run").iterdir():
            names.add(folder.name)
            with contextlib.suppress(OSError):
                names.add((folder / "born").read_text())
    return frozenset(names)


def _tagged() -> list[Tagged]:
    objects: dict[str, set[str]] = {}

    def add(pattern: str, names: Iterable[str], kind: str) -> None:
        for name in names:
            if (match := re.match(pattern, name)) is not None and match[1] != PROBE_TAG:
                objects.setdefault(match[1], set()).add(f"{kind} {name}")

    add(r"ib([0-9a-f]{4})x\d+$", os.listdir("/sys/class/net"), "link")
    add(r"isobox-([0-9a-f]{4})-\d+$", namespaces.all_("isobox-"), "namespace")
    try:
        nftables = Nftables()
    except NetworkUnavailable:
        return [Tagged(tag, frozenset(names)) for tag, names in sorted(objects.items())]
    with contextlib.closing(nftables):
        tables = re.findall(r"table (?:ip|netdev) (isobox_[0-9a-f]{4})\b", nftables.run("list tables"))
        add(r"isobox_([0-9a-f]{4})$", tables, "table")
        return [_tell(nftables, tag, frozenset(names)) for tag, names in sorted(objects.items())]


def _tell(nftables: Nftables, tag: str, objects: frozenset[str]) -> Tagged:
    try:
        rules = nftables.run(f"list chain ip isobox_{tag} to_gateway")
    except NetworkUnavailable:  # no table of its own is left
        return Tagged(tag, objects)
    owner = re.search(rf'comment "{nft.OWNED}(own[a-z2-7]{{26}})"', rules)
    gateway = re.search(rf"dnat to ([0-9.]+):{PROXY_PORT}\b", rules)
    return Tagged(tag, objects, owner[1] if owner else "", gateway[1] if gateway else "")


def _mounts() -> list[tuple[str, str]]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        source = after.split(" ")[1]
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        match = _MOUNT.fullmatch(point)
        if match is not None and (source.startswith("isobox") or after.startswith("nsfs ")):
            found.append((match[1], point))
    return found


# ---- removing


async def sweep(*, only: Path | None = None) -> tuple[list[Belongings], list[Belongings]]:
    """Remove what has no owner any more; returns (what was removed, what is left of it).

    only: what servers of this state directory left. Nobody begins meanwhile: servers choose their names under the
    same lock.
    """
    with contextlib.ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, owners.machine_lock())
        found = gone(belongings(await asyncio.to_thread(survey)))
        removed = [each for each in found if only is None or each.owner.state == str(only)]
        for each in list(removed):
            try:
                await _remove(each)
            except (IsoboxError, OSError, TimeoutError) as error:
                _log.warning("cannot remove what a dead server left", left=each.words(), error=str(error))
                removed.remove(each)
        await asyncio.to_thread(_restore_forwarding)
        return removed, [each for each in found if each not in removed]


async def _remove(left: Belongings) -> None:
    _log.warning("removing what a dead server left", owner=left.owner.id, state=left.owner.state, pid=left.owner.pid)
    for helper in left.helpers:
        await asyncio.to_thread(processes.kill, helper)
    layout = cgroups.detect()
    for group in left.groups:
        parent = f"{cgroups.ROOT}/{group.owner}" if group.owner else cgroups.ROOT
        if group.name:
            await _end_group(Cgroup(layout, parent, group.name))
    if left.owner.id:
        cgroups.remove_parent(layout, f"{cgroups.ROOT}/{left.owner.id}")
    for point in left.mounts:
        mounts.detach(Path(point))
    if left.tagged or left.owner.share:
        await asyncio.to_thread(_remove_network, left)
    if left.owner.id:
        owners.forget(left.owner.id)


async def _end_group(cgroup: Cgroup) -> None:
    """End all that is in a group, thawed so that it can end, and remove it."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    cgroup.kill()
    while not cgroup.remove():
        if time.monotonic() > deadline:
            raise IsoboxError(
                f"processes do not end: {sorted(cgroup.processes())}", hint="see what they wait for, then sweep again"
            )
        cgroup.kill()
        await asyncio.sleep(0.02)


def _remove_network(left: Belongings) -> None:
    addresses = {tagged.gateway for tagged in left.tagged} - {""}
    if left.owner.share:
        addresses.add(str(IPv4Network(left.owner.share)[1]))
    with IPRoute() as routes, contextlib.closing(Nftables()) as nftables:
        for tagged in left.tagged:
            for name in sorted(tagged.objects):
                kind, _, name = name.partition(" ")
                if kind == "link":
                    with contextlib.suppress(NetlinkError, IndexError):  # it went with its namespace
                        routes.link("del", index=routes.link_lookup(ifname=name)[0])
                elif kind == "namespace":
                    namespaces.remove(name)
            nftables.run(nft.removed(Place(tagged.tag, _NOWHERE)))
        for address in addresses:
            with contextlib.suppress(NetlinkError):  # it was removed with the rest
                routes.addr("del", index=_LOOPBACK, address=address, prefixlen=32)


def _restore_forwarding() -> None:
    with contextlib.suppress(NetworkUnavailable), contextlib.closing(Nftables()) as nftables:
        disable_forwarding(nftables)
