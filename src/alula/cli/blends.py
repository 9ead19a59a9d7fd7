"""A blend and a ladder from the options of `alula ensemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from alula.bundle import DeclaredRung
from alula.cli.options import csv_of
from alula.core import Blend
from alula.errors import UsageError
from alula.toml import read_toml

__all__ = ["blend_of", "ladder_of"]


class _Ladder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rung: tuple[DeclaredRung, ...]


def blend_of(name: str, *, weights: str | None, class_weights: Path | None, exponent: float | None) -> Blend:
    """Return the blend that the options describe.

    Args:
        name: `mean`, `logits`, `geometric`, `power`, `rank`, `min` or `max`.
        weights: comma-separated numbers.
        class_weights: TOML file of `label = [weights]`.
        exponent: of `power`.

    Raises:
        UsageError: a value is wrong, or belongs to another blend.

    >>> blend_of("logits", weights="2,1", class_weights=None, exponent=None)
    Mean(of='logits', weights=(2.0, 1.0), class_weights={})
    """
    if exponent is not None and name != "power":
        raise UsageError(f"--exponent belongs to --blend power; got --blend {name}.")
    if name in ("min", "max") and (weights is not None or class_weights is not None):
        raise UsageError(f"--blend {name} takes no weights: one score decides.")
    said: dict[str, Any] = {"type": "mean", "of": "logits"} if name == "logits" else {"type": name}
    if exponent is not None:
        said["exponent"] = exponent
    if weights is not None:
        said["weights"] = _numbers(weights)
    if class_weights is not None:
        said["class_weights"] = read_toml(class_weights, what="--class-weights")
    try:
        blend: Blend = msgspec.convert(said, type=Blend)
    except msgspec.ValidationError as error:
        raise UsageError(f"The blend is not possible: {error}.".replace("`$.", "`")) from error
    return blend


def ladder_of(path: Path | None) -> tuple[DeclaredRung, ...]:
    """Return the rungs that a TOML file declares in `[[rung]]` tables, or none without a file.

    Raises:
        UsageError: it cannot be read, or a name or value in it is wrong.
    """
    if path is None:
        return ()
    said = read_toml(path, what="--ladder")
    try:
        return msgspec.convert(said, type=_Ladder).rung
    except msgspec.ValidationError as error:
        raise UsageError(f"--ladder {path} is not possible: {error}.".replace("`$.", "`")) from error


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in csv_of(text) or ()]
    except ValueError as error:
        raise UsageError(f"--weights {text} is no list of numbers; expected such as 2,1.") from error
