"""What all tests share. Whatever a test leaves on the machine fails it."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from common import owners
from isolation.sandbox import CGROUP_PARENT

# How long an example takes is the machine's affair: each test has its own limit.
settings.register_profile("isobox", deadline=None)
settings.load_profile("isobox")

OURS = ("runsc-sandbox", "keeper_process", "isobox-probe", "netpolicy.gateway")
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
            if state != "Z" and any(each in line for each in OURS):
                processes.add(f"{entry.name} {line[:120]}")
    groups = {  # by os.walk: what vanishes meanwhile is no error to it
        folder
        for folder, *_ in os.walk("/sys/fs/cgroup")
        if f"/{CGROUP_PARENT}/" in folder and Path(folder).name.startswith("sbx")
    }
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    mounts = {path for path in mounted if "isobox" in path or "/run/sbx" in path}
    records = {path.name for path in owners.FOLDER.glob("*")}
    links = {path.name for path in Path("/sys/class/net").iterdir() if re.match(r"ib[0-9a-f]{4}x|out\d", path.name)}
    namespaces = {path.name for path in Path("/run/netns").glob("*")}
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    tables = {line for line in listed.splitlines() if "isobox_" in line}
    return {
        "processes": processes,
        "control groups": groups,
        "mounts": mounts,
        "owners": records,
        "links": links,
        "network namespaces": namespaces,
        "nftables tables": tables,
        "forwarding": {Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()},
    }


@pytest.fixture(autouse=True, scope="session")
def nothing_left() -> Iterator[None]:
    before = traces()
    yield
    left = {kind: found - before[kind] for kind, found in traces().items() if found - before[kind]}
    assert not left, f"the tests left behind: {left}"
