"""The network of this machine's sandboxes, and the log of what was let through or refused, one for each sandbox."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from common import addresses
from common.owners import Claim
from common.text import clean_json
from common.turns import turn_budget
from isolation.execlog import Event, EventType, LogReader, LogWriter
from isolation.network import Link
from netpolicy.errors import NetworkUnavailable
from netpolicy.network import Egress, Network, open_network
from netpolicy.plan import GATEWAY_MAC, GUEST_MAC, MTU
from sandbox_api.host.interface import KnownEgress
from sandbox_api.settings import Settings

_LIMIT: Final = 16 << 20
_RECORDS_MAX: Final = 1024
_RECORD_COST: Final = 8 << 10
LOG: Final = "network"
"""The log's name among those of the sandbox's execs."""


class Audit:
    """Writes records down. A record that comes twice, for want of an acknowledgement, is written once."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._open: dict[str, LogWriter] = {}
        self._last: dict[str, tuple[str, int]] = {}
        self._moved: dict[str, asyncio.Event] = {}
        self.records: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(_RECORDS_MAX)

    def path(self, sandbox: str) -> Path:
        """Where a sandbox's log lies."""
        return self._logs / sandbox / LOG

    async def write(self, records: list[dict[str, Any]]) -> None:
        """Write what the gateway sent; it waits, and with it the gateway, while nobody takes them off `records`."""
        turn = turn_budget()
        for record in records:
            await turn.take(_RECORD_COST)
            sandbox = str(record.pop("sandbox"))
            if (log := self._log(sandbox)) is None:
                continue  # it has ended, and nobody asks any more
            boot, seq = str(record["boot"]), int(record["seq"])
            if self._last.get(sandbox, ("", 0))[0] == boot and seq <= self._last[sandbox][1]:
                continue
            self._last[sandbox] = boot, seq
            log.append(EventType.NETWORK, json.dumps(clean_json(record)).encode())
            log.reclaim()
            if (moved := self._moved.pop(sandbox, None)) is not None:
                moved.set()
            await self.records.put((sandbox, record))

    def begin(self, sandbox: str) -> None:
        """Its records are welcome from now on."""
        if sandbox in self._open:
            return
        path = self.path(sandbox)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open[sandbox] = log = LogWriter(path, limit=_LIMIT)
        if log.last:
            with LogReader(path) as reader:
                for event in reader.read(log.last - 1):
                    if isinstance(event, Event):
                        found = json.loads(event.payload)
                        self._last[sandbox] = found["boot"], found["seq"]

    def _log(self, sandbox: str) -> LogWriter | None:
        return self._open.get(sandbox)

    def end(self, sandbox: str) -> None:
        """No more of its records."""
        if (log := self._open.pop(sandbox, None)) is not None:
            log.close()
        self._last.pop(sandbox, None)
        if (moved := self._moved.pop(sandbox, None)) is not None:
            moved.set()

    async def changed(self, sandbox: str, after: int) -> None:
        """Wait for a record beyond after; at once where there will be none."""
        log = self._open.get(sandbox)
        if log is not None and log.last <= after:
            await self._moved.setdefault(sandbox, asyncio.Event()).wait()

    def close(self) -> None:
        """The server ends; what is written stays."""
        for sandbox in list(self._open):
            self.end(sandbox)


class LocalNetworks:
    """See `sandbox_api.host.interface.Networks`, and `isolation.network.Links`: the joint of the two.

    Where the operator wants no network (ISOBOX_NETWORK=0) every policy but a closed one is refused.
    """

    def __init__(self, network: Network | None, audit: Audit, run: Path) -> None:
        self._opened = network
        self._audit = audit
        self._run = run

    @property
    def _network(self) -> Network:
        if self._opened is None:
            raise NetworkUnavailable(
                "this server gives its sandboxes no network", hint="leave `network` out, or set ISOBOX_NETWORK=1"
            )
        return self._opened

    # ---- for sandboxes

    async def lease(self, sandbox: str) -> Link:
        """See `Links`."""
        number, fd = await self._network.lease(sandbox)
        inside = addresses.GUEST, addresses.PREFIX, addresses.GATEWAY
        return Link(number, fd, str(inside[0]), inside[1], str(inside[2]), GUEST_MAC, GATEWAY_MAC, MTU)

    def rename(self, sandbox: str, name: str) -> None:
        """See `Links`."""
        self._network.rename(sandbox, name)

    def number(self, sandbox: str) -> int | None:
        """See `Links`."""
        return self._network.slot(sandbox)

    async def release(self, sandbox: str) -> None:
        """See `Links`."""
        await self._network.release(sandbox)
        self._audit.end(sandbox)

    # ---- for the HTTP side

    async def begin(self, living: list[KnownEgress]) -> None:
        if self._opened is None:
            return
        kept = {}
        for each in living:
            try:
                number = json.loads((self._run / each.sandbox / "sandbox.json").read_text()).get("link")
            except (FileNotFoundError, ValueError):
                continue
            if number is not None:
                kept[each.sandbox] = int(number), each.egress
                self._audit.begin(each.sandbox)
        await self._network.begin(kept)

    async def apply(self, sandbox: str, egress: Egress) -> None:
        if self._opened is None and egress.policy.closed:
            return
        self._audit.begin(sandbox)
        await self._network.apply(sandbox, egress)

    async def next_record(self) -> tuple[str, dict[str, Any]]:
        return await self._audit.records.get()

    def log_path(self, sandbox: str) -> Path:
        return self._audit.path(sandbox)

    async def changed(self, sandbox: str, after: int, follower: str) -> None:
        await self._audit.changed(sandbox, after)

    def traffic(self, sandbox: str) -> tuple[int, int]:
        return (0, 0) if self._opened is None else self._opened.traffic(sandbox)

    async def connections(self, sandbox: str) -> int:
        return 0 if self._opened is None else await self._opened.connections(sandbox)

    @property
    def problem(self) -> str | None:
        """Why no sandbox can be given a network now; None where one can, or none is wanted."""
        return None if self._opened is None else self._opened.problem

    @property
    def gateway_starts(self) -> int:
        return 0 if self._opened is None else self._opened.gateway_starts


@asynccontextmanager
async def local_networks(settings: Settings, run: Path, claim: Claim) -> AsyncIterator[LocalNetworks]:
    """This machine's, until the end of the block; run is where the sandboxes' folders lie."""
    async with AsyncExitStack() as stack:
        audit = Audit(settings.state / "logs")
        stack.callback(audit.close)
        network = None
        if settings.network:
            network = await stack.enter_async_context(
                open_network(settings.state, settings.egress(), audit.write, claim=claim)
            )
        yield LocalNetworks(network, audit, run)
