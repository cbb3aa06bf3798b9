"""What all tests share. Whatever a test leaves on the machine fails it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation.sandbox import CGROUP_PARENT

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))


def traces() -> dict[str, set[str]]:
    """What sandboxes and servers leave if they leave anything."""
    processes = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and ("runsc-sandbox" in line or "keeper_process" in line or "isobox-probe" in line):
                processes.add(f"{entry.name} {line[:120]}")
    groups = {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{CGROUP_PARENT}/sbx*") if path.is_dir()}
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if "isobox" in line}
    return {"processes": processes, "control groups": groups, "mounts": mounts}


@pytest.fixture(autouse=True, scope="session")
def nothing_left() -> Iterator[None]:
    before = traces()
    yield
    left = {kind: found - before[kind] for kind, found in traces().items() if found - before[kind]}
    assert not left, f"the tests left behind: {left}"
