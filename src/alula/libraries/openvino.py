"""OpenVINO and NNCF: imported so that they report to nobody; what a conversion raises, and why."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from alula.errors import EngineUnavailableError

__all__ = [
    "INSTALL_OPENVINO",
    "import_nncf",
    "import_openvino",
    "openvino_cause",
    "openvino_conversion_failures",
]

INSTALL_OPENVINO = "pip install 'alula[openvino]'"


def import_openvino() -> Any:
    """Return the module `openvino`.

    Raises:
        EngineUnavailableError: it is not installed.
    """
    try:
        with _unreported():
            import openvino
    except ImportError as error:
        raise EngineUnavailableError("openvino", install=INSTALL_OPENVINO) from error
    return openvino


def import_nncf() -> Any:
    """Return the module `nncf`, whose log stays off the screen while it is imported.

    Raises:
        EngineUnavailableError: it is not installed, or OpenVINO is not.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import_openvino()
        with _unreported():
            import nncf
    except ImportError as error:
        raise EngineUnavailableError("nncf", install=INSTALL_OPENVINO) from error
    finally:
        logging.disable(before)
    return nncf


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Hide the package through which OpenVINO and NNCF report to a server that they were imported and used.

    Reporting also forks this process, which may have threads, and writes into the user's home folder.
    """
    name = "openvino_telemetry"
    if name in sys.modules:  # the user's own choice
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.modules.get(name, name) is None:
            del sys.modules[name]


def openvino_conversion_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of OpenVINO's own that reading or converting a model raises."""
    from openvino import frontend
    from openvino.tools.ovc.error import Error

    return (
        Error,
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )


def openvino_cause(error: BaseException) -> str:
    r"""Return the line of an exception's message that tells the cause, or its type if it says nothing.

    OpenVINO prints the chain of source positions first and the cause last.

    >>> openvino_cause(RuntimeError("Exception from src/core.cpp:1:\nsrc/cpu.cpp:2: no such layer\n"))
    'src/cpu.cpp:2: no such layer'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
