"""Rectangles, lines, and how wide a text is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

__all__ = ["Box", "Segment", "text_width"]

# Widths in DejaVu Sans, one of the widest system fonts, as shares of the font size.
_NARROW = frozenset("ijlI.,:;'|!()[]/ ")
_WIDE = frozenset("mwMW@%")


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, radius: float) -> Self:
        """Return the square around a point."""
        return cls(x - radius, y - radius, x + radius, y + radius)

    def overlaps(self, other: Box, gap: float = 0.0) -> bool:
        """Return whether the boxes share area, or are side by side with less than `gap` between."""
        return (
            self.left < other.right + gap
            and other.left < self.right + gap
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def contains(self, other: Box) -> bool:
        """Return whether the other box lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Segment:
    """A straight line between two points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def crosses_box(self, box: Box) -> bool:
        """Return whether a part of the segment lies in the box (clipping of Liang and Barsky 1984).

        >>> Segment(0, 0, 4, 4).crosses_box(Box(1, 1, 2, 2)), Segment(0, 0, 4, 0).crosses_box(Box(1, 1, 2, 2))
        (True, False)
        """
        dx, dy = self.x1 - self.x0, self.y1 - self.y0
        enter, leave = 0.0, 1.0
        for direction, distance in (
            (-dx, self.x0 - box.left),
            (dx, box.right - self.x0),
            (-dy, self.y0 - box.top),
            (dy, box.bottom - self.y0),
        ):
            if direction == 0:
                if distance <= 0:
                    return False
            elif direction < 0:
                enter = max(enter, distance / direction)
            else:
                leave = min(leave, distance / direction)
        return enter < leave

    def crosses(self, other: Segment) -> bool:
        """Return whether the segments cross between their ends."""

        def side(a: Segment, x: float, y: float) -> float:
            return (a.x1 - a.x0) * (y - a.y0) - (a.y1 - a.y0) * (x - a.x0)

        return (
            side(self, other.x0, other.y0) * side(self, other.x1, other.y1) < 0
            and side(other, self.x0, self.y0) * side(other, self.x1, self.y1) < 0
        )


def text_width(text: str, font_px: float, *, bold: bool = False) -> float:
    """Return how wide a text is at most in a sans-serif system font.

    >>> text_width("ab", 10.0)
    13.0
    """
    return sum(map(_width_share, text)) * font_px * (1.12 if bold else 1.0)


def _width_share(char: str) -> float:
    if char in _NARROW:
        return 0.42
    # From U+2E80 on most characters fill a square.
    if char in _WIDE or ord(char) >= 0x2E80:
        return 1.0
    return 0.78 if char.isupper() else 0.65
