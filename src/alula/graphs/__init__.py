"""What a network computes, whatever engine runs it: layers, their roles, and the work they are.

An adapter reads an engine's own graph into a `LayerGraph` whose layers have the names by which that
engine's quantizers address them. Roles and counts are the same for the same network, so that a
choice of layers made once holds for every engine.
"""

from alula.graphs.counting import total_macs, total_parameters
from alula.graphs.fx_graph import read_fx
from alula.graphs.layers import Kind, Layer, LayerGraph, Shape
from alula.graphs.onnx_graph import name_nodes, read_onnx
from alula.graphs.openvino_graph import read_openvino
from alula.graphs.products import Products, products_of
from alula.graphs.reach import LocalPart, local_part
from alula.graphs.roles import Role, assign_roles, is_left_in_float, left_in_float

__all__ = [
    "Kind",
    "Layer",
    "LayerGraph",
    "LocalPart",
    "Products",
    "Role",
    "Shape",
    "assign_roles",
    "is_left_in_float",
    "left_in_float",
    "local_part",
    "name_nodes",
    "products_of",
    "read_fx",
    "read_onnx",
    "read_openvino",
    "total_macs",
    "total_parameters",
]
