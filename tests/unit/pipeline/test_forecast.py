"""What a forecast learns: the machine's rate from the clock, the stages' costs from their busy times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import UsageError
from alula.pipeline import Finished, Forecast, StageCost

COSTS = {"decode": StageCost(core_s=0.5), "small": StageCost(core_s=1.0), "large": StageCost(core_s=3.0)}


def fresh(*, cpus: float = 2.0) -> Forecast:
    return Forecast(COSTS, cpus=cpus, start_s=0.0, block_s=1.0)


def run(
    forecast: Forecast,
    *,
    pieces: int,
    units: dict[str, float],
    slow: float = 1.0,
    start_s: float = 0.0,
    dear: dict[str, float] | None = None,
    cpus: float = 2.0,
) -> float:
    """Record pieces of work on a machine `slow` times slower than declared; return the time at their end."""
    now_s = start_s
    for _ in range(pieces):
        busy = {
            stage: count * COSTS[stage].core_s * slow * (dear or {}).get(stage, 1.0)
            for stage, count in units.items()
        }
        now_s += sum(busy.values()) / cpus
        forecast.record({stage: Finished(units[stage], busy[stage]) for stage in units}, now_s=now_s)
    return now_s


def expected_s(forecast: Forecast, now_s: float, **units: float) -> float:
    return float(forecast.remaining(forecast.units(units)[None], now_s=now_s, chance=0.5).expected_s[0])


def test_before_anything_ran_it_is_the_declared_time() -> None:
    assert expected_s(fresh(), 0.0, decode=2, small=1, large=2) == pytest.approx((1 + 1 + 6) / 2)


@pytest.mark.parametrize("slow", [0.5, 1.0, 4.0])
def test_it_learns_how_fast_the_machine_is(slow: float) -> None:
    forecast = fresh()
    now_s = run(forecast, pieces=200, units={"decode": 1, "small": 1}, slow=slow)
    assert expected_s(forecast, now_s, decode=10, small=10) == pytest.approx(7.5 * slow, rel=0.05)
    # A stage that never ran is as much slower as the others.
    assert expected_s(forecast, now_s, large=10) == pytest.approx(15 * slow, rel=0.05)


def test_it_learns_which_stage_is_dearer_than_declared() -> None:
    forecast = fresh()
    now_s = run(forecast, pieces=300, units={"decode": 1, "small": 1, "large": 1}, dear={"large": 2.0})
    assert expected_s(forecast, now_s, decode=10, small=10) == pytest.approx(7.5, rel=0.1)
    assert expected_s(forecast, now_s, large=10) == pytest.approx(30, rel=0.1)


def test_time_in_which_nothing_ends_counts() -> None:
    forecast = fresh()
    now_s = run(forecast, pieces=20, units={"small": 2})
    before_s = expected_s(forecast, now_s, small=20)
    assert expected_s(forecast, now_s + 20, small=20) > 1.5 * before_s


def test_a_slower_machine_is_noticed_and_so_is_a_faster_one() -> None:
    forecast = fresh()
    now_s = run(forecast, pieces=100, units={"small": 1})
    now_s = run(forecast, pieces=100, units={"small": 1}, slow=3.0, start_s=now_s)
    slow_s = expected_s(forecast, now_s, small=20)
    assert slow_s > 20  # 10 on the machine as declared, 30 on this one
    now_s = run(forecast, pieces=500, units={"small": 1}, start_s=now_s)
    assert expected_s(forecast, now_s, small=20) < 0.6 * slow_s


def test_one_stall_of_a_stage_is_not_its_nature() -> None:
    forecast = fresh()
    now_s = run(forecast, pieces=100, units={"decode": 1, "small": 1})
    now_s += 1000
    forecast.record({"decode": Finished(1, 1000), "small": Finished(1, 1)}, now_s=now_s)
    now_s = run(forecast, pieces=1500, units={"decode": 1, "small": 1}, start_s=now_s)
    ratio = expected_s(forecast, now_s, decode=20) / expected_s(forecast, now_s, small=10)
    assert ratio == pytest.approx(1.0, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.2, 8), st.integers(1, 3)), max_size=60),
    st.floats(0.5, 0.99),
    st.floats(0.5, 0.99),
)
def test_quantiles_are_ordered_and_finite(pieces: list[tuple[float, int]], one: float, other: float) -> None:
    forecast = fresh()
    now_s = 0.0
    for slow, count in pieces:
        now_s = run(forecast, pieces=1, units={"decode": count, "small": 1}, slow=slow, start_s=now_s)
    rest = np.stack([forecast.units({"decode": 1.0}), forecast.units({"decode": 40.0, "large": 7.0})])
    low, high = (forecast.remaining(rest, now_s=now_s, chance=chance) for chance in sorted((one, other)))
    assert np.all(np.isfinite(high.high_s)) and np.all(low.expected_s > 0)
    assert np.all(low.high_s >= low.expected_s)
    assert np.all(high.high_s >= low.high_s * (1 - 1e-12))
    assert np.all(low.worst_s >= low.expected_s * (1 - 1e-12))
    assert np.all(low.expected_s[1] > low.expected_s[0])
    assert forecast.slowness(now_s) >= 1


def test_the_quantile_covers_what_it_says_on_a_machine_whose_rate_wanders() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    runs = 200
    for _ in range(runs):
        # The logarithm of the rate is an autoregression that forgets by half in about two blocks.
        levels = [0.0]
        for _ in range(100):
            levels.append(0.7 * levels[-1] + rng.normal(0, 0.15))
        forecast, now_s = fresh(cpus=1.0), 0.0
        for level in levels[:50]:
            now_s += math.exp(level)
            forecast.record({"small": Finished(1.0, math.exp(level))}, now_s=now_s)
        rest = forecast.units({"small": float(len(levels[50:]))})[None]
        high_s = float(forecast.remaining(rest, now_s=now_s, chance=0.9).high_s[0])
        covered += sum(map(math.exp, levels[50:])) <= high_s
    # It may be careful, and must not be careless: three standard deviations below 90 % of 200.
    assert covered >= runs * 0.9 - 3 * math.sqrt(runs * 0.9 * 0.1)


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(UsageError, match="expected at"):
        Forecast({}, cpus=1.0, start_s=0.0, block_s=1.0)
    with pytest.raises(UsageError, match="above 0"):
        fresh(cpus=0.0)
    with pytest.raises(UsageError, match="decode, small, large"):
        fresh().units({"medium": 1.0})
    with pytest.raises(UsageError, match="below 0"):
        fresh().units({"small": -1.0})
