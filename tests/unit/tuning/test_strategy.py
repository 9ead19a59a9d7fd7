"""The strategy on a simulated machine: drift, spikes, stolen time, failures, and what it costs."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest

from alula.core import Candidate, Recipe, Settings
from alula.errors import DiskFullError, EngineError
from alula.measure import Round
from alula.measure.fake import ScriptedClock
from alula.tuning.strategy import Effort, Standing, Strategy

LAYOUTS = ((2, 1), (1, 2))
BATCHES = (1, 2, 4, 8, 16, 32)
COARSE = (8, 1, 32)
KNOBS: tuple[dict[str, bool], ...] = ({}, {"spin": True}, {"pin": True})
RECIPES = tuple(
    Recipe(engine, "int8", quantizer, variant)
    for engine, quantizer in (("a", "static"), ("b", "nncf"), ("c", "fx"), ("d", "pt2e"))
    for variant in (None, "full", "mixed")
) + tuple(Recipe(engine, "fp32") for engine in "abcd")


@dataclasses.dataclass(frozen=True)
class Noise:
    """What a shared machine does to a measurement.

    All of it slows things down, but for one: `alone` of the time INT8 has to itself what it shares with other
    guests of the core else, for seconds, and is up to twice as fast. FP32 does not notice. So it was seen on
    a virtual machine whose two CPUs have the matrix unit (AMX) of a core that others use too.

    In `bursts` of its time, half a second here and there, the hypervisor gives a part of the CPUs to others,
    and says so.
    """

    jitter: float = 0.015
    drift: float = 0.0
    spikes: float = 0.0
    stolen: float = 0.0
    alone: float = 0.0
    bursts: float = 0.0


QUIET = Noise()
NOISY = Noise(jitter=0.02, drift=0.3, spikes=0.06, stolen=0.15)
SHARED = dataclasses.replace(NOISY, alone=0.25)
ALONE_S = 2.0
BURSTY = dataclasses.replace(NOISY, stolen=0.0, bursts=0.2)
BURST_S = 0.7


class Spells:
    """Something that has another value for a share of the time, in spells of random lengths."""

    def __init__(
        self,
        chance: random.Random,
        share: float,
        mean_s: float,
        *,
        between: tuple[float, float],
        usual: float,
    ) -> None:
        self._chance, self._share, self._mean_s = chance, share, mean_s
        self._between, self._usual = between, usual
        self._until_s, self._next_s, self._value = 0.0, 0.0, usual

    def mean(self, from_s: float, seconds: float, parts: int = 8) -> float:
        """Return its mean over a time; times are asked for in order."""
        total = 0.0
        for part in range(parts):
            now_s = from_s + seconds * part / parts
            while now_s > self._next_s:
                self._until_s = self._next_s + self._chance.expovariate(1 / self._mean_s)
                usual_s = self._mean_s * (1 - self._share) / self._share
                self._next_s = self._until_s + self._chance.expovariate(1 / usual_s)
                self._value = self._chance.uniform(*self._between)
            total += self._value if now_s < self._until_s else self._usual
        return total / parts


class SimulatedField:
    """Candidates of known speed on a machine of known noise. Implements `Field`."""

    def __init__(self, seed: int, noise: Noise, clock: ScriptedClock) -> None:
        self.chance = random.Random(seed)
        self.noise, self.clock = noise, clock
        self.period_s = self.chance.uniform(60, 400)
        self.phase = self.chance.uniform(0, 2 * math.pi)
        self.stolen_until_s, self.next_theft_s = 0.0, self.chance.expovariate(1 / 40)
        self.alone = Spells(self.chance, noise.alone, ALONE_S, between=(1.2, 1.9), usual=1.0)
        self.bursts = Spells(self.chance, noise.bursts, BURST_S, between=(0.1, 0.8), usual=0.0)
        self.bad: set[Recipe] = {one for one in RECIPES if self.chance.random() < 0.15}
        self.broken: set[Candidate] = set()
        self.wrong_at_once: set[Recipe] = set()
        self.skipped: list[Recipe] = []
        self.reasons: dict[Recipe, str] = {}
        self.asked: list[Recipe] = []
        self.measured: list[Candidate] = []
        self.failures: list[Candidate] = []
        self.truth = {one: speed for recipe in RECIPES for one, speed in self._speeds(recipe).items()}
        self.held: tuple[Candidate, ...] = ()
        self.known: dict[Recipe, dict[Candidate, float]] = {}
        self.scores: dict[Candidate, float] = {}

    def _speeds(self, recipe: Recipe) -> dict[Candidate, float]:
        base = 100 * math.exp(self.chance.gauss(0, 0.5))
        layout_gain = {layout: math.exp(self.chance.gauss(0, 0.12)) for layout in LAYOUTS}
        peak = {layout: self.chance.uniform(0, 5) for layout in LAYOUTS}
        steep = self.chance.uniform(0.005, 0.04)
        knob_gain = [1.0, *(math.exp(self.chance.gauss(-0.01, 0.02)) for _ in KNOBS[1:])]
        return {
            Candidate(
                recipe, Settings(threads=layout[0], instances=layout[1], batch_size=batch, knobs=knobs)
            ): (
                base
                * layout_gain[layout]
                * math.exp(-steep * (math.log2(batch) - peak[layout]) ** 2)
                * knob_gain[index]
            )
            for layout in LAYOUTS
            for batch in BATCHES
            for index, knobs in enumerate(KNOBS)
        }

    def best(self) -> float:
        return max(
            speed
            for one, speed in self.truth.items()
            if one.recipe not in self.bad and one not in self.broken
        )

    def prepare(self, recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        self.asked.append(recipe)
        taking_s = self.chance.uniform(3, 12)
        allowed_s = max(1.0, until_s - self.clock.monotonic())
        self.clock.advance(min(taking_s, allowed_s))
        if taking_s > allowed_s:
            self.skipped.append(recipe)
            return ()
        return tuple(
            Settings(threads=threads, instances=instances, batch_size=batch)
            for batch in COARSE
            for threads, instances in LAYOUTS
        )

    def variations(self, candidate: Candidate) -> tuple[Settings, ...]:
        mine = candidate.settings
        replace = msgspec.structs.replace
        batches = [batch for batch in (mine.batch_size * 2, mine.batch_size // 2) if batch in BATCHES]
        return (
            *(replace(mine, batch_size=batch) for batch in batches),
            replace(mine, threads=mine.instances, instances=mine.threads),
            *(replace(mine, knobs=knobs) for knobs in KNOBS if knobs != mine.knobs),
        )

    def is_wrong(self, recipe: Recipe) -> bool:
        return recipe in self.wrong_at_once

    def loading_s(self, candidate: Candidate) -> float:
        return 1.5

    def hold(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        self.clock.advance(1.5 * len(candidates))
        self.held = tuple(one for one in candidates if one not in self.broken)
        return self.held

    def measure(self, candidate: Candidate, seconds: float) -> Round:
        if candidate in self.broken:
            self.failures.append(candidate)
            raise EngineError("broken")
        self.measured.append(candidate)
        if candidate not in self.held:
            self.clock.advance(1.0)
        now_s = self.clock.monotonic()
        slow = 1 + self.noise.drift * (1 + math.sin(2 * math.pi * now_s / self.period_s + self.phase)) / 2
        while self.noise.stolen and now_s > self.next_theft_s:
            self.stolen_until_s = self.next_theft_s + self.chance.expovariate(1 / 8)
            self.next_theft_s = self.stolen_until_s + self.chance.expovariate(self.noise.stolen / 8)
        if now_s < self.stolen_until_s:
            slow *= self.chance.uniform(1.3, 2.0)
        if self.chance.random() < self.noise.spikes:
            slow *= self.chance.uniform(1.1, 3.0)
        slow *= math.exp(abs(self.chance.gauss(0, self.noise.jitter)))
        if self.noise.alone and candidate.recipe.precision == "int8":
            slow /= self.alone.mean(now_s, seconds)
        stolen = self.bursts.mean(now_s, seconds) if self.noise.bursts else 0.0
        per_s = self.truth[candidate] / slow * (1 - stolen)
        self.clock.advance(seconds)
        samples = round(1e6 * seconds * per_s)
        return Round(samples=samples, wall_s=1e6 * seconds, calls=(seconds,), stolen=stolen)

    def scored(self, candidate: Candidate, taken: Round, score: float) -> None:
        self.scores[candidate] = score

    def known_scores(self, recipe: Recipe) -> dict[Candidate, float] | None:
        return self.known.get(recipe)

    def outdone(self, recipe: Recipe, *, best: float) -> str | None:
        return None

    def skip(self, recipe: Recipe, reason: str) -> None:
        self.skipped.append(recipe)
        self.reasons[recipe] = reason

    def accept(self, candidate: Candidate) -> bool:
        self.clock.advance(2)
        return candidate.recipe not in self.bad

    def checking_s(self, candidate: Candidate) -> float:
        return 2.0


def searched(
    seed: int, noise: Noise, *, budget_s: float = 600
) -> tuple[SimulatedField, tuple[Standing, ...]]:
    clock = ScriptedClock()
    field = SimulatedField(seed, noise, clock)
    return field, Strategy(field, clock=clock).run(RECIPES, deadline_s=budget_s)


def share_within_3_percent(found: Iterable[tuple[SimulatedField, tuple[Standing, ...]]]) -> float:
    gaps = [1 - field.truth[standings[0].candidate] / field.best() for field, standings in found]
    return sum(gap <= 0.03 for gap in gaps) / len(gaps)


@pytest.mark.slow
def test_the_winner_is_within_3_percent_of_the_best_in_95_percent_of_500_searches() -> None:
    assert share_within_3_percent(searched(seed, NOISY) for seed in range(500)) >= 0.95


@pytest.mark.slow
def test_the_same_on_a_quiet_machine() -> None:
    assert share_within_3_percent(searched(seed, QUIET) for seed in range(200)) >= 0.95


@pytest.mark.slow
def test_the_same_where_the_hypervisor_gives_the_cpus_to_others_for_half_a_second_at_a_time() -> None:
    """Where the time that it takes is not heeded, it is 93 percent."""
    assert share_within_3_percent(searched(seed, BURSTY) for seed in range(200)) >= 0.96


@pytest.mark.slow
def test_the_same_where_int8_is_disturbed_otherwise_than_fp32_which_comes_first() -> None:
    """Five times as fast, and what disturbs the first anchor is not what disturbs those that may win.

    Nine of ten: with an anchor that stays what it was at first, they are six.
    """
    in_fp32, quantized = (
        tuple(one for one in RECIPES if (one.precision == "fp32") == is_fp32) for is_fp32 in (True, False)
    )

    def found(seed: int) -> tuple[SimulatedField, tuple[Standing, ...]]:
        clock = ScriptedClock()
        field = SimulatedField(seed, SHARED, clock)
        for one in field.truth:
            field.truth[one] *= 5 if one.recipe in quantized else 1
        recipes = (*in_fp32[:2], *quantized, *in_fp32[2:])
        return field, Strategy(field, clock=clock).run(recipes, deadline_s=600)

    assert share_within_3_percent(found(seed) for seed in range(300)) >= 0.9


class KinField(SimulatedField):
    """Recipes of one engine differ by little; those of the last take a minute, as what is compiled does."""

    def __init__(self, seed: int, noise: Noise, clock: ScriptedClock) -> None:
        self.of_engine: dict[str, dict[Candidate, float]] = {}
        super().__init__(seed, noise, clock)

    def _speeds(self, recipe: Recipe) -> dict[Candidate, float]:
        if recipe.engine not in self.of_engine:
            self.of_engine[recipe.engine] = super()._speeds(recipe)
        share = math.exp(self.chance.gauss(0, 0.03))
        kin = self.of_engine[recipe.engine]
        return {Candidate(recipe, one.settings): share * speed for one, speed in kin.items()}

    def prepare(self, recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        if recipe.engine == RECIPES[-1].engine:
            self.clock.advance(min(self.chance.uniform(40, 75), max(1.0, until_s - self.clock.monotonic())))
        return super().prepare(recipe, until_s=until_s)


@pytest.mark.slow
def test_recipes_that_take_a_minute_each_leave_time_for_the_settings_of_the_leaders() -> None:
    """Where they come before the first closer looks, it is 77 percent."""

    def found(seed: int) -> tuple[SimulatedField, tuple[Standing, ...]]:
        clock = ScriptedClock()
        field = KinField(seed, NOISY, clock)
        return field, Strategy(field, clock=clock).run(RECIPES, deadline_s=600)

    assert share_within_3_percent(found(seed) for seed in range(200)) >= 0.87


def test_it_measures_a_small_part_of_all_candidates() -> None:
    field, _ = searched(1, NOISY)
    assert len(set(field.measured)) < 0.25 * len(field.truth)


def test_only_accepted_recipes_are_returned_and_the_winner_leads() -> None:
    for seed in range(30):
        field, standings = searched(seed, NOISY)
        assert standings[0].relative == 1.0
        assert [one.relative for one in standings] == sorted(
            (one.relative for one in standings), reverse=True
        )
        assert not {one.candidate.recipe for one in standings} & field.bad


def test_what_dropped_out_of_the_race_does_not_win_it() -> None:
    """By the luck of its first laps it may be ahead of who leads at the end."""
    first, second, third = (Candidate(recipe, Settings()) for recipe in RECIPES[:3])
    # The second is dropped behind the first, which is lost then; the third was disturbed until that.
    speeds = {first: [100.0] * 4, second: [98.0] * 4, third: [100.0, 70.0, 70.0, 70.0, 120.0]}

    class Scripted(SimulatedField):
        def measure(self, candidate: Candidate, seconds: float) -> Round:
            if not speeds[candidate]:
                raise EngineError("broken")
            per_s = speeds[candidate].pop(0)
            return Round(samples=round(1e6 * seconds * per_s), wall_s=1e6 * seconds, calls=(seconds,))

    clock = ScriptedClock()
    strategy = Strategy(Scripted(0, QUIET, clock), clock=clock)
    strategy._deadline_s = math.inf
    standings = strategy._raced([first, second, third])
    assert [one.candidate for one in standings] == [third, second]
    assert standings[1].relative <= 1.0


class Disturbed(SimulatedField):
    """Gives rounds of which these shares were stolen."""

    def __init__(self, shares: Iterable[float]) -> None:
        super().__init__(0, QUIET, ScriptedClock())
        self.shares = iter(shares)

    def measure(self, candidate: Candidate, seconds: float) -> Round:
        self.measured.append(candidate)
        return Round(samples=8, wall_s=seconds, calls=(seconds,), stolen=next(self.shares))


def test_a_round_that_the_hypervisor_disturbed_is_taken_again() -> None:
    field = Disturbed([0.01, 0.5, 0.02, 0.7, 0.6, 0.4])
    strategy = Strategy(field, clock=field.clock)
    candidate = Candidate(RECIPES[0], Settings())
    taken = [strategy._measured(candidate, 0.4).stolen for _ in range(3)]
    assert taken == [0.01, 0.02, 0.4]
    assert len(field.measured) == 6


def test_where_the_hypervisor_always_disturbs_most_rounds_are_good_enough() -> None:
    chance = random.Random(0)
    field = Disturbed(chance.uniform(0.3, 0.4) for _ in range(1000))
    strategy = Strategy(field, clock=field.clock)
    for _ in range(100):
        strategy._measured(Candidate(RECIPES[0], Settings()), 0.4)
    assert len(field.measured) < 200


def test_nothing_accepted_is_nothing_returned() -> None:
    clock = ScriptedClock()
    field = SimulatedField(0, QUIET, clock)
    field.bad = set(RECIPES)
    assert Strategy(field, clock=clock).run(RECIPES, deadline_s=600) == ()


def test_nothing_that_runs_is_nothing_returned() -> None:
    clock = ScriptedClock()
    field = SimulatedField(0, QUIET, clock)
    field.broken = set(field.truth)
    assert Strategy(field, clock=clock).run(RECIPES, deadline_s=600) == ()


def test_a_full_disk_ends_the_search_rather_than_a_candidate() -> None:
    clock = ScriptedClock()
    field = SimulatedField(0, QUIET, clock)
    measure = field.measure

    def measured(candidate: Candidate, seconds: float) -> Round:
        if len(field.measured) == 20:
            raise DiskFullError("what a child process writes", "/there", free_bytes=0)
        return measure(candidate, seconds)

    field.measure = measured  # type: ignore[method-assign]
    with pytest.raises(DiskFullError):
        Strategy(field, clock=clock).run(RECIPES, deadline_s=600)


def test_a_broken_candidate_costs_only_itself() -> None:
    for seed in range(20):
        clock = ScriptedClock()
        field = SimulatedField(seed, QUIET, clock)
        best = max(field.truth, key=lambda one: field.truth[one])
        first = Candidate(RECIPES[0], Settings(threads=2, instances=1, batch_size=8))
        field.broken = {best, first}
        standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
        assert standings
        assert standings[0].candidate not in field.broken


@pytest.mark.parametrize("noise", [NOISY, BURSTY], ids=["noisy", "bursty"])
def test_the_deadline_is_kept(noise: Noise) -> None:
    for seed in range(20):
        clock = ScriptedClock()
        field = SimulatedField(seed, noise, clock)
        field.bad = set()
        assert Strategy(field, clock=clock).run(RECIPES, deadline_s=60)
        assert field.skipped
        # The race's first two laps and the checks of accuracy may come on top.
        assert clock.monotonic() < 60 + 15


@pytest.mark.parametrize("noise", [NOISY, BURSTY], ids=["noisy", "bursty"])
@pytest.mark.parametrize("budget_s", [100.0, 150.0, 200.0])
def test_the_budget_is_used_and_kept(budget_s: float, noise: Noise) -> None:
    """With what follows the race: 9 rounds of the finalists and the baseline."""
    shares = []
    for seed in range(25):
        clock = ScriptedClock()
        field = SimulatedField(seed, noise, clock)

        def after_s(finalists: Sequence[Candidate]) -> float:
            return (len(finalists) + 1) * (9 * 0.6 + 1.5)

        standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=budget_s, after_s=after_s)
        if not standings or not field.skipped:  # everything was tried before
            continue
        clock.advance(after_s([one.candidate for one in standings]))
        shares.append(clock.monotonic() / budget_s)
    assert len(shares) > 15
    assert max(shares) <= 1.10
    # Time was kept for three finalists; where fewer came close in the race, some of it is left.
    assert statistics.median(shares) >= 0.90


def test_a_recipe_that_does_not_end_in_time_is_given_up() -> None:
    clock = ScriptedClock()
    field = SimulatedField(2, QUIET, clock)
    field.bad = set()
    asked: list[float] = []
    prepare = field.prepare

    def slow(recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        asked.append(until_s)
        if len(asked) == 1:
            return prepare(recipe, until_s=until_s)
        clock.advance(until_s - clock.monotonic())  # an export that would take for ever
        return ()

    field.prepare = slow  # type: ignore[method-assign]
    standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=200)
    assert {one.candidate.recipe for one in standings} == {RECIPES[0]}
    assert asked[0] == math.inf  # there must be a result
    assert all(until_s < 200 for until_s in asked[1:])
    assert clock.monotonic() < 200 + 10


class CompilingField(SimulatedField):
    """Loading takes long for batch sizes that a recipe was not loaded for before, or always."""

    always = False

    def loading_s(self, candidate: Candidate) -> float:
        size = candidate.settings.batch_size
        compiled = any(
            (one.recipe, one.settings.batch_size) == (candidate.recipe, size) for one in self.measured
        )
        return 1.5 if compiled and not self.always else 40.0


def test_no_time_is_kept_for_compiling_what_was_compiled() -> None:
    tried = []
    for always in (False, True):
        clock = ScriptedClock()
        field = CompilingField(2, QUIET, clock)
        field.bad, field.always = set(), always

        def after_s(finalists: Sequence[Candidate], field: CompilingField = field) -> float:
            return sum(field.loading_s(one) + 9 * 0.6 for one in finalists)

        assert Strategy(field, clock=clock).run(RECIPES, deadline_s=300, after_s=after_s)
        tried.append(len({one.recipe for one in field.measured}))
    assert tried[0] > tried[1]


def test_a_first_recipe_that_pays_for_the_export_does_not_keep_others_from_being_tried() -> None:
    clock = ScriptedClock()
    field = SimulatedField(2, QUIET, clock)
    field.bad = set()
    prepare = field.prepare

    def after_the_export(recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        if not field.asked:
            clock.advance(40)
        return prepare(recipe, until_s=until_s)

    field.prepare = after_the_export  # type: ignore[method-assign]
    assert Strategy(field, clock=clock).run(RECIPES, deadline_s=120)
    assert len({one.recipe for one in field.scores}) > 2
    # Others come before a closer look at the settings of the first.
    first = [one.recipe for one in field.measured].index(RECIPES[1])
    assert all(one.settings.batch_size in COARSE for one in field.measured[:first])


def test_where_nothing_was_right_in_time_the_search_goes_on_until_something_is() -> None:
    clock = ScriptedClock()
    field = SimulatedField(0, QUIET, clock)
    field.bad = set(RECIPES[:-1])
    standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=30)
    assert {one.candidate.recipe for one in standings} == {RECIPES[-1]}
    assert len(field.skipped) <= 1  # given up before all others had turned out to be wrong


def test_what_was_given_up_is_waited_for_where_nothing_else_is_right() -> None:
    clock = ScriptedClock()
    field = SimulatedField(0, QUIET, clock)
    field.bad = set(RECIPES) - {RECIPES[1]}
    prepare = field.prepare

    def slow(recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        if recipe == RECIPES[1] and until_s < math.inf:
            clock.advance(max(0.0, until_s - clock.monotonic()))
            return ()
        return prepare(recipe, until_s=until_s)

    field.prepare = slow  # type: ignore[method-assign]
    standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=60)
    assert {one.candidate.recipe for one in standings} == {RECIPES[1]}


def test_a_deadline_that_is_over_still_ends_with_one_recipe() -> None:
    field, standings = searched(3, QUIET, budget_s=0.0)
    assert standings
    assert len(field.skipped) >= len(RECIPES) - 1 - len(field.bad)


def test_known_scores_are_not_measured_again() -> None:
    field, standings = searched(4, QUIET)
    clock = ScriptedClock()
    again = SimulatedField(4, QUIET, clock)
    for candidate, score in field.scores.items():
        again.known.setdefault(candidate.recipe, {})[candidate] = score
    resumed = Strategy(again, clock=clock).run(RECIPES, deadline_s=600)
    assert resumed[0].candidate.recipe == standings[0].candidate.recipe
    assert clock.monotonic() < 0.5 * field.clock.monotonic()


def test_what_an_earlier_search_found_to_be_out_is_not_taken_again() -> None:
    clock = ScriptedClock()
    field = SimulatedField(4, QUIET, clock)
    field.known = {recipe: {} for recipe in RECIPES[:5]}
    Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
    assert field.asked
    assert not set(field.asked) & set(RECIPES[:5])


def test_new_scores_are_in_the_unit_of_the_known_ones_although_their_anchor_is_gone() -> None:
    clock = ScriptedClock()
    field = SimulatedField(4, QUIET, clock)
    anchor, *others = [Candidate(recipe, Settings(threads=2, batch_size=8)) for recipe in RECIPES[:3]]
    field.known = {one.recipe: {one: field.truth[one] / field.truth[anchor]} for one in others}
    field.known[anchor.recipe] = {}  # was found to be wrong
    Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
    assert any(one.recipe not in RECIPES[:3] for one in field.scores)
    for one, score in field.scores.items():
        assert score == pytest.approx(field.truth[one] / field.truth[anchor], rel=0.15)


def test_a_candidate_that_fails_is_not_asked_again() -> None:
    clock = ScriptedClock()
    field = SimulatedField(4, QUIET, clock)
    field.broken = {one for one in field.truth if one.settings.knobs or one.settings.batch_size == 16}
    Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
    assert len(field.failures) > 3
    assert len(set(field.failures)) == len(field.failures)


class MortalField(SimulatedField):
    """Candidates may break after a number of rounds."""

    def __init__(self, seed: int, clock: ScriptedClock) -> None:
        super().__init__(seed, QUIET, clock)
        self.rounds_left: dict[Candidate, int] = {}

    def measure(self, candidate: Candidate, seconds: float) -> Round:
        left = self.rounds_left.get(candidate)
        if left == 0:
            self.broken.add(candidate)
        elif left is not None:
            self.rounds_left[candidate] = left - 1
        return super().measure(candidate, seconds)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5])
def test_what_fails_after_good_rounds_cannot_win_any_more(rounds: int) -> None:
    for seed in range(5):
        winner = searched(seed, QUIET)[1][0].candidate
        clock = ScriptedClock()
        field = MortalField(seed, clock)
        field.rounds_left = {winner: rounds}
        standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
        assert field.failures == [winner]
        assert standings
        assert winner not in {one.candidate for one in standings}


@pytest.mark.parametrize("rounds", [1, 2, 6, 7])
def test_an_anchor_that_fails_is_replaced_and_the_scores_keep_their_unit(rounds: int) -> None:
    clock = ScriptedClock()
    field = MortalField(4, clock)
    anchor = Candidate(RECIPES[0], Settings(threads=2, instances=1, batch_size=8))
    assert searched(4, QUIET)[0].measured[0] == anchor
    field.rounds_left = {anchor: rounds}
    standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
    assert field.failures == [anchor]
    assert {one.recipe for one in field.scores} == set(RECIPES)
    unit = field.truth[anchor] if anchor in field.scores else field.truth[next(iter(field.scores))]
    for one, score in field.scores.items():
        assert score == pytest.approx(field.truth[one] / unit, rel=0.2)
    assert field.truth[standings[0].candidate] == pytest.approx(field.best(), rel=0.03)


def test_an_earlier_anchor_that_cannot_be_loaded_costs_only_itself() -> None:
    clock = ScriptedClock()
    field = SimulatedField(4, QUIET, clock)
    anchor, other = (Candidate(recipe, Settings(threads=2, batch_size=8)) for recipe in RECIPES[:2])
    field.known = {
        anchor.recipe: {anchor: 1.0},
        other.recipe: {other: field.truth[other] / field.truth[anchor]},
    }
    field.broken = {anchor}
    Strategy(field, clock=clock).run(RECIPES, deadline_s=600)
    assert {one.recipe for one in field.scores} >= set(RECIPES[2:])
    for one, score in field.scores.items():
        assert score == pytest.approx(field.truth[one] / field.truth[anchor], rel=0.2)


class KnowingField(SimulatedField):
    """Takes every variant for as fast as the plain recipe, unless that one was found wrong."""

    def outdone(self, recipe: Recipe, *, best: float) -> str | None:
        plain = msgspec.structs.replace(recipe, variant=None)
        known = [score for one, score in self.scores.items() if one.recipe == plain]
        if recipe == plain or not known or (plain in self.wrong and max(known) > 0.9 * best):
            return None
        return f"as {plain}"

    def __init__(self, seed: int, noise: Noise, clock: ScriptedClock) -> None:
        super().__init__(seed, noise, clock)
        self.wrong: set[Recipe] = set()

    def accept(self, candidate: Candidate) -> bool:
        right = super().accept(candidate)
        if not right:
            self.wrong.add(candidate.recipe)
        return right


def test_what_is_outdone_is_not_tried_and_the_search_ends_early() -> None:
    clock = ScriptedClock()
    field = KnowingField(3, QUIET, clock)
    field.bad = set()
    assert Strategy(field, clock=clock).run(RECIPES, deadline_s=3600)
    plain = {one for one in RECIPES if one.variant is None}
    assert set(field.asked) == plain
    assert set(field.reasons) == set(RECIPES) - plain
    assert all(text == f"as {one.engine}/int8-{one.quantizer}" for one, text in field.reasons.items())
    assert clock.monotonic() < 600


def test_what_was_outdone_by_a_wrong_recipe_is_tried_after_all() -> None:
    clock = ScriptedClock()
    field = KnowingField(3, QUIET, clock)
    family = {one for one in RECIPES if one.engine == "b" and one.precision == "int8"}
    plain = Recipe("b", "int8", "nncf")
    for candidate, speed in field.truth.items():
        field.truth[candidate] = 400.0 if candidate.recipe in family else min(speed, 200.0)
    field.bad = {plain}
    standings = Strategy(field, clock=clock).run(RECIPES, deadline_s=3600)
    assert field.asked.index(plain) < min(map(field.asked.index, family - {plain}))
    assert family <= set(field.asked)
    assert {one.candidate.recipe for one in standings} <= family - {plain}


def test_what_a_recipe_had_outdone_that_the_race_finds_wrong_is_tried_after_all() -> None:
    clock = ScriptedClock()
    field = KnowingField(3, QUIET, clock)
    family = {one for one in RECIPES if one.engine == "b" and one.precision == "int8"}
    plain, second = Recipe("b", "int8", "nncf"), Recipe("a", "int8", "static")
    for candidate, speed in field.truth.items():
        recipe = candidate.recipe
        field.truth[candidate] = (
            400.0 if recipe in family else 380.0 if recipe == second else min(speed, 200.0)
        )
    field.bad = {plain}
    # Without closer looks the race is the first to check anything, and finds another one right.
    standings = Strategy(field, clock=clock, effort=Effort(closer=0)).run(RECIPES, deadline_s=3600)
    assert family <= set(field.asked)
    assert standings[0].candidate.recipe in family - {plain}


def test_a_look_stands_beside_an_anchor_of_its_own_time() -> None:
    """Making or checking a recipe takes a minute: the anchor's round from before tells nothing any more."""
    clock = ScriptedClock()
    field = SimulatedField(3, QUIET, clock)
    looks: list[bool] = []  # whether it was one at what is held: the anchor, or a contender of the race
    looks_before: list[int] = []

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            looks_before.append(len(looks))
            return method(*args, **options)

        return noted

    def measured(candidate: Candidate, seconds: float) -> Round:
        looks.append(candidate in field.held)
        return SimulatedField.measure(field, candidate, seconds)

    for name, method in {
        "prepare": noting(field.prepare),
        "accept": noting(field.accept),
        "measure": measured,
    }.items():
        setattr(field, name, method)
    Strategy(field, clock=clock).run(RECIPES, deadline_s=3600)
    assert len(looks_before) > len(RECIPES) / 2
    assert all(looks[number] for number in looks_before if number < len(looks))


def test_a_recipe_that_is_wrong_at_once_tells_of_others_by_its_speed() -> None:
    clock = ScriptedClock()
    field = KnowingField(3, QUIET, clock)
    field.bad = set()
    slow, fast = Recipe("a", "int8", "static"), Recipe("b", "int8", "nncf")
    field.wrong_at_once = field.wrong = {slow, fast}
    for candidate in field.truth:
        if candidate.recipe.precision == "int8" and candidate.recipe.engine in "ab":
            field.truth[candidate] = 20.0 if candidate.recipe.engine == "a" else 900.0
    # The first recipe is the anchor; without one there is nothing to compare with.
    recipes = (Recipe("c", "fp32"), *(one for one in RECIPES if one != Recipe("c", "fp32")))
    standings = Strategy(field, clock=clock).run(recipes, deadline_s=3600)
    assert {one.candidate.recipe.engine for one in standings} == {"b"}
    assert fast not in {one.candidate.recipe for one in standings}
    assert not [one for one in field.asked if one.engine == "a" and one.variant]
    for recipe in (slow, fast):
        looked = [one for one in field.measured if one.recipe == recipe]
        assert {one.settings for one in looked} == {Settings(threads=2, instances=1, batch_size=8)}
        assert len(looked) == 2
    settings = Settings(threads=2, instances=1, batch_size=8)
    speed = field.scores[Candidate(slow, settings)] / field.scores[Candidate(recipes[0], settings)]
    truth = 20.0 / field.truth[Candidate(recipes[0], settings)]
    # A share of the best at the same settings, taken of the best at any.
    assert speed >= 0.9 * truth


def test_a_recipe_far_behind_gets_no_look_at_another_layout() -> None:
    clock = ScriptedClock()
    field = SimulatedField(6, QUIET, clock)
    field.bad = set()
    slow = RECIPES[5]
    for candidate in field.truth:
        if candidate.recipe == slow:
            field.truth[candidate] = 1.0
    Strategy(field, clock=clock).run(RECIPES, deadline_s=3600)
    seen = [one for one in field.measured if one.recipe == slow]
    assert {one.settings for one in seen} == {Settings(threads=2, instances=1, batch_size=8)}
    assert len(seen) == 2  # the second, lest a disturbance cost it its chance


def test_effort_is_what_is_asked_for() -> None:
    clock = ScriptedClock()
    field = SimulatedField(5, QUIET, clock)
    Strategy(field, clock=clock, effort=Effort(closer=0, contenders=2, laps=2)).run(RECIPES, deadline_s=600)
    coarse = set(COARSE)
    assert {one.settings.batch_size for one in field.measured} <= coarse
