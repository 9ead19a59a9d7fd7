"""Numbers as people read them."""

from __future__ import annotations

import datetime
import math

from alula.core import Ratio

__all__ = [
    "MINUS",
    "UNKNOWN",
    "clock_time",
    "count",
    "duration",
    "gibibytes",
    "macs",
    "per_s",
    "shortened",
    "signed",
    "times",
    "times_interval",
]

MINUS = "\u2212"
UNKNOWN = "\u2013"


def per_s(value: float) -> str:
    """Return a speed in three or more digits.

    >>> per_s(14669.2), per_s(458.04), per_s(53.12), per_s(0.4567), per_s(3.2e9), per_s(float("nan"))
    ('14,669', '458', '53.1', '0.457', '3.2e+09', '–')
    """
    if not math.isfinite(value):
        return UNKNOWN
    if 100 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    if 10 <= abs(value) < 100:
        return f"{value:.1f}"
    return f"{value:.3g}" if value else "0"


def times(value: float) -> str:
    """Return a ratio of speeds.

    >>> times(6.938), times(12.34), times(118.2), times(0.0123), times(float("inf"))
    ('6.94×', '12.3×', '118×', '0.012×', '∞×')
    """
    return f"{_factor(value)}×"


def times_interval(ratio: Ratio, *, between: str = " to ") -> str:
    """Return the interval of a ratio, without unit.

    >>> times_interval(Ratio(2.0, 1.5, 2.5)), times_interval(Ratio(2.0, 0.0, float("inf")))
    ('1.50 to 2.50', 'unknown')
    """
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return "unknown"
    return f"{_factor(ratio.low)}{between}{_factor(ratio.high)}"


def _factor(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    for limit, decimals in ((0.1, 0), (10, 2), (100, 1), (1e6, 0)):
        if abs(value) < limit:
            return f"{value:.2g}" if decimals == 0 and limit < 1 else f"{value:,.{decimals}f}"
    return f"{value:.3g}"


def signed(value: float, decimals: int) -> str:
    """Return a number with its sign, with a true minus; what rounds to zero has none.

    >>> signed(0.0851, 2), signed(-0.3, 2), signed(-0.001, 2)
    ('+0.09', '−0.30', '0.00')
    """
    if not math.isfinite(value):
        return UNKNOWN
    text = f"{abs(value):,.{decimals}f}" if abs(value) < 1e9 else f"{abs(value):.3g}"
    if not text.strip("0.,"):
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def duration(seconds: float) -> str:
    """Return a duration.

    >>> duration(0.0), duration(8.27), duration(131.0), duration(3900.0), duration(0.004)
    ('0 s', '8.3 s', '2 min 11 s', '1 h 05 min', '4 ms')
    """
    if not math.isfinite(seconds) or seconds < 0:
        return UNKNOWN
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms" if seconds else "0 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min"


def count(n: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "thread"), count(4700, "sample"), count(2, "batch")
    ('1 thread', '4,700 samples', '2 batches')
    """
    plural = noun if n == 1 else f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{n:,} {plural}"


def gibibytes(size_bytes: int) -> str:
    """Return a size of memory.

    >>> gibibytes(25276510208)
    '23.5 GiB'
    """
    return f"{size_bytes / 2**30:,.1f} GiB"


def macs(value: float) -> str:
    """Return multiply-accumulate operations with a prefix.

    >>> macs(4.09e9), macs(41.2e6), macs(512)
    ('4.09 GMAC', '41.2 MMAC', '512 MAC')
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}MAC"
    return f"{value:.3g} MAC"


def clock_time(created: str) -> str:
    """Return a time in ISO 8601 in words, or the text itself if it is none.

    >>> clock_time("2024-02-29T12:05:00Z"), clock_time("yesterday")
    ('29 February 2024, 12:05 UTC', 'yesterday')
    """
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    if moment.tzinfo is None:
        return created
    try:
        moment = moment.astimezone(datetime.UTC)
    except OverflowError:
        return created
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    return f"{moment.day} {months[moment.month - 1]} {moment.year}, {moment:%H:%M} UTC"


def shortened(text: str, limit: int) -> str:
    """Return text of at most `limit` characters, its middle left out if it is longer.

    >>> shortened("openvino/int8-nncf-mixed-full-bias-dense", 20)
    'openvino/int8…-dense'
    """
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"
