"""What the field of a real search knows of recipes, and how long it waits for a round."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import msgspec
import numpy as np
import pytest

from alula.accuracy import metric_named
from alula.core import (
    Accepted,
    Accuracy,
    Candidate,
    Failed,
    Outcome,
    Recipe,
    Rejected,
    Settings,
    Signature,
    TensorSpec,
    Throughput,
)
from alula.errors import EngineError
from alula.measure.fake import ScriptedClock
from alula.tuning.field import ProcessField, Reference
from alula.tuning.limits import StepLimit
from alula.tuning.messages import Loaded, LoadRequest, Measured, MeasureRequest, Predicted, PredictRequest
from alula.tuning.process import ChildError

PLAIN = Recipe("openvino", "int8", "nncf")
FULL_BIAS = Recipe("openvino", "int8", "nncf", "full-bias")
EAGER = Recipe("torch", "fp32")
SETTINGS = Settings(batch_size=8)
PER_S = 100.0


class StandIn:
    """A child process of which some settings hang."""

    reproduce = "again"

    def __init__(self, place: Place) -> None:
        self.alive, self.place, self.batch_size = True, place, 0

    def ask(self, request: object, expected: type, *, timeout_s: float) -> Any:
        if isinstance(request, LoadRequest):
            self.batch_size = request.settings.batch_size
            return Loaded(seconds=self.place.load(self.batch_size))
        self.place.limits.append(timeout_s)
        if isinstance(request, PredictRequest):
            if self.place.answers is not None:
                self.place.predicted.append(request.limit)
                for path in request.outputs:
                    np.save(path, self.place.answers[: request.limit])
                return Predicted(n=len(self.place.answers), samples_per_s=PER_S)
            raise ChildError(f"Stopped: no answer within {timeout_s:.0f} s.", timed_out=True)
        assert isinstance(request, MeasureRequest)
        if self.batch_size in self.place.hanging:
            self.alive = False
            raise ChildError(f"Stopped: no answer within {timeout_s:.0f} s.", timed_out=True)
        call_s = self.batch_size / PER_S
        return Measured(
            samples=self.batch_size,
            wall_s=call_s,
            calls_s=(call_s,),
            instances=1,
            cpu_s=call_s,
            stolen=0.0,
        )

    def close(self) -> None:
        self.alive = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Place:
    """A workshop in which everything was made."""

    signature = Signature((TensorSpec("x", "float32", ("b", 4)),), (TensorSpec("y", "float32", ("b", 2)),))

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.limits: list[float] = []
        self.hanging: set[int] = set()
        self.answers: np.ndarray | None = None  # to predictions, of which the sizes are noted; None hangs
        self.predicted: list[int | None] = []
        self.clock = ScriptedClock()
        self.compiled: set[int] = set()
        self.compiling_s = 0.0

    def artifact(self, recipe: Recipe) -> Path:
        return self.folder

    def child(self, name: str) -> StandIn:
        return StandIn(self)

    def load(self, batch_size: int) -> float:
        """Let the time pass that it takes to load for a batch size."""
        seconds = 1.0 if batch_size in self.compiled else 1.0 + self.compiling_s
        self.compiled.add(batch_size)
        self.clock.advance(seconds)
        return seconds


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def field_in(
    place: Place,
    *earlier: Outcome,
    record: list[Outcome] | None = None,
    n: int = 4,
    deadline_s: float = 1e9,
    scores: str = "",
    golden_outputs: tuple[str, ...] = (),
) -> ProcessField:
    np.save(place.folder / "scores.npy", np.zeros((4, 2), np.float32))
    limit = StepLimit(place.clock, longest_s=600.0)
    limit.deadline_s = deadline_s
    return ProcessField(
        cast(Any, place),
        reference=Reference(
            candidate=Candidate(EAGER, SETTINGS),
            per_s=PER_S,
            loading_s=1.0,
            n=n,
            scores=scores or str(place.folder / "scores.npy"),
            golden=(),
            golden_outputs=golden_outputs,
        ),
        validation=("x.npy",),
        targets=None,
        metric=metric_named("agreement"),
        max_drop=0.01,
        threads=1,
        scenario="offline",
        latency_limit_s=None,
        seed=0,
        limit=limit,
        record=(record if record is not None else []).append,
        earlier=earlier,
        report=lambda text: None,
        clock=place.clock,
    )


def looked_at(recipe: Recipe, relative: float) -> Accepted:
    accuracy = Accuracy(
        metric="agreement",
        n=4,
        baseline=1.0,
        chosen=1.0,
        drop=0.0,
        drop_low=0.0,
        drop_high=0.0,
        limit=0.01,
    )
    speed = Throughput(per_s=100 * relative, rounds_per_s=(100 * relative,))
    return Accepted(
        candidate=Candidate(recipe, SETTINGS), accuracy=accuracy, throughput=speed, relative=relative
    )


def test_a_round_may_take_far_longer_than_it_should_but_not_as_long_as_a_step(place: Place) -> None:
    with field_in(place) as field:
        field.measure(Candidate(PLAIN, SETTINGS), 0.4)
        field.measure(Candidate(PLAIN, Settings(batch_size=800)), 0.4)
    quick_s, slow_s = place.limits
    assert 30 <= quick_s < 100
    # 800 samples take 8 s, and a round of them is three such calls at least.
    assert 10 * 24 < slow_s < 600


def test_after_two_settings_that_hang_no_new_ones_are_tried(place: Place) -> None:
    recorded: list[Outcome] = []
    place.hanging = {1, 2}
    with field_in(place, looked_at(PLAIN, 3.0), record=recorded) as field:
        for size in (1, 2, 4):
            with pytest.raises(EngineError):
                field.measure(Candidate(PLAIN, Settings(batch_size=size)), 0.4)
        assert len(place.limits) == 2
        # What is known to run, runs; and so does another recipe.
        assert field.measure(Candidate(PLAIN, SETTINGS), 0.4).per_s == pytest.approx(PER_S)
        assert field.measure(Candidate(EAGER, Settings(batch_size=4)), 0.4).per_s == pytest.approx(PER_S)
    last = recorded[-1]
    assert isinstance(last, Failed)
    assert last.settings == Settings(batch_size=4)
    assert last.error == "Not tried: 2 other settings of it hung."


def test_what_was_compiled_for_a_batch_size_is_not_expected_to_be_compiled_again(place: Place) -> None:
    place.compiling_s = 60.0
    with field_in(place) as field:
        single, pair = (Candidate(EAGER, Settings(batch_size=8, instances=count)) for count in (1, 2))
        assert field.loading_s(single) < 10  # nothing is known
        field.measure(single, 0.4)
        assert field.loading_s(single) > 60  # it may be so each time
        field.measure(pair, 0.4)
        # What is left, and the imports of a new process, which take the baseline a second.
        assert 2 <= field.loading_s(single) < 4
        assert 2 <= field.loading_s(pair) < 4
        assert field.loading_s(Candidate(EAGER, Settings(batch_size=16))) > 60


def test_a_recipe_is_outdone_by_what_an_earlier_search_knew(place: Place) -> None:
    wrong = Rejected(recipe=PLAIN, reason="not accurate enough")
    left = Rejected(recipe=FULL_BIAS, reason="it would be no faster than openvino/int8-nncf", tried=False)
    with field_in(place, looked_at(PLAIN, 3.0), left) as field:
        assert field.outdone(FULL_BIAS, best=3.0) is not None
        assert field.outdone(EAGER, best=3.0) is None
    with field_in(place, looked_at(PLAIN, 3.0), wrong, left) as field:
        assert field.outdone(FULL_BIAS, best=2.0) is None
        assert field.outdone(FULL_BIAS, best=6.0) is not None


def test_the_reason_of_a_recipe_that_is_not_tried_is_recorded(place: Place) -> None:
    recorded: list[Outcome] = []
    with field_in(place, record=recorded) as field:
        field.skip(FULL_BIAS, "it would be no faster than another")
    assert recorded == [
        Rejected(recipe=FULL_BIAS, reason="it would be no faster than another", tried=False, seconds=0.0)
    ]


def test_what_there_was_no_time_for_may_be_taken_after_all(place: Place) -> None:
    recorded: list[Outcome] = []
    with field_in(place, record=recorded) as field:
        assert field.prepare(PLAIN, until_s=place.clock.monotonic() + 5.0) == ()
        assert field.prepare(PLAIN, until_s=1e9) == ()
    first, second = recorded
    assert isinstance(first, Rejected)
    assert not first.tried
    assert isinstance(second, Failed)  # in 600 s it should have answered


def test_a_check_of_accuracy_that_the_budget_ends_proves_nothing(place: Place) -> None:
    recorded: list[Outcome] = []
    known, right = looked_at(PLAIN, 3.0), looked_at(EAGER, 1.0)
    right = msgspec.structs.replace(right, accuracy=msgspec.structs.replace(right.accuracy, n=5000))
    with field_in(place, known, right, record=recorded, n=5000, deadline_s=40.0) as field:
        assert field.checking_s(known.candidate) == pytest.approx(51.0)
        assert not field.accept(known.candidate)
        assert not field.accept(known.candidate)
    (left,) = recorded
    assert isinstance(left, Rejected)
    assert not left.tried
    assert "before its accuracy was checked" in left.reason
    with field_in(place, known, right, left, n=5000) as again:
        assert again.known_scores(PLAIN) == {known.candidate: 3.0}


def test_the_first_check_of_accuracy_is_waited_for_when_the_budget_is_over(place: Place) -> None:
    recorded: list[Outcome] = []
    known = looked_at(PLAIN, 3.0)
    with field_in(place, known, record=recorded, n=5000, deadline_s=-1.0) as field:
        assert not field.accept(known.candidate)
    assert place.limits == [600.0]
    assert isinstance(recorded[0], Failed)  # it had all the time that it may need


def test_a_long_check_of_accuracy_is_waited_for(place: Place) -> None:
    known = looked_at(PLAIN, 3.0)
    with field_in(place, known, n=50_000) as field:
        field.accept(known.candidate)
    assert place.limits == [1500.0]


@pytest.mark.parametrize(
    ("changed", "wrong_at_first", "accepted"),
    [
        # Above the 1 % that is allowed, but of so few samples that it may be less, which it is of all.
        (range(3), False, True),
        (range(40), True, False),
        # Nothing that the first samples show.
        (range(300, 400), False, False),
    ],
)
def test_the_first_samples_decide_only_what_they_make_certain(
    place: Place, changed: range, wrong_at_first: bool, accepted: bool
) -> None:
    scores = np.tile(np.float32([1, 0]), (400, 1))
    np.save(place.folder / "one-hot.npy", scores)
    place.answers = scores.copy()
    place.answers[changed] = place.answers[changed, ::-1]
    options: dict[str, Any] = {"n": 400, "scores": str(place.folder / "one-hot.npy")}
    recorded: list[Outcome] = []
    with field_in(place, record=recorded, golden_outputs=("y.npy",), **options) as field:
        grid = field.prepare(PLAIN, until_s=60.0)
        assert place.predicted[0] == 256
        assert field.is_wrong(PLAIN) == wrong_at_first
        if wrong_at_first:
            (verdict,) = recorded
            assert isinstance(verdict, Rejected) and verdict.accuracy is not None
            assert verdict.accuracy.n == 256
            return
        candidate = Candidate(PLAIN, grid[0])
        field.scored(candidate, field.measure(candidate, 0.1), 2.0)
        assert field.accept(candidate) == accepted
        assert 400 in place.predicted
        assert field.accepted(candidate).accuracy.n == (400 if accepted else 256)


def test_the_accuracy_of_all_settings_is_that_on_the_most_samples(place: Place) -> None:
    rough = looked_at(PLAIN, 3.0)
    other = msgspec.structs.replace(rough, candidate=Candidate(PLAIN, Settings(batch_size=1)))
    full = msgspec.structs.replace(
        rough, accuracy=msgspec.structs.replace(rough.accuracy, n=4000, drop=0.005)
    )
    for earlier in ((rough, other, full), (full, rough, other)):
        with field_in(place, *earlier, n=4000) as field:
            for one in (rough, other):
                assert field.accepted(one.candidate).accuracy == full.accuracy


def test_a_rough_verdict_on_more_samples_than_now_is_no_full_one(place: Place) -> None:
    rough = looked_at(PLAIN, 3.0)
    accuracy = msgspec.structs.replace(rough.accuracy, n=256, drop=0.02, drop_low=0.001, limit=0.01)
    rough = msgspec.structs.replace(rough, accuracy=accuracy)
    with field_in(place, rough, n=150) as field:
        field.golden_outputs[PLAIN] = ("there.npy",)
        assert not field.accept(rough.candidate)
    assert place.limits  # it was judged anew
    place.limits.clear()
    with field_in(place, looked_at(PLAIN, 3.0), n=150) as field:
        field.golden_outputs[PLAIN] = ("there.npy",)
        field._accuracy[PLAIN] = msgspec.structs.replace(accuracy, drop=0.001)
        assert field.accept(rough.candidate)
    assert not place.limits


def test_what_was_lost_is_not_accepted(place: Place) -> None:
    good = looked_at(PLAIN, 3.0)
    with field_in(place, good) as field:
        field.lose(good.candidate, error="It crashed.", reproduce="again")
        assert not field.accept(good.candidate)


def test_what_failed_after_it_was_accepted_is_forgotten(place: Place) -> None:
    good = looked_at(PLAIN, 3.0)
    other = msgspec.structs.replace(looked_at(PLAIN, 2.0), candidate=Candidate(PLAIN, Settings(batch_size=1)))
    failed = Failed(recipe=PLAIN, settings=good.candidate.settings, error="It crashed.", reproduce="again")
    with field_in(place, good, other, failed) as field:
        assert field.known_scores(PLAIN) == {other.candidate: 2.0}
        assert field.best_of_each_recipe() == (other,)
    with field_in(place, good, other, failed, good) as field:
        assert field.best_of_each_recipe() == (good,)
    recorded: list[Outcome] = []
    with field_in(place, good, other, record=recorded) as field:
        field.lose(good.candidate, error="It crashed.", reproduce="again")
        assert field.best_of_each_recipe() == (other,)
    assert recorded == [failed]


def test_an_outcome_tells_the_time_since_the_one_before(place: Place) -> None:
    recorded: list[Outcome] = []
    place.compiling_s = 20.0
    with field_in(place, record=recorded) as field:
        field._accuracy[EAGER] = looked_at(EAGER, 1.0).accuracy
        for size in (8, 4):
            one = Candidate(EAGER, Settings(batch_size=size))
            taken = field.measure(one, 0.4)
            field.scored(one, taken, 1.0)
        field.skip(PLAIN, "the budget is used up")
    assert [one.seconds for one in recorded] == [21.0, 21.0, 0.0]


def test_an_output_that_the_metric_does_not_see_is_looked_at(place: Place) -> None:
    first, second = (TensorSpec(name, "float32", ("b", 2)) for name in ("scores", "embedding"))
    place.signature = Signature(Place.signature.inputs, (first, second))  # type: ignore[misc]

    def verdict(factor: float, start: float = 0.0) -> Accuracy | Rejected:
        want = np.arange(8, dtype=np.float32).reshape(4, 2) + 1
        arrays = {"want": want, "have": want * factor + start}
        for name, array in arrays.items():
            np.save(place.folder / f"{name}.npy", array)

        class Predicting(StandIn):
            def ask(self, request: object, expected: type, *, timeout_s: float) -> Any:
                if not isinstance(request, PredictRequest):
                    return super().ask(request, expected, timeout_s=timeout_s)
                for path, array in zip(request.outputs, (np.eye(4, 2), arrays["have"]), strict=False):
                    np.save(path, array.astype(np.float32))
                return Predicted(n=4, samples_per_s=1.0)

        place.child = lambda name, bound=False: Predicting(place)  # type: ignore[method-assign]
        want_path = str(place.folder / "want.npy")
        reference = {"scores": str(place.folder / "s.npy"), "golden_outputs": (want_path, want_path)}
        np.save(reference["scores"], np.eye(4, 2, dtype=np.float32))
        with field_in(place, **reference) as field:
            return field._judge(Candidate(PLAIN, SETTINGS), 4)

    same, close, far = verdict(1.0), verdict(1.1), verdict(-1.0)
    assert isinstance(same, Accuracy)
    assert not [text for text in same.warnings if "embedding" in text]
    assert isinstance(close, Accuracy)
    assert any("Output `embedding`" in text and "0.1 of its size" in text for text in close.warnings)
    assert isinstance(far, Rejected)
    assert "Output `embedding`" in far.reason
    broken = verdict(1.0, np.nan)
    assert isinstance(broken, Rejected)
