"""When a score leaves it open whether there is a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["in_band"]


def in_band(
    scores: NDArray[Any], lower: NDArray[Any] | float, upper: NDArray[Any] | float
) -> NDArray[np.bool_]:
    """Return which scores lie in the band of their class, both ends included, shape (n, c).

    What is no number lies in every band: nothing is known by it.

    Args:
        scores: shape (n, c), or (n,) of one class.
        lower: by class, the lower end of its band, shape (c,), or of the one class.
        upper: by class, its upper end; below the lower end where no score is uncertain.

    >>> import numpy as np
    >>> scores = np.array([[0.5, 0.5], [0.9, np.nan]])
    >>> in_band(scores, np.array([0.2, 0.2]), np.array([0.8, 0.1])).tolist()
    [[True, False], [False, True]]
    """
    sure: NDArray[np.bool_] = (scores < lower) | (scores > upper)
    return ~sure
