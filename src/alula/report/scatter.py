"""The chart of speed against accuracy, as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from alula.report.content import ReportContent
from alula.report.drawing import draw_frame, draw_label, draw_leader, draw_text
from alula.report.geometry import Box, text_width
from alula.report.labels import LabelRequest, PlacedLabel, place_labels
from alula.report.layout import LARGEST, RADIUS, Frame, Plot, Point, lay_out, ratio_of, tick_text, y_ticks
from alula.report.marks import marker, strike
from alula.report.markup import Element, Node, element
from alula.report.markup import coordinate as px
from alula.report.numbers import shortened
from alula.report.scales import LogScale, log_ticks
from alula.report.trials import Row
from alula.report.words import DropScale, baseline_name, drop_scale, drop_words

__all__ = ["scatter"]

_RING_RADIUS = 13.0
# Beyond so many points names would bury the picture: then come numbers, and then the table alone.
_NAMED = 24
_NUMBERED = 40


def scatter(
    content: ReportContent, rows: Sequence[Row], *, kinds: Mapping[str, int], frame: Frame
) -> Element | None:
    """Return the chart, None where no speed can be compared with the baseline's.

    Right is faster, up is more accurate. Ratios over the baseline run along a logarithmic axis.

    Args:
        content: for the baseline, the limit and the metric.
        rows: what to draw.
        kinds: marker by engine.
        frame: its size.
    """
    scale = drop_scale(content.accuracy)
    laid_out = lay_out(content, rows, frame=frame, scale=scale)
    if laid_out is None:
        return None
    plot, points = laid_out
    base_x, base_y = plot.x.position(1.0), plot.y.clipped(0.0)
    marks = [Box.around(base_x, base_y, RADIUS + 3)]
    marks += [Box.around(point.x, point.y, point.radius + 3) for point in points]
    limit_box, limit_mark = _limit(plot, scale, frame, marks=marks)
    placed = _labels(content, points, (base_x, base_y), plot=plot, scale=scale, frame=frame, limit=limit_box)
    names = [name for name in placed if name is not None]
    children: list[Node] = [
        element("title", {"id": f"{frame.name}-title"}, "Speed against accuracy of every recipe"),
        element("desc", {"id": f"{frame.name}-desc"}, _description(content, points, scale)),
        *_axes(content, plot, scale, frame),
        *limit_mark,
        element(
            "path", {"class": "base-line", "d": f"M{px(base_x)} {px(plot.area.top)}V{px(plot.area.bottom)}"}
        ),
        *(bar for point in points for bar in _bars(point, plot, kinds)),
        *(draw_leader(name.leader) for name in names if name.leader is not None),
        element("circle", {"class": "base", "cx": base_x, "cy": base_y, "r": RADIUS}),
        element("circle", {"class": "base-dot", "cx": base_x, "cy": base_y, "r": 2.2}),
        # The chosen one comes last, on top.
        *(mark for point in reversed(points) for mark in _mark(point, kinds, plot)),
        *(draw_label(name, frame.font_px) for name in names),
    ]
    return element(
        "svg",
        {
            "class": f"chart {frame.name}",
            "viewBox": f"0 0 {frame.width:g} {frame.height:g}",
            "role": "img",
            "aria-labelledby": f"{frame.name}-title {frame.name}-desc",
        },
        *children,
    )


def _labels(
    content: ReportContent,
    points: Sequence[Point],
    base: tuple[float, float],
    *,
    plot: Plot,
    scale: DropScale,
    frame: Frame,
    limit: Box,
) -> tuple[PlacedLabel | None, ...]:
    """Return the places of the labels: the chosen one's, the baseline's, then those of other points."""
    requests = [
        _request(point, scale, frame, full=index < _NAMED) for index, point in enumerate(points[:_NUMBERED])
    ]
    name = shortened(baseline_name(content.baseline), frame.label_chars - 10)
    texts = (f"baseline: {name}", "baseline")
    baseline = LabelRequest(x=base[0], y=base[1], radius=RADIUS, texts=texts, important=True)
    requests.insert(1, baseline)
    area, inset = plot.area, 3
    return place_labels(
        requests,
        area=Box(area.left + inset, area.top + inset, area.right + 10, area.bottom - inset),
        font_px=frame.font_px,
        obstacles=[
            limit,
            *(Box.around(point.x, point.y, point.radius) for point in points[_NUMBERED:]),
        ],
        soft=[box for point in points for box in _bar_boxes(point)],
    )


def _request(point: Point, scale: DropScale, frame: Frame, *, full: bool) -> LabelRequest:
    row = point.row
    name = shortened(row.recipe.name, frame.label_chars)
    number = f"{row.number}"
    chosen = row.verdict == "chosen"
    texts = [name, shortened(name, 18), number] if full else [number]
    if point.beyond and full and row.accuracy is not None:
        texts.insert(0, f"{name} ({scale.text(row.accuracy.drop, unit=False)})")
        texts.insert(2, f"{number} ({scale.text(row.accuracy.drop, unit=False)})")
    if chosen:
        texts.insert(0, f"{name}, chosen")
    return LabelRequest(
        x=point.x,
        y=point.y,
        radius=_RING_RADIUS if chosen else point.radius,
        texts=tuple(dict.fromkeys(texts)),
        important=chosen,
        bold=chosen,
    )


def _bar_boxes(point: Point) -> list[Box]:
    boxes = []
    if point.along is not None:
        boxes.append(Box(point.along[0], point.y - 1, point.along[1], point.y + 1))
    if point.across is not None:
        boxes.append(Box(point.x - 1, point.across[0], point.x + 1, point.across[1]))
    return boxes


# Drawing.


def _axes(content: ReportContent, plot: Plot, scale: DropScale, frame: Frame) -> list[Node]:
    area, font = plot.area, frame.font_px
    unit = f", {scale.unit}" if scale.unit else ""
    nodes: list[Node] = [
        draw_frame(area),
        _title(4, 1.1 * font, "start", ("↑ better · ", drop_words(content.accuracy.metric), unit), frame),
    ]
    for value in y_ticks(plot.y, scale):
        y = plot.y.position(value)
        nodes.append(element("path", {"class": "grid", "d": f"M{px(area.left)} {px(y)}H{px(area.right)}"}))
        nodes.append(
            draw_text("tick", area.left - 6, y + 0.35 * font, "end", tick_text(value * scale.factor))
        )
    for value in _x_ticks(plot.x, "{:g}×", font):
        x = plot.x.position(value)
        nodes.append(element("path", {"class": "grid", "d": f"M{px(x)} {px(area.top)}V{px(area.bottom)}"}))
        nodes.append(draw_text("tick", x, area.bottom + 1.35 * font, "middle", f"{value:g}×"))
    name = baseline_name(content.baseline)
    along = (
        ("", name, " = 1×, logarithmic →") if frame.brief else ("times as fast as ", name, ", logarithmic →")
    )
    nodes.append(_title(area.right, frame.height - 0.7 * font, "end", along, frame))
    if plot.gutter is not None:
        nodes.append(
            element("path", {"class": "gutter", "d": f"M{px(plot.gutter)} {px(area.top)}V{px(area.bottom)}"})
        )
        centre = (area.left + plot.gutter) / 2
        nodes.append(draw_text("tick", centre, area.bottom + 1.35 * font, "middle", "not timed"))
    if not frame.brief:
        nodes += _absolute_axis(content.baseline_throughput.per_s, plot, frame)
    return nodes


def _absolute_axis(baseline_per_s: float, plot: Plot, frame: Frame) -> list[Node]:
    """Return a second scale above the plot: the same axis in samples per second."""
    if not 1 / LARGEST < baseline_per_s < LARGEST:
        return []
    x, font, top = plot.x, frame.font_px, plot.area.top
    absolute = LogScale(low=x.low * baseline_per_s, high=x.high * baseline_per_s, start=x.start, end=x.end)
    nodes: list[Node] = [draw_text("axis-title", plot.area.right, 1.1 * font, "end", "samples/s")]
    for value in _x_ticks(absolute, "{:,g}", font):
        at = absolute.position(value)
        nodes.append(element("path", {"class": "tick-mark", "d": f"M{px(at)} {px(top)}v-5"}))
        nodes.append(draw_text("tick", at, top - 0.7 * font, "middle", f"{value:,g}"))
    return nodes


def _x_ticks(scale: LogScale, form: str, font_px: float) -> tuple[float, ...]:
    """Return ticks whose numbers leave each other room and stay inside the picture."""

    def half(value: float) -> float:
        return text_width(form.format(value), font_px) / 2

    def fits(values: Sequence[float]) -> bool:
        return all(
            scale.position(b) - scale.position(a) >= half(a) + half(b) + 0.8 * font_px
            for a, b in itertools.pairwise(values)
        )

    return tuple(
        value
        for value in log_ticks(scale, fits)
        if scale.position(value) - half(value) >= scale.start - 6
        and scale.position(value) + half(value) <= scale.end + 10
    )


def _limit(plot: Plot, scale: DropScale, frame: Frame, *, marks: Sequence[Box]) -> tuple[Box, list[Node]]:
    """Return the box of the limit's label, kept off the marks, and what is drawn for the limit."""
    area, font = plot.area, frame.font_px
    shown = plot.y.low <= plot.limit <= plot.y.high
    text = f"limit {scale.limit(plot.limit)}" if math.isfinite(plot.limit) else "no limit"
    text += "" if shown or math.isinf(plot.limit) else ", far below"
    width, height = text_width(text, font), 1.25 * font
    y = plot.y.position(plot.limit) if shown else area.bottom
    first, last = plot.x.start + 4, area.right - width - 6
    options = [
        Box(left, top, left + width, top + height)
        for top in (y + 2, y - 2 - height)
        for left in np.linspace(last, first, 9).tolist()
        if top + height <= area.bottom
    ]
    box = next((one for one in options if not any(one.overlaps(mark) for mark in marks)), options[0])
    label = draw_text("limit-text", box.left, box.top + font, "start", text)
    if not shown:
        return box, [label]
    size = {"x": area.left, "y": y, "width": area.right - area.left, "height": area.bottom - y}
    return box, [
        element("rect", {"class": "beyond", **size}),
        element("path", {"class": "limit", "d": f"M{px(area.left)} {px(y)}H{px(area.right)}"}),
        label,
    ]


def _bars(point: Point, plot: Plot, kinds: Mapping[str, int]) -> list[Node]:
    kind = kinds[point.row.recipe.engine]
    nodes: list[Node] = []
    if point.along is not None:
        start, end = point.along
        cap = 4 if point.row.confirmed else 0
        name = "bar" if point.row.confirmed else "bar rough"
        path = f"M{px(start)} {px(point.y)}H{px(end)}"
        if cap:
            path += "".join(f"M{px(x)} {px(point.y - cap)}v{2 * cap}" for x in (start, end))
        nodes.append(element("path", {"class": f"{name} k{kind}", "d": path}))
    if point.across is not None:
        first, last = point.across
        path = f"M{px(point.x)} {px(first)}V{px(last)}"
        ends = (plot.area.top, plot.area.bottom)
        path += "".join(f"M{px(point.x - 4)} {px(y)}h8" for y in (first, last) if y not in ends)
        name = "bar rough" if point.rough else "bar"
        nodes.append(element("path", {"class": f"{name} k{kind}", "d": path}))
    if point.beyond:
        tip = plot.area.bottom - 3
        path = f"M{px(point.x)} {px(point.y)}V{px(tip)}m-4 -5l4 5l4 -5"
        nodes.append(element("path", {"class": f"bar k{kind}", "d": path}))
    return nodes


def _mark(point: Point, kinds: Mapping[str, int], plot: Plot) -> list[Node]:
    row = point.row
    nodes: list[Node] = []
    if row.verdict == "chosen":
        nodes.append(element("circle", {"class": "ring", "cx": point.x, "cy": point.y, "r": _RING_RADIUS}))
    nodes.append(marker(kinds[row.recipe.engine], row.recipe.precision, point.x, point.y, point.radius))
    if row.verdict not in ("chosen", "accepted"):
        nodes.append(strike(point.x, point.y, point.radius))
    return nodes


def _title(x: float, y: float, anchor: str, words: tuple[str, str, str], frame: Frame) -> Element:
    """Return the title of an axis, the name in its middle shortened until it fits beside another title."""
    before, name, after = words
    room = frame.width * (0.97 if frame.brief else 0.62)
    while len(name) > 8 and text_width(before + name + after, frame.font_px) > room:
        name = shortened(name, min(len(name) - 1, 80))
    return draw_text("axis-title", x, y, anchor, before + name + after)


def _description(content: ReportContent, points: Sequence[Point], scale: DropScale) -> str:
    best = points[0].row
    untimed = sum(ratio_of(point.row) is None for point in points)
    text = (
        f"{len(points) - untimed} recipes by speed, as a multiple of {baseline_name(content.baseline)} on a "
        f"logarithmic axis, and by {drop_words(content.accuracy.metric)}; "
        f"the limit is {scale.limit(content.accuracy.limit)}. "
    )
    if best.ratio is not None and best.accuracy is not None:
        text += (
            f"{best.recipe.name} is at {best.ratio.median:.2f} times with a drop of "
            f"{scale.text(best.accuracy.drop)}. "
        )
    if untimed:
        text += f"{untimed} more were rejected before they were timed. "
    return text + "The table below has all figures."
