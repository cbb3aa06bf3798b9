"""What this machine has."""

import asyncio
import os
from functools import cache
from pathlib import Path

from isolation import runsc

CACHE = Path(os.environ.get("ISOBOX_CACHE", "/var/cache/isobox"))


@cache
def release() -> int:
    """The date of the runsc that the server uses."""
    return int(asyncio.run(runsc.find(os.environ.get("ISOBOX_RUNSC"), CACHE)).release[:8])
