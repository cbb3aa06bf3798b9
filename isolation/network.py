"""How a sandbox gets its link to the outside: what this package needs to be given, whoever makes it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Link:
    """A link for a sentry; `number` is how a later server knows it again.

    `fd` is a packet socket, bound to a device that is the sentry's alone; whoever gets the link closes it.
    """

    number: int
    fd: int
    address: str
    prefix: int
    gateway: str
    mac: str
    gateway_mac: str
    mtu: int


class Links(Protocol):
    """Links for sandboxes, closed to all traffic until somebody opens them."""

    async def lease(self, sandbox: str) -> Link:
        """A link for a sandbox."""

    def rename(self, sandbox: str, name: str) -> None:
        """A sandbox goes by another name from now on."""

    def number(self, sandbox: str) -> int | None:
        """The number of the link that a sandbox has."""

    async def release(self, sandbox: str) -> None:
        """Its sandbox has ended; no error if it had none."""
