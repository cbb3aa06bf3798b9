"""Functions that take many inputs at once: `@isobox.batched`. Lies beside runner.py in the sandbox.

One thread: what is called for is gathered until a batch is full, or its first input has waited long enough.
"""

from __future__ import annotations

import time
from _queue import Empty, SimpleQueue
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Asked = tuple[str, tuple[Any, ...], dict[str, Any]]
    Waiting = SimpleQueue[tuple[str, dict[str, str]] | None]


def serve_batches(runner: Any, waiting: Waiting) -> None:
    """Do what comes, batch by batch, to the end; runner is runner.py's."""
    gathering = Gathering(runner, waiting)
    while (first := gathering.first()) is not None:
        name, size, wait_s = runner.function.batch(first[1])
        if size:
            do(runner, gathering.like(first, size, wait_s), name)
        else:
            runner.run(first[0], first[1], first[2])


class Gathering:
    """What came and has not been done."""

    def __init__(self, runner: Any, waiting: Waiting) -> None:
        self._runner = runner
        self._waiting = waiting
        self._aside: deque[Asked] = deque()
        self._over = False

    def first(self) -> Asked | None:
        """The next, however long it takes; None at the end."""
        return self._aside.popleft() if self._aside else self._next(None)

    def like(self, first: Asked, size: int, wait_s: float) -> list[Asked]:
        """That one, and those that come in time and can be done with it."""
        found, kind = [first], self._kind(first)
        for each in list(self._aside):
            if len(found) < size and self._kind(each) == kind:
                self._aside.remove(each)
                found.append(each)
        deadline = time.monotonic() + wait_s
        while len(found) < size and (other := self._next(max(0.0, deadline - time.monotonic()))) is not None:
            (found if self._kind(other) == kind else self._aside).append(other)
        return found

    def _kind(self, asked: Asked) -> tuple[object, ...]:
        _, args, kwargs = asked
        return self._runner.function.batch(args)[0], len(args), sorted(kwargs)

    def _next(self, timeout: float | None) -> Asked | None:
        while not self._over:
            try:
                asked = self._waiting.get(timeout=timeout)
            except Empty:
                return None
            if asked is None:
                self._over = True
                break
            try:
                return asked[0], *self._runner.codec.arguments(self._runner.value(asked[1]))
            except BaseException as error:
                self._runner.fail(asked[0], error)
                self._runner.hand.pop(asked[0], None)
        return None


def do(runner: Any, inputs: list[Asked], name: str | None) -> None:
    """Once for all of them; what it prints is the first one's."""
    numbers = [each[0] for each in inputs]
    token = runner.input.set(numbers[0])
    try:
        lists = [list(each) for each in zip(*(args[name is not None :] for _, args, _ in inputs), strict=True)]
        named = {key: [kwargs[key] for _, _, kwargs in inputs] for key in inputs[0][2]}
        results = runner.settled(runner.function(*([] if name is None else [name]), *lists, **named))
        if not isinstance(results, list | tuple) or len(results) != len(numbers):
            raise TypeError(f"a batched function returns a list with a result for each of its {len(numbers)} inputs")
        for number, result in zip(numbers, results, strict=True):
            try:
                runner.finish(number, result)
            except Exception as error:
                runner.fail(number, error)
    except BaseException as error:
        for number in numbers:
            runner.fail(number, error)
    finally:
        runner.input.reset(token)
        for number in numbers:
            runner.hand.pop(number, None)
