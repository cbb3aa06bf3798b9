"""`make gpu-check`: what a person runs on a machine with a GPU. Prints a table; ends with 1 if anything is amiss.

The tests of this project stand NVML and libcuda in; here everything is real: CUDA inside a sandbox, what it cannot reach,
what the next tenant finds in the memory, and what it costs beside the same program outside.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import isobox
from common.signals import unwind_on_signals
from isobox import ApiError, Sandbox

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/e2e"))

from server import Server

PROGRAM = Path(__file__).with_name("gpu_program.py").read_text()
ROUNDS = 5


class Table:
    """Lines as they come, and whether all was well."""

    def __init__(self) -> None:
        self.good = True

    def say(self, name: str, found: str, *, good: bool = True) -> None:
        """One line."""
        self.good = self.good and good
        print(f"{'ok  ' if good else 'FAIL'}  {name:<58} {found}", flush=True)


@contextmanager
def sandbox(kind: str) -> Iterator[Sandbox]:
    """One with a GPU, and our program in it; the next one waits until this one's memory was overwritten."""
    with Sandbox.create("python", gpu={"kind": kind, "wait_s": 600}, timeout_s=1800) as found:
        found.files.write("/home/user/gpu_program.py", PROGRAM)
        yield found


def inside(found: Sandbox, what: str) -> tuple[str, str]:
    """What the program prints, and its complaint."""
    result = found.exec("python3", "/home/user/gpu_program.py", what, timeout_s=600)
    return result.stdout.strip(), result.stderr.strip()[-300:]


def outside(uuid: str, what: str) -> str:
    """The same on the host."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": uuid}
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()[-300:]


def check(table: Table) -> None:
    """All of it, on the first free GPU."""
    free = [each for each in isobox.gpus() if each.state == "free"]
    if not free:
        table.say("a free GPU", "none", good=False)
        return
    kind = free[0].kind
    table.say("GPUs", ", ".join(f"{each.kind} ({each.memory_mb} MiB, {each.uuid})" for each in free))
    began = time.perf_counter()
    with sandbox(kind) as found:
        table.say("a sandbox with one", f"{time.perf_counter() - began:.2f} s")
        programs(table, found)
        walls(table, found)
        if len(free) == 1:
            taken(table, kind)
        printed, words = inside(found, "canary")
        table.say(
            "a pattern left in its memory", f"{printed or words} MiB", good=printed.isdecimal() and printed != "0"
        )
    began = time.perf_counter()
    with sandbox(kind) as found:
        table.say("the next tenant, after its memory was overwritten", f"{time.perf_counter() - began:.2f} s")
        printed, words = inside(found, "look")
        table.say("the pattern found by the next tenant", f"{printed or words} MiB", good=printed == "0")
        compare(table, found)
        table.say("a program that never ends", spinning(found))
    with sandbox(kind) as found:
        printed, words = inside(found, "add")
        table.say("after a sandbox ended in the midst of it: add", printed or words, good=printed == "right")
    states = {each.uuid: each.state for each in isobox.gpus()}
    sick = {uuid: state for uuid, state in states.items() if state == "quarantined"}
    table.say("quarantined in the end", ", ".join(sick) or "none", good=not sick)


def programs(table: Table, found: Sandbox) -> None:
    """CUDA runs, and sees what was given."""
    for what, right in (("add", "right"), ("devices", "1")):
        printed, words = inside(found, what)
        table.say(f"CUDA inside: {what}", printed or words, good=printed == right)


def walls(table: Table, found: Sandbox) -> None:
    """What is out of reach: other devices' nodes, also for root inside, and a copy that would share the device."""
    nodes = found.exec("sh", "-c", "ls /dev | grep '^nvidia[0-9]'").stdout.split()
    table.say("device nodes inside", " ".join(nodes), good=len(nodes) == 1)
    minor = next(n for n in range(64) if f"nvidia{n}" not in nodes)
    other = found.exec("sh", "-c", f"mknod /tmp/o c 195 {minor} && head -c 1 /tmp/o", user="root")
    table.say("root inside opens another GPU's node", other.stderr.strip()[-50:], good=other.exit_code != 0)
    try:
        found.fork()
        table.say("a fork", "was not refused", good=False)
    except ApiError as error:
        table.say("a fork is refused", error.code, good=error.code == "gpu_not_copied")


def taken(table: Table, kind: str) -> None:
    """The only one is another's."""
    try:
        Sandbox.create("python", gpu=kind).terminate()
        table.say("a second sandbox meanwhile", "was given one too", good=False)
    except ApiError as error:
        table.say("a second sandbox meanwhile", error.code, good=error.code == "gpu_busy")


def compare(table: Table, found: Sandbox) -> None:
    """The same programs inside and outside, in turn."""
    uuid = str(found.info.raw["gpus"][0]["uuid"])
    for what, unit in (("begin", "s"), ("launch", "µs"), ("copy", "GB/s"), ("product", "s")):
        pairs = [(inside(found, what), outside(uuid, what)) for _ in range(ROUNDS)]
        try:
            ours = statistics.median(float(printed) for (printed, _), _ in pairs)
            theirs = statistics.median(float(printed) for _, printed in pairs)
        except ValueError:
            table.say(what, f"inside {pairs[0][0]}, outside {pairs[0][1]}", good=False)
            continue
        table.say(f"{what}, inside / outside", f"{ours:g} / {theirs:g} {unit} = {ours / theirs:.2f} x")


def spinning(found: Sandbox) -> str:
    """Leave a kernel that never ends running."""
    for event in found.start("python3", "-u", "/home/user/gpu_program.py", "spin"):
        if event.type == "stdout":
            return str(event.text).strip()
    return "it ended"


def main() -> None:
    """Doctor, then a server of its own and all checks."""
    unwind_on_signals()
    table = Table()
    done = subprocess.run(
        [sys.executable, "-m", "isobox.cli.main", "doctor"], capture_output=True, text=True, check=False
    )
    line = next((each for each in done.stdout.splitlines() if " gpus: " in each), "no line of doctor's")
    has = line.startswith("ok") and "none" not in line
    table.say("doctor", line.partition("gpus: ")[2], good=has)
    if has:
        with tempfile.TemporaryDirectory(prefix="isobox-gpu-") as folder:
            server = Server(Path(folder) / "state", ISOBOX_POOL_FLOOR="0", ISOBOX_POOL_CEILING="0").start()
            os.environ |= {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
            try:
                check(table)
            finally:
                server.end()
                if not table.good:
                    print("\nThe server's last words:\n" + "\n".join(server.log().splitlines()[-40:]), file=sys.stderr)
    sys.exit(0 if table.good else 1)


if __name__ == "__main__":
    main()
