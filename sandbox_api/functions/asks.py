"""What a function asks of the server, through its runner: no network, no key. Lies beside runner.py in the sandbox.

    {"k": "ask", "q": N, "i": input, "m": method, "p": path, "v": VALUE}                                          out
    {"c": "answer", "q": N, "s": status, "a": VALUE}      {"c": "again"} (whoever was to answer is gone)             in

Questions are requests of the API that may be repeated: a server that goes away is asked again.
"""

from __future__ import annotations

import threading
from _queue import SimpleQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Asks:
    """The questions that are open. pack and unpack make values of bytes, and bytes of values."""

    def __init__(
        self,
        channel: Any,
        pack: Callable[[bytes], dict[str, Any]],
        unpack: Callable[[dict[str, Any]], bytes],
        whose: Callable[[], str | None],
        most: int,
    ) -> None:
        self._places = threading.Semaphore(most)  # whoever asks more at once is taken for no runner of ours
        self._channel = channel
        self._pack = pack
        self._unpack = unpack
        self._whose = whose
        self._lock = threading.Lock()
        self._count = 0
        self._open: dict[int, tuple[SimpleQueue[tuple[int, dict[str, Any]] | None], dict[str, Any], bytes]] = {}
        self._ended = False

    def ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """The answer's status and body; ConnectionError once the container ends."""
        with self._places:
            return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        with self._lock:
            if self._ended:
                raise ConnectionError("the container ends")
            self._count += 1
            number, answer = self._count, SimpleQueue()  # type: ignore[var-annotated]
            self._open[number] = (answer, {"q": number, "i": self._whose(), "m": method, "p": path}, body)
        self._say(number)
        found = answer.get()
        if found is None:
            raise ConnectionError("the container ends")
        status, value = found
        return status, self._unpack(value)

    def _say(self, number: int) -> None:
        if (found := self._open.get(number)) is not None:
            _, question, body = found
            self._channel.say(k="ask", v=self._pack(body), **question)

    def answered(self, number: int, status: int, value: dict[str, Any]) -> None:
        """An answer came."""
        if (found := self._open.pop(number, None)) is not None:
            found[0].put((status, value))

    def again(self) -> None:
        """Ask all that is open once more."""
        for number in list(self._open):
            self._say(number)

    def end(self) -> None:
        """No more answers will come."""
        with self._lock:
            self._ended = True
            for answer, _, _ in self._open.values():
                answer.put(None)
