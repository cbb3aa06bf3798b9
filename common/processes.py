"""Processes of this machine as /proc shows them: which are helpers of ours, whose, and who has an address.

A helper (keeper, gateway, process of lazy images) names its owner in its arguments. `recognise` is pure.
"""

import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEEPER: Final = "keeper"
GATEWAY: Final = "gateway"
LAZY: Final = "lazy images"
_PROGRAMS: Final = {"netpolicy.gateway.process": GATEWAY, "fs.lazy.process": LAZY}
_LOGS: Final = {KEEPER: "keeper.log", GATEWAY: "gateway.log", LAZY: "lazy/lazy.log"}
_ENDS_WITHIN_S: Final = 10.0
_ROOT_FLAG: Final = re.compile(r"--?root=")
_ROOT: Final = re.compile(r"(.+)/run/(sbx[a-z2-7]{26})/runsc")


@dataclass(frozen=True, slots=True)
class Helper:
    """A process that serves a state directory; owner and state are '' where its arguments do not tell (older ones)."""

    pid: int
    kind: str
    owner: str = ""
    state: str = ""


def recognise(pid: int, argv: Sequence[str]) -> Helper | None:
    """Tell by its arguments what a process is; None for one that is not a helper of ours."""
    program = next((n for n, argument in enumerate(argv) if argument.endswith("/keeper_process.py")), None)
    if program is not None and len(argv) > program + 1:
        path = Path(argv[program + 1])
        owner = argv[program + 2] if len(argv) > program + 2 else ""
        return Helper(pid, KEEPER, owner, str(path.parent)) if path.name == "keeper.sock" else None
    if len(argv) < 3 or argv[-3] != "-c":
        return None
    kind = next((kind for module, kind in _PROGRAMS.items() if f"from {module} import main" in argv[-2]), None)
    try:
        settings = json.loads(argv[-1])
        if kind is None or not isinstance(settings, dict):
            return None
        state = str(Path(settings["folder"]).parent) if kind == LAZY else str(settings.get("state", ""))
        return Helper(pid, kind, str(settings.get("owner", "")), state)
    except (ValueError, KeyError, TypeError):
        return None


def sandbox_of(argv: Sequence[str]) -> tuple[str, str] | None:
    """Tell by its arguments which (state directory, sandbox) a runsc, a sentry or a gofer works for."""
    for name, value in itertools.pairwise(argv):  # --root X, or --root=X
        named = value if name in ("-root", "--root") else value.partition("=")[2] if _ROOT_FLAG.match(value) else ""
        if (match := _ROOT.fullmatch(named)) is not None:
            return match[1], match[2]
    return None


def arguments(pid: int) -> list[str]:
    """The arguments of a process; none where it has ended, or is the kernel's."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.removesuffix(b"\0").decode(errors="surrogateescape").split("\0") if raw else []


def _pids() -> Iterator[int]:
    own = _namespace("self")
    for name in os.listdir("/proc"):
        # Of a container's processes we see neither the files nor the network that they mean.
        if name.isdecimal() and _namespace(name) == own:
            yield int(name)


def _namespace(name: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{name}/ns/pid")
    return ""


def helpers() -> list[Helper]:
    """All helpers on this machine, of whatever owner and version."""
    found = []
    for pid in _pids():
        helper = recognise(pid, arguments(pid))
        if helper is not None:
            found.append(_located(helper))
    return found


def _located(helper: Helper) -> Helper:
    """With its state directory, which a gateway of before shows by the log that it writes to."""
    if helper.state:
        return helper
    with contextlib.suppress(OSError):
        log = os.readlink(f"/proc/{helper.pid}/fd/1").removesuffix(" (deleted)")
        if log.endswith("/" + _LOGS[helper.kind]):
            return Helper(helper.pid, helper.kind, helper.owner, log.removesuffix("/" + _LOGS[helper.kind]))
    return helper


def anchored(helper: Helper) -> bool:
    """Tell whether the state directory that a helper names is still the one that it was started in.

    Its log lies there. Of a process that has just ended, or that we may not look into, the answer is yes.
    """
    try:
        log = os.stat(f"/proc/{helper.pid}/fd/1")
    except OSError:
        return True
    try:
        return os.path.samestat(log, os.stat(Path(helper.state) / _LOGS[helper.kind]))
    except OSError:
        return False


def end(kind: str, owner: str) -> None:
    """End all helpers of a kind that an owner has, and wait for that."""
    for helper in helpers():
        if (helper.kind, helper.owner) == (kind, owner):
            kill(helper)


def kill(helper: Helper) -> None:
    """SIGKILL, if it is still that process, and wait until it has ended; TimeoutError."""
    try:
        fd = os.pidfd_open(helper.pid)
    except ProcessLookupError:
        return
    try:
        now = recognise(helper.pid, arguments(helper.pid))
        if now is None or (now.kind, now.owner) != (helper.kind, helper.owner):
            return  # it has ended, and its number is another's
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(_ENDS_WITHIN_S * 1000):
            raise TimeoutError(f"the {helper.kind} {helper.pid} does not end")
    finally:
        os.close(fd)


def state_locks() -> dict[str, int]:
    """State directories that a server of any version has locked (their file `lock`), and its process."""
    found: dict[str, int] = {}
    pids = {pid for line in _lines("/proc/locks") if (pid := _flock_pid(line))}
    for pid in pids:
        files = _open_files(pid)
        for path in files:
            state = path.removesuffix("/lock")
            if state != path and f"{state}/isobox.db" in files:
                found[state] = pid
    return found


def _flock_pid(line: str) -> int:
    """The process in a line of /proc/locks (proc_locks(5)); 0 for other kinds of lock, and for those that wait."""
    words = line.split()
    return int(words[4]) if len(words) > 4 and words[1:4] == ["FLOCK", "ADVISORY", "WRITE"] else 0


def _open_files(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}").removesuffix(" (deleted)"))
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def holder(kind: str, host: str, port: int) -> str | None:
    """Who has a local IPv4 address, kind "tcp" or "udp": "name (pid N)"; None where nobody is seen to."""
    names = {f"{socket.inet_aton(each)[::-1].hex().upper()}:{port:04X}" for each in (host, "0.0.0.0")}  # noqa: S104
    table = [line.split() for line in _lines(f"/proc/net/{kind}")[1:]]
    sockets = {f"socket:[{words[9]}]" for words in table if len(words) > 9 and words[1] in names}
    for pid in _pids() if sockets else ():
        if sockets & _open_files(pid):
            helper = recognise(pid, arguments(pid))
            if helper is not None:
                return f"the {helper.kind} (pid {pid}) of {_located(helper).state or 'an unknown state directory'}"
            return f"{' '.join(arguments(pid)[:3])[:120] or 'a process'} (pid {pid})"
    return None
