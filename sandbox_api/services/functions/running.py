"""One function at work: its queue, its containers, and the loop that matches them.

Everything that must not be lost is written before it is acted upon: an input is `running` in the store before a runner
hears of it, and its result and its end are one transaction. What a crash leaves is sorted out by asking the runners
what they have in hand.
"""

import asyncio
import base64
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import structlog

from common.errors import IsoboxError
from common.tasks import TaskOwner
from common.turns import turn_budget
from sandbox_api.functions import protocol, scale
from sandbox_api.functions.protocol import Frame, RunnerViolation, Value
from sandbox_api.models.functions import CreateFunction
from sandbox_api.problems import Problem, from_error
from sandbox_api.services.functions.code import questions
from sandbox_api.services.functions.container import Container
from sandbox_api.services.functions.desk import Desk
from sandbox_api.services.functions.queue import InputQueue, Waiting
from sandbox_api.services.functions.visits import Visits
from sandbox_api.store.functions import FunctionRecord, InputRecord

_log = structlog.get_logger(__name__)
_CRASHES_MAX: Final = 3
_PRINTS_MAX: Final = 1 << 20
_DELAY_MAX_S: Final = 60.0
_STARTS_FAILED_MAX: Final = 5
_START_PAUSE_S: Final = 0.5
_INLINE: Final = 48 << 10
_QUESTIONS_SPARE: Final = 8
_SAID_MAX: Final = 64 << 10
_QUESTION_COST: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """What the metrics tell of a function; starts by whether they went well, ends of inputs by how they ended."""

    id: str
    app: str
    name: str
    ready: int
    starting: int
    queued: int
    running: int
    starts: dict[str, int]
    ends: dict[str, int]


class Running:
    """See the module. `desk` is what all functions share."""

    def __init__(self, desk: Desk, record: FunctionRecord) -> None:
        self.record = record
        self.asked = CreateFunction.model_validate(record.asked)
        self.containers: dict[str, Container] = {}
        self.starting = 0
        self.queue = InputQueue()
        self.visits = Visits(self.wake)
        self._desk = desk
        self._store = desk.store
        self._tasks = TaskOwner()
        self._moved = asyncio.Event()
        self._printed: dict[str, int] = {}
        self._failed_starts = 0
        self._not_before = 0.0
        self._settling: set[str] = set()
        self.said = ""
        """The last that its containers printed for no input of theirs."""
        self._lately = scale.Lately()
        self._copies_first = self.asked.snapshot and record.snapshot is None
        """Others begin once the first one's memory has been copied."""
        self.starts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    # ---- from outside

    def put(self, waiting: Waiting) -> None:
        """An input came."""
        self.queue.put(waiting)

    def wake(self) -> None:
        """Something changed."""
        self._dispatch()
        self._moved.set()

    def cancel(self, call: str) -> None:
        """Nobody wants this call any more: what waits is over, what runs is stopped where nothing else would be."""
        for each in self.queue.drop(call):
            found = self._store.input(each.call, each.index)
            if found is not None and found.state != "ended":
                self._end(found, "cancelled", {})
        for container in list(self.containers.values()):
            mine = [each for each in container.hand.values() if each.call == call]
            for running in mine:
                container.let_go(running.id)
                self._end(running, "cancelled", {})
            if mine:
                self._stop(container)  # what its neighbours in there do is done elsewhere
        self.wake()

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do, and nothing to do it with."""
        return not (self.containers or self.starting or self.queue or self.queue.later or self.visits)

    def begin(self) -> None:
        """Keep as many containers as there should be, until `close`."""
        self._tasks.spawn(self._run(), name=f"function {self.record.id}")

    async def _run(self) -> None:
        while True:
            self._moved.clear()
            now = time.time()
            moments = [self.queue.ripen(now), self._expire(now), self._scale(now)]
            self._dispatch()
            upcoming = min((each for each in moments if each is not None), default=None)
            pause = None if upcoming is None else max(0.005, upcoming - time.time())
            try:
                async with asyncio.timeout(pause):
                    await self._moved.wait()
            except TimeoutError:
                continue

    def facts(self) -> FunctionFacts:
        """How it does."""
        there = list(self.containers.values())
        ready = sum(each.ready for each in there)
        return FunctionFacts(
            *(self.record.id, self.asked.app, self.asked.name, ready, len(there) - ready + self.starting),
            *(len(self.queue) + self.queue.later, sum(each.busy for each in there)),
            *(dict(self.starts), dict(self.ends)),
        )

    async def close(self) -> None:
        """The server ends; what runs goes on."""
        await self._tasks.cancel()

    # ---- containers

    def _scale(self, now: float) -> float | None:
        asked = self.asked
        bounds = scale.Bounds(
            least=0 if self.record.retired else min(asked.min_containers, asked.max_containers),
            most=1 if self._copies_first else asked.max_containers,
            buffer=asked.buffer_containers,
            concurrency=asked.concurrency,
            scaledown_s=asked.scaledown_s,
        )
        there = [
            scale.Container(each.sandbox, each.busy, not each.ready, each.idle_since)
            for each in self.containers.values()
            if not each.stopping
        ]
        there += [scale.Container(f"new {n}", starting=True) for n in range(self.starting)]
        found = scale.plan(bounds, len(self.queue) + len(self.visits), there, now, self._lately.pace(self._oldest(now)))
        for name in found.stop:
            self._stop(self.containers[name], kindly=self.asked.exits)
        if found.start and self._not_before > now:
            return self._not_before
        for _ in range(found.start):
            self.starting += 1
            self._tasks.spawn(self._start(), name=f"container of {self.record.id}")
        return found.look_at

    def _oldest(self, now: float) -> float:
        """How long the input that has been in hand for longest has been there."""
        ends = [end for each in self.containers.values() for end in each.deadlines.values()]
        return 0.0 if not ends else now - (min(ends) - self.asked.timeout_s)

    async def _start(self) -> None:
        began = time.time()
        try:
            container = await self._desk.start(self.record, self.asked)
        except IsoboxError as error:
            self._start_failed(error.detail, error.hint, again=from_error(error).retryable)
        except (OSError, TimeoutError) as error:
            self._start_failed(str(error) or type(error).__name__, "", again=True)
        else:
            container.started_at = began
            self.adopt(container)
        finally:
            self.starting -= 1
            self._moved.set()

    def adopt(self, container: Container) -> None:
        """It is one of ours from now on."""
        self.containers[container.sandbox] = container
        self.starts["ok"] += 1
        if self.asked.snapshot and self.record.snapshot is None and not container.busy:
            self._tasks.spawn(self._copy(container), name=f"copy of {container.sandbox}")
        self._tasks.spawn(self._see_through(container), name=f"runner in {container.sandbox}")

    def _start_failed(self, detail: str, hint: str, *, again: bool) -> None:
        self._failed_starts += 1
        self.starts["failed"] += 1
        pause = min(30.0, _START_PAUSE_S * 2.0**self._failed_starts)
        self._not_before = time.time() + pause
        _log.warning("a container did not start", function=self.record.name, error=detail, pause_s=pause)
        if not self.containers and (self._failed_starts >= _STARTS_FAILED_MAX or not again):
            self._fail_all("ContainerFailed", f"no container starts: {detail}", hint)

    async def _copy(self, container: Container) -> None:
        await container.snap.wait()
        await self._desk.copy(self.record, container)
        self._copies_first = False
        self._moved.set()

    async def _see_through(self, container: Container) -> None:
        try:
            await container.pump(self._on_frames)
        except RunnerViolation as error:
            _log.warning("a runner broke the protocol", sandbox=container.sandbox, error=str(error))
            container.violation = str(error)
            await self._desk.end(container)  # it may go on for ever
        finally:
            if not self._desk.closing:
                await self._gone(container)

    async def _gone(self, container: Container) -> None:
        """A runner has ended, whyever: what it had in hand goes to others."""
        self.containers.pop(container.sandbox, None)
        why = await self._desk.why(container)
        for each in list(container.hand.values()):
            container.let_go(each.id)
            if not container.stopping:
                each.crashes += 1
            if each.crashes > _CRASHES_MAX:
                error = {"type": "ContainerCrashed", "message": f"{each.crashes} containers ended under it: {why}"}
                self._end(each, "error", {"error": error})
            else:
                self._requeue(each, first=True)
        if not (container.ready or container.stopping or container.broken):
            words = container.words.decode(errors="replace").strip().splitlines()[-1:]
            self._start_failed(f"the runner ended at once: {' '.join(words) or why}", "", again=True)
        if container.broken is not None:
            broken = container.broken
            self._fail_all(broken.name, broken.text, "", trace=broken.trace)
        await self._desk.end(container)
        self.wake()

    def _stop(self, container: Container, *, kindly: bool = False) -> None:
        if not container.stopping:
            container.stopping = True
            self._tasks.spawn(self._end_container(container, kindly), name=f"end {container.sandbox}")

    async def _end_container(self, container: Container, kindly: bool) -> None:
        if kindly:
            await self._desk.bid_farewell(container)
        await self._desk.end(container)

    def _fail_all(self, name: str, message: str, hint: str, *, trace: str = "") -> None:
        error = {"type": name, "message": message, "hint": hint, "traceback": trace}
        self.visits.refuse(Problem(502, "container_failed", f"{name}: {message}", hint=hint))
        for each in self.queue.drain():
            found = self._store.input(each.call, each.index)
            if found is not None and found.state != "ended":
                self._end(found, "error", {"error": error})

    # ---- inputs

    def _dispatch(self) -> None:
        for container in list(self.containers.values()):
            if container.ready and not container.stopping and container.sandbox not in self._settling:
                self.visits.admit(container, self.asked.concurrency)
            while (
                container.ready
                and not container.stopping
                and container.sandbox not in self._settling
                and container.busy - container.waiting < self.asked.concurrency
            ):
                beside = len(container.hand) - len(container.beside) >= self.asked.concurrency
                waiting = self.queue.take(below=self._deepest(container) if beside else -1)
                if waiting is None:
                    break
                found = self._store.input(waiting.call, waiting.index)
                if found is None or found.state == "ended":
                    continue
                found.state, found.container = "running", container.sandbox
                self._store.save_input(found)
                container.take(found, time.time() + self.asked.timeout_s)
                if beside:
                    container.beside.add(found.id)
                self._moved.set()  # there is a deadline now
                self._tasks.spawn(self._send(container, found), name=f"input {found.id}")

    async def _send(self, container: Container, record: InputRecord) -> None:
        try:
            argument = await self._desk.argument(container, self.record.tenant, record)
        except IsoboxError as error:
            if container.let_go(record.id) is not None:
                self._end(record, "error", {"error": {"type": "InputLost", "message": error.detail}})
            return
        await container.send(protocol.run(record.id, argument, beside=record.id in container.beside))

    def _depth(self, call: str) -> int:
        found = self._desk.call(call)
        return 0 if found is None else found.depth

    def _deepest(self, container: Container) -> int:
        """Of what it has in hand.

        An input that waits for a call of its own gives its place to deeper ones alone: so calls that call each other
        never wait for a place in a circle, and whatever calls nothing sees no other input beside it.
        """
        return max((self._depth(each.call) for each in container.hand.values()), default=-1)

    def _requeue(self, record: InputRecord, *, first: bool = False) -> None:
        record.state, record.container = "queued", None
        self._store.save_input(record)
        waiting = Waiting(record.call, record.index, record.not_before, self._depth(record.call))
        self.queue.put(waiting, first=first)

    def _expire(self, now: float) -> float | None:
        """What runs for too long is stopped; the next moment to look."""
        upcoming = []
        for container in list(self.containers.values()):
            for id_, deadline in list(container.deadlines.items()):
                if deadline > now:
                    upcoming.append(deadline)
                    continue
                record = container.let_go(id_)
                if record is not None:
                    self._stop(container)  # what its neighbours in there do is done elsewhere
                    message = f"it ran longer than timeout_s={self.asked.timeout_s:g}"
                    self._failed(record, {"type": "FunctionTimeout", "message": message})
        return min(upcoming, default=None)

    # ---- what became of them

    def _on_frames(self, container: Container, frames: list[Frame], taken: int) -> None:
        """All that these lines of the log tell is written together with how far the log has been dealt with."""
        with self._store.transaction():
            for frame in frames:
                self._on_frame(container, frame)
            self._store.save_container(container.record)
        if any(frame.kind == "ready" for frame in frames):
            self._failed_starts = 0
            if container.started_at is not None:
                self._lately.started(time.time() - container.started_at)
        for call in {frame.input.rpartition(".")[0] for frame in frames if frame.input}:
            self._desk.tell(call)
        self.wake()

    def _on_frame(self, container: Container, frame: Frame) -> None:
        if frame.kind == "ask":
            if len(container.asked) >= questions(self.asked) + _QUESTIONS_SPARE:
                raise RunnerViolation("more questions at once than a runner asks")
            if frame.number not in container.asked:  # else it asks again, and we are at it
                container.asked.add(frame.number)
                self._tasks.spawn(self._answer(container, frame), name=f"question of {container.sandbox}")
            return
        if frame.kind == "print" and not frame.input:
            self.said = (self.said + frame.text)[-_SAID_MAX:]
            return
        record = container.hand.get(frame.input)
        if record is None:  # it was given up, or never this runner's
            return
        match frame.kind:
            case "print":
                size = self._printed.get(record.id, 0)
                if size < _PRINTS_MAX and self._may_keep(record, len(frame.text)):
                    self._printed[record.id] = size + len(frame.text)
                    self._store.add_result(
                        record.call, record.index, "print", {"stream": frame.number or 1, "text": frame.text}
                    )
            case "yield":
                if frame.number >= record.yields and self._has_room(container, record, frame.value):
                    # Not one that an earlier attempt gave.
                    record.yields = frame.number + 1
                    self._store.save_input(record)
                    self._add(container, record, "yield", frame.value, {"number": frame.number})
            case "done":
                if not self._has_room(container, record, frame.value):
                    return
                if frame.value is not None and frame.value.file:
                    self._fetch(container, record, "done", frame.value, {})
                else:
                    took = time.time() - container.deadlines.get(record.id, time.time()) + self.asked.timeout_s
                    self._lately.done(took)
                    container.let_go(record.id)
                    self._end(record, "done", _data(frame.value))
            case "error":
                container.let_go(record.id)
                error = {"type": frame.name, "message": frame.text, "traceback": frame.trace}
                value = frame.value
                if value is not None and not value.file and len(value.data) <= _INLINE:
                    error["data"] = base64.b64encode(value.data).decode()
                self._failed(record, error)

    def _may_keep(self, record: InputRecord, size: int) -> bool:
        """Whether there is room for a result of so many bytes, which is taken."""
        call = self._desk.call(record.call)
        try:
            if call is not None:
                self._desk.values.take(call, size)
        except Problem:
            return False
        return True

    def _has_room(self, container: Container, record: InputRecord, value: Value | None) -> bool:
        """The same for a value; where there is none its input is over, and nobody in the container goes on."""
        size = 0 if value is None else value.size if value.file else len(value.data)
        disk = self.asked.resources.disk_mb << 20
        if value is not None and value.file and container.fetching + size > disk:
            message = f"results of {container.fetching + size} bytes, and its container has a disk of {disk}"
        elif not self._may_keep(record, size):
            message = "the results of the tenant's calls take as much as they may: ISOBOX_VALUES_QUOTA_MB"
        else:
            return True
        container.let_go(record.id)
        self._stop(container)
        self._end(record, "error", {"error": {"type": "ResultLost", "message": message}})
        self._desk.tell(record.call)
        return False

    def _add(
        self, container: Container, record: InputRecord, kind: str, value: Value | None, doc: dict[str, Any]
    ) -> None:
        if value is not None and value.file:
            self._fetch(container, record, kind, value, doc)
        else:
            self._store.add_result(record.call, record.index, kind, _data(value) | doc)

    def _fetch(self, container: Container, record: InputRecord, kind: str, value: Value, doc: dict[str, Any]) -> None:
        """A large value: read out of the container before its input is over."""
        container.fetching += value.size
        work = self._fetched(container, record, kind, value, doc)
        self._tasks.spawn(work, name=f"value of {record.id}")

    async def _fetched(
        self, container: Container, record: InputRecord, kind: str, value: Value, doc: dict[str, Any]
    ) -> None:
        try:
            name = await self._desk.fetch(container, record.call, value)
        except IsoboxError as error:
            self._not_kept(record, value)
            if container.let_go(record.id) is not None:
                self._failed(record, {"type": "ResultLost", "message": error.detail})
                self._desk.tell(record.call)
            return
        finally:
            container.fetching -= value.size
        if container.hand.get(record.id) is not record:  # it was given up meanwhile
            self._desk.values.drop(record.call, name)
            self._not_kept(record, value)
            return
        doc = doc | {"value": name, "file": value.size}
        if kind == "done":
            container.let_go(record.id)
            self._end(record, kind, doc)
        else:
            self._store.add_result(record.call, record.index, kind, doc)
        self._desk.tell(record.call)
        self.wake()

    def _not_kept(self, record: InputRecord, value: Value) -> None:
        if (call := self._desk.call(record.call)) is not None:
            self._desk.values.give(call, value.size)

    async def _answer(self, container: Container, frame: Frame) -> None:
        """A question of the function's; one that waits for a call lets others have its place meanwhile."""
        await turn_budget().take(_QUESTION_COST)
        waits = frame.input in container.hand and _waits_for_a_call(frame)
        if waits:
            container.waits[frame.input] += 1
            self.wake()
        try:
            line = await self._desk.answer(self.record, container, frame)
        finally:
            if waits:
                container.waits.subtract([frame.input])
                container.waits += Counter()  # without those that are at zero
        await container.send(line)
        container.answered.add(frame.number)

    def _failed(self, record: InputRecord, error: dict[str, Any]) -> None:
        retries = self.asked.retries
        record.attempts += 1
        if record.attempts > retries.count:
            self._end(record, "error", {"error": error})
            self._desk.tell(record.call)
            return
        delay = min(_DELAY_MAX_S, retries.delay_s * retries.factor ** (record.attempts - 1))
        record.not_before = time.time() + delay
        self._requeue(record)
        self._moved.set()

    def _end(self, record: InputRecord, kind: str, doc: dict[str, Any]) -> None:
        """Its result, its end and its call's count: together."""
        if record.state == "ended":
            return
        record.state = "ended"
        self._printed.pop(record.id, None)
        self.ends[kind] += 1
        self._desk.end_input(record, kind, doc)

    # ---- after a restart

    def take_over(self, container: Container, running: list[InputRecord]) -> None:
        """Go on with a container of an earlier server, which had these inputs, as far as that knew."""
        for each in running:
            container.take(each, time.time() + self.asked.timeout_s)
        self._settling.add(container.sandbox)
        self.adopt(container)
        self._tasks.spawn(self._settle(container), name=f"settle {container.sandbox}")

    async def _settle(self, container: Container) -> None:
        try:
            has = set(await container.have())
        except (TimeoutError, RunnerViolation, IsoboxError) as error:
            _log.info("a runner does not answer", sandbox=container.sandbox, error=str(error))
            self._stop(container)
            return
        finally:
            self._settling.discard(container.sandbox)
        for each in list(container.hand.values()):
            if each.id not in has:  # the earlier server did not live to tell it
                container.let_go(each.id)
                self._requeue(each, first=True)
        self._copies_first = False  # its chance may have passed
        await container.send(protocol.go_on())
        await container.send(protocol.again())
        self.wake()


def _waits_for_a_call(frame: Frame) -> bool:
    """Whether whoever asks this does nothing but wait for a call of its own."""
    return frame.name in ("GET", "POST") and frame.text.startswith(("/v1/calls/", "/v1/functions/"))


def _data(value: Value | None) -> dict[str, Any]:
    return {} if value is None else {"data": base64.b64encode(value.data).decode()}
