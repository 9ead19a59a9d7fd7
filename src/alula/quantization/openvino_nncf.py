"""NNCF post-training quantization of OpenVINO models, in several variants and scopes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Scope
from alula.errors import EngineError
from alula.graphs import LayerGraph, assign_roles, left_in_float, read_openvino
from alula.hardware import bf16_is_native
from alula.libraries import (
    INSTALL_OPENVINO,
    import_nncf,
    import_openvino,
    openvino_cause,
    openvino_conversion_failures,
)
from alula.quantization.base import Batches, Material

__all__ = ["OpenVinoNncf"]


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """What a variant does otherwise than NNCF's defaults.

    Attributes:
        export_format: what the model is read from.
        full_bias: whether biases are corrected layer by layer, each after those before it.
        mixed: whether activations get a zero point.
    """

    export_format: ExportFormat = "onnx"
    full_bias: bool = False
    mixed: bool = False


_VARIANTS: dict[str | None, _Variant] = {
    None: _Variant(),
    "full-bias": _Variant(full_bias=True),
    "mixed": _Variant(mixed=True),
    "direct": _Variant(export_format="openvino"),
    # The same artifacts; the engine loads them with the rest in BF16.
    "bf16": _Variant(),
    "mixed-bf16": _Variant(mixed=True),
}
_OFFERED: tuple[tuple[str | None, Scope], ...] = (
    (None, "all"),
    (None, "no-edges"),
    (None, "dense"),
    ("full-bias", "all"),
    ("mixed", "all"),
    ("mixed", "dense"),
    ("full-bias", "dense"),
    ("direct", "all"),
    (None, "no-depthwise"),
)
_OFFERED_BF16: tuple[tuple[str | None, Scope], ...] = (
    ("bf16", "all"),
    ("bf16", "dense"),
    ("mixed-bf16", "dense"),
)


class OpenVinoNncf:
    """NNCF's post-training quantization: symmetric, per channel, with bias correction.

    Few of the combinations are offered, since each costs a calibration. The plain one comes first: it was the
    fastest, or as fast as any, for EfficientNet-B0, MobileNetV3, an NFNet and a ViT on a Zen 5 core. Where
    the CPU has bfloat16, the same with the rest in that (`bf16`) comes next, for networks like ViT whose
    norms and activation functions stay in float. Then its dense one, with few layers quantized. Then the
    scopes in the order of their speed. The others are for accuracy:

    - Zero points for activations (`mixed`), without which those of SiLU, nearly all of one sign, use half of
      the range. They cost a little speed.
    - Full bias correction: NNCF's own reference figures for `mobilenetv3_small_050` are 57.9 % top-1 in FP32,
      42.2 % with the fast and 56.7 % with the full one.

    `direct` starts from a conversion that never was ONNX.

    A network with attention is quantized as NNCF's model type `transformer`, which smooths activations into
    weights before (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438), keeps softmax and layer norms in FP32
    and gives activations zero points as `mixed` does.

    A variant or scope that changes nothing for a model is an error, so that nothing is measured twice.
    """

    name = "nncf"
    engine = "openvino"
    install = INSTALL_OPENVINO

    def version(self) -> str:
        """See `Quantizer.version`."""
        return str(import_nncf().__version__)

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        offered = _OFFERED[:1] + (_OFFERED_BF16 if bf16_is_native(isa) else ()) + _OFFERED[1:]
        return tuple(Recipe(self.engine, "int8", self.name, variant, scope) for variant, scope in offered)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return _variant(recipe).export_format

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        nncf, ov = import_nncf(), import_openvino()
        variant = _variant(recipe)
        fixed = isinstance(material.signature.inputs[0].shape[0], int)
        try:
            with _quiet():
                model = _read(ov, material.export / ARTIFACT_FILES[variant.export_format])
                graph = read_openvino(model)
                quantized = nncf.quantize(
                    model,
                    nncf.Dataset(_Items(material.batches, whole=fixed)),
                    subset_size=_count(material.batches, whole=fixed),
                    fast_bias_correction=not variant.full_bias,
                    **_layer_options(nncf, graph, recipe),
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        overflow_fix=nncf.OverflowFix.ENABLE
                        if material.saturating
                        else nncf.OverflowFix.DISABLE
                    ),
                )
            if not any(node.get_type_name() == "FakeQuantize" for node in quantized.get_ops()):
                raise EngineError(
                    f"NNCF finds nothing to quantize in this model for `{recipe}`; use `openvino/fp32`."
                )
            ov.save_model(quantized, artifact / ARTIFACT_FILES["openvino"], compress_to_fp16=False)
        except _failures(nncf) as error:
            raise EngineError(
                f"NNCF cannot quantize this model: {type(error).__name__}: {openvino_cause(error)}"
            ) from error


def _read(ov: Any, path: Path) -> Any:
    """Return a model in OpenVINO's own operations.

    `read_model` leaves an ONNX file's biases behind arithmetic on shapes, and SiLU as two operations. NNCF
    then finds no bias to correct and quantizes between layers that the plug-in would join: EfficientNet-B0
    gets 238 instead of 124 quantized activations, its depthwise convolutions stay in FP32, and it is a third
    slower.
    """
    return ov.convert_model(path) if path.suffix == ".onnx" else ov.Core().read_model(path)


class _Items:
    """Calibration items for NNCF, read anew in each pass: one sample each, a fixed batch as a whole."""

    def __init__(self, batches: Batches, *, whole: bool) -> None:
        self._batches = batches
        self._whole = whole

    def __iter__(self) -> Iterator[tuple[NDArray[np.generic], ...]]:
        for batch in self._batches():
            if self._whole:
                yield batch
            else:
                for index in range(len(batch[0])):
                    yield tuple(array[index : index + 1] for array in batch)


def _count(batches: Batches, *, whole: bool) -> int:
    return sum(1 if whole else len(batch[0]) for batch in batches())


def _layer_options(nncf: Any, graph: LayerGraph, recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `nncf.quantize` that depend on the network's layers.

    Raises:
        EngineError: variant or scope change nothing for this network.
    """
    attends = "attention" in assign_roles(graph).values()
    mixed = _variant(recipe).mixed
    if mixed and attends:
        raise EngineError(
            f"`{recipe}` is the same as the one without `mixed` here: a network with attention always gets "
            "zero points."
        )
    options: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED if mixed or attends else nncf.QuantizationPreset.PERFORMANCE,
        "model_type": nncf.ModelType.TRANSFORMER if attends else None,
    }
    names = left_in_float(graph, recipe.scope)
    if recipe.scope != "all":
        if not names:
            raise EngineError(
                f"Scope `{recipe.scope}` leaves nothing of this model in FP32; `{recipe}` is the same as "
                "without it."
            )
        options["ignored_scope"] = nncf.IgnoredScope(names=list(names))
    return options


def _variant(recipe: Recipe) -> _Variant:
    if recipe.variant not in _VARIANTS:
        known = ", ".join(name for name in _VARIANTS if name)
        raise EngineError(f"`{recipe}`: NNCF has no variant `{recipe.variant}`; known are {known}.")
    return _VARIANTS[recipe.variant]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's log, warnings and progress bars off the screen, and the root logger as it was."""
    import rich

    logger, root, console = logging.getLogger("nncf"), logging.getLogger(), rich.get_console()
    before = logger.level, root.level, console.quiet
    filters, handlers = list(root.filters), list(root.handlers)
    logger.setLevel(logging.ERROR)
    console.quiet = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        # A conversion that fails leaves the root logger with its own level and filters.
        logger.setLevel(before[0])
        root.setLevel(before[1])
        console.quiet = before[2]
        root.filters[:], root.handlers[:] = filters, handlers


def _failures(nncf: Any) -> tuple[type[Exception], ...]:
    return (
        *openvino_conversion_failures(),
        RuntimeError,
        ValueError,
        KeyError,
        IndexError,
        nncf.InternalError,
        nncf.ParameterNotSupportedError,
        nncf.UnsupportedModelError,
        nncf.ValidationError,
    )
