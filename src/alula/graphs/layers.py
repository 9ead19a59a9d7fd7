"""Layers of a network and how they are joined, as frozen values without any engine's types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = ["Kind", "Layer", "LayerGraph", "Shape", "global_axes"]

Kind = Literal[
    "conv",
    "matmul",
    "recurrent",
    "attention",
    "pool",
    "global-pool",
    "multiply",
    "add",
    "activation",
    "norm",
    "shape",
    "embedding",
    "other",
]
"""What a layer computes.

`conv` may be transposed or grouped; `matmul` is a matrix product with weights and `attention` one of
two activations, or a whole scaled dot-product attention in one layer; `recurrent` is a whole LSTM,
GRU or plain recurrent layer; `global-pool` leaves one value per sample and channel; `multiply` includes
division and `add` subtraction, with a constant too; `activation` is any function of single values,
and softmax; `shape` only moves or repeats values; `embedding` looks rows of a table up.
"""

Shape = tuple[int | None, ...] | None
"""Sizes of a tensor; None for a size, or for the whole, where the graph does not tell."""


@dataclass(frozen=True)
class Layer:
    """One operation on data that depends on the network's inputs.

    Attributes:
        name: what the engine's quantizers call it; unique in its graph.
        kind: what it computes.
        inputs: layers or graph inputs whose values it reads, in order. Constants and arithmetic on
            sizes are no layers and are left out.
        groups: of a convolution.
        in_channels: channels that weights join; None without weights, or unknown.
        out_channels: channels that weights make; None without weights, or unknown.
        kernel: sizes of a convolution's window.
        output_shape: of its first output, an open batch axis taken as 1.
        macs: multiply-accumulates for one sample; None where sizes are unknown; 0 for what does not
            multiply matrices.
        parameters: stored numbers that it is the first to read.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    groups: int = 1
    in_channels: int | None = None
    out_channels: int | None = None
    kernel: tuple[int, ...] = ()
    output_shape: Shape = None
    macs: int | None = 0
    parameters: int = 0


@dataclass(frozen=True)
class LayerGraph:
    """Layers in topological order.

    Attributes:
        layers: each after all of its inputs.
        inputs: names of the graph's inputs.
        outputs: layers, or graph inputs, whose values leave the graph.

    Raises:
        ValueError: a name occurs twice, or a layer reads what no earlier layer or input is.

    >>> graph = LayerGraph((Layer("a", "conv", ("x",)), Layer("b", "add", ("a", "x"))), ("x",), ("b",))
    >>> [layer.name for layer in graph.consumers("x")]
    ['a', 'b']
    >>> [layer.name for layer in graph.producers("b")]
    ['a']
    """

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self._names()).items() if count > 1]
        if twice:
            raise ValueError(f"names of layers and inputs must differ; got {twice[0]!r} more than once")
        known = set(self.inputs)
        for layer in self.layers:
            if missing := [name for name in layer.inputs if name not in known]:
                raise ValueError(
                    f"layer {layer.name!r} reads {missing[0]!r}, which is no input and no earlier layer"
                )
            known.add(layer.name)
        if missing := [name for name in self.outputs if name not in known]:
            raise ValueError(f"output {missing[0]!r} is no input and no layer")

    def _names(self) -> tuple[str, ...]:
        return (*self.inputs, *(layer.name for layer in self.layers))

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Layer, ...]]:
        found: dict[str, list[Layer]] = {name: [] for name in self._names()}
        for layer in self.layers:
            for name in dict.fromkeys(layer.inputs):
                found[name].append(layer)
        return {name: tuple(layers) for name, layers in found.items()}

    def layer(self, name: str) -> Layer:
        """Return the layer of a name.

        Raises:
            KeyError: there is none; graph inputs are no layers.
        """
        return self._by_name[name]

    def consumers(self, name: str) -> tuple[Layer, ...]:
        """Return the layers that read a layer or a graph input, each once, in topological order.

        Raises:
            KeyError: neither a layer nor an input has the name.
        """
        return self._consumers[name]

    def producers(self, name: str) -> tuple[Layer, ...]:
        """Return the layers that a layer reads, each once, in the order of its inputs, without graph inputs.

        Raises:
            KeyError: no layer has the name.
        """
        read = dict.fromkeys(self._by_name[name].inputs)
        return tuple(self._by_name[name] for name in read if name in self._by_name)


def global_axes(axes: Sequence[int], rank: int) -> bool:
    """Return whether reducing these axes leaves one value per sample and channel.

    Channels come right after the batch or last, so that of four axes either (2, 3) or (1, 2) go.

    >>> global_axes((-2, -1), 4), global_axes((1, 2), 4), global_axes((2,), 4)
    (True, True, False)
    """
    reduced = {axis % rank for axis in axes} if rank else set()
    return rank > 2 and reduced in (set(range(2, rank)), set(range(1, rank - 1)))
