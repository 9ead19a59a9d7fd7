"""The drop, its interval (coverage by simulation), the warnings, the verdict."""

from statistics import NormalDist

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.accuracy import (
    Agreement,
    BalancedAccuracy,
    MacroAuc,
    MeanSquaredError,
    PaddedCmap,
    Top1,
    UserMetric,
    accept,
    compare,
    fidelity,
    metric_named,
)
from alula.core import Accuracy
from alula.errors import AccuracyError, UsageError


def guesses(right, labels, classes):
    """Outputs whose highest score is the label where `right`, and the next class elsewhere."""
    return np.eye(classes)[np.where(right, labels, (labels + 1) % classes)]


def with_losses(n, *, losses, gains=0, wrong=0, classes=4):
    """Labels, baseline and candidate: the candidate loses and gains the given numbers of samples."""
    labels = np.arange(n) % classes
    before, after = np.ones(n, bool), np.ones(n, bool)
    before[: wrong + gains] = False
    after[:wrong] = False
    after[n - losses :] = False
    return labels, guesses(before, labels, classes), guesses(after, labels, classes)


def test_the_drop_of_top1_is_counted_on_the_same_samples():
    labels, before, after = with_losses(200, losses=10, gains=4, wrong=20)
    found = compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.05)
    assert (found.metric, found.n, found.limit) == ("top1", 200, 0.05)
    assert found.baseline == pytest.approx(0.88)
    assert found.chosen == pytest.approx(0.85)
    assert found.drop == 0.03
    # 14 of 200 samples changed: standard deviation sqrt(14/200 - 0.03**2) / sqrt(200) = 0.0186.
    assert found.drop_low == pytest.approx(0.03 - 1.96 * 0.0186, abs=0.008)
    assert found.drop_high == pytest.approx(0.03 + 1.96 * 0.0186, abs=0.008)


def test_a_better_candidate_has_a_negative_drop():
    labels, before, after = with_losses(400, losses=0, gains=40)
    found = compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.0)
    assert found.drop == -0.1
    assert found.drop_high < 0
    assert accept(found) is None


def test_rounding_does_not_decide_at_the_limit():
    labels, before, after = with_losses(2000, losses=10, wrong=180)
    assert before.argmax(1).tolist() != after.argmax(1).tolist()
    found = compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.005)
    assert found.baseline - found.chosen > 0.005  # 0.91 - 0.905 in binary
    assert found.drop == 0.005
    assert accept(found) is None


# 300 simulations: the standard deviation of the coverage is 0.013 at 0.95.
@pytest.mark.parametrize("metric", [Top1(), BalancedAccuracy()])
@pytest.mark.parametrize(("loss", "gain"), [(0.06, 0.03), (0.01, 0.0)])
def test_the_interval_of_a_share_covers_the_true_drop(metric, loss, gain):
    generator = np.random.default_rng(0)
    held, n = 0, 300
    for trial in range(300):
        labels = generator.integers(0, 3, n)
        fate = generator.random(n)
        before = fate < 0.9
        after = np.where(before, generator.random(n) >= loss / 0.9, generator.random(n) < gain / 0.1)
        found = compare(
            metric,
            targets=labels,
            baseline=guesses(before, labels, 3),
            candidate=guesses(after, labels, 3),
            max_drop=0.01,
            seed=trial,
            replicates=400,
        )
        held += found.drop_low <= loss - gain <= found.drop_high
    assert 0.90 <= held / 300 <= 0.99


def test_the_interval_of_agreement_covers_the_true_disagreement():
    generator = np.random.default_rng(1)
    held, n, truth = 0, 200, 0.02
    for trial in range(300):
        labels = generator.integers(0, 3, n)
        before = np.eye(3)[labels]
        after = guesses(generator.random(n) >= truth, labels, 3)
        found = compare(
            Agreement(),
            targets=None,
            baseline=before,
            candidate=after,
            max_drop=0.05,
            seed=trial,
            replicates=400,
        )
        held += found.drop_low <= truth <= found.drop_high
    assert 0.90 <= held / 300 <= 0.99


def test_the_interval_of_macro_auc_covers_the_true_drop():
    """Normal scores: a separation d with noise s of its own has AUC Phi(d / sqrt(2 (1 + s^2)))."""
    generator = np.random.default_rng(2)
    separation, noise = 1.5, 0.7
    auc = NormalDist().cdf
    truth = auc(separation / 2**0.5) - auc(separation / (2 * (1 + noise**2)) ** 0.5)
    held, n = 0, 200
    for trial in range(300):
        targets = generator.integers(0, 2, (n, 2))
        before = generator.normal(size=(n, 2)) + separation * targets
        after = before + noise * generator.normal(size=(n, 2))
        found = compare(
            MacroAuc(),
            targets=targets,
            baseline=before,
            candidate=after,
            max_drop=0.1,
            seed=trial,
            replicates=300,
        )
        held += found.drop_low <= truth <= found.drop_high
    assert 0.90 <= held / 300 <= 0.99


@pytest.mark.parametrize("name", ["top1", "balanced_accuracy"])
def test_no_change_leaves_three_in_n_open(name):
    labels, before, _ = with_losses(600, losses=0, wrong=50)
    found = compare(metric_named(name), targets=labels, baseline=before, candidate=before, max_drop=0.01)
    assert (found.drop, found.drop_low, found.drop_high) == (0.0, -0.005, 0.005)
    assert found.warnings == ()


def test_no_disagreement_leaves_three_in_n_open_on_one_side_and_says_how_many_samples_would_tell():
    before = np.eye(3)[np.arange(300) % 3]
    found = compare(Agreement(), targets=None, baseline=before, candidate=before, max_drop=0.005)
    assert (found.baseline, found.chosen, found.drop) == (1.0, 1.0, 0.0)
    assert (found.drop_low, found.drop_high) == (0.0, 0.01)
    (warning,) = found.warnings
    assert "300 validation samples cannot tell whether the drop is within 0.005" in warning
    assert "about 600 would" in warning
    enough = compare(
        Agreement(),
        targets=None,
        baseline=np.tile(before, (2, 1)),
        candidate=np.tile(before, (2, 1)),
        max_drop=0.005,
    )
    assert enough.warnings == ()


def test_the_samples_asked_for_are_about_enough():
    labels, before, after = with_losses(500, losses=4, gains=2)
    found = compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.01)
    assert not found.conclusive
    assert accept(found) is None
    half = (found.drop_high - found.drop_low) / 2
    needed = 500 * (half / (0.01 - found.drop)) ** 2
    (said,) = [word for word in found.warnings[0].split("about ")[1].split() if word[0].isdigit()]
    assert needed <= int(said.replace(",", "")) <= needed * 1.1
    times = 1 + int(needed) // 500
    many = compare(
        Top1(),
        targets=np.tile(labels, times),
        baseline=np.tile(before, (times, 1)),
        candidate=np.tile(after, (times, 1)),
        max_drop=0.01,
    )
    assert many.conclusive
    assert many.warnings == ()


def test_a_drop_on_the_limit_cannot_be_told_by_any_number():
    labels, before, after = with_losses(400, losses=4)
    found = compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.01)
    assert found.drop == found.limit
    assert "no number of samples" in found.warnings[0]


def test_very_few_samples_are_said_to_be_few():
    labels, before, _ = with_losses(8, losses=0)
    found = compare(Top1(), targets=labels, baseline=before, candidate=before, max_drop=0.5)
    assert found.warnings == ("only 8 validation samples: the interval itself is unreliable below 30",)


def test_mse_drops_by_its_relative_increase():
    generator = np.random.default_rng(3)
    targets = generator.normal(size=(500, 2))
    before = targets + generator.normal(size=(500, 2))
    after = targets + 1.1 * (before - targets)
    found = compare(MeanSquaredError(), targets=targets, baseline=before, candidate=after, max_drop=0.05)
    assert found.drop == pytest.approx(0.21)
    assert found.drop_low == pytest.approx(0.21)
    reason = accept(found)
    assert reason is not None
    assert "`mse` rose from" in reason
    assert "relative increase of 0.21" in reason
    better = compare(MeanSquaredError(), targets=targets, baseline=after, candidate=before, max_drop=0.0)
    assert better.drop == pytest.approx(1 / 1.21 - 1)
    perfect = compare(MeanSquaredError(), targets=targets, baseline=targets, candidate=before, max_drop=0.1)
    assert perfect.drop > 1e9
    assert np.isfinite(perfect.drop_high)


@pytest.mark.parametrize(
    ("baseline", "targets"),
    [
        (np.linspace(-1, 1, 50)[:, None], None),
        (np.linspace(-1, 1, 50), None),
        (np.random.default_rng(0).normal(size=(50, 3, 4)), None),
        (np.random.default_rng(0).normal(size=(50, 3)), np.ones((50, 3), dtype=int)),
    ],
)
def test_agreement_becomes_cosine_where_there_is_no_single_class(baseline, targets):
    same = compare(Agreement(), targets=targets, baseline=baseline, candidate=2 * baseline, max_drop=0.01)
    assert same.metric == "cosine"
    assert same.baseline == 1.0
    assert same.drop == pytest.approx(0.0, abs=1e-12)
    noise = 0.5 * np.random.default_rng(1).normal(size=baseline.shape)
    other = compare(
        Agreement(), targets=targets, baseline=baseline, candidate=baseline + noise, max_drop=0.01
    )
    assert 0 < other.drop_low < other.drop < other.drop_high
    assert "`cosine` fell from 1 to" in str(accept(other))


def test_a_users_function_is_compared_with_fewer_resamples():
    calls = []

    def score(y_true, y_pred):
        calls.append(len(y_true))
        return float(np.mean(y_true == y_pred.argmax(1)))

    labels, before, after = with_losses(100, losses=5)
    found = compare(
        UserMetric("score.py:score", score), targets=labels, baseline=before, candidate=after, max_drop=0.1
    )
    assert found.metric == "score.py:score"
    assert found.drop == 0.05
    assert 0.0 <= found.drop_low < 0.05 < found.drop_high < 0.12
    assert len(calls) == 2 * (200 + 1)


def test_undefined_resamples_are_left_out_and_said():
    labels = np.array([1] + [0] * 39)
    scores = np.random.default_rng(0).random((40, 2))
    found = compare(MacroAuc(), targets=labels, baseline=scores, candidate=scores, max_drop=0.01)
    # A resample misses the only positive with chance (1 - 1/40)**40 = 36 %.
    (warning,) = found.warnings
    assert "`macro_auc` was not defined on 3" in warning
    assert (found.drop_low, found.drop_high) == (0.0, 0.0)


def test_a_metric_defined_on_no_resample_is_an_error():
    def whole_only(y_true, y_pred):
        if len(set(y_true.tolist())) < 40:
            raise ValueError("a sample is missing")
        return 1.0

    with pytest.raises(AccuracyError, match="not defined on any resample"):
        compare(
            UserMetric("f", whole_only),
            targets=np.arange(40),
            baseline=np.eye(40),
            candidate=np.eye(40),
            max_drop=0.1,
        )


def test_the_result_is_seeded_and_independent_of_chunks(monkeypatch):
    labels, before, after = with_losses(150, losses=7, gains=3)

    def found(seed=0):
        return compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.01, seed=seed)

    assert found() == found()
    assert len({found(seed).drop_low for seed in range(8)}) > 1
    whole = found()
    monkeypatch.setattr("alula.accuracy.comparison._CHUNK_ENTRIES", 150 * 64)
    chunked = found()
    # Chunks draw the same kind of numbers, so the ends agree as two seeds would: to a sample or so.
    assert chunked.drop_low == pytest.approx(whole.drop_low, abs=2 / 150)
    assert chunked.drop_high == pytest.approx(whole.drop_high, abs=2 / 150)


@given(seed=st.integers(0, 10_000), name=st.sampled_from(["top1", "macro_auc", "padded_cmap", "cosine"]))
@settings(deadline=None, max_examples=40)
def test_the_interval_holds_the_drop_and_swapping_sides_turns_its_sign(seed, name):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(5, 60))
    labels, before = generator.integers(0, 3, n), generator.random((n, 3))
    after = before + generator.normal(0, 0.2, (n, 3))
    metric = metric_named(name)

    def found(baseline, candidate):
        return compare(
            metric, targets=labels, baseline=baseline, candidate=candidate, max_drop=0.01, replicates=100
        )

    there = found(before, after)
    assert there.drop_low <= there.drop <= there.drop_high
    assert msgspec.json.decode(msgspec.json.encode(there), type=Accuracy) == there
    if metric.needs_labels:
        back = found(after, before)
        assert (back.drop, back.drop_low, back.drop_high) == pytest.approx(
            (-there.drop, -there.drop_high, -there.drop_low), abs=1e-9
        )


def test_bad_outputs_are_counted():
    labels, before, after = with_losses(20, losses=1)
    after[3, 1] = np.nan
    after[5] = np.inf
    with pytest.raises(AccuracyError, match=r"candidate gave NaN or infinite outputs for 2 of 20 .*5 values"):
        compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.1)
    with pytest.raises(AccuracyError, match="baseline gave NaN"):
        compare(Top1(), targets=labels, baseline=after, candidate=before, max_drop=0.1)


def test_infinities_that_the_baseline_has_too_are_no_fault():
    labels, before, after = with_losses(40, losses=0)
    before[0, 3] = after[0, 3] = -np.inf
    assert compare(Top1(), targets=labels, baseline=before, candidate=after, max_drop=0.1).drop == 0.0


@pytest.mark.parametrize(
    ("targets", "candidate", "message"),
    [
        (np.zeros(4, int), np.ones((4, 2)), r"shape \(4, 2\); expected the baseline's \(4, 3\)"),
        (np.zeros(3, int), np.ones((4, 3)), "3 targets for 4 outputs"),
        (None, np.ones((4, 3)), "needs labels"),
        (np.array([0.0, np.nan, 1.0, 0.0]), np.ones((4, 3)), "1 target values are NaN"),
    ],
)
def test_arrays_that_do_not_fit(targets, candidate, message):
    with pytest.raises(AccuracyError, match=message):
        compare(PaddedCmap(), targets=targets, baseline=np.ones((4, 3)), candidate=candidate, max_drop=0.1)


def test_nothing_to_compare():
    with pytest.raises(AccuracyError, match="no validation samples"):
        compare(Agreement(), targets=None, baseline=np.ones((0, 3)), candidate=np.ones((0, 3)), max_drop=0.1)


def test_infinite_outputs_have_no_mean_squared_error():
    outputs = np.array([[np.inf], [1.0]])
    with np.errstate(invalid="ignore"), pytest.raises(AccuracyError, match="finite numbers"):
        compare(
            MeanSquaredError(), targets=np.ones((2, 1)), baseline=outputs, candidate=outputs, max_drop=0.1
        )


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_a_limit_must_be_a_number_of_zero_or_more(limit):
    with pytest.raises(UsageError, match="0 or more"):
        compare(
            Top1(),
            targets=np.zeros(1, int),
            baseline=np.ones((1, 2)),
            candidate=np.ones((1, 2)),
            max_drop=limit,
        )


def test_the_verdict_is_by_the_measured_drop():
    base = Accuracy(
        metric="top1",
        n=2000,
        baseline=0.91,
        chosen=0.889,
        drop=0.021,
        drop_low=0.015,
        drop_high=0.027,
        limit=0.005,
    )
    assert accept(base) == (
        "`top1` fell from 0.91 to 0.889: a drop of 0.021 (95 % interval 0.015 to 0.027, 2000 samples), "
        "more than the 0.005 allowed"
    )
    assert accept(msgspec.structs.replace(base, limit=0.021)) is None
    assert accept(msgspec.structs.replace(base, limit=0.0209)) is not None


def test_fidelity_tells_noise_from_the_same():
    generator = np.random.default_rng(5)
    outputs = generator.normal(size=(200, 10))
    noise = generator.normal(size=(200, 10)) * 0.1
    found = fidelity(outputs, outputs + noise)
    assert found.sqnr_db == pytest.approx(10 * np.log10((outputs**2).sum() / (noise**2).sum()), abs=1e-5)
    from sklearn.metrics.pairwise import paired_cosine_distances

    assert found.mean_cosine == pytest.approx(
        1 - paired_cosine_distances(outputs, outputs + noise).mean(), abs=1e-9
    )
    assert found.top1_agreement == np.mean(outputs.argmax(1) == (outputs + noise).argmax(1))
    same = fidelity(outputs, outputs)
    assert (same.sqnr_db, same.mean_cosine, same.top1_agreement) == (None, 1.0, 1.0)


def test_fidelity_of_zeros_and_of_a_single_column():
    zeros = np.zeros((2, 3))
    assert fidelity(zeros, zeros).mean_cosine == 1.0
    assert fidelity(zeros, zeros + 1).mean_cosine == 0.0
    assert fidelity(np.ones((2, 1)), np.ones((2, 1))).top1_agreement is None
