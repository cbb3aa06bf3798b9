"""Calls of functions as their callers see them: sent, followed, cancelled."""

import base64
import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Literal

from isobox.calls import Call, system
from isobox.config import Config
from isobox.errors import NotFound
from isobox.functions import codec
from isobox.functions.errors import (
    CallCancelled,
    ContainerFailed,
    FunctionTimeout,
    NotSerializable,
    RemoteError,
    Traceback,
)
from isobox.printable import for_terminal
from isobox.transport import Transport

Trust = Literal["safe", "pickle"]
Show = Callable[[int, int, str], None]
"""Hears what a function prints: the input's number, 1 for stdout or 2 for stderr, the text."""

INLINE: Final = 256 << 10
BATCH: Final = 250
_BATCH_BYTES: Final = 512 << 10
_WAIT_S: Final = 20.0
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"


def show(index: int, stream: int, text: str) -> None:
    """Prints go where this program's go."""
    out = sys.stderr if stream == 2 else sys.stdout
    out.write(for_terminal(text, out))
    out.flush()


def show_tagged(index: int, stream: int, text: str) -> None:
    """The same with the input's number in front of each line: of a map, where several speak at once."""
    show(index, stream, "".join(f"[{index}] {line}" for line in text.splitlines(keepends=True)))


def new_id(kind: Literal["cal", "run"]) -> str:
    """An id of the client's choice makes a repeated call one call."""
    return kind + "".join(secrets.choice(_ALPHABET) for _ in range(26))


def argument(transport: Transport, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
    """Arguments as the API takes them; large ones are uploaded first. NotSerializable."""
    try:
        data = codec.encode_arguments(args, kwargs, codec.pickler())
    except Exception as error:  # whatever an object's own __reduce__ raises
        raise NotSerializable(f"an argument cannot be sent: {error}") from error
    return sent(transport, data)


def sent(transport: Transport, data: bytes) -> dict[str, str]:
    """Bytes as the API takes them."""
    if len(data) <= INLINE:
        return {"data": base64.b64encode(data).decode()}
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    upload(transport, digest, data)
    return {"upload": digest}


def upload(transport: Transport, digest: str, data: bytes) -> None:
    """Send bytes ahead, unless they are there."""
    try:
        transport.send(Call("HEAD", f"/v1/uploads/{digest}"))
    except NotFound:
        transport.send(Call("PUT", f"/v1/uploads/{digest}", content=data, read_timeout_s=None))


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of an input: its value, or the exception to raise."""

    index: int
    value: Any = None
    error: Exception | None = None
    partial: bool = False
    """Of a generator: one of its values, and more may follow."""

    def get(self) -> Any:
        """The value; raises."""
        if self.error is not None:
            raise self.error
        return self.value


class FunctionCall:
    """A call that goes on whoever waits for it; `id` finds it again."""

    def __init__(self, config: Config, id_: str, *, trust: Trust = "safe", first: dict[str, Any] | None = None) -> None:
        self.id = id_
        self._config = config
        self._trust = trust
        self._first = first
        self._done: Ended | None = None

    @classmethod
    def from_id(
        cls, id_: str, *, trust: Trust = "safe", url: str | None = None, api_key: str | None = None
    ) -> "FunctionCall":
        """A call that somebody made earlier."""
        return cls(Config.find(url, api_key), id_, trust=trust)

    def __repr__(self) -> str:
        return f"<FunctionCall {self.id}>"

    def get(self, timeout: float | None = None) -> Any:
        """Its result, or its exception; TimeoutError after so many seconds."""
        if self._done is None:
            with closing(Transport(self._config)) as transport:
                for each in follow(transport, self.id, self._trust, first=self._first, timeout=timeout):
                    if not each.partial:
                        self._done = each
        if self._done is None:
            raise CallCancelled(f"call {self.id} has no inputs")
        return self._done.get()

    async def get_async(self, timeout: float | None = None) -> Any:
        """The same for asyncio."""
        import asyncio  # slow to import inside a container, where few need it

        return await asyncio.to_thread(self.get, timeout)

    def poll(self) -> bool:
        """Whether it is over."""
        with closing(Transport(self._config)) as transport:
            return bool(transport.send(system("GET", f"/v1/calls/{self.id}"))["complete"])

    def cancel(self) -> None:
        """Begin nothing more of it, and stop what runs."""
        with closing(Transport(self._config)) as transport:
            transport.send(system("DELETE", f"/v1/calls/{self.id}"))


def gather(*calls: FunctionCall) -> list[Any]:
    """The results of spawned calls, in their order; the first exception is raised."""
    return [each.get() for each in calls]


def follow(
    transport: Transport,
    id_: str,
    trust: Trust,
    *,
    first: dict[str, Any] | None = None,
    timeout: float | None = None,
    printed: Show = show,
) -> Iterator[Ended]:
    """What becomes of a call's inputs, as it happens; first is an answer that is at hand already."""
    deadline = None if timeout is None else time.monotonic() + timeout
    page, after = first, 0
    while True:
        if page is None:
            left = _WAIT_S if deadline is None else min(_WAIT_S, max(0.0, deadline - time.monotonic()))
            params = {"after": str(after), "wait_s": f"{left:.3f}"}
            page = transport.send(system("GET", f"/v1/calls/{id_}", params=params))
        for raw in page["results"]:
            if raw["kind"] == "print":
                printed(raw["index"], raw["stream"], raw["text"])
            else:
                yield _ended(transport, id_, raw, trust)
        if page["complete"] and not page["more"]:
            return
        if page["results"]:
            after = page["next_after"]
        elif deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"call {id_} is not over after {timeout:g} s; it goes on")
        page = None


def _ended(transport: Transport, id_: str, raw: dict[str, Any], trust: Trust) -> Ended:
    index = int(raw["index"])
    if raw["kind"] in ("done", "yield"):
        if raw["file"] is not None:
            data = transport.send(system("GET", f"/v1/calls/{id_}/values/{raw['seq']}", read_timeout_s=None))
        else:
            data = base64.b64decode(raw["data"])
        try:
            return Ended(index, codec.decode_result(data, trust), partial=raw["kind"] == "yield")
        except Exception as error:
            return Ended(index, error=RemoteError("ValueError", f"a result that cannot be read: {error}"))
    if raw["kind"] == "cancelled":
        return Ended(index, error=CallCancelled(f"call {id_} was cancelled"))
    return Ended(index, error=_error(raw["error"], trust))


def _error(raw: dict[str, Any], trust: Trust) -> Exception:
    kind, message = str(raw["type"]), str(raw["message"])
    if kind == "FunctionTimeout":
        return FunctionTimeout(message)
    if kind in ("ContainerCrashed", "ContainerFailed", "InputLost", "ResultLost"):
        return ContainerFailed(message + (f" ({raw['hint']})" if raw.get("hint") else ""))
    trace = str(raw.get("traceback") or "")
    data = base64.b64decode(raw["data"]) if raw.get("data") else None
    found = codec.decode_exception(kind, data, trust)
    if found is None:
        found = RemoteError(kind.removeprefix("builtins."), message, trace)
    found.__cause__ = Traceback(trace)
    return found


Inputs = Iterable[tuple[tuple[Any, ...], dict[str, Any]]]
"""Positional and named arguments, an input each."""


def batches(transport: Transport, inputs: Inputs) -> Iterator[list[dict[str, str]]]:
    """Inputs as the API takes them, some at a time."""
    batch: list[dict[str, str]] = []
    size = 0
    for args, kwargs in inputs:
        made = argument(transport, args, kwargs)
        batch.append(made)
        size += len(made.get("data", ""))
        if len(batch) >= BATCH or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
