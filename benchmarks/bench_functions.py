"""The functions that `functions.py` measures; imported inside by this module's name."""

import isobox

app = isobox.App("bench")
COUNT = 12


@app.function(max_containers=1)
def one(x: int) -> int:
    """Does nothing, in one container."""
    return x


@app.function(max_containers=2)
def two(x: int) -> int:
    """Does nothing, in two."""
    return x


@app.cls(image="data", max_containers=1, scaledown_window=1)
class FromCopy:
    """Imports numpy once for all containers."""

    @isobox.enter(snap=True)
    def load(self) -> None:
        """Before the copy."""
        import numpy

        self.numpy = numpy

    @isobox.method()
    def total(self, n: int) -> int:
        """Uses it."""
        return int(self.numpy.arange(n).sum())


@app.cls(image="data", max_containers=1, scaledown_window=1)
class EachTime:
    """Imports numpy in each container."""

    @isobox.enter()
    def load(self) -> None:
        """In each."""
        import numpy

        self.numpy = numpy

    @isobox.method()
    def total(self, n: int) -> int:
        """Uses it."""
        return int(self.numpy.arange(n).sum())


def same(x: int) -> int:
    """For a process pool."""
    return x


def never_run(number: int) -> "isobox.Function[[int], int]":
    """A function that nobody has called: each has a time limit of its own, and so is another one."""
    return app.function(timeout=100 + number, max_containers=1)(same)


@app.function(max_containers=1, timeout=600)
def loud(seconds: float) -> None:
    """Prints as fast as it can, past its runner."""
    import json
    import os
    import sys
    import time

    channel = sys.stdout._channel._fd  # type: ignore[attr-defined]
    lines = (json.dumps({"k": "print", "i": None, "s": 1, "t": "x"}).encode() + b"\n") * 500
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rest = lines
        while rest:
            rest = rest[os.write(channel, rest) :]
