"""Processes by pidfd: a reused pid is never mistaken for the one that was meant."""

import asyncio
import contextlib
import os
import select
import signal
from pathlib import Path
from typing import Final

_GENERATIONS: Final = 8


class Process:
    """A process that is not our child. Close it when done."""

    def __init__(self, pid: int, *, start_time: int | None = None) -> None:
        """ProcessLookupError if there is no such process, or not the one that started at start_time."""
        self.pid = pid
        self._waiters: set[asyncio.Future[None]] = set()
        self.fd = os.pidfd_open(pid)
        self.start_time = _start_time(pid)
        if self.start_time is None or start_time not in (None, self.start_time):
            os.close(self.fd)
            raise ProcessLookupError(pid)

    def kill(self) -> None:
        """SIGKILL; no error if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        """Whether it has ended (a zombie has)."""
        poll = select.poll()  # select(2) knows no descriptor beyond 1023
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> None:
        """Wait for its end; any number may."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._waiters.add(done)
        loop.add_reader(self.fd, self._resolve)  # one reader a descriptor: it resolves all of them
        try:
            await done
        finally:
            self._waiters.discard(done)
            if not self._waiters:
                loop.remove_reader(self.fd)

    def _resolve(self) -> None:
        for done in self._waiters:
            if not done.done():
                done.set_result(None)

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self.fd)


def _start_time(pid: int) -> int | None:
    """Clock ticks after boot, field 22 of /proc/PID/stat; None if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError):
        return None


def ancestors(thread: int) -> set[int]:
    """The process of a thread and those above it; what has ended meanwhile is left out."""
    found: set[int] = set()
    current = thread
    while current > 1 and len(found) < _GENERATIONS:
        try:
            lines = Path(f"/proc/{current}/status").read_text().splitlines()
        except OSError:
            break
        facts = dict(line.split(":\t", 1) for line in lines if line.startswith(("Tgid:", "PPid:")))
        found.add(int(facts["Tgid"]))
        current = int(facts["PPid"])
    return found
