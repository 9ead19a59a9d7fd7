"""What every chart is drawn with: texts, the names beside points and the lines to them, the plot's frame."""

from __future__ import annotations

from alula.report.geometry import Box, Segment
from alula.report.labels import PlacedLabel
from alula.report.markup import Element, element
from alula.report.markup import coordinate as px

__all__ = ["draw_frame", "draw_label", "draw_leader", "draw_text"]


def draw_text(name: str, x: float, y: float, anchor: str, words: str) -> Element:
    """Return words on one line.

    Args:
        name: class of the style sheet.
        x: of the end that `anchor` names.
        y: of the line that the letters stand on.
        anchor: `start`, `middle` or `end`.
        words: what is written.
    """
    return element("text", {"class": name, "x": x, "y": y, "text-anchor": anchor}, words)


def draw_label(placed: PlacedLabel, font_px: float) -> Element:
    """Return the name of a point in its place."""
    box = placed.box
    x = {"start": box.left, "middle": (box.left + box.right) / 2, "end": box.right}[placed.anchor]
    name = "label strong" if placed.bold else "label"
    return draw_text(name, x, box.top + 0.95 * font_px, placed.anchor, placed.text)


def draw_leader(line: Segment) -> Element:
    """Return the line that joins a name to its point."""
    path = f"M{px(line.x0)} {px(line.y0)}L{px(line.x1)} {px(line.y1)}"
    return element("path", {"class": "leader", "d": path})


def draw_frame(area: Box) -> Element:
    """Return the rectangle inside the axes."""
    size = {"x": area.left, "y": area.top, "width": area.right - area.left, "height": area.bottom - area.top}
    return element("rect", {"class": "plot", **size})
