"""Roles of hand-made graphs, and what scopes make of them."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.core import Scope
from alula.graphs import Kind, Layer, LayerGraph, assign_roles, left_in_float

IMAGE = (1, 8, 4, 4)
POOLED = (1, 8, 1, 1)


def conv(
    name: str, source: str, *, groups: int = 1, channels: int = 8, kernel: int = 3, shape=IMAGE
) -> Layer:
    return Layer(
        name,
        "conv",
        (source,),
        groups=groups,
        in_channels=channels,
        out_channels=8,
        kernel=(kernel, kernel),
        output_shape=shape,
    )


def simple(name: str, kind: Kind, *sources: str, shape=IMAGE) -> Layer:
    return Layer(name, kind, sources, output_shape=shape)


def graph_of(*layers: Layer, inputs: tuple[str, ...] = ("x",)) -> LayerGraph:
    read = {name for layer in layers for name in layer.inputs}
    outputs = tuple(layer.name for layer in layers if layer.name not in read)
    return LayerGraph(layers, inputs, outputs)


def network() -> LayerGraph:
    """Stem, depthwise block with squeeze-excite and shortcut, head; every role but recurrent."""
    return graph_of(
        simple("normalised", "multiply", "x"),
        conv("stem", "normalised", channels=3),
        simple("norm", "norm", "stem"),
        simple("act", "activation", "norm"),
        conv("dw", "act", groups=8),
        simple("squeeze", "global-pool", "dw", shape=POOLED),
        conv("reduce", "squeeze", kernel=1, shape=POOLED),
        simple("reduce_bias", "add", "reduce", shape=POOLED),
        simple("sigmoid", "activation", "reduce_bias", shape=POOLED),
        simple("silu", "multiply", "reduce_bias", "sigmoid", shape=POOLED),
        conv("expand", "silu", kernel=1, shape=POOLED),
        simple("gate", "activation", "expand", shape=POOLED),
        simple("scale", "multiply", "dw", "gate"),
        conv("project", "scale", kernel=1),
        simple("bias", "add", "project"),
        simple("shortcut", "add", "bias", "act"),
        conv("grouped", "shortcut", groups=2),
        conv("dense", "grouped"),
        simple("shift", "add", "dense"),
        simple("window", "pool", "shift"),
        simple("scores", "attention", "window", "window"),
        Layer("mix", "matmul", ("scores",), in_channels=8, out_channels=8),
        simple("mean", "global-pool", "mix", shape=POOLED),
        simple("flat", "shape", "mean", shape=(1, 8)),
        Layer("classify", "matmul", ("flat",), in_channels=8, out_channels=4),
        simple("classify_bias", "add", "classify", shape=(1, 4)),
        simple("probability", "activation", "classify_bias", shape=(1, 4)),
    )


def test_a_network_has_every_role() -> None:
    assert assign_roles(network()) == {
        "normalised": "elementwise",
        "stem": "stem",
        "norm": "norm",
        "act": "activation",
        "dw": "depthwise",
        "squeeze": "squeeze-excite",
        "reduce": "squeeze-excite",
        "reduce_bias": "squeeze-excite",
        "sigmoid": "squeeze-excite",
        "silu": "squeeze-excite",
        "expand": "squeeze-excite",
        "gate": "squeeze-excite",
        "scale": "squeeze-excite",
        "project": "pointwise",
        "bias": "pointwise",
        "shortcut": "elementwise",
        "grouped": "grouped",
        "dense": "conv",
        "shift": "conv",
        "window": "pool",
        "scores": "attention",
        "mix": "matmul",
        "mean": "pool",
        "flat": "other",
        "classify": "head",
        "classify_bias": "head",
        "probability": "activation",
    }


def test_scopes_leave_in_float_what_they_say() -> None:
    graph = network()
    gating = ("squeeze", "reduce", "reduce_bias", "sigmoid", "silu", "expand", "gate", "scale")
    assert left_in_float(graph, "all") == ()
    assert left_in_float(graph, "no-depthwise") == ("dw",)
    assert left_in_float(graph, "no-edges") == ("stem", *gating, "classify", "classify_bias")
    quantized = {layer.name for layer in graph.layers} - set(left_in_float(graph, "dense"))
    products = {"stem", "project", "bias", "dense", "shift", "mix", "classify", "classify_bias"}
    assert quantized == products | {"flat"}  # which only moves values


def test_a_single_convolution_is_a_stem_and_a_single_product_a_head() -> None:
    assert assign_roles(graph_of(conv("a", "x"))) == {"a": "stem"}
    assert assign_roles(graph_of(simple("a", "matmul", "x"))) == {"a": "head"}


def test_each_input_and_each_branch_of_it_has_a_stem() -> None:
    graph = graph_of(
        conv("left", "x", kernel=1),
        conv("right", "x"),
        conv("other", "y"),
        simple("join", "add", "left", "right"),
        simple("all", "add", "join", "other"),
        conv("next", "all"),
        conv("last", "next", kernel=1),
        inputs=("x", "y"),
    )
    roles = assign_roles(graph)
    assert [roles[name] for name in ("left", "right", "other")] == ["stem"] * 3
    assert (roles["next"], roles["last"]) == ("conv", "head")


def test_every_output_has_a_head() -> None:
    graph = graph_of(conv("stem", "x"), conv("boxes", "stem"), simple("classes", "matmul", "stem"))
    assert assign_roles(graph) == {"stem": "stem", "boxes": "head", "classes": "head"}


def test_a_convolution_of_one_channel_is_dense() -> None:
    roles = assign_roles(graph_of(conv("a", "x", channels=1, groups=1), conv("b", "a")))
    assert roles == {"a": "stem", "b": "head"}


def test_a_depthwise_convolution_stays_so_at_either_end() -> None:
    roles = assign_roles(graph_of(conv("a", "x", groups=8), conv("b", "a"), conv("c", "b", groups=8)))
    assert roles == {"a": "depthwise", "b": "conv", "c": "depthwise"}


def test_a_sum_that_others_read_before_is_no_bias() -> None:
    graph = graph_of(
        conv("a", "x"), simple("plus", "add", "a"), simple("join", "multiply", "plus", "a"), conv("b", "join")
    )
    assert assign_roles(graph)["plus"] == "elementwise"


def test_what_scales_a_product_by_one_number_before_its_bias_belongs_to_it() -> None:
    graph = graph_of(
        conv("stem", "x"),
        simple("fc", "matmul", "stem"),
        simple("alpha", "multiply", "fc"),
        simple("bias", "add", "alpha"),
        Layer("scale", "multiply", ("bias",), parameters=8),
    )
    roles = assign_roles(graph)
    assert [roles[name] for name in ("fc", "alpha", "bias", "scale")] == ["head"] * 3 + ["elementwise"]


def test_one_convolution_across_pooled_channels_is_squeeze_excite() -> None:
    graph = graph_of(
        conv("stem", "x"),
        simple("mean", "global-pool", "stem", shape=(1, 8)),
        simple("line", "shape", "mean", shape=(1, 1, 8)),
        conv("eca", "line", channels=1, shape=(1, 1, 8)),
        simple("gate", "activation", "eca", shape=(1, 1, 8)),
        simple("column", "shape", "gate", shape=POOLED),
        simple("repeated", "shape", "column"),
        simple("scale", "multiply", "stem", "repeated"),
        conv("next", "scale"),
    )
    roles = assign_roles(graph)
    chain = ("mean", "line", "eca", "gate", "column", "repeated", "scale")
    assert {roles[name] for name in chain} == {"squeeze-excite"}
    assert (roles["stem"], roles["next"]) == ("stem", "head")


def test_a_gate_of_two_pools_is_squeeze_excite() -> None:
    graph = graph_of(
        conv("stem", "x"),
        simple("mean", "global-pool", "stem", shape=POOLED),
        simple("max", "global-pool", "stem", shape=POOLED),
        simple("both", "add", "mean", "max", shape=POOLED),
        conv("fc", "both", kernel=1, shape=POOLED),
        simple("scale", "multiply", "fc", "stem"),
        conv("next", "scale"),
    )
    roles = assign_roles(graph)
    assert {roles[name] for name in ("mean", "max", "both", "fc", "scale")} == {"squeeze-excite"}


def test_gates_are_found_where_sizes_are_unknown() -> None:
    graph = graph_of(
        conv("stem", "x", shape=None),
        simple("mean", "global-pool", "stem", shape=None),
        conv("fc", "mean", kernel=1, shape=None),
        simple("scale", "multiply", "stem", "fc", shape=None),
        conv("next", "scale", shape=None),
    )
    assert assign_roles(graph)["fc"] == "squeeze-excite"


def test_gating_the_input_is_squeeze_excite() -> None:
    graph = graph_of(
        simple("mean", "global-pool", "x", shape=POOLED),
        conv("fc", "mean", kernel=1, shape=POOLED),
        simple("scale", "multiply", "x", "fc"),
        conv("next", "scale"),
    )
    roles = assign_roles(graph)
    assert roles["fc"] == "squeeze-excite"


def test_normalising_by_a_mean_is_no_squeeze_excite() -> None:
    graph = graph_of(
        conv("stem", "x"),
        simple("squared", "multiply", "stem", "stem"),
        simple("mean", "global-pool", "squared", shape=POOLED),
        simple("root", "activation", "mean", shape=POOLED),
        simple("normed", "multiply", "stem", "root"),
        conv("next", "normed"),
    )
    assert "squeeze-excite" not in assign_roles(graph).values()


def test_a_gated_head_is_no_squeeze_excite() -> None:
    graph = graph_of(
        conv("stem", "x"),
        simple("mean", "global-pool", "stem", shape=(1, 8)),
        simple("value", "matmul", "mean", shape=(1, 8)),
        simple("open", "matmul", "mean", shape=(1, 8)),
        simple("gate", "activation", "open", shape=(1, 8)),
        simple("gated", "multiply", "value", "gate", shape=(1, 8)),
    )
    roles = assign_roles(graph)
    assert (roles["value"], roles["open"], roles["gated"]) == ("head", "head", "elementwise")


def test_two_inputs_joined_after_pooling_are_no_squeeze_excite() -> None:
    graph = graph_of(
        conv("stem", "x"),
        simple("mean", "global-pool", "stem", shape=(1, 8)),
        simple("image", "matmul", "mean", shape=(1, 8)),
        simple("table", "matmul", "y", shape=(1, 8)),
        simple("join", "multiply", "image", "table", shape=(1, 8)),
        simple("head", "matmul", "join", shape=(1, 2)),
        inputs=("x", "y"),
    )
    roles = assign_roles(graph)
    assert (roles["image"], roles["join"], roles["mean"]) == ("matmul", "elementwise", "pool")


def test_a_recurrent_layer_is_left_in_float_by_dense() -> None:
    graph = graph_of(conv("stem", "x"), simple("lstm", "recurrent", "stem"), simple("head", "matmul", "lstm"))
    assert assign_roles(graph) == {"stem": "stem", "lstm": "recurrent", "head": "head"}
    assert left_in_float(graph, "dense") == ("lstm",)


KINDS: list[Kind] = list(get_args(Kind))


@st.composite
def graphs(draw: st.DrawFn) -> LayerGraph:
    layers: list[Layer] = []
    names = ["x"]
    for index in range(draw(st.integers(1, 12))):
        sources = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
        groups = draw(st.sampled_from((1, 2, 8)))
        layers.append(
            Layer(
                f"l{index}",
                draw(st.sampled_from(KINDS)),
                tuple(sources),
                groups=groups,
                in_channels=8,
                kernel=draw(st.sampled_from(((1, 1), (3, 3)))),
                output_shape=draw(st.sampled_from((IMAGE, POOLED, (1, 8), None))),
            )
        )
        names.append(f"l{index}")
    return graph_of(*layers)


@given(graphs())
def test_roles_and_scopes_of_any_graph(graph: LayerGraph) -> None:
    roles = assign_roles(graph)
    order = [layer.name for layer in graph.layers]
    assert list(roles) == order
    kinds = {layer.name: layer.kind for layer in graph.layers}
    for scope in get_args(Scope):
        left = left_in_float(graph, scope)
        assert [name for name in order if name in left] == list(left)
        assert all(kinds[name] != "shape" for name in left)
    assert set(left_in_float(graph, "no-depthwise")) <= set(left_in_float(graph, "dense"))
    for name, role in roles.items():
        if role in ("stem", "depthwise", "grouped"):
            assert kinds[name] in ("conv", "add", "multiply")
        if role == "attention":
            assert kinds[name] == "attention"


@pytest.mark.parametrize("scope", get_args(Scope))
def test_an_empty_network_has_nothing_to_leave(scope: Scope) -> None:
    assert left_in_float(LayerGraph((), ("x",), ("x",)), scope) == ()
