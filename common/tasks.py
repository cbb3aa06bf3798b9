"""Named tasks with one owner that ends them; the only place that makes a task."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import structlog

from common.errors import IsoboxError

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class TaskOwner:
    """A group of background tasks that live as long as their owner.

    Unlike `asyncio.TaskGroup`, one that fails does not take the others with it: it is logged with its name, and
    what it worked for is the business of whoever awaits that.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        """Run coroutine as a task of this owner."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, IsoboxError):  # raised on purpose, for whoever awaits it
            _log.info("task refused", task=task.get_name(), error=str(error))
        else:
            _log.error("task failed", task=task.get_name(), exc_info=error)

    async def __aenter__(self) -> "TaskOwner":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()

    async def finished(self) -> None:
        """Wait until all of them have ended by themselves."""
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def cancel(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
