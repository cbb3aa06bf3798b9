"""gVisor's uRPC: JSON calls with file descriptors over a Unix stream socket.

One JSON object per call, answered by one; descriptors ride on the first sendmsg. A connection serves one call at a
time, so each call has a connection of its own (0.1 ms). Source: gVisor pkg/urpc/urpc.go.
"""

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any, Final

from common.unixsocket import address
from isolation.errors import RunscError, SandboxGone

MAX_FDS: Final = 128
_ANSWER_MAX: Final = 16 << 20


def _answer(raw: bytes | bytearray) -> dict[str, Any] | None:
    """The call's answer, or None while it is not whole."""
    try:
        answer = json.loads(raw)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


async def call(path: str, method: str, argument: object, *, fds: Sequence[int] = (), timeout: float = 30.0) -> Any:
    """Call method on the control server at path and return its result.

    Raises RunscError with the first line of the sentry's own words (they carry stacks of 100 KiB), SandboxGone when
    nobody listens any more, TimeoutError after timeout seconds.
    """
    if len(fds) > MAX_FDS:
        raise ValueError(f"{len(fds)} descriptors in one call; uRPC takes {MAX_FDS}")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            async with asyncio.timeout(timeout):
                with address(path) as short:
                    await loop.sock_connect(connection, short)
                message = json.dumps({"method": method, "arg": argument}).encode()
                if fds:
                    sent = socket.send_fds(connection, [message], list(fds))
                    message = message[sent:]
                await loop.sock_sendall(connection, message)
                raw = bytearray()
                while (answer := _answer(raw)) is None:
                    piece = await loop.sock_recv(connection, 1 << 16)
                    if not piece or len(raw) > _ANSWER_MAX:
                        raise SandboxGone(f"the control server closed during {method}")
                    raw += piece
        except (ConnectionError, FileNotFoundError) as error:
            raise SandboxGone(f"the control server does not answer {method}: {error}") from error
    if not answer.get("success"):
        raise RunscError(f"{method}: {str(answer.get('err')).partition(chr(10))[0][:500]}")
    return answer.get("result")
