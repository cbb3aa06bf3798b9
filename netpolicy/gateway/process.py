"""The gateway's process. It gets its sockets from the server, gives up all rights, and serves.

It outlives the server, as the keeper does, so that an upgrade is a restart that no connection notices: policies stay,
records wait. Without a server and without sandboxes it ends.
"""

import asyncio
import ctypes
import importlib
import json
import os
import signal
import socket
import ssl
import sys
from ipaddress import IPv4Address
from typing import Any, Final

import structlog

from common import logs
from common.tasks import TaskOwner
from netpolicy import conntrack
from netpolicy.gateway import nflog
from netpolicy.gateway.inject import Injector
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.proxy import Proxy
from netpolicy.gateway.relay import reset
from netpolicy.gateway.resolver import Resolver
from netpolicy.gateway.sources import sources
from netpolicy.gateway.ward import Flow, Ward
from netpolicy.gateway.wire import PACKET_MAX, decode_guarded, packet
from netpolicy.match import Verdict
from netpolicy.names import pattern
from netpolicy.nft import LIMITED, OPENED, SPOOFED

_log = structlog.get_logger(__name__)
_ALONE_S: Final = 3.0
_BATCH: Final = 64
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_KINDS: Final = {"icmp", "tcp", "udp"}


class Gateway:
    """All wards, and what serves them."""

    def __init__(
        self,
        tasks: TaskOwner,
        own: IPv4Address,
        resolvers: list[tuple[str, int]],
        trust: ssl.SSLContext,
        identity: int | None = None,
    ) -> None:
        """identity: the open file of that name in our state directory (common/owners.py)."""
        self._tasks = tasks
        self._identity = identity
        self._journal = Journal()
        self._wards: dict[str, Ward] = {}
        self._by_address: dict[IPv4Address, Ward] = {}
        self._by_device: dict[int, Ward] = {}
        self._server: socket.socket | None = None
        self._sending = asyncio.Lock()
        self._ends: socket.socket | None = None
        self._own = own
        self._alone_since = asyncio.get_running_loop().time()
        self.resolver = Resolver(resolvers, self._by_address.get, self._journal, tasks)
        self.proxy = Proxy(self._by_address.get, self._journal, Injector(trust, self._journal), tasks)

    # ---- what the kernel tells

    def listen_to_kernel(self, listener: socket.socket) -> None:
        """Write down what the kernel's rules refused or let begin."""
        asyncio.get_running_loop().add_reader(listener.fileno(), self._hear, listener)

    def _hear(self, listener: socket.socket) -> None:
        for _ in range(256):
            try:
                datagram = listener.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # more came than there was room for: what was lost is told by the rules' own counters
                self._journal.lost += 1
                return
            for each in nflog.parse(datagram):
                if (ward := self._by_device.get(each.device)) is not None:
                    self._note(ward, each)

    def _note(self, ward: Ward, each: nflog.Logged) -> None:
        about: dict[str, Any] = {"destination": str(each.destination), "port": each.port, "proto": each.protocol}
        if each.prefix == SPOOFED:
            verdict = Verdict(False, "spoof", f"the source address {each.source} is not the sandbox's own")
        elif each.prefix.startswith(LIMITED):
            name = each.prefix.removeprefix(LIMITED)
            verdict = Verdict(False, f"limit {name}", f"the limit of {name} is reached")
            if name == "tx_bytes":  # nothing more gets out: what still waits for an answer would wait for ever
                for flow in list(ward.flows):
                    flow.end()
        elif each.protocol not in _KINDS or each.port is None:
            verdict = Verdict(False, "protocol", "only TCP and UDP can be allowed")
        else:
            verdict = ward.rules.address(each.destination, "udp" if each.protocol == "udp" else "tcp", each.port)
            if each.prefix == OPENED and not verdict.allowed:
                verdict = Verdict(True, "before", "the policy has changed since")
            elif verdict.allowed and each.prefix != OPENED:
                verdict = Verdict(False, "floor", f"{each.destination} is an address of the machine itself")
        event = "flow" if verdict.allowed else "refused"
        self._journal.add(ward.record(event, verdict, **about))

    def listen_to_ends(self, listener: socket.socket) -> None:
        """Write down the ends of what the kernel forwards; it forgets a finished connection after up to two minutes."""
        self._ends = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._hear_ends)

    def _hear_ends(self) -> None:
        while self._ends is not None:
            try:
                datagram = self._ends.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # more came than there was room for
                self._journal.lost += 1
                return
            for each in conntrack.ends(datagram):
                ward = self._by_address.get(each.connection.source)
                if ward is not None and each.forwarded:
                    self._note_end(ward, each)

    def _note_end(self, ward: Ward, ended: conntrack.Ended) -> None:
        to = ended.connection
        if to.destination == self._own or to.port == 0:
            return  # a question to the resolver
        verdict = ward.rules.address(to.destination, to.proto, to.port)
        rule = verdict.rule if verdict.allowed else "before"
        about: dict[str, Any] = {"destination": str(to.destination), "port": to.port, "proto": to.proto}
        record = ward.record("closed", Verdict(True, rule), **about)
        record.tx_bytes, record.rx_bytes = ended.tx_bytes, ended.rx_bytes
        self._journal.add(record)

    # ---- what the server says

    async def attend(self, listener: socket.socket) -> None:
        """Serve one server after the other, for ever."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            server, _ = await loop.sock_accept(listener)
            server.setblocking(False)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET_MAX)
            self._server = server
            telling = self._tasks.spawn(self._tell(server), name="records")
            try:
                await self._heed(server)
            except (OSError, ValueError, KeyError) as error:
                _log.info("the server has gone", error=str(error))
            finally:
                telling.cancel()
                self._server = None
                self._alone_since = loop.time()
                server.close()

    async def _heed(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while raw := await loop.sock_recv(server, PACKET_MAX):
            message = json.loads(raw)
            if "acknowledged" in message:
                self._journal.acknowledged(int(message["acknowledged"]))
                continue
            try:
                answer = await self._do(message)
            except Exception as error:  # whatever it is, the server hears of it, and the next call is served
                _log.error("call failed", call=message.get("do"), exc_info=error)
                answer = {"error": f"{message.get('do')}: {error}"}
            await self._send(server, {"answer": message["call"], **answer})

    async def _do(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["do"]:
            case "put":
                await self._put(message)
            case "drop":
                await self._drop(str(message["sandbox"]))
                return {"seq": self._journal.last}
            case "keep":
                for sandbox in set(self._wards) - set(message["sandboxes"]):
                    await self._drop(sandbox)
            case "hello":
                return {"sources": sources()}
            case "stop":
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
            case other:
                return {"error": f"no such call: {other}"}
        return {}

    async def _put(self, message: dict[str, Any]) -> None:
        each = decode_guarded(message)
        ward = self._wards.get(each.sandbox)
        if ward is None or (ward.address, ward.device) != (each.address, each.device):
            await self._drop(each.sandbox)
            ward = Ward(each.sandbox, each.address, each.device)
            self._wards[each.sandbox] = self._by_address[each.address] = self._by_device[each.device] = ward
        lost = ward.guard(each.rules, each.credentials, each.generation)
        await self._cut(lost)

    async def _drop(self, sandbox: str) -> None:
        self._hear_ends()  # of what the server has just had the kernel forget
        if (ward := self._wards.pop(sandbox, None)) is None:
            return
        self._by_address.pop(ward.address, None)
        self._by_device.pop(ward.device, None)
        await self._cut(list(ward.flows))

    async def _cut(self, flows: list[Flow]) -> None:
        for flow in flows:
            flow.end()
        for flow in flows:  # nothing goes through afterwards
            await flow.closed.wait()

    async def _tell(self, server: socket.socket) -> None:
        seq = 0
        while True:
            records = await self._journal.after(seq, _BATCH)
            await self._send(server, {"records": [each.document() for each in records], "lost": self._journal.lost})
            seq = records[-1].seq

    async def _send(self, server: socket.socket, message: dict[str, Any]) -> None:
        async with self._sending:  # a loop waits for one sender of a socket only
            await asyncio.get_running_loop().sock_sendall(server, packet(message))

    async def alone(self) -> None:
        """Return once there is no server, and no sandbox either for a while, or no state directory for the next one."""
        loop = asyncio.get_running_loop()
        # Several things at once, none of them urgent.
        while self._server is not None or (  # noqa: ASYNC110
            not self._orphaned and (self._wards or loop.time() - self._alone_since < _ALONE_S)
        ):
            await asyncio.sleep(1.0)

    @property
    def _orphaned(self) -> bool:
        """Whether the identity of our state directory was removed, and with it whoever could come for us."""
        return self._identity is not None and os.fstat(self._identity).st_nlink == 0


def give_up_rights(uid: int) -> None:
    """Become nobody, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # its memory holds secrets


async def _serve(settings: dict[str, Any], trust: ssl.SSLContext) -> None:
    sockets = {name: socket.socket(fileno=fd) for name, fd in settings["sockets"].items()}
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with TaskOwner() as tasks:
        own = IPv4Address(sockets["dns"].getsockname()[0])
        resolvers = [(host, port) for host, port in settings["resolvers"]]
        gateway = Gateway(tasks, own, resolvers, trust, settings.get("identity"))
        gateway.listen_to_kernel(sockets["kernel"])
        gateway.listen_to_ends(sockets["ends"])
        gateway.resolver.serve_datagrams(sockets["dns"])
        gateway.proxy.serve(sockets["proxy"])
        tasks.spawn(_streams(sockets["dns_streams"], gateway.resolver, tasks), name="dns streams")
        tasks.spawn(gateway.attend(sockets["server"]), name="server")
        alone = tasks.spawn(gateway.alone(), name="alone")
        ending = tasks.spawn(stopped.wait(), name="stop")
        await asyncio.wait([alone, ending], return_when=asyncio.FIRST_COMPLETED)


async def _streams(listener: socket.socket, resolver: Resolver, tasks: TaskOwner) -> None:
    loop = asyncio.get_running_loop()
    listener.setblocking(False)

    async def serve(stream: socket.socket, address: IPv4Address) -> None:
        try:
            await resolver.serve_stream(stream, address)
        finally:
            reset(stream)

    while True:
        stream, peer = await loop.sock_accept(listener)
        stream.setblocking(False)
        tasks.spawn(serve(stream, IPv4Address(peer[0])), name="dns stream")


def main() -> None:
    """Serve, as told by the JSON object that is the only argument."""
    if os.fork():  # an orphan from the start: the server is replaced, this goes on, and nobody has to wait for it
        os._exit(0)
    settings = json.loads(sys.argv[1])
    logs.configure()
    # What is read from files is read now: its own rights may not suffice later.
    sources()
    pattern("*.example.com")
    "\N{LATIN SMALL LETTER U WITH DIAERESIS}".encode("idna")
    importlib.import_module("concurrent.futures.thread")  # asyncio does so with the first thread
    trust = ssl.create_default_context(cafile=settings.get("trust"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_up_rights(int(settings["uid"]))
    asyncio.run(_serve(settings, trust))


if __name__ == "__main__":
    main()
