"""Speed against size or score as one SVG file, and which points no other point beats.

The picture needs no page around it: it brings its colours, and a white ground to show them on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alula.report.drawing import draw_frame, draw_label, draw_leader, draw_text
from alula.report.geometry import Box, text_width
from alula.report.labels import LabelRequest, place_labels
from alula.report.markup import Node, element, render
from alula.report.numbers import shortened
from alula.report.scales import LinearScale, LogScale, linear_ticks, log_ticks

__all__ = ["Across", "ParetoPoint", "pareto_front", "pareto_svg"]

Across = Literal["score", "macs", "parameters"]
"""What runs along the horizontal axis: more of it is taken for better."""

_WIDTH, _HEIGHT = 940.0, 560.0
_FONT_PX = 13.0
_RADIUS = 5.5
_LABEL_CHARS = 34
_STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:#18211c}
.ground{fill:#fff}
.heading{font-size:16px;font-weight:600}
.muted{fill:#54615a}
.plot{fill:none;stroke:#dbe2dd}
.grid{stroke:#e6ebe7;fill:none}
.beaten{fill:#eef5f1}
.front{stroke:#0a6a49;stroke-width:1.5;fill:none}
.point{fill:#fff;stroke:#54615a;stroke-width:2}
.member{fill:#0a6a49;stroke:#0a6a49}
.leader{stroke:#a5b2ab;fill:none}
.label{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.strong{font-weight:700}
"""


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """One model.

    Attributes:
        name: what is written beside it.
        across: score, multiply-accumulates or parameters; positive unless it is a score.
        per_s: samples per second, positive.
    """

    name: str
    across: float
    per_s: float


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Return the indices of points that no other beats, the largest first coordinate first.

    Larger is better in both coordinates. A point beats another if it is at least as good in both and better
    in one, so equal points stay together. Sorted and swept once, O(n log n): the maxima of a set of vectors
    after Kung, Luccio and Preparata 1975 (Journal of the ACM 22).

    Raises:
        ValueError: a coordinate is not a number.

    >>> pareto_front([(1.0, 9.0), (2.0, 5.0), (1.5, 4.0), (3.0, 1.0)])
    (3, 1, 0)
    """
    if any(math.isnan(value) for point in points for value in point):
        raise ValueError("a point has a coordinate that is not a number; leave it out")
    order = sorted(range(len(points)), key=lambda index: (-points[index][0], -points[index][1], index))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return tuple(front)


def pareto_svg(points: Sequence[ParetoPoint], *, across: Across, caption: str) -> str:
    """Return an SVG file: up is faster, right is more, and the front is drawn with its members' names.

    Speed has a logarithmic axis, size too, a score a linear one.

    Args:
        points: at least one.
        across: what their horizontal values are.
        caption: on what they were measured, one line.

    Raises:
        ValueError: there is no point, or a value has no place on its axis.
    """
    if not points:
        raise ValueError("got no points to draw; expected at least one")
    chart = _Chart(points, across)
    children: list[Node] = [
        element("title", {"id": "title"}, chart.heading),
        element("desc", {"id": "desc"}, f"{caption}. {chart.description}"),
        element("style", {}, _STYLE),
        element("rect", {"class": "ground", "width": _WIDTH, "height": _HEIGHT}),
        draw_text("heading", chart.area.left, 24, "start", chart.heading),
        draw_text("muted", chart.area.left, 44, "start", shortened(caption, 120)),
        *chart.axes(),
        *chart.front_line(),
        *chart.marks(),
        draw_text("muted", chart.area.left, _HEIGHT - 12, "start", f"Filled: {chart.meaning}."),
    ]
    svg = element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH:g} {_HEIGHT:g}",
            "width": _WIDTH,
            "height": _HEIGHT,
            "role": "img",
            "aria-labelledby": "title desc",
        },
        *children,
    )
    return f"{render(svg)}\n"


@dataclass(frozen=True)
class _Words:
    """How an axis is written: its unit, title and short name, and what a model with more of it does."""

    unit: float
    axis: str
    name: str
    more: str


# Shares of an axis that stay free before the first and after the last value.
_BEFORE, _BEYOND = 0.06, 0.08
_FOR_NAMES = 0.2  # on the right, where the front falls steeply and names stand beside it

_WORDS: dict[Across, _Words] = {
    "score": _Words(1.0, "score", "score", "has a higher score"),
    "macs": _Words(1e9, "GMAC per sample, logarithmic", "work per sample", "does more work"),
    "parameters": _Words(1e6, "million parameters, logarithmic", "parameters", "has more parameters"),
}


class _Chart:
    def __init__(self, points: Sequence[ParetoPoint], across: Across) -> None:
        self._points = points
        self._words = _WORDS[across]
        self._values = [(point.across / self._words.unit, point.per_s) for point in points]
        members = pareto_front(self._values)
        # From left to right: ever more of what is across, ever slower.
        self._front = tuple(reversed(members))
        low, high = _log_range([per_s for _, per_s in self._values], beyond=_BEYOND)
        top, bottom = 82.0, _HEIGHT - 78.0
        self._y = LogScale(low=low, high=high, start=bottom, end=top)
        self._y_ticks = log_ticks(self._y, self._rows_fit)
        widest = max((text_width(f"{value:,g}", _FONT_PX) for value in self._y_ticks), default=0.0)
        self.area = Box(widest + 16, top, _WIDTH - 18, bottom)
        self._x = self._x_scale([value for value, _ in self._values], logarithmic=across != "score")
        self.heading = f"Speed against {self._words.name}"

    def _x_scale(self, values: Sequence[float], *, logarithmic: bool) -> LinearScale | LogScale:
        start, end = self.area.left, self.area.right
        if logarithmic:
            low, high = _log_range(values, beyond=_FOR_NAMES)
            return LogScale(low=low, high=high, start=start, end=end)
        low, high = min(values), max(values)
        if not math.isfinite(high - low):
            raise ValueError(f"scores must be finite numbers to be drawn; got {low} to {high}")
        span = (high - low) or 0.1 * max(abs(low), 1.0)
        return LinearScale(low=low - _BEFORE * span, high=high + _FOR_NAMES * span, start=start, end=end)

    @property
    def meaning(self) -> str:
        return f"nothing else here is both faster and {self._words.more}"

    @property
    def description(self) -> str:
        members = ", ".join(self._points[index].name for index in self._front)
        return f"{len(self._points)} models; on the front, where {self.meaning}: {members}."

    def _at(self, index: int) -> tuple[float, float]:
        value, per_s = self._values[index]
        return self._x.position(value), self._y.position(per_s)

    def _rows_fit(self, values: Sequence[float]) -> bool:
        return all(
            self._y.position(a) - self._y.position(b) >= 2 * _FONT_PX for a, b in itertools.pairwise(values)
        )

    def _columns_fit(self, values: Sequence[float]) -> bool:
        return all(
            self._x.position(b) - self._x.position(a)
            >= (text_width(f"{a:,g}", _FONT_PX) + text_width(f"{b:,g}", _FONT_PX)) / 2 + _FONT_PX
            for a, b in itertools.pairwise(values)
        )

    def axes(self) -> list[Node]:
        area = self.area
        nodes: list[Node] = []
        for value in self._y_ticks:
            y = self._y.position(value)
            nodes.append(
                element("path", {"class": "grid", "d": f"M{area.left:.1f} {y:.1f}H{area.right:.1f}"})
            )
            nodes.append(draw_text("muted", area.left - 6, y + 0.35 * _FONT_PX, "end", f"{value:,g}"))
        if isinstance(self._x, LogScale):
            x_ticks = log_ticks(self._x, self._columns_fit)
        else:
            x_ticks = linear_ticks(self._x, 9)
        for value in x_ticks:
            x = self._x.position(value)
            nodes.append(
                element("path", {"class": "grid", "d": f"M{x:.1f} {area.top:.1f}V{area.bottom:.1f}"})
            )
            nodes.append(draw_text("muted", x, area.bottom + 1.4 * _FONT_PX, "middle", f"{value:,g}"))
        nodes.append(draw_frame(area))
        nodes.append(draw_text("muted", area.left, area.top - 9, "start", "↑ samples/s, logarithmic"))
        nodes.append(
            draw_text("muted", area.right, area.bottom + 2.9 * _FONT_PX, "end", f"{self._words.axis} →")
        )
        return nodes

    def _corners(self) -> list[tuple[float, float]]:
        """Return the corners of the steps, from the left edge to the lower one."""
        corners = [(self.area.left, self._at(self._front[0])[1])]
        for index in self._front:
            x, y = self._at(index)
            corners += [(corners[-1][0], y), (x, y)]
        return [*corners, (corners[-1][0], self.area.bottom)]

    def front_line(self) -> list[Node]:
        """Return the steps that bound what the front's members beat."""
        corners = self._corners()
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        return [
            element("path", {"class": "beaten", "d": f"{path}H{self.area.left:.1f}Z"}),
            element("path", {"class": "front", "d": path}),
        ]

    def marks(self) -> list[Node]:
        """Return points and names, the front's members before the others."""
        order = [*self._front, *(i for i in range(len(self._points)) if i not in self._front)]
        requests = [self._request(index) for index in order]
        area = self.area
        placed = place_labels(
            requests,
            area=Box(area.left + 3, area.top + 3, area.right - 3, area.bottom - 3),
            font_px=_FONT_PX,
            soft=[
                Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
                for (x0, y0), (x1, y1) in itertools.pairwise(self._corners())
            ],
        )
        names = [name for name in placed if name is not None]
        nodes: list[Node] = [draw_leader(name.leader) for name in names if name.leader is not None]
        for index in reversed(order):
            x, y = self._at(index)
            name = "point member" if index in self._front else "point"
            nodes.append(element("circle", {"class": name, "cx": x, "cy": y, "r": _RADIUS}))
        nodes += [draw_label(name, _FONT_PX) for name in names]
        return nodes

    def _request(self, index: int) -> LabelRequest:
        x, y = self._at(index)
        name = self._points[index].name
        member = index in self._front
        texts = (shortened(name, _LABEL_CHARS), shortened(name, 16))
        return LabelRequest(
            x=x, y=y, radius=_RADIUS, texts=tuple(dict.fromkeys(texts)), important=member, bold=member
        )


def _log_range(values: Sequence[float], *, beyond: float) -> tuple[float, float]:
    """Return the ends of a logarithmic axis, with room beside the outermost values."""
    low, high = min(values), max(values)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"values on a logarithmic axis must be positive and finite; got {low} to {high}")
    span = max(high / low, 2.0)
    return low / span**_BEFORE, high * span**beyond
