"""The OCI runtime spec of a sandbox. No I/O, and nothing a tenant sends becomes an annotation or a flag."""

from dataclasses import dataclass
from typing import Any, Final

INIT_PATH: Final = "/.isobox/init"
ROOT_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_SETFCAP",
)
"""What root inside has: enough for apt, dpkg, useradd and chown."""

_HEADROOM_MB: Final = 256
_INIT_CAPABILITIES: Final = (*ROOT_CAPABILITIES, "CAP_SETPCAP")
"""What PID 1 has: by one that root inside has not, root may not trace it."""

_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one sandbox may use: cores, MiB of memory, MiB of disk (which is memory-backed), processes per user.

    namespaces: whether programs inside may create namespaces, and so gain every capability in those. It cannot be
    changed after the sandbox, or the one that it is a copy of, has started.
    """

    cpu: float
    memory_mb: int
    disk_mb: int
    pids: int
    namespaces: bool = False

    @property
    def cgroup_memory_bytes(self) -> int:
        """The bound of the memory cgroup, where the kernel kills: the last resort (see `memory_guard`).

        The root's changes live in memory too, and a full disk must not be an OOM. The rest is what a guest may take
        while its largest process is being killed.
        """
        return (self.memory_mb + self.disk_mb + _HEADROOM_MB) << 20

    @property
    def cgroup_pids(self) -> int:
        """A backstop: a full pids cgroup panics the sentry, and each guest process is two host processes."""
        return int(self.pids * 2.5) * 2 + 256


DEFAULT: Final = Resources(cpu=2.0, memory_mb=1024, disk_mb=1024, pids=512)
"""What a sandbox gets that asks for nothing."""


@dataclass(frozen=True, slots=True)
class Node:
    """A character device of the host's that is shown inside."""

    path: str
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder of the host's that is shown inside, read-only."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a sandbox has of the host's beyond its share of processor and memory, and the runsc flags that this takes.

    One that has any cannot be copied: a checkpoint does not hold what lies here.
    """

    nodes: tuple[Node, ...] = ()
    binds: tuple[Bind, ...] = ()
    flags: tuple[str, ...] = ()


BARE: Final = Equipment()
"""Nothing: what almost all sandboxes have."""


def oci_spec(
    *,
    hostname: str,
    root: str,
    image: str,
    overlay: str | None,
    resources: Resources,
    equipment: Equipment = BARE,
    hides_descriptors: bool = False,
) -> dict[str, Any]:
    """The spec of one sandbox.

    root is an empty folder, image the EROFS file that covers it. Changes lie in the folder overlay, whose size bounds
    them; None: in the sentry's memory, for a runsc that bounds them itself. hides_descriptors: PID 1 is to cover the
    places where its descriptors are found, for a runsc whose /proc gives them to root.
    """
    capabilities = [*_INIT_CAPABILITIES, *(["CAP_SYS_ADMIN"] if hides_descriptors else [])]
    if overlay is None:
        changes = {"overlay": "memory", "options": f"size={resources.disk_mb}m"}
    else:
        changes = {"overlay": f"dir={overlay}"}
    binds = [
        {"destination": each.target, "type": "bind", "source": each.source, "options": ["ro", "nosuid", "nodev"]}
        for each in equipment.binds
    ]
    nodes = [
        {
            "path": each.path,
            "type": "c",
            "major": each.major,
            "minor": each.minor,
            "fileMode": 0o666,
            "uid": 0,
            "gid": 0,
        }
        for each in equipment.nodes
    ]
    shm_mb = max(16, resources.memory_mb // 2)
    private = ["nosuid", "nodev", "mode=1777", f"size={shm_mb}m"]
    return {
        "ociVersion": "1.0.2",
        "hostname": hostname,
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [INIT_PATH],
            # Not an argument: those must be the same in a copy, of an older server too (gVisor, restore.go).
            "env": ["NAMESPACES=1"] if resources.namespaces else [],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {
                # PID 1 empties its bounding set at once. What root gains by an exec is then what PID 1 lets it
                # inherit, and nobody else inherits anything: a setuid program gains nothing (capabilities(7)).
                # CAP_SYS_ADMIN, where PID 1 has it, goes before anything else is started (init.c: hide).
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": list(ROOT_CAPABILITIES),
                "ambient": [],
            },
            # RLIMIT_NPROC is set by PID 1 for each exec: PID 1 itself must always be able to start one.
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 65536, "hard": 65536},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        },
        "root": {"path": root, "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=1m"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": [*private, "noexec"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": private},
            *binds,
        ],
        "annotations": {
            "dev.gvisor.spec.rootfs.type": "erofs",
            "dev.gvisor.spec.rootfs.source": image,
            **{f"dev.gvisor.spec.rootfs.{name}": value for name, value in changes.items()},
        },
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            **({"devices": nodes} if nodes else {}),
        },
    }
