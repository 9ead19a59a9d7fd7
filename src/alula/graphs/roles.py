"""What each layer is for in its network, told from structure alone, and what a scope leaves in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from alula.core import Scope
from alula.graphs.layers import Layer, LayerGraph

__all__ = ["Role", "assign_roles", "is_left_in_float", "left_in_float"]

Role = Literal[
    "stem",
    "head",
    "depthwise",
    "grouped",
    "pointwise",
    "conv",
    "matmul",
    "attention",
    "recurrent",
    "squeeze-excite",
    "elementwise",
    "activation",
    "pool",
    "norm",
    "other",
]
"""What a layer is for.

`stem`: a dense convolution before which nothing is multiplied with weights. `head`: a dense
convolution or matrix product with weights, after which nothing is. `depthwise`: a convolution with
a group for each of several channels; `grouped`: with fewer groups than channels. `pointwise`: a
dense convolution whose kernel covers one position; `conv`: any other. `matmul`: a product with
weights; `attention`: a product of two activations, or a whole attention. `squeeze-excite`: what
lies between a mean over all positions and the multiplication of a feature map by what weights made
of that mean, both included. A constant that is added to a product right after it is its bias and has
its role, as has a single number that scales it.
"""

# What the scopes mean in roles.
_DENSE: frozenset[Role] = frozenset(("stem", "head", "pointwise", "conv", "matmul"))
_EDGES: frozenset[Role] = frozenset(("stem", "head", "squeeze-excite"))

_WEIGHTED = ("conv", "matmul", "recurrent")
_BY_KIND: dict[str, Role] = {
    "recurrent": "recurrent",
    "attention": "attention",
    "pool": "pool",
    "global-pool": "pool",
    "multiply": "elementwise",
    "add": "elementwise",
    "activation": "activation",
    "norm": "norm",
}


def assign_roles(graph: LayerGraph) -> dict[str, Role]:
    """Return the role of every layer by its name, in topological order.

    Names and libraries do not matter: the same network read from ONNX, OpenVINO or PyTorch gives its
    products the same roles.

    Squeeze-and-excitation: Hu et al. 2018 (arXiv:1709.01507); its form with one convolution across the
    pooled channels: Wang et al. 2020 (arXiv:1910.03151).

    >>> stem = Layer("a", "conv", ("x",), in_channels=3, out_channels=8, kernel=(3, 3), parameters=216)
    >>> pool = Layer("b", "global-pool", ("a",))
    >>> head = Layer("c", "matmul", ("b",), in_channels=8, out_channels=2, parameters=16)
    >>> assign_roles(LayerGraph((stem, pool, head), ("x",), ("c",)))
    {'a': 'stem', 'b': 'pool', 'c': 'head'}
    """
    gating = _squeeze_excite(graph)
    preceded = _reached(graph.layers, lambda layer: layer.inputs)
    followed = _reached(
        reversed(graph.layers), lambda layer: [other.name for other in graph.consumers(layer.name)]
    )
    roles: dict[str, Role] = {}
    products: set[str] = set()
    for layer in graph.layers:
        continued = _continues(layer, graph, products)
        if continued or layer.kind in ("conv", "matmul"):
            products.add(layer.name)
        if layer.name in gating:
            roles[layer.name] = "squeeze-excite"
        elif continued:
            roles[layer.name] = roles[layer.inputs[0]]
        else:
            roles[layer.name] = _role(
                layer, first=layer.name not in preceded, last=layer.name not in followed
            )
    return roles


def left_in_float(graph: LayerGraph, scope: Scope) -> tuple[str, ...]:
    """Return the names of the layers that a scope leaves in float, in topological order.

    `all` leaves none. `no-depthwise` leaves depthwise convolutions. `no-edges` leaves stem, head and
    squeeze-excite. `dense` leaves all but dense convolutions and matrix products with weights:

    - grouped convolutions stay in float, since OpenVINO was measured to gain by this scope with them so;
    - products of two activations, of which neither side can be prepared beforehand;
    - squeeze-excite: less than a hundredth of the work of EfficientNet-B0 and MobileNetV3 at 224 pixels, on
      maps of one position, and its errors multiply whole channels.

    Layers that only move values are never named: they take the precision of what they move, and
    naming them would put conversions between layers that agree.
    """
    if scope == "all":
        return ()
    roles = assign_roles(graph)
    return tuple(
        layer.name
        for layer in graph.layers
        if layer.kind != "shape" and is_left_in_float(roles[layer.name], scope)
    )


def is_left_in_float(role: Role, scope: Scope) -> bool:
    """Return whether a scope leaves layers of a role in float; see `left_in_float`.

    >>> [is_left_in_float("depthwise", scope) for scope in ("all", "dense", "no-depthwise", "no-edges")]
    [False, True, True, False]
    """
    if scope == "all":
        return False
    if scope == "dense":
        return role not in _DENSE
    if scope == "no-depthwise":
        return role == "depthwise"
    return role in _EDGES


def _role(layer: Layer, *, first: bool, last: bool) -> Role:
    if layer.kind == "conv":
        return _role_of_convolution(layer, first=first, last=last)
    if layer.kind == "matmul":
        return "head" if last else "matmul"
    return _BY_KIND.get(layer.kind, "other")


def _role_of_convolution(layer: Layer, *, first: bool, last: bool) -> Role:
    if layer.groups > 1:
        return "depthwise" if layer.groups == layer.in_channels else "grouped"
    if first:
        return "stem"
    if last:
        return "head"
    return "pointwise" if all(size == 1 for size in layer.kernel) else "conv"


def _continues(layer: Layer, graph: LayerGraph, products: set[str]) -> bool:
    """Return whether a layer is part of a product: a constant added to it, or one number that scales it."""
    constant = layer.kind == "add" or (layer.kind == "multiply" and layer.parameters == 0)
    return (
        constant
        and len(layer.inputs) == 1
        and layer.inputs[0] in products
        and len(graph.consumers(layer.inputs[0])) == 1
    )


def _reached(layers: Iterable[Layer], neighbours: Callable[[Layer], Iterable[str]]) -> set[str]:
    """Return the layers that a product with weights comes before, in the order of `layers`."""
    reached: set[str] = set()
    weighted: set[str] = set()
    for layer in layers:
        if any(name in reached or name in weighted for name in neighbours(layer)):
            reached.add(layer.name)
        if layer.kind in _WEIGHTED:
            weighted.add(layer.name)
    return reached


def _squeeze_excite(graph: LayerGraph) -> set[str]:
    """Return the layers of every squeeze-excite, from the global pools to the multiplications."""
    pooled: set[str] = set()
    for layer in graph.layers:
        known = layer.inputs and all(name in pooled for name in layer.inputs)
        if layer.kind == "global-pool" or known:
            pooled.add(layer.name)
    found: set[str] = set()
    for layer in graph.layers:
        if layer.kind == "multiply" and layer.name not in pooled:
            gates = [name for name in dict.fromkeys(layer.inputs) if name in pooled]
            maps = [name for name in layer.inputs if name not in pooled]
            if len(gates) == len(maps) == 1 and _is_map(graph, maps[0]):
                chain = set(_chain(graph, gates[0], pooled))
                if any(graph.layer(name).kind in _WEIGHTED for name in chain):
                    found |= chain | {layer.name}
    return found


def _is_map(graph: LayerGraph, name: str) -> bool:
    """Return whether values have positions besides samples and channels, as far as sizes are known."""
    shape = None if name in graph.inputs else graph.layer(name).output_shape
    return shape is None or len(shape) > 2


def _chain(graph: LayerGraph, gate: str, pooled: set[str]) -> Iterator[str]:
    """Yield the layers from a gate back to the global pools that it is made of."""
    waiting, seen = [gate], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            yield name
            layer = graph.layer(name)
            if layer.kind != "global-pool":
                waiting += layer.inputs
