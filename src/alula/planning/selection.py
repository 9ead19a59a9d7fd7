"""Which members, with which weights, give the best validated score within a time.

Weights are counts: an ensemble is a multiset of members, each blended as often as it was picked (greedy
forward selection with replacement: Caruana, Niculescu-Mizil, Crew & Ksikes 2004, ICML). Picking a member
again costs no time, and picking one whose features are there already costs only its model.

With time as a budget the greedy rule that takes the most score per second can be far from the best, and so
can the one that takes the most score; the better of the two is safer than either (Leskovec et al. 2007, KDD,
section 3.2), and both are started from several first members. Up to a dozen members all subsets are tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec

__all__ = ["EXHAUSTIVE_UP_TO", "Picked", "best_within", "exhaustive", "greedy", "merit"]

Counts: TypeAlias = Mapping[str, int]
Score: TypeAlias = Callable[[Counts], float]
Seconds: TypeAlias = Callable[[frozenset[str]], float]

EXHAUSTIVE_UP_TO = 12
"""So many members have 4,095 subsets, which is a minute or two of a metric over some thousand windows."""

# Picks of the greedy rule: weights are multiples of 1/25 then, finer than a validation set can tell.
_MOST_PICKS = 25
# Picks in a row that bring nothing, after which the greedy rule ends: a pair may help where one does not.
_PATIENCE = 3
# Subsets of an exhaustive search whose weights are then made out greedily.
_REFINED = 5
# A pick that costs nothing counts as this share of the time limit, or any crumb of score would come first.
_LEAST_SHARE = 0.01


class Picked(msgspec.Struct, frozen=True, kw_only=True):
    """An ensemble.

    Attributes:
        counts: how often each member was picked; those never picked are not in it.
        score: validated score; higher is better.
        time_s: of the job.
    """

    counts: dict[str, int]
    score: float
    time_s: float

    @property
    def names(self) -> frozenset[str]:
        """The members."""
        return frozenset(self.counts)


def best_within(
    names: Sequence[str],
    *,
    score: Score,
    time_s: Seconds,
    limit_s: float,
    exhaustive_up_to: int = EXHAUSTIVE_UP_TO,
) -> Picked | None:
    """Return the ensemble with the best score within the time, the faster of equals; None if none fits.

    Args:
        names: members to choose from.
        score: validated score of counts; equal ratios of counts have equal scores.
        time_s: of a job with these members; infinite for members that do not go together. Adding a member
            never makes it less.
        limit_s: time there is; finite, as score per second is weighed by it.
        exhaustive_up_to: so many members have all their subsets tried.
    """
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def remembered(counts: Counts) -> float:
        divisor = math.gcd(*counts.values())
        key = tuple(sorted((name, count // divisor) for name, count in counts.items()))
        if key not in known:
            known[key] = score(dict(key))
        return known[key]

    found: list[Picked] = []
    if len(names) <= exhaustive_up_to:
        found.extend(exhaustive(names, score=remembered, time_s=time_s, limit_s=limit_s))
    for first in _first_members(names, score=remembered, time_s=time_s, limit_s=limit_s):
        found.extend(
            greedy(names, first=first, score=remembered, time_s=time_s, limit_s=limit_s, per_second=rule)
            for rule in (False, True)
        )
    return max(found, key=merit, default=None)


def greedy(
    names: Sequence[str],
    *,
    first: Counts,
    score: Score,
    time_s: Seconds,
    limit_s: float,
    per_second: bool,
) -> Picked:
    """Return the best ensemble on the way of a greedy forward selection with replacement.

    Args:
        names: members to pick from.
        first: what it starts from; within the time.
        score: see `best_within`.
        time_s: see `best_within`.
        limit_s: time there is.
        per_second: whether the pick with the most score per second is taken, or the one with the most score.
    """
    here = Picked(counts=dict(first), score=score(first), time_s=time_s(frozenset(first)))
    best, idle = here, 0
    while sum(here.counts.values()) < _MOST_PICKS and idle < _PATIENCE:
        options = []
        for name in names:
            counts = {**here.counts, name: here.counts.get(name, 0) + 1}
            needed_s = here.time_s if name in here.counts else time_s(frozenset(counts))
            if needed_s <= limit_s:
                options.append(Picked(counts=counts, score=score(counts), time_s=needed_s))
        if not options:
            break
        before = here
        here = _most_per_second(before, options, _LEAST_SHARE * limit_s) if per_second else _best(options)
        idle = 0 if merit(here) > merit(best) else idle + 1
        best = max(best, here, key=merit)
    return best


def exhaustive(names: Sequence[str], *, score: Score, time_s: Seconds, limit_s: float) -> Iterator[Picked]:
    """Yield every subset within the time with equal weights, then the best of them with weights made out.

    Args:
        names: members to choose from.
        score: see `best_within`.
        time_s: see `best_within`.
        limit_s: time there is.
    """
    fitting = []
    for size in range(1, len(names) + 1):
        for subset in itertools.combinations(names, size):
            needed_s = time_s(frozenset(subset))
            if needed_s <= limit_s:
                counts = dict.fromkeys(subset, 1)
                fitting.append(Picked(counts=counts, score=score(counts), time_s=needed_s))
    yield from fitting
    for one in sorted(fitting, key=merit, reverse=True)[:_REFINED]:
        members = sorted(one.counts)
        yield greedy(members, first=one.counts, score=score, time_s=time_s, limit_s=limit_s, per_second=False)


def merit(one: Picked) -> tuple[float, float]:
    """Return what is larger for the better of two ensembles: of equal scores the faster."""
    return (one.score, -one.time_s)


def _best(options: Sequence[Picked]) -> Picked:
    return max(options, key=merit)


def _most_per_second(before: Picked, options: Sequence[Picked], least_s: float) -> Picked:
    def gain(one: Picked) -> float:
        gained, taken_s = one.score - before.score, max(one.time_s - before.time_s, least_s)
        # A loss is not made smaller by the time it takes.
        return gained / taken_s if gained > 0 else gained * taken_s

    return max(options, key=gain)


def _first_members(
    names: Sequence[str], *, score: Score, time_s: Seconds, limit_s: float
) -> list[dict[str, int]]:
    """Return the best member, the one that is best for its time, and the cheapest; those that fit."""
    singles = [
        Picked(counts={name: 1}, score=score({name: 1}), time_s=needed_s)
        for name in names
        if (needed_s := time_s(frozenset([name]))) <= limit_s
    ]
    if not singles:
        return []
    worst = min(one.score for one in singles)
    firsts = (
        max(singles, key=merit),
        max(singles, key=lambda one: (one.score - worst) / one.time_s),
        min(singles, key=lambda one: (one.time_s, -one.score)),
    )
    return [dict(counts) for counts in {tuple(one.counts.items()) for one in firsts}]
