"""A scripted engine: known outputs, known latency, faults on demand. For tests of everything above it."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from alula.core import ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs
from alula.errors import EngineError

__all__ = ["SCRIPT_VARIABLE", "FakeEngine", "FakeScript"]

SCRIPT_VARIABLE = "ALULA_FAKE_ENGINE"
"""Environment variable with JSON: a `FakeScript` for each recipe by its name, for artifacts built in this
process tree. A recipe that is not named does as the model."""


class FakeScript(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the fake engine does.

    Attributes:
        scale: every output is the first input's flattened leading values times this.
        seconds_per_batch: time spent in each call, asleep, as an engine without the GIL would be.
        fault: what goes wrong: `error` raises, `exit` ends the process, `hang` never returns,
            `memory` allocates without end, `nan` returns NaN, `full` meets a full disk.
        fault_at: where: `build`, `load`, or `run`.
        fault_after: calls of `run` that go well before the fault.
    """

    scale: float = 1.0
    seconds_per_batch: float = 0.0
    fault: Literal["error", "exit", "hang", "memory", "nan", "full"] | None = None
    fault_at: Literal["build", "load", "run"] = "run"
    fault_after: int = 0


class FakeEngine:
    """See the module."""

    name = "fake"
    install = "pip install alula"
    runs_code = False
    offered = False

    def version(self) -> str:
        """See `Engine.version`."""
        return "1"

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        return (Recipe(self.name, "fp32"),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "onnx"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the script is the artifact."""
        scripts = msgspec.json.decode(os.environ.get(SCRIPT_VARIABLE, "{}"), type=dict[str, FakeScript])
        script = scripts.get(recipe.name, FakeScript())
        if script.fault_at == "build":
            _misbehave(script)
        (artifact / "fake.json").write_bytes(msgspec.json.encode(script))

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> FakeSession:
        """See `Engine.load`."""
        try:
            script = msgspec.json.decode((artifact / "fake.json").read_bytes(), type=FakeScript)
        except (OSError, msgspec.MsgspecError) as error:
            raise EngineError(f"{artifact} holds no fake script: {error}") from error
        if script.fault_at == "load":
            _misbehave(script)
        return FakeSession(script, signature)


class FakeSession:
    """Scripted outputs. Thread-safe."""

    def __init__(self, script: FakeScript, signature: Signature) -> None:
        self._script = script
        self._signature = signature
        self._calls = 0
        self._lock = threading.Lock()

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        batch = check_inputs("fake", self._signature.inputs, inputs)
        with self._lock:
            self._calls += 1
            due = self._script.fault_at == "run" and self._calls > self._script.fault_after
        if due:
            _misbehave(self._script)
        if self._script.seconds_per_batch:
            time.sleep(self._script.seconds_per_batch)
        flat = inputs[0].reshape(batch, -1).astype(np.float64) * self._script.scale
        outputs = []
        for spec in self._signature.outputs:
            sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
            count = int(np.prod(sizes))
            output = np.resize(flat, (batch, count)) if flat.shape[1] < count else flat[:, :count]
            if due and self._script.fault == "nan":
                output = np.full_like(output, np.nan)
            outputs.append(output.reshape(batch, *sizes).astype(spec.dtype))
        return tuple(outputs)

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""


def _misbehave(script: FakeScript) -> None:
    if script.fault == "error":
        raise EngineError("The fake engine failed, as its script says.")
    if script.fault == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if script.fault == "exit":
        os._exit(41)
    if script.fault == "hang":
        threading.Event().wait()
    if script.fault == "memory":
        hoard = []
        while True:
            hoard.append(np.ones(16 * 2**20, np.uint8))
