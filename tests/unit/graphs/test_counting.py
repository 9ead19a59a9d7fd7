"""Sizes and MACs of products, against loops that do the multiplications."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import ModelError
from alula.graphs import Layer, LayerGraph, total_macs, total_parameters
from alula.graphs.counting import as_attention, as_convolution, as_einsum, as_matmul, as_recurrent

SIZES = st.integers(1, 4)


def layer(shape: tuple[int | None, ...] | None, kind: str = "matmul") -> Layer:
    return Layer("a", kind, ("x",), output_shape=shape)  # type: ignore[arg-type]


@given(
    channels=SIZES, filters=SIZES, groups=SIZES, size=st.integers(3, 6), kernel=st.integers(1, 3), batch=SIZES
)
@settings(max_examples=30, deadline=None)
def test_a_convolution_multiplies_each_output_with_its_window(
    channels: int, filters: int, groups: int, size: int, kernel: int, batch: int
) -> None:
    x = torch.ones(batch, channels * groups, size)
    weight = torch.ones(filters * groups, channels, kernel)
    # Of ones, each output is the number of its multiplications.
    y = torch.nn.functional.conv1d(x, weight, groups=groups)
    got = as_convolution(
        layer(tuple(y.shape), "conv"),
        source=tuple(x.shape),
        weight=tuple(weight.shape),
        groups=groups,
        transposed=False,
        batch=batch,
    )
    assert got.macs == y[0].sum().item()
    assert (got.in_channels, got.out_channels) == (x.shape[1], y.shape[1])
    assert (got.groups, got.kernel) == (groups, (kernel,))


@given(
    channels=SIZES, filters=SIZES, groups=SIZES, size=st.integers(1, 5), kernel=st.integers(1, 3), batch=SIZES
)
@settings(max_examples=30, deadline=None)
def test_a_transposed_convolution_spreads_each_input_over_its_window(
    channels: int, filters: int, groups: int, size: int, kernel: int, batch: int
) -> None:
    x = torch.ones(batch, channels * groups, size)
    weight = torch.ones(channels * groups, filters, kernel)
    y = torch.nn.functional.conv_transpose1d(x, weight, groups=groups)
    got = as_convolution(
        layer(tuple(y.shape), "conv"),
        source=tuple(x.shape),
        weight=tuple(weight.shape),
        groups=groups,
        transposed=True,
        batch=batch,
    )
    assert got.macs == y[0].sum().item()
    assert (got.in_channels, got.out_channels) == (x.shape[1], y.shape[1])


@given(rows=SIZES, joined=SIZES, columns=SIZES, batch=SIZES)
@settings(deadline=None)
def test_a_matrix_product_joins_rows_and_columns(rows: int, joined: int, columns: int, batch: int) -> None:
    left, right = (batch, rows, joined), (joined, columns)
    product = np.ones(left) @ np.ones(right)
    got = as_matmul(layer(product.shape), left=left, right=right, constant=1, batch=batch)
    assert got.macs == product[0].sum()
    assert (got.kind, got.in_channels, got.out_channels) == ("matmul", joined, columns)


def test_weights_may_stand_left() -> None:
    got = as_matmul(layer((1, 5, 3)), left=(5, 4), right=(1, 4, 3), constant=0, batch=1)
    assert (got.in_channels, got.out_channels, got.macs) == (4, 5, 60)


def test_a_product_with_a_vector_of_weights_makes_no_channels() -> None:
    got = as_matmul(layer((1, 5)), left=(1, 5, 4), right=(4,), constant=1, batch=1)
    assert (got.in_channels, got.out_channels, got.macs) == (4, None, 20)


def test_a_product_of_activations_has_no_channels() -> None:
    got = as_matmul(layer((1, 2, 2)), left=(1, 2, 3), right=(1, 3, 2), constant=None, batch=1)
    assert (got.kind, got.in_channels, got.out_channels, got.macs) == ("attention", None, None, 12)


EINSUMS = [
    ("bi,oi->bo", (2, 3), (4, 3), 3, 4),
    ("bnd,de->bne", (2, 3, 4), (4, 5), 4, 5),
    ("bhqd,bhkd->bhqk", (2, 1, 3, 4), (2, 1, 5, 4), None, None),
    ("...i,io->...o", (2, 3, 4), (4, 5), 4, 5),
    ("b...i, io -> b...o", (2, 6, 3, 4), (4, 5), 4, 5),
    ("bhid,hde->bie", (2, 3, 4, 5), (3, 5, 7), 15, 7),
]


@pytest.mark.parametrize(("equation", "left", "right", "joined", "made"), EINSUMS)
def test_an_einstein_sum_multiplies_at_every_combination_of_its_letters(
    equation: str, left: tuple[int, ...], right: tuple[int, ...], joined: int | None, made: int | None
) -> None:
    result = np.einsum(equation, np.ones(left), np.ones(right))
    constant = None if joined is None else 1
    shapes = [left, right]
    got = as_einsum(layer(result.shape), equation, operands=shapes, constant=constant, batch=left[0])
    assert got.macs == result[0].sum()
    assert (got.in_channels, got.out_channels) == (joined, made)
    assert got.kind == ("matmul" if constant else "attention")


def test_an_einstein_sum_over_one_operand_is_no_product() -> None:
    got = as_einsum(layer((3,)), "ij->j", operands=[(2, 3)], constant=None, batch=1)
    assert (got.kind, got.macs) == ("other", 0)


def test_attention_counts_both_of_its_products() -> None:
    queries, keys, size, value, heads = 3, 5, 4, 6, 2
    scores = np.ones((heads, queries, size)) @ np.ones((heads, size, keys))
    mixed = np.ones((heads, queries, keys)) @ np.ones((heads, keys, value))
    got = as_attention(
        layer((1, heads, queries, value), "attention"),
        query=(1, heads, queries, size),
        key=(1, heads, keys, size),
        batch=1,
    )
    assert got.macs == scores.sum() + mixed.sum()


def test_a_recurrent_layer_multiplies_at_each_step() -> None:
    steps, channels, state, gates = 7, 3, 5, 4
    got = as_recurrent(
        layer(None, "recurrent"),
        source=(steps, 2, channels),
        weights=((gates * state, channels), (gates * state, state)),
        out_channels=state,
        batch=2,
    )
    assert got.macs == steps * gates * state * (channels + state)
    assert (got.in_channels, got.out_channels) == (channels, state)


def test_unknown_sizes_make_the_work_unknown() -> None:
    inner = {"groups": 1, "transposed": False, "batch": 1}
    assert as_convolution(layer((1, 8, None)), source=None, weight=(8, 4, 3), **inner).macs is None
    assert as_convolution(layer((1, 8, 5)), source=None, weight=None, **inner).macs is None
    assert as_matmul(layer(None), left=None, right=None, constant=1, batch=1).macs is None
    assert as_matmul(layer((1, 2)), left=(1, None), right=(None, 2), constant=1, batch=1).macs is None
    assert as_einsum(layer(None), "bi,io->bo", operands=[None, (1, 2)], constant=1, batch=1).macs is None
    assert as_attention(layer(None), query=(1, 2, 3), key=None, batch=1).macs is None
    assert as_recurrent(layer(None), source=None, weights=(), out_channels=None, batch=1).macs is None
    assert as_recurrent(layer(None), source=(1, 2), weights=(None,), out_channels=1, batch=1).macs is None


def test_totals_add_up() -> None:
    layers = [Layer(f"l{index}", "matmul", ("x",), macs=index, parameters=10 * index) for index in range(5)]
    graph = LayerGraph(tuple(layers), ("x",), ())
    assert total_macs(graph) == 10
    assert total_parameters(graph) == 100


def test_an_unknown_count_is_an_error_and_says_where() -> None:
    graph = LayerGraph((Layer("loop", "other", ("x",), macs=None),), ("x",), ())
    with pytest.raises(ModelError, match=r"layer `loop` \(other\).*shapes of the inputs"):
        total_macs(graph)
