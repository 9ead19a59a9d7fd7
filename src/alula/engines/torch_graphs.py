"""What PyTorch's engines do to a graph when it is loaded: layout and precision, eager and TorchScript."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

__all__ = [
    "CHANNELS_LAST",
    "bf16",
    "channels_last",
    "compute_in_bf16",
    "put_channels_last",
    "with_images_innermost",
    "with_wide_outputs",
]

CHANNELS_LAST = "channels-last"
"""The variant of recipes that keep images with the channels innermost."""

_CONVOLUTIONS_2D = ("conv2d", "conv_transpose2d", "_convolution")
# Operators of which autocast makes bfloat16 ones (PyTorch documentation, "Automatic Mixed Precision", CPU),
# and what TorchScript calls a convolution.
_ATTENTION = "aten::scaled_dot_product_attention"
_PRODUCTS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "_convolution",
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "addbmm",
    "baddbmm",
    "prelu",
    "scaled_dot_product_attention",
)
# Their weights come in lists, and all that they read must be of one type.
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def with_images_innermost(call: Callable[..., object]) -> Callable[..., object]:
    """Return a call that gets its 4-D tensors with the channels innermost."""
    import torch

    def converted(*tensors: torch.Tensor) -> object:
        return call(
            *(
                tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
                for tensor in tensors
            )
        )

    return converted


def with_wide_outputs(call: Callable[..., object]) -> Callable[..., object]:
    """Return a call that gives float32 for bfloat16, which NumPy does not have."""
    import torch
    from torch.utils import _pytree as pytree

    def widened(leaf: object) -> object:
        if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bfloat16:
            return leaf.float()
        return leaf

    def wide(*tensors: torch.Tensor) -> object:
        return pytree.tree_map(widened, call(*tensors))

    return wide


def channels_last(module: fx.GraphModule) -> Callable[..., object]:
    """Return a call of a module that computes images with the channels innermost."""
    import torch

    for weight in _only_read_by(module, _CONVOLUTIONS_2D):
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    for part in _graphs(module):
        for node in part.graph.nodes:
            # A view of neighbouring axes that are not neighbours in memory any more needs a copy.
            if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
                node.target = torch.ops.aten.reshape.default
    _drop_checks(module)
    return with_images_innermost(module)


def bf16(module: fx.GraphModule, call: Callable[..., object]) -> Callable[..., object]:
    """Return a call of a module whose products are bfloat16 and whose outputs are not."""
    import torch

    for weight in _only_read_by(module, _PRODUCTS):
        if weight.dtype == torch.float32:
            weight.data = weight.data.to(torch.bfloat16)
    _drop_checks(module)

    def in_bf16(*tensors: torch.Tensor) -> object:
        # The cache would keep copies of weights that are converted already.
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return call(*tensors)

    return with_wide_outputs(in_bf16)


def put_channels_last(graph: Any) -> None:
    """Store the weights of 2-D convolutions with the channels innermost; let views copy where they must.

    Args:
        graph: of a frozen TorchScript module; changed in place.
    """
    import torch

    for node in _nodes(graph, _CONVOLUTIONS_2D):
        weight = list(node.inputs())[1]
        stored = weight.toIValue() if weight.node().kind() == "prim::Constant" else None
        if isinstance(stored, torch.Tensor) and stored.ndim == 4:
            with graph.insert_point_guard(node):
                innermost = stored.contiguous(memory_format=torch.channels_last)
                node.replaceInput(1, graph.insertConstant(innermost))
    for node in _nodes(graph, ("view", "_unsafe_view")):
        with graph.insert_point_guard(node):
            copying = graph.insertNode(graph.create("aten::reshape", list(node.inputs()), 1))
        node.output().replaceAllUsesWith(copying.output())
        node.destroy()


def compute_in_bf16(graph: Any) -> None:
    """Convert what products read to bfloat16, weights once and for all; the rest follows from its inputs.

    The operators are those that PyTorch's autocast narrows on CPU. TorchScript's own autocast pass would
    widen every sum and product of maps again.

    Args:
        graph: of a frozen TorchScript module; changed in place.
    """
    import torch

    for node in _nodes(graph, _PRODUCTS):
        # Behind query, key and value comes the mask: of truth values it would become one that is added.
        read = list(node.inputs())[: 3 if node.kind() == _ATTENTION else None]
        for index, value in enumerate(read):
            if value.type().kind() == "TensorType":
                node.replaceInput(index, _converted(graph, node, value, torch.bfloat16))
    for node in _nodes(graph, _RECURRENT):
        node.replaceInput(0, _converted(graph, node, next(node.inputs()), torch.float32))
    torch._C._jit_pass_constant_propagation(graph)


def _only_read_by(module: fx.GraphModule, operators: Collection[str]) -> list[torch.Tensor]:
    """Return the parameters and buffers of an exported module that nothing reads but some operators."""
    readers: dict[int, set[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    held = dict(module.named_parameters(remove_duplicate=False))
    held.update(module.named_buffers(remove_duplicate=False))
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.target in held:
            tensor = held[node.target]
            tensors[id(tensor)] = tensor
            readers.setdefault(id(tensor), set()).update(_operator(user) for user in node.users)
    return [tensors[key] for key, names in readers.items() if names and names <= set(operators)]


def _operator(node: fx.Node) -> str:
    # `aten.conv2d.default` for the operator, the attribute's path for anything else.
    return str(node.target).removeprefix("aten.").split(".", maxsplit=1)[0]


def _drop_checks(module: fx.GraphModule) -> None:
    """Take out the export's checks that an intermediate value has the type and layout that it had then."""
    import torch

    for part in _graphs(module):
        for node in list(part.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                part.graph.erase_node(node)
        part.recompile()


def _graphs(module: fx.GraphModule) -> list[fx.GraphModule]:
    """Return the module and those for its regions under autocast or without gradients."""
    from torch import fx

    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]


def _converted(graph: Any, before: Any, value: Any, dtype: torch.dtype) -> Any:
    import torch

    code = {torch.float32: 6, torch.bfloat16: 15}[dtype]  # c10::ScalarType
    with graph.insert_point_guard(before):
        arguments = [value, *(graph.insertConstant(each) for each in (code, False, False, None))]
        return graph.insertNode(graph.create("aten::to", arguments, 1)).output()


def _nodes(graph: Any, operators: Collection[str]) -> list[Any]:
    return [node for operator in operators for node in graph.findAllNodes(f"aten::{operator}")]
