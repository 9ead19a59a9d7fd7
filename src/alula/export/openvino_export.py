"""PyTorch to OpenVINO's intermediate representation without a format in between."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alula.core import Signature, TensorSpec
from alula.errors import ModelError
from alula.libraries import import_openvino, openvino_cause, openvino_conversion_failures

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["export_openvino", "run_openvino"]


def export_openvino(
    module: nn.Module, tensors: tuple[torch.Tensor, ...], signature: Signature, path: Path
) -> None:
    """Write a module as `model.xml` and `model.bin`, its inputs and outputs named and ordered as signed.

    OpenVINO traces the module as TorchScript does, and keeps operations whole that an ONNX export takes
    apart.

    Args:
        module: in eval mode; takes tensors and returns a tuple of tensors.
        tensors: one example (b, ...) per input.
        signature: names, and which sizes are free.
        path: of the `.xml` file; weights go beside it, in FP32.

    Raises:
        EngineUnavailableError: OpenVINO is not installed.
        ModelError: OpenVINO cannot convert the module.
    """
    ov = import_openvino()
    with _logging_kept():
        try:
            shapes = [ov.PartialShape(_sizes(spec)) for spec in signature.inputs]
            model = ov.convert_model(module, example_input=tensors, input=shapes)
            _sign(model, signature)
            ov.save_model(model, path, compress_to_fp16=False)
        except _failures() as error:
            raise ModelError(f"OpenVINO cannot convert this model: {openvino_cause(error)}") from error


def run_openvino(path: Path, samples: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Return outputs of an exported file, in FP32.

    Raises:
        ModelError: OpenVINO cannot run it on these samples.
    """
    ov = import_openvino()
    try:
        # By itself it would start a thread per core of the host, whatever the quota is.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = ov.Core().compile_model(path, "CPU", options)
        return [np.array(value) for value in compiled(tuple(samples)).to_tuple()]
    except RuntimeError as error:
        raise ModelError(
            f"The openvino export fails on a batch that it was not made with: {openvino_cause(error)} It "
            "took something for a constant that depends on the data; keep the model's computation in tensors."
        ) from error


def _sign(model: Any, signature: Signature) -> None:
    """Give the inputs and outputs of a model the names of a signature."""
    if (len(model.inputs), len(model.outputs)) != (len(signature.inputs), len(signature.outputs)):
        raise ModelError(
            f"OpenVINO made a model of {len(model.inputs)} inputs and {len(model.outputs)} outputs; expected "
            f"{len(signature.inputs)} and {len(signature.outputs)}. Use a recipe that goes through ONNX."
        )
    for ports, specs in ((model.inputs, signature.inputs), (model.outputs, signature.outputs)):
        for port, spec in zip(ports, specs, strict=True):
            port.get_tensor().set_names({spec.name})


def _sizes(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Puts back the settings of the root logger, which a conversion that fails leaves changed."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _failures() -> tuple[type[Exception], ...]:
    # The last of them are the model's own, which is traced.
    return (
        *openvino_conversion_failures(),
        *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    )
