"""FX post-training static quantization of PyTorch modules, for eager PyTorch and for TorchScript."""

from __future__ import annotations

import importlib
import operator
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Scope
from alula.errors import EngineError
from alula.graphs import Layer, left_in_float, read_fx
from alula.libraries import INSTALL_TORCH, backend_of, require_torch, using_backend
from alula.quantization.base import Material
from alula.quantization.torch_artifacts import (
    another,
    calibrate,
    example_of,
    looked_up,
    offered_recipes,
    one_line_failures,
    qconfig_mapping,
    write_torchscript,
)
from alula.quantization.torch_tracing import trace

if TYPE_CHECKING:
    from torch import fx, nn

__all__ = ["TorchFx", "for_torch", "for_torchscript", "simplify"]

# Parameters of functional convolutions in order, with their defaults.
_CONVOLUTION: dict[str, Any] = {
    "input": None,
    "weight": None,
    "bias": None,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
}


class TorchFx:
    """PyTorch's graph-mode quantization: `prepare_fx` with histograms, `convert_fx`, TorchScript.

    The graph is traced from the user's module. Batch normalisations are folded into the convolutions before
    them, also those that a module calls as a function, and what does nothing in eval mode is taken out,
    so that convolution, normalisation and ReLU become one kernel.

    In a scope other than `all` the layers to leave in float are found in the exported program and left by the
    path of their module. Sums, products and means that are no modules stay as PyTorch sees fit; in `dense`
    they are float.

    Args:
        engine: that runs the TorchScript file: `torch` as it is, `torchscript` frozen.
    """

    name = "fx"
    install = INSTALL_TORCH

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def version(self) -> str:
        """See `Quantizer.version`."""
        return require_torch()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`: every backend with all layers, the first with other scopes too."""
        every = offered_recipes(isa, engine=self.engine, quantizer=self.name, every_backend=True)
        scoped = tuple(
            Recipe(self.engine, "int8", self.name, first.variant, scope)
            for first in every[:1]
            for scope in get_args(Scope)
            if scope != "all"
        )
        return every + scoped

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "module" if recipe.scope == "all" else "exported"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        quantize_fx = looked_up(_import_fx, "FX quantization")
        backend = backend_of(recipe)
        module = material.module()
        with using_backend(backend):
            with one_line_failures("FX quantization needs the model's graph, but the model cannot be traced"):
                few = tuple(tensor[: _traced_samples(material)] for tensor in example_of(material))
                traced = trace(module, few, another(few, material))
            with one_line_failures("FX quantization cannot quantize this model"):
                simplify(traced)
                mapping = qconfig_mapping(backend, saturating=material.saturating)
                _leave_integers(mapping, traced)
                if recipe.scope != "all":
                    traced = quantize_fx.fuse_fx(traced)
                    mapping = _limited(mapping, traced, material.export, recipe.scope)
                prepared = quantize_fx.prepare_fx(traced, mapping, example_of(material))
                calibrate(prepared, material.batches)
                quantized = quantize_fx.convert_fx(prepared)
            if not _has_quantized_layers(quantized):
                raise EngineError("FX quantization finds no layer in this model that it can quantize.")
            write_torchscript(quantized, material, artifact)


def for_torch() -> TorchFx:
    """Return the quantizer whose files eager PyTorch runs as they are."""
    return TorchFx("torch")


def for_torchscript() -> TorchFx:
    """Return the quantizer whose files are frozen before they run."""
    return TorchFx("torchscript")


def _import_fx() -> Any:
    from torch.ao.quantization import get_default_qconfig_mapping  # noqa: F401  (`qconfig_mapping` needs it)

    quantize_fx = importlib.import_module("torch.ao.quantization.quantize_fx")
    for part in ("fuse_fx", "prepare_fx", "convert_fx"):
        getattr(quantize_fx, part)
    return quantize_fx


def _traced_samples(material: Material) -> int:
    fixed = material.signature.inputs[0].shape[0]
    return fixed if isinstance(fixed, int) else 2


def simplify(traced: fx.GraphModule) -> None:
    """Bring a graph to the spellings that PyTorch's fusion and quantization know.

    What does nothing in eval mode goes, every ReLU becomes the function of that name, functional convolutions
    become modules, and functional batch normalisations are folded into the convolutions before them. Classes
    derived from convolution and normalisation, such as timm's that pad or include the activation, are
    traced as calls of the functions, which are never fused.

    Args:
        traced: in eval mode; changed in place, weights included.
    """
    import torch
    from torch import nn

    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _convolutions():
            _make_module(traced, node)
        elif node.op == "call_module" and type(modules[node.target]) in (nn.Identity, nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.target is torch.relu or (node.op == "call_method" and node.target == "relu"):
            node.op, node.target = "call_function", nn.functional.relu
        elif node.op == "call_method" and node.target == "reshape" and node.args[0].op == "placeholder":
            # What a reshape reads is not observed, so the layer after it would stay in float.
            node.target = "view"
    _fold_normalisations(traced)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()


def _convolutions() -> dict[Any, type[nn.Module]]:
    from torch import nn
    from torch.nn import functional

    return {functional.conv1d: nn.Conv1d, functional.conv2d: nn.Conv2d, functional.conv3d: nn.Conv3d}


def _make_module(traced: fx.GraphModule, node: fx.Node) -> None:
    """Turn a functional convolution into a module, in the place of the one that holds its weight.

    Where that one is read for anything else, or weights are computed, nothing happens.
    """
    from torch import nn

    given = dict(_CONVOLUTION)
    given.update(zip(given, node.args, strict=False))
    given.update(node.kwargs)
    weight, bias = _value(traced, given["weight"]), _value(traced, given["bias"])
    if weight is None or (given["bias"] is not None and bias is None):
        return
    path = str(given["weight"].target).rpartition(".")[0]
    read = [str(other.target) for other in traced.graph.nodes if other.op in ("get_attr", "call_module")]
    inside = [target for target in read if f"{target}.".startswith(f"{path}.")]
    if not path or len(inside) != 1 + (bias is not None):
        return
    out_channels, in_per_group, *kernel = weight.shape
    convolution = _convolutions()[node.target](
        in_per_group * given["groups"],
        out_channels,
        tuple(kernel),
        stride=given["stride"],
        padding=given["padding"],
        dilation=given["dilation"],
        groups=given["groups"],
        bias=bias is not None,
    )
    convolution.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    parent, _, attribute = path.rpartition(".")
    setattr(traced.get_submodule(parent), attribute, convolution.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", path, (given["input"],), {}


def _fold_normalisations(traced: fx.GraphModule) -> None:
    import torch
    from torch import nn

    modules = dict(traced.named_modules())
    uses = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or node.target is not torch.nn.functional.batch_norm:
            continue
        given = node.normalized_arguments(traced, normalize_to_only_use_kwargs=True).kwargs
        source = given["input"]
        if (
            source.op == "call_module"
            and type(modules[source.target]) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
            and uses[source.target] == 1
            and len(source.users) == 1
            and not given["training"]
        ):
            _fold(modules[source.target], {key: _value(traced, value) for key, value in given.items()})
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)


def _value(traced: fx.GraphModule, argument: Any) -> Any:
    from torch import fx

    if isinstance(argument, fx.Node):
        return operator.attrgetter(str(argument.target))(traced) if argument.op == "get_attr" else None
    return argument


def _fold(convolution: nn.Module, normalisation: dict[str, Any]) -> None:
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        normalisation["running_mean"],
        normalisation["running_var"],
        normalisation["eps"],
        normalisation["weight"],
        normalisation["bias"],
    )


def _leave_integers(mapping: Any, traced: fx.GraphModule) -> None:
    """Leave alone what reads tensors of integers: PyTorch takes every tensor for one of floats to observe."""
    order: Counter[Any] = Counter()
    for node in traced.graph.nodes:
        reads = any(source.meta.get("integers", False) for source in node.all_input_nodes)
        if reads and node.op == "call_function":
            mapping.set_module_name_object_type_order("", node.target, order[node.target], None)
        elif reads and node.op == "call_method":
            mapping.set_object_type(node.target, None)
        elif reads and node.op == "call_module":
            mapping.set_module_name(node.target, None)
        order[node.target] += node.op == "call_function"


def _limited(mapping: Any, fused: fx.GraphModule, export: Path, scope: Scope) -> Any:
    """Return the mapping for the layers that a scope quantizes.

    Args:
        mapping: for all layers; changed.
        fused: the model, what can be fused in one module; changed, but not in what it computes.
        export: folder with the exported program.
        scope: any but `all`.

    Raises:
        EngineError: the scope leaves nothing in float, or everything.
    """
    from torch.ao.quantization import QConfigMapping

    modules = dict(fused.named_modules())
    called = {str(node.target) for node in fused.graph.nodes if node.op == "call_module"}
    left, kept = _paths(export, scope)
    if scope != "dense":
        if not left & called:
            raise EngineError(f"Scope `{scope}` leaves no layer of this model in float; use scope `all`.")
        for path in left & called:
            mapping.set_module_name(path, None)
        return mapping
    if not kept & called:
        raise EngineError(f"Scope `{scope}` finds no layer in this model that it can quantize.")
    limited = QConfigMapping()
    for path in kept & called:
        own = mapping.object_type_qconfigs.get(type(modules[path]), mapping.global_qconfig)
        limited.set_module_name(path, own)
    _set_apart(fused, kept & called)
    return limited


def _set_apart(fused: fx.GraphModule, kept: Collection[str]) -> None:
    """Put a plus sign between a float operation and the integer layers that read it.

    Where an operation reads integers and an integer layer reads the operation, PyTorch makes it an integer
    one, although it was to stay in float, and does not look who else reads it: a float sum then gets
    integers and fails. It knows no integer plus sign, which costs nothing: it returns the tensor itself.
    """
    apart: dict[fx.Node, fx.Node] = {}
    for node in list(fused.graph.nodes):
        if node.op != "call_module" or node.target not in kept:
            continue
        source = node.args[0]
        if source.op == "placeholder" or (source.op == "call_module" and source.target in kept):
            continue
        if source not in apart:
            with fused.graph.inserting_after(source):
                apart[source] = fused.graph.call_function(operator.pos, (source,))
        node.replace_input_with(source, apart[source])
    fused.recompile()


def _paths(export: Path, scope: Scope) -> tuple[set[str], set[str]]:
    """Return paths of modules that a scope leaves in float, and of those whose products it quantizes."""
    import torch

    exported = torch.export.load(export / ARTIFACT_FILES["exported"]).module()
    graph = read_fx(exported)
    left = set(left_in_float(graph, scope))
    path_of = {node.name: _path(node) for node in exported.graph.nodes}
    layers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        if layer.kind != "shape":  # never named by a scope, and at home in any precision
            layers.setdefault(path_of.get(layer.name, ""), []).append(layer)
    return (
        {path for path, own in layers.items() if all(layer.name in left for layer in own)},
        {
            path
            for path, own in layers.items()
            if any(layer.kind in ("conv", "matmul") and layer.name not in left for layer in own)
        },
    )


def _path(node: fx.Node) -> str:
    """Return the path of the innermost module that made a node of an exported program."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path = str(list(stack.values())[-1][0])
    # Exporters wrap the user's module as `model`, to make its outputs flat.
    return path.removeprefix("model").removeprefix(".")


def _has_quantized_layers(quantized: fx.GraphModule) -> bool:
    kinds = {type(module).__module__ for module in quantized.modules()}
    # Reference layers compute in float what no integer kernel was found for.
    return any(".quantized." in kind and ".reference." not in kind for kind in kinds) or any(
        str(node.target).startswith("quantized.") for node in quantized.graph.nodes
    )
