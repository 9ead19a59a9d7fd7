"""ONNX Runtime: imported so that it keeps no record of its use; what it raises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from alula.errors import EngineUnavailableError

__all__ = ["INSTALL_ONNXRUNTIME", "import_onnxruntime", "onnxruntime_failures"]

INSTALL_ONNXRUNTIME = "pip install 'alula[onnxruntime]'"


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`.

    Raises:
        EngineUnavailableError: it is not installed.
    """
    try:
        with _unreported():
            import onnxruntime
    except ImportError as error:
        raise EngineUnavailableError("onnxruntime", install=INSTALL_ONNXRUNTIME) from error
    return onnxruntime


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Keep ONNX Runtime from noting its use in the user's home folder and reporting it to a server.

    It reads this variable once, when it is imported (1.31).
    """
    name = "ORT_DISABLE_TELEMETRY"
    if name in os.environ:  # the user's own choice
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def onnxruntime_failures() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; its own exceptions have no common base and vary with the release."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, ValueError, *own)
