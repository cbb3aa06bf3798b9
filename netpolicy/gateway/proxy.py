"""Connections to hosts by name: which host is meant, whether it may be reached, and the bytes there and back.

The kernel sends here what goes to a port of some host rule. On 443 a ClientHello must come, on 80 a request; on other
ports whatever does: what some server could take for TLS or HTTP is held to the same (`sniff.py`), anything else needs
only the pin. The gateway dials the address that the sandbox dialled, never another one.
"""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

import structlog

from common.tasks import TaskOwner
from netpolicy.gateway import http, tls
from netpolicy.gateway.ends import dial, first_readable, original_destination, say
from netpolicy.gateway.inject import Injector
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.relay import pump, reset, together
from netpolicy.gateway.sniff import Protocol, sniff
from netpolicy.gateway.ward import Flow, Ward
from netpolicy.match import Verdict
from netpolicy.names import NameInvalid, canonical

_log = structlog.get_logger(__name__)
_BEGINNING_S: Final = 5.0
_WORD_S: Final = 1.0
_ANSWER_S: Final = 30.0
_FAREWELL_S: Final = 2.0
_REVOKED: Final = "the policy no longer allows it"
_CONNECTIONS_MAX: Final = 1024
_FILES_EACH: Final = 8
"""Descriptors of a connection, with some to spare: two sockets, two pipes."""
_UNRECOGNIZED_NAME: Final = bytes((21, 3, 3, 0, 2, 2, 112))
"""A fatal alert of TLS (RFC 6066): the client library says so in words, instead of "connection reset"."""
_ACCESS_DENIED: Final = bytes((21, 3, 3, 0, 2, 2, 49))
"""The fatal alert access_denied (RFC 8446, section 6.2)."""


class _Refused(Exception):
    """This connection is refused: its end hears `farewell`, or is reset."""

    def __init__(
        self, verdict: Verdict, *, sni: str | None = None, host: str | None = None, farewell: bytes = b""
    ) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict
        self.sni = sni
        self.host = host
        self.farewell = farewell


@dataclass(slots=True)
class _Attempt:
    """A connection of a sandbox, and where it wanted to go."""

    ward: Ward
    client: socket.socket
    destination: IPv4Address
    port: int
    upstream: socket.socket | None = None
    whole: bool = False
    """Whether it came to its end by itself: then what is still on its way arrives."""

    def close(self) -> None:
        """Let go of both ends."""
        for each in (self.client, self.upstream):
            if each is not None:
                (socket.socket.close if self.whole else reset)(each)


class Proxy:
    """See the module."""

    def __init__(
        self, ward: Callable[[IPv4Address], Ward | None], journal: Journal, injector: Injector, tasks: TaskOwner
    ) -> None:
        self._ward = ward
        self._journal = journal
        self._injector = injector
        self._tasks = tasks
        self._numbers = 0
        self._serving = 0
        self._places = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _FILES_EACH

    def serve(self, listener: socket.socket) -> None:
        """Take what comes to a socket, from now on."""
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                client, peer = listener.accept()
            except OSError:
                return
            client.setblocking(False)
            ward = self._ward(IPv4Address(peer[0]))
            if ward is None or self._journal.full(ward.sandbox) or not self._has_place(ward):
                reset(client)
                continue
            self._tasks.spawn(self._serve(ward, client), name=f"flow of {ward.sandbox}")

    def _has_place(self, ward: Ward) -> bool:
        """Whether a sandbox may have one more connection: it never has more than there are places left for others."""
        return ward.connecting < min(_CONNECTIONS_MAX, self._places - self._serving)

    async def _serve(self, ward: Ward, client: socket.socket) -> None:
        ward.connecting += 1
        self._serving += 1
        attempt: _Attempt | None = None
        try:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            attempt = _Attempt(ward, client, *original_destination(client))
            await self._pass(attempt)
            attempt.whole = True
        except _Refused as refusal:
            await self._refuse(attempt, refusal)
        except (OSError, TimeoutError):
            pass  # it is cut off below; its record tells why
        finally:
            ward.connecting -= 1
            self._serving -= 1
            if attempt is not None:
                attempt.close()
            else:
                reset(client)

    async def _refuse(self, attempt: _Attempt | None, refusal: _Refused) -> None:
        assert attempt is not None
        self._journal.add(
            attempt.ward.record(
                "refused",
                refusal.verdict,
                destination=str(attempt.destination),
                port=attempt.port,
                proto="tcp",
                sni=refusal.sni,
                host=refusal.host,
            )
        )
        if refusal.farewell:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await say(attempt.client, refusal.farewell)
                    attempt.whole = True

    # ---- which host

    async def _pass(self, attempt: _Attempt) -> None:
        if attempt.port == 443:
            await self._tls(attempt, b"")
        elif attempt.port == 80:
            await self._http(attempt, b"")
        else:
            await self._whatever(attempt)

    async def _tls(self, attempt: _Attempt, data: bytes) -> None:
        name, verdict, data = await self._hello(attempt, data)
        injected = bool(attempt.ward.injections(name))
        if not injected:
            _refuse_hidden(data, name)  # where TLS ends here nobody reads the hidden one
        await self._through(
            attempt, name, verdict, data, sni=name, mode=self._inject if injected else self._through_tls
        )

    async def _hello(self, attempt: _Attempt, data: bytes) -> tuple[str, Verdict, bytes]:
        """Read a whole ClientHello: (the host that it names, which is allowed; the verdict; the bytes)."""
        sni: str | bytes | None = b""
        try:
            async with asyncio.timeout(_BEGINNING_S):
                while (sni := tls.server_name(data)) == b"":
                    data += await self._more(attempt, tls.HELLO_MAX - len(data))
        except tls.NotTls as error:
            raise _Refused(_not(f"only TLS goes to port {attempt.port} by name: {error}")) from None
        except TimeoutError:
            raise _Refused(_not(f"no ClientHello came within {_BEGINNING_S:g} s")) from None
        if not isinstance(sni, str):
            raise _Refused(_not("its ClientHello names no host"), farewell=_UNRECOGNIZED_NAME)
        try:
            name = canonical(sni)
        except NameInvalid as error:
            raise _Refused(_not(str(error)), sni=sni[:255], farewell=_UNRECOGNIZED_NAME) from None
        verdict = self._admit(attempt, name)
        if not verdict.allowed:
            raise _Refused(verdict, sni=name, farewell=_UNRECOGNIZED_NAME)
        return name, verdict, data

    async def _http(self, attempt: _Attempt, data: bytes) -> None:
        host = ""

        def first(head: http.Head) -> http.Headers:
            nonlocal host
            host = head.host
            return head.headers

        looked, parser = b"", http.Requests(attempt.port, first)
        try:
            async with asyncio.timeout(_BEGINNING_S):
                while True:
                    data = data or await self._more(attempt, http.HEAD_MAX)
                    looked += data
                    parser.feed(data)
                    if host:
                        break
                    data = b""
        except http.RequestRefused as error:
            verdict, farewell = _badly(attempt, str(error))
            raise _Refused(verdict, farewell=farewell) from None
        except TimeoutError:
            raise _Refused(_not(f"no request came within {_BEGINNING_S:g} s")) from None
        verdict = self._admit(attempt, host)
        if not verdict.allowed:
            record = attempt.ward.record("refused", verdict, host=host, port=attempt.port)
            raise _Refused(verdict, host=host, farewell=http.refusal(verdict.reason, record.hint))
        await self._through(attempt, host, verdict, looked, host=host, mode=self._requests)

    async def _whatever(self, attempt: _Attempt) -> None:
        """A port that rules name: who speaks first tells what it is."""
        now = time.monotonic()
        found = list(attempt.ward.candidates(attempt.destination, attempt.port, now))
        name, verdict = next((each for each in found if each[1].allowed), (None, None))
        if name is None or verdict is None:
            if attempt.ward.rules.policy.default == "deny":
                raise _Refused(found[0][1] if found else _unpinned(attempt, None))
            name = name or str(attempt.destination)
            verdict = attempt.ward.rules.address(attempt.destination, "tcp", attempt.port)
        if not verdict.allowed:
            raise _Refused(verdict)
        await self._through(attempt, name, verdict, b"", mode=self._first_words)

    async def _more(self, attempt: _Attempt, most: int) -> bytes:
        piece = await asyncio.get_running_loop().sock_recv(attempt.client, max(1, most))
        if not piece:
            raise _Refused(_not("it ended before it said which host it is for"))
        return piece

    def _admit(self, attempt: _Attempt, name: str) -> Verdict:
        ward = attempt.ward
        if name == str(attempt.destination):  # an address in the place of a name: it is judged as one
            return ward.rules.address(attempt.destination, "tcp", attempt.port)
        verdict = ward.rules.host(name, attempt.port)
        if not verdict.allowed:
            return verdict
        if (denied := ward.rules.denied_address(attempt.destination, "tcp", attempt.port)) is not None:
            return denied
        if verdict.rule != "default" and name not in ward.pins.names(attempt.destination, time.monotonic()):
            return _unpinned(attempt, name)
        return verdict

    # ---- through

    async def _through(
        self,
        attempt: _Attempt,
        name: str,
        verdict: Verdict,
        data: bytes,
        *,
        mode: Callable[[_Attempt, Flow, bytes], Awaitable[None]],
        sni: str | None = None,
        host: str | None = None,
    ) -> None:
        ward, task = attempt.ward, asyncio.current_task()
        assert task is not None
        if self._ward(ward.address) is not ward:
            raise ConnectionAbortedError("its sandbox has ended, and the address may be another's by now")
        self._numbers += 1
        flow = Flow(self._numbers, name, sni, host, attempt.destination, attempt.port, end=lambda: _cancel(task))
        ward.flows.add(flow)
        about = {"name": name, "destination": str(attempt.destination), "port": attempt.port, "proto": "tcp"}
        self._journal.add(ward.record("flow", verdict, **about, sni=sni, host=host, flow=flow.number))
        why = ""
        try:
            attempt.upstream = await dial(attempt.destination, attempt.port)
            await mode(attempt, flow, data)
        except asyncio.CancelledError:
            why = _REVOKED
            raise
        except TimeoutError:
            why = "the host did not answer"
            raise
        except OSError as error:
            why = error.strerror or str(error) or "the connection broke"
            raise
        except _Refused as refusal:
            why = refusal.verdict.reason
            raise
        finally:
            ward.flows.discard(flow)
            if why == _REVOKED:  # here and now: whoever ended it says so when this is done
                attempt.close()
            flow.closed.set()
            ended = ward.record("closed", verdict, **about, flow=flow.number)
            ended.tx_bytes, ended.rx_bytes = flow.tx_bytes, flow.rx_bytes
            ended.duration_s, ended.reason = round(time.monotonic() - flow.began, 3), why
            self._journal.add(ended)

    async def _splice(self, attempt: _Attempt, flow: Flow, data: bytes) -> None:
        upstream = attempt.upstream
        assert upstream is not None
        if data:
            await asyncio.get_running_loop().sock_sendall(upstream, data)
            flow.tx_bytes += len(data)
        await together(pump(attempt.client, upstream, _sent(flow)), pump(upstream, attempt.client, _received(flow)))

    async def _inject(self, attempt: _Attempt, flow: Flow, data: bytes) -> None:
        assert attempt.upstream is not None
        await self._injector.serve(attempt.ward, flow, attempt.client, attempt.upstream, data)

    async def _first_words(self, attempt: _Attempt, flow: Flow, data: bytes) -> None:
        upstream = attempt.upstream
        assert upstream is not None
        if await first_readable(attempt.client, upstream) is attempt.client:
            with contextlib.suppress(TimeoutError):  # it waits for an answer to what is no request, then
                async with asyncio.timeout(_WORD_S):
                    while (protocol := sniff(data)) is Protocol.UNDECIDED:
                        data += (piece := await self._piece(attempt))
                        if not piece:
                            break
            if protocol is Protocol.TLS:
                await self._named_tls(attempt, flow, data)
                return
            if protocol is Protocol.HTTP:
                await self._requests(attempt, flow, data)
                return
        # A server may also be the first to speak and be one of HTTP/2 (RFC 9113, section 3.4).
        await together(self._watched(attempt, flow, data), pump(upstream, attempt.client, _received(flow)))

    async def _watched(self, attempt: _Attempt, flow: Flow, words: bytes) -> None:
        """Pass on a client's first words while no server can act on them, and all of it once it is another protocol."""
        upstream, sent = attempt.upstream, 0
        assert upstream is not None
        while True:
            protocol = sniff(words)
            if protocol in (Protocol.TLS, Protocol.HTTP):
                raise _Refused(_not(f"{protocol.value} came late: a client that speaks it says so at once"))
            await asyncio.get_running_loop().sock_sendall(upstream, words[sent:])
            flow.tx_bytes += len(words) - sent
            sent = len(words)
            if protocol is Protocol.OTHER:
                await pump(attempt.client, upstream, _sent(flow))
                return
            words += (piece := await self._piece(attempt))
            if not piece:
                upstream.shutdown(socket.SHUT_WR)
                return

    async def _piece(self, attempt: _Attempt) -> bytes:
        return await asyncio.get_running_loop().sock_recv(attempt.client, http.HEAD_MAX)

    async def _named_tls(self, attempt: _Attempt, flow: Flow, data: bytes) -> None:
        name, _, data = await self._hello(attempt, data)
        _refuse_hidden(data, name)
        flow.name = flow.sni = name
        await self._through_tls(attempt, flow, data)

    async def _through_tls(self, attempt: _Attempt, flow: Flow, data: bytes) -> None:
        """Pass TLS on; a server that asks for another ClientHello gets one for the same host."""
        loop, upstream, first = asyncio.get_running_loop(), attempt.upstream, b""
        assert upstream is not None
        await loop.sock_sendall(upstream, data)
        flow.tx_bytes += len(data)
        async with asyncio.timeout(_ANSWER_S):
            while (again := tls.asks_again(first)) is None:
                if not (piece := await loop.sock_recv(upstream, tls.HELLO_MAX)):
                    break
                first += piece
        await loop.sock_sendall(attempt.client, first)
        flow.rx_bytes += len(first)
        await self._splice(attempt, flow, await self._again(attempt, flow) if again else b"")

    async def _again(self, attempt: _Attempt, flow: Flow) -> bytes:
        """Read what a client sends when it is asked again."""
        data = b""
        try:
            async with asyncio.timeout(_BEGINNING_S):
                while not (hello := tls.second_hello(data)) or (sni := tls.server_name(hello)) == b"":
                    data += await self._more(attempt, 2 * tls.HELLO_MAX - len(data))
            hidden = tls.hides_name(hello)
        except (tls.NotTls, TimeoutError):
            raise _Refused(_not("its second ClientHello cannot be read"), sni=flow.sni) from None
        if hidden or not isinstance(sni, str) or sni.lower().rstrip(".") != flow.sni:
            raise _Refused(_not("its second ClientHello is for another host"), sni=flow.sni)
        return data

    async def _requests(self, attempt: _Attempt, flow: Flow, data: bytes) -> None:
        """HTTP: every request of the connection is for the host of the flow."""
        loop, upstream, ward = asyncio.get_running_loop(), attempt.upstream, attempt.ward
        assert upstream is not None

        def check(head: http.Head) -> http.Headers:
            verdict = self._admit(attempt, head.host)
            if not verdict.allowed:
                raise http.RequestRefused(verdict.reason)
            if flow.host is None:
                flow.name = flow.host = head.host
            if head.host != flow.host:  # a change of the policy cuts off flows by their host
                raise http.RequestRefused(f"its Host is {head.host}, the connection is for {flow.host}")
            if self._injector.strays(ward, head):
                stray = Verdict(False, "inject", "a placeholder of a credential was sent to another host")
                self._journal.add(ward.record("secret", stray, name=head.host, port=attempt.port))
            return head.headers

        parser, switched = http.Requests(attempt.port, check), asyncio.Event()

        async def outwards() -> None:
            piece = data or await loop.sock_recv(attempt.client, http.HEAD_MAX)
            while piece:
                if passed := parser.feed(piece):
                    await loop.sock_sendall(upstream, passed)
                    flow.tx_bytes += len(passed)
                if parser.upgrading:
                    await switched.wait()
                    await loop.sock_sendall(upstream, parser.rest)
                    await pump(attempt.client, upstream, _sent(flow))
                    return
                piece = await loop.sock_recv(attempt.client, 1 << 18)
            upstream.shutdown(socket.SHUT_WR)

        async def inwards() -> None:
            first = await loop.sock_recv(upstream, http.HEAD_MAX)
            if parser.upgrading and first.startswith((b"HTTP/1.1 101 ", b"HTTP/1.0 101 ")):
                switched.set()
            await loop.sock_sendall(attempt.client, first)
            flow.rx_bytes += len(first)
            if first:
                await pump(upstream, attempt.client, _received(flow))
            if parser.upgrading and not switched.is_set():
                raise ConnectionAbortedError("it was not switched")

        try:
            await together(outwards(), inwards())
        except http.RequestRefused as error:
            verdict, farewell = _badly(attempt, str(error))
            raise _Refused(verdict, host=flow.host, farewell=b"" if parser.count else farewell) from None


def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()


def _sent(flow: Flow) -> Callable[[int], None]:
    def count(size: int) -> None:
        flow.tx_bytes += size

    return count


def _received(flow: Flow) -> Callable[[int], None]:
    def count(size: int) -> None:
        flow.rx_bytes += size

    return count


def _refuse_hidden(hello: bytes, name: str) -> None:
    if tls.hides_name(hello):
        raise _Refused(
            Verdict(False, "ech", "its ClientHello hides another name (ECH)"), sni=name, farewell=_ACCESS_DENIED
        )


def _not(reason: str) -> Verdict:
    return Verdict(False, "protocol", reason)


def _unpinned(attempt: _Attempt, name: str | None) -> Verdict:
    if name is None:
        return Verdict(False, "pin", f"no name that is allowed here was resolved to {attempt.destination}")
    return Verdict(False, "pin", f"{name} was not resolved to {attempt.destination} by this sandbox")


def _badly(attempt: _Attempt, reason: str) -> tuple[Verdict, bytes]:
    return _not(reason), http.refusal(reason, "see docs/policies.md")
