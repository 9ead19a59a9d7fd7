"""Quantizers: FP32 export and calibration samples in, INT8 artifact out.

One file each, one line each in the registry below; third parties use the entry-point group
`alula.quantizers`, named `engine/int8-quantizer`.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points

from alula.core import Recipe
from alula.errors import EngineError, UsageError, closest
from alula.quantization.base import Batches, Material, Quantizer
from alula.quantization.work import work_of

__all__ = [
    "Batches",
    "Material",
    "Quantizer",
    "quantizer_for",
    "quantizer_named",
    "quantizer_names",
    "work_of",
]

_BUILT_IN = {
    "onnxruntime/int8-dynamic": "alula.quantization.onnxruntime_dynamic:OnnxRuntimeDynamic",
    "onnxruntime/int8-static": "alula.quantization.onnxruntime_static:OnnxRuntimeStatic",
    "openvino/int8-nncf": "alula.quantization.openvino_nncf:OpenVinoNncf",
    "torch/int8-fx": "alula.quantization.torch_fx:for_torch",
    "torch/int8-eager": "alula.quantization.torch_eager_mode:for_torch",
    "torch/int8-dynamic": "alula.quantization.torch_dynamic:for_torch",
    "torchscript/int8-fx": "alula.quantization.torch_fx:for_torchscript",
    "torchscript/int8-eager": "alula.quantization.torch_eager_mode:for_torchscript",
    "torchscript/int8-dynamic": "alula.quantization.torch_dynamic:for_torchscript",
    "inductor/int8-pt2e": "alula.quantization.inductor_pt2e:InductorPt2e",
}


@functools.cache
def _targets() -> dict[str, str]:
    found = {point.name: point.value for point in entry_points(group="alula.quantizers")}
    return {**found, **_BUILT_IN}


def quantizer_names() -> tuple[str, ...]:
    """Return the names of all registered quantizers, `engine/int8-quantizer`, installed or not.

    >>> "openvino/int8-nncf" in quantizer_names()
    True
    """
    return tuple(_targets())


def quantizer_for(recipe: Recipe) -> Quantizer:
    """Return the quantizer of an INT8 recipe; its library is imported only when it is used.

    Raises:
        UsageError: it is not registered.
        EngineError: a third party's entry point does not lead to a quantizer.
    """
    return quantizer_named(f"{recipe.engine}/{recipe.precision}-{recipe.quantizer}")


def quantizer_named(name: str) -> Quantizer:
    """Return the quantizer of a name such as `openvino/int8-nncf`.

    Raises:
        UsageError: it is not registered.
        EngineError: a third party's entry point does not lead to a quantizer.
    """
    targets = _targets()
    if name not in targets:
        raise UsageError(
            f"There is no quantizer `{name}`; known are {', '.join(targets)}.{closest(name, targets)}"
        )
    module, _, attribute = targets[name].partition(":")
    try:
        quantizer = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise EngineError(f"The entry point of `{name}` ({targets[name]}) fails: {error}") from error
    if not isinstance(quantizer, Quantizer):
        raise EngineError(f"The entry point of `{name}` ({targets[name]}) is no quantizer.")
    return quantizer
