"""Dicts and queues that the server keeps: for functions, and for those who call them.

queue = isobox.Queue.from_name("jobs", create_if_missing=True)
queue.put({"page": 1})
queue.get(timeout=5)

What lies in them may come from a container, so it is read like results: as data that runs no code, unless they are made
with trust="pickle". Each method waits; `.aio` of it is for asyncio: `await queue.get.aio()`.
"""

import base64
import queue
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self, TypeVar

from isobox.calls import system
from isobox.config import Config
from isobox.errors import ConflictError, NotFound
from isobox.functions import codec
from isobox.functions.calls import Trust
from isobox.functions.errors import FunctionError, NotSerializable
from isobox.functions.remote import Method
from isobox.transport import Transport

_WAIT_S: Final = 20.0
_BATCH: Final = 200
_BATCH_BYTES: Final = 2 << 20
_EPHEMERAL_S: Final = 86400.0
_MISSING: Final = object()
T = TypeVar("T")


class _Object:
    """What both have in common; nothing is sent before the first use."""

    _kind = ""

    def __init__(self, config: Config, name: str, *, create: bool, ttl_s: float | None, trust: Trust) -> None:
        """Use `from_name` or `ephemeral`."""
        self.name = name
        self._transport = Transport(config)
        self._create = create
        self._ttl_s = ttl_s
        self._trust: Trust = trust

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        create_if_missing: bool = False,
        trust: Trust = "safe",
        url: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """The tenant's one by this name: letters, digits, dots, dashes, underscores, 63 at most."""
        return cls(Config.find(url, api_key), name, create=create_if_missing, ttl_s=None, trust=trust)

    @classmethod
    @contextmanager
    def ephemeral(cls, *, trust: Trust = "safe", url: str | None = None, api_key: str | None = None) -> Iterator[Self]:
        """One for the time of the block; if this process dies it goes a day after its last use."""
        name = f"ephemeral-{secrets.token_hex(12)}"
        made = cls(Config.find(url, api_key), name, create=True, ttl_s=_EPHEMERAL_S, trust=trust)
        try:
            yield made
        finally:
            made._remove()
            made.close()

    @classmethod
    def delete(cls, name: str, *, url: str | None = None, api_key: str | None = None) -> None:
        """Delete one with all that is in it; NotFound."""
        transport = Transport(Config.find(url, api_key))
        try:
            transport.send(system("DELETE", f"/v1/{cls._kind}s/{name}"))
        finally:
            transport.close()

    def _remove(self) -> None:
        try:
            self._transport.send(system("DELETE", f"/v1/{self._kind}s/{self.name}"))
        except NotFound:  # nobody used it
            return

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __reduce__(self) -> Any:
        self._ensure()  # whoever it is sent to finds it
        return _again, (self._kind, self.name, self._trust)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; what is in it stays."""
        if hasattr(self, "_transport"):
            self._transport.close()

    def _ensure(self) -> None:
        if self._create:
            fields = {"ttl_s": self._ttl_s}
            self._transport.send(system("PUT", f"/v1/{self._kind}s/{self.name}", json=fields))
            self._create = False

    def _send(self, method: str, suffix: str, **parts: Any) -> Any:
        self._ensure()
        try:
            return self._transport.send(system(method, f"/v1/{self._kind}s/{self.name}{suffix}", **parts))
        except NotFound as error:
            kind = type(self).__name__
            raise FunctionError(
                f"there is no {kind} {self.name}: make it by {kind}.from_name(…, create_if_missing=True)"
            ) from error

    def _pack(self, value: Any) -> str:
        try:
            return codec.written(codec.result(value, self._trust))
        except TypeError as error:
            raise NotSerializable(str(error)) from error

    def _unpack(self, text: str) -> Any:
        return codec.decode_result(base64.b64decode(text), self._trust)


def _again(kind: str, name: str, trust: Trust) -> "Dict | Queue":
    """One that was sent along with something: it is there already."""
    return (Dict if kind == "dict" else Queue).from_name(name, trust=trust)


class Dict(_Object):
    """Keys (numbers, text, bytes, tuples of them) and values of up to 1 MiB, in the order that the keys came."""

    _kind = "dict"

    def __init__(self, config: Config, name: str, *, create: bool, ttl_s: float | None, trust: Trust) -> None:
        """Use `from_name` or `ephemeral`."""
        super().__init__(config, name, create=create, ttl_s=ttl_s, trust=trust)
        self.get = Method(self._get)
        self.put = Method(self._put)
        self.pop = Method(self._pop)
        self.update = Method(self._update)
        self.contains = Method(self._contains)
        self.clear = Method(self._clear)

    @staticmethod
    def _key(key: Any) -> str:
        try:
            hash(key)
            return codec.written(codec.encode(key))
        except TypeError as error:
            raise NotSerializable(f"no key for a Dict: {error}") from error

    def _get(self, key: Any, default: Any = None) -> Any:
        """The value, or default."""
        found = self._send("POST", "/get", json={"keys": [self._key(key)]})["values"][0]
        return default if found is None else self._unpack(found)

    def _put(self, key: Any, value: Any, *, if_absent: bool = False) -> bool:
        """Set it; with if_absent only where it is not there. Whether it was set."""
        return self._put_all([(key, value)], if_absent)[0]

    def _put_all(self, items: Iterable[tuple[Any, Any]], if_absent: bool) -> list[bool]:
        packed = [{"key": self._key(key), "value": self._pack(value)} for key, value in items]
        done: list[bool] = []
        for batch in _batches(packed, lambda each: len(each["key"]) + len(each["value"])):
            body = {"items": batch, "if_absent": if_absent, "token": _token()}
            done += self._send("POST", "/put", json=body)["put"]
        return done

    def _update(self, other: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /, **named: Any) -> None:
        """Set many."""
        self._put_all([*(other.items() if isinstance(other, Mapping) else other), *named.items()], False)

    def _pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Take it out: its value, which nobody else gets. KeyError without it, or default."""
        found = self._send("POST", "/pop", json={"keys": [self._key(key)], "token": _token()})["values"][0]
        if found is not None:
            return self._unpack(found)
        if default is _MISSING:
            raise KeyError(key)
        return default

    def _contains(self, key: Any) -> bool:
        """Whether it is there."""
        return self._send("POST", "/get", json={"keys": [self._key(key)]})["values"][0] is not None

    def _clear(self) -> None:
        """Delete all."""
        self._send("POST", "/clear")

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All keys and values; what is set meanwhile may be among them."""
        after: int | None = 0
        while after is not None:
            page = self._send("GET", "/items", params={"after": str(after)})
            for each in page["items"]:
                yield codec.decode(base64.b64decode(each["key"])), self._unpack(each["value"])
            after = page["next"]

    def keys(self) -> Iterator[Any]:
        """All keys."""
        return (key for key, _ in self.items())

    def values(self) -> Iterator[Any]:
        """All values."""
        return (value for _, value in self.items())

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    def __len__(self) -> int:
        return int(self._send("GET", "")["items"])

    def __bool__(self) -> bool:
        return True  # asking whether there is one asks nobody

    def __contains__(self, key: Any) -> bool:
        return self._contains(key)

    def __getitem__(self, key: Any) -> Any:
        if (found := self._get(key, _MISSING)) is _MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._put(key, value)

    def __delitem__(self, key: Any) -> None:
        self._pop(key)


class Queue(_Object):
    """First in, first out, in partitions: each of up to 5,000 values of up to 1 MiB, kept for a day by default."""

    _kind = "queue"

    def __init__(self, config: Config, name: str, *, create: bool, ttl_s: float | None, trust: Trust) -> None:
        """Use `from_name` or `ephemeral`."""
        super().__init__(config, name, create=create, ttl_s=ttl_s, trust=trust)
        self.put = Method(self._put)
        self.put_many = Method(self._put_many)
        self.get = Method(self._get)
        self.get_many = Method(self._get_many)
        self.clear = Method(self._clear)
        self.len = Method(self._len)

    def _put(
        self,
        value: Any,
        *,
        partition: str = "",
        block: bool = True,
        timeout: float | None = None,
        ttl: float = 86400.0,
    ) -> None:
        """At its end, kept for ttl seconds; queue.Full where there is no room in time."""
        self._put_many([value], partition=partition, block=block, timeout=timeout, ttl=ttl)

    def _put_many(
        self,
        values: Iterable[Any],
        *,
        partition: str = "",
        block: bool = True,
        timeout: float | None = None,
        ttl: float = 86400.0,
    ) -> None:
        """Many, in their order."""
        packed, deadline = [self._pack(each) for each in values], _deadline(block, timeout)
        for batch in _batches(packed, len):
            body = {"values": batch, "partition": partition, "ttl_s": ttl, "token": _token()}
            while True:
                wait_s, last = _next_wait(deadline)
                try:
                    self._send("POST", "/put", params={"wait_s": f"{wait_s:.3f}"}, json=body)
                    break
                except ConflictError as error:
                    if last:
                        raise queue.Full(str(error)) from error

    def _get(self, *, block: bool = True, timeout: float | None = None, partition: str = "") -> Any:
        """From its front, which nobody else gets; queue.Empty where nothing came in time."""
        return self._get_many(1, block=block, timeout=timeout, partition=partition)[0]

    def _get_many(
        self, count: int, *, block: bool = True, timeout: float | None = None, partition: str = ""
    ) -> list[Any]:
        """What is there, up to so many, once there is one; queue.Empty where nothing came in time."""
        deadline = _deadline(block, timeout)
        while True:
            wait_s, last = _next_wait(deadline)
            body = {"count": count, "partition": partition, "token": _token()}
            found = self._send("POST", "/get", params={"wait_s": f"{wait_s:.3f}"}, json=body)["values"]
            if found:
                return [self._unpack(each) for each in found]
            if last:
                raise queue.Empty

    def _len(self, *, partition: str = "", total: bool = False) -> int:
        """How many wait in a partition, or in all."""
        found: dict[str, int] = self._send("GET", "/lengths")["partitions"]
        return sum(found.values()) if total else found.get(partition, 0)

    def __len__(self) -> int:
        return self._len(total=True)

    def __bool__(self) -> bool:
        return True  # asking whether there is one asks nobody

    def partitions(self) -> list[str]:
        """Those in which something waits."""
        return sorted(self._send("GET", "/lengths")["partitions"])

    def iterate(self, *, partition: str = "") -> Iterator[Any]:
        """What waits in a partition, left there."""
        after: int | None = 0
        while after is not None:
            page = self._send("GET", "/items", params={"partition": partition, "after": str(after)})
            for each in page["items"]:
                yield self._unpack(each["value"])
            after = page["next"]

    def _clear(self, *, partition: str = "", all: bool = False) -> None:  # as the field has it
        """Delete what waits in a partition, or in all."""
        self._send("POST", "/clear", json={"partition": None if all else partition})


def _batches(packed: list[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Some at a time, as a request takes them."""
    batch: list[T] = []
    total = 0
    for each in packed:
        if batch and (len(batch) == _BATCH or total + size(each) > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(each)
        total += size(each)
    if batch:
        yield batch


def _token() -> str:
    """Has the server do once what it is asked twice."""
    return secrets.token_hex(16)


def _deadline(block: bool, timeout: float | None) -> float | None:
    if not block:
        return 0.0
    return None if timeout is None else time.monotonic() + timeout


def _next_wait(deadline: float | None) -> tuple[float, bool]:
    """How long to wait now, and whether that is all."""
    left = _WAIT_S if deadline is None else max(0.0, deadline - time.monotonic())
    return min(_WAIT_S, left), left < _WAIT_S
