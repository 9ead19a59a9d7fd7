"""Exporters: a module and real samples in, a graph in one format out, checked against the module."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alula.core import ARTIFACT_FILES, ExportFormat, Signature, TensorSpec, largest_difference
from alula.errors import EngineUnavailableError, ModelError
from alula.export.openvino_export import export_openvino, run_openvino
from alula.export.rewrites import rewritten
from alula.libraries import copies, import_onnxruntime, onnxruntime_failures, with_flat_outputs

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "Exported",
    "copy_onnx",
    "export_module",
    "external_files",
    "signature_of_module",
    "signature_of_onnx",
]

MAX_DIFFERENCE = 1e-4
# A network that enlarges the rounding of its own float32 differs by more from any other order of its sums. So
# many times that rounding is allowed, but never what a wrong constant or batch size makes.
_ROUNDINGS = 10
# Whatever the Python of a model raises for what it did not expect, such as sizes that are symbols.
_MODEL_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
_LARGEST_ALLOWED = 1e-2
ONNX_OPSET = 18


class Exported:
    """What an export produced: its signature and what was rewritten on the way."""

    def __init__(self, signature: Signature, notes: tuple[str, ...]) -> None:
        self.signature = signature
        self.notes = notes


def export_module(
    module: nn.Module,
    samples: Sequence[NDArray[np.generic]],
    *,
    target: ExportFormat,
    folder: Path,
) -> Exported:
    """Write a module as a graph with a dynamic batch axis, rewritten and checked on real samples.

    Args:
        module: in eval mode; not changed.
        samples: one array (b, ...) per input, b >= 2, real data.
        target: `onnx`, `exported`, `torchscript` or `openvino`.
        folder: existing folder; the file is named by `ARTIFACT_FILES`.

    Returns:
        The signature, and the rewrites in words.

    Raises:
        ModelError: the module cannot be exported, or the export differs from it by more than 1e-4 of
            the output scale, and by more than ten times what float32 does to the module.
        EngineUnavailableError: what writes the target is not installed.
    """
    import torch

    if target not in ARTIFACT_FILES:
        raise ModelError(f"A module cannot be exported as `{target}`; use {', '.join(ARTIFACT_FILES)}.")
    plain, notes = rewritten(module, samples)
    tensors = tuple(torch.from_numpy(np.array(sample)) for sample in samples)
    wrapped = with_flat_outputs(plain)
    # Another batch than the exporter saw, of another size: a value or a batch size that tracing took for a
    # constant shows as a difference.
    others = tuple(np.concatenate([sample[::-1], sample[:1]]) for sample in samples)
    checks = tuple(torch.from_numpy(other) for other in others)
    with torch.no_grad():
        outputs = plain(*copies(tensors))
        references = [tensor.numpy().copy() for tensor in wrapped(*copies(checks))]
    signature = _signature(module, samples, outputs)
    path = folder / ARTIFACT_FILES[target]

    def check(got: Sequence[NDArray[Any]]) -> None:
        difference = largest_difference(references, got)
        if not difference <= MAX_DIFFERENCE:
            _refuse(target, difference, rounding=_rounding(wrapped, checks, references))

    if target == "onnx":
        _export_onnx(wrapped, copies(tensors), signature, path)
        check(_run_onnx(path, signature, others))
    elif target == "exported":
        program = _export_program(wrapped, copies(tensors))
        torch.export.save(program, path)
        reloaded = torch.export.load(path).module()
        check(_run_torch(target, reloaded, checks))
    elif target == "torchscript":
        _export_torchscript(wrapped, copies(tensors), path)
        with _quiet():
            reloaded = torch.jit.load(str(path))
            check(_run_torch(target, reloaded, checks))
    elif target == "openvino":
        with _quiet():
            export_openvino(wrapped, copies(tensors), signature, path)
        check(run_openvino(path, others))
    return Exported(signature, notes)


def signature_of_module(module: nn.Module, samples: Sequence[NDArray[np.generic]]) -> Signature:
    """Return the names, dtypes and shapes of a module's inputs and outputs, the first axis dynamic.

    Args:
        module: in eval mode.
        samples: one array (b, ...) per input, b >= 2.

    Raises:
        ModelError: the module fails on the samples, or an output does not start with the batch axis.
    """
    import torch

    tensors = [torch.from_numpy(np.array(sample)) for sample in samples]
    with torch.no_grad():
        try:
            outputs = module(*tensors)
        except _MODEL_FAILURES as error:
            shapes = ", ".join(f"{sample.dtype} {sample.shape}" for sample in samples)
            advice = (
                "Export it with a batch axis of any size: `dynamic_shapes=({0: torch.export.Dim('b')},)`."
                if "size()[0]" in str(error)
                else "Check that the input description gives the shape that the model was trained on."
            )
            raise ModelError(
                f"The model fails on real samples ({shapes}): {_short(error)} {advice}"
            ) from error
    return _signature(module, samples, outputs)


def _signature(module: nn.Module, samples: Sequence[NDArray[np.generic]], outputs: object) -> Signature:
    import torch
    from torch.utils import _pytree as pytree

    names = _argument_names(module)
    if len(names) < len(samples):
        names = [f"input_{index}" for index in range(len(samples))]
    flat = [
        (path, leaf) for path, leaf in pytree.tree_leaves_with_path(outputs) if isinstance(leaf, torch.Tensor)
    ]
    batch = samples[0].shape[0]
    inputs = tuple(
        TensorSpec(name, str(sample.dtype), ("b", *sample.shape[1:]))
        for name, sample in zip(names, samples, strict=False)
    )
    specs = []
    for index, (path, leaf) in enumerate(flat):
        if leaf.ndim == 0 or leaf.shape[0] != batch:
            raise ModelError(
                f"Output {index} of the model got shape {tuple(leaf.shape)} for a batch of {batch}; expected "
                "the batch as its first axis. Wrap the model so that each output starts with the batch."
            )
        specs.append(TensorSpec(_output_name(path, index), str(leaf.numpy().dtype), ("b", *leaf.shape[1:])))
    if not specs:
        raise ModelError("The model returned no tensor; expected at least one output tensor.")
    return Signature(inputs, _distinct(specs, {spec.name for spec in inputs}))


def _argument_names(module: nn.Module) -> list[str]:
    """Return the names of what `forward` takes by position; none where it does not tell."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # of a TorchScript file
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def _output_name(path: Sequence[Any], index: int) -> str:
    from torch.utils import _pytree as pytree

    key = path[-1] if path else None
    if isinstance(key, pytree.MappingKey) and isinstance(key.key, str):
        return key.key
    return "output" if not path else f"output_{index}"


def _distinct(specs: list[TensorSpec], taken: set[str]) -> tuple[TensorSpec, ...]:
    result = []
    for index, spec in enumerate(specs):
        name = spec.name if spec.name not in taken else f"{spec.name}_{index}_out"
        taken.add(name)
        result.append(TensorSpec(name, spec.dtype, spec.shape))
    return tuple(result)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps exporters' advice to their own developers, and graphs they print, off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export_program(wrapped: nn.Module, tensors: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    import torch

    batch = torch.export.Dim("b")
    dynamic = {"inputs": tuple({0: batch} for _ in tensors)}
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(wrapped, tensors, dynamic_shapes=dynamic, strict=False)
        except _torch_export_failures() as error:
            raise ModelError(f"torch.export cannot export this model: {_short(error)}") from error


def _torch_export_failures() -> tuple[type[Exception], ...]:
    import torch
    from torch._export.verifier import SpecViolationError  # of TorchScript files, whose weights are hidden

    return (*_MODEL_FAILURES, torch._dynamo.exc.TorchDynamoException, SpecViolationError)


def _export_onnx(
    wrapped: nn.Module, tensors: tuple[torch.Tensor, ...], signature: Signature, path: Path
) -> None:
    import torch

    inputs = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]
    try:
        program = _export_program(wrapped, tensors)
        with _quiet():
            exported = torch.onnx.export(
                program,
                tensors,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                opset_version=ONNX_OPSET,
                verbose=False,
            )
            exported.save(path)
    except (ModelError, torch.onnx.OnnxExporterError) as first:
        # Data-dependent Python in `forward` stops torch.export; tracing follows the sample's way through.
        axes = {name: {0: "b"} for name in [*inputs, *outputs]}
        try:
            with _quiet(), torch.no_grad():
                torch.onnx.export(
                    _traceable(wrapped, tensors),
                    tensors,
                    str(path),
                    dynamo=False,
                    input_names=inputs,
                    output_names=outputs,
                    opset_version=ONNX_OPSET,
                    dynamic_axes=axes,
                )
        except (*_MODEL_FAILURES, torch.onnx.OnnxExporterError) as second:
            raise ModelError(
                f"The model cannot be exported to ONNX: {_short(first)} By tracing: {_short(second)}"
            ) from second


def _traceable(wrapped: nn.Module, tensors: tuple[torch.Tensor, ...]) -> nn.Module:
    """Return a module that the ONNX exporter can trace: it cannot by itself look into TorchScript files."""
    import torch

    if not any(isinstance(module, torch.jit.ScriptModule) for module in wrapped.modules()):
        return wrapped
    return torch.jit.trace(wrapped, copies(tensors), check_trace=False)


def _run_onnx(
    path: Path, signature: Signature, samples: Sequence[NDArray[np.generic]]
) -> Sequence[NDArray[np.generic]]:
    """Return outputs of an ONNX file by ONNX Runtime, or by ONNX's own slow reference without it."""
    feeds = {spec.name: np.asarray(x) for spec, x in zip(signature.inputs, samples, strict=True)}
    names = [spec.name for spec in signature.outputs]
    try:
        onnxruntime = import_onnxruntime()
    except EngineUnavailableError:
        import onnx
        from onnx.reference import ReferenceEvaluator

        reference: Sequence[NDArray[np.generic]] = ReferenceEvaluator(onnx.load(path)).run(names, feeds)
        return reference
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is raised; it need not be printed as well
    # By itself it would start a thread per core of the host, whatever the quota is.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs: Sequence[NDArray[np.generic]] = session.run(names, feeds)
    except onnxruntime_failures() as error:
        raise _unlike("onnx", error) from error
    return outputs


def _export_torchscript(wrapped: nn.Module, tensors: tuple[torch.Tensor, ...], path: Path) -> None:
    import torch

    with _quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(wrapped, tensors, check_trace=False)
        except _MODEL_FAILURES as error:
            raise ModelError(f"TorchScript cannot trace this model: {_short(error)}") from error
        torch.jit.freeze(traced.eval()).save(str(path))


def _run_torch(
    target: str, program: Callable[..., Any], tensors: tuple[torch.Tensor, ...]
) -> Sequence[NDArray[np.generic]]:
    import torch

    with torch.no_grad():
        try:
            outputs = program(*copies(tensors))
        except _MODEL_FAILURES as error:
            raise _unlike(target, error) from error
    return [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _unlike(target: str, error: BaseException) -> ModelError:
    return ModelError(
        f"The {target} export fails on a batch that it was not made with: {_short(error)} The exporter took "
        "something for a constant that depends on the data; keep the model's computation in tensors."
    )


def _rounding(
    module: nn.Module, checks: Sequence[torch.Tensor], references: Sequence[NDArray[Any]]
) -> float | None:
    """Return how far a module in float32 is from itself in float64, by `largest_difference`.

    None where it does not run in float64.

    Args:
        module: in eval mode; not changed.
        checks: its inputs.
        references: what it gives for them in float32.
    """
    import torch

    with torch.no_grad():
        try:
            exact = copy.deepcopy(module).double()(
                *(check.double() if check.is_floating_point() else check for check in checks)
            )
        except (RuntimeError, TypeError, ValueError):  # a type that is said inside the module
            return None
    found = largest_difference([tensor.numpy() for tensor in exact], references)
    return found if math.isfinite(found) else None


def _refuse(target: str, difference: float, *, rounding: float | None) -> None:
    """Raise what an export's difference means, unless the module's own rounding explains it."""
    allowed = MAX_DIFFERENCE if rounding is None else max(MAX_DIFFERENCE, _ROUNDINGS * rounding)
    allowed = min(allowed, _LARGEST_ALLOWED)
    if not difference <= allowed:
        raise ModelError(
            f"The {target} export differs from the module by {difference:.2g} of the output scale on a "
            f"batch of real samples; expected at most {allowed:.2g}. The exporter got this model wrong: "
            "it may have taken something for a constant that depends on the data."
        )


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def copy_onnx(path: Path, target: Path) -> None:
    """Copy an ONNX file; weights that it keeps in other files go into the copy.

    Raises:
        ModelError: it cannot be read, or is larger than the 2 GiB that one ONNX file may have.
    """
    import onnx

    try:
        onnx.save_model(onnx.load(path), target)
    except _onnx_read_failures() as error:
        raise ModelError(f"{path} cannot be read as one ONNX file: {_short(error)}") from error


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside an ONNX file in which it keeps weights; none for a file that cannot be read."""
    try:
        import onnx
    except ImportError:
        return ()
    try:
        initializers = onnx.load(path, load_external_data=False).graph.initializer
    except _onnx_read_failures():
        return ()
    names = {
        entry.value for tensor in initializers for entry in tensor.external_data if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names) if (path.parent / name).is_file())


def signature_of_onnx(path: Path) -> Signature:
    """Return the inputs and outputs of an ONNX file; named sizes stay names, and the first is `b`.

    Raises:
        ModelError: the file cannot be read, or an input has no tensor type.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except _onnx_read_failures() as error:
        raise ModelError(f"{path} is no readable ONNX file: {_short(error)}") from error
    initializers = {tensor.name for tensor in graph.initializer}
    return Signature(
        tuple(_onnx_spec(value) for value in graph.input if value.name not in initializers),
        tuple(_onnx_spec(value) for value in graph.output),
    )


def _onnx_read_failures() -> tuple[type[Exception], ...]:
    from google.protobuf.message import DecodeError

    return (OSError, ValueError, RuntimeError, DecodeError)


def _onnx_spec(value: Any) -> TensorSpec:
    import onnx

    if value.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"`{value.name}` of the ONNX file is no tensor; expected tensors in and out.")
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    sizes: list[int | str] = []
    for index, axis in enumerate(tensor.shape.dim):
        if axis.HasField("dim_value") and axis.dim_value > 0:
            sizes.append(int(axis.dim_value))
        else:
            sizes.append("b" if index == 0 else axis.dim_param or f"axis_{index}")
    return TensorSpec(value.name, str(dtype), tuple(sizes))
