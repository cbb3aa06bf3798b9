"""Connections to hosts that credentials are put in for: TLS ends here, and begins anew towards the host.

Every request is understood and written anew (HTTP/1.1 alone), must be for the host of the ClientHello, and gets its
credentials. What the host answers is understood as well, goes back with every credential in it made unreadable, and is
refused where it cannot be read: nothing passes here as bytes.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import OrderedDict
from typing import Final
from weakref import WeakValueDictionary

import h11

from netpolicy.certificates import leaf_context
from netpolicy.gateway import answers, credentials, http
from netpolicy.gateway.answers import AnswerRefused
from netpolicy.gateway.journal import Journal
from netpolicy.gateway.redact import Needles, Redactor
from netpolicy.gateway.relay import together
from netpolicy.gateway.tlsstream import TlsStream
from netpolicy.gateway.ward import Flow, Ward
from netpolicy.gateway.websocket import FrameRefused, Frames
from netpolicy.match import HINTS, Verdict

_CONTEXTS_MAX: Final = 256
_HANDSHAKE_S: Final = 10.0
_FAREWELL_S: Final = 1.0
_HOP: Final = frozenset({b"accept-encoding", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer"})
_PIECES: Final = frozenset({b"range", b"if-range"})
"""Would have a credential come in pieces. A server may answer as if they were not there (RFC 9110, section 14.2)."""
_EXTENSIONS: Final = b"sec-websocket-extensions"
_DROPPED: Final = _HOP | _PIECES | {_EXTENSIONS}


class Injector:
    """See the module."""

    def __init__(self, trust: ssl.SSLContext, journal: Journal) -> None:
        """Trust verifies the hosts' certificates."""
        trust.set_alpn_protocols(["http/1.1"])
        self._trust = trust
        self._journal = journal
        self._contexts: OrderedDict[tuple[str, str], ssl.SSLContext] = OrderedDict()
        self._needles: WeakValueDictionary[frozenset[str], Needles] = WeakValueDictionary()

    def strays(self, ward: Ward, head: http.Head) -> bool:
        """Whether a request carries a placeholder to a host that it is not for."""
        here = {each.env for each in ward.injections(head.host)}
        marks = [mark for env, mark in ward.credentials.placeholders.items() if env not in here]
        return credentials.strays(marks, head)

    async def needles(self, ward: Ward, host: str) -> Needles:
        """What a host's answers to a sandbox are searched for; sandboxes with the same secrets share it."""
        if (needles := ward.needles.get(host)) is None:
            secrets = ward.credentials.secrets
            wanted = frozenset(secrets[each.secret] for each in ward.injections(host) if each.secret in secrets)
            generation = ward.generation
            if (needles := self._needles.get(wanted)) is None:
                needles = self._needles[wanted] = await asyncio.to_thread(Needles, wanted)  # it takes a while
            if ward.generation == generation:
                ward.needles[host] = needles
        return needles

    def _context(self, ward: Ward, host: str) -> ssl.SSLContext:
        authority = ward.credentials.authority
        if authority is None:
            raise ConnectionAbortedError("the sandbox has no authority")
        key = (authority.certificate, host)
        if (context := self._contexts.get(key)) is None:
            context = self._contexts[key] = leaf_context(authority.certificate, authority.key, host)
            if len(self._contexts) > _CONTEXTS_MAX:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        return context

    async def serve(self, ward: Ward, flow: Flow, client: socket.socket, upstream: socket.socket, hello: bytes) -> None:
        """Serve one connection of a sandbox to its end."""
        async with asyncio.timeout(_HANDSHAKE_S):
            outer = TlsStream(upstream, self._trust, host=flow.name)
            inner = TlsStream(client, self._context(ward, flow.name), server_side=True, first=hello)
            await outer.handshake()  # first: a host that cannot prove itself gets nothing
            await inner.handshake()
        try:
            await _Exchange(self, self._journal, ward, flow, inner, outer).run()
        except h11.ProtocolError as error:
            raise ConnectionAbortedError(f"no plain HTTP/1.1: {error}") from error


class _AnsweredEarly(Exception):
    """The answer came before the request had ended."""


class _Exchange:
    """The requests and answers of one connection, in turns."""

    def __init__(
        self, injector: Injector, journal: Journal, ward: Ward, flow: Flow, inner: TlsStream, outer: TlsStream
    ) -> None:
        self._injector = injector
        self._journal = journal
        self._ward = ward
        self._flow = flow
        self._inner = inner
        self._outer = outer
        self._asking = h11.Connection(h11.SERVER, max_incomplete_event_size=http.HEAD_MAX)
        self._answering = h11.Connection(h11.CLIENT, max_incomplete_event_size=http.HEAD_MAX)

    async def run(self) -> None:
        while isinstance(request := await self._next(self._asking, self._inner), h11.Request):
            if not await self._request(request):
                break
            if h11.MUST_CLOSE in (self._asking.our_state, self._answering.our_state):
                break
            self._asking.start_next_cycle()
            self._answering.start_next_cycle()
        await self._outer.close()
        await self._inner.close()
        # What was not read of the request would turn the close into a reset, and the answer would be lost.
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_FAREWELL_S):
                while await self._inner.read():
                    pass

    async def _next(self, connection: h11.Connection, stream: TlsStream) -> object:
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                data = await stream.read()
                if stream is self._outer:
                    self._flow.rx_bytes += len(data)
                connection.receive_data(data)
        except h11.RemoteProtocolError as error:
            if stream is self._outer:
                raise AnswerRefused(f"the host's answer is not plain HTTP/1.1: {error}") from error
            raise
        return event

    async def _request(self, request: h11.Request) -> bool:
        """Whether another request may follow on this connection."""
        ward = self._ward
        try:
            head = http.head_of(request, self._flow.port)
            if head.host != self._flow.name:
                raise http.RequestRefused(f"its Host is {head.host}, the connection is for {self._flow.name}")
            headers, used = credentials.with_credentials(ward, head)
            if self._injector.strays(ward, head):
                self._note("a placeholder of a credential was sent to another host")
        except http.RequestRefused as error:
            spent = isinstance(error, credentials.BudgetSpent)
            verdict = Verdict(False, "budget" if spent else "inject", str(error))
            self._journal.add(
                ward.record("refused", verdict, name=self._flow.name, port=self._flow.port, flow=self._flow.number)
            )
            hint = "ask for a larger budget" if spent else "see docs/policies.md"
            await self._inner.write(http.refusal(str(error), hint))
            return False
        headers = [(name, value) for name, value in headers if name not in _DROPPED]
        # Answers must be readable here, or a credential in one could not be found.
        headers += [(b"accept-encoding", b"identity")]
        if head.upgrades:
            headers += [(b"connection", b"upgrade")]
        needles = await self._injector.needles(ward, head.host)
        await self._send(h11.Request(method=request.method, target=head.target, headers=headers))
        redactor = Redactor(needles)
        try:
            status = await self._exchange(redactor, websocket=head.upgrades)
            if status == 101:
                await self._switched(Frames(needles), redactor)
            return status not in (0, 101)
        except AnswerRefused as error:
            await self._refuse_answer(str(error))
            return False
        finally:
            if redactor.found:
                self._note(f"an answer held a credential ({', '.join(used) or 'not sent with this request'})")

    async def _refuse_answer(self, reason: str) -> None:
        about = {"name": self._flow.name, "port": self._flow.port, "flow": self._flow.number}
        self._journal.add(self._ward.record("refused", Verdict(False, "answer", reason), **about))
        if self._asking.our_state is not h11.SEND_RESPONSE:  # some of it has gone on
            raise ConnectionAbortedError(reason)
        await self._inner.write(http.refusal(reason, HINTS["answer"], answer=True))

    def _note(self, reason: str) -> None:
        verdict = Verdict(False, "inject", reason)
        self._journal.add(self._ward.record("secret", verdict, name=self._flow.name, port=self._flow.port))

    async def _send(self, event: h11.Event) -> None:
        if data := self._answering.send(event):
            self._flow.tx_bytes += len(data)
            await self._outer.write(data)

    async def _exchange(self, redactor: Redactor, *, websocket: bool) -> int:
        """Ask and answer; returns the status, 0 where it came before the request had ended."""
        status, asked = 0, asyncio.Event()

        async def ask() -> None:
            await self._body()
            asked.set()

        async def answer() -> None:
            nonlocal status
            status = await self._answer(redactor, websocket=websocket)
            if not asked.is_set():
                raise _AnsweredEarly

        try:
            await together(ask(), answer())
        except _AnsweredEarly:
            return status if status == 101 else 0  # there is no common point to go on from
        return status

    async def _body(self) -> None:
        while True:
            event = await self._next(self._asking, self._inner)
            if isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage()  # without trailers, which some servers take for headers
            if isinstance(event, h11.Data | h11.EndOfMessage):
                await self._send(event)
            if not isinstance(event, h11.Data):
                return

    async def _answer(self, redactor: Redactor, *, websocket: bool) -> int:
        status = 0
        while True:
            event = await self._next(self._answering, self._outer)
            if isinstance(event, h11.InformationalResponse | h11.Response):
                status = event.status_code
                if (head := answers.head(event, redactor, websocket=websocket)) is not None:
                    await self._pass(head)
                if status == 101:
                    return status
            elif isinstance(event, h11.Data):
                if data := redactor.feed(bytes(event.data)):
                    await self._pass(h11.Data(data=data))
            elif isinstance(event, h11.EndOfMessage):
                if rest := redactor.flush():
                    await self._pass(h11.Data(data=rest))
                await self._pass(h11.EndOfMessage())  # without trailers
                return status
            else:
                raise ConnectionAbortedError("the host hung up")

    async def _pass(self, event: h11.Event) -> None:
        if data := self._asking.send(event):
            await self._inner.write(data)

    async def _switched(self, frames: Frames, redactor: Redactor) -> None:
        """A websocket: what the client sends goes on as it is, what the host sends is read frame by frame."""

        async def outwards() -> None:
            data = self._asking.trailing_data[0]
            while data or (data := await self._inner.read()):
                await self._outer.write(data)
                self._flow.tx_bytes += len(data)
                data = b""
            await self._outer.close()

        async def inwards() -> None:
            data = self._answering.trailing_data[0]
            while data or (data := await self._outer.read()):
                self._flow.rx_bytes += len(data)
                if passed := frames.feed(data):
                    await self._inner.write(passed)
                data = b""
            await self._inner.close()

        try:
            await together(outwards(), inwards())
        except FrameRefused as error:
            raise AnswerRefused(f"the host's websocket sent {error}") from None
        finally:
            redactor.found += frames.found
