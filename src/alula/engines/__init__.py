"""Engines: what runs a graph. One file each, one line each in the registry below.

Third parties add an engine through the entry-point group `alula.engines`; the entry point's name is
the engine's name and it points at a class without constructor arguments that follows `Engine`.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points

from alula.engines.base import Arrays, Engine, Knobs, Session, check_inputs, check_knobs
from alula.engines.batching import filled, filled_up, run_in_batches
from alula.errors import EngineError, UsageError, closest

__all__ = [
    "Arrays",
    "Engine",
    "Knobs",
    "Session",
    "check_inputs",
    "check_knobs",
    "engine_named",
    "engine_names",
    "filled",
    "filled_up",
    "run_in_batches",
]

_BUILT_IN = {
    "torch": "alula.engines.torch_eager:TorchEngine",
    "torchscript": "alula.engines.torchscript:TorchScriptEngine",
    "inductor": "alula.engines.inductor:InductorEngine",
    "onnxruntime": "alula.engines.onnxruntime:OnnxRuntimeEngine",
    "openvino": "alula.engines.openvino:OpenVinoEngine",
    "fake": "alula.engines.fake:FakeEngine",
}


@functools.cache
def _targets() -> dict[str, str]:
    found = {point.name: point.value for point in entry_points(group="alula.engines")}
    return {**found, **_BUILT_IN}


def engine_names() -> tuple[str, ...]:
    """Return the names of all registered engines, installed or not.

    >>> "onnxruntime" in engine_names()
    True
    """
    return tuple(_targets())


def engine_named(name: str) -> Engine:
    """Return the engine of that name; its runtime is imported only when it is used.

    Raises:
        UsageError: no engine of that name is registered.
        EngineError: a third party's entry point does not lead to an engine.
    """
    targets = _targets()
    if name not in targets:
        raise UsageError(
            f"There is no engine `{name}`; known are {', '.join(targets)}.{closest(name, targets)}"
        )
    module, _, attribute = targets[name].partition(":")
    try:
        engine = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise EngineError(f"The entry point of engine `{name}` ({targets[name]}) fails: {error}") from error
    if not isinstance(engine, Engine):
        raise EngineError(f"The entry point of engine `{name}` ({targets[name]}) is no engine.")
    return engine
