"""The calls of a sandbox's control server that we use, each with its types.

The protocol is internal to gVisor and changes between releases: everything we know of it is in this module.
Sources: runsc/boot/controller.go, runsc/boot/network.go, pkg/sentry/control/*.go at release-20240729.0 and
release-20260817.0.
"""

import base64
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from isolation import urpc
from isolation.network import Link

_COPY_TIMEOUT_S: Final = 300.0
_DELIVER_TO_PROCESS: Final = 0  # runsc/boot/controller.go, SignalDeliveryMode


def _mask(prefix: str) -> str:
    return base64.b64encode(ipaddress.ip_network(prefix).netmask.packed).decode()


_LOOPBACK = {
    "Name": "lo",
    "Addresses": [{"Address": "127.0.0.1", "PrefixLen": 8}, {"Address": "::1", "PrefixLen": 128}],
    "Routes": [
        {"Destination": {"IP": "127.0.0.0", "Mask": _mask("127.0.0.0/8")}},
        {"Destination": {"IP": "::1", "Mask": _mask("::1/128")}},
    ],
}
_GSO_MAX: Final = 65536
_QDISC_FIFO: Final = 1


def _links(link: Link | None) -> dict[str, Any]:
    """The argument of CreateLinksAndRoutes: the loopback, and the link to the outside if there is one.

    net.IP travels as text, masks and MAC addresses as base64.
    """
    # Without DisconnectOk the checkpoint of a sandbox with one finished connection is refused.
    found: dict[str, Any] = {"LoopbackLinks": [_LOOPBACK], "DisconnectOk": True}
    if link is None:
        return found
    network = ipaddress.ip_network(f"{link.address}/{link.prefix}", strict=False)
    outside = {
        "Name": "eth0",
        "MTU": link.mtu,
        "Addresses": [{"Address": link.address, "PrefixLen": link.prefix}],
        "Routes": [{"Destination": {"IP": str(network.network_address), "Mask": _mask(str(network))}}],
        "GSOMaxSize": _GSO_MAX,
        "GVisorGSOEnabled": True,
        "GVisorGRO": True,
        "TXChecksumOffload": False,
        "RXChecksumOffload": True,
        "LinkAddress": _mac(link.mac),
        "QDisc": _QDISC_FIFO,
        "Neighbors": [{"IP": link.gateway, "HardwareAddr": _mac(link.gateway_mac)}],
        "NumChannels": 1,
        "ProcessorsPerChannel": 1,
    }
    everywhere = ipaddress.ip_network("0.0.0.0/0")
    destination = {"IP": str(everywhere.network_address), "Mask": _mask(str(everywhere))}
    route = {"Destination": destination, "Gateway": link.gateway}
    return found | {"FDBasedLinks": [outside], "Defaultv4Gateway": {"Route": route, "Name": "eth0"}}


def _mac(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text.replace(":", ""))).decode()


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """A row of `Processes`."""

    pid: int
    command: str
    cpu_time: str
    """As the sentry prints it; good for comparing alone."""


@dataclass(frozen=True, slots=True)
class HostDescriptor:
    """A descriptor of the host's that a process inside has open."""

    pid: int
    command: str
    number: int


@dataclass(frozen=True, slots=True)
class Control:
    """The control server of one sandbox; every call may raise what `urpc.call` does."""

    path: str
    container: str

    async def _call(self, method: str, argument: object, *, fds: Sequence[int] = (), timeout: float = 30.0) -> Any:
        return await urpc.call(self.path, method, argument, fds=fds, timeout=timeout)

    async def create_links(self, link: Link | None, *, by_argument: bool) -> None:
        """Give the network its links; once, before `start_root` or `restore`. Without them nothing can be bound.

        by_argument: they are made at the start or restore (`Runsc.makes_links_itself`).
        """
        method = "containerManager.SetNetworkArgs" if by_argument else "Network.CreateLinksAndRoutes"
        await self._call(method, _links(link), fds=[] if link is None else [link.fd])

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
        return [GuestProcess(int(row["pid"]), str(row["cmd"]), str(row.get("time"))) for row in rows or []]

    async def checkpoint(self, files: Sequence[int]) -> None:
        """Write the sandbox's state to (state, pages' index, pages), all empty; it goes on afterwards.

        RunscError where the sentry refuses; the sandbox goes on then too.
        """
        argument = {
            "key": None,
            "metadata": {"compression": "none"},
            "MemoryFileSaveOpts": {},
            "have_pages_file": True,
            "Resume": True,
        }
        await self._call("containerManager.Checkpoint", argument, fds=files, timeout=_COPY_TIMEOUT_S)

    async def restore(self, files: Sequence[int]) -> None:
        """Instead of `start_root`: go on from what `checkpoint` wrote. All connections end with it."""
        argument = {"HavePagesFile": True, "HaveDeviceFile": False}
        await self._call("containerManager.Restore", argument, fds=files, timeout=_COPY_TIMEOUT_S)

    async def host_descriptors(self) -> list[HostDescriptor]:
        """Host descriptors open inside; PID 1's 0 to 2 are the channel; nothing else is carried over."""
        rows = await self._call("containerManager.ProcfsDump", None)
        return [
            HostDescriptor(int(row["status"]["pid"]), " ".join(row.get("args") or [])[:200], int(each["number"]))
            for row in rows or []
            for each in row.get("fdlist") or []
            if str(each.get("path", "")).startswith("host:")
        ]

    async def start_as_root(
        self, program: int, argv: Sequence[str], *, capabilities: int, stdio: Sequence[int] = ()
    ) -> int:
        """Start a program of the host's (a descriptor) inside, with these as its descriptors from 0 on: its pid.

        One descriptor more than GuestFDs names is taken for the program (pkg/sentry/control/proc.go).
        """
        sets = ("PermittedCaps", "InheritableCaps", "EffectiveCaps", "BoundingCaps", "AmbientCaps")
        argument = {
            "filename": "",
            "argv": list(argv),
            "envv": [],
            "wd": "/",
            "KUID": 0,
            "KGID": 0,
            "Capabilities": {name: capabilities if name != "AmbientCaps" else 0 for name in sets},
            "GuestFDs": list(range(len(stdio))),
            "ContainerID": self.container,
        }
        return int(await self._call("containerManager.ExecuteAsync", argument, fds=[*stdio, program]))

    async def wait(self, pid: int, *, timeout: float) -> int:
        """Wait for the end of what `start_as_root` started: its wait status (0: all went well)."""
        argument = {"PID": pid, "CID": self.container}
        return int(await self._call("containerManager.WaitPID", argument, timeout=timeout))

    async def kill(self, pid: int) -> None:
        """SIGKILL for one process inside."""
        argument = {"CID": self.container, "Signo": 9, "PID": pid, "Mode": _DELIVER_TO_PROCESS}
        await self._call("containerManager.Signal", argument)
