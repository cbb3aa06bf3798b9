"""What a function call costs: warm, first, many; beside a bare run in a context and a process pool on the same machine."""

import os
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks import bench_functions as fns
from benchmarks.rows import Row, alone, beside, timed
from isobox import Sandbox

_REST_S = 2.0
_INPUTS = 1000


def rows(url: str, key: str, rounds: int) -> list[Row]:
    """All of it; the server has its pool."""
    with fns.app.run(url=url, api_key=key), Sandbox.create(url=url, api_key=key) as sandbox:
        fns.one.remote(0)
        sandbox.run("1 + 1")
        warm, bare = [], []
        for number in range(rounds):
            warm.append(timed(lambda n=number: fns.one.remote(n)))  # type: ignore[misc]
            bare.append(timed(lambda: sandbox.run("1 + 1")))
        list(fns.two.map(range(20)))
        rates, theirs = [], []
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(fns.same, range(20)))
            for _ in range(5):
                rates.append(_INPUTS / timed(lambda: list(fns.two.map(range(_INPUTS)))) * 1000)
                theirs.append(_INPUTS / timed(lambda: list(pool.map(fns.same, range(_INPUTS)))) * 1000)
        first = []
        for number in range(9):
            function = fns.never_run(os.getpid() % 1000 * 10 + number)
            time.sleep(_REST_S)  # the pool fills up
            first.append(timed(lambda f=function: f.remote(1)))  # type: ignore[misc]
    return [
        alone("warm remote()", "ms", warm, most=8),
        beside("warm remote()", warm, "a bare run in a context", bare, most=3),
        alone("1,000 no-op inputs by map, 2 containers", "inputs/s", rates, least=250),
        alone("the same by ProcessPoolExecutor(2)", "inputs/s", theirs),
        alone("first call of a function", "ms", first, most=250),
    ]


def main() -> None:
    """These alone."""
    from benchmarks.__main__ import serving
    from benchmarks.rows import table

    with serving() as server:
        time.sleep(4)
        print(table(rows(server.url, server.key, 200)))


if __name__ == "__main__":
    main()
