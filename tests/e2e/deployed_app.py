"""What `isobox deploy` puts in force in the tests."""

import subprocess
from typing import Any

import isobox

app = isobox.App("deployed")


@app.function(max_containers=1)
def double(x: int) -> int:
    """Twice."""
    return 2 * x


@app.function(max_containers=1, trust="pickle")
def type_of(x: Any) -> Any:
    """Not data."""
    return type(x)


@app.function(max_containers=1, schedule=isobox.Period(seconds=1))
def tick() -> None:
    """By itself."""
    print("tick")


@app.function(max_containers=1, schedule=isobox.Cron("0 9 * * 1-5", "Europe/Berlin"))
def report() -> None:
    """On weekdays."""


@app.function(max_containers=1)
@isobox.web_server(9000)
def page() -> None:
    """Listens."""
    subprocess.Popen(["python3", "-m", "http.server", "9000", "--directory", "/etc"])


@app.cls(max_containers=1)
class Counter:
    """Counts."""

    start: int = isobox.parameter(default=5)

    @isobox.method()
    def plus(self, x: int) -> int:
        """From the start."""
        return self.start + x
