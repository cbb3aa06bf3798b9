"""Control groups, v1, v2 or both: limits, counters and the last resort to end what runs.

What to write where is planned without I/O (`plan`); `Cgroup` does it. In the hybrid layout the controllers are v1's.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isolation.errors import IsolationError
from isolation.memory_events import EventsV1, EventsV2, MemoryEvents
from isolation.spec import Resources

_PERIOD_US: Final = 100_000
_V1: Final = ("cpu", "cpuacct", "memory", "pids", "freezer")
ROOT: Final = "isobox"
"""The group that all sandboxes of the machine lie in: below it a group per owner (common/owners.py), in that the
sandboxes' own. Servers of before lie in it directly."""
_GUESTS_WEIGHT: Final = 25
"""What all guests together weigh against a service's 100 (v2), in percent: a busy machine's server is served first."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each controller is mounted; `unified` alone is set where v2 has them all."""

    unified: Path | None
    v1: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Memory:
    """A group's memory now: bytes in use, those of them that are file cache, host processes, kills by the kernel."""

    usage_bytes: int
    cache_bytes: int
    processes: int
    kernel_kills: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters of one group: CPU seconds, bytes of memory now and at most, OOM kills, host processes."""

    cpu_s: float
    memory_bytes: int
    memory_peak_bytes: int
    oom_kills: int
    processes: int


def parse_mounts(mountinfo: str) -> Layout:
    """The layout as /proc/self/mountinfo tells it."""
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        point = Path(mount.split(" ")[4])
        kind, _, options = rest.partition(" ")
        if kind == "cgroup2":
            unified = point
        elif kind == "cgroup":
            for option in options.split(" ")[-1].split(","):
                if option in _V1:
                    v1.setdefault(option, point)
    return Layout(None if "memory" in v1 else unified, v1 if "memory" in v1 else {})


def detect() -> Layout:
    """The layout of this machine."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text())


def plan(layout: Layout, resources: Resources) -> list[tuple[str, str, str, bool]]:
    """What a new group gets: (controller, file, value, whether a kernel without that file will do)."""
    memory = str(resources.cgroup_memory_bytes)
    quota = str(max(1000, int(resources.cpu * _PERIOD_US)))
    if layout.unified is not None:
        return [
            ("", "cpu.max", f"{quota} {_PERIOD_US}", False),
            ("", "memory.max", memory, False),
            ("", "memory.swap.max", "0", True),
            ("", "memory.oom.group", "1", True),
            ("", "pids.max", str(resources.cgroup_pids), False),
        ]
    return [
        ("cpu", "cpu.cfs_period_us", str(_PERIOD_US), False),
        ("cpu", "cpu.cfs_quota_us", quota, False),
        ("memory", "memory.limit_in_bytes", memory, False),
        # Memory and swap together no more than memory alone: no swap. Absent without swap accounting.
        ("memory", "memory.memsw.limit_in_bytes", memory, True),
        ("pids", "pids.max", str(resources.cgroup_pids), False),
    ]


def plan_root(layout: Layout) -> list[tuple[str, str, str]]:
    """What the group of all sandboxes gets: (controller, file, value)."""
    if layout.unified is not None:
        return [("", "cpu.weight", str(_GUESTS_WEIGHT))]
    return [("cpu", "cpu.shares", str(1024 * _GUESTS_WEIGHT // 100))]


def mounts_of(layout: Layout) -> list[Path]:
    """Where the hierarchies that we use are mounted, each once."""
    mounts = [layout.unified] if layout.unified is not None else list(layout.v1.values())
    return list(dict.fromkeys(mount.resolve() for mount in mounts if mount is not None))


def prepare_root(layout: Layout) -> None:
    """Make the group of all sandboxes; the server and its helpers come before them on the processor."""
    for mount in mounts_of(layout):
        (mount / ROOT).mkdir(exist_ok=True)
    if layout.unified is not None:
        (layout.unified / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    for controller, name, value in plan_root(layout):
        controlled = layout.unified if layout.unified is not None else layout.v1.get(controller)
        if controlled is not None:
            (controlled / ROOT / name).write_text(value)


def groups_below(layout: Layout, parent: str) -> set[str]:
    """Names of the groups in another, in whichever hierarchy."""
    names: set[str] = set()
    for mount in mounts_of(layout):
        with contextlib.suppress(FileNotFoundError):
            names |= {path.name for path in (mount / parent).iterdir() if path.is_dir()}
    return names


def remove_parent(layout: Layout, parent: str) -> bool:
    """Remove an owner's group; False while there is something in it."""
    for mount in mounts_of(layout):
        try:
            (mount / parent).rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return True


class Cgroup:
    """One sandbox's group, in every hierarchy that has a part in it."""

    def __init__(self, layout: Layout, parent: str, name: str) -> None:
        self._layout = layout
        self._parent = parent
        self._folders = (
            {"": layout.unified / parent / name}
            if layout.unified is not None
            else {controller: mount / parent / name for controller, mount in layout.v1.items()}
        )

    @property
    def folders(self) -> list[Path]:
        """Each folder once: v1 mounts cpu and cpuacct together on some machines."""
        return list(dict.fromkeys(path.resolve() for path in self._folders.values()))

    @property
    def exists(self) -> bool:
        """Whether there is such a group, in any hierarchy."""
        return any(folder.exists() for folder in self._folders.values())

    def create(self, resources: Resources) -> None:
        """Make the group and set its limits; IsolationError where the machine has no controller for one."""
        if missing := {"cpu", "memory", "pids"} - set(self._layout.v1) if self._layout.unified is None else set():
            raise IsolationError(
                f"no cgroup controller for {', '.join(sorted(missing))}",
                hint="mount the cgroup file systems (cgroup2 on /sys/fs/cgroup will do) and try again",
            )
        for folder in self.folders:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if self._layout.unified is not None:
                self._delegate(folder.parent)
            folder.mkdir(exist_ok=True)
        self.limit(resources)

    def limit(self, resources: Resources) -> None:
        """Set the limits of a group that exists; IsolationError as `create`."""
        for controller, name, value, optional in plan(self._layout, resources):
            path = self._folders[controller] / name
            try:
                path.write_text(value)
            except OSError as error:
                if not (optional and error.errno in (errno.ENOENT, errno.EACCES, errno.EOPNOTSUPP)):
                    raise IsolationError(
                        f"cannot set {name}: {error.strerror}", hint="run `isobox doctor`; it checks the cgroups"
                    ) from error

    def _delegate(self, parent: Path) -> None:
        root = self._layout.unified
        assert root is not None
        for folder in [root, *(root / part for part in _ancestors(parent.relative_to(root)))]:
            (folder / "cgroup.subtree_control").write_text("+cpu +memory +pids")

    def processes(self) -> set[int]:
        """Host pids in the group."""
        found: set[int] = set()
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError, OSError):
                found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
        return found - {0}

    def kill(self) -> None:
        """SIGKILL to all that is in the group now, thawed so that they notice."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.thaw()

    def yield_to_others(self, yielding: bool) -> None:
        """Take the processor only when others leave it (or, again, a fair part of it)."""
        with contextlib.suppress(FileNotFoundError):
            if self._layout.unified is not None:
                (self._folders[""] / "cpu.weight").write_text("5" if yielding else "100")
            else:
                (self._folders["cpu"] / "cpu.shares").write_text("51" if yielding else "1024")

    @property
    def can_freeze(self) -> bool:
        """Whether this machine has a freezer."""
        return self._layout.unified is not None or "freezer" in self._folders

    def freeze(self) -> None:
        """Stop every process in the group: no CPU, memory kept, clocks go on. Nothing where there is no freezer."""
        self._set_frozen(True)

    def thaw(self) -> None:
        """Let them go on."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the group has ended
            if self._layout.unified is not None:
                (self._folders[""] / "cgroup.freeze").write_text("1" if frozen else "0")
            elif (folder := self._folders.get("freezer")) is not None:
                (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def remove(self) -> bool:
        """Remove the group; False while something still ends in it."""
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                raise
        return True

    def memory_events(self, notice: Callable[[], None]) -> MemoryEvents:
        """Call notice when the memory passes a threshold or the kernel kills for want of it; OSError."""
        if self._layout.unified is not None:
            return EventsV2(self._folders[""], notice)
        return EventsV1(self._folders["memory"], notice)

    def memory(self) -> Memory:
        """The memory now; zeros where the group is gone."""
        unified = self._layout.unified is not None
        folder = self._folders["" if unified else "memory"]
        usage, kills = (
            ("memory.current", "memory.events") if unified else ("memory.usage_in_bytes", "memory.oom_control")
        )
        stat = _fields(folder / "memory.stat")
        return Memory(
            usage_bytes=_number(folder / usage),
            cache_bytes=stat.get("active_file", 0) + stat.get("inactive_file", 0),
            processes=_number(self._folders["" if unified else "pids"] / "pids.current"),
            kernel_kills=_field(folder / kills, "oom_kill"),
        )

    def usage(self) -> Usage:
        """The counters now; zeros where the kernel keeps none."""
        if self._layout.unified is not None:
            folder = self._folders[""]
            return Usage(
                cpu_s=_field(folder / "cpu.stat", "usage_usec") / 1e6,
                memory_bytes=_number(folder / "memory.current"),
                memory_peak_bytes=_number(folder / "memory.peak"),
                oom_kills=_field(folder / "memory.events", "oom_kill"),
                processes=_number(folder / "pids.current"),
            )
        memory = self._folders["memory"]
        return Usage(
            cpu_s=_number(self._folders.get("cpuacct", memory) / "cpuacct.usage") / 1e9,
            memory_bytes=_number(memory / "memory.usage_in_bytes"),
            memory_peak_bytes=_number(memory / "memory.max_usage_in_bytes"),
            oom_kills=_field(memory / "memory.oom_control", "oom_kill"),
            processes=_number(self._folders["pids"] / "pids.current"),
        )


def _ancestors(path: Path) -> Iterable[Path]:
    return [path.__class__(*path.parts[: i + 1]) for i in range(len(path.parts))]


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _field(path: Path, name: str) -> int:
    return _fields(path).get(name, 0)


def _fields(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdecimal()}
