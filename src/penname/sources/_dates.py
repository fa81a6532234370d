"""Dates as people write them; what can be read in two ways is refused, not guessed."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

from penname.errors import BadInputError

_SMALLEST_EPOCH = 10**8  # seconds: March 1973; smaller numbers are years, days or counters
_LARGEST_SECONDS = 10**11  # the year 5138; larger numbers are milliseconds
_LONGEST = 100  # characters of a date; the parser is not made for more
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?!\d)(.*)", re.DOTALL)
_BASES = (
    datetime(2000, 1, 1, tzinfo=UTC),
    datetime(2004, 2, 2, tzinfo=UTC),
)  # what is absent is taken from these
_ADVICE = "write it as 2024-03-01 or 2024-03-01T09:30:00Z"


def parse_date(value: object) -> datetime | None:
    """`value` as a moment (UTC where it names no zone); None where it is None or empty.

    ISO 8601 first. Numbers, and text of digits only, are seconds or (from 10**11) milliseconds since 1970.
    Other text goes to dateutil, and must give the same day whichever of day and month comes first.

    Raises:
        BadInputError: impossible, incomplete or ambiguous.
    """
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return _utc(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _epoch(value)
    if not isinstance(value, str):
        raise BadInputError(f"a date is text or a number, not {type(value).__name__}")
    text = value.strip()
    if not text:
        return None
    if len(text) > _LONGEST:
        raise BadInputError(f"{text[:40]!r}… has {len(text):,} characters and is no date")
    return _text(text)


def _text(text: str) -> datetime:
    if text.isdecimal() and text.isascii() and len(text) != 8:
        return _epoch(int(text))
    try:
        return _utc(datetime.fromisoformat(text))
    except ValueError:
        return _utc(_loose(text))


def _epoch(number: float) -> datetime:
    """Seconds or milliseconds since 1970."""
    if not _SMALLEST_EPOCH <= abs(number) < float("inf"):
        raise BadInputError(f"the number {number!s:.40} is no time in seconds since 1970; {_ADVICE}")
    try:
        return datetime.fromtimestamp(number if abs(number) < _LARGEST_SECONDS else number / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise BadInputError(f"the time {number!s:.40} is out of range") from None


def _loose(text: str) -> datetime:
    """What dateutil makes of it, if that does not depend on what it assumes."""
    orders = [(False, False), (True, False), (False, True), (True, True)]  # day first, year first
    if found := _YEAR_FIRST.fullmatch(text):
        year, _, month, day, rest = found.groups()
        text, orders = f"{year}-{month:0>2}-{day:0>2}{rest}", orders[:1]
    readings = {_read(text, *order, base) for order in orders for base in _BASES}
    if len(readings) == 1:
        return readings.pop()
    raise BadInputError(f"{text!r} names no one day (incomplete, or day and month in doubt); {_ADVICE}")


def _read(text: str, day_first: bool, year_first: bool, base: datetime) -> datetime:
    from dateutil import parser

    try:
        moment: datetime = parser.parse(
            text, dayfirst=day_first, yearfirst=year_first, default=base, tzinfos=_zone
        )
    except (ValueError, OverflowError, TypeError, ArithmeticError, AttributeError, IndexError):
        raise BadInputError(f"{text!r} is no date, or an impossible one; {_ADVICE}") from None
    return moment


def _zone(name: str | None, offset: int | None) -> tzinfo | None:
    """Numeric offsets and UTC; names such as CST stand for several zones."""
    if offset is not None:
        return timezone(timedelta(seconds=offset))
    if name:
        raise ValueError(name)
    return None


def _utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise BadInputError(f"the time {moment.isoformat()} is out of range") from None
