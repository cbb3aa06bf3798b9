"""When a deployed function runs by itself."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone: Cron("0 9 * * 1-5", "Europe/Berlin")."""

    expression: str
    timezone: str = "UTC"

    def as_asked(self) -> dict[str, Any]:
        """As the API takes it."""
        return {"cron": self.expression, "timezone": self.timezone}


@dataclass(frozen=True, slots=True)
class Period:
    """Every so often: Period(hours=1)."""

    days: float = 0
    hours: float = 0
    minutes: float = 0
    seconds: float = 0

    def as_asked(self) -> dict[str, Any]:
        """As the API takes it."""
        return {"period_s": self.days * 86400 + self.hours * 3600 + self.minutes * 60 + self.seconds}
