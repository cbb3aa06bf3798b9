"""When a function runs by itself. Pure: a schedule and moments in, the next moment out.

A cron expression is read by cronsim, in a time zone by its name: where clocks are set back or forward it does what
Debian's cron does (jobs of an hour that is missing run once at its end, those of an hour that comes twice run once).
"""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError


def zone(name: str) -> ZoneInfo:
    """A time zone; ValueError for none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}; write it like Europe/Berlin") from error


def check(cron: str, timezone: str) -> None:
    """ValueError for an expression that means nothing, or never comes."""
    try:
        next(CronSim(cron, datetime.now(zone(timezone))))
    except CronSimError as error:
        raise ValueError(f"{cron!r} is no cron expression: {error}; write it like 0 9 * * 1-5") from error
    except StopIteration:
        raise ValueError(f"{cron!r} never comes") from None


def next_cron(cron: str, timezone: str, after: float) -> float:
    """The next moment behind another (both seconds since the epoch)."""
    began = datetime.fromtimestamp(after, UTC).astimezone(zone(timezone))
    return next(CronSim(cron, began)).timestamp()


def next_period(period_s: float, first: float, after: float) -> float:
    """The same for something that comes every so many seconds, counted from first."""
    passed = max(0, int((after - first) // period_s))
    return first + (passed + 1) * period_s
