"""Dicts and queues: named places where functions and their callers leave things for each other.

A change may carry a token; the same again is answered from memory and not done twice, also after the server was killed:
the change and its answer are one transaction.
"""

import asyncio
import base64
import json
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from common.ids import new_id
from sandbox_api.models.objects import GetValues, Items, Keys, PutItems, PutValues, Shown
from sandbox_api.problems import Problem, not_found
from sandbox_api.store.functions import FunctionStore
from sandbox_api.store.objects import Kind, ObjectRecord, ObjectStore

_OBJECTS_MAX: Final = 10_000
_BYTES_MAX: Final = 1 << 30
_TENANT_BYTES_MAX: Final = 16 << 30
_LARGE: Final = 1 << 20
"""Bytes of an object from which on it is looked at what all of its tenant's take: 10,000 of less are 10 GiB."""

_ANSWERS_BYTES_MAX: Final = 32 << 20
"""Of one tenant's answers that are remembered, which their tokens repeat; the oldest go first."""

_ANSWER_COST: Final = 512
_QUEUE_MAX: Final = 5000
_ANSWERS_KEPT_S: Final = 3600.0
_USED_STEP_S: Final = 60.0
_LOOK_S: Final = 30.0
_PAGE: Final = 500
_PAGE_BYTES: Final = 1 << 20
_ANSWER_BYTES: Final = 8 << 20

Gone = Callable[[], Awaitable[bool]]
"""Tells whether whoever waits has gone: nothing is taken out for nobody."""


class Remembered:
    """Which answers of a tenant's are remembered, so that they take no more than they may. No I/O."""

    def __init__(self, limit: int = _ANSWERS_BYTES_MAX) -> None:
        self._limit = limit
        self._sizes: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.size = 0

    def add(self, id_: str, token: str, size: int) -> list[tuple[str, str]]:
        """An object's answer is remembered by its token: which others are to be forgotten for it (object, token)."""
        self.size += _ANSWER_COST + size - self._sizes.pop((id_, token), 0)
        self._sizes[id_, token] = _ANSWER_COST + size
        gone = []
        while self.size > self._limit and len(self._sizes) > 1:
            oldest, least = self._sizes.popitem(last=False)
            self.size -= least
            gone.append(oldest)
        return gone


class ObjectService:
    """The use cases of dicts and queues."""

    def __init__(self, store: ObjectStore, functions: FunctionStore) -> None:
        self._store = store
        self._transaction = functions.transaction
        self._moved: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._answers: dict[str, Remembered] = defaultdict(Remembered)
        """By tenant, what this server answered."""

    # ---- objects

    def create(self, tenant: str, kind: Kind, name: str, ttl_s: float | None) -> ObjectRecord:
        """One by this name; the one that there is, if there is one."""
        if (known := self._store.find(tenant, kind, name)) is not None:
            return known
        if len(self._store.all(tenant)) >= _OBJECTS_MAX:
            raise Problem(429, "too_many_objects", f"{_OBJECTS_MAX} dicts and queues are the most", hint="delete some")
        record = ObjectRecord(new_id("obj"), tenant, kind, name, time.time(), time.time(), ttl_s)
        self._store.save(record)
        return record

    def get(self, tenant: str, kind: Kind, name: str) -> ObjectRecord:
        """One of the tenant's; 404."""
        record = self._store.find(tenant, kind, name)
        if record is None:
            raise not_found(kind)
        if (now := time.time()) > record.used_at + _USED_STEP_S:
            record.used_at = now
            self._store.save(record)
        return record

    def all(self, tenant: str, kind: Kind) -> list[ObjectRecord]:
        """The tenant's, by name."""
        return self._store.all(tenant, kind)

    def count(self, record: ObjectRecord) -> int:
        """How many items it has."""
        return self._store.size(record.id)[0]

    def delete(self, tenant: str, kind: Kind, name: str) -> None:
        """Delete it with all that is in it; 404."""
        record = self.get(tenant, kind, name)
        with self._transaction():
            self._store.forget(record.id)
        self._tell(record)

    def _once(self, record: ObjectRecord, token: str | None, change: Callable[[], Any]) -> Any:
        """A change and its answer, together."""
        if token is not None and (known := self._store.answered(record.id, token)) is not None:
            return json.loads(known)
        with self._transaction():
            answer = change()
            if token is not None:
                self._remember(record, token, json.dumps(answer))
        return answer

    def _remember(self, record: ObjectRecord, token: str, answer: str) -> None:
        self._store.answer(record.id, token, time.time(), answer)
        for id_, oldest in self._answers[record.tenant].add(record.id, token, len(answer)):
            self._store.forget_answer(id_, oldest)

    # ---- dicts

    def values(self, tenant: str, name: str, asked: Keys) -> list[str | None]:
        """The values of keys."""
        record = self.get(tenant, "dict", name)
        return self._read(record, asked.keys)

    def _read(self, record: ObjectRecord, keys: list[bytes]) -> list[str | None]:
        found, size = [], 0
        for value in self._store.get(record.id, keys):
            size += 0 if value is None else len(value)
            if size > _ANSWER_BYTES:
                hint = "ask for fewer keys at once"
                raise Problem(413, "answer_too_large", f"the values are more than {_ANSWER_BYTES >> 20} MiB", hint=hint)
            found.append(_text(value))
        return found

    def pop(self, tenant: str, name: str, asked: Keys) -> list[str | None]:
        """The same, and they are gone."""
        record, token = self.get(tenant, "dict", name), _token("pop", asked.token)

        def change() -> list[str | None]:
            found = self._read(record, asked.keys)
            for key in asked.keys:
                self._store.remove(record.id, key)
            return found

        answer: list[str | None] = self._once(record, token, change)
        return answer

    def put(self, tenant: str, name: str, asked: PutItems) -> list[bool]:
        """Set some; 507 where there is no room for them."""
        record, token = self.get(tenant, "dict", name), _token("put", asked.token)
        items = [(each.key, each.value) for each in asked.items]

        def change() -> list[bool]:
            done = [self._store.put(record.id, key, value, if_absent=asked.if_absent) for key, value in items]
            self._check_size(record)
            return done

        answer: list[bool] = self._once(record, token, change)
        return answer

    def items(self, tenant: str, name: str, after: int) -> Items:
        """Some of its items."""
        record = self.get(tenant, "dict", name)
        return _page(self._store.items(record.id, after, _PAGE + 1))

    def clear(self, tenant: str, name: str) -> None:
        """Delete all in it."""
        self._store.clear(self.get(tenant, "dict", name).id)

    # ---- queues

    async def put_values(self, tenant: str, name: str, asked: PutValues, wait_s: float) -> None:
        """At the end of a partition; 409 where there was no room in time."""
        deadline, token = time.monotonic() + wait_s, _token("put", asked.token)
        while True:
            record = self.get(tenant, "queue", name)
            known = token and self._store.answered(record.id, token)
            if known or self._store.length(record.id, asked.partition, time.time()) + len(asked.values) <= _QUEUE_MAX:
                break
            if not await self._wait(record, deadline):
                raise Problem(
                    409, "queue_full", f"a partition holds {_QUEUE_MAX} values", hint="take some out", retryable=True
                )
        expires = time.time() + asked.ttl_s

        def change() -> bool:
            self._store.append(record.id, asked.partition, asked.values, expires)
            self._check_size(record)
            return True

        self._once(record, token, change)
        self._tell(record)

    async def take(self, tenant: str, name: str, asked: GetValues, wait_s: float, gone: Gone) -> list[str]:
        """From the front of a partition, waiting for the first; none where nothing came in time."""
        deadline, token = time.monotonic() + wait_s, _token("get", asked.token)
        while True:
            record = self.get(tenant, "queue", name)

            def change(id_: str = record.id) -> list[str]:
                found, size = [], 0
                for seq, value in self._store.peek(id_, asked.partition, 0, asked.count, time.time()):
                    found.append((seq, value))
                    size += len(value)
                    if size > _PAGE_BYTES:  # the rest is for the next question
                        break
                self._store.take([seq for seq, _ in found])
                return [_encoded(value) for _, value in found]

            if self._store.length(record.id, asked.partition, time.time()) and await gone():
                return []
            known = token and self._store.answered(record.id, token)
            if known or self._store.length(record.id, asked.partition, time.time()):
                answer: list[str] = self._once(record, token, change)
                self._tell(record)
                return answer
            if not await self._wait(record, deadline):
                return []

    def peek(self, tenant: str, name: str, partition: str, after: int) -> Items:
        """What waits in a partition, from a place on; the keys are empty."""
        record = self.get(tenant, "queue", name)
        rows = self._store.peek(record.id, partition, after, _PAGE + 1, time.time())
        return _page((seq, None, value) for seq, value in rows)

    def lengths(self, tenant: str, name: str) -> dict[str, int]:
        """How many values wait, by partition."""
        return self._store.lengths(self.get(tenant, "queue", name).id, time.time())

    def clear_queue(self, tenant: str, name: str, partition: str | None) -> None:
        """Delete all of a partition, or of all."""
        record = self.get(tenant, "queue", name)
        self._store.clear_queue(record.id, partition)
        self._tell(record)

    # ---- waiting

    def _tell(self, record: ObjectRecord) -> None:
        if (moved := self._moved.pop(record.id, None)) is not None:
            moved.set()

    async def _wait(self, record: ObjectRecord, deadline: float) -> bool:
        """Until something happens in it; False once it is too late."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._moved[record.id].wait()
        except TimeoutError:
            return False
        return True

    def _check_size(self, record: ObjectRecord) -> None:
        size = self._store.size(record.id)[1]
        if size > _BYTES_MAX:
            raise Problem(507, "object_full", f"a dict or queue holds {_BYTES_MAX >> 30} GiB", hint="delete some of it")
        if size > _LARGE and self._store.bytes_of(record.tenant) > _TENANT_BYTES_MAX:
            most = f"all dicts and queues hold {_TENANT_BYTES_MAX >> 30} GiB"
            raise Problem(507, "objects_full", most, hint="delete some")

    # ---- by themselves

    async def watch(self) -> None:
        """Forget what nobody wants any more, for ever."""
        while True:
            now = time.time()
            with self._transaction():
                self._store.expire(now)
                self._store.forget_answers(now - _ANSWERS_KEPT_S)
                for each in self._store.all(None):
                    if each.ttl_s is not None and each.used_at + each.ttl_s + _USED_STEP_S < now:
                        self._store.forget(each.id)
            await asyncio.sleep(_LOOK_S)


def _page(rows: Iterable[tuple[int, bytes | None, bytes]]) -> Items:
    """As many as a page holds; where the others begin, if there are any."""
    found, size = Items(items=[], next=None), 0
    last = 0
    for seq, key, value in rows:
        if len(found.items) == _PAGE or size > _PAGE_BYTES:
            found.next = last
            break
        found.items.append(Shown(key=_text(key), value=_encoded(value)))
        last, size = seq, size + len(value)
    return found


def _token(what: str, token: str | None) -> str | None:
    """The same word for another change is another token."""
    return None if token is None else f"{what} {token}"


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(data: bytes | None) -> str | None:
    return None if data is None else _encoded(data)
