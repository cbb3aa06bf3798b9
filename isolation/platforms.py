"""Which of gVisor's platforms works here: tried for real, within a bound.

/dev/kvm is no proof: where it is paravirtual a sandbox on it hangs for ever.
"""

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from isolation.errors import RunscError
from isolation.runsc import Runsc

PROBE_TIMEOUT_S: Final = 15.0
_PREFERENCE: Final = ("systrap", "kvm", "ptrace")


async def works(runsc: Runsc, platform: str) -> str | None:
    """Run `true` in a sandbox on that platform; None when it works, else why not."""
    with tempfile.TemporaryDirectory(prefix="isobox-probe-") as root:
        candidate = replace(runsc, platform=platform)
        argv = [*candidate.command(Path(root)), "--network=none", "do", "/bin/true"]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return f"a sandbox on it did not end within {PROBE_TIMEOUT_S:g} s"
        finally:
            for pid in _family(root):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await process.wait()
        return (
            None if process.returncode == 0 else output.decode(errors="replace").strip()[-300:] or "it failed silently"
        )


def _family(root: str) -> list[int]:
    """The probe and what it started: known by the probe's own root folder in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if root.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
    return found


async def choose_platform(runsc: Runsc, wanted: str, *, memory: Path | None = None) -> Runsc:
    """The runsc with a platform that works: the wanted one, or with `auto` the first that does.

    memory is a file where the answer is kept for this runsc, this kernel and this boot: a restart need not ask again.
    """
    known = _circumstances(runsc, wanted)
    if memory is not None and (platform := _recall(memory, known)) is not None:
        return replace(runsc, platform=platform)
    found = await _choose(runsc, wanted)
    if memory is not None:
        partial = memory.with_name(f"{memory.name}.{os.getpid()}")
        partial.write_text(json.dumps({"known": known, "platform": found.platform}))
        partial.rename(memory)
    return found


def _circumstances(runsc: Runsc, wanted: str) -> list[str]:
    file = runsc.path.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [str(runsc.path.resolve()), str(file.st_mtime_ns), str(file.st_size), wanted, os.uname().release, boot]


def _recall(memory: Path, known: list[str]) -> str | None:
    try:
        kept = json.loads(memory.read_text())
        return str(kept["platform"]) if kept["known"] == known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _choose(runsc: Runsc, wanted: str) -> Runsc:
    problems = []
    for platform in _PREFERENCE if wanted == "auto" else (wanted,):
        if (problem := await works(runsc, platform)) is None:
            return replace(runsc, platform=platform)
        problems.append(f"{platform}: {problem}")
    raise RunscError(
        f"{runsc.path} runs no sandbox on this machine: {'; '.join(problems)}",
        hint="run `isobox doctor`; ISOBOX_PLATFORM chooses another platform, ISOBOX_RUNSC another runsc",
    )
