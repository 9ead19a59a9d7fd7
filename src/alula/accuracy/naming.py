"""Metrics by name: built-in ones, and functions of the user's from a file or a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.accuracy.metrics import (
    Agreement,
    BalancedAccuracy,
    Cosine,
    MacroAuc,
    MeanSquaredError,
    Metric,
    PaddedCmap,
    Top1,
    UserMetric,
    is_multi_label,
)
from alula.errors import UsageError, closest

__all__ = ["METRIC_NAMES", "default_metric", "metric_named"]

_BUILT_IN: tuple[Metric, ...] = (
    Top1(),
    BalancedAccuracy(),
    MacroAuc(),
    PaddedCmap(),
    MeanSquaredError(),
    Agreement(),
    Cosine(),
)

METRIC_NAMES: tuple[str, ...] = tuple(metric.name for metric in _BUILT_IN)
"""Names of the built-in metrics."""


def metric_named(spec: str) -> Metric:
    """Return the metric called `spec`.

    Args:
        spec: a built-in name, or `file.py:function` or `package.module:function` for a function
            `fn(y_true, y_pred) -> float` where higher is better. The code of the file is run.

    Raises:
        UsageError: there is no such metric, file, module or function.

    >>> metric_named("top1").name
    'top1'
    >>> metric_named("top2")
    Traceback (most recent call last):
    alula.errors.UsageError: There is no metric `top2`. Did you mean `top1`? ...
    """
    for metric in _BUILT_IN:
        if metric.name == spec:
            return metric
    where, separator, function = spec.rpartition(":")
    if not separator:
        raise UsageError(
            f"There is no metric `{spec}`.{closest(spec, METRIC_NAMES)} Choose one of "
            f"{', '.join(METRIC_NAMES)}, or give `file.py:function`."
        )
    return UserMetric(name=spec, function=_function(spec, where, function))


def default_metric(targets: npt.NDArray[Any] | None) -> str:
    """Return the name of the metric to use when the user names none.

    Args:
        targets: None, class numbers of shape (n,), 0/1 per class of shape (n, c), or values.

    Returns:
        `agreement` without targets; `top1` for one class per sample; `macro_auc` for several labels
        per sample or a single 0/1 column; `mse` for anything else.

    >>> default_metric(None), default_metric(np.array([0, 2])), default_metric(np.array([0.5, 2.0]))
    ('agreement', 'top1', 'mse')
    """
    if targets is None:
        return "agreement"
    if targets.ndim == 1:
        return "top1" if targets.dtype.kind in "iub" else "mse"
    if targets.ndim == 2 and bool(np.all((targets == 0) | (targets == 1))):
        return "macro_auc" if targets.shape[1] == 1 or is_multi_label(targets) else "top1"
    return "mse"


def _function(spec: str, where: str, name: str) -> Callable[[Any, Any], float]:
    try:
        module = _module_of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        NameError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        raise UsageError(
            f"The code of metric `{spec}` could not be loaded: {type(error).__name__}: {error}. "
            "Give `file.py:function` or `package.module:function`."
        ) from error
    functions = {key: value for key, value in vars(module).items() if callable(value)}
    if name not in functions:
        raise UsageError(
            f"Metric `{spec}` was not found: `{where}` has no function `{name}`.{closest(name, functions)}"
        )
    found: Callable[[Any, Any], float] = functions[name]
    return found


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"alula_metric_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python source")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles in the file look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
