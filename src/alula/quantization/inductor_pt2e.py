"""PT2E quantization of exported programs for TorchInductor, by torchao."""

from __future__ import annotations

import contextlib
import logging
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Scope
from alula.errors import EngineError, EngineUnavailableError
from alula.graphs import left_in_float, read_fx
from alula.libraries import copies
from alula.quantization.base import Material
from alula.quantization.torch_artifacts import (
    MAX_DIFFERENCE,
    another,
    calibrate,
    example_of,
    largest_difference,
    leaves,
    one_line_failures,
)

if TYPE_CHECKING:
    import torch
    from torch import fx

__all__ = ["InductorPt2e"]

_SCOPES: tuple[Scope, ...] = ("all", "dense", "no-edges")
_ANNOTATION = "quantization_annotation"  # where PT2E's quantizers tell what is to be done with a node
_EXAMPLES = 2  # samples: a batch of one would be taken for a constant


class InductorPt2e:
    """Static quantization as TorchInductor's integer kernels for x86 want it.

    Activations are unsigned, with ranges from histograms; weights are signed, per output channel.
    Convolutions and linear layers are quantized, and sums and concatenations between them; maximum pools
    are not. So without depthwise convolutions little but the dense layers is left, and that scope is not
    offered. The artifact is an exported program with conversions around the layers, which the engine fuses
    with them when it compiles.
    """

    name = "pt2e"
    engine = "inductor"
    install = "pip install 'alula[torchao]'"

    def version(self) -> str:
        """See `Quantizer.version`."""
        try:
            with _quiet():
                import torchao
        except ImportError as error:
            raise EngineUnavailableError("torchao", install=self.install) from error
        return str(torchao.__version__)

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        if "avx2" not in isa:
            return ()
        return tuple(Recipe(self.engine, "int8", self.name, None, scope) for scope in _SCOPES)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "exported"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        path = artifact / ARTIFACT_FILES["exported"]
        with _quiet(), one_line_failures("PT2E cannot quantize this model"):
            import torch

            prepare_pt2e, convert_pt2e, x86 = _torchao_parts()
            module = _read(material.export / ARTIFACT_FILES["exported"])
            left = left_in_float(read_fx(module), recipe.scope)
            with torch.no_grad():
                prepared = prepare_pt2e(
                    module, _quantizer(x86, frozenset(left), recipe.scope, saturating=material.saturating)
                )
                calibrate(prepared, material.batches)
                _save(convert_pt2e(prepared), path, material)


def _read(path: Path) -> fx.GraphModule:
    """Return the module of an exported program.

    Raises:
        ValueError: it is none.
    """
    import torch

    try:
        return torch.export.load(path).module()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no exported program ({error}).") from error


def _torchao_parts() -> tuple[Any, Any, Any]:
    """Return torchao's `prepare_pt2e` and `convert_pt2e`, and the module of its quantizer for x86.

    Raises:
        EngineError: this torchao lacks them, or does not go with this PyTorch.
    """
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"This torchao has no PT2E quantization for x86 ({error}); expected torchao 0.18 or one like it."
        ) from error
    return prepare_pt2e, convert_pt2e, x86_inductor_quantizer


def _quantizer(x86: Any, left: frozenset[str], scope: Scope, *, saturating: bool) -> Any:
    """Return torchao's quantizer for x86, made to leave nodes alone.

    Args:
        x86: the module of that quantizer.
        left: names of nodes.
        scope: by which they are left.
        saturating: whether activations must leave one bit unused.
    """

    class Scoped(x86.X86InductorQuantizer):  # type: ignore[misc]  # torchao is untyped
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            super().annotate(model)
            quantized = [node for node in model.graph.nodes if _reads_integers(node)]
            for node in quantized:
                if node.name in left:
                    del node.meta[_ANNOTATION]
            kept = [node for node in quantized if _reads_integers(node)]
            if not kept:
                raise EngineError(f"PT2E finds no layer of this model to quantize in scope `{scope}`.")
            if scope != "all" and len(kept) == len(quantized):
                raise EngineError(
                    f"Scope `{scope}` leaves nothing in float that PT2E would quantize; use scope `all`."
                )
            return model

    import torch

    config = x86.get_default_x86_inductor_quantization_config(reduce_range=saturating)
    # Compiled code has to ask PyTorch for integer pooling, and then only one instance computes at a time.
    return Scoped().set_global(config).set_function_type_qconfig(torch.nn.functional.max_pool2d, None)


def _reads_integers(node: fx.Node) -> bool:
    annotation = node.meta.get(_ANNOTATION)
    return annotation is not None and bool(annotation.input_qspec_map)


def _save(quantized: fx.GraphModule, path: Path, material: Material) -> None:
    """Write a quantized module as an exported program that is known to come back as it was.

    Raises:
        EngineError: it does not.
    """
    import torch

    _forget_unread(quantized)

    class FlatOutputs(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.model = quantized

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return leaves(self.model(*inputs))

    example = example_of(material)
    is_open = isinstance(material.signature.inputs[0].shape[0], str)
    if is_open:
        example = tuple(tensor.repeat_interleave(_EXAMPLES, dim=0)[:_EXAMPLES] for tensor in example)
    batch = {0: torch.export.Dim("b")} if is_open else {}
    other = another(example, material)
    expected = leaves(quantized(*copies(other)))
    program = torch.export.export(
        FlatOutputs(), copies(example), dynamic_shapes={"inputs": tuple(batch for _ in example)}, strict=False
    )
    torch.export.save(program, path)
    reloaded = torch.export.load(path).module()
    difference = largest_difference(expected, leaves(reloaded(*copies(other))))
    if not difference <= MAX_DIFFERENCE:
        path.unlink()
        raise EngineError(
            f"The quantized program does not survive being saved: outputs differ by {difference:.2g} of "
            f"their scale; expected at most {MAX_DIFFERENCE:g}."
        )


def _forget_unread(module: fx.GraphModule) -> None:
    """Remove the float weights that integers took the place of; they would be saved too."""
    from torch import fx

    read = {
        ".".join(filter(None, (place, str(node.target))))
        for place, part in module.named_modules()
        if isinstance(part, fx.GraphModule)
        for node in part.graph.nodes
        if node.op == "get_attr"
    }
    held = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    for name, _ in held:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what PyTorch and torchao tell their own developers off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch", "torchao")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
