"""Scores per frame against the definition of the central part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.core import CentralMaximum
from alula.errors import EngineError
from alula.postprocess import central_maximum


@given(st.integers(1, 2), st.integers(1, 40), st.integers(1, 3), st.sampled_from([1.0, 5.0, 7.3, 10.0]))
def test_it_is_the_maximum_over_frames_whose_middle_is_central(
    n: int, count: int, classes: int, central_s: float
) -> None:
    scores = np.random.default_rng(count).normal(size=(n, count, classes)).astype(np.float32)
    middles = [(t + 0.5) * 10.0 / count for t in range(count)]
    central = [t for t, at in enumerate(middles) if (10 - central_s) / 2 <= at < (10 + central_s) / 2]
    how = CentralMaximum(central_s=central_s)
    if not central:
        with pytest.raises(EngineError, match="has its middle in the central"):
            central_maximum(scores, how, window_s=10.0)
        return
    expected = scores[:, central].max(axis=1)
    np.testing.assert_array_equal(central_maximum(scores, how, window_s=10.0), expected)
    swapped = CentralMaximum(central_s=central_s, layout="ct")
    np.testing.assert_array_equal(
        central_maximum(scores.transpose(0, 2, 1), swapped, window_s=10.0), expected
    )


def test_half_of_the_context_is_half_of_the_frames() -> None:
    scores = np.zeros((1, 8, 1), np.float32)
    scores[0, [1, 6]] = 9.0
    scores[0, [2, 5], 0] = 1.0, 2.0
    assert central_maximum(scores, CentralMaximum(central_s=5.0), window_s=10.0).tolist() == [[2.0]]


def test_scores_without_frames() -> None:
    with pytest.raises(EngineError, match=r"got shape \(2, 3\)"):
        central_maximum(np.zeros((2, 3), np.float32), CentralMaximum(central_s=1.0), window_s=2.0)
