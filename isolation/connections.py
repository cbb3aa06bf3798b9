"""Connections to ports inside a sandbox, made by PID 1 to its loopback: no network is needed, nor used.

In a copy of the sandbox they do not go on: its PID 1 is told to close them, and the guest's end sees the end.
"""

import errno
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from isolation.channel.frames import StartFlag, encode_request
from isolation.channel.inbox import Inbox
from isolation.channel.link import GuestExec, Link, StartFailed
from isolation.errors import IsolationError, SandboxGone

_DIAL_TIMEOUT_S: Final = 10.0
_LISTENING: Final = re.compile(
    r"^ *\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A ", re.MULTILINE
)


class PortClosed(IsolationError):
    """Nothing listens on the port."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that something listens on; address as the guest has it ("127.0.0.1", "0.0.0.0", "::")."""

    port: int
    address: str


class Connection:
    """A connection; `dial` makes it."""

    def __init__(self, link: Link, guest: GuestExec, inbox: Inbox) -> None:
        self._link = link
        self._guest = guest
        self._pieces = inbox.pieces(link, guest)

    async def receive(self) -> bytes:
        """What came; b"" at its end."""
        try:
            return await anext(self._pieces)
        except (StopAsyncIteration, SandboxGone):
            return b""

    async def send(self, data: bytes) -> bool:
        """Send, as fast as the other side takes it; False if it takes no more."""
        return await self._link.write_input(self._guest, data)

    def end(self) -> None:
        """Nothing more will be sent."""
        if not self._guest.account.input.closed and not self._guest.complete.done():
            self._link.end_input(self._guest)


@asynccontextmanager
async def dial(link: Link, where: int | str) -> AsyncIterator[Connection]:
    """Connect to 127.0.0.1:PORT inside, or to the abstract address of that name; PortClosed where nothing listens.

    Closed at the end of the block.
    """
    inbox = Inbox()
    argv = [str(where).encode() if isinstance(where, int) else f"@{where}".encode()]
    request = encode_request(user="0", cwd="", argv=argv, env={})
    try:
        guest = await link.start(inbox, request, flags=StartFlag.DIAL, timeout=_DIAL_TIMEOUT_S)
    except StartFailed as error:
        if error.errno == errno.ECONNREFUSED:
            raise PortClosed(
                f"nothing listens on port {where}", hint="start the server first, or wait for it"
            ) from error
        raise
    try:
        yield Connection(link, guest, inbox)
    finally:
        if not guest.complete.done():
            link.abandon(guest)
        else:
            link.forget(guest)


def listening(proc_net: str) -> list[Listener]:
    """What the guest's /proc/net/tcp and tcp6 tell of listeners (proc(5)); other lines are left out. No I/O."""
    found = {
        Listener(int(port, 16), _address(bytes.fromhex(address))) for address, port in _LISTENING.findall(proc_net)
    }
    return sorted(found, key=lambda each: (each.port, each.address))


def _address(raw: bytes) -> str:
    # Words of four bytes, each little-endian.
    return str(ip_address(b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))))
