"""Markers: a shape and a colour for each engine, a filling for each precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from alula.core import Precision
from alula.report.markup import Element, element
from alula.report.markup import coordinate as px

__all__ = ["KINDS", "engine_kinds", "marker", "strike"]

_FIXED = {"torch": 0, "torchscript": 1, "inductor": 2, "onnxruntime": 3, "openvino": 4}


def _polygon(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px(x)} {px(y)}" for x, y in points) + "Z"


def _circle(x: float, y: float, r: float) -> str:
    return f"M{px(x - r)} {px(y)}a{px(r)} {px(r)} 0 1 0 {px(2 * r)} 0a{px(r)} {px(r)} 0 1 0 {px(-2 * r)} 0Z"


def _square(x: float, y: float, r: float) -> str:
    s = 0.88 * r
    return _polygon([(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)])


def _diamond(x: float, y: float, r: float) -> str:
    s = 1.15 * r
    return _polygon([(x, y - s), (x + s, y), (x, y + s), (x - s, y)])


def _triangle_up(x: float, y: float, r: float) -> str:
    return _polygon([(x, y - 1.1 * r), (x + 1.1 * r, y + 0.8 * r), (x - 1.1 * r, y + 0.8 * r)])


def _triangle_down(x: float, y: float, r: float) -> str:
    return _polygon([(x, y + 1.1 * r), (x + 1.1 * r, y - 0.8 * r), (x - 1.1 * r, y - 0.8 * r)])


def _plus(x: float, y: float, r: float) -> str:
    s, t = 1.1 * r, 0.4 * r
    return _polygon(
        [
            (x - t, y - s),
            (x + t, y - s),
            (x + t, y - t),
            (x + s, y - t),
            (x + s, y + t),
            (x + t, y + t),
            (x + t, y + s),
            (x - t, y + s),
            (x - t, y + t),
            (x - s, y + t),
            (x - s, y - t),
            (x - t, y - t),
        ]
    )


def _star(x: float, y: float, r: float) -> str:
    return _polygon(
        (
            x + (1.25 if k % 2 == 0 else 0.55) * r * math.sin(math.pi * k / 5),
            y - (1.25 if k % 2 == 0 else 0.55) * r * math.cos(math.pi * k / 5),
        )
        for k in range(10)
    )


def _bow(x: float, y: float, r: float) -> str:
    return _polygon([(x - r, y - r), (x + r, y + r), (x + r, y - r), (x - r, y + r)])


_SHAPES: tuple[Callable[[float, float, float], str], ...] = (
    _circle,
    _triangle_down,
    _diamond,
    _square,
    _triangle_up,
    _plus,
    _star,
    _bow,
)
KINDS = len(_SHAPES)
"""Shapes, and colours of the style sheet; more engines than that share them."""


def engine_kinds(engines: Iterable[str]) -> dict[str, int]:
    """Return the kind of each engine, in the order given: fixed for built-in ones, free kinds for others.

    >>> engine_kinds(["openvino", "mine", "yours"])
    {'openvino': 4, 'mine': 5, 'yours': 6}
    """
    names = list(dict.fromkeys(engines))
    used = {_FIXED[name] for name in names if name in _FIXED}
    free = [kind for kind in (*range(len(_FIXED), KINDS), *range(len(_FIXED))) if kind not in used] or [0]
    others = [name for name in names if name not in _FIXED]
    given = {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: _FIXED[name] if name in _FIXED else given[name] for name in names}


def marker(kind: int, precision: Precision, x: float, y: float, radius: float) -> Element:
    """Return a marker around (x, y): its shape says the engine, its filling the precision."""
    return element("path", {"class": f"mark k{kind} {precision}", "d": _SHAPES[kind](x, y, radius)})


def strike(x: float, y: float, radius: float) -> Element:
    """Return the stroke through a marker that says that it was rejected."""
    s = 1.3 * radius
    return element("path", {"class": "strike", "d": f"M{px(x - s)} {px(y + s)}L{px(x + s)} {px(y - s)}"})
