"""Which candidate to measure next: cheap looks at many, closer looks at few, a race of the best.

The strategy asks a `Field` for everything that costs time, and knows nothing of processes, engines or
files: a test replaces the field by a simulated machine with drift, spikes and stolen time.

Speeds are never compared across minutes. Each look at a candidate stands between two rounds of the
*anchor*, one candidate that stays loaded, and its score is the ratio of the two; in the race all contenders
take turns. The anchor is of the leaders' kind: a core that is shared with other guests may compute INT8 at
half of its speed or at all of it, from second to second, while FP32 goes on as ever. For the same reason a
look beside an anchor that changed its pace is taken again, and no single look is believed of what may win.
A round in which the hypervisor gave the CPUs to others, for half a second perhaps, is taken again too: the
anchor need not have noticed.

Successive halving after Jamieson & Talwalkar 2016 (AISTATS 51); dropping a contender as soon as its interval
lies below the leader's is racing after Maron & Moore 1994 (NIPS 6).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from alula.core import Candidate, Recipe, Settings
from alula.errors import EngineError
from alula.measure import Clock, Round, ratio
from alula.measure.statistics import MIN_ROUNDS

__all__ = ["NO_TIME", "Effort", "Field", "Standing", "Strategy"]


_ANCHOR_ROUNDS = 15  # half a minute: longer than most disturbances, shorter than most drifts
_MOSTLY = 0.75  # of the time for looks: then leaders get closer ones, whatever is left to try
_SURE = 3  # looks, whose median one disturbance cannot move
_TWICE = 2  # looks: one may be disturbed
_AGAIN = 3  # settings of a promising recipe are looked at twice
_AGREE = 1.04  # the higher of two looks over the lower
_LEAST_LAPS = 2  # forwards and backwards
_FEWEST = 3  # contenders
NO_TIME = "the budget is used up"
"""How the reason begins why a recipe was not tried that may have been worth it."""
_CALM = 0.85  # of the anchor's usual speed: less is a disturbance, more is noise
_STEADY = 1.15  # the faster of the anchor's rounds beside a look over the slower: more is a disturbance
_OTHER_KIND = 1.5  # times the anchor's speed: what disturbs the one need not disturb the other
_MOST_LOOKS = 4  # at one candidate that may win
_STOLEN = 0.04  # of the CPU time wanted: a round in which the hypervisor gave more to others is disturbed
_STOLEN_ROUNDS = 30  # where it does so all the time, a round is as good as any if half of these had no less


class Field(Protocol):
    """What a strategy can ask for. Every method may take long."""

    def prepare(self, recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        """Build a recipe and check its accuracy roughly; return its coarse settings, none if it does not run.

        Different thread layouts at one batch size come first, then other batch sizes. A recipe that is not
        ready by `until_s` on the clock is given up, as one that there was no time for.
        """
        ...

    def is_wrong(self, recipe: Recipe) -> bool:
        """Return whether a recipe that runs cannot be accepted: its speed is of use for others only."""
        ...

    def loading_s(self, candidate: Candidate) -> float:
        """Return about how long it takes to load a candidate into a process of its own."""
        ...

    def variations(self, candidate: Candidate) -> tuple[Settings, ...]:
        """Return settings close to a good candidate's: other batch sizes, then other knobs."""
        ...

    def hold(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Load candidates to take turns without loading again; return those that could be.

        They replace those held before.
        """
        ...

    def measure(self, candidate: Candidate, seconds: float) -> Round:
        """Return one round; loads the candidate first unless it is held.

        Raises:
            EngineError: the candidate failed; it is not asked for again.
        """
        ...

    def scored(self, candidate: Candidate, taken: Round, score: float) -> None:
        """Take note of a look at a candidate and of its speed over the anchor's."""
        ...

    def known_scores(self, recipe: Recipe) -> dict[Candidate, float] | None:
        """Return the scores of looks that an earlier, interrupted search took.

        None for a recipe that it did not come to; empty for one that it found to be out.
        """
        ...

    def outdone(self, recipe: Recipe, *, best: float) -> str | None:
        """Return why a recipe that was not tried cannot win, from what is known of others; None if it may.

        Args:
            recipe: of those that the strategy was given.
            best: the highest score of a recipe that was not found wrong.
        """
        ...

    def skip(self, recipe: Recipe, reason: str) -> None:
        """Take note that a recipe is not tried, and why."""
        ...

    def accept(self, candidate: Candidate) -> bool:
        """Return whether the candidate's recipe is inside the accuracy limit on all validation samples."""
        ...

    def checking_s(self, candidate: Candidate) -> float:
        """Return about how long it takes to accept a candidate that is loaded."""
        ...


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a strategy measures.

    Attributes:
        look_s: length of one look and of the anchor's rounds beside it.
        round_s: length of a round of the race.
        far: a recipe whose looks at some settings reach less than this share of the best of others at those
            gets no further ones.
        hopeless: a recipe whose first looks reach less than this share of the best gets no more.
        likely: share of the best score from which on the best candidates, twice as many as start in the race,
            are looked at until two looks agree.
        promising: share of the best score from which on a recipe gets closer looks.
        close: share of the best score from which on a candidate gets into the race.
        contenders: at most so many start in the race.
        per_recipe: at most so many of one recipe.
        closer: at most so many recipes get closer looks.
        tries: at most so often is a look repeated that was disturbed.
        laps: of the race at most.
        finalists: so many are wanted at the end, if there are as many.
        margin: differences smaller than this are not worth measuring.
    """

    look_s: float = 0.4
    round_s: float = 0.6
    far: float = 0.4
    hopeless: float = 0.6
    likely: float = 0.7
    promising: float = 0.85
    close: float = 0.9
    contenders: int = 6
    per_recipe: int = 3
    closer: int = 3
    tries: int = 3
    laps: int = 12
    finalists: int = 3
    margin: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One accepted candidate at the end: its speed over the winner's, 1 for the winner."""

    candidate: Candidate
    relative: float


class Strategy:
    """Finds the fastest accepted candidate of a field within a time.

    Args:
        field: see `Field`.
        clock: tells the time.
        effort: see `Effort`.
    """

    def __init__(self, field: Field, *, clock: Clock, effort: Effort | None = None) -> None:
        self._field = field
        self._clock = clock
        self._effort = effort or Effort()
        self._looks: dict[Candidate, list[float]] = {}
        self._scores: dict[Candidate, float] = {}
        self._failed: set[Candidate] = set()
        self._anchor: Candidate | None = None
        self._anchor_score = 1.0  # an earlier search's scores are relative to the anchor of that one
        self._anchor_is_held = False
        self._anchor_is_fresh = False  # nothing else was measured since
        self._anchor_per_s: deque[float] = deque(maxlen=_ANCHOR_ROUNDS)
        self._stolen: deque[float] = deque(maxlen=_STOLEN_ROUNDS)
        self._rounds_wanted = self._rounds_taken = 0
        self._coarse: dict[Recipe, list[Candidate]] = {}
        self._surrounded: set[Candidate] = set()  # of which all variations were looked at
        self._costs_s: list[float] = []
        self._given_up: list[Recipe] = []  # or failed: which of the two is the field's affair
        self._calls_s: dict[Candidate, float] = {}
        self._right: set[Recipe] = set()
        self._dropped = 0  # recipes that were found wrong
        self._raced_per_s: dict[Candidate, list[float]] = {}
        self._started_s = self._deadline_s = 0.0  # set by `run`
        self._after_s: Callable[[Sequence[Candidate]], float] = _nothing

    def run(
        self,
        recipes: Sequence[Recipe],
        *,
        deadline_s: float,
        after_s: Callable[[Sequence[Candidate]], float] | None = None,
    ) -> tuple[Standing, ...]:
        """Return accepted candidates, the fastest first; empty when none was accepted.

        Recipes are taken in order as long as one like those before would end in time, without those that
        cannot win by what is known then; then the best are looked at more closely. Time that is left goes to
        further recipes, which are given up where they do not end in time. What seemed to be outdone is tried
        after all when the recipe that outdid it turns out to be wrong.

        Args:
            recipes: most promising first.
            deadline_s: the clock's time at which all is done, what comes after included. The first recipe
                that works is waited for in any case.
            after_s: gives the seconds that the caller needs when these are the finalists.
        """
        self._started_s, self._deadline_s = self._clock.monotonic(), deadline_s
        self._after_s = after_s or _nothing
        left = [recipe for recipe in recipes if not self._know(recipe)]
        if self._scores:
            self._make_anchor(self.best_so_far()[0])
        while True:
            self._look_around(left)
            dropped = self._dropped
            standings = self._race()
            # What the race found wrong may have outdone others.
            if self._dropped == dropped or self._is_late(self._expected_s()) or not self._take_next(left):
                break
        # Nothing was right so far, and there must be a result. What was given up is waited for now.
        while not standings and (left or self._given_up):
            self._take(left.pop(0) if left else self._given_up.pop(0))
            standings = self._race()
        for recipe in left:
            self._field.skip(recipe, self._outdone(recipe) or NO_TIME)
        return standings

    def _look_around(self, left: list[Recipe]) -> None:
        """Take recipes, closer looks at the best of them, and further recipes, as long as there is time.

        The first closer looks are taken while there is time for others: recipes that take a minute each may
        leave none for the settings of the leaders.
        """
        looked_closer = False
        while True:
            while not (self._scores and self._is_late(self._expected_s())) and self._take_next(left):
                if not looked_closer and self._is_mostly_over():
                    looked_closer = True
                    self._look_closer()
                    self._look_until_sure()
            self._look_closer()
            self._look_until_sure()
            if self._is_late(min(self._costs_s, default=0.0)) or not self._take_next(left):
                return

    def call_s(self, candidate: Candidate) -> float:
        """Return how long one call of a candidate takes, as it was looked at; 0 where that is not known."""
        return self._calls_s.get(candidate, 0.0)

    @property
    def raced_per_s(self) -> dict[Candidate, tuple[float, ...]]:
        """The speed of every contender in every lap of every race that it took part in, in order."""
        return {one: tuple(rates) for one, rates in self._raced_per_s.items()}

    def _looks_end_s(self) -> float:
        """Return when the looks must end, so that there is time for the race and for what follows."""
        names = self._shortlist()
        end_s = self._deadline_s - self._after_s(names[: self._effort.finalists])
        full_s = self._race_s(names, laps=self._effort.laps / 2)  # about half of them drop out on the way
        least_s = self._race_s(names[: self._effort.finalists], laps=_LEAST_LAPS)
        return end_s - min(full_s, max(least_s, (end_s - self._started_s) / 4))

    def _race_s(self, names: Sequence[Candidate], *, laps: float) -> float:
        """Return about how long a race takes, with the checks of accuracy that are still to be made."""
        running_s = sum(self._lap_s(one) for one in names) * (laps if len(names) > 1 else 1)
        return sum(map(self._field.loading_s, names)) + running_s + self._checks_s(names)

    def _checks_s(self, names: Sequence[Candidate]) -> float:
        """Return about how long it takes to check the accuracy of those that were not checked yet."""
        unchecked = {one.recipe: one for one in names if one.recipe not in self._right}
        return sum(map(self._field.checking_s, unchecked.values()))

    def _lap_s(self, candidate: Candidate) -> float:
        # A call that is under way when a round's time is over is finished, and some rounds are taken again.
        tries = self._rounds_taken / self._rounds_wanted if self._rounds_wanted else 1.0
        return tries * (self._effort.round_s + self.call_s(candidate) / 2)

    def _is_late(self, ahead_s: float = 0.0) -> bool:
        return self._clock.monotonic() + ahead_s > self._looks_end_s()

    def _is_mostly_over(self) -> bool:
        if len(self._costs_s) <= self._effort.closer:
            return False  # others say more than other settings of the first
        looks_s = self._looks_end_s() - self._started_s
        return self._clock.monotonic() > self._started_s + _MOSTLY * looks_s

    def _know(self, recipe: Recipe) -> bool:
        """Take over what an earlier search knows of a recipe; return whether that is anything."""
        known = self._field.known_scores(recipe)
        if known is None:
            return False
        self._scores |= known
        return True

    def _take_next(self, left: list[Recipe]) -> bool:
        """Take the first recipe that may win; return whether there was one."""
        recipe = next((one for one in left if self._outdone(one) is None), None)
        if recipe is None:
            return False
        left.remove(recipe)
        self._take(recipe)
        return True

    def _outdone(self, recipe: Recipe) -> str | None:
        return self._field.outdone(recipe, best=self._best()) if self._scores else None

    def _take(self, recipe: Recipe) -> None:
        started_s = self._clock.monotonic()
        until_s = self._looks_end_s() if self._scores else math.inf
        settings = self._field.prepare(recipe, until_s=until_s)
        self._anchor_is_fresh = False
        if not settings and until_s < math.inf:
            self._given_up.append(recipe)
        self._look_at(recipe, settings)
        self._costs_s.append(self._clock.monotonic() - started_s)

    def best_so_far(self) -> tuple[Candidate, ...]:
        """Return all candidates that were looked at, the fastest first, whether accepted or not."""
        return tuple(one for one, _ in self._ranked())

    def _ranked(self) -> list[tuple[Candidate, float]]:
        return sorted(self._scores.items(), key=lambda known: -known[1])

    def _expected_s(self) -> float:
        """Return how long a further recipe takes, as far as that is known: one is given up where it is late.

        The first one says little, since it pays for what all share: the export above all.
        """
        return statistics.median(self._costs_s[1:]) if len(self._costs_s) > 1 else 0.0

    # Looks.

    def _look_at(self, recipe: Recipe, settings: Sequence[Settings]) -> None:
        if not settings:
            return
        first_batch = settings[0].batch_size
        candidates = [Candidate(recipe, one) for one in settings]
        if self._field.is_wrong(recipe):
            self._look_at_wrong(candidates[0])
            return
        layouts = [one for one in candidates if one.settings.batch_size == first_batch]
        self._coarse[recipe] = candidates
        for candidate in layouts:
            self._look([candidate])
            if candidate in self._scores and not self._is_promising(recipe):
                self._look([candidate])  # a disturbed look must not cost a recipe its chance
            if self._is_far(candidate):
                return
        found = [one for one in layouts if one in self._scores]
        if not found or max(self._scores[one] for one in found) < self._effort.hopeless * self._best():
            return
        best = max(found, key=lambda one: self._scores[one])
        # Which layout is better depends little on the batch size; leaders get a closer look later.
        self._look([one for one in candidates if one not in layouts and _same_layout(one, best)])
        ranked = sorted(self._of(recipe), key=lambda one: -self._scores[one])
        again = ranked[: _AGAIN if self._is_promising(recipe) else 1]
        self._look([one for one in again if len(self._looks[one]) < _TWICE])

    def _is_promising(self, recipe: Recipe) -> bool:
        scores = [self._scores[one] for one in self._of(recipe)]
        return max(scores, default=0.0) >= self._effort.promising * self._best()

    def _is_far(self, candidate: Candidate) -> bool:
        """Whether a candidate is so far behind others at its settings that no other layout helps."""
        mine = self._scores.get(candidate)
        return mine is not None and mine < self._effort.far * self._best_beside(candidate)

    def _best_beside(self, candidate: Candidate) -> float:
        """Return the best score of other recipes at the settings of a candidate, 0 without one."""
        return max(
            (
                score
                for one, score in self._scores.items()
                if one.settings == candidate.settings and one.recipe != candidate.recipe
            ),
            default=0.0,
        )

    def _look_at_wrong(self, candidate: Candidate) -> None:
        """Score a recipe by its share of the best at the same settings: it is not worth a look at others."""
        beside = self._best_beside(candidate)
        if not beside or self._is_late():
            return
        with contextlib.suppress(EngineError):
            looks = [self._compared(candidate) for _ in range(_TWICE)]
            taken, score = max(looks, key=lambda look: look[1])
            self._field.scored(candidate, taken, score / beside * self._best())

    def _look_closer(self) -> None:
        """Climb from the best settings of each promising recipe to better ones close by."""
        done: set[Recipe] = set()
        while (leader := self._promising(done)) is not None and len(done) < self._effort.closer:
            done.add(leader.recipe)
            if not self._is_right(leader):
                self._drop(leader.recipe)
                done.remove(leader.recipe)
                continue
            for candidate in self._coarse.get(leader.recipe, ()):
                if not self._was_tried(candidate):
                    self._look_twice(candidate, below=self._scores.get(leader, 0.0))
            top = self._best_of(leader.recipe)
            while top is not None and top not in self._surrounded:
                before = self._scores[top]
                for settings in self._field.variations(top):
                    candidate = Candidate(top.recipe, settings)
                    if self._was_tried(candidate):
                        continue
                    if self._is_late(self._field.loading_s(candidate)):
                        return
                    self._look_twice(candidate, below=before)
                self._surrounded.add(top)
                best = self._best_of(leader.recipe)
                top = best if best is not None and best != top and self._scores[best] > before else None

    def _look_until_sure(self) -> None:
        """Look again at candidates that may win and of which no two looks agree."""
        while True:
            unsure = (
                one
                for one in self.best_so_far()[: 2 * self._effort.contenders]
                if self._scores[one] >= self._effort.likely * self._best() and not self._is_known(one)
            )
            candidate = next(unsure, None)
            if candidate is None or self._is_late(self._field.loading_s(candidate)):
                return
            self._look([candidate])

    def _is_known(self, candidate: Candidate) -> bool:
        looks = sorted(self._looks.get(candidate, ()))
        agree = any(more <= _AGREE * less for less, more in itertools.pairwise(looks))
        # An earlier search tells no looks, only what came of them.
        return agree or not looks or len(looks) >= _MOST_LOOKS

    def _was_tried(self, candidate: Candidate) -> bool:
        return candidate in self._scores or candidate in self._failed

    def _look_twice(self, candidate: Candidate, *, below: float) -> None:
        """Look at a candidate; again if it stays below a score, which a disturbance may have done."""
        self._look([candidate])
        if 0.0 < self._scores.get(candidate, 0.0) < below:
            self._look([candidate])

    def _is_right(self, candidate: Candidate) -> bool:
        if candidate.recipe in self._right:
            return True
        self._anchor_is_fresh = False
        if self._field.accept(candidate):
            self._right.add(candidate.recipe)
        return candidate.recipe in self._right

    def _promising(self, done: set[Recipe]) -> Candidate | None:
        """Return the best candidate of a recipe that is close to the leader and not done yet."""
        for candidate in self.best_so_far():
            if candidate.recipe not in done:
                close = self._scores[candidate] >= self._effort.promising * self._best()
                return candidate if close else None
        return None

    def _of(self, recipe: Recipe) -> list[Candidate]:
        return [one for one in self._scores if one.recipe == recipe]

    def _best_of(self, recipe: Recipe) -> Candidate | None:
        return max(self._of(recipe), key=lambda one: self._scores[one], default=None)

    def _drop(self, recipe: Recipe) -> None:
        self._dropped += 1
        for candidate in self._of(recipe):
            del self._scores[candidate]

    def _look(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            known = any(one.recipe == candidate.recipe for one in self._scores)
            if self._scores and self._is_late(self._field.loading_s(candidate) if known else 0.0):
                return
            leader_before = self._best()
            try:
                self._look_once(candidate)
                # A lead may be the anchor's bad luck, which would make all others look slow from then on.
                while self._scores[candidate] > leader_before and not self._is_sure(candidate):
                    self._look_once(candidate)
            except EngineError:
                self._lose(candidate)
            else:
                if self._scores[candidate] > max(leader_before, _OTHER_KIND * self._anchor_score):
                    self._make_anchor(candidate)

    def _lose(self, candidate: Candidate) -> None:
        """Forget a candidate that failed, however well it did before."""
        self._failed.add(candidate)
        self._scores.pop(candidate, None)
        if candidate == self._anchor:
            self._make_anchor(next(iter(self.best_so_far()), None))

    def _make_anchor(self, candidate: Candidate | None) -> None:
        """Measure beside another candidate from now on; its score keeps the unit of all scores."""
        self._anchor = candidate
        self._anchor_score = 1.0 if candidate is None else self._scores[candidate]
        self._anchor_is_held = self._anchor_is_fresh = False
        self._anchor_per_s.clear()

    def _is_sure(self, candidate: Candidate) -> bool:
        """Whether two looks at a candidate agree, or there were enough of them."""
        looks = self._looks[candidate]
        return len(looks) >= _SURE or (len(looks) > 1 and max(looks) <= _AGREE * min(looks))

    def _look_once(self, candidate: Candidate) -> None:
        taken, score = self._compared(candidate)
        scores = self._looks.setdefault(candidate, [])
        scores.append(score)
        self._scores[candidate] = statistics.median_high(scores)
        self._field.scored(candidate, taken, self._scores[candidate])

    def _compared(self, candidate: Candidate) -> tuple[Round, float]:
        """Return a look and its score; a new one, where the anchor says that the machine was disturbed.

        Raises:
            EngineError: the candidate failed.
        """
        for tries_left in reversed(range(self._effort.tries)):
            self._refresh_anchor(candidate)
            taken = self._measured(candidate, self._effort.look_s)
            self._calls_s[candidate] = statistics.median(taken.calls)
            self._anchor_is_fresh = False
            self._refresh_anchor(candidate)
            if candidate in self._failed:  # as the anchor beside itself
                raise EngineError(f"{candidate} failed when it was measured again.")
            beside = list(self._anchor_per_s)[-2:]
            score = taken.per_s / max(beside) * self._anchor_score
            calm = min(beside) >= max(self._calm_per_s(), max(beside) / _STEADY)
            # What is far behind whatever disturbed it need not be known well.
            far = score < self._effort.far * self._best() and not self._is_promising(candidate.recipe)
            if calm or far or not tries_left:
                break
        return taken, score

    def _measured(self, candidate: Candidate, seconds: float) -> Round:
        """Return a round, the best of a few where the hypervisor gave the CPUs to others.

        Raises:
            EngineError: the candidate failed.
        """
        rounds: list[Round] = []
        self._rounds_wanted += 1
        while len(rounds) < self._effort.tries:
            rounds.append(self._field.measure(candidate, seconds))
            self._rounds_taken += 1
            self._stolen.append(rounds[-1].stolen)
            if rounds[-1].stolen <= max(_STOLEN, statistics.median(self._stolen)):
                break
        return min(rounds, key=lambda one: one.stolen)

    def _calm_per_s(self) -> float:
        """Return the anchor's speed below which the machine counts as disturbed.

        That is 15 % below the upper quartile of its last rounds, which is no luck of one round; but at most
        the lower quartile, since on a machine that is never calm it is no use to wait.
        """
        ranked = sorted(self._anchor_per_s)
        return min(_CALM * ranked[3 * len(ranked) // 4], ranked[len(ranked) // 4])

    def _refresh_anchor(self, candidate: Candidate) -> None:
        """Measure the anchor, unless nothing was measured since.

        One that fails is replaced by the best of the others; where there are none, by the candidate that is
        looked at.

        Raises:
            EngineError: the anchor is the candidate, and failed.
        """
        while not self._anchor_is_fresh:
            anchor = self._anchor = self._anchor or candidate
            try:
                if not self._anchor_is_held and not self._field.hold([anchor]):
                    raise EngineError(f"{anchor} could not be loaded.")
                self._anchor_per_s.append(self._measured(anchor, self._effort.look_s).per_s)
                self._anchor_is_held = self._anchor_is_fresh = True
            except EngineError:
                self._lose(anchor)
                if anchor == candidate:
                    raise

    def _best(self) -> float:
        return max(self._scores.values(), default=0.0)

    # The race.

    def _race(self) -> tuple[Standing, ...]:
        """Return the accepted contenders of the race in order; those that were not accepted cost another."""
        while names := self._in_time(self._shortlist()):
            self._anchor_is_held = self._anchor_is_fresh = False
            held = self._field.hold(names)
            for lost in set(names) - set(held):
                self._lose(lost)
            order = self._raced(held)
            right: list[Standing] = []
            for standing in order:
                if len(right) == self._effort.finalists:
                    break
                if right and standing.relative < self._effort.close * right[0].relative:
                    break
                if self._is_right(standing.candidate):
                    right.append(standing)
                else:
                    self._drop(standing.candidate.recipe)
            if right:
                scale = right[0].relative
                return tuple(
                    Standing(candidate=one.candidate, relative=one.relative / scale) for one in right
                )
        return ()

    def _in_time(self, names: list[Candidate]) -> list[Candidate]:
        """Return as many of the best as can be loaded and compared before the race must end, at least one."""
        while len(names) > 1:
            race_s = self._race_s(names, laps=_LEAST_LAPS)
            if self._clock.monotonic() + race_s <= self._race_end_s(names):
                break
            names = names[:-1]
        return names

    def _race_end_s(self, names: Sequence[Candidate]) -> float:
        return self._deadline_s - self._after_s(names[: self._effort.finalists])

    def _shortlist(self) -> list[Candidate]:
        threshold, least = (share * self._best() for share in (self._effort.close, self._effort.hopeless))
        chosen: list[Candidate] = []
        for candidate, score in self._ranked():
            # The best score may be luck: a few get their chance from further behind.
            is_close = score >= (least if len(chosen) < _FEWEST else threshold)
            if not is_close or len(chosen) == self._effort.contenders:
                break
            if sum(one.recipe == candidate.recipe for one in chosen) < self._effort.per_recipe:
                chosen.append(candidate)
        return chosen

    def _raced(self, contenders: Sequence[Candidate]) -> list[Standing]:
        rates: dict[Candidate, list[float]] = {one: [] for one in contenders}
        alive = list(contenders)
        for lap in range(self._effort.laps):
            ahead_s = sum(self._lap_s(one) for one in alive) + self._checks_s(alive)
            if lap >= _LEAST_LAPS and self._clock.monotonic() + ahead_s > self._race_end_s(alive):
                break
            # Forwards, then backwards: a steady drift within a lap cancels over two laps.
            for candidate in list(alive if lap % 2 == 0 else reversed(alive)):
                try:
                    per_s = self._measured(candidate, self._effort.round_s).per_s
                    rates[candidate].append(per_s)
                    self._raced_per_s.setdefault(candidate, []).append(per_s)
                except EngineError:
                    self._lose(candidate)
                    alive.remove(candidate)
                    del rates[candidate]
            alive = self._still_in(alive, rates)
            if len(alive) <= 1:
                break
        if not rates:
            return []
        leader = _leader(rates)
        relative = {one: _relative(found, rates[leader]) for one, found in rates.items()}
        ran_all = [one for one in rates if len(rates[one]) == len(rates[leader])]
        # Who dropped out may have been ahead of this leader until then: by the luck of few laps.
        behind = min(relative[one] for one in ran_all)
        standings = [
            Standing(candidate=one, relative=share if one in ran_all else min(share, behind))
            for one, share in relative.items()
        ]
        return sorted(standings, key=lambda one: (-one.relative, one.candidate not in ran_all))

    def _still_in(self, alive: Sequence[Candidate], rates: dict[Candidate, list[float]]) -> list[Candidate]:
        """Return those that may still win: halved on the way, and none certainly slower than the leader."""
        leader = _leader({one: rates[one] for one in alive}) if alive else None
        if leader is None:
            return []
        laps = len(rates[leader])
        if laps < 3:
            return list(alive)
        kept = []
        for one in sorted(alive, key=lambda one: -_relative(rates[one], rates[leader])):
            pairs = list(zip(rates[one], rates[leader], strict=True))
            if one != leader:
                if all(mine < (1 - self._effort.margin) * theirs for mine, theirs in pairs) and laps >= 4:
                    continue
                if laps >= MIN_ROUNDS and ratio(rates[one], rates[leader]).high < 1.0:
                    continue
            kept.append(one)
        if laps == 5:
            kept = kept[: max(2, (self._effort.contenders + 1) // 2)]
        elif laps == 9:
            kept = kept[:2]
        return [one for one in alive if one in kept]


def _nothing(candidates: Sequence[Candidate]) -> float:
    return 0.0


def _same_layout(one: Candidate, other: Candidate) -> bool:
    return (one.settings.threads, one.settings.instances) == (
        other.settings.threads,
        other.settings.instances,
    )


def _relative(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=False))


def _leader(rates: dict[Candidate, list[float]]) -> Candidate:
    """Return the candidate with the best median over laps in which all of the longest-lived took part."""
    laps = max(len(found) for found in rates.values())
    full = {one: found for one, found in rates.items() if len(found) == laps}
    middle = [statistics.median(column) for column in zip(*full.values(), strict=True)]
    return max(full, key=lambda one: _relative(full[one], middle))
