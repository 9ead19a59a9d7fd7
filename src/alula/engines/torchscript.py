"""TorchScript: a traced module, frozen where it is loaded."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_knobs
from alula.engines.torch_eager import (
    TorchSession,
    first_line,
    load_torchscript,
    packing_for,
    thread_settings,
)
from alula.engines.torch_graphs import (
    CHANNELS_LAST,
    compute_in_bf16,
    put_channels_last,
    with_images_innermost,
    with_wide_outputs,
)
from alula.errors import EngineError
from alula.hardware import bf16_is_native
from alula.libraries import INSTALL_TORCH, require_torch

if TYPE_CHECKING:
    import torch

__all__ = ["TorchScriptEngine"]

_ONEDNN_GRAPH = "onednn_graph"
# The first call is profiled, the second compiled, the third runs as all later ones.
_RUNS_UNTIL_FUSED = 3
_fusion_lock = threading.Lock()


class TorchScriptEngine:
    """TorchScript on a traced module; freezing, layout, precision and fusion happen when it is loaded.

    Plain `fp32` goes through `optimize_for_inference`, which packs weights for oneDNN's blocked layouts.
    `channels-last` and INT8 are frozen only: the blocked layouts would be converted to and from at every
    layer that is not a float convolution (mobilenetv3_large_100 with its dense layers in INT8: 53 ms a batch
    with that pass, 19 ms without). `bf16` computes convolutions and matrix products in bfloat16 and is
    offered in channels-last only, in which none of six networks was slower.

    The knob `onednn_graph` has oneDNN compile whole chains of float operations for one batch size; other
    sizes are right and as fast as without. Against plain `fp32`, one thread of an EPYC with AVX512_BF16:
    regnety_002 1.5 times as fast, vit_tiny 1.9, eca_nfnet_l0 a seventh.
    """

    name = "torchscript"
    install = INSTALL_TORCH
    runs_code = True
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return require_torch()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        wide = (Recipe(self.name, "fp32"), Recipe(self.name, "fp32", None, CHANNELS_LAST))
        narrow = (Recipe(self.name, "bf16", None, CHANNELS_LAST),)
        return wide + (narrow if bf16_is_native(isa) else ())

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "torchscript"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return () if recipe.precision == "int8" else ({_ONEDNN_GRAPH: True},)

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the traced module is the artifact.

        What `load` does to it packs weights for the running CPU and cannot be saved.
        """
        shutil.copy2(export / ARTIFACT_FILES["torchscript"], artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> TorchSession:
        """See `Engine.load`."""
        check_knobs(self.name, settings, () if recipe.precision == "int8" else (_ONEDNN_GRAPH,))
        fusing = bool(settings.knobs.get(_ONEDNN_GRAPH, False))
        path = artifact / ARTIFACT_FILES["torchscript"]
        require_torch()
        with thread_settings(settings.threads), packing_for(recipe):
            module = load_torchscript(path)
            with _one_line(f"{path} cannot be prepared for `{recipe}`"):
                call = _prepared(module, recipe, fusing=fusing)
        session = TorchSession(self.name, call, signature=signature, settings=settings)
        if fusing:
            _fuse(session, signature, settings)
        return session


def _prepared(module: torch.jit.ScriptModule, recipe: Recipe, *, fusing: bool) -> Callable[..., object]:
    import torch

    frozen = torch.jit.freeze(module)
    call: Callable[..., object] = frozen
    if recipe.precision != "int8" and recipe.variant == CHANNELS_LAST:
        put_channels_last(frozen.graph)
        call = with_images_innermost(call)
    elif recipe.precision == "fp32" and not fusing:
        call = torch.jit.optimize_for_inference(frozen)
    if recipe.precision == "bf16":
        compute_in_bf16(frozen.graph)
        call = with_wide_outputs(call)
    return call


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated as a whole; the user chose neither it nor its replacement.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except (RuntimeError, ValueError, AttributeError) as error:
        raise EngineError(f"{what}: {first_line(error)}") from error


def _fuse(session: TorchSession, signature: Signature, settings: Settings) -> None:
    """Run a session until it is compiled, with oneDNN's graph compiler switched on for that time.

    The switch is the process's; a compiled module keeps what it got.
    """
    import torch

    example = _example(signature, settings.batch_size)
    with _fusion_lock, _one_line("oneDNN's graph compiler cannot compile this model"):
        before = torch.jit.onednn_fusion_enabled()
        torch.jit.enable_onednn_fusion(True)
        try:
            for _ in range(_RUNS_UNTIL_FUSED):
                session.run(example)
            session.forget_example()
        finally:
            torch.jit.enable_onednn_fusion(before)


def _example(signature: Signature, batch_size: int) -> Arrays:
    arrays = []
    for spec in signature.inputs:
        sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
        if len(sizes) < len(spec.shape) - 1:
            raise EngineError(
                f"Knob `{_ONEDNN_GRAPH}` of engine `torchscript` compiles for known sizes; input `{spec}` "
                "leaves some open. Load it without the knob."
            )
        batch = spec.shape[0] if isinstance(spec.shape[0], int) else batch_size
        arrays.append(np.zeros((batch, *sizes), spec.dtype))
    return tuple(arrays)
