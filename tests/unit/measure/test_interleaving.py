"""Turns: fair orders, equal numbers of rounds, contenders that fail."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.errors import AlulaError, EngineError, MeasurementError
from alula.measure import Round, interleave


def a_round(samples=1):
    return Round(samples=samples, wall_s=1.0, calls=(1.0,))


def taken(k, rounds, seed=0):
    """Order in which k contenders ran, one list per round."""
    log = []
    names = [f"c{i}" for i in range(k)]
    contenders = {name: (lambda _seconds, name=name: log.append(name) or a_round()) for name in names}
    interleave(contenders, rounds=rounds, seconds=0.1, seed=seed)
    return [log[start : start + k] for start in range(0, len(log), k)]


@given(k=st.integers(2, 7), seed=st.integers(0, 1000))
def test_over_a_cycle_each_follows_each_other_equally_often(k, seed):
    cycle = k if k % 2 == 0 else 2 * k
    orders = taken(k, cycle, seed)
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(follows) == k * (k - 1)
    assert set(follows.values()) == {cycle // k}
    places = Counter((name, place) for order in orders for place, name in enumerate(order))
    assert set(places.values()) == {cycle // k}


def test_the_order_is_seeded():
    assert taken(4, 8, seed=1) == taken(4, 8, seed=1)
    assert len({str(taken(4, 8, seed=seed)) for seed in range(10)}) > 1


def test_rounds_are_kept_in_order_and_told_as_they_come():
    numbers = iter(range(1, 100))
    told = []
    result = interleave(
        {"a": lambda _: a_round(next(numbers)), "b": lambda _: a_round(next(numbers))},
        rounds=4,
        seconds=0.5,
        on_round=lambda name, number, done: told.append((number, name, done)),
    )
    assert [number for number, _, _ in told] == [0, 0, 1, 1, 2, 2, 3, 3]
    for name in "ab":
        assert result.rounds[name] == [done for _, who, done in told if who == name]
        assert [one.samples for one in result.rounds[name]] == sorted(
            one.samples for one in result.rounds[name]
        )
    assert result.dropped == {}


def test_contenders_are_given_the_seconds():
    given_s = []
    interleave({"a": lambda seconds: given_s.append(seconds) or a_round()}, rounds=2, seconds=0.25)
    assert given_s == [0.25, 0.25]


def test_a_contender_that_fails_is_dropped_and_recorded():
    calls = Counter()

    def fails_later(_seconds):
        calls["bad"] += 1
        if calls["bad"] == 3:
            raise EngineError("crashed")
        return a_round()

    rounds, dropped = interleave(
        {"good": lambda _: a_round(), "bad": fails_later, "fine": lambda _: a_round()}, rounds=6, seconds=0.1
    )
    assert {name: len(done) for name, done in rounds.items()} == {"good": 6, "fine": 6}
    assert str(dropped["bad"]) == "crashed"
    assert calls["bad"] == 3


def test_the_error_of_the_last_contender_is_raised():
    def fails(_seconds):
        raise EngineError("crashed")

    with pytest.raises(EngineError, match="crashed"):
        interleave({"only": fails}, rounds=2, seconds=0.1)
    with pytest.raises(EngineError, match="crashed"):
        interleave({"one": fails, "other": fails}, rounds=2, seconds=0.1)


def test_other_errors_are_not_swallowed():
    def broken(_seconds):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"good": lambda _: a_round(), "broken": broken}, rounds=2, seconds=0.1)

    def refuse(*_):
        raise AlulaError("cancelled")

    with pytest.raises(AlulaError, match="cancelled"):
        interleave({"a": lambda _: a_round(), "b": lambda _: a_round()}, rounds=2, seconds=0, on_round=refuse)


@pytest.mark.parametrize(("contenders", "rounds"), [({}, 3), ({"a": lambda _: a_round()}, 0)])
def test_nothing_to_do_is_an_error(contenders, rounds):
    with pytest.raises(MeasurementError, match="at least one of each"):
        interleave(contenders, rounds=rounds, seconds=0.1)
