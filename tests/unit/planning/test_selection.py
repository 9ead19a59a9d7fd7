"""Selection against brute force: all subsets, all small multisets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.planning.selection import Picked, best_within, exhaustive, greedy


class Problem:
    """Members as noisy readings of one truth; the score is minus the squared error of their weighted mean."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.names = [f"m{k:02}" for k in range(count)]
        truth = rng.normal(0, 1, 40)
        self.readings = {
            name: truth + rng.normal(rng.normal(0, 0.3), rng.uniform(0.3, 1.5), 40) for name in self.names
        }
        self.truth = truth
        self.own_s = {name: float(rng.uniform(1, 10)) for name in self.names}
        self.shared_s = {name: int(rng.integers(3)) for name in self.names}
        self.limit_s = float(rng.uniform(3, 4 * count))

    def score(self, counts: Mapping[str, int]) -> float:
        total = sum(counts.values())
        mean = sum(count * self.readings[name] for name, count in counts.items()) / total
        return -float(np.square(mean - self.truth).mean())

    def time_s(self, names: frozenset[str]) -> float:
        return sum(self.own_s[name] for name in names) + 2.0 * len({self.shared_s[name] for name in names})

    def subsets(self) -> list[tuple[str, ...]]:
        return [
            subset
            for size in range(1, len(self.names) + 1)
            for subset in itertools.combinations(self.names, size)
            if self.time_s(frozenset(subset)) <= self.limit_s
        ]

    def best(self) -> Picked | None:
        return best_within(self.names, score=self.score, time_s=self.time_s, limit_s=self.limit_s)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_no_subset_with_equal_weights_that_fits_is_better(seed: int, count: int) -> None:
    problem = Problem(seed, count)
    fitting = problem.subsets()
    found = problem.best()
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert found.time_s == problem.time_s(found.names) <= problem.limit_s
    assert found.score == pytest.approx(problem.score(found.counts))
    assert found.score >= max(problem.score(dict.fromkeys(subset, 1)) for subset in fitting) - 1e-12


def test_weights_come_near_the_best_multiset() -> None:
    reached = []
    for seed in range(20):
        problem = Problem(seed, 3)
        found = problem.best()
        if found is None:
            continue
        best = max(
            problem.score(counts)
            for picks in itertools.product(range(5), repeat=3)
            if any(picks)
            for counts in [{name: k for name, k in zip(problem.names, picks, strict=True) if k}]
            if problem.time_s(frozenset(counts)) <= problem.limit_s
        )
        reached.append(found.score / best)  # both are negative: less is better
    assert len(reached) > 10
    assert np.mean(reached) < 1.02


def test_greedy_on_many_members_is_near_the_best_subset() -> None:
    ratios = []
    for seed in range(4):
        problem = Problem(seed, 13)  # more than are tried exhaustively
        found = problem.best()
        assert found is not None and found.time_s <= problem.limit_s
        best = max(problem.score(dict.fromkeys(subset, 1)) for subset in problem.subsets())
        ratios.append(found.score / best)
    assert np.mean(ratios) < 1.05


def plain_greedy(problem: Problem, first: str, picks: int) -> float:
    """Caruana's rule as a loop over lists."""
    bag, scores = [first], [problem.score({first: 1})]
    while len(bag) < picks:
        tried = []
        for name in problem.names:
            if problem.time_s(frozenset([*bag, name])) <= problem.limit_s:
                counts = {one: [*bag, name].count(one) for one in [*bag, name]}
                tried.append((problem.score(counts), -problem.time_s(frozenset(counts)), name))
        score, _, name = max(tried, key=lambda one: one[:2])
        bag.append(name)
        scores.append(score)
        if len(scores) > 3 and max(scores[-3:]) <= max(scores[:-3]):
            break
    return max(scores)


@pytest.mark.parametrize("seed", range(8))
def test_the_greedy_rule_is_that_of_caruana(seed: int) -> None:
    problem = Problem(seed, 5)
    problem.limit_s = 20.0
    first = min(problem.names, key=lambda name: problem.own_s[name])
    found = greedy(
        problem.names,
        first={first: 1},
        score=problem.score,
        time_s=problem.time_s,
        limit_s=problem.limit_s,
        per_second=False,
    )
    assert found.score == pytest.approx(plain_greedy(problem, first, 25))


def modular(values: Mapping[str, tuple[float, float]], limit_s: float) -> Picked | None:
    """The best of members whose scores and times add up, whatever their weights."""
    names = [*values, *(f"dead {k}" for k in range(13))]  # too many for all subsets
    table = {**values, **{name: (-1.0, 0.5) for name in names if name not in values}}
    return best_within(
        names,
        score=lambda counts: sum(table[name][0] for name in counts),
        time_s=lambda chosen: sum(table[name][1] for name in chosen),
        limit_s=limit_s,
    )


def test_either_greedy_rule_alone_would_fail() -> None:
    # The most score first: "whale" leaves no time for ten of nearly its score each.
    many = {"whale": (1.0, 10.0), **{f"fish {k}": (0.9, 1.0) for k in range(10)}}
    found = modular(many, 10.0)
    assert found is not None and found.score == pytest.approx(9.0)
    # The most score per second first: "fish" leaves no time for the whale.
    few = {"whale": (1.0, 10.0), "fish": (0.2, 1.0)}
    found = modular(few, 10.0)
    assert found is not None and found.names == {"whale"}


def test_of_equal_scores_the_faster_is_taken() -> None:
    found = best_within(
        ["slow", "fast"],
        score=lambda counts: 0.5,
        time_s=lambda names: sum({"slow": 5.0, "fast": 1.0}[name] for name in names),
        limit_s=100.0,
    )
    assert found == Picked(counts={"fast": 1}, score=0.5, time_s=1.0)


def test_members_that_do_not_go_together_are_not_put_together() -> None:
    found = best_within(
        ["int8", "fp32", "other"],
        score=lambda counts: float(len(counts)),
        time_s=lambda names: math.inf if {"int8", "fp32"} <= names else float(len(names)),
        limit_s=3.0,
    )
    assert found is not None and len(found.names) == 2 and "other" in found.names


def test_all_subsets_that_fit_are_tried() -> None:
    problem = Problem(3, 5)
    tried = list(
        exhaustive(problem.names, score=problem.score, time_s=problem.time_s, limit_s=problem.limit_s)
    )
    assert {one.names for one in tried if set(one.counts.values()) == {1}} >= set(
        map(frozenset, problem.subsets())
    )
