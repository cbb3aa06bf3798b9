"""A context that lives and the run that is on in it: what their exec writes is taken apart here."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Final

from common.turns import turn_budget
from isolation.execlog import Event, EventType
from sandbox_api.contexts.protocol import (
    DONE,
    ELEMENTS_MAX,
    READY,
    RESULT,
    TOO_MUCH,
    Message,
    Splitter,
    results,
)
from sandbox_api.services.openlog import OpenLog
from sandbox_api.store.records import ContextRecord, ExecRecord

_PIECE_COST: Final = 4 << 10


@dataclass(slots=True)
class Run:
    """A run that is on."""

    record: ExecRecord
    log: OpenLog
    done: "asyncio.Future[bool]"
    skip: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Bytes of stdout, of stderr, and results that the log has already."""
    sent: bool = False
    """Whether PID 1 has its code."""
    stderr_ended: bool = False
    ok: bool | None = None

    def write(self, stream: int, data: bytes) -> None:
        """Output of the run, less what its log has."""
        skipped = min(self.skip[stream], len(data))
        self.skip[stream] -= skipped
        if data := data[skipped:]:
            self.log.append(EventType.STDERR if stream else EventType.STDOUT, data)

    def note(self, stream: int, message: Message) -> None:
        """What the runner says of the run."""
        if message.kind == RESULT and (bundle := results(message.data)) is not None:
            if self.skip[2]:
                self.skip[2] -= 1
            else:
                self.record.results.append(self.log.append(EventType.RESULT, json.dumps(bundle).encode()))
        elif message.kind == TOO_MUCH:
            self.write(1, b"isobox: a result of more than %d elements was left out\n" % ELEMENTS_MAX)
        elif message.kind == DONE and isinstance(message.data, dict) and message.data.get("run") == self.record.run:
            if stream:
                self.stderr_ended = True
            else:
                self.ok = message.data.get("ok") is True

    def end_if_told(self) -> None:
        """It is through when its runner has said so on both streams."""
        if self.stderr_ended and self.ok is not None and not self.done.done():
            self.done.set_result(self.ok)


@dataclass(slots=True)
class LiveContext:
    """A context whose interpreter runs."""

    record: ContextRecord
    exec: ExecRecord
    splitters: tuple[Splitter, Splitter]
    ready: "asyncio.Future[None]"
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an event of its log is taken apart."""
    seq: int = 0
    """The last event of its log that was taken."""
    current: Run | None = None
    ended: bool = False

    async def take(self, event: Event) -> None:
        """Output of its exec: to its run's log, or what the runner says of the run.

        The run that is on stays the same meanwhile: it ends behind the event, and another begins with the lock held.
        """
        async with self.reading:
            await self._take(event)
            self.seq = event.seq
            if self.current is not None:
                self.current.end_if_told()

    async def _take(self, event: Event) -> None:
        stream, turn = 0 if event.type == EventType.STDOUT else 1, turn_budget()
        for piece in self.splitters[stream].feed(event.payload):
            await turn.take(_PIECE_COST + (piece.cost if isinstance(piece, Message) else len(piece)))
            run = self.current
            if isinstance(piece, Message) and piece.kind == READY:
                if not self.ready.done():
                    self.ready.set_result(None)
            elif run is None:
                continue  # what background threads print between runs belongs to nobody
            elif isinstance(piece, bytes):
                run.write(stream, piece)
            else:
                run.note(stream, piece)
