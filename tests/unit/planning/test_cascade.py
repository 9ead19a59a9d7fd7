"""Cascades: against loops over windows and classes, and honest on recordings they were not learned on."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.accuracy import MacroAuc, MeanSquaredError
from alula.errors import UsageError
from alula.planning import Cascade, Validation, halves, judge_cascade, learn_cascade
from alula.planning.cascade import TAILS, bands


def songs(
    seed: int, *, rows: int = 400, classes: int = 4, cheap: float = 2.0, dear: float = 4.0
) -> Validation:
    """Recordings of ten windows; both members see the truth, `dear` more clearly."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, classes)) < 0.1
    scores = {
        name: 1 / (1 + np.exp(-(truth * quality - quality / 2 + rng.normal(0, 1, truth.shape))))
        for name, quality in (("cheap", cheap), ("dear", dear))
    }
    return Validation(
        metric=MacroAuc(),
        y_true=truth,
        predictions={"none": scores},
        groups=np.repeat(np.arange(rows // 10), 10),
    )


def learned(validation: Validation, max_drop: float) -> Cascade | None:
    scores = validation.predictions["none"]
    return learn_cascade(
        "cheap",
        scores["cheap"],
        scores["dear"],
        y_true=validation.y_true,
        metric=validation.metric,
        max_drop=max_drop,
    )


def mixed(validation: Validation, uncertain: npt.NDArray[np.bool_]) -> float:
    scores = validation.predictions["none"]
    rows = [scores["dear"][k] if uncertain[k] else scores["cheap"][k] for k in range(len(uncertain))]
    return validation.judged(np.array(rows))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_a_window_is_uncertain_where_any_class_lies_in_its_band(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((20, classes)).round(1)
    lower, upper = rng.random(classes).round(1), rng.random(classes).round(1)
    cascade = Cascade(cheap="a", lower=tuple(lower), upper=tuple(upper))
    naive = [any(lower[c] <= row[c] <= upper[c] for c in range(classes)) for row in scores]
    assert cascade.uncertain(scores).tolist() == naive
    scores[3, -1] = np.nan  # of which nothing is known
    naive[3] = True
    assert cascade.uncertain(scores).tolist() == naive


def test_a_band_is_where_positives_and_negatives_overlap() -> None:
    cheap = np.array([[0.1], [0.2], [0.4], [0.3], [0.6], [0.9]])
    truth = np.array([[0], [0], [0], [1], [1], [1]], bool)
    lower, upper = bands(cheap, truth, 0.0)
    assert (lower.tolist(), upper.tolist()) == ([0.3], [0.4])
    lower, upper = bands(cheap, truth, 0.5)
    assert (lower.tolist(), upper.tolist()) == ([0.6], [0.2])  # nothing lies in it


def test_a_class_without_positives_takes_the_band_of_all() -> None:
    cheap = np.array([[0.1, 0.2], [0.7, 0.3], [0.5, 0.9], [0.4, 0.1]])
    truth = np.array([[0, 0], [0, 0], [1, 0], [1, 0]], bool)
    lower, upper = bands(cheap, truth, 0.0)
    assert (lower[1], upper[1]) == (0.4, 0.9)


@pytest.mark.parametrize("seed", range(1, 3))
def test_the_band_of_a_class_that_is_never_there_is_not_narrowed(seed: int) -> None:
    """Nothing would be lost by it here, and nothing is known of what would be elsewhere."""
    validation = songs(seed)
    truth = np.array(validation.y_true)
    truth[:, 3] = False
    scores = validation.predictions["none"]
    wide, narrow = (
        learn_cascade(
            "cheap",
            scores["cheap"],
            scores["dear"],
            y_true=truth,
            metric=MacroAuc(),
            max_drop=0.02,
            narrowed=narrowed,
        )
        for narrowed in (0, 4)
    )
    assert wide is not None and narrow is not None
    assert (narrow.lower[3], narrow.upper[3]) == (wide.lower[3], wide.upper[3])
    assert narrow.lower[:3] != wide.lower[:3]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_drop", [0.0, 0.005, 0.02])
def test_what_is_learned_keeps_the_limit_with_fewer_windows_than_any_one_tail(
    seed: int, max_drop: float
) -> None:
    validation = songs(seed)
    scores, everything = validation.predictions["none"], np.ones(len(validation.y_true), bool)
    cascade = learned(validation, max_drop)
    least = mixed(validation, everything) - max_drop
    fewest = None
    for tail in TAILS:
        lower, upper = bands(scores["cheap"], validation.y_true, tail)
        uncertain = Cascade(cheap="cheap", lower=tuple(lower), upper=tuple(upper)).uncertain(scores["cheap"])
        if mixed(validation, uncertain) >= least:
            fewest = min(uncertain.sum(), len(uncertain) if fewest is None else fewest)
    if cascade is None:
        assert fewest is None
        return
    uncertain = cascade.uncertain(scores["cheap"])
    assert mixed(validation, uncertain) >= least
    assert fewest is not None and uncertain.sum() <= fewest


def test_more_may_be_lost_for_fewer_windows() -> None:
    validation = songs(7)
    cheap = validation.predictions["none"]["cheap"]
    shares = []
    for max_drop in (0.002, 0.02, 1.0):
        cascade = learned(validation, max_drop)
        assert cascade is not None
        shares.append(cascade.uncertain(cheap).mean())
    assert shares[0] > shares[1] > shares[2]


def test_the_judgement_is_that_of_the_half_not_learned_on() -> None:
    validation = songs(3)
    found = judge_cascade(validation, overlap="none", cheap="cheap", counts={"dear": 1}, learned_drop=0.01)
    assert found is not None
    scores, truth = validation.predictions["none"], np.asarray(validation.y_true)
    judged, passed = [], 0
    sides = halves(validation)
    for mine, other in (sides, sides[::-1]):
        cascade = learn_cascade(
            "cheap",
            scores["cheap"][mine],
            scores["dear"][mine],
            y_true=truth[mine],
            metric=MacroAuc(),
            max_drop=0.01,
        )
        assert cascade is not None
        uncertain = cascade.uncertain(scores["cheap"][other])
        rows = np.where(uncertain[:, None], scores["dear"][other], scores["cheap"][other])
        judged.append(MacroAuc().value(truth[other], rows))
        passed += int(uncertain.sum())
    assert found.score == pytest.approx(np.mean(judged))
    assert found.share == pytest.approx(passed / len(truth))
    assert found.cascade == learned(validation, 0.01)


def test_learned_scores_flatter_and_judged_ones_do_not() -> None:
    """Over many small sets, a new set scores what was judged, and less than what was learned."""
    flattery, honesty = [], []
    for seed in range(25):
        validation = songs(seed, rows=200)
        found = judge_cascade(
            validation, overlap="none", cheap="cheap", counts={"dear": 1}, learned_drop=0.02
        )
        fresh = songs(10_000 + seed, rows=2000)
        if found is None:
            continue
        scores = fresh.predictions["none"]
        uncertain = found.cascade.uncertain(scores["cheap"])
        full = fresh.judged(scores["dear"])
        drop = full - fresh.judged(np.where(uncertain[:, None], scores["dear"], scores["cheap"]))
        flattery.append(drop - (found.full_score - found.learned_score))
        honesty.append(drop - found.drop)
    assert len(honesty) > 15
    assert np.mean(flattery) > 0
    assert abs(np.mean(honesty)) < np.mean(flattery)


def test_the_spread_of_the_share_is_that_of_recordings() -> None:
    validation = songs(5, rows=1000)
    found = judge_cascade(validation, overlap="none", cheap="cheap", counts={"dear": 1}, learned_drop=0.025)
    assert found is not None and 0 < found.share < 1
    # Windows are independent here, so it is the binomial spread.
    binomial = np.sqrt((1 - found.share) / found.share / 1000)
    assert found.share_spread == pytest.approx(binomial, rel=0.5)


def test_a_useless_cheap_member_makes_no_cascade_that_saves_much() -> None:
    validation = songs(2, cheap=0.0)
    found = judge_cascade(validation, overlap="none", cheap="cheap", counts={"dear": 1}, learned_drop=0.0025)
    assert found is None or found.share > 0.5 or found.drop > 0.005


def test_lower_is_better_works_the_same() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((200, 2)) < 0.3).astype(np.float64)
    cheap, dear = (truth + rng.normal(0, spread, truth.shape) for spread in (0.3, 0.05))
    cascade = learn_cascade("cheap", cheap, dear, y_true=truth, metric=MeanSquaredError(), max_drop=0.08)
    assert cascade is not None
    uncertain = cascade.uncertain(cheap)
    assert 0 < uncertain.mean() < 0.5
    error = np.square(np.where(uncertain[:, None], dear, cheap) - truth).mean()
    assert error <= np.square(dear - truth).mean() + 0.08


def test_labels_as_indexes_are_the_same_as_columns() -> None:
    rng = np.random.default_rng(4)
    classes = rng.integers(0, 3, 150)
    truth = np.eye(3, dtype=bool)[classes]
    cheap, dear = (truth * quality + rng.normal(0, 1, truth.shape) for quality in (1.5, 4.0))
    one, other = (
        learn_cascade("cheap", cheap, dear, y_true=y_true, metric=MacroAuc(), max_drop=0.02)
        for y_true in (classes, truth)
    )
    assert one == other is not None


def test_a_cascade_goes_to_json_and_back() -> None:
    cascade = learned(songs(1), 0.02)
    assert cascade is not None
    assert msgspec.json.decode(msgspec.json.encode(cascade), type=Cascade) == cascade


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(n, 2\)"):
        Cascade(cheap="a", lower=(0.0, 0.0), upper=(1.0, 1.0)).uncertain(np.zeros((3, 4)))


# Halves.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=30), st.integers(0, 5))
def test_halves_share_no_recording_and_hold_every_row(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = len(groups)
    validation = Validation(
        metric=MacroAuc(),
        y_true=np.zeros((rows, 1)),
        predictions={"": {"a": np.zeros((rows, 1))}},
        groups=groups,
    )
    one, other = halves(validation, seed=seed)
    assert sorted([*one, *other]) == list(range(rows))
    assert not set(groups[one]) & set(groups[other])
    assert abs(len(one) - len(other)) <= max(sizes)


def test_one_recording_cannot_be_halved() -> None:
    validation = Validation(
        metric=MacroAuc(),
        y_true=np.zeros((4, 1)),
        predictions={"": {"a": np.zeros((4, 1))}},
        groups=np.zeros(4),
    )
    with pytest.raises(UsageError, match="at least two"):
        halves(validation)
