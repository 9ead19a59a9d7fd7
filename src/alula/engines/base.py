"""The engine contract: what a third party writes to add an engine.

An engine turns an artifact (a folder of files) into a session, and a session turns arrays into
arrays. Both are protocols: an engine needs no base class of ours, and a session in a test can be
any object with `run` and `close`. The conformance suite (`tests/conformance`) is the full contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alula.core import ExportFormat, Settings, Signature, TensorSpec
from alula.errors import EngineError

__all__ = ["Arrays", "Engine", "Session", "check_inputs"]

Arrays = tuple[NDArray[np.generic], ...]


class Session(Protocol):
    """A loaded artifact with settings.

    Thread-safe for up to `settings.instances` concurrent callers of `run`; more callers wait or share.
    """

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs of one batch.

        Args:
            inputs: one array per model input, each (b, ...) with the same b >= 1, of the declared
                dtype, C-contiguous. b may be smaller than `settings.batch_size` (a last batch).

        Returns:
            One array per model output, each (b, ...), owned by the caller.

        Raises:
            EngineError: the inputs do not fit, or the engine failed.
        """
        ...

    def close(self) -> None:
        """Free what the session holds. Calling it twice is allowed; `run` afterwards is not."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Loads artifacts of one runtime.

    Attributes:
        name: the engine's part of a recipe name.
        install: command that installs it.
        export_format: the export that its FP32 artifact is made from.
        runs_code: whether loading an artifact executes code from it, so that the user must say that
            the artifact is trusted.
        offered: whether a search tries it without being asked.
    """

    name: str
    install: str
    export_format: ExportFormat
    runs_code: bool
    offered: bool

    def version(self) -> str:
        """Return the installed version.

        Raises:
            EngineUnavailableError: the engine is not installed.
        """
        ...

    def build(self, export: Path, artifact: Path) -> None:
        """Write the FP32 artifact of an export.

        Args:
            export: folder written by an exporter, in `export_format`.
            artifact: empty folder to fill.
        """
        ...

    def load(self, artifact: Path, *, signature: Signature, settings: Settings) -> Session:
        """Return a session that uses no more than `settings.total_threads` threads to compute.

        Raises:
            EngineUnavailableError: the engine is not installed.
            EngineError: the artifact cannot be loaded.
        """
        ...


def check_inputs(engine: str, specs: Sequence[TensorSpec], inputs: Arrays) -> int:
    """Return the batch size of inputs that fit their specs.

    Raises:
        EngineError: wrong number, dtype, rank, fixed size or differing batch sizes.
    """
    if len(inputs) != len(specs):
        raise EngineError(
            f"Engine `{engine}` got {len(inputs)} inputs; expected {len(specs)}: "
            f"{', '.join(spec.name for spec in specs)}. Pass one array per input, in that order."
        )
    batch = inputs[0].shape[0] if inputs[0].ndim else 0
    for spec, array in zip(specs, inputs, strict=True):
        fits = array.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype or array.shape[0] != batch or batch < 1:
            raise EngineError(
                f"Input `{spec.name}` of engine `{engine}` got {array.dtype} of shape {array.shape}; "
                f"expected {spec.dtype} ({', '.join(map(str, spec.shape))}) with one batch size for all "
                f"inputs. Reshape it, or cast it with `.astype(np.{spec.dtype})`."
            )
    return batch
