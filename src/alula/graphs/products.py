"""The work of a network by what its layers are, small enough to be stored beside a measurement."""

from __future__ import annotations

from typing import Annotated

import msgspec

from alula.graphs.counting import total_macs
from alula.graphs.layers import Kind, LayerGraph
from alula.graphs.roles import Role, assign_roles

__all__ = ["Products", "products_of"]


class Products(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers of one kind and role.

    Attributes:
        kind: what they compute.
        role: what they are for.
        macs: multiply-accumulates of one sample, of all of them.
    """

    kind: Kind
    role: Role
    macs: Annotated[int, msgspec.Meta(ge=0)]


def products_of(graph: LayerGraph) -> tuple[Products, ...]:
    """Return the work of a network, without layers that are none, in the order of their first layers.

    Raises:
        ModelError: the work of a layer cannot be counted.

    >>> from alula.graphs.layers import Layer
    >>> stem = Layer("a", "conv", ("x",), out_channels=8, kernel=(3, 3), macs=864)
    >>> act = Layer("b", "activation", ("a",))
    >>> head = Layer("c", "matmul", ("b",), out_channels=2, macs=16)
    >>> [(one.role, one.macs) for one in products_of(LayerGraph((stem, act, head), ("x",), ("c",)))]
    [('stem', 864), ('head', 16)]
    """
    total_macs(graph)
    roles = assign_roles(graph)
    found: dict[tuple[Kind, Role], int] = {}
    for layer in graph.layers:
        if layer.macs:
            key = (layer.kind, roles[layer.name])
            found[key] = found.get(key, 0) + layer.macs
    return tuple(Products(kind=kind, role=role, macs=macs) for (kind, role), macs in found.items())
