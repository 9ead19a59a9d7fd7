"""How far outputs are from those they should be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest_difference", "rms_difference"]


def largest_difference(expected: Sequence[NDArray[np.generic]], got: Sequence[NDArray[np.generic]]) -> float:
    """Return the largest absolute difference, as a share of each expected output's largest finite magnitude.

    Equal infinities, as of masked classes, do not differ. NaN anywhere gives NaN, another number of outputs
    or another shape infinity.

    >>> largest_difference([np.array([0.0, 10.0])], [np.array([0.0, 10.01])])  # doctest: +ELLIPSIS
    0.00099...
    >>> largest_difference([np.array([-np.inf, 10.0])], [np.array([-np.inf, 10.0])])
    0.0
    """
    if len(expected) != len(got):
        return float("inf")
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape:
            return float("inf")
        wide, gaps = _gaps(want, have)
        scale = float(np.abs(wide).max(initial=0.0, where=np.isfinite(wide))) or 1.0
        worst = float(np.maximum(worst, gaps.max(initial=0.0) / scale))
    return worst


def rms_difference(expected: NDArray[np.generic], got: NDArray[np.generic]) -> float:
    """Return the root mean square of the differences of one output, as a share of that of its finite values.

    Equal infinities do not differ. NaN anywhere gives NaN, another shape infinity.

    >>> rms_difference(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    0.1
    """
    if expected.shape != got.shape:
        return float("inf")
    wide, gaps = _gaps(expected, got)
    if not gaps.size:
        return 0.0
    size = float(np.sqrt(np.mean(np.square(np.where(np.isfinite(wide), wide, 0.0))))) or 1.0
    return float(np.sqrt(np.mean(np.square(gaps)))) / size


def _gaps(
    expected: NDArray[np.generic], got: NDArray[np.generic]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is expected, and the absolute differences, both in float64."""
    wide, other = (np.asarray(values, np.float64) for values in (expected, got))
    with np.errstate(invalid="ignore"):
        return wide, np.where(wide == other, 0.0, np.abs(wide - other))
