"""What ONNX Runtime's quantizers share: the model made ready for them, silence, and errors in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.errors import EngineError, EngineUnavailableError
from alula.graphs import name_nodes
from alula.hardware import thread_budget
from alula.libraries import INSTALL_ONNXRUNTIME, import_onnxruntime, onnxruntime_failures

if TYPE_CHECKING:
    import onnx

__all__ = ["one_line_failures", "open_session", "prepare", "require_onnxruntime"]

# The first version whose QuantizeLinear takes a scale per channel (ONNX changelog).
_LEAST_OPSET = 13


def require_onnxruntime() -> str:
    """Return ONNX Runtime's version.

    Raises:
        EngineUnavailableError: it is not installed, or onnx is not, which only its quantizers need.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EngineUnavailableError("onnx", install=INSTALL_ONNXRUNTIME) from error
    return str(import_onnxruntime().__version__)


@contextlib.contextmanager
def one_line_failures() -> Iterator[None]:
    """Turn what ONNX Runtime's quantizers raise into one line, and keep what they print off the screen.

    Silences all logging while it lasts: they advise their own developers on the root logger.

    Raises:
        EngineError: something inside failed.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except _failures() as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise EngineError(
            f"ONNX Runtime cannot quantize this model: {type(error).__name__}: {lines[0][:300]}"
        ) from error
    finally:
        logging.disable(disabled)


def _failures() -> tuple[type[Exception], ...]:
    import onnx
    import onnx.version_converter
    from google.protobuf.message import DecodeError, EncodeError

    return (
        *onnxruntime_failures(),
        TypeError,
        AttributeError,
        LookupError,
        AssertionError,
        OSError,
        DecodeError,
        EncodeError,
        onnx.version_converter.ConvertError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    )


def prepare(path: Path, scratch: Path) -> onnx.ModelProto:
    """Return a model as the quantizers want it: constants folded, shapes known, every node named.

    These are the steps of ONNX Runtime's `quant_pre_process` without symbolic shape inference, which is for
    transformers and fails on some convolutional graphs. That function itself takes all cores of the host and
    prints a failure instead of raising it.

    Args:
        path: of the model.
        scratch: folder for intermediate files.
    """
    import onnx
    import onnxruntime as ort
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    opsets = [
        each.version for each in onnx.load(path, load_external_data=False).opset_import if not each.domain
    ]
    if opsets and opsets[0] < _LEAST_OPSET:
        converted = onnx.version_converter.convert_version(onnx.load(path), _LEAST_OPSET)
        path = scratch / "converted.onnx"
        onnx.save(converted, path)
    folded = scratch / "folded.onnx"
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = load_model_with_shape_infer(folded)
    # Exporters note shapes of weights too, and the quantizers transpose weights without changing the note.
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.value_info if value.name in stored]:
        model.graph.value_info.remove(value)
    name_nodes(model)
    return model


def open_session(model: onnx.ModelProto) -> Any:
    """Return an ONNX Runtime session that computes a model as it is and gives memory back after each run."""
    import onnxruntime as ort

    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _options() -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    # The budget that other quantizers' libraries take from the environment.
    given = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(given) if given.isdecimal() and int(given) else thread_budget()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
