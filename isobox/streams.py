"""Streams that lose and repeat nothing: after a break they go on behind the last event they saw."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from isobox.calls import pauses
from isobox.config import Config
from isobox.errors import ApiError, ConnectionFailed, StreamBroken, api_error
from isobox.values import Event

SUBPROTOCOL: Final = "isobox.v1.bin"
_NORMAL: Final = 1000
BROKEN: Final = (ConnectionClosed, InvalidHandshake, OSError, EOFError, TimeoutError)
"""What a stream survives by connecting again."""


@dataclass
class Position:
    """How far one follower of one stream is, and how long it goes on trying. No I/O."""

    config: Config
    path: str
    seq: int = 0
    ended: bool = False
    _waits: Iterator[float] = field(default_factory=lambda: iter(pauses()))

    @property
    def url(self) -> str:
        """Where to connect for what comes next."""
        return f"{self.config.websocket_url}{self.path}?from={self.seq}"

    def take(self, frame: str | bytes) -> Event | None:
        """The event in a frame, None for one that was seen; ApiError for a refusal."""
        event = Event.parse(frame)
        self._waits = iter(pauses())
        if event.type == "problem":
            raise api_error(int(event.info.get("status", 400)), event.info)
        if event.seq <= self.seq:
            return None
        self.seq = event.seq
        self.ended = event.type in ("exit", "end")
        return event

    def broke(self, error: Exception) -> float:
        """How long to wait before the next try; raises what it should not be tried again for."""
        if isinstance(error, InvalidStatus):
            raise _refusal(error) from error
        if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code == _NORMAL:
            raise StreamBroken(f"the stream ended without an end after event {self.seq}") from error
        wait = next(self._waits, None)
        if wait is None:
            raise ConnectionFailed(f"lost the isobox server at {self.config.url}: {error}") from error
        return wait


def _refusal(error: InvalidStatus) -> ApiError:
    try:
        problem: Any = json.loads(error.response.body or b"{}")
    except ValueError:
        problem = {}
    return api_error(error.response.status_code, problem if isinstance(problem, dict) else {})
