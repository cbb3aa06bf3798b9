"""A process on this terminal: its output live, our input and signals to it, its exit code ours."""

import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from isobox import Event, Process, Sandbox
from isobox.cli.say import complain, note
from isobox.errors import IsoboxError

_REFUSALS_SHOWN = 3


def run(sandbox: Sandbox, argv: list[str], **options: Any) -> int:
    """Run and follow; stdin is passed on unless it is a terminal."""
    options = {name: value for name, value in options.items() if value is not None}
    feed = not sys.stdin.isatty()
    process = sandbox.start(*argv, stdin=feed, **options)
    if feed:
        threading.Thread(target=_feed, args=(process,), daemon=True).start()
    with _forwarding(process):
        return _show(iter(process))


def replay(process: Process, *, follow: bool) -> int:
    """Print what there is, or with follow all there will be."""
    if follow:
        return _show(iter(process))
    for name, target in (("stdout", sys.stdout.buffer), ("stderr", sys.stderr.buffer)):
        offset = 0
        while piece := process.output(name, offset=offset):
            target.write(piece)
            offset += len(piece)
        target.flush()
    return 0


def _show(events: Iterator[Event]) -> int:
    code = 1
    refusals: dict[str, str] = {}
    for event in events:
        if event.type == "stdout":
            sys.stdout.buffer.write(event.data)
            sys.stdout.buffer.flush()
        elif event.type == "stderr":
            sys.stderr.buffer.write(event.data)
            sys.stderr.buffer.flush()
        elif event.type == "gap":
            note(f"[isobox: {sum(event.info['omitted'].values())} bytes of output were dropped]")
        elif event.type == "error" and event.info["kind"] in ("timeout", "oom", "sandbox", "start"):
            complain(event.info["message"])
            if event.info["hint"]:
                note(f"        {event.info['hint']}")
        elif event.type == "network":
            refusals[event.info["reason"]] = event.info["hint"]
        elif event.type == "exit":
            outcome = event.info["outcome"]
            code = outcome["exit_code"] if outcome["exit_code"] is not None else 1
    if code:
        _tell_refusals(refusals)
    return code


def _tell_refusals(refusals: dict[str, str]) -> None:
    """Name what the network policy refused a command that failed: the command itself seldom does."""
    for reason, hint in list(refusals.items())[:_REFUSALS_SHOWN]:
        complain(f"network: {reason}")
        if hint:
            note(f"        {hint}")
    if len(refusals) > _REFUSALS_SHOWN:
        note(f"        and {len(refusals) - _REFUSALS_SHOWN} more: isobox net log ID")


def _feed(process: Process) -> None:
    with suppress(IsoboxError, OSError):  # it has ended: its exit says so
        while piece := os.read(sys.stdin.fileno(), 1 << 16):
            process.write(piece)
        process.close_stdin()


@contextmanager
def _forwarding(process: Process) -> Iterator[None]:
    """Ctrl-C and a polite end go to the process."""

    def forward(number: int, _: FrameType | None) -> None:
        with suppress(IsoboxError):
            process.signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminal(sandbox: Sandbox, argv: list[str], options: dict[str, Any]) -> int:
    """Run on a terminal of the sandbox's, this one being its window."""
    size = shutil.get_terminal_size()
    process = sandbox.start(*argv, pty={"rows": size.lines, "cols": size.columns}, **options)
    done = threading.Event()
    keys = threading.Thread(target=_type, args=(process, done), daemon=True)
    with _raw_mode():
        keys.start()
        code = _show(iter(process))
        done.set()
    return code


def _type(process: Process, done: threading.Event) -> None:
    with suppress(IsoboxError, OSError):
        while not done.is_set():
            if select.select([sys.stdin], [], [], 0.1)[0]:
                process.write(os.read(sys.stdin.fileno(), 4096))


@contextmanager
def _raw_mode() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
