"""A cascade: one member scores every row, the others only those of which it is not sure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import in_band

__all__ = ["Bands", "cascaded"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bands:
    """Between which scores a class is uncertain, both ends included; what is no number always is.

    Attributes:
        lower: by class, shape (c,), float32.
        upper: by class, likewise; below `lower` where no score is uncertain.
    """

    lower: Float32
    upper: Float32

    def uncertain(self, scores: Array) -> Rows:
        """Return the rows of which any class is uncertain, ascending.

        Args:
            scores: shape (n, c).

        >>> bands = Bands(lower=np.float32([0.2, 0.2]), upper=np.float32([0.8, 0.1]))
        >>> bands.uncertain(np.array([[0.5, 0.0], [0.9, 0.9]], np.float32)).tolist()
        [0]
        """
        return np.flatnonzero(in_band(scores, self.lower, self.upper).any(axis=1))


def cascaded(scores: Float32, *, bands: Bands, rest: Callable[[Rows], Float32 | None]) -> Float32 | None:
    """Return the scores of rows: those of `rest` where they are uncertain, and `scores` elsewhere.

    Which rows go on depends on each row alone, so a row's scores do not depend on those beside it as far as
    those of both do not. None where `rest` gives none.

    Args:
        scores: of the first member, of all rows, shape (n, c).
        bands: where they are uncertain.
        rest: given the numbers of m rows, ascending, gives their scores (m, c); called at most once, with the
            uncertain rows.

    >>> rows = np.float32([[0.1], [0.5]])
    >>> bands = Bands(lower=np.float32([0.4]), upper=np.float32([0.6]))
    >>> doubled = cascaded(rows, bands=bands, rest=lambda uncertain: 2 * rows[uncertain])
    >>> doubled.round(3).tolist()
    [[0.10000000149011612], [1.0]]
    """
    found = np.array(scores, np.float32)
    rows = bands.uncertain(found)
    if len(rows):
        asked = rest(rows)
        if asked is None:
            return None
        found[rows] = asked
    return found
