"""Axes: positions, and ticks at round values."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.report.scales import LinearScale, LogScale, linear_ticks, log_ticks


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_linear_ticks_are_round_evenly_spaced_and_inside(low, span, most):
    scale = LinearScale(low=low, high=low + span, start=0, end=100)
    if scale.high - scale.low < 1e-9 * max(abs(scale.low), abs(scale.high)):
        return
    ticks = linear_ticks(scale, most)
    assert 1 <= len(ticks) <= most or span < 1e-3 * abs(low)
    slack = 1e-9 * max(abs(scale.low), abs(scale.high))
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    if steps:
        assert max(steps) == pytest.approx(min(steps), rel=1e-6, abs=slack)
        exponent = math.floor(math.log10(steps[0]) + 1e-9)
        assert round(steps[0] / 10**exponent, 3) in (1, 2, 5, 10)


@given(st.floats(1e-9, 1e9), st.floats(1.2, 1e6))
def test_log_ticks_are_inside_and_there_are_at_least_two(low, factor):
    scale = LogScale(low=low, high=low * factor, start=10, end=510)
    ticks = log_ticks(scale, lambda values: len(values) <= 9)
    assert 2 <= len(ticks) <= 9
    assert list(ticks) == sorted(ticks)
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in ticks)


def test_log_ticks_that_fit_nowhere_are_none():
    scale = LogScale(low=1, high=100, start=0, end=10)
    assert log_ticks(scale, lambda values: False) == ()
    # One tick alone says nothing about the scale.
    assert log_ticks(scale, lambda values: len(values) < 2) == ()


def test_many_decades_get_powers_of_ten_some_apart():
    scale = LogScale(low=1e-9, high=1e9, start=0, end=500)
    ticks = log_ticks(scale, lambda values: len(values) <= 8)
    assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in ticks)
    assert len({round(math.log10(b / a)) for a, b in itertools.pairwise(ticks)}) == 1


def test_equal_ratios_are_equal_lengths():
    scale = LogScale(low=0.5, high=32, start=0, end=600)
    assert scale.position(2) - scale.position(1) == pytest.approx(scale.position(16) - scale.position(8))
    assert scale.position(0.5) == 0
    assert scale.position(32) == 600
    assert scale.clipped(1000) == 600
    assert scale.clipped(0.1) == 0
