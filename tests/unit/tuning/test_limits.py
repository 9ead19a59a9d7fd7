"""Steps get the rest of the time, and a little in any case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alula.accuracy import metric_named
from alula.measure.fake import ScriptedClock
from alula.sources import Source
from alula.tuning.files import save_array
from alula.tuning.limits import LEAST_OPTIONAL_S, LEAST_STEP_S, StepLimit
from alula.tuning.search import (
    CLOSING_SHARE,
    LOADING_S,
    Closing,
    SearchPlan,
    last_comparison,
    samples_checked,
)


def test_a_step_gets_what_is_left_and_a_little_in_any_case() -> None:
    clock = ScriptedClock()
    limit = StepLimit(clock, longest_s=600.0)
    assert limit() == 600.0
    assert not limit.was_short
    limit.deadline_s = clock.monotonic() + 100
    assert limit() == 100.0
    assert limit.was_short
    clock.advance(90)
    assert limit() == LEAST_STEP_S
    clock.advance(1000)
    assert limit() == LEAST_STEP_S


def test_a_step_that_is_known_to_be_long_may_be_long() -> None:
    clock = ScriptedClock()
    limit = StepLimit(clock, longest_s=600.0)
    assert limit(expected_s=100.0) == 600.0
    assert limit(expected_s=700.0) == 2100.0
    limit.deadline_s = 800.0
    assert limit(expected_s=700.0) == 800.0
    assert limit.was_short


def test_a_step_that_can_be_done_without_ends_in_time() -> None:
    clock = ScriptedClock()
    limit = StepLimit(clock, longest_s=600.0)
    limit.deadline_s = clock.monotonic() + 100
    with limit.optional(until_s=clock.monotonic() + 20):
        assert limit() == 20.0
        clock.advance(30)
        assert limit() == LEAST_OPTIONAL_S
    assert limit() == 70.0
    # A step that had its whole time hung, however little is left after it.
    with limit.optional(until_s=clock.monotonic() + 700):
        assert limit() == 600.0
        clock.advance(650)
        assert not limit.was_short
        assert limit() == 50.0
        assert limit.was_short
    limit.deadline_s = clock.monotonic() + 70
    with pytest.raises(ZeroDivisionError), limit.optional(until_s=clock.monotonic()):
        raise ZeroDivisionError
    assert limit() == 70.0


@pytest.mark.parametrize("per_s", [0.1, 1.0, 7.0, 100.0])
@pytest.mark.parametrize("budget_s", [10.0, 60.0, 600.0])
def test_the_check_takes_a_quarter_of_the_budget_or_as_few_samples_as_mean_anything(
    per_s: float, budget_s: float
) -> None:
    n = samples_checked(per_s, budget_s)
    assert n >= 50
    assert n / per_s <= budget_s / 4 or n == 50


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 3), np.float32), np.ones((2, 1), bool)]
)
def test_an_array_is_read_as_it_was(tmp_path, array) -> None:  # type: ignore[no-untyped-def]
    save_array(tmp_path / "x.npy", array)
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def plan(budget_s: float) -> SearchPlan:
    return SearchPlan(
        source=Source(kind="onnx", spec="absent.onnx"),
        workdir=Path("absent"),
        calibration=(),
        validation=(),
        targets=None,
        metric=metric_named("agreement"),
        max_drop=0.0,
        recipes=(),
        threads=1,
        saturating=False,
        budget_s=budget_s,
        closing_s=0.0,
        memory_limit_bytes=1,
    )


@pytest.mark.parametrize("budget_s", [3.0, 8.0, 20.0, 45.0, 60.0, 90.0, 120.0, 240.0, 600.0, 3600.0])
def test_the_last_comparison_takes_a_quarter_of_the_budget_at_most(budget_s: float) -> None:
    found = last_comparison(plan(budget_s))
    timing_s = (found.finalists + 1) * found.rounds * found.round_s
    assert found.rounds >= 6  # fewer give no interval
    assert timing_s <= CLOSING_SHARE * budget_s or found == Closing(1, 6, 0.1)
    if found.rounds == 9:
        assert timing_s + (found.finalists + 1) * LOADING_S <= CLOSING_SHARE * budget_s


def test_with_time_the_last_comparison_is_whole() -> None:
    assert last_comparison(plan(600.0)) == Closing(3, 9, 0.6)
    assert last_comparison(plan(120.0)).finalists == 2
    assert Closing(3, 9, 0.6).shortened(halved=True) == Closing(3, 6, 0.3)
    assert Closing(1, 6, 0.1).shortened(halved=True) == Closing(1, 6, 0.1)
