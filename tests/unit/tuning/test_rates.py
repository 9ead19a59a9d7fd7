"""Which finalists' rates are measured, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from alula.errors import MeasurementError
from alula.measure import ServerRate, highest_rate, simulated_round
from alula.measure.fake import ScriptedClock
from alula.tuning.rates import LEAST_S, WORTH_S, ranked_by_rate

SERVICE_S = {"a": 0.02, "b": 0.01, "c": 0.005}


class Bench:
    """Measures servers of known service time, on a clock of its own."""

    def __init__(self, budget_s: float, *, broken: str = "", interrupted_at: str = "") -> None:
        self.clock = ScriptedClock()
        self.deadline_s = self.clock.monotonic() + budget_s
        self.broken, self.interrupted_at = broken, interrupted_at
        self.asked: list[tuple[str, float]] = []
        self.interrupts = 0

    def left_s(self) -> float:
        return self.deadline_s - self.clock.monotonic()

    def rate(self, name: str, budget_s: float) -> ServerRate:
        self.asked.append((name, budget_s))
        if name in self.interrupted_at:
            raise KeyboardInterrupt
        if name in self.broken:
            raise MeasurementError(f"{name} holds no rate")
        trial = partial(simulated_round, lambda _: SERVICE_S[name])
        found = highest_rate(
            trial, p99_limit_s=0.1, low_per_s=1.0, high_per_s=1 / SERVICE_S[name], budget_s=budget_s
        )
        self.clock.advance(found.seconds)
        return found

    def interrupt(self) -> None:
        self.interrupts += 1

    def run(self, names: str, on_interrupt: Callable[[], None] | None = None) -> list[tuple[str, bool]]:
        ranked = ranked_by_rate(
            names, self.rate, left_s=self.left_s, on_interrupt=on_interrupt or self.interrupt
        )
        rates = [rate.per_s for _, rate in ranked if rate is not None]
        assert rates == sorted(rates, reverse=True)
        return [(name, rate is not None) for name, rate in ranked]


def test_with_time_the_best_two_are_measured_and_the_higher_rate_leads() -> None:
    bench = Bench(240.0)
    assert bench.run("abc") == [("b", True), ("a", True), ("c", False)]
    assert [budget_s >= WORTH_S for _, budget_s in bench.asked] == [True, True]
    assert bench.left_s() > -0.1 * 240.0


@pytest.mark.parametrize("budget_s", [-5.0, 20.0, 120.0])
def test_with_less_only_the_first_is_and_it_has_all_the_time(budget_s: float) -> None:
    bench = Bench(budget_s)
    assert bench.run("abc") == [("a", True), ("b", False), ("c", False)]
    assert bench.asked == [("a", max(LEAST_S, budget_s))]


def test_one_that_holds_no_rate_is_left_out() -> None:
    assert Bench(240.0, broken="a").run("abc") == [("b", True), ("c", False)]
    assert Bench(240.0, broken="b").run("abc") == [("a", True), ("c", False)]
    bench = Bench(240.0, broken="ab")
    with pytest.raises(MeasurementError, match="a holds no rate"):
        bench.run("abc")
    assert len(bench.asked) == 2


def test_nobody_has_no_rate() -> None:
    assert Bench(240.0).run("") == []


def test_an_interrupt_leaves_what_is_known() -> None:
    bench = Bench(240.0, interrupted_at="b")
    assert bench.run("abc") == [("a", True), ("b", False), ("c", False)]
    assert bench.interrupts == 1
    assert Bench(240.0, interrupted_at="a").run("abc") == [("a", False), ("b", False), ("c", False)]
    # Nothing is known of any other, so the one that failed is still the best.
    found = Bench(240.0, broken="a", interrupted_at="b").run("abc")
    assert found == [("a", False), ("b", False), ("c", False)]

    def again() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Bench(240.0, interrupted_at="a").run("abc", again)
