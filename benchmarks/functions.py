"""What a function call costs: warm, first, many; beside a bare run in a context and a process pool on the same machine."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

from benchmarks import bench_functions as fns
from benchmarks.rows import Row, alone, beside, timed
from common.signals import unwind_on_signals
from isobox import Sandbox
from isobox.calls import system
from isobox.config import Config
from isobox.transport import Transport

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
        copied, imported = starts(url, key, 7)
    return [
        alone("warm remote()", "ms", warm, most=8),
        beside("warm remote()", warm, "a bare run in a context", bare, most=3),
        alone("1,000 no-op inputs by map, 2 containers", "inputs/s", rates, least=250),
        alone("the same by ProcessPoolExecutor(2)", "inputs/s", theirs),
        alone("first call of a function", "ms", first, most=250),
        beside("first call from a copy that has numpy", copied, "importing it", imported, most=0.5),
    ]


def starts(url: str, key: str, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a call that needs a new container: from a copy of one that had begun, and from the beginning."""
    config = Config.find(url, key)
    found: tuple[list[float], list[float]] = ([], [])
    with closing(Transport(config)) as transport:
        methods = fns.FromCopy().total, fns.EachTime().total
        for number in range(rounds + 1):
            for method, times in zip(methods, found, strict=True):
                took = timed(lambda m=method: m.remote(1000))  # type: ignore[misc]
                if number:  # the first makes the copy
                    times.append(took)
                while transport.send(system("GET", f"/v1/functions/{method.id}"))["containers"]:
                    time.sleep(0.1)
                time.sleep(_REST_S / 2)
    return found


def main() -> None:
    """These alone."""
    unwind_on_signals()
    from benchmarks.__main__ import serving
    from benchmarks.rows import table

    with serving() as server:
        time.sleep(4)
        print(table(rows(server.url, server.key, 200)))


if __name__ == "__main__":
    main()
