"""What a container asks of the server, through its runner: no network, no key.

It is answered requests of the API about its own app's functions and calls, and its tenant's dicts and queues; one whose
function is `restricted` is answered none. It is the guest's word: the paths are matched whole, bodies are read by the
API's own models, and whatever belongs to another app is not there.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ValidationError

from common.errors import IsoboxError
from sandbox_api.functions import protocol
from sandbox_api.functions.protocol import Frame, Value
from sandbox_api.models.functions import AddInputs, CreateCall
from sandbox_api.models.objects import (
    WAIT_MAX_S,
    ClearQueue,
    CreateObject,
    GetValues,
    Keys,
    Lengths,
    Put,
    PutItems,
    PutValues,
    Taken,
    Values,
)
from sandbox_api.problems import Problem, from_error, invalid, not_found
from sandbox_api.services.functions.container import Container
from sandbox_api.services.functions.desk import Desk, once
from sandbox_api.services.functions.runs import RunService
from sandbox_api.services.functions.service import FunctionService
from sandbox_api.services.objects import ObjectService
from sandbox_api.services.uploads import UPLOAD_MAX, Uploads
from sandbox_api.store.functions import CallRecord, FunctionRecord

_BODY_MAX: Final = 8 << 20
_WAIT_MAX_S: Final = 60.0
_DEPTH_MAX: Final = 32
_FOLDER: Final = "asks"
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Question:
    """A request of a container's: by which function, for which of its calls, with what."""

    function: FunctionRecord
    call: CallRecord | None
    query: dict[str, str]
    contents: AsyncIterator[bytes]

    async def body(self, kind: type[M]) -> M:
        """What it sends, as the API reads it; 413, 422."""
        raw = bytearray()
        async for piece in self.contents:
            raw += piece
            if len(raw) > _BODY_MAX:
                raise Problem(413, "body_too_large", f"a question is of at most {_BODY_MAX >> 20} MiB")
        try:
            return kind.model_validate_json(bytes(raw))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(each) for each in first["loc"])
            raise invalid(f"{where}: {first['msg']}" if where else first["msg"]) from error

    def number(self, name: str, most: float) -> float:
        """A number of the query's, 0 without one; 422."""
        try:
            found = float(self.query.get(name, "0"))
        except ValueError:
            found = -1.0
        if not 0 <= found <= most:
            raise invalid(f"{name} is no number from 0 to {most:g}")
        return found


Answer = tuple[int, bytes | AsyncIterator[bytes]]


class Asks:
    """See the module."""

    def __init__(
        self, desk: Desk, functions: FunctionService, runs: RunService, objects: ObjectService, uploads: Uploads
    ) -> None:
        self._desk = desk
        self._functions = functions
        self._runs = runs
        self._objects = objects
        self._uploads = uploads

    async def answer(self, function: FunctionRecord, container: Container, frame: Frame) -> bytes:
        """The line that the runner is told."""
        try:
            status, contents = await self._answer(function, container, frame)
            value = await self._desk.given(container, contents)
        except IsoboxError as error:
            problem = from_error(error)
            status, value = problem.status, await self._desk.given(container, json.dumps(problem.document("")).encode())
        return protocol.answer(frame.number, status, value)

    async def _answer(self, function: FunctionRecord, container: Container, frame: Frame) -> Answer:
        if function.asked.get("restricted"):
            raise Problem(
                403,
                "restricted",
                f"{function.app}.{function.name} may not call other functions, nor use dicts and queues",
                hint="define it without restricted=True",
            )
        path, _, query = frame.text.partition("?")
        handler, parts = next(
            (
                (handler, match.groups())
                for method, pattern, handler in _ROUTES
                if method == frame.name and (match := pattern.fullmatch(path)) is not None
            ),
            (None, ()),
        )
        if handler is None:
            raise Problem(404, "path_not_found", f"containers cannot ask for {frame.name} {path[:100]}")
        try:
            fields = {key: values[-1] for key, values in parse_qs(query, strict_parsing=bool(query)).items()}
        except ValueError as error:
            raise invalid(f"a query that cannot be read: {error}") from error
        record = container.hand.get(frame.input)
        call = None if record is None else self._desk.call(record.call)
        most = UPLOAD_MAX if handler is Asks.upload else _BODY_MAX
        async with self._contents(function.tenant, container, frame.value, most) as contents:
            found: Answer = await handler(self, Question(function, call, fields, contents), *parts)
            return found

    @asynccontextmanager
    async def _contents(
        self, tenant: str, container: Container, value: Value | None, most: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        if value is None or not value.file:
            yield once(b"" if value is None else value.data)
            return
        if value.size > most:
            raise Problem(413, "body_too_large", f"a question is of at most {most >> 20} MiB")
        values = self._desk.values
        values.take_for_a_while(tenant, value.size)
        try:
            name = await self._desk.fetch(container, _FOLDER, value)
            try:
                yield values.read(_FOLDER, name)
            finally:
                values.drop(_FOLDER, name)
        finally:
            values.give_back(tenant, value.size)

    # ---- functions and calls

    async def _own(self, question: Question, function: str) -> FunctionRecord:
        found = await self._functions.get(question.function.tenant, function)
        if found.app != question.function.app:
            raise not_found("function")
        return found

    async def _own_call(self, question: Question, call: str) -> str:
        found = self._desk.call(call)
        if found is None or found.tenant != question.function.tenant:
            raise not_found("call")
        await self._own(question, found.function)
        return question.function.tenant

    async def find(self, question: Question) -> Answer:
        """A function of its app, by its name."""
        run = None if question.call is None else question.call.run
        name = (question.query.get("name", ""), question.query.get("parameters"))
        found = await self._runs.find(question.function, run, name)
        return 200, json.dumps({"id": found.id}).encode()

    async def create_call(self, question: Question, function: str) -> Answer:
        """A call, one deeper than that which it is made for."""
        await self._own(question, function)
        asked, above = await question.body(CreateCall), question.call
        depth = 1 if above is None else above.depth + 1
        if depth > _DEPTH_MAX:
            raise Problem(
                422, "too_deep", f"calls call calls {_DEPTH_MAX} deep", hint="call the function as it is: f(x)"
            )
        asked.run = None if above is None else above.run
        return 201, _json(await self._functions.call(question.function.tenant, function, asked, depth=depth))

    async def results(self, question: Question, call: str) -> Answer:
        """What happened in a call."""
        tenant = await self._own_call(question, call)
        after, wait_s = int(question.number("after", 1 << 53)), question.number("wait_s", _WAIT_MAX_S)
        return 200, _json(await self._functions.results(tenant, call, after, wait_s))

    async def add_inputs(self, question: Question, call: str) -> Answer:
        """More inputs of a call."""
        tenant = await self._own_call(question, call)
        return 200, _json(await self._functions.add(tenant, call, await question.body(AddInputs)))

    async def value(self, question: Question, call: str, seq: str) -> Answer:
        """A large value."""
        tenant = await self._own_call(question, call)
        return 200, await self._functions.value(tenant, call, int(seq))

    async def cancel(self, question: Question, call: str) -> Answer:
        """End a call."""
        return 200, _json(await self._functions.cancel(await self._own_call(question, call), call))

    async def has_upload(self, question: Question, digest: str) -> Answer:
        """Whether something was sent ahead."""
        return (200 if self._uploads.has(question.function.tenant, digest) else 404), b""

    async def upload(self, question: Question, digest: str) -> Answer:
        """Send something ahead."""
        await self._uploads.put(question.function.tenant, digest, question.contents)
        return 204, b""

    # ---- dicts and queues

    async def create_object(self, question: Question, kind: str, name: str) -> Answer:
        """A dict or queue by this name."""
        asked = await question.body(CreateObject)
        self._objects.create(question.function.tenant, "dict" if kind == "dict" else "queue", name, asked.ttl_s)
        return 200, b"{}"

    async def values(self, question: Question, name: str) -> Answer:
        """Values of a dict."""
        return 200, _json(
            Values(values=self._objects.values(question.function.tenant, name, await question.body(Keys)))
        )

    async def put(self, question: Question, name: str) -> Answer:
        """Set some of a dict."""
        return 200, _json(Put(put=self._objects.put(question.function.tenant, name, await question.body(PutItems))))

    async def pop(self, question: Question, name: str) -> Answer:
        """Take some out of a dict."""
        return 200, _json(Values(values=self._objects.pop(question.function.tenant, name, await question.body(Keys))))

    async def items(self, question: Question, name: str) -> Answer:
        """Some items of a dict."""
        after = int(question.number("after", 1 << 53))
        return 200, _json(self._objects.items(question.function.tenant, name, after))

    async def clear(self, question: Question, name: str) -> Answer:
        """Empty a dict."""
        self._objects.clear(question.function.tenant, name)
        return 204, b""

    async def put_values(self, question: Question, name: str) -> Answer:
        """Into a queue."""
        asked, wait_s = await question.body(PutValues), question.number("wait_s", WAIT_MAX_S)
        await self._objects.put_values(question.function.tenant, name, asked, wait_s)
        return 204, b""

    async def take(self, question: Question, name: str) -> Answer:
        """Out of a queue."""
        asked, wait_s = await question.body(GetValues), question.number("wait_s", WAIT_MAX_S)
        return 200, _json(Taken(values=await self._objects.take(question.function.tenant, name, asked, wait_s, _never)))

    async def peek(self, question: Question, name: str) -> Answer:
        """What waits in a queue."""
        after, partition = int(question.number("after", 1 << 53)), question.query.get("partition", "")
        return 200, _json(self._objects.peek(question.function.tenant, name, partition, after))

    async def lengths(self, question: Question, name: str) -> Answer:
        """How much waits in a queue."""
        return 200, _json(Lengths(partitions=self._objects.lengths(question.function.tenant, name)))

    async def clear_queue(self, question: Question, name: str) -> Answer:
        """Empty a queue."""
        self._objects.clear_queue(question.function.tenant, name, (await question.body(ClearQueue)).partition)
        return 204, b""


async def _never() -> bool:
    return False


def _json(found: BaseModel) -> bytes:
    return found.model_dump_json().encode()


def _route(method: str, pattern: str, handler: Callable[..., Awaitable[Answer]]) -> Any:
    return method, re.compile(pattern), handler


_FUNCTION, _CALL = "(fun[a-z2-7]{26})", "(cal[a-z2-7]{26})"
_NAME, _DIGEST = "([A-Za-z0-9][A-Za-z0-9._-]{0,62})", "(sha256:[0-9a-f]{64})"
_ROUTES: Final = [
    _route("GET", "/find", Asks.find),
    _route("POST", f"/v1/functions/{_FUNCTION}/calls", Asks.create_call),
    _route("GET", f"/v1/calls/{_CALL}", Asks.results),
    _route("POST", f"/v1/calls/{_CALL}/inputs", Asks.add_inputs),
    _route("GET", f"/v1/calls/{_CALL}/values/([0-9]{{1,15}})", Asks.value),
    _route("DELETE", f"/v1/calls/{_CALL}", Asks.cancel),
    _route("HEAD", f"/v1/uploads/{_DIGEST}", Asks.has_upload),
    _route("PUT", f"/v1/uploads/{_DIGEST}", Asks.upload),
    _route("PUT", f"/v1/(dict|queue)s/{_NAME}", Asks.create_object),
    _route("POST", f"/v1/dicts/{_NAME}/get", Asks.values),
    _route("POST", f"/v1/dicts/{_NAME}/put", Asks.put),
    _route("POST", f"/v1/dicts/{_NAME}/pop", Asks.pop),
    _route("GET", f"/v1/dicts/{_NAME}/items", Asks.items),
    _route("POST", f"/v1/dicts/{_NAME}/clear", Asks.clear),
    _route("POST", f"/v1/queues/{_NAME}/put", Asks.put_values),
    _route("POST", f"/v1/queues/{_NAME}/get", Asks.take),
    _route("GET", f"/v1/queues/{_NAME}/items", Asks.peek),
    _route("GET", f"/v1/queues/{_NAME}/lengths", Asks.lengths),
    _route("POST", f"/v1/queues/{_NAME}/clear", Asks.clear_queue),
]
