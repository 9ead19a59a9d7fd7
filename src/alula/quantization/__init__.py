"""Quantizers: FP32 export and calibration samples in, INT8 artifact out.

One file each, one line each in the registry below; third parties use the entry-point group
`alula.quantizers`, named `engine/int8-quantizer`.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points

from alula.errors import EngineError, UsageError, closest
from alula.quantization.base import Batches, Quantizer

__all__ = ["Batches", "Quantizer", "quantizer_for", "quantizer_names"]

_BUILT_IN = {
    "onnxruntime/int8-static": "alula.quantization.onnxruntime_static:OnnxRuntimeStatic",
    "openvino/int8-nncf": "alula.quantization.openvino_nncf:OpenVinoNncf",
    "openvino/int8-dense": "alula.quantization.openvino_nncf:OpenVinoNncfDense",
}


@functools.cache
def _targets() -> dict[str, str]:
    found = {point.name: point.value for point in entry_points(group="alula.quantizers")}
    return {**found, **_BUILT_IN}


def quantizer_names() -> tuple[str, ...]:
    """Return the recipe names of all registered quantizers, installed or not.

    >>> "openvino/int8-nncf" in quantizer_names()
    True
    """
    return tuple(_targets())


def quantizer_for(recipe: str) -> Quantizer:
    """Return the quantizer of an INT8 recipe; its library is imported only when it is used.

    Raises:
        UsageError: no such recipe is registered.
        EngineError: a third party's entry point does not lead to a quantizer.
    """
    targets = _targets()
    if recipe not in targets:
        raise UsageError(
            f"There is no INT8 recipe `{recipe}`; known are {', '.join(targets)}.{closest(recipe, targets)}"
        )
    module, _, attribute = targets[recipe].partition(":")
    try:
        quantizer = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise EngineError(f"The entry point of `{recipe}` ({targets[recipe]}) fails: {error}") from error
    if not isinstance(quantizer, Quantizer):
        raise EngineError(f"The entry point of `{recipe}` ({targets[recipe]}) is no quantizer.")
    return quantizer
