"""Graphs of `torch.export` (ATen operators) as layer graphs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alula.errors import ModelError
from alula.graphs.counting import as_attention, as_convolution, as_einsum, as_matmul, as_recurrent, swapped
from alula.graphs.layers import Kind, Layer, LayerGraph, Shape, global_axes

if TYPE_CHECKING:
    import torch

__all__ = ["read_fx"]

_OPERATORS: dict[Kind, str] = {
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    "matmul": "addmm baddbmm bmm einsum linear matmul mm mv",
    "recurrent": "gru lstm rnn_relu rnn_tanh",
    "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_attention_math",
    "pool": "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax avg_pool1d "
    "avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices max_pool3d "
    "max_pool3d_with_indices mean",
    "multiply": "div mul",
    "add": "add rsub sub",
    "activation": "abs celu clamp clamp_max clamp_min cos elu erf exp gelu glu hardsigmoid hardswish "
    "hardtanh leaky_relu log log1p log_sigmoid log_softmax _log_softmax mish neg pow prelu reciprocal relu "
    "relu6 rsqrt selu sigmoid silu sin softmax _softmax softplus softsign sqrt square tanh threshold",
    "norm": "batch_norm _batch_norm_with_update_functional _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training group_norm instance_norm layer_norm local_response_norm "
    "native_batch_norm native_group_norm native_layer_norm rms_norm",
    "shape": "alias alpha_dropout cat chunk clone constant_pad_nd contiguous detach dropout expand expand_as "
    "feature_dropout flatten flip gather index index_select movedim narrow native_dropout pad permute "
    "pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d repeat replication_pad1d "
    "replication_pad2d reshape reshape_as roll select slice split split_with_sizes squeeze stack swapaxes t "
    "tile to _to_copy transpose type_as unbind unflatten unfold unsqueeze _unsafe_view view view_as",
    "embedding": "embedding",
}
_KINDS: dict[str, Kind] = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}

_FIRST_ONLY = ("expand_as", "reshape_as", "type_as", "view_as")  # of the second they take a size or a type
_LEFT_AND_RIGHT = {
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "bmm": ("self", "mat2"),
    "linear": ("input", "weight"),
    "matmul": ("self", "other"),
    "mm": ("self", "mat2"),
    "mv": ("self", "vec"),
}
_SIZES_ONLY = ("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
_WRAPPERS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")
# Their work is there, but not counted; so is that of graphs in arguments and of other people's operators.
_NOT_COUNTED = frozenset(
    (
        *(
            "addbmm",
            "addmv",
            "addr",
            "bilinear",
            "cdist",
            "chain_matmul",
            "dot",
            "gru_cell",
            "inner",
            "istft",
        ),
        *("linalg_matmul", "linalg_multi_dot", "linalg_vecdot", "lstm_cell", "matrix_power", "outer"),
        *("rnn_relu_cell", "rnn_tanh_cell", "stft", "tensordot", "vdot", "_trilinear"),
    )
)
_NAMESPACES = ("aten", "prims")
_STATISTICS = ("running_mean", "running_var")


def read_fx(module: torch.fx.GraphModule, *, shapes: Mapping[str, Sequence[int]] | None = None) -> LayerGraph:
    """Return the layers of an exported module, `ExportedProgram.module()`; they have the nodes' names.

    Sizes come from the nodes' own record of the export. Before or after the decomposition into core
    operators makes no difference to products and their roles. A layer inside a context (`autocast`,
    `no_grad`) has the name of the submodule before its own, as in `submod_1.linear`.

    Args:
        module: is not changed.
        shapes: of inputs that leave more than their first axis open, by name, the batch axis first.

    Raises:
        ModelError: the module has no inputs, or was not made by `torch.export`.
    """
    return _Reading(module, shapes or {}).graph()


class _Reading:
    """One pass over a graph's nodes."""

    def __init__(self, module: torch.fx.GraphModule, shapes: Mapping[str, Sequence[int]]) -> None:
        self._module = module
        self._inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        if not any("val" in node.meta for node in self._inputs):
            raise ModelError(
                "The graph module does not tell the shapes of its inputs; expected one that torch.export "
                "made. Pass `torch.export.export(...).module()`."
            )
        self._sizes = _settled_sizes(self._inputs, shapes)
        first = self._shape(self._inputs[0])
        self._batch = (first[0] if first else None) or 1
        self._data = {node: node.name for node in self._inputs}
        self._constant: dict[torch.fx.Node, frozenset[str]] = {}
        self._several: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        self._counted: set[int] = set()
        self._layers: list[Layer] = []

    def graph(self) -> LayerGraph:
        outputs = self._walk(self._module.graph, "")
        names = tuple(node.name for node in self._inputs)
        left = dict.fromkeys(self._data[node] for node in outputs if node in self._data)
        return LayerGraph(tuple(self._layers), names, tuple(left))

    def _walk(self, graph: torch.fx.Graph, prefix: str) -> list[torch.fx.Node]:
        """Read the nodes of a graph whose inputs are known; return its outputs."""
        for node in graph.nodes:
            if node.op == "output":
                return _nodes(node.args)
            if node.op == "get_attr":
                self._constant[node] = frozenset((prefix + str(node.target),))
            elif node.op != "placeholder":
                self._read(node, prefix)
        return []

    def _read(self, node: torch.fx.Node, prefix: str) -> None:
        name = _operator(node)
        read = _nodes(node.args[:1]) if name in _FIRST_ONLY else _nodes((node.args, node.kwargs))
        inputs = tuple(self._data[source] for source in read if source in self._data)
        if name in _WRAPPERS:
            self._read_wrapped(node, prefix)
        elif inputs and node.target is operator.getitem:
            self._alias(node, self._several[read[0]][node.args[1]] if read[0] in self._several else read[0])
        elif inputs and name not in _SIZES_ONLY and _has_tensor(node.meta.get("val")):
            self._layers.append(self._layer(node, name, prefix, inputs))
            self._data[node] = prefix + node.name
        else:
            roots = (self._constant.get(source, frozenset()) for source in read)
            self._constant[node] = frozenset().union(*roots)

    def _read_wrapped(self, node: torch.fx.Node, prefix: str) -> None:
        """Read a part of the network that runs in a context, such as without autocast, in its place."""
        import torch

        arguments = list(node.args)
        place = next(index for index, each in enumerate(arguments) if isinstance(each, torch.fx.Node))
        path = prefix + str(arguments[place].target)
        inner: Any = self._module.get_submodule(path)
        given = [each for each in inner.graph.nodes if each.op == "placeholder"]
        for source, target in zip(arguments[place + 1 :], given, strict=True):
            self._alias(target, source)
        self._several[node] = self._walk(inner.graph, f"{path}.")
        if data := [self._data[each] for each in self._several[node] if each in self._data]:
            self._data[node] = data[0]

    def _alias(self, node: torch.fx.Node, source: Any) -> None:
        if source in self._data:
            self._data[node] = self._data[source]
        else:
            self._constant[node] = self._constant.get(source, frozenset())

    def _layer(self, node: torch.fx.Node, name: str, prefix: str, inputs: tuple[str, ...]) -> Layer:
        arguments = _arguments(node)
        kind = self._kind(name, arguments, node)
        layer = Layer(
            prefix + node.name,
            kind,
            inputs,
            output_shape=self._shape(node),
            macs=0 if _is_countable(node, name) else None,
            parameters=self._parameters(arguments),
        )
        if kind == "conv":
            return as_convolution(
                layer,
                source=self._shape(arguments["input"]),
                weight=self._shape(arguments["weight"]),
                groups=arguments["groups"],
                transposed=name.startswith("conv_transpose") or bool(arguments.get("transposed", False)),
                batch=self._batch,
            )
        if kind == "matmul":
            return self._matmul(name, arguments, layer)
        if kind == "attention":
            query, key = self._shape(arguments["query"]), self._shape(arguments["key"])
            return as_attention(layer, query=query, key=key, batch=self._batch)
        if kind == "recurrent":
            return self._recurrent(arguments, layer)
        return layer

    def _matmul(self, name: str, arguments: Mapping[str, Any], layer: Layer) -> Layer:
        if name == "einsum":
            operands = arguments["tensors"]
            constants = [index for index, operand in enumerate(operands) if operand not in self._data]
            return as_einsum(
                layer,
                arguments["equation"],
                operands=[self._shape(operand) for operand in operands],
                constant=constants[0] if constants else None,
                batch=self._batch,
            )
        operands = [arguments[key] for key in _LEFT_AND_RIGHT[name]]
        constants = [index for index, operand in enumerate(operands) if operand not in self._data]
        left, right = (self._shape(operand) for operand in operands)
        return as_matmul(
            layer,
            left=left,
            right=swapped(right) if name == "linear" else right,
            constant=constants[0] if constants else None,
            batch=self._batch,
        )

    def _recurrent(self, arguments: Mapping[str, Any], layer: Layer) -> Layer:
        weights = [self._shape(weight) for weight in arguments["params"]]
        matrices = [weight for weight in weights if weight is None or len(weight) == 2]
        states = arguments.get("hx")
        state = self._shape(states[0] if isinstance(states, list | tuple) else states)
        return as_recurrent(
            layer,
            source=self._shape(arguments.get("input")),
            weights=matrices,
            out_channels=state[-1] if state else None,
            batch=self._batch,
        )

    def _kind(self, name: str, arguments: Mapping[str, Any], node: torch.fx.Node) -> Kind:
        kind = _KINDS.get(name, "other")
        if kind != "pool":
            return kind
        before = self._shape(_nodes(node.args)[0])
        if before is None:
            return kind
        if name in ("mean", "amax"):
            axes = arguments.get("dim") or ()
            return "global-pool" if global_axes(axes, len(before)) else kind
        after = self._shape(node)
        if after is None or any(size != 1 for size in after[2:]):
            return kind
        whole = list(arguments.get("kernel_size", before[2:]))
        # One number stands for a window of equal sides.
        whole = whole * (len(before) - 2) if len(whole) == 1 else whole
        return "global-pool" if whole == list(before[2:]) else kind

    def _parameters(self, arguments: Mapping[str, Any]) -> int:
        import torch

        read = _nodes([value for key, value in arguments.items() if key not in _STATISTICS])
        total = 0
        for root in sorted(frozenset().union(*(self._constant.get(node, frozenset()) for node in read))):
            tensor: Any = self._module
            for part in root.split("."):
                tensor = getattr(tensor, part)
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self._counted:
                self._counted.add(id(tensor))
                if tensor.is_floating_point() and tensor.numel() > 1:
                    total += tensor.numel()
        return total

    def _shape(self, node: Any) -> Shape:
        import torch

        if not isinstance(node, torch.fx.Node):
            return None
        value = node.meta.get("val")
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if not isinstance(value, torch.Tensor):
            return None
        return tuple(self._size(size) for size in value.shape)

    def _size(self, size: int | torch.SymInt) -> int | None:
        if isinstance(size, int):
            return size
        settled = size.node.expr.subs(self._sizes)
        return int(settled) if settled.is_Integer else None


def _settled_sizes(inputs: Sequence[torch.fx.Node], given: Mapping[str, Sequence[int]]) -> dict[Any, int]:
    """Return a number for each symbol that is a size of an input: as given, and 1 for a batch axis."""
    import torch

    settled: dict[Any, int] = {}
    for node in inputs:
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        for axis, size in enumerate(sizes):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                if len(given.get(node.name, ())) == len(sizes):
                    settled[size.node.expr] = given[node.name][axis]
                elif axis == 0:
                    settled[size.node.expr] = 1
    return settled


def _operator(node: torch.fx.Node) -> str:
    """Return the name of an ATen operator without its overload, or of one over graphs; else empty."""
    import torch

    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return str(node.target.name())
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    name = str(node.target._schema.name).rpartition("::")[2]
    # An operator that works in place gives the same values.
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _is_countable(node: torch.fx.Node, name: str) -> bool:
    import torch

    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _NAMESPACES:
        return False
    return (
        not isinstance(node.target, torch._ops.HigherOrderOperator)
        and name not in _NOT_COUNTED
        and not name.startswith(("fft_", "_fft_"))
    )


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by the names of its operator's schema, defaults included."""
    import torch

    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(index): value for index, value in enumerate(node.args)}
    declared = node.target._schema.arguments
    arguments = {argument.name: argument.default_value for argument in declared}
    arguments |= {argument.name: value for argument, value in zip(declared, node.args, strict=False)}
    return arguments | dict(node.kwargs)


def _nodes(arguments: Any) -> list[torch.fx.Node]:
    """Return the nodes in a nest of arguments, each as often as it occurs, in order."""
    import torch

    found: list[torch.fx.Node] = []
    torch.fx.node.map_arg(arguments, found.append)
    return found


def _has_tensor(value: object) -> bool:
    import torch

    if isinstance(value, list | tuple):
        return any(isinstance(each, torch.Tensor) for each in value)
    return isinstance(value, torch.Tensor)
