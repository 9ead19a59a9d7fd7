"""Where to write the names of points so that no two names, and no name and point, cover each other.

Greedy placement: the most important label first takes the cheapest free place around its point, near ones
before far ones. What cannot be written in full is written in a shorter form. Where that leaves a point
without a label, all but the important ones start from their shortest form and grow afterwards. The idea is
that of point-feature label placement (Christensen, Marks, Shieber 1995, ACM Transactions on Graphics 14),
without their annealing: here are tens of labels, not thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from alula.report.geometry import Box, Segment, text_width

__all__ = ["LabelRequest", "PlacedLabel", "place_labels"]

LINE_HEIGHT = 1.2
_DISTANCES = (4.0, 11.0, 20.0, 32.0, 46.0, 62.0, 80.0, 100.0, 124.0, 152.0, 184.0)
# Nearer labels need no line to be understood as belonging to their point.
_LEADER_FROM = 9.0
_GAP = 4.0
_ATTEMPTS = 4
_SOFT_COST = 14.0
# What is so close to a marker is best left to that marker's own label.
_NEAR = 14.0
_NEAR_COST = 8.0
_CROSSING_COST = 45.0


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """A point that wants a label.

    Attributes:
        x: of the point.
        y: of the point.
        radius: of its marker.
        texts: what to write, the best first; a later one is taken where an earlier one finds no room.
        important: whether it comes before others, however badly they come off.
        bold: whether it is written in bold, and always joined to its point.
    """

    x: float
    y: float
    radius: float
    texts: tuple[str, ...]
    important: bool = False
    bold: bool = False


@dataclass(frozen=True, kw_only=True)
class PlacedLabel:
    """A label with its place.

    Attributes:
        text: what is written.
        box: where, as wide as it can be in any font.
        anchor: which end of the text stays in place in a narrower font, in SVG's words.
        leader: joins it to its point where it is not beside it.
        bold: whether it is written in bold.
    """

    text: str
    box: Box
    anchor: Literal["start", "middle", "end"]
    leader: Segment | None
    bold: bool


def place_labels(
    requests: Sequence[LabelRequest],
    *,
    area: Box,
    font_px: float,
    obstacles: Sequence[Box] = (),
    soft: Sequence[Box] = (),
) -> tuple[PlacedLabel | None, ...]:
    """Return the place of each label, None where there is no room for any of its texts.

    Args:
        requests: the most important first.
        area: labels stay inside.
        font_px: size of the font.
        obstacles: what no label may cover besides the markers of all points.
        soft: what a label should rather not cover, such as error bars.
    """
    placer = _Placer(requests, area=area, font_px=font_px, obstacles=obstacles, soft=soft)
    order = list(range(len(requests)))
    best: dict[int, PlacedLabel] = {}
    for attempt in range(_ATTEMPTS):
        placed = placer.place(order, short=attempt > 0)
        if placer.loss(placed) < placer.loss(best) or not best:
            best = placed
        if len(placed) == len(requests):
            break
        # The sort is stable: among equals, the more important ones stay in front.
        order.sort(key=lambda index: (not requests[index].important, index in placed))
    return tuple(best.get(index) for index in range(len(requests)))


class _Placer:
    def __init__(
        self,
        requests: Sequence[LabelRequest],
        *,
        area: Box,
        font_px: float,
        obstacles: Sequence[Box],
        soft: Sequence[Box],
    ) -> None:
        self._requests = requests
        self._area = area
        self._font_px = font_px
        self._obstacles = obstacles
        self._soft = soft
        self._markers = [Box.around(one.x, one.y, one.radius) for one in requests]
        self._near = [Box.around(one.x, one.y, one.radius + _NEAR) for one in requests]

    def loss(self, placed: dict[int, PlacedLabel]) -> int:
        """Return how many texts were passed over; missing labels count twice, important ones tenfold."""
        return sum(
            (10 if request.important else 1)
            * (request.texts.index(placed[index].text) if index in placed else 2 * len(request.texts))
            for index, request in enumerate(self._requests)
        )

    def place(self, order: Sequence[int], *, short: bool) -> dict[int, PlacedLabel]:
        """Return labels placed one after the other in an order, those without a place left out."""
        placed: dict[int, PlacedLabel] = {}
        for index in order:
            request = self._requests[index]
            texts = request.texts[-1:] if short and not request.important else request.texts
            self._add(index, texts, placed)
        for index in sorted(placed):
            longer = self._requests[index].texts
            self._add(index, longer[: longer.index(placed[index].text)], placed)
        return placed

    def _add(self, index: int, texts: Sequence[str], placed: dict[int, PlacedLabel]) -> None:
        """Write the first of the texts that has a place among the labels of all others."""
        request = self._requests[index]
        others = [label for other, label in placed.items() if other != index]
        boxes = [label.box for label in others]
        leaders = [label.leader for label in others if label.leader is not None]
        for text in texts:
            found = _cheapest(
                _places(request, text, self._font_px),
                area=self._area,
                taken=[*self._obstacles, *self._markers, *boxes],
                # A line cannot keep clear of a marker that covers its own point.
                blocked=[
                    *self._obstacles,
                    *boxes,
                    *(marker for marker in self._markers if not marker.overlaps(self._markers[index])),
                ],
                leaders=leaders,
                soft=self._soft,
                near=[box for other, box in enumerate(self._near) if other != index],
            )
            if found is not None:
                placed[index] = found
                return


def _places(request: LabelRequest, text: str, font_px: float) -> Iterator[tuple[float, PlacedLabel]]:
    """Yield places around a point with their cost, apart from what is in the way."""
    width, height = text_width(text, font_px, bold=request.bold), font_px * LINE_HEIGHT
    x, y, radius = request.x, request.y, request.radius
    for distance in _DISTANCES:
        out = radius + distance
        aside = 0.6 * distance
        above, below = y - out - height, y + out
        for preference, left, top in (
            (0.0, x + out, y - height / 2),
            (1.0, x - out - width, y - height / 2),
            (2.0, x - width / 2, above),
            (2.0, x - width / 2, below),
            (3.0, x + aside, above),
            (3.0, x + aside, below),
            (3.5, x - aside - width, above),
            (3.5, x - aside - width, below),
            (4.0, x - radius, above),
            (4.0, x - radius, below),
            (4.0, x + radius - width, above),
            (4.0, x + radius - width, below),
        ):
            box = Box(left, top, left + width, top + height)
            leader = _leader(request, box) if distance >= _LEADER_FROM or request.bold else None
            label = PlacedLabel(
                text=text,
                box=box,
                anchor="start" if box.left >= x else "end" if box.right <= x else "middle",
                leader=leader,
                bold=request.bold,
            )
            yield distance + preference, label


def _leader(request: LabelRequest, box: Box) -> Segment:
    """Return the line from the edge of the marker to the nearest point of the label's box."""
    x = min(max(request.x, box.left + 2), box.right - 2)
    y = min(max(request.y, box.top + 2), box.bottom - 2)
    dx, dy = x - request.x, y - request.y
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    start = (request.radius + 1) / length
    return Segment(request.x + dx * start, request.y + dy * start, x, y)


def _cheapest(
    options: Iterator[tuple[float, PlacedLabel]],
    *,
    area: Box,
    taken: Sequence[Box],
    blocked: Sequence[Box],
    leaders: Sequence[Segment],
    soft: Sequence[Box],
    near: Sequence[Box],
) -> PlacedLabel | None:
    """Return the cheapest of the places that are free, None if none is."""
    best: tuple[float, PlacedLabel] | None = None
    for cost, option in options:
        if best is not None and cost >= best[0]:
            continue
        box, leader = option.box, option.leader
        if not area.contains(box) or any(box.overlaps(other, _GAP) for other in taken):
            continue
        if any(other.crosses_box(box) for other in leaders):
            continue
        if leader is not None and any(leader.crosses_box(other) for other in blocked):
            continue
        cost += _SOFT_COST * sum(box.overlaps(other) for other in soft)  # noqa: PLW2901
        cost += _NEAR_COST * sum(box.overlaps(other) for other in near)  # noqa: PLW2901
        if leader is not None:
            cost += _CROSSING_COST * sum(leader.crosses(other) for other in leaders)  # noqa: PLW2901
        if best is None or cost < best[0]:
            best = (cost, option)
    return best[1] if best is not None else None
