"""Where points, intervals and axes of the chart lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alula.report.content import ReportContent
from alula.report.geometry import Box, text_width
from alula.report.numbers import MINUS
from alula.report.scales import LinearScale, LogScale, linear_ticks
from alula.report.trials import Row
from alula.report.words import DropScale

__all__ = [
    "CHOSEN_RADIUS",
    "LARGEST",
    "NARROW",
    "RADIUS",
    "WIDE",
    "Frame",
    "Plot",
    "Point",
    "drop_of",
    "lay_out",
    "ratio_of",
    "tick_text",
    "y_ticks",
]

RADIUS = 6.0
CHOSEN_RADIUS = 8.0
LARGEST = 1e12
"""Ratios, speeds and drops from here on are not drawn."""

# Intervals may stretch the axis beyond the outermost point by so much; longer ones end in an arrow.
_LONGEST_REACH = 3.0
# A limit so much larger than all that was measured would press the points into a line.
_FAR_LIMIT = 12.0


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The size of a chart, in the pixels of its view box.

    Attributes:
        name: begins the ids of its title and description.
        width: of the view box.
        height: of the view box.
        font_px: of all texts.
        gutter: width of the strip for recipes that were judged but not timed.
        label_chars: of the longest label.
        brief: whether there is room for the fewest words only, and none for samples per second above.
    """

    name: str
    width: float
    height: float
    font_px: float
    gutter: float
    label_chars: int
    brief: bool


WIDE = Frame(name="wide", width=940, height=520, font_px=13, gutter=96, label_chars=44, brief=False)
NARROW = Frame(name="narrow", width=328, height=470, font_px=12, gutter=64, label_chars=26, brief=True)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row in pixels.

    Attributes:
        row: which.
        x: of its marker.
        y: of its marker.
        radius: of its marker.
        along: ends of the interval of its speed.
        across: ends of the interval of its drop.
        rough: whether the drop was judged on fewer samples than that of the chosen one.
        beyond: whether it lies below the scale.
    """

    row: Row
    x: float
    y: float
    radius: float
    along: tuple[float, float] | None
    across: tuple[float, float] | None
    rough: bool
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The inner area and its scales.

    Attributes:
        area: with the gutter.
        x: ratio over the baseline.
        y: drop on the metric's own scale.
        limit: drop that is allowed.
        gutter: right end of the strip of what was not timed, None without one.
    """

    area: Box
    x: LogScale
    y: LinearScale
    limit: float
    gutter: float | None


def lay_out(
    content: ReportContent, rows: Sequence[Row], *, frame: Frame, scale: DropScale
) -> tuple[Plot, list[Point]] | None:
    """Return the scales and the points of all rows that were judged; None if none of them has a speed.

    Args:
        content: for the metric, the limit and the number of samples.
        rows: what to draw; the chosen one first.
        frame: the size of the chart.
        scale: how drops are written, for the width of the numbers beside the axis.
    """
    judged = [row for row in rows if drop_of(row, content.accuracy.metric) is not None]
    timed = [row for row in judged if ratio_of(row) is not None]
    untimed = [row for row in judged if ratio_of(row) is None]
    if not timed:
        return None
    plot = _plot(content, timed, untimed, frame=frame, scale=scale)
    points = [_timed_point(row, plot, content.accuracy.n) for row in timed]
    points += _untimed_points(untimed, plot)
    return plot, points


def drop_of(row: Row, metric: str) -> float | None:
    """Return the drop of a row that can be drawn beside those of `metric`."""
    accuracy = row.accuracy
    if accuracy is None or accuracy.metric != metric or not abs(accuracy.drop) < LARGEST:
        return None
    return accuracy.drop


def ratio_of(row: Row) -> float | None:
    ratio = row.ratio
    if ratio is None or not 1 / LARGEST < ratio.median < LARGEST:
        return None
    return ratio.median


def _interval(row: Row) -> tuple[float, float] | None:
    """Return the interval of a ratio, or the range of its rounds where there is no interval."""
    if row.confirmed and row.ratio is not None:
        ends = (row.ratio.low, row.ratio.high)
    elif row.range_ratio is not None:
        ends = row.range_ratio
    else:
        return None
    low, high = ends
    return (max(low, 1 / LARGEST), min(high, LARGEST)) if low <= high else None


# Scales.


def _plot(
    content: ReportContent, timed: Sequence[Row], untimed: Sequence[Row], *, frame: Frame, scale: DropScale
) -> Plot:
    low_y, high_y = _y_range(content, [*timed, *untimed])
    top = 2.2 * frame.font_px + (0 if frame.brief else 1.7 * frame.font_px)
    bottom = frame.height - 3.6 * frame.font_px
    y = LinearScale(low=low_y, high=high_y, start=top, end=bottom)
    widest = max(
        (text_width(tick_text(value * scale.factor), frame.font_px) for value in y_ticks(y, scale)),
        default=0.0,
    )
    left, right = widest + 12, frame.width - 14
    gutter = left + frame.gutter if untimed else None
    low_x, high_x = _x_range(timed)
    x = LogScale(low=low_x, high=high_x, start=(gutter or left) + 4, end=right)
    return Plot(area=Box(left, top, right, bottom), x=x, y=y, limit=content.accuracy.limit, gutter=gutter)


def _x_range(timed: Sequence[Row]) -> tuple[float, float]:
    ratios = [1.0, *(ratio for row in timed if (ratio := ratio_of(row)) is not None)]
    low, high = min(ratios), max(ratios)
    ends = [interval for row in timed if (interval := _interval(row)) is not None]
    low = max(min([low, *(end[0] for end in ends)]), low / _LONGEST_REACH)
    high = min(max([high, *(end[1] for end in ends)]), high * _LONGEST_REACH)
    # Room beside the outermost marks; at least 10 % to either side where all are equally fast.
    pad = max((high / low) ** 0.09, 1.1)
    return low / pad, high * pad


def _y_range(content: ReportContent, shown: Sequence[Row]) -> tuple[float, float]:
    inside, outside = [0.0], []
    for row in shown:
        if row.accuracy is None:
            continue
        if row.verdict in ("chosen", "accepted"):
            # The wide interval of a rough check would press together what was checked well.
            rough = row.accuracy.n < content.accuracy.n
            ends = () if rough else (row.accuracy.drop_low, row.accuracy.drop_high)
            inside += [end for end in (row.accuracy.drop, *ends) if abs(end) < LARGEST]
        else:
            outside.append(row.accuracy.drop)
    limit = content.accuracy.limit
    largest = max(map(abs, inside))
    if 0 <= limit < LARGEST and (limit <= _FAR_LIMIT * largest or largest == 0):
        inside.append(limit)
    low, high = min(inside), max(inside)
    span = high - low
    near = [drop for drop in outside if low - span <= drop <= high + span]
    low, high = min([low, *near]), max([high, *near])
    span = max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-9)
    return low - 0.1 * span, high + 0.14 * span


def y_ticks(y: LinearScale, scale: DropScale) -> tuple[float, ...]:
    shown = LinearScale(low=y.low * scale.factor, high=y.high * scale.factor, start=0.0, end=1.0)
    return tuple(value / scale.factor for value in linear_ticks(shown, 7))


def tick_text(value: float) -> str:
    # Dividing by 100 and multiplying again leaves tails of rounding.
    text = f"{value:.10g}"
    return text.replace("-", MINUS, 1) if value < 0 else f"+{text}" if float(text) else "0"


# What lies where.


def _timed_point(row: Row, plot: Plot, n: int) -> Point:
    assert row.ratio is not None and row.accuracy is not None
    interval = _interval(row)
    beyond = row.accuracy.drop > plot.y.high
    ends = (row.accuracy.drop_low, row.accuracy.drop_high)
    return Point(
        row=row,
        x=plot.x.clipped(row.ratio.median),
        y=_y(row.accuracy.drop, plot),
        radius=CHOSEN_RADIUS if row.verdict == "chosen" else RADIUS,
        along=None if interval is None else (plot.x.clipped(interval[0]), plot.x.clipped(interval[1])),
        across=None
        if beyond or not ends[0] <= ends[1]
        else (plot.y.clipped(ends[0]), plot.y.clipped(ends[1])),
        rough=row.accuracy.n < n,
        beyond=beyond,
    )


def _untimed_points(rows: Sequence[Row], plot: Plot) -> list[Point]:
    """Return points in the gutter, moved aside where they would cover each other."""
    points: list[Point] = []
    if plot.gutter is None:
        return points
    width = plot.gutter - plot.area.left
    middle, step = plot.area.left + width / 2, 2 * RADIUS + 4
    slots = [middle]
    while middle + len(slots) * step / 2 < plot.gutter - RADIUS:
        slots += [middle + (len(slots) + 1) // 2 * step, middle - (len(slots) + 1) // 2 * step]
    for row in rows:
        assert row.accuracy is not None
        y = _y(row.accuracy.drop, plot)
        free = [x for x in slots if all(abs(x - one.x) + abs(y - one.y) > 2 * RADIUS for one in points)]
        beyond = row.accuracy.drop > plot.y.high
        points.append(
            Point(
                row=row,
                x=(free or slots)[0],
                y=y,
                radius=RADIUS,
                along=None,
                across=None,
                rough=True,
                beyond=beyond,
            )
        )
    return points


def _y(drop: float, plot: Plot) -> float:
    edge = CHOSEN_RADIUS + 8
    return min(max(plot.y.clipped(drop), plot.area.top + edge), plot.area.bottom - edge)
