from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.functions import schedule


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_the_next_moment_in_a_time_zone() -> None:
    assert schedule.next_cron("0 9 * * 1-5", "UTC", at("2026-11-27T09:00:00")) == at("2026-11-30T09:00:00")
    berlin = schedule.next_cron("30 6 * * *", "Europe/Berlin", at("2026-07-01T04:00:00"))
    assert datetime.fromtimestamp(berlin, UTC).isoformat() == "2026-07-01T04:30:00+00:00"


def test_clocks_that_are_set() -> None:
    forward = schedule.next_cron("30 2 * * *", "Europe/Berlin", at("2026-03-28T12:00:00"))
    assert datetime.fromtimestamp(forward, ZoneInfo("Europe/Berlin")).date().isoformat() == "2026-03-29"
    first = schedule.next_cron("30 2 * * *", "Europe/Berlin", at("2026-10-24T12:00:00"))
    second = schedule.next_cron("30 2 * * *", "Europe/Berlin", first)
    assert second - first > 20 * 3600, "the hour that comes twice counts once"


@pytest.mark.parametrize(
    ("cron", "zone", "words"),
    [
        ("* * *", "UTC", "no cron expression"),
        ("61 * * * *", "UTC", "no cron expression"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month"),
        ("* * * * *", "Mars/Base", "no time zone"),
        ("* * * * *", "../../etc/passwd", "no time zone"),
    ],
)
def test_what_is_no_schedule(cron: str, zone: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule.check(cron, zone)


@given(st.floats(1, 1e6), st.floats(0, 1e9), st.floats(0, 1e7))
def test_periods_come_in_step(period: float, first: float, passed: float) -> None:
    found = schedule.next_period(period, first, first + passed)
    assert found >= first + passed
    assert found <= first + passed + period * 1.000001
