"""The engine contract: what a third party writes to add an engine.

An engine turns an artifact (a folder of files) into a session, and a session turns arrays into
arrays. Both are protocols: an engine needs no base class of ours, and a session in a test can be
any object with `run` and `close`. The conformance suite (`tests/conformance`) is the full contract.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alula.core import ExportFormat, Recipe, Scalar, Settings, Signature, TensorSpec
from alula.errors import EngineError

__all__ = ["Arrays", "Engine", "Knobs", "Session", "check_inputs", "check_knobs"]

Arrays = tuple[NDArray[np.generic], ...]
Knobs = dict[str, Scalar]


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
        runs_code: whether loading an artifact executes code from it, so that the user must say that
            the artifact is trusted.
        offered: whether a search tries it without being asked.
    """

    name: str
    install: str
    runs_code: bool
    offered: bool

    def version(self) -> str:
        """Return the installed version.

        Raises:
            EngineUnavailableError: the engine is not installed.
        """
        ...

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """Return the recipes without a quantizer that can be fast on a CPU, the plain one first.

        Args:
            isa: instruction sets of the CPU, named as in `alula.hardware.Cpu.isa`.
        """
        ...

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """Return the export that the artifact of one of `recipes` is made from."""
        ...

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """Return knobs worth a try with a recipe (INT8 ones too) at settings, beside the engine's defaults.

        The most promising come first; each is what `Settings.knobs` would hold. None changes results
        beyond rounding.
        """
        ...

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """Write the artifact of one of `recipes`.

        Args:
            export: folder written by an exporter, in the recipe's export format.
            artifact: empty folder to fill.
            recipe: which one.

        Raises:
            EngineUnavailableError: the engine is not installed.
            EngineError: the artifact cannot be made.
        """
        ...

    def load(self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings) -> Session:
        """Return a session that uses no more than `settings.total_threads` threads to compute.

        Args:
            artifact: folder filled by `build`, or by a quantizer for this engine.
            recipe: by which it was made.
            signature: the model's inputs and outputs.
            settings: knobs that the engine does not know are an error.

        Raises:
            EngineUnavailableError: the engine is not installed.
            EngineError: the artifact cannot be loaded.
        """
        ...


def check_knobs(engine: str, settings: Settings, known: Collection[str]) -> None:
    """Check that settings hold no knob that an engine does not know.

    Raises:
        EngineError: they do.
    """
    unknown = sorted(set(settings.knobs) - set(known))
    if unknown:
        raise EngineError(
            f"Engine `{engine}` has no knob `{unknown[0]}`; known are {', '.join(sorted(known)) or 'none'}."
        )


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
