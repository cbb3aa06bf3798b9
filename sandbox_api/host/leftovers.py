"""What servers made on this machine, sorted by whom it belongs to: pure, over a survey (`sweeping.py` makes it).

Everything is made under its owner's id (common/owners.py), or under a tag that the owner's record tells. Servers of
before had no id: theirs is told from the state directory that the processes name, and from the tag, which was a digest
of the directory's path.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.owners import Owner, Standing
from common.processes import Helper
from netpolicy.plan import tag_of

UNKNOWN: Final = "an unknown state directory"


@dataclass(frozen=True, slots=True)
class Group:
    """A sandbox's control group: owner is '' for one of a server of before, state where a process in it names one."""

    name: str
    owner: str = ""
    state: str = ""
    processes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Tagged:
    """What goes by a tag: names of kernel objects; owner and gateway's address where the rules tell them."""

    tag: str
    objects: frozenset[str]
    owner: str = ""
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """The machine at a moment.

    owners are the records; states the standing of directories that no record tells of (servers of before, or a lost
    record); identities the ids that directories have, networks the tags; sandboxes the names in their run folders.
    """

    owners: Mapping[str, tuple[Owner, Standing]] = field(default_factory=dict)
    states: Mapping[str, Standing] = field(default_factory=dict)
    servers: Mapping[str, int] = field(default_factory=dict)
    """Processes that have a state directory locked."""
    identities: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    sandboxes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    helpers: tuple[Helper, ...] = ()
    anchored: frozenset[int] = frozenset()
    """Those helpers whose state directory is still the one that they were started in."""
    groups: tuple[Group, ...] = ()
    tagged: tuple[Tagged, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    """(state directory, mount point)."""


@dataclass(slots=True)
class Belongings:
    """All that one owner has on the machine."""

    owner: Owner
    standing: Standing
    recorded: bool = False
    helpers: list[Helper] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    tagged: list[Tagged] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing but a record."""
        return not (self.helpers or self.groups or self.tagged or self.mounts or self.owner.share)

    def words(self) -> str:
        """Say whose and what, for an operator."""
        whose = self.owner.state or UNKNOWN
        pid = f" (last server: pid {self.owner.pid})" if self.owner.pid else ""
        counted = [
            f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
            for name, things in (("sandbox group", self.groups), ("mount", self.mounts))
            if things
        ]
        counted += [f"{helper.kind} (pid {helper.pid})" for helper in self.helpers]
        counted += [f"network {tagged.tag} ({len(tagged.objects)} objects)" for tagged in self.tagged]
        return f"{whose}{pid}: {', '.join(counted) or 'a record'}"


def belongings(survey: Survey) -> list[Belongings]:
    """Sort what was surveyed by owner; one that is in nobody's record is judged by its state directory."""
    return _Sorter(survey).sort()


class _Sorter:
    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._by_key: dict[str, Belongings] = {
            id_: Belongings(owner, standing, recorded=True) for id_, (owner, standing) in survey.owners.items()
        }

    def sort(self) -> list[Belongings]:
        survey = self._survey
        for helper in survey.helpers:
            if helper.owner or helper.state:
                found = self._of(helper.owner, helper.state, there=helper.pid in survey.anchored)
            else:  # we may not see whose it is: it is not ours to judge
                found = self._by_key.setdefault("?", Belongings(Owner("", ""), Standing.WAITING))
            found.helpers.append(helper)
        for group in survey.groups:
            state = group.state or self._state_with(group.name)
            there = group.name in survey.sandboxes.get(state, ())
            self._of(group.owner, state, there=there).groups.append(group)
        tags = {owner.tag: id_ for id_, (owner, _) in survey.owners.items() if owner.tag}
        by_digest = {tag_of(Path(state)): state for state in self._states()}
        for tagged in survey.tagged:
            owner = tagged.owner or tags.get(tagged.tag, "")
            state = "" if owner else by_digest.get(tagged.tag, "")
            self._of(owner, state, there=survey.networks.get(state) == tagged.tag).tagged.append(tagged)
        for state, point in survey.mounts:
            self._of(self._gone_from(state), state, there=True).mounts.append(point)
        return sorted(self._by_key.values(), key=lambda each: (each.owner.state, each.owner.id))

    def _states(self) -> Iterable[str]:
        survey = self._survey
        named = {helper.state for helper in survey.helpers} | {group.state for group in survey.groups}
        return sorted((named | set(survey.states)) - {""})

    def _gone_from(self, state: str) -> str:
        """The id of an owner whose directory was at a path where there is none now, or ''."""
        owners = () if state in self._survey.states else self._survey.owners.values()
        return next((owner.id for owner, _ in owners if owner.state == state), "")

    def _state_with(self, sandbox: str) -> str:
        return next((state for state, names in self._survey.sandboxes.items() if sandbox in names), "")

    def _of(self, owner: str, state: str, *, there: bool) -> Belongings:
        """Find the belongings of an owner by its id or, without one, of a state directory.

        there: whether the thing is of the directory that lies at this path now, not of one that was there before.
        """
        survey = self._survey
        if not owner and there:
            owner = survey.identities.get(state, "")  # it was begun by a server of before
        if owner:
            if owner not in self._by_key:
                # Its record was lost: the state directory tells.
                state = next((path for path, id_ in survey.identities.items() if id_ == owner), state)
                known = survey.identities.get(state) == owner
                standing = survey.states.get(state, Standing.WAITING) if known else Standing.GONE
                self._by_key[owner] = Belongings(Owner(owner, state, survey.servers.get(state, 0)), standing)
            return self._by_key[owner]
        key = f"{state}/{'now' if there else 'before'}"
        if key not in self._by_key:
            standing = survey.states.get(state, Standing.GONE) if there else Standing.GONE
            pid = survey.servers.get(state, 0) if there else 0
            self._by_key[key] = Belongings(Owner("", state, pid), standing)
        return self._by_key[key]


def gone(found: Iterable[Belongings]) -> list[Belongings]:
    """Those whose owner will never come back."""
    return [each for each in found if each.standing is Standing.GONE]
