"""Requests to a web function: who waits for a place in a container, and has one for the time of a request."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from sandbox_api.problems import Problem
from sandbox_api.services.functions.container import Container

_WAIT_S: Final = 60.0


class Visits:
    """Those of one function; wake is called when somebody came or went."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[asyncio.Future[Container]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Container]:
        """A place in a container; Problem where none starts in time, or none can."""
        place: asyncio.Future[Container] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._wake()
        try:
            async with asyncio.timeout(_WAIT_S):
                container = await asyncio.shield(place)
        except BaseException as error:
            if not place.done():
                self._waiting.remove(place)
            elif place.exception() is None:  # it came too late
                place.result().leave()
            if isinstance(error, TimeoutError):
                raise Problem(
                    503, "no_container", f"no container within {_WAIT_S:.0f} s", hint="try again", retryable=True
                ) from error
            raise
        try:
            yield container
        finally:
            container.leave()
            self._wake()

    def admit(self, container: Container, concurrency: int) -> None:
        """Give those who wait the places that it has."""
        while self._waiting and container.busy < concurrency:
            container.visit()
            self._waiting.popleft().set_result(container)

    def refuse(self, problem: Problem) -> None:
        """There will be no container for those who wait."""
        while self._waiting:
            self._waiting.popleft().set_exception(problem)
