"""What this machine has."""

import asyncio
import os
import subprocess
from functools import cache
from pathlib import Path

from gpu.driver import parse_supported
from isolation import runsc

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))


@cache
def found() -> runsc.Runsc:
    """The runsc that the server uses."""
    return asyncio.run(runsc.find(os.environ.get("ISOBOX_RUNSC"), CACHE))


def release() -> int:
    """Its date."""
    return int(found().release[:8])


@cache
def driver() -> str:
    """A driver of NVIDIA's that it knows."""
    argv = [str(found().path), "nvproxy", "list-supported-drivers"]
    return parse_supported(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)[0]
