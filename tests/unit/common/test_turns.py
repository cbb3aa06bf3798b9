import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from common.turns import TurnBudget, aside


async def ticks(counted: list[int]) -> None:
    """Counts turns of the loop."""
    while True:
        counted[0] += 1
        await asyncio.sleep(0)


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=12), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_turn_does_no_more_than_its_budget_and_one_piece(workers: list[list[int]]) -> None:
    async def run() -> None:
        budget, turn, done = TurnBudget(limit=40), [0], dict[int, int]()

        async def work(costs: list[int]) -> None:
            for cost in costs:
                await budget.take(cost)
                done[turn[0]] = done.get(turn[0], 0) + cost

        ticking = asyncio.get_running_loop().create_task(ticks(turn))
        await asyncio.gather(*(work(costs) for costs in workers))
        ticking.cancel()
        assert sum(done.values()) == sum(map(sum, workers)), "every piece is done"
        assert budget.largest < 40 + 50

    asyncio.run(run())


def test_who_has_little_waits_for_one_piece_of_who_has_plenty_and_not_for_all() -> None:
    async def run() -> None:
        budget = TurnBudget(limit=10)
        order: list[str] = []

        async def plenty(name: str) -> None:
            for _ in range(100):
                await budget.take(10)
                order.append(name)

        async def little() -> None:
            await budget.take(1)
            order.append("little")

        many = [asyncio.get_running_loop().create_task(plenty(name)) for name in "ab"]
        await asyncio.sleep(0)
        await little()
        assert order.index("little") <= 4
        await asyncio.gather(*many)
        assert order[-50:].count("a") in range(20, 31), "in turn"

    asyncio.run(run())


def test_a_piece_beyond_the_budget_is_paid_for_in_later_turns() -> None:
    async def run() -> None:
        budget, turn = TurnBudget(limit=10), [0]
        ticking = asyncio.get_running_loop().create_task(ticks(turn))
        await budget.take(100)
        began = turn[0]
        await budget.take(1)
        assert turn[0] - began >= 9
        ticking.cancel()

    asyncio.run(run())


def test_one_that_is_cancelled_in_line_spends_nothing() -> None:
    async def run() -> None:
        budget = TurnBudget(limit=10)
        await budget.take(10)
        for _ in range(5):
            budget.later(lambda: budget.spend(10))
        waiting = asyncio.get_running_loop().create_task(budget.take(1000))
        await asyncio.sleep(0)
        waiting.cancel()
        await budget.take(10)
        assert budget.largest == 10

    asyncio.run(run())


def test_work_aside_is_done_one_at_a_time() -> None:
    async def run() -> None:
        inside, most = [0], [0]

        def deed() -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

        await asyncio.gather(*(aside(deed) for _ in range(20)))
        assert most == [1]

    asyncio.run(run())
