"""The plan of a job: which members, overlap and weights, how long it takes, and why nothing else."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from alula.errors import AccuracyError, UsageError
from alula.planning.cascade import LEARNED_SHARES, NARROWED_CLASSES, JudgedCascade, judge_cascade
from alula.planning.costs import CostSheet, Duration, Machine, Member, Overlap, Workload, duration, in_words
from alula.planning.ladder import PlannedRung, declare_ladder
from alula.planning.selection import EXHAUSTIVE_UP_TO, Picked, best_within, merit
from alula.planning.validation import IntArray, Validation, halves

__all__ = ["CascadeOffer", "LeftOut", "Plan", "PlanStep", "make_plan", "plan_rows"]

# A gain below this is not told from none by any validation set that people have.
_WORTH_SAYING = 5e-5
# A cascade begins with one of so many members, the cheapest, or with the best of those that cost no more than
# such a share of all: what is asked of every window must cost little, or tell much.
_CHEAPEST_FIRST = 3
_BEST_FIRST_COST = 0.6
# A cascade that does not score more must save at least this share of the time, or it is not worth its bands.
_WORTH_CASCADING = 0.2


class PlanStep(msgspec.Struct, frozen=True, kw_only=True):
    """One member more.

    Attributes:
        added: the member.
        members: those so far, in order.
        score: of these, with the weights that they have in the end.
        time: of a job with these.
    """

    added: str
    members: tuple[str, ...]
    score: float
    time: Duration


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """What was not taken.

    Attributes:
        what: a member, or an overlap.
        score: with it.
        time: with it.
        reason: in words.
    """

    what: str
    score: float
    time: Duration
    reason: str


class CascadeOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A cascade that is better than the plan.

    Attributes:
        judged: the cascade and what it is worth on recordings that it was not learned on.
        counts: how often each member of the ensemble that scores uncertain windows is blended.
        overlap: name.
        time: of the job.
        plain_score: score of the plan without it, on the same halves.
        reason: in words.
    """

    judged: JudgedCascade
    counts: dict[str, int]
    overlap: str
    time: Duration
    plain_score: float
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a job should do.

    Attributes:
        counts: how often each member is blended.
        overlap: name.
        score: validated score. It flatters a little: the plan was chosen by it.
        judged_score: score, on one half of the recordings, of plans chosen on the other, both ways round;
            None where there are too few recordings to tell, or nothing fits.
        time: of the job; its upper end is within `limit_s` if it fits.
        limit_s: the deadline less the margin.
        fits: whether there is time for any member at all. If not, this is the cheapest one, and the job will
            fill rows.
        steps: members in the order in which they bring most.
        left_out: what was not taken, and why.
        ladder: how the job steps down when time gets short.
        cascade: what is better, or None.
        notes: what a reader must know of the figures.
    """

    counts: dict[str, int]
    overlap: str
    score: float
    judged_score: float | None
    time: Duration
    limit_s: float
    fits: bool
    steps: tuple[PlanStep, ...]
    left_out: tuple[LeftOut, ...]
    ladder: tuple[PlannedRung, ...]
    cascade: CascadeOffer | None
    notes: tuple[str, ...]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each member; they add up to 1."""
        total = sum(self.counts.values())
        return {name: count / total for name, count in self.counts.items()}


def make_plan(
    members: Sequence[Member],
    overlaps: Sequence[Overlap],
    *,
    sheet: CostSheet,
    validation: Validation,
    workload: Workload,
    machine: Machine,
    deadline_s: float,
    margin: float = 0.05,
    max_drop: float | None = None,
    seed: int = 0,
    exhaustive_up_to: int = EXHAUSTIVE_UP_TO,
    narrowed: int = NARROWED_CLASSES,
) -> Plan:
    """Return the plan with the best validated score whose time fits with high probability.

    Args:
        members: to choose from.
        overlaps: to choose from.
        sheet: what stages cost.
        validation: predictions of every member at every overlap, and labels.
        workload: what is to be computed.
        machine: where.
        deadline_s: time allowed.
        margin: share of it that is kept free; the upper end of the time's interval must fit into the rest.
        max_drop: loss of score that a cascade may bring, in units of the metric; None for no cascade. None is
            looked for either where `validation.finish` makes rows of others.
        seed: of the split that cascades are judged on.
        exhaustive_up_to: so many members have all their subsets tried; more are picked greedily.
        narrowed: so many classes of a cascade get bands of their own.

    Raises:
        UsageError: members, overlaps, predictions and costs do not belong together, or there is no time.
        AccuracyError: the metric is not defined.
    """
    _check(members, overlaps, validation, deadline_s=deadline_s, margin=margin)
    planner = _Planner(members, overlaps, sheet, validation, workload, machine, exhaustive_up_to)
    limit_s = deadline_s * (1 - margin)
    best = planner.best_of_all(limit_s)
    fits = best is not None
    overlap, picked, ladder = planner.settled(*(best or planner.cheapest()))
    notes = []
    if not machine.measured:
        notes.append(
            "The times are an estimate: they were measured on another machine and scaled to "
            f"{machine.cpus:g} CPUs of {machine.speed:g} times its speed."
        )
    if not fits:
        notes.append(
            "There is no time for any member. This is the cheapest one; rows that the time does not allow "
            "will hold the prior."
        )
    return Plan(
        counts=picked.counts,
        overlap=overlap.name,
        score=picked.score,
        judged_score=planner.judged(limit_s, seed) if fits else None,
        time=planner.duration(picked.names, overlap),
        limit_s=limit_s,
        fits=fits,
        steps=tuple(planner.steps(picked, overlap)),
        left_out=tuple(planner.left_out(picked, overlap, limit_s)),
        ladder=ladder,
        cascade=None
        if max_drop is None or validation.finish is not None
        else planner.cascade(picked, overlap, limit_s, max_drop, seed, narrowed),
        notes=tuple(notes),
    )


def plan_rows(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    """Return the plan as a table of what, score, time and why; the first row is the heading."""
    rows = [("step", "score", "time", "why")]
    before: PlanStep | None = None
    for step in plan.steps:
        gain = "first" if before is None else f"{step.score - before.score:+.4f}"
        sign = "" if before is None else "+ "
        weight = plan.weights[step.added]
        rows.append(
            (f"{sign}{step.added}", f"{step.score:.4f}", _time(step.time), f"{gain}, weight {weight:.2f}")
        )
        before = step
    if plan.judged_score is not None:
        why = "chosen on one half of the recordings, judged on the other"
        rows.append(("judged", f"{plan.judged_score:.4f}", "", why))
    if plan.cascade is not None:
        offer = plan.cascade
        rows.append(
            (
                f"cascade on {offer.judged.cascade.cheap}",
                f"{offer.judged.score:.4f}",
                _time(offer.time),
                offer.reason,
            )
        )
    rows.extend(
        (f"left out: {one.what}", f"{one.score:.4f}", _time(one.time), one.reason) for one in plan.left_out
    )
    return tuple(rows)


def _time(time: Duration) -> str:
    """Return a time with its interval, in minutes where it is long."""
    unit, divisor = ("min", 60.0) if time.expected_s >= 120 else ("s", 1.0)
    expected, low, high = (value / divisor for value in (time.expected_s, time.low_s, time.high_s))
    return f"{expected:.1f} {unit} ({low:.1f} to {high:.1f})"


def _check(
    members: Sequence[Member],
    overlaps: Sequence[Overlap],
    validation: Validation,
    *,
    deadline_s: float,
    margin: float,
) -> None:
    names = {member.name for member in members}
    if not members or len(names) < len(members) or len({member.model for member in members}) < len(members):
        raise UsageError("A plan got no members, or two of one name or model; expected each to have its own.")
    if not overlaps or {overlap.name for overlap in overlaps} - validation.predictions.keys():
        raise UsageError(
            f"A plan got overlaps {', '.join(overlap.name for overlap in overlaps) or 'none'} and "
            f"predictions at {', '.join(validation.predictions)}; expected predictions at every overlap."
        )
    for scores in validation.predictions.values():
        if names - scores.keys():
            raise UsageError(
                f"There are no predictions of {', '.join(sorted(names - scores.keys()))}; expected those of "
                "every member."
            )
    if not (0 < deadline_s < math.inf and 0 <= margin < 1):
        raise UsageError(
            f"A plan got a deadline of {deadline_s} s and a margin of {margin}; expected a positive deadline "
            "and a margin from 0 to below 1."
        )


class _Planner:
    """What a plan is made of: scores and times of any members at any overlap."""

    def __init__(
        self,
        members: Sequence[Member],
        overlaps: Sequence[Overlap],
        sheet: CostSheet,
        validation: Validation,
        workload: Workload,
        machine: Machine,
        exhaustive_up_to: int,
    ) -> None:
        self._members = {member.name: member for member in members}
        self._overlaps = overlaps
        self._sheet = sheet
        self._validation = validation
        self._workload = workload
        self._machine = machine
        self._exhaustive_up_to = exhaustive_up_to

    def duration(
        self,
        names: frozenset[str],
        overlap: Overlap,
        *,
        shares: Mapping[str, float] | None = None,
        extra_spread: float = 0.0,
    ) -> Duration:
        """Return how long a job with some members takes."""
        return duration(
            [member for name, member in self._members.items() if name in names],
            overlap,
            sheet=self._sheet,
            workload=self._workload,
            machine=self._machine,
            shares=shares,
            extra_spread=extra_spread,
        )

    def best_of_all(self, limit_s: float, rows: IntArray | None = None) -> tuple[Overlap, Picked] | None:
        """Return the best ensemble at any overlap, and that overlap; None if nothing fits.

        Args:
            limit_s: time there is.
            rows: that scores are taken on, where not all.
        """
        best: tuple[Overlap, Picked] | None = None
        for overlap in self._overlaps:
            found = self.best(overlap, limit_s, rows)
            if found is not None and (best is None or merit(found) > merit(best[1])):
                best = (overlap, found)
        return best

    def judged(self, limit_s: float, seed: int) -> float | None:
        """Return what plans made on one half of the recordings score on the other; None if unknown."""
        if self._validation.recordings < 2:
            return None
        sides = halves(self._validation, seed=seed)
        scores = []
        for mine, other in (sides, sides[::-1]):
            try:
                best = self.best_of_all(limit_s, mine)
                if best is None:
                    return None
                blended = self._validation.blended(best[0].name, best[1].counts)
                scores.append(self._validation.judged(blended, other))
            except AccuracyError:  # a half without positives, say
                return None
        return statistics.fmean(scores)

    def best(self, overlap: Overlap, limit_s: float, rows: IntArray | None = None) -> Picked | None:
        """Return the best ensemble at an overlap whose time surely fits."""

        def needed_s(names: frozenset[str]) -> float:
            variants = [of for name in names if (of := self._members[name].variant_of)]
            if len(set(variants)) < len(variants):
                return math.inf
            return self.duration(names, overlap).high_s

        return best_within(
            list(self._members),
            score=lambda counts: self._validation.judged(
                self._validation.blended(overlap.name, counts), rows
            ),
            time_s=needed_s,
            limit_s=limit_s,
            exhaustive_up_to=self._exhaustive_up_to,
        )

    def cheapest(self) -> tuple[Overlap, Picked]:
        """Return the member and the overlap that take the least time."""
        options = [
            (self.duration(frozenset([name]), overlap).high_s, name, overlap)
            for overlap in self._overlaps
            for name in self._members
        ]
        time_s, name, overlap = min(options, key=lambda option: option[:2])
        score = self._validation.score(overlap.name, {name: 1})
        return overlap, Picked(counts={name: 1}, score=score, time_s=time_s)

    def settled(self, overlap: Overlap, picked: Picked) -> tuple[Overlap, Picked, tuple[PlannedRung, ...]]:
        """Return the ensemble, or a cheaper part of it that is as good, and the ladder that it is the top of.

        A greedy search may pick a member that brings nothing.
        """
        while True:
            ladder = self._ladder(overlap, picked)
            top = ladder[0]
            if frozenset(top.members) == picked.names and top.overlap == overlap.name:
                return overlap, picked, ladder
            overlap = next(one for one in self._overlaps if one.name == top.overlap)
            counts = {name: picked.counts[name] for name in top.members}
            time_s = self.duration(frozenset(counts), overlap).high_s
            picked = Picked(counts=counts, score=top.score, time_s=time_s)

    def _ladder(self, overlap: Overlap, picked: Picked) -> tuple[PlannedRung, ...]:
        return declare_ladder(
            [member for name, member in self._members.items() if name in picked.counts],
            [one for one in self._overlaps if one.windows_per_row <= overlap.windows_per_row],
            sheet=self._sheet,
            score=lambda names, at: self._validation.score(at, {name: picked.counts[name] for name in names}),
        )

    def steps(self, picked: Picked, overlap: Overlap) -> Iterator[PlanStep]:
        """Yield the members in the order in which each brings most to those before."""
        so_far: dict[str, int] = {}
        while left := [name for name in picked.counts if name not in so_far]:
            scores = {
                name: self._validation.score(overlap.name, {**so_far, name: picked.counts[name]})
                for name in left
            }
            added = max(left, key=lambda name: scores[name])
            so_far[added] = picked.counts[added]
            yield PlanStep(
                added=added,
                members=tuple(so_far),
                score=scores[added],
                time=self.duration(frozenset(so_far), overlap),
            )

    def left_out(self, picked: Picked, overlap: Overlap, limit_s: float) -> Iterator[LeftOut]:
        """Yield members and overlaps that were not taken, with what they would bring."""
        for name, member in self._members.items():
            if name in picked.counts:
                continue
            rivals = [one for one in picked.counts if _are_variants(member, self._members[one])]
            counts = {one: count for one, count in picked.counts.items() if one not in rivals}
            counts[name] = max([1, *(picked.counts[one] for one in rivals)])
            yield self._compared(name, counts, overlap, picked, limit_s, instead_of=rivals)
        for other in self._overlaps:
            if other.name != overlap.name:
                yield self._compared(
                    f"overlap {other.name}", picked.counts, other, picked, limit_s, instead_of=[]
                )

    def _compared(
        self,
        what: str,
        counts: dict[str, int],
        overlap: Overlap,
        picked: Picked,
        limit_s: float,
        *,
        instead_of: Sequence[str],
    ) -> LeftOut:
        time = self.duration(frozenset(counts), overlap)
        score = self._validation.score(overlap.name, counts)
        gain = score - picked.score
        words = f"in place of {', '.join(instead_of)} it" if instead_of else "it"
        if time.high_s > limit_s:
            reason = f"would take up to {in_words(time.high_s)} of {in_words(limit_s)}"
            if gain > _WORTH_SAYING:
                reason += f", and bring {gain:+.4f}"
        elif gain > _WORTH_SAYING:
            # Only where all subsets were too many to try.
            reason = f"{words} would bring {gain:+.4f}; the search did not come across it"
        else:
            reason = f"{words} would bring {gain:+.4f}"
        return LeftOut(what=what, score=score, time=time, reason=reason)

    def cascade(
        self, picked: Picked, overlap: Overlap, limit_s: float, max_drop: float, seed: int, narrowed: int
    ) -> CascadeOffer | None:
        """Return the best cascade that fits and is better than the ensemble picked; None if there is none.

        It may end in the ensemble picked, which makes it faster, or in the one that there is no time for.
        There is none, either, where the recordings are too few to judge one.
        """
        validation = self._validation
        if validation.recordings < 2:
            return None
        plain = validation.blended(overlap.name, picked.counts)
        try:
            plain_score = statistics.fmean(
                validation.judged(plain, rows) for rows in halves(validation, seed=seed)
            )
        except AccuracyError:  # a half without positives, say
            return None
        plain_time = self.duration(picked.names, overlap)
        ensembles = [picked.counts]
        whole = self.best(overlap, self.duration(frozenset(self._members), overlap).high_s)
        if whole is not None and whole.counts != picked.counts:
            ensembles.append(whole.counts)
        offers = []
        for counts in ensembles:
            for first, share in itertools.product(self._firsts(counts, overlap), LEARNED_SHARES):
                try:
                    judged = judge_cascade(
                        validation,
                        overlap=overlap.name,
                        cheap=first,
                        counts=counts,
                        learned_drop=share * max_drop,
                        seed=seed,
                        narrowed=narrowed,
                    )
                except AccuracyError:  # a metric of the user's that is not defined for these scores
                    continue
                if judged is None or judged.drop > max_drop:
                    continue
                time = self._cascaded(judged, counts, overlap)
                reason = _why_better(judged.score - plain_score, time, plain_time, max_drop)
                if time.high_s <= limit_s and reason is not None:
                    offers.append(
                        CascadeOffer(
                            judged=judged,
                            counts=counts,
                            overlap=overlap.name,
                            time=time,
                            plain_score=plain_score,
                            reason=reason,
                        )
                    )
        # The most score where one scores more than the plan, or else the least time.
        return max(
            offers,
            key=lambda one: (max(one.judged.score - plain_score, _WORTH_SAYING), -one.time.expected_s),
            default=None,
        )

    def _firsts(self, counts: Mapping[str, int], overlap: Overlap) -> list[str]:
        """Return the members that a cascade may begin with which ends in some ensemble."""
        alone_s = {name: self.duration(frozenset([name]), overlap).expected_s for name in self._members}
        most_s = _BEST_FIRST_COST * self.duration(frozenset(counts), overlap).expected_s
        found = sorted(alone_s, key=alone_s.__getitem__)[:_CHEAPEST_FIRST]
        affordable = [name for name in alone_s if alone_s[name] <= most_s]
        if affordable:
            found.append(max(affordable, key=lambda name: self._validation.score(overlap.name, {name: 1})))
        others = {
            name: [self._members[other] for other in counts if other != name] for name in dict.fromkeys(found)
        }
        return [
            name
            for name, rest in others.items()
            if rest and not any(_are_variants(self._members[name], other) for other in rest)
        ]

    def _cascaded(self, judged: JudgedCascade, counts: Mapping[str, int], overlap: Overlap) -> Duration:
        """Return the time of a job with a cascade; the expensive members' share is uncertain as well."""
        cheap = judged.cascade.cheap
        alone = self.duration(frozenset([cheap]), overlap)
        shares = {name: judged.share for name in counts if name != cheap}
        sure = self.duration(frozenset([cheap, *counts]), overlap, shares=shares)
        unsure = judged.share_spread * max(0.0, 1 - alone.expected_s / sure.expected_s)
        return self.duration(frozenset([cheap, *counts]), overlap, shares=shares, extra_spread=unsure)


def _why_better(gain: float, time: Duration, plain: Duration, max_drop: float) -> str | None:
    saved = 1 - time.expected_s / plain.expected_s
    if gain <= _WORTH_SAYING and (gain < -max_drop or saved < _WORTH_CASCADING):
        return None
    return f"{gain:+.4f} beside the plan, judged on other recordings, in {1 - saved:.0%} of its time"


def _are_variants(one: Member, other: Member) -> bool:
    return bool(one.variant_of) and one.variant_of == other.variant_of
