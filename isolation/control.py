"""The calls of a sandbox's control server that we use, each with its types.

The protocol is internal to gVisor and changes between releases: everything we know of it is in this module.
Sources: runsc/boot/controller.go, runsc/boot/network.go, pkg/sentry/control/*.go at release-20240729.0.
"""

import base64
import ipaddress
from dataclasses import dataclass
from typing import Any

from isolation import urpc

TESTED_RELEASES = ("20240729.0",)
"""runsc releases that this project's suite has run against."""


def _mask(prefix: str) -> str:
    return base64.b64encode(ipaddress.ip_network(prefix).netmask.packed).decode()


_LOOPBACK = {
    "LoopbackLinks": [
        {
            "Name": "lo",
            "Addresses": [{"Address": "127.0.0.1", "Mask": _mask("127.0.0.0/8")}],
            "Routes": [{"Destination": {"IP": "127.0.0.0", "Mask": _mask("127.0.0.0/8")}}],
        }
    ],
    # Without it the checkpoint of a sandbox with one finished connection is refused.
    "DisconnectOk": True,
}


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """A row of `Processes`."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Control:
    """The control server of one sandbox; every call may raise what `urpc.call` does."""

    path: str
    container: str

    async def _call(self, method: str, argument: object, *, timeout: float = 30.0) -> Any:
        return await urpc.call(self.path, method, argument, timeout=timeout)

    async def create_loopback(self) -> None:
        """Give the network its loopback link; once, before `start_root`. Without it 127.0.0.1 cannot be bound."""
        await self._call("Network.CreateLinksAndRoutes", _LOOPBACK)

    async def start_root(self) -> None:
        """Start PID 1."""
        await self._call("containerManager.StartRoot", self.container)

    async def pause(self) -> None:
        """Stop every task in the sandbox; the guest's clocks go on."""
        await self._call("containerManager.Pause", None)

    async def resume(self) -> None:
        """Let them go on."""
        await self._call("containerManager.Resume", None)

    async def processes(self) -> list[GuestProcess]:
        """What runs inside, threads not counted."""
        rows = await self._call("containerManager.Processes", self.container, timeout=5)
        return [GuestProcess(int(row["pid"]), str(row["cmd"])) for row in rows or []]
