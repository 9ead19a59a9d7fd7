"""The outcomes of a search, put together: a row per recipe, a group per thing that went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from alula.core import (
    Accepted,
    Accuracy,
    Candidate,
    Failed,
    Outcome,
    Ratio,
    Recipe,
    Rejected,
    Settings,
    Throughput,
)
from alula.report.content import ReportContent

__all__ = ["Problem", "Row", "Verdict", "problems", "recipe_of", "rows", "screened_ratio", "verdict_of"]

Verdict = Literal["chosen", "accepted", "rejected", "failed", "not tried"]
_ORDER: tuple[Verdict, ...] = ("chosen", "accepted", "rejected", "failed", "not tried")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known about one recipe.

    Attributes:
        number: place in the table, from 1; the chart refers to it.
        recipe: which.
        verdict: in one word.
        reason: of a verdict other than `chosen` and `accepted`.
        settings: the best of those measured, None if none was.
        per_s: samples per second at those settings.
        ratio: over the baseline; None without a speed. The interval is infinite where the recipe was not in
            the last comparison.
        range_ratio: slowest and fastest round over the baseline's median, where there were several rounds.
        accuracy: against the baseline on the most samples it was judged on, None if it was not judged.
        trials: outcomes of this recipe.
        seconds: time of all of them.
    """

    number: int = 0
    recipe: Recipe
    verdict: Verdict
    reason: str = ""
    settings: Settings | None = None
    per_s: float | None = None
    ratio: Ratio | None = None
    range_ratio: tuple[float, float] | None = None
    accuracy: Accuracy | None = None
    trials: int = 0
    seconds: float = 0.0

    @property
    def confirmed(self) -> bool:
        """Whether the ratio has an interval."""
        return self.ratio is not None and math.isfinite(self.ratio.high)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What went wrong with a recipe in the same words, once or at several settings."""

    recipe: Recipe
    verdict: Verdict
    text: str
    reproduce: str
    settings: tuple[Settings, ...]


def rows(content: ReportContent) -> tuple[Row, ...]:
    """Return a row per recipe: the chosen one, the accepted ones by speed, then those that are out."""
    by_recipe: dict[Recipe, list[Outcome]] = {content.chosen.recipe: []}
    for outcome in content.outcomes:
        by_recipe.setdefault(recipe_of(outcome), []).append(outcome)
    for finalist in content.finalists:
        by_recipe.setdefault(finalist.candidate.recipe, [])
    found = [
        _chosen_row(outcomes, content)
        if recipe == content.chosen.recipe
        else _other_row(recipe, outcomes, content)
        for recipe, outcomes in by_recipe.items()
    ]
    found.sort(key=lambda row: (_ORDER.index(row.verdict), -(row.ratio.median if row.ratio else 0.0)))
    return tuple(replace(row, number=number) for number, row in enumerate(found, 1))


def problems(outcomes: Sequence[Outcome]) -> tuple[Problem, ...]:
    """Return what was rejected or failed, in order; the same words of the same recipe are said once."""
    groups: dict[tuple[bool, Recipe, str], list[Rejected | Failed]] = {}
    for outcome in outcomes:
        if not isinstance(outcome, Accepted):
            key = (isinstance(outcome, Failed), outcome.recipe, _reason(outcome))
            groups.setdefault(key, []).append(outcome)
    return tuple(_problem(group) for group in groups.values())


def recipe_of(outcome: Outcome) -> Recipe:
    """Return the recipe that an outcome is about."""
    return outcome.candidate.recipe if isinstance(outcome, Accepted) else outcome.recipe


def verdict_of(outcome: Outcome) -> Verdict:
    """Return what became of one trial, in one word."""
    match outcome:
        case Accepted():
            return "accepted"
        case Failed():
            return "failed"
        case Rejected():
            return "rejected" if outcome.tried else "not tried"


def screened_ratio(outcome: Accepted, content: ReportContent) -> float | None:
    """Return about how many times faster than the baseline a trial was, None if that cannot be told.

    Where the search noted speeds relative to its anchor, the chosen candidate, whose own speed over the
    baseline is known, leads from the one to the other: minutes lie between two trials, and machines drift.
    """
    if outcome.relative is not None:
        known = [
            one.relative
            for one in content.outcomes
            if isinstance(one, Accepted) and one.candidate == content.chosen and one.relative is not None
        ]
        if known and max(known) > 0:
            return _sound(outcome.relative / max(known) * content.speedup.median)
    baseline_per_s = content.baseline_throughput.per_s
    return _sound(outcome.throughput.per_s / baseline_per_s) if baseline_per_s > 0 else None


def _sound(ratio: float) -> float | None:
    return ratio if math.isfinite(ratio) and ratio > 0 else None


def _reason(outcome: Rejected | Failed) -> str:
    return outcome.error if isinstance(outcome, Failed) else outcome.reason


def _problem(group: Sequence[Rejected | Failed]) -> Problem:
    first = group[0]
    settings = [one.settings for one in group if isinstance(one, Failed) and one.settings is not None]
    return Problem(
        recipe=first.recipe,
        verdict=verdict_of(first),
        text=_reason(first),
        reproduce=first.reproduce if isinstance(first, Failed) else "",
        settings=tuple(dict.fromkeys(settings)),
    )


def _seconds(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.seconds for outcome in outcomes if math.isfinite(outcome.seconds))


def _chosen_row(outcomes: Sequence[Outcome], content: ReportContent) -> Row:
    return Row(
        recipe=content.chosen.recipe,
        verdict="chosen",
        settings=content.chosen.settings,
        per_s=content.chosen_throughput.per_s,
        ratio=content.speedup,
        range_ratio=_range(content.chosen_throughput, content.baseline_throughput.per_s),
        accuracy=content.accuracy,
        trials=len(outcomes),
        seconds=_seconds(outcomes),
    )


def _other_row(recipe: Recipe, outcomes: Sequence[Outcome], content: ReportContent) -> Row:
    loss = _loss(outcomes)
    row = Row(
        recipe=recipe,
        verdict="accepted" if loss is None else verdict_of(loss),
        reason="" if loss is None else _reason(loss),
        accuracy=_accuracy(outcomes, loss),
        trials=len(outcomes),
        seconds=_seconds(outcomes),
    )
    finalists = [one for one in content.finalists if one.candidate.recipe == recipe]
    if finalists:
        final = max(finalists, key=lambda one: one.throughput.per_s)
        return replace(
            row,
            settings=final.candidate.settings,
            per_s=final.throughput.per_s,
            ratio=final.speedup,
            range_ratio=_range(final.throughput, content.baseline_throughput.per_s),
        )
    best = _best(outcomes)
    if best is None:
        return row
    ratio = screened_ratio(best, content)
    return replace(
        row,
        settings=best.candidate.settings,
        per_s=best.throughput.per_s,
        ratio=None if ratio is None else Ratio(ratio, 0.0, math.inf),
        range_ratio=_range(best.throughput, content.baseline_throughput.per_s),
    )


def _accuracy(outcomes: Sequence[Outcome], loss: Rejected | Failed | None) -> Accuracy | None:
    """Return what the verdict rests on: that of the rejection, else of the check on the most samples."""
    if isinstance(loss, Rejected) and loss.accuracy is not None:
        return loss.accuracy
    checks = [outcome.accuracy for outcome in outcomes if isinstance(outcome, Accepted)]
    return max(reversed(checks), key=lambda accuracy: accuracy.n, default=None)


def _best(outcomes: Sequence[Outcome]) -> Accepted | None:
    """Return the fastest accepted settings, leaving out those that failed when they were measured again."""
    accepted = [outcome for outcome in outcomes if isinstance(outcome, Accepted)]
    lost = {
        Candidate(outcome.recipe, outcome.settings)
        for outcome in outcomes
        if isinstance(outcome, Failed) and outcome.settings is not None
    }
    sound = [outcome for outcome in accepted if outcome.candidate not in lost]
    return max(sound or accepted, key=_speed, default=None)


def _speed(outcome: Accepted) -> tuple[float, float]:
    return (outcome.relative or 0.0, outcome.throughput.per_s)


def _loss(outcomes: Sequence[Outcome]) -> Rejected | Failed | None:
    """Return why a recipe as a whole is out; a failure of some settings is not, if others stand."""
    for outcome in reversed(outcomes):
        if isinstance(outcome, Accepted):
            return None
        if isinstance(outcome, Rejected) or outcome.settings is None:
            return outcome
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    return failed[-1] if failed else None


def _range(throughput: Throughput, baseline_per_s: float) -> tuple[float, float] | None:
    rounds = throughput.rounds_per_s
    if len(rounds) < 2 or not baseline_per_s > 0:
        return None
    return min(rounds) / baseline_per_s, max(rounds) / baseline_per_s
