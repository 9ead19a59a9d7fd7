"""Steps against their formulas, one value at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from alula.core import CutOff, OverlapMean, Smoothing, TopScaling
from alula.errors import UsageError
from alula.postprocess import Track, apply_steps, needs_times

Scores = np.ndarray

# Sums of up to nine float32.
RTOL = 1e-5
some_scores = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(0, 1, width=32),
)


def untimed(scores: Scores) -> Track:
    return Track(None, None, scores)


def timed(scores: Scores, *, window_s: float, hop_s: float) -> Track:
    start_s = np.arange(len(scores)) * hop_s
    return Track(start_s, start_s + window_s, scores)


@settings(deadline=None)
@given(
    scores=some_scores, sides=st.lists(st.floats(0, 1), max_size=4), middle=st.floats(0.1, 1), data=st.data()
)
def test_smoothing(scores: Scores, sides: list[float], middle: float, data: st.DataObject) -> None:
    right = data.draw(st.permutations(sides))
    kernel = (*sides, middle, *right)
    reach, n = len(sides), len(scores)
    expected = np.empty(scores.shape)
    for k in range(n):
        for c in range(scores.shape[1]):
            near = [j for j in range(-reach, reach + 1) if 0 <= k + j < n]
            total = sum(kernel[reach + j] * float(scores[k + j, c]) for j in near)
            expected[k, c] = total / sum(kernel[reach + j] for j in near)
    before = scores.copy()
    got = apply_steps([Smoothing(kernel=kernel)], untimed(scores)).scores
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=1e-7)
    np.testing.assert_array_equal(scores, before)


@settings(max_examples=150, deadline=None)
@given(
    scores=some_scores,
    window_s=st.sampled_from([0.5, 1.0, 3.0, 5.0, 7.5, 10.0]),
    share=st.sampled_from([0.1, 0.25, 0.4, 0.5, 1.0]),
    segment_s=st.sampled_from([0.3, 1.0, 2.5, 5.0, 30.0]),
)
def test_overlapping_windows_are_averaged(
    scores: Scores, window_s: float, share: float, segment_s: float
) -> None:
    track = timed(scores, window_s=window_s, hop_s=share * window_s)
    got = apply_steps([OverlapMean(segment_s=segment_s)], track)
    assert track.start_s is not None
    assert track.end_s is not None
    end_s = float(track.end_s[-1])
    count = math.ceil(round(end_s / segment_s, 6))
    assert got.start_s is not None
    assert got.end_s is not None
    np.testing.assert_allclose(got.start_s, np.arange(count) * segment_s, atol=1e-9)
    np.testing.assert_allclose(got.end_s, got.start_s + segment_s, atol=1e-9)
    for j in range(count):
        shared = [
            max(0.0, min((j + 1) * segment_s, end) - max(j * segment_s, start))
            for start, end in zip(track.start_s, track.end_s, strict=True)
        ]
        expected = sum(o * row.astype(float) for o, row in zip(shared, scores, strict=True)) / sum(shared)
        np.testing.assert_allclose(got.scores[j], expected, rtol=RTOL, atol=2e-6)


def test_windows_that_overlap_by_half_weigh_a_quarter_a_half_a_quarter() -> None:
    scores = np.eye(5, dtype=np.float32)
    got = apply_steps([OverlapMean(segment_s=5.0)], timed(scores, window_s=5.0, hop_s=2.5))
    np.testing.assert_allclose(
        got.scores, [[2 / 3, 1 / 3, 0, 0, 0], [0, 0.25, 0.5, 0.25, 0], [0, 0, 0, 1 / 3, 2 / 3]], rtol=1e-6
    )
    assert got.scores.dtype == np.float32


def test_windows_that_are_the_segments_stay_as_they_are(rng: np.random.Generator) -> None:
    # Sums of a tenth are no multiples of it in binary.
    scores = rng.random((1000, 2)).astype(np.float32)
    got = apply_steps([OverlapMean(segment_s=0.1)], timed(scores, window_s=0.1, hop_s=0.1))
    np.testing.assert_allclose(got.scores, scores, rtol=1e-6)


@settings(deadline=None)
@given(scores=some_scores, k=st.integers(1, 15))
def test_scaling_by_the_highest_of_the_file(scores: Scores, k: int) -> None:
    got = apply_steps([TopScaling(k=k)], untimed(scores)).scores
    for c in range(scores.shape[1]):
        highest = sorted(map(float, scores[:, c]), reverse=True)[:k]
        np.testing.assert_allclose(
            got[:, c], scores[:, c] * (sum(highest) / len(highest)), rtol=RTOL, atol=1e-30
        )
    assert got.dtype == np.float32


@settings(deadline=None)
@given(scores=some_scores, below=st.floats(0, 1, width=32), factor=st.floats(0, 1, width=32))
def test_cutting_off_classes_that_are_nowhere_likely(scores: Scores, below: float, factor: float) -> None:
    got = apply_steps([CutOff(below=below, factor=factor)], untimed(scores)).scores
    for c in range(scores.shape[1]):
        unlikely = max(map(float, scores[:, c])) < below
        np.testing.assert_allclose(
            got[:, c], scores[:, c] * (factor if unlikely else 1.0), rtol=1e-6, atol=1e-30
        )
    assert got.dtype == np.float32


def test_steps_follow_each_other_in_their_order() -> None:
    scores = np.array([[0.0], [0.3], [0.0]], np.float32)
    smooth, cut = Smoothing(kernel=(1, 1, 1)), CutOff(below=0.2, factor=0.0)
    assert apply_steps([cut, smooth], untimed(scores)).scores[1, 0] == pytest.approx(0.1)
    assert apply_steps([smooth, cut], untimed(scores)).scores[1, 0] == 0.0
    assert apply_steps([], untimed(scores)).scores is scores


def test_which_steps_need_times() -> None:
    assert needs_times([CutOff(below=0.1), Smoothing(kernel=(1,))])
    assert needs_times([OverlapMean(segment_s=1.0)])
    assert not needs_times([CutOff(below=0.1), TopScaling()])
    with pytest.raises(UsageError, match="needs recordings"):
        apply_steps([OverlapMean(segment_s=1.0)], untimed(np.zeros((1, 1), np.float32)))


@pytest.mark.parametrize("kernel", [(), (1.0, 1.0), (1.0, 0.0, 1.0), (1.0, math.inf, 1.0)])
def test_impossible_kernels(kernel: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="kernel"):
        Smoothing(kernel=kernel)
