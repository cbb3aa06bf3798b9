"""For programs that leave nothing behind when a signal ends them (make bench, make demo)."""

import signal
import sys
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def unwind_on_signals() -> None:
    """Raise SystemExit in the main thread at the first SIGINT, SIGTERM or SIGHUP, so that every `finally` runs.

    Further ones are ignored: they would cut the clean-up short.
    """
    for number in _ENDING:
        signal.signal(number, _unwind)


def _unwind(number: int, _: FrameType | None) -> None:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
