"""The runsc binary: which one, whether it works here, and the one command we give it (create)."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isolation.errors import RunscError

OLDEST: Final = 20240401
"""The first release whose EROFS roots and split checkpoints we need (gVisor's change log)."""

_BOUNDS_OVERLAYS: Final = 20250603
"""The first release that takes a size for a root's changes in its own memory."""
_DIES_OF_FREEZING: Final = 20250624
"""From this release on systrap asks its stubs by seccomp notifications. A freezer interrupts those, which leaves the
count of them too high: the sentry's next look finds none (ENOENT) and gives up the process, or the whole sandbox
(gVisor 14c05c175; 4a8eae08b mends half of it)."""
_GUARDS_DESCRIPTORS: Final = 20251215
"""From this release on /proc asks whether one may trace a process before it gives a descriptor of it (gVisor
561ff6d23)."""
_NAMES_AT_RESTORE: Final = 20260619
"""From this release on a restore sets the host name of the sandbox that it goes on in (gVisor 57746fa99)."""
_MAKES_LINKS_ITSELF: Final = 20260710
"""From this release on the links are an argument: what is made before a restore is lost with the kernel that it was
made in (gVisor 6d73c10d7)."""

_CREATE_TIMEOUT_S: Final = 60.0
_FLAGS: Final = (
    "--network=sandbox",
    "--ignore-cgroups",  # the sandbox is born inside ours
    "--host-uds=none",
    "--host-fifo=none",
    "--net-raw=false",
    "--directfs=false",  # roots are EROFS: the sentry need not open host files, nor have the rights to
    "--allow-flag-override=false",  # no annotation changes a flag
)
_OOM_SCORE: Final = 500
"""Who the kernel ends first when the machine has no memory left: a guest, before any server (oom_score_adj)."""
# Enter the groups, then become runsc: whatever it starts is born inside them, and first to go.
_ENTER: Final = (
    f"echo {_OOM_SCORE} > /proc/self/oom_score_adj || exit 125; "
    'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; n=$((n-1)); done; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Runsc:
    """A runsc that was found and understood."""

    path: Path
    release: str
    platform: str = "systrap"

    @property
    def _day(self) -> int:
        return int(self.release[:8])

    @property
    def bounds_overlays(self) -> bool:
        """Whether it bounds what it keeps of a root's changes in memory; others are given a folder of that size.

        Those that do start no gofer for a root of EROFS, and such a one has no use for a folder.
        """
        return self._day >= _BOUNDS_OVERLAYS

    @property
    def bears_freezing(self) -> bool:
        """Whether its sandboxes may be stopped by a cgroup freezer. Those that may not park by themselves when idle."""
        return self._day < _DIES_OF_FREEZING

    @property
    def guards_descriptors(self) -> bool:
        """Whether /proc/PID/fd leads nowhere for who may not trace the process, as it is on Linux."""
        return self._day >= _GUARDS_DESCRIPTORS

    @property
    def names_at_restore(self) -> bool:
        """Whether what is restored has the name of the sandbox that was created for it, not the one that it had."""
        return self._day >= _NAMES_AT_RESTORE

    @property
    def makes_links_itself(self) -> bool:
        """Whether it is told of the network's links and makes them when a sandbox starts or is restored."""
        return self._day >= _MAKES_LINKS_ITSELF

    def command(self, root: Path, *arguments: str) -> list[str]:
        """Its argv for one subcommand, in its own root folder."""
        return [str(self.path), "--root", str(root), f"--platform={self.platform}", *_FLAGS, *arguments]


@dataclass(frozen=True, slots=True)
class Created:
    """What `create` left behind: the sentry's pid and the address of its control server."""

    pid: int
    control_path: str


def candidates(named: str | None, cache: Path) -> list[Path]:
    """Where a runsc may lie, best first: as named, on PATH, where setup puts it."""
    if named:
        return [Path(named)]
    found = [Path(path)] if (path := shutil.which("runsc")) else []
    return [*found, cache / "runsc" / "runsc"]


def parse_version(output: str) -> str:
    """The release in `runsc --version`: "20240729.0" from Debian's and gVisor's own builds alike."""
    match = re.search(r"^runsc version (?:release-|0\.0~)?(\d{8}(?:\.\d+)?)", output, re.MULTILINE)
    if match is None:
        raise RunscError(
            f"cannot tell the release of runsc from {output.strip()[:80]!r}", hint="install an official release"
        )
    return match.group(1)


async def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> tuple[int, str]:
    """Run a helper program to its end: (exit status, its output where stdout is not given)."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
        stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
        stderr=asyncio.subprocess.STDOUT if stderr is None else stderr,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": "/"},
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, (output or b"").decode(errors="replace")


async def find(named: str | None, cache: Path) -> Runsc:
    """The first usable runsc; RunscError says what is wrong with what there is."""
    problems = []
    for path in candidates(named, cache):
        try:
            status, output = await run([str(path), "--version"], timeout=20)
        except (OSError, TimeoutError) as error:
            problems.append(f"{path}: {error or 'no answer within 20 s'}")
            continue
        release = parse_version(output) if status == 0 else ""
        if release and int(release[:8]) >= OLDEST:
            return Runsc(path, release)
        problems.append(f"{path}: {f'release {release} is too old' if release else output.strip()[:200]}")
    raise RunscError(
        "no usable runsc: " + "; ".join(problems),
        hint=f"run `make setup`, or name one of {OLDEST} or newer with ISOBOX_RUNSC",
    )


async def create(
    runsc: Runsc,
    *,
    root: Path,
    bundle: Path,
    container: str,
    cgroups: Sequence[Path],
    stdio: tuple[int, int, int],
    log: Path,
    flags: Sequence[str] = (),
) -> Created:
    """`runsc create`, with flags beyond our own: the sandbox's sentry runs when this returns, PID 1 does not yet."""
    enter = ["/bin/sh", "-c", _ENTER, "sh", str(len(cgroups)), *map(str, cgroups)]
    argv = runsc.command(root, *flags, f"--log={log}", "create", "--bundle", str(bundle), container)
    status, _ = await run([*enter, *argv], timeout=_CREATE_TIMEOUT_S, stdin=stdio[0], stdout=stdio[1], stderr=stdio[2])
    if status != 0:
        raise RunscError(f"runsc create failed ({status}): {_complaint(log)}", hint="run `isobox doctor`")
    return read_state(root)


def read_state(root: Path) -> Created:
    """What runsc wrote about the one sandbox of this root; FileNotFoundError before it has."""
    path = next(root.glob("*.state"), None)
    if path is None:
        raise FileNotFoundError(f"no state file in {root}")
    sandbox = json.loads(path.read_text())["sandbox"]
    return Created(int(sandbox["pid"]), str(sandbox["controlSocketPath"]))


def _complaint(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no message"
    return lines[-1][-400:] if lines else "it left no message"
