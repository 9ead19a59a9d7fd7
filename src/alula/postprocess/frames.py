"""Scores per frame made one score per window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import CentralMaximum
from alula.errors import EngineError

__all__ = ["central_maximum"]


def central_maximum(
    frames: npt.NDArray[Any], how: CentralMaximum, *, window_s: float
) -> npt.NDArray[np.float32]:
    """Return the maximum over the central frames of each window; see `CentralMaximum` for which those are.

    Args:
        frames: scores, shape (n, t, c), or (n, c, t) with `layout="ct"`.
        how: which part is central, and the layout.
        window_s: length of the window that the frames are spread over.

    Returns:
        Shape (n, c), float32.

    Raises:
        EngineError: the scores have another number of axes, or no frame has its middle in the central part.

    >>> scores = np.array([[[9.0], [1.0], [2.0], [9.0]]])
    >>> central_maximum(scores, CentralMaximum(central_s=5.0), window_s=10.0).tolist()
    [[2.0]]
    """
    if frames.ndim != 3:
        raise EngineError(
            f"The model's output got shape {frames.shape}; expected frames and classes after the batch axis. "
            "Name the output that has scores per frame, or leave `frames` out."
        )
    axis = 1 if how.layout == "tc" else 2
    count = frames.shape[axis]
    middles_s = (np.arange(count) + 0.5) * (window_s / count)
    central = np.flatnonzero(
        (middles_s >= (window_s - how.central_s) / 2) & (middles_s < (window_s + how.central_s) / 2)
    )
    if not len(central):
        raise EngineError(
            f"None of the {count} frames of a window of {window_s:g} s has its middle in the central "
            f"{how.central_s:g} s. Raise `central_s`."
        )
    part = slice(int(central[0]), int(central[-1]) + 1)
    chosen = frames[:, part] if axis == 1 else frames[:, :, part]
    return np.asarray(chosen.max(axis=axis), dtype=np.float32)
