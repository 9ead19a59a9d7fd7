"""Percentiles: exact ranks, coverage of the intervals, honest doubts; single-stream runs."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alula.errors import MeasurementError
from alula.measure import (
    Latency,
    percentile_with_interval,
    queries_needed,
    simulated_round,
    single_stream,
)
from alula.measure.fake import ScriptedClock
from alula.measure.latency import MAX_QUERIES, effective_count

SHARES = (0.5, 0.9, 0.99)
shares = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(times=st.lists(st.floats(0, 1e6), min_size=1, max_size=200), q=shares)
def test_the_percentile_is_the_nearest_rank(times, q):
    expected = np.quantile(times, q, method="inverted_cdf")
    assert percentile_with_interval(times, q).value_s == expected


def test_rounding_adds_no_rank():
    assert 0.07 * 100 > 7
    assert percentile_with_interval(np.arange(1, 101), 0.07).value_s == 7.0


@settings(deadline=None)
@given(n=st.integers(1, 3000), q=shares)
def test_the_ends_are_binomial_quantiles(n, q):
    # Time i has rank i + 1, so that the ends tell their ranks.
    found = percentile_with_interval(np.arange(n), q)
    below = stats.binom(n, q)
    if found.low_s is None:
        assert below.cdf(0) > 0.025 * (1 - 1e-9)
    else:
        rank = int(found.low_s) + 1
        assert below.cdf(rank - 1) <= 0.025 * (1 + 1e-9)
        assert below.cdf(rank) > 0.025 * (1 - 1e-9)
    if found.high_s is None:
        assert below.sf(n - 1) > 0.025 * (1 - 1e-9)
    else:
        rank = int(found.high_s) + 1
        assert below.sf(rank - 1) <= 0.025 * (1 + 1e-9)
        assert below.sf(rank - 2) > 0.025 * (1 - 1e-9)


# 2000 simulations: the standard deviation of the coverage is 0.005 at 0.95. Each end is conservative, as
# ranks are whole numbers, most where few queries lie beyond the percentile.
@pytest.mark.parametrize(("n", "q"), [(6, 0.5), (50, 0.5), (36, 0.9), (200, 0.9), (368, 0.99), (3000, 0.99)])
def test_the_interval_holds_the_truth_for_a_skewed_distribution(n, q):
    generator = np.random.default_rng(n)
    truth = math.exp(stats.norm.ppf(q))
    held = 0
    for _ in range(2000):
        found = percentile_with_interval(generator.lognormal(size=n), q)
        held += found.low_s <= truth <= found.high_s
    assert 0.935 <= held / 2000 <= 0.995


@pytest.mark.parametrize("q", [*SHARES, 0.1, 0.01])
def test_too_few_queries_have_no_interval(q):
    times = np.arange(queries_needed(q), dtype=float)
    enough = percentile_with_interval(times, q)
    assert enough.low_s is not None
    assert enough.high_s is not None
    few = percentile_with_interval(times[1:], q)
    assert None in (few.low_s, few.high_s)
    assert "?" in str(few)


def queueing_times(seed):
    """Latencies of a server that is busy 70 % of the time: those of neighbours go together."""
    found = simulated_round(lambda _: 0.01, rate_per_s=70.0, seconds=40.0, seed=seed)
    return np.array(found.latencies_s)


def test_clusters_widen_the_interval_until_it_holds_the_truth():
    rounds = [queueing_times(seed) for seed in range(300)]
    # 840,000 queries tell the percentile about ten times better than one round does.
    truth = np.quantile(np.concatenate(rounds), 0.99)
    plain = corrected = 0
    for times in rounds:
        found = percentile_with_interval(times, 0.99)
        plain += found.low_s <= truth <= found.high_s
        found = percentile_with_interval(
            times, 0.99, effective_n=effective_count(times, np.quantile(times, 0.99))
        )
        corrected += (found.low_s or 0.0) <= truth <= (found.high_s or math.inf)
    assert plain / 300 < 0.75
    assert corrected / 300 > 0.90


def test_independent_times_count_in_full():
    generator = np.random.default_rng(2)
    threshold = math.exp(stats.norm.ppf(0.99))
    in_full = [effective_count(generator.lognormal(size=1000), threshold) == 1000 for _ in range(200)]
    assert sum(in_full) / 200 >= 0.90
    for times in (np.full(100, 1.0), np.linspace(1.0, 1.0 + 1e-12, 100)):
        assert effective_count(times, times[90]) == 100


def test_one_disturbance_counts_as_few_queries():
    times = np.random.default_rng(3).uniform(0.010, 0.011, 1000)
    times[500:530] += 0.1
    assert effective_count(times, 0.0105) > 300  # most of the slower half are still spread evenly
    assert effective_count(times, 0.1) < 50
    assert effective_count(times, 0.2) == 1000


@settings(deadline=None)
@given(n=st.integers(40, 400), count=st.integers(1, 40), q=shares)
def test_clusters_only_ever_widen(n, count, q):
    times = np.arange(n, dtype=float)
    plain = percentile_with_interval(times, q)
    wide = percentile_with_interval(times, q, effective_n=count)
    assert wide.value_s == plain.value_s
    assert wide.low_s is None or (plain.low_s is not None and wide.low_s <= plain.low_s)
    assert wide.high_s is None or (plain.high_s is not None and wide.high_s >= plain.high_s)


@pytest.mark.parametrize("times", [[], [1.0, math.nan], [math.inf], [-1.0]])
def test_times_that_have_no_percentile(times):
    with pytest.raises(MeasurementError, match="expected at least one, all finite"):
        percentile_with_interval(times, 0.5)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, 99.0, math.nan])
def test_shares_out_of_range(q):
    with pytest.raises(MeasurementError, match="above 0 and below 1"):
        percentile_with_interval([1.0], q)
    with pytest.raises(MeasurementError, match="above 0 and below 1"):
        queries_needed(q)


@pytest.mark.parametrize("count", [0, 4])
def test_an_effective_count_out_of_range(count):
    with pytest.raises(MeasurementError, match="expected 1 to 3"):
        percentile_with_interval([1.0, 2.0, 3.0], 0.5, effective_n=count)


def work(clock, times_s):
    script = iter(times_s)
    return lambda: clock.advance(next(script))


def test_it_ends_when_both_the_time_and_the_queries_are_done():
    clock = ScriptedClock(start_s=50.0)
    many = single_stream(work(clock, [1.0] * 9), seconds=2.0, min_queries=9, clock=clock)
    assert (many.n, many.seconds) == (9, 9.0)
    clock = ScriptedClock(start_s=50.0)
    long = single_stream(work(clock, [1.0] * 9), seconds=8.5, min_queries=2, clock=clock)
    assert (long.n, long.seconds) == (9, 9.0)


def test_no_call_starts_after_the_longest_time_but_one_is_always_made():
    clock = ScriptedClock()
    cut = single_stream(work(clock, [1.0] * 9), seconds=2.0, min_queries=9, max_s=3.5, clock=clock)
    assert cut.n == 4
    assert "only 4 of 9 queries" in cut.warnings[-1]
    clock = ScriptedClock()
    assert single_stream(work(clock, [1.0]), seconds=0.0, min_queries=0, max_s=0.0, clock=clock).n == 1


def test_raw_times_are_kept_and_percentiles_come_from_them():
    times = np.random.default_rng(7).uniform(0.01, 0.02, 400).tolist()
    clock = ScriptedClock()
    found = single_stream(work(clock, times), seconds=0.0, min_queries=400, clock=clock)
    np.testing.assert_allclose(found.times_s, times, rtol=1e-9)
    assert found.p50 == percentile_with_interval(found.times_s, 0.5)
    assert found.p90 == percentile_with_interval(found.times_s, 0.9)
    assert found.p99 == percentile_with_interval(found.times_s, 0.99)
    assert found.warnings == ()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Latency) == found


def test_too_few_queries_are_said():
    clock = ScriptedClock()
    times = np.random.default_rng(1).uniform(0.1, 0.2, 40)
    found = single_stream(work(clock, times), seconds=0.0, min_queries=40, clock=clock)
    assert found.p90.high_s is not None
    assert found.p99.high_s is None
    (warning,) = found.warnings
    assert "p99 takes 368 independent queries; there were 40" in warning


def test_clusters_of_slow_queries_are_said():
    times = np.full(1000, 0.01) + np.arange(1000) % 7 * 1e-6
    times[200:240] = 0.1
    clock = ScriptedClock()
    found = single_stream(work(clock, times), seconds=0.0, clock=clock, min_queries=1000)
    assert any(
        "p99 takes 368 independent queries; there were 1000 that count as" in w for w in found.warnings
    )
    assert found.p99.high_s is None


@pytest.mark.parametrize(("first", "last", "word"), [(1.0, 2.0, "rose"), (2.0, 1.0, "fell")])
def test_drift_is_said(first, last, word):
    clock = ScriptedClock()
    times = np.linspace(first, last, 100)
    found = single_stream(work(clock, times), seconds=0.0, min_queries=100, clock=clock)
    assert any(f"latency {word} over the queries by" in warning for warning in found.warnings)


def test_steady_times_raise_no_doubt_of_drift():
    generator = np.random.default_rng(11)
    seen = 0
    for _ in range(100):
        clock = ScriptedClock()
        times = generator.lognormal(0, 0.2, 400)
        found = single_stream(work(clock, times), seconds=0.0, min_queries=400, clock=clock)
        seen += any("over the queries" in warning for warning in found.warnings)
    assert seen <= 5


def test_errors_come_through():
    def run():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        single_stream(run, seconds=1.0, clock=ScriptedClock())


def test_a_clock_that_stands_still_ends_with_an_error(monkeypatch):
    monkeypatch.setattr("alula.measure.latency.MAX_QUERIES", 100)
    with pytest.raises(MeasurementError, match="100 queries took 0"):
        single_stream(lambda: None, seconds=1.0, clock=ScriptedClock())
    assert MAX_QUERIES == 1_000_000


def test_the_machines_own_clock_is_the_default():
    found = single_stream(lambda: sum(range(1000)), seconds=0.0, min_queries=10)
    assert found.n == 10
    assert found.seconds == pytest.approx(sum(found.times_s))
