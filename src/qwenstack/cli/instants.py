"""Dates and durations as people write them on a command line. All in UTC."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import click

from qwenstack.core.instants import from_us, to_us

_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration_s(text: str) -> int:
    """Seconds of `30s`, `15m`, `24h`, `7d` or `2w`; raises a usage error for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no duration; write 30s, 15m, 24h, 7d or 2w")
    return int(match[1]) * _SECONDS[match[2]]


def parse_instant_us(text: str) -> int:
    """Microseconds of an ISO 8601 instant, in UTC where it names no zone; raises a usage error."""
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is no instant; write 2026-12-01T08:00Z") from None
    return to_us(instant if instant.tzinfo else instant.replace(tzinfo=UTC))


def shown_instant(microseconds: int | None) -> str:
    """An instant in UTC, as tables show it; `never` for none."""
    return f"{from_us(microseconds):%Y-%m-%d %H:%M:%S}" if microseconds else "never"


def parse_period(text: str, today: date) -> tuple[datetime, datetime]:
    """[start, end) of `2026-11`, `2026-11-24`, `today`, `month` or `7d` (the last seven days)."""
    text = text.strip()
    if text == "today":
        return _day(today), _day(today + timedelta(days=1))
    if text == "month":
        return _month(today.year, today.month)
    if re.fullmatch(r"\d{4}-\d{2}", text):
        year, month = int(text[:4]), int(text[5:])
        if 1 <= month <= 12 and year >= 1:
            return _month(year, month)
    try:
        day = date.fromisoformat(text)
        return _day(day), _day(day + timedelta(days=1))
    except (ValueError, OverflowError):
        pass
    if _DURATION.fullmatch(text):
        end = _day(today + timedelta(days=1))
        return end - timedelta(seconds=parse_duration_s(text)), end
    raise click.BadParameter(
        f"{text!r} is no period; write today, month, 2026-11, 2026-11-24 or 7d"
    )


def _day(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _month(year: int, month: int) -> tuple[datetime, datetime]:
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return datetime(year, month, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)
