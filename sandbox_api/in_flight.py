"""Requests that are being answered, so that a server which stops lets none of them hang or fail.

Most end by themselves in a moment. What is left after that only waits (for an exec, a run, a sandbox's end) or follows
something without end: it is interrupted and told that the server restarts. Its client asks the next server again.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from sandbox_api.problems import Problem


class Request:
    """One request. `begun`: its answer has begun; `endless`: that is a stream of events."""

    def __init__(self) -> None:
        self.begun = False
        self.endless = False
        self.interrupted = False
        self._task = asyncio.current_task()

    def interrupt(self) -> None:
        """End it, unless its answer is on its way and has an end."""
        if self._task is not None and not self.interrupted and (self.endless or not self.begun):
            self.interrupted = True
            self._task.cancel()


class InFlight:
    """See the module."""

    def __init__(self) -> None:
        self._requests: set[Request] = set()
        self._restarting = False

    @contextlib.contextmanager
    def request(self) -> Iterator[Request]:
        """Around the answering of one request; Problem(503 `restarting`) where it was interrupted."""
        if self._restarting:
            raise restarting()
        request = Request()
        self._requests.add(request)
        try:
            yield request
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not request.interrupted or task is None or task.uncancel() > 0:
                raise
            raise restarting() from None
        finally:
            self._requests.discard(request)

    def interrupt(self) -> None:
        """Interrupt all that wait, and whatever comes from now on."""
        self._restarting = True
        for request in list(self._requests):
            request.interrupt()


def restarting() -> Problem:
    """503 for a request that waited when the server was stopped: what it waits for goes on."""
    return Problem(
        503,
        "restarting",
        "the server restarts; what runs in sandboxes goes on",
        hint="ask again in a moment: by the same exec_id, call or sandbox you hear the end of it",
        retryable=True,
    )
