"""Samples of any number through a session that takes batches, whose size a model may have fixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from alula.core import TensorSpec
from alula.engines.base import Arrays, Session

__all__ = ["filled", "filled_up", "run_in_batches"]


def filled(specs: Sequence[TensorSpec], batch: Arrays) -> Arrays:
    """Return a batch of the size that the model has fixed, filled up with copies of the last sample.

    A model with a free batch axis gets the batch as it is.

    Args:
        specs: the model's inputs.
        batch: one array (b, ...) per input, b no larger than the fixed size.

    >>> specs = (TensorSpec("x", "float32", (4, 1)),)
    >>> filled(specs, (np.array([[1.0], [2.0]], np.float32),))[0].ravel().tolist()
    [1.0, 2.0, 2.0, 2.0]
    """
    fixed = specs[0].shape[0]
    return filled_up(batch, fixed) if isinstance(fixed, int) else batch


def filled_up(batch: Arrays, size: int) -> Arrays:
    """Return a batch of `size` samples, filled up with copies of the last one; a larger one as it is.

    >>> filled_up((np.array([1, 2]),), 4)[0].tolist()
    [1, 2, 2, 2]
    """
    missing = size - len(batch[0])
    if missing <= 0:
        return batch
    return tuple(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in batch)


def run_in_batches(
    session: Session, inputs: Arrays, *, specs: Sequence[TensorSpec], batch_size: int
) -> Iterator[Arrays]:
    """Yield the outputs of n samples, batch by batch in order.

    Args:
        session: what runs them.
        inputs: one array (n, ...) per model input.
        specs: the model's inputs.
        batch_size: samples per batch, no more than a fixed batch axis has.
    """
    for start in range(0, len(inputs[0]), batch_size):
        batch = tuple(np.ascontiguousarray(array[start : start + batch_size]) for array in inputs)
        size, whole = len(batch[0]), filled(specs, batch)
        outputs = session.run(whole)
        yield outputs if whole is batch else tuple(output[:size] for output in outputs)
