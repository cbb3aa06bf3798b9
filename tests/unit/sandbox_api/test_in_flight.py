import asyncio

import pytest

from common.tasks import TaskOwner
from sandbox_api.in_flight import InFlight
from sandbox_api.problems import Problem


async def waiting(in_flight: InFlight, *, begun: bool = False, endless: bool = False) -> str:
    with in_flight.request() as request:
        request.begun, request.endless = begun, endless
        await asyncio.sleep(0.2)
        return "answered"


async def outcome(task: "asyncio.Task[str]") -> str:
    try:
        return await task
    except Problem as problem:
        return problem.code
    except asyncio.CancelledError:
        return "cancelled"


@pytest.mark.parametrize(
    ("begun", "endless", "told"),
    [(False, False, "restarting"), (True, False, "answered"), (True, True, "restarting")],
)
def test_what_waits_is_told_and_what_is_being_answered_goes_on(begun: bool, endless: bool, told: str) -> None:
    async def work() -> None:
        tasks = TaskOwner()
        in_flight = InFlight()
        task = tasks.spawn(waiting(in_flight, begun=begun, endless=endless), name="waiting")
        await asyncio.sleep(0)
        in_flight.interrupt()
        in_flight.interrupt()
        assert await outcome(task) == told
        assert await outcome(tasks.spawn(waiting(in_flight), name="late")) == "restarting", "what comes later too"

    asyncio.run(work())


def test_a_client_that_goes_away_is_no_restart() -> None:
    async def work() -> None:
        tasks = TaskOwner()
        task = tasks.spawn(waiting(InFlight()), name="waiting")
        await asyncio.sleep(0)
        task.cancel()
        assert await outcome(task) == "cancelled"

    asyncio.run(work())
