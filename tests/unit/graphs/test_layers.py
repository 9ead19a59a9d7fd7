"""Layer graphs check themselves and find neighbours."""

from __future__ import annotations

import pytest

from alula.graphs import Layer, LayerGraph
from alula.graphs.layers import global_axes


def test_neighbours_come_once_and_in_order() -> None:
    a, b = Layer("a", "conv", ("x",)), Layer("b", "activation", ("a",))
    square, join = Layer("square", "multiply", ("b", "b")), Layer("join", "add", ("square", "a", "y"))
    graph = LayerGraph((a, b, square, join), ("x", "y"), ("join",))
    assert graph.consumers("a") == (b, join)
    assert graph.consumers("b") == (square,)
    assert graph.consumers("y") == (join,)
    assert graph.consumers("join") == ()
    assert graph.producers("join") == (square, a)
    assert graph.producers("a") == ()
    assert graph.layer("b") is b
    with pytest.raises(KeyError):
        graph.layer("x")


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' more than once"):
        LayerGraph((Layer("a", "conv", ("x",)), Layer("a", "add", ("x",))), ("x",), ())
    with pytest.raises(ValueError, match="'x' more than once"):
        LayerGraph((Layer("x", "conv", ()),), ("x",), ())


def test_layers_come_after_what_they_read() -> None:
    late = (Layer("b", "add", ("a",)), Layer("a", "conv", ("x",)))
    with pytest.raises(ValueError, match="'b' reads 'a'"):
        LayerGraph(late, ("x",), ("b",))


def test_outputs_are_in_the_graph() -> None:
    with pytest.raises(ValueError, match="output 'c'"):
        LayerGraph((Layer("a", "conv", ("x",)),), ("x",), ("c",))


@pytest.mark.parametrize(
    ("axes", "rank", "expected"),
    [
        ((2, 3), 4, True),
        ((3, 2), 4, True),
        ((-1, -2), 4, True),
        ((1, 2), 4, True),  # channels last
        ((1, 3), 4, False),
        ((1,), 4, False),
        ((0, 2, 3), 4, False),
        ((2,), 3, True),
        ((1,), 3, True),  # tokens
        ((2, 3, 4), 5, True),
        ((1,), 2, False),
        ((), 4, False),
        ((), 0, False),
    ],
)
def test_global_pools_leave_samples_and_channels(axes: tuple[int, ...], rank: int, expected: bool) -> None:
    assert global_axes(axes, rank) is expected
