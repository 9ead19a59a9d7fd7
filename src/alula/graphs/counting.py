"""Sizes and multiply-accumulates of the layers that multiply matrices, and totals over a graph.

One multiply-accumulate (MAC) is a multiplication with the addition of its product; biases,
activations, normalisations and element-wise work count as none, as in published MAC counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from alula.errors import ModelError
from alula.graphs.layers import Layer, LayerGraph, Shape

__all__ = [
    "as_attention",
    "as_convolution",
    "as_einsum",
    "as_matmul",
    "as_recurrent",
    "elements",
    "swapped",
    "total_macs",
    "total_parameters",
]


def total_macs(graph: LayerGraph) -> int:
    """Return the multiply-accumulates of a network for one sample.

    Raises:
        ModelError: the sizes of a layer are unknown.
    """
    total = 0
    for layer in graph.layers:
        if layer.macs is None:
            raise ModelError(
                f"The work of layer `{layer.name}` ({layer.kind}) cannot be counted, because the graph does "
                "not tell its sizes. Give the shapes of the inputs when the graph is read."
            )
        total += layer.macs
    return total


def total_parameters(graph: LayerGraph) -> int:
    """Return the stored numbers that a network's layers read, each counted once.

    That is the module's parameters, but for what the export folded: a convolution that took a
    batch normalisation in has a bias instead of a scale and a shift.
    """
    return sum(layer.parameters for layer in graph.layers)


def swapped(shape: Shape) -> Shape:
    """Return the shape of matrices (..., m, n) after their transposition: (..., n, m); vectors stay.

    >>> swapped((2, 3, 4))
    (2, 4, 3)
    """
    return shape if shape is None or len(shape) < 2 else (*shape[:-2], shape[-1], shape[-2])


def elements(shape: Shape) -> int | None:
    """Return the number of values in a shape, None where a size is unknown.

    >>> elements((1, 3, 4)), elements(()), elements((1, None))
    (12, 1, None)
    """
    return None if shape is None else _product(*shape)


def as_convolution(
    layer: Layer, *, source: Shape, weight: Shape, groups: int, transposed: bool, batch: int
) -> Layer:
    """Return a convolution layer with its channels, kernel and MACs.

    Args:
        layer: with its output shape.
        source: shape of the data that it reads.
        weight: (out channels, in channels / groups, kernel...), or where it is transposed
            (in channels, out channels / groups, kernel...).
        groups: into how many the channels are divided.
        transposed: whether each input value, instead of each output value, meets the whole kernel.
        batch: samples in the shapes.
    """
    if weight is None or None in weight:
        return replace(layer, groups=groups, macs=None)
    sizes = [size for size in weight if size is not None]
    own, others, kernel = sizes[0], sizes[1] * groups, tuple(sizes[2:])
    values = elements(source if transposed else layer.output_shape)
    return replace(
        layer,
        groups=groups,
        in_channels=own if transposed else others,
        out_channels=others if transposed else own,
        kernel=kernel,
        macs=_per_sample(_product(values, sizes[1], *kernel), batch),
    )


def as_matmul(layer: Layer, *, left: Shape, right: Shape, constant: int | None, batch: int) -> Layer:
    """Return a matrix product with its channels and MACs.

    Args:
        layer: with its output shape.
        left: shape (..., m, k) or (k,) of what stands left.
        right: shape (..., k, n) or (k,) of what stands right.
        constant: which side holds weights, 0 for left and 1 for right; None makes it a product of
            activations.
        batch: samples in the shapes.
    """
    joined = left[-1] if left else None
    macs = _per_sample(_product(elements(layer.output_shape), joined), batch)
    if constant is None:
        return replace(layer, kind="attention", macs=macs)
    weight = right if constant == 1 else swapped(left)
    made = weight[-1] if weight and len(weight) > 1 else None
    return replace(layer, in_channels=joined, out_channels=made, macs=macs)


def as_einsum(
    layer: Layer, equation: str, *, operands: Sequence[Shape], constant: int | None, batch: int
) -> Layer:
    """Return an Einstein sum with its channels and its MACs: the product of the sizes of all its letters.

    A sum over one operand multiplies nothing and is an `other` layer.

    Args:
        layer: to complete.
        equation: such as `bi,oi->bo`, with `->`.
        operands: their shapes.
        constant: which operand holds weights; None makes it a product of activations.
        batch: samples in the shapes.
    """
    before, _, after = equation.replace(" ", "").partition("->")
    terms = before.split(",")
    if len(terms) < 2:
        return replace(layer, kind="other")
    letters = [_letters(term, shape) for term, shape in zip(terms, operands, strict=True)]
    sizes: dict[str, int | None] = {}
    for term, shape in zip(letters, operands, strict=True):
        for letter, size in zip(term, shape or [None] * len(term), strict=True):
            known = sizes.get(letter)
            sizes[letter] = size if known in (None, 1) else known
    macs = None if None in operands else _per_sample(_product(*sizes.values()), batch)
    if constant is None:
        return replace(layer, kind="attention", macs=macs)
    kept = {*after, *(letter for letter in letters[constant] if letter.startswith("."))}
    others = {letter for index, term in enumerate(letters) if index != constant for letter in term}
    return replace(
        layer,
        in_channels=_product(*(sizes[letter] for letter in letters[constant] if letter not in kept)),
        out_channels=_product(*(sizes[letter] for letter in letters[constant] if letter not in others)),
        macs=macs,
    )


def _letters(term: str, shape: Shape) -> list[str]:
    """Return a letter for each axis; those that an ellipsis stands for count from the right."""
    before, dots, after = term.partition("...")
    spread = len(shape) - len(before) - len(after) if dots and shape is not None else 0
    return [*before, *(f".{index}" for index in range(spread, 0, -1)), *after]


def as_attention(layer: Layer, *, query: Shape, key: Shape, batch: int) -> Layer:
    """Return a scaled dot-product attention with the MACs of its two products.

    Args:
        layer: with its output shape (..., queries, value size).
        query: shape (..., queries, key size).
        key: shape (..., keys, key size).
        batch: samples in the shapes.
    """
    keys = key[-2] if key else None
    first, second = _product(elements(query), keys), _product(elements(layer.output_shape), keys)
    total = None if first is None or second is None else first + second
    return replace(layer, macs=_per_sample(total, batch))


def as_recurrent(
    layer: Layer, *, source: Shape, weights: Sequence[Shape], out_channels: int | None, batch: int
) -> Layer:
    """Return a recurrent layer with its channels and MACs.

    Args:
        layer: to complete.
        source: shape (..., in channels) of the data: steps and batch before, in either order.
        weights: shapes of every matrix that meets the data or the state at each step.
        out_channels: size of the state in one direction.
        batch: samples in the shapes.
    """
    sizes = [elements(weight) for weight in weights]
    known = [size for size in sizes if size is not None]
    each = sum(known) if len(known) == len(sizes) else None
    steps = None if source is None else _product(*source[:-1])
    return replace(
        layer,
        in_channels=source[-1] if source else None,
        out_channels=out_channels,
        macs=_per_sample(_product(each, steps), batch),
    )


def _product(*factors: int | None) -> int | None:
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def _per_sample(macs: int | None, batch: int) -> int | None:
    return None if macs is None else macs // batch
