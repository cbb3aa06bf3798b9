"""A sandbox's changes to its image, as an image layer, and back: guest/layer.c does it, inside.

The program is ours and comes by descriptor. What it prints is the guest's word all the same: bytes, bounded, that no
host ever unpacks; they go into another sandbox, where they may do what its own root may.
"""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from isolation.control import Control
from isolation.errors import CheckpointRefused, DiskFull, IsolationError, SnapshotUnusable

_PIECE: Final = 1 << 20
_WORDS_MAX: Final = 4096
_TIMEOUT_S: Final = 300.0
_LOOK_MS: Final = 200
_CAPABILITIES: Final = sum(1 << n for n in (0, 1, 3, 4))  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID (capability.h)


class _TooLarge(Exception):
    """More than was allowed."""


async def save(control: Control, program: Path, names: Path, since: int, target: int, *, most: int) -> None:
    """Write what changed since the image was made (seconds since the epoch) into target, at most that many bytes.

    names is a file with the base image's names as guest/layer.c reads them. Programs inside go on meanwhile: of a file
    that is being written, any moment's bytes may be in the layer. CheckpointRefused with the reason; DiskFull.
    """
    listing = os.open(names, os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = await _run(control, program, ["save", str(since)], listing, target, most)
    except _TooLarge as error:
        raise CheckpointRefused(
            f"the changed files are more than {most >> 20} MiB", hint="delete what need not be kept (sparse files?)"
        ) from error
    except OSError as error:
        raise DiskFull(f"the layer cannot be written: {error.strerror}", hint="see the disk") from error
    finally:
        os.close(listing)
    if words is not None:
        raise CheckpointRefused(f"the files could not be saved: {words}", hint="try again")


async def apply(control: Control, program: Path, source: int) -> None:
    """Lay a layer over a sandbox's files; SnapshotUnusable if it does not fit."""
    words = await _run(control, program, ["apply"], source, None, 0)
    if words is not None:
        raise SnapshotUnusable(f"the files could not be laid out: {words}", hint="give the sandbox a larger disk_mb")


async def _run(
    control: Control, program: Path, arguments: Sequence[str], source: int, target: int | None, most: int
) -> str | None:
    """Run it from source to target: None, or what it says of its failure."""
    guest_in, to_guest = os.pipe()
    from_guest, guest_out = os.pipe()
    words, guest_err = os.pipe()
    binary = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stdio = (guest_in, guest_out, guest_err)
        argv = ["isobox-layer", *arguments]
        pid = await control.start_as_root(binary, argv, capabilities=_CAPABILITIES, stdio=stdio)
    except BaseException:
        _close(to_guest, from_guest, words)
        raise
    finally:
        _close(binary, guest_in, guest_out, guest_err)
    over = threading.Event()
    try:
        _, drained, status = await asyncio.gather(
            asyncio.to_thread(_feed, source, to_guest, over),
            asyncio.to_thread(_drain, from_guest, target, most, over),
            _ended(control, pid, over),
            return_exceptions=True,
        )
        if isinstance(status, BaseException):
            raise status
        if isinstance(drained, BaseException):
            raise drained
        os.set_blocking(words, False)
        return _read(words) if status else None
    except BaseException:
        # Whoever has its ends of the pipes, the threads come to their ends.
        over.set()
        with contextlib.suppress(IsolationError, TimeoutError):
            await control.kill(pid)
        raise
    finally:
        _close(words)


async def _ended(control: Control, pid: int, over: threading.Event) -> int:
    """Its wait status. Root inside may stop it: then nobody waits for its bytes any more either."""
    try:
        return await control.wait(pid, timeout=_TIMEOUT_S)
    except BaseException:
        over.set()
        raise


def _feed(source: int, to_guest: int, over: threading.Event) -> None:
    offset = 0
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended: its status tells why
            while _is_ready(to_guest, select.POLLOUT, over):
                with contextlib.suppress(BlockingIOError):
                    n = os.splice(source, to_guest, _PIECE, offset_src=offset, flags=os.SPLICE_F_NONBLOCK)
                    if not n:
                        return
                    offset += n
    finally:
        os.close(to_guest)


def _drain(from_guest: int, target: int | None, most: int, over: threading.Event) -> None:
    try:
        for piece in _pieces(from_guest, target, over):
            most -= piece
            if most < 0:
                raise _TooLarge
    finally:
        os.close(from_guest)


def _pieces(from_guest: int, target: int | None, over: threading.Event) -> Iterator[int]:
    while _is_ready(from_guest, select.POLLIN, over):
        n = os.splice(from_guest, target, _PIECE) if target is not None else len(os.read(from_guest, _PIECE))
        if not n:
            return
        yield n


def _is_ready(pipe: int, wanted: int, over: threading.Event) -> bool:
    """Wait until a pipe's other end has moved; False once it is over."""
    poll = select.poll()
    poll.register(pipe, wanted)
    while not over.is_set():
        if poll.poll(_LOOK_MS):
            return True
    return False


def _read(words: int) -> str:
    with contextlib.suppress(BlockingIOError):
        return os.read(words, _WORDS_MAX).decode(errors="replace").strip()[:500] or "it gave no reason"
    return "it gave no reason"


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
