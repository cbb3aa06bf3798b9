"""Bytes from one socket to another, through a pipe of the kernel's: they are never copied into this process."""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final

_PIECE: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_SPLICE_F_NONBLOCK: Final = 2
_TURN: Final = 8 << 20
"""Bytes after which others have a turn."""


def reset(connection: socket.socket) -> None:
    """Close a connection so that its other end is told at once, and nothing more is delivered."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def together(*several: Coroutine[Any, Any, None]) -> None:
    """All of them to their ends; one that fails takes the others with it, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in several:
                group.create_task(each, name="direction")
    except BaseExceptionGroup as failed:
        error: BaseException = failed
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _until(add: Callable[..., None], remove: Callable[[int], object], fd: int) -> None:
    ready = asyncio.get_running_loop().create_future()

    def is_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, is_ready)
    try:
        await ready
    finally:
        remove(fd)


async def pump(source: socket.socket, target: socket.socket, count: Callable[[int], None]) -> None:
    """Pass on what comes until its end, which is passed on too; OSError when either side breaks."""
    loop = asyncio.get_running_loop()
    into, out = source.fileno(), target.fileno()
    drain, fill = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with contextlib.suppress(PermissionError):  # beyond what a user may have in pipes: slower, no worse
            fcntl.fcntl(fill, _F_SETPIPE_SZ, _PIECE)
        turn = _TURN
        while True:
            try:
                size = os.splice(into, fill, _PIECE, flags=_SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await _until(loop.add_reader, loop.remove_reader, into)
                continue
            if not size:
                break
            count(size)
            turn -= size
            while size:
                try:
                    size -= os.splice(drain, out, size, flags=_SPLICE_F_NONBLOCK)
                except BlockingIOError:
                    await _until(loop.add_writer, loop.remove_writer, out)
            if turn <= 0:
                turn = _TURN
                await asyncio.sleep(0)
    finally:
        os.close(drain)
        os.close(fill)
    with contextlib.suppress(OSError):  # it has gone altogether
        target.shutdown(socket.SHUT_WR)
