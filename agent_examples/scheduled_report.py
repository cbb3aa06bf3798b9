"""Functions that run by themselves, and leave what they find in a dict.

    python -m agent_examples.scheduled_report

One every other second, one on weekdays at seven in Berlin. They run on the server, whether anybody is there or not; this
program only waits for the first few runs, reads them, and takes the app down again.
"""

import time
from collections.abc import Callable

import isobox

app = isobox.App("scheduled-report")
FOUND = "scheduled-report"


@app.function(schedule=isobox.Period(seconds=2), max_containers=1)
def look() -> None:
    """Note the load of the machine that it runs on."""
    with isobox.Dict.from_name(FOUND, create_if_missing=True) as found, open("/proc/loadavg") as file:
        found[f"{time.time():.3f}"] = file.read().split()[0]


@app.function(schedule=isobox.Cron("0 7 * * 1-5", "Europe/Berlin"), max_containers=1)
def report() -> None:
    """On weekdays: what was noted since, and begin anew."""
    with isobox.Dict.from_name(FOUND, create_if_missing=True) as found:
        print("\n".join(f"{when} {load}" for when, load in found.items()))
        found.clear()


def run(looks: int, *, show: Callable[[str], None] = print) -> dict[str, str]:
    """Deploy it, wait for so many runs, show them, and stop it."""
    info = app.deploy()
    show(f"version {info['version']}; the report comes next at {info['functions']['report']['next_at']}")
    try:
        with isobox.Dict.from_name(FOUND, create_if_missing=True) as found:
            while len(found) < looks:
                time.sleep(0.5)
            noted = dict(found.items())
    finally:
        app.stop()
        isobox.Dict.delete(FOUND)
    for when, load in noted.items():
        show(f"{time.strftime('%H:%M:%S', time.localtime(float(when)))}  load {load}")
    return noted


if __name__ == "__main__":
    run(3)
