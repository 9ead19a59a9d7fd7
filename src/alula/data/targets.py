"""What is known about the samples, brought to one form per task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from alula.data.samples import Task
from alula.errors import DataError, UsageError, closest

__all__ = ["Targets", "array_targets", "checked_labels", "named_targets", "sorted_names"]

Array = npt.NDArray[Any]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Task, values and class names, as `Samples` holds them; all None without labels."""

    task: Task | None = None
    values: Array | None = None
    labels: tuple[str, ...] | None = None


def checked_labels(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return class names as a tuple.

    Raises:
        UsageError: they are not distinct texts, or there are none.
    """
    if labels is None:
        return None
    names = tuple(labels)
    if isinstance(labels, str) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"`labels` must be the names of the classes in the model's order; got {labels!r}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"`labels` must be distinct; got `{twice}` more than once.")
    return names


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct class names in order: by number if all are whole numbers, else by code point.

    >>> sorted_names(["10", "9", "9"]), sorted_names(["b", "B", "a"])
    (('9', '10'), ('B', 'a', 'b'))
    """
    distinct = set(names)
    if all(re.fullmatch(r"0|[1-9][0-9]*", name) for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def named_targets(
    names: Sequence[str] | Sequence[Sequence[str]], labels: Sequence[str], *, source: str | Path
) -> Targets:
    """Return class indices for one name a sample, or presences for several names a sample.

    Args:
        names: a name per sample (single-label), or a sequence of names per sample (multi-label).
        labels: the classes in order.
        source: what to call the data in an error.

    Raises:
        DataError: a name is not among `labels`.
    """
    index = {name: position for position, name in enumerate(labels)}
    single = [name for name in names if isinstance(name, str)]
    rows = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    unknown = sorted({name for row in rows for name in row} - index.keys())
    if unknown:
        raise DataError(
            source,
            f"The label `{unknown[0]}` is not among the {len(index)} given class names"
            f"{f' (nor are {len(unknown) - 1} others)' if len(unknown) > 1 else ''}."
            f"{closest(unknown[0], index)} Add it to the class names or correct it.",
        )
    if single:
        return Targets("single-label", np.array([index[row[0]] for row in rows], np.int64), tuple(labels))
    values = np.zeros((len(rows), len(index)), np.float32)
    for number, row in enumerate(rows):
        values[number, [index[name] for name in row]] = 1.0
    return Targets("multi-label", values, tuple(labels))


def array_targets(y: Array, labels: Sequence[str] | None, *, source: str | Path) -> Targets:
    """Return targets from an array whose first axis counts the samples.

    Integers or booleans of shape (n,) are class indices; text of shape (n,) is class names; numbers
    of shape (n, c) that are all 0 or 1 are presences (multi-label); any other floats are values to
    predict (regression).

    Raises:
        DataError: the values fit none of these, are negative as class indices, are not finite, or
            do not fit the number of `labels`.
    """
    names = checked_labels(labels)
    if y.dtype.kind == "U" and y.ndim == 1:
        return named_targets(y.tolist(), names or sorted_names(y.tolist()), source=source)
    if y.ndim == 0 or y.dtype.kind not in "biuf":
        raise DataError(
            source,
            f"The labels have dtype {y.dtype} and shape {y.shape}. Expected class indices or names (n,), "
            "presences (n, c) or floats.",
        )
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise DataError(source, "The labels hold NaN or infinity. Remove those samples.")
        if y.ndim == 2 and np.isin(y, (0, 1)).all():
            return _presences(y, names, source)
        return Targets("regression", y.astype(np.float32), names)
    if y.ndim == 2:
        return _presences(y, names, source)
    if y.ndim > 2:
        return Targets("regression", y.astype(np.float32), names)
    low, high = int(y.min()), int(y.max())
    if low < 0 or (names is not None and high >= len(names)):
        expected = f"0 to {len(names) - 1} for {len(names)} class names" if names else "0 and more"
        raise DataError(source, f"The class indices go from {low} to {high}. Expected {expected}.")
    return Targets("single-label", y.astype(np.int64), names)


def _presences(y: Array, names: tuple[str, ...] | None, source: str | Path) -> Targets:
    if not np.isin(y, (0, 1)).all():
        raise DataError(
            source,
            f"The labels are integers of shape {y.shape} from {y.min()} to {y.max()}. Expected 0 or 1 per "
            "class, or class indices of shape (n,) (drop the last axis with `y[:, 0]`).",
        )
    if names is not None and y.shape[1] != len(names):
        raise DataError(source, f"The labels have {y.shape[1]} columns for {len(names)} class names.")
    return Targets("multi-label", y.astype(np.float32), names)
