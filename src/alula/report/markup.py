"""HTML and SVG as a tree of elements that escapes itself when it is written.

Text is only ever a leaf, so no caller can forget to escape it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Element", "Node", "clean", "coordinate", "element", "render"]

_VOID = frozenset({"br", "link", "meta"})
# HTML has no way to write control characters, and terminals colour messages with them.
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]|[\ud800-\udfff]")
# Characters that turn the writing direction of all that follows them.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Element:
    """A tag with its attributes and children."""

    tag: str
    attributes: Mapping[str, str | float]
    children: tuple[Node, ...]


Node = Element | str


def element(tag: str, attributes: Mapping[str, str | float], *children: Node) -> Element:
    """Return an element; numbers among the attributes are written with at most two decimals."""
    return Element(tag, attributes, children)


def render(node: Node) -> str:
    """Return the node as HTML.

    >>> render(element("p", {"class": "a", "data-n": 1.0}, "x < ", element("b", {}, "<script>")))
    '<p class="a" data-n="1">x &lt; <b>&lt;script&gt;</b></p>'
    """
    return "".join(_pieces(node))


def clean(text: str) -> str:
    r"""Return text without what cannot be shown: colours of terminals, control characters, lone surrogates.

    >>> clean("\x1b[31mred\x1b[0m\x00")
    'red\ufffd'
    """
    return _CONTROL.sub("\ufffd", _DIRECTION.sub("", _ANSI.sub("", text)))


def coordinate(value: float) -> str:
    """Return a coordinate to a tenth of a pixel.

    >>> coordinate(12.04), coordinate(-0.01), coordinate(3.25)
    ('12', '0', '3.2')
    """
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _pieces(node: Node) -> Iterator[str]:
    if isinstance(node, str):
        yield html.escape(clean(node), quote=False)
        return
    attributes = "".join(
        f' {name}="{html.escape(clean(_attribute(value)))}"' for name, value in node.attributes.items()
    )
    yield f"<{node.tag}{attributes}>"
    if node.tag in _VOID:
        return
    for child in node.children:
        if node.tag == "style":
            # Style sheets are raw text in HTML: nothing in them is unescaped again.
            yield str(child)
        else:
            yield from _pieces(child)
    yield f"</{node.tag}>"


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return value
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
