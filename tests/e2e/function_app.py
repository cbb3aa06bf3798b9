"""Functions as a user's module has them; imported inside by its name."""

import os
import random
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import isobox

app = isobox.App("tests")


class Own(Exception):
    """One of the module's own."""


@app.function(max_containers=2)
def square(x: int) -> int:
    """Its square."""
    return x * x


@app.function(max_containers=2)
def power(x: int, *, n: int = 2) -> int:
    """With a name."""
    return int(x**n)


@app.function(max_containers=1)
def talk(x: str) -> tuple[str, bytes]:
    """Says something first."""
    print("said", x)
    os.system(f"echo child {x}")
    return x.upper(), x.encode()


@app.function(max_containers=1)
def fails(how: str) -> None:
    """Raises."""
    if how == "own":
        raise Own("mine", 1)
    if how == "hidden":
        raise type("Hidden", (Exception,), {})("nobody knows it")
    if how == "exit":
        raise SystemExit(3)
    {}[how]


@app.function(max_containers=1)
def odd() -> object:
    """Cannot be sent safely."""
    return object()


@app.function(max_containers=1, trust="pickle")
def trusted(x: Any) -> Any:
    """Anything comes back."""
    return {"kept": x, "type": type(x)}


@app.function(max_containers=1)
def count(n: int) -> Iterator[int]:
    """Yields."""
    for i in range(n):
        print("yielding", i)
        yield i


@app.function(max_containers=1)
async def count_later(n: int) -> AsyncIterator[int]:
    """Yields, asynchronously."""
    for i in range(n):
        yield i


@app.function(max_containers=1)
def endless() -> Iterator[int]:
    """Yields for ever."""
    number = 0
    while True:
        yield number
        number += 1
        time.sleep(0.01)


@app.function(max_containers=1)
def forged(kind: str, size: int, times: int) -> None:
    """Says what the runner says of large values, of a file in which nothing lies."""
    say = sys.stdout._channel.say  # type: ignore[attr-defined]
    number = sys.stdout.write.__func__.__globals__["INPUT"].get()  # type: ignore[attr-defined]
    for at in range(times):
        path = f"/tmp/.isobox-function/forged-{at}"
        with open(path, "wb") as file:
            file.truncate(size)
        say(k=kind, i=number, y=at, v={"f": path, "n": size})
    while any(name.startswith("forged-") for name in os.listdir("/tmp/.isobox-function")):
        time.sleep(0.01)


@app.function(max_containers=1, retries={"count": 2, "delay_s": 0.05})
def at_the_third(path: str) -> int:
    """Fails twice in a container."""
    with open(path, "a") as file:
        file.write("x")
    tried = os.path.getsize(path)
    if tried < 3:
        raise ValueError(f"try {tried}")
    return tried


@app.function(max_containers=1, timeout=0.5)
def sleeps(seconds: float) -> float:
    """Too long, perhaps."""
    time.sleep(seconds)
    return seconds


@app.function(max_containers=1, concurrency=8)
def together(seconds: float) -> float:
    """Eight at once."""
    time.sleep(seconds)
    return seconds


@app.function(max_containers=2)
def crashes(x: int) -> int:
    """Takes its container with it, if asked to."""
    if x < 0:
        os._exit(7)
    return x


@app.function(max_containers=2, memory=128, disk=64)  # a disk lies in memory (ADR 4)
def hungry(megabytes: int) -> int:
    """Takes so much memory."""
    return len(b"x" * (megabytes << 20))


@app.function(max_containers=2)
def slowly(x: int) -> tuple[int, int]:
    """A tenth of a second, and its process."""
    time.sleep(0.1)
    return x, os.getpid()


@app.function(max_containers=1)
def large(n: int) -> bytes:
    """So many bytes."""
    return bytes(n)


@app.function(max_containers=1)
def size(data: bytes) -> int:
    """How many bytes."""
    return len(data)


@app.function(max_containers=1)
def calls_another(x: int) -> int:
    """Calls a function of the app where it is."""
    return square(x) + square.local(x)


@app.function(image="base")
def nowhere(x: int) -> int:
    """Its image has no Python."""
    return x


@app.function(max_containers=3, scaledown_window=1)
def soon_gone(x: int) -> int:
    """Its containers go at once."""
    return x


@app.cls(max_containers=2, scaledown_window=1)
class Model:
    """Keeps what it loaded."""

    scale: int = isobox.parameter(default=2)
    name: str = isobox.parameter()

    @isobox.enter(snap=True)
    def load(self) -> None:
        """Once, for all containers."""
        print("loading", self.name)
        self.loaded = os.urandom(8).hex()
        ssl.RAND_bytes(8)

    @isobox.enter()
    def begin(self) -> None:
        """In each container."""
        self.began = os.urandom(8).hex()
        self.drawn = f"{random.random()} {ssl.RAND_bytes(8).hex()}"

    @isobox.method()
    def facts(self) -> tuple[str, str, str]:
        """What is its own and what is everybody's."""
        time.sleep(0.3)
        return self.loaded, self.began, self.drawn

    @isobox.method()
    def scaled(self, x: int, *, plus: int = 0) -> int:
        """By the parameter."""
        return x * self.scale + plus

    @isobox.method()
    def letters(self) -> Iterator[str]:
        """Of the name."""
        yield from self.name

    def hidden(self) -> None:
        """Nobody's to call."""

    @isobox.exit()
    def close(self) -> None:
        """At the end."""
        with open("/tmp/closed", "a") as file:
            file.write("closed\n")


@app.cls(max_containers=1)
class Broken:
    """Cannot begin."""

    @isobox.enter()
    def load(self) -> None:
        """Fails."""
        raise FileNotFoundError("weights")

    @isobox.method()
    def run(self) -> None:
        """Never comes to that."""


@app.function(max_containers=1)
@isobox.concurrent(max_inputs=4)
def marked(seconds: float) -> float:
    """Four at once."""
    time.sleep(seconds)
    return seconds
