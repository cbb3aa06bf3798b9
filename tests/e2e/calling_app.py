"""Functions that call each other, and leave things for each other."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import isobox

app = isobox.App("calling")


@app.function(max_containers=2)
def double(x: int) -> int:
    """Twice; zero is too little."""
    if x == 0:
        raise ZeroDivisionError("nothing")
    print("doubling", x)
    return 2 * x


@app.function(max_containers=1)
def through(x: int) -> int:
    """By another container."""
    return int(double.remote(x)) + 1


@app.function(max_containers=1)
def many(n: int) -> list[int]:
    """A map from inside."""
    return [*double.map(range(1, n + 1)), double.spawn(100).get()]


@app.function(max_containers=1)
def factorial(n: int) -> int:
    """Calls itself, in the one container that it has."""
    return 1 if n < 2 else n * int(factorial.remote(n - 1))


@app.function(max_containers=1)
def even(n: int) -> bool:
    """In a circle with `odd`."""
    return n == 0 or bool(odd.remote(n - 1))


@app.function(max_containers=1)
def odd(n: int) -> bool:
    """In a circle with `even`."""
    return n > 0 and bool(even.remote(n - 1))


@app.function(max_containers=1, restricted=True)
def alone(x: int) -> int:
    """May not."""
    return int(double.remote(x))


@app.function(max_containers=1)
def letters(text: str) -> Iterator[str]:
    """One by one."""
    yield from text


@app.function(max_containers=1)
def gathered(text: str) -> list[str]:
    """What another yields."""
    return list(letters.remote_gen(text))


@app.function(max_containers=1)
def heavy(size: int) -> tuple[int, bytes]:
    """Large values both ways between containers."""
    found = echo.remote(os.urandom(size))
    return len(found), found[:1]


@app.function(max_containers=1)
def echo(data: bytes) -> bytes:
    """The same."""
    return data


@app.function(max_containers=1, trust="pickle")
def type_of(x: Any) -> Any:
    """Not data."""
    return type(x)


@app.function(max_containers=1)
def by_trust(x: int) -> str:
    """The code that calls says what it trusts, here by the decorator above."""
    return str(type_of.remote(x).__name__)


@app.cls(max_containers=1)
class Scale:
    """By a factor."""

    factor: int = isobox.parameter(default=3)

    @isobox.method()
    def times(self, x: int) -> int:
        """So often."""
        return self.factor * x


@app.function(max_containers=1)
def by_objects(x: int) -> list[int]:
    """Objects that nobody made before."""
    return [Scale().times.remote(x), Scale(factor=10).times.remote(x)]


@app.function(max_containers=2)
def work(jobs: Any, done: Any) -> int:
    """Takes jobs until there is none, and writes down what it did."""
    count = 0
    while (job := jobs.get(timeout=20)) is not None:
        done[job] = job * job
        count += 1
    return count


@app.function(max_containers=2)
def once(jobs: Any, done: Any) -> int:
    """Takes jobs, and notes that nobody else had them."""
    count = 0
    while (job := jobs.get(timeout=60)) is not None:
        if not done.put(job, 1, if_absent=True):
            raise AssertionError(f"{job} came twice")
        time.sleep(0.02)
        count += 1
    return count


@app.function(max_containers=1)
def counts_up(name: str) -> int:
    """By the name of a dict."""
    found = isobox.Dict.from_name(name, create_if_missing=True)
    found["count"] = found.get("count", 0) + 1
    return int(found["count"])


@app.function(max_containers=1, restricted=True)
def counts_nothing(name: str) -> int:
    """May not."""
    return len(isobox.Dict.from_name(name))


@app.function(max_containers=1)
def floods() -> None:
    """Asks past its runner, and reads no answers."""
    channel = sys.stdout._channel._fd  # type: ignore[attr-defined]
    for number in range(2000):
        question = {"k": "ask", "q": number, "i": None, "m": "GET", "p": "/find?name=nobody", "v": {"d": ""}}
        os.write(channel, json.dumps(question).encode() + b"\n")
    time.sleep(60)


@app.function(max_containers=1)
def asks_for(path: str) -> int:
    """What the server says to a path that it does not answer here."""
    import isobox_inside

    status, _ = isobox_inside.ask("GET", path)
    return int(status)


@app.function(max_containers=1)
@isobox.batched(max_batch_size=4, wait_ms=300)
def together(xs: list[int], *, plus: list[int]) -> list[tuple[int, int]]:
    """Four at once: each one's sum, and how many there were."""
    return [(x + y, len(xs)) for x, y in zip(xs, plus, strict=True)]


@app.function(max_containers=1)
@isobox.batched(max_batch_size=2, wait_ms=50)
def wrongly(xs: list[int]) -> list[int]:
    """Not as many as came."""
    return [*xs, 0]


@app.cls(max_containers=1)
class Batching:
    """Some methods are batched."""

    @isobox.batched(max_batch_size=8, wait_ms=300)
    @isobox.method()
    def sizes(self, xs: list[int]) -> list[int]:
        """How many there were."""
        return [len(xs)] * len(xs)

    @isobox.method()
    def single(self, x: int) -> int:
        """One."""
        return x


@app.function(max_containers=1, secrets=["calling-secret", isobox.Secret.from_name("calling-other", env="OTHER")])
def secret() -> tuple[str, str]:
    """What it was told."""
    return os.environ["CALLING_SECRET"], os.environ["OTHER"]


@app.function(max_containers=2)
def in_a_thread(x: int) -> int:
    """Calls from a thread of its own."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(double.remote(x)))
    thread.start()
    thread.join()
    return found[0]
