"""Display texts of numbers, fractions and times: with units, a dash where there is no value."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["NONE", "age", "clock", "count", "figure", "milliseconds", "percent", "signed_percent", "span", "weight"]

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def count(value: float | None) -> str:
    """A whole number with separated thousands.

    >>> count(1234567.0), count(None)
    ('1,234,567', '–')
    """
    return NONE if value is None else f"{value:,.0f}"


def figure(value: float | None, digits: int = 4) -> str:
    """A plain figure with fixed digits.

    >>> figure(0.71234), figure(None)
    ('0.7123', '–')
    """
    return NONE if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction of 1 in percent.

    >>> percent(0.0512), percent(1.0, 0), percent(None)
    ('5.1 %', '100 %', '–')
    """
    return NONE if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def signed_percent(value: float | None, digits: int = 2) -> str:
    """As `percent`, with its sign.

    >>> signed_percent(0.0123), signed_percent(-0.2)
    ('+1.23 %', '−20.00 %')
    """
    return NONE if value is None else f"{100 * value:+.{digits}f} %".replace("-", MINUS)


def weight(value: float) -> str:
    """A weight, which is in percent already.

    >>> weight(25.0), weight(0.5)
    ('25 %', '0.5 %')
    """
    return f"{value:g} %"


def milliseconds(value: float | None) -> str:
    """A latency.

    >>> milliseconds(3.456), milliseconds(123.4)
    ('3.46 ms', '123 ms')
    """
    return NONE if value is None else f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def span(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> span(4.2), span(75), span(7322), span(200_000)
    ('4 s', '1 min 15 s', '2 h 2 min', '2 d 7 h')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def age(then_ms: float | None, now_ms: float) -> str:
    """How long ago something was.

    >>> age(1_000, 66_000), age(None, 0)
    ('1 min 5 s ago', '–')
    """
    return f"{span((now_ms - then_ms) / 1000)} ago" if then_ms else NONE


def clock(time_ms: float | None, now_ms: float) -> str:
    """A time of day, UTC, with the date where that is not today's.

    >>> clock(0, 1_000), clock(1_700_000_000_000, 1_800_000_000_000)
    ('–', '2023-11-14 22:13:20')
    """
    if not time_ms:
        return NONE
    then, now = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (time_ms, now_ms))
    return f"{then:%H:%M:%S}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M:%S}"
