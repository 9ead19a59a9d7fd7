"""Metrics against scikit-learn, ties included, and replicates against plain resampling."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from alula.accuracy import (
    METRIC_NAMES,
    Agreement,
    BalancedAccuracy,
    Cosine,
    MacroAuc,
    MeanSquaredError,
    PaddedCmap,
    Top1,
    UserMetric,
    metric_named,
)
from alula.errors import AccuracyError

# Both sides sum the same float64 terms in another order.
ROUNDING = 1e-12

RANKED = [name for name in METRIC_NAMES if name not in ("mse", "agreement", "cosine")]


def outputs(generator, n, classes, *, tied):
    """Scores in [0, 1]; with ties there are only five different ones, 1.0 among them."""
    scores = generator.random((n, classes))
    return np.round(scores * 4) / 4 if tied else scores


def resampled(metric, y_true, y_pred, counts):
    """Replicates the slow way: take the samples, call `value`."""
    chosen = [np.repeat(np.arange(len(y_pred)), row) for row in counts]
    return [metric.value(y_true[take], y_pred[take]) for take in chosen]


def counts_of(generator, n, replicates=20):
    return generator.multinomial(n, np.full(n, 1 / n), size=replicates)


def padded_cmap_by_sklearn(truth, scores):
    ones = np.ones((5, scores.shape[1]))
    return sklearn_metrics.average_precision_score(
        np.vstack([truth, ones]), np.vstack([scores, ones]), average="macro"
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("classes", [2, 7])
def test_single_label_metrics_equal_scikit_learn(classes, tied):
    generator = np.random.default_rng(classes)
    labels, scores = generator.integers(0, classes, 200), outputs(generator, 200, classes, tied=tied)
    guesses = scores.argmax(axis=1)
    assert Top1().value(labels, scores) == sklearn_metrics.accuracy_score(labels, guesses)
    assert BalancedAccuracy().value(labels, scores) == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, guesses), abs=ROUNDING
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 5), st.booleans())
@settings(deadline=None)
def test_ranking_metrics_equal_scikit_learn(seed, n, classes, tied):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, (n, classes))
    scores = outputs(generator, n, classes, tied=tied)
    assert PaddedCmap().value(truth, scores) == pytest.approx(
        padded_cmap_by_sklearn(truth, scores), abs=ROUNDING
    )
    usable = [c for c in range(classes) if 0 < truth[:, c].sum() < n]
    if usable:
        expected = np.mean([sklearn_metrics.roc_auc_score(truth[:, c], scores[:, c]) for c in usable])
        assert MacroAuc().value(truth, scores) == pytest.approx(expected, abs=ROUNDING)
    else:
        with pytest.raises(AccuracyError, match="not defined"):
            MacroAuc().value(truth, scores)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", [name for name in METRIC_NAMES if name not in ("mse", "padded_cmap")])
def test_replicates_are_the_metric_of_the_resamples(name, tied):
    generator = np.random.default_rng(1)
    metric, n, classes = metric_named(name), 80, 6
    scores = outputs(generator, n, classes, tied=tied)
    reference = (
        generator.integers(0, classes, n) if metric.needs_labels else scores + 0.3 * np.eye(n, classes)
    )
    counts = counts_of(generator, n)
    assert metric.replicates(reference, scores, counts) == pytest.approx(
        resampled(metric, reference, scores, counts), abs=ROUNDING
    )


def test_a_class_that_a_resample_misses_is_left_out_of_balanced_accuracy():
    labels, scores = np.array([0, 0, 1, 2]), np.eye(3)[[0, 1, 1, 0]]
    counts = np.array([[1, 1, 2, 0], [1, 1, 1, 1]])
    assert BalancedAccuracy().replicates(labels, scores, counts) == pytest.approx([0.75, 0.5])


def test_padded_replicates_keep_the_padding_and_resample_the_rest():
    generator = np.random.default_rng(2)
    truth, scores = generator.integers(0, 2, (50, 4)), outputs(generator, 50, 4, tied=True)
    counts = counts_of(generator, 50)
    expected = [
        padded_cmap_by_sklearn(np.repeat(truth, row, axis=0), np.repeat(scores, row, axis=0))
        for row in counts
    ]
    assert PaddedCmap().replicates(truth, scores, counts) == pytest.approx(expected, abs=ROUNDING)


def test_replicates_of_many_samples_equal_those_of_few_at_a_time():
    """More resamples than fit one block give the same numbers as one block each."""
    generator = np.random.default_rng(3)
    labels, scores = generator.integers(0, 3, 9000), outputs(generator, 9000, 3, tied=True)
    counts = counts_of(generator, 9000, replicates=70)
    whole = MacroAuc().replicates(labels, scores, counts)
    pieces = np.concatenate(
        [MacroAuc().replicates(labels, scores, counts[i : i + 7]) for i in range(0, 70, 7)]
    )
    np.testing.assert_array_equal(whole, pieces)


def test_mse_equals_scikit_learn_and_its_resamples():
    generator = np.random.default_rng(4)
    truth, scores = generator.normal(size=(60, 3)), generator.normal(size=(60, 3))
    assert MeanSquaredError().value(truth, scores) == pytest.approx(
        sklearn_metrics.mean_squared_error(truth, scores), abs=ROUNDING
    )
    counts = counts_of(generator, 60)
    assert MeanSquaredError().replicates(truth, scores, counts) == pytest.approx(
        resampled(MeanSquaredError(), truth, scores, counts), abs=ROUNDING
    )


@pytest.mark.parametrize("name", RANKED)
def test_class_numbers_and_one_hot_targets_mean_the_same(name):
    generator = np.random.default_rng(5)
    labels, scores = generator.integers(0, 4, 50), outputs(generator, 50, 4, tied=False)
    metric = metric_named(name)
    for one_hot in (np.eye(4, dtype=int)[labels], np.eye(4)[labels]):
        assert metric.value(labels, scores) == metric.value(one_hot, scores)


@given(st.integers(0, 1000), st.sampled_from(["macro_auc", "top1", "balanced_accuracy", "agreement"]))
def test_only_the_order_of_scores_matters(seed, name):
    generator = np.random.default_rng(seed)
    scores = outputs(generator, 40, 3, tied=True)
    metric = metric_named(name)
    reference = np.arange(40) % 3 if metric.needs_labels else outputs(generator, 40, 3, tied=True)
    assert metric.value(reference, scores) == metric.value(reference, np.exp(3 * scores))


def test_padded_cmap_of_logits_is_that_of_their_sigmoid():
    generator = np.random.default_rng(6)
    labels, logits = generator.integers(0, 5, 60), generator.normal(0, 3, (60, 5))
    probabilities = 1 / (1 + np.exp(-logits))
    expected = padded_cmap_by_sklearn(np.eye(5)[labels], probabilities)
    assert PaddedCmap().value(labels, logits) == pytest.approx(expected, abs=ROUNDING)


def test_any_of_several_labels_counts_for_top1():
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    scores = np.array([[0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [1.0, 0.0, 0.0]])
    assert Top1().value(truth, scores) == pytest.approx(1 / 3)


def test_classes_without_positives_or_negatives_are_skipped_by_macro_auc():
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    scores = np.array([[0.9, 0.5, 0.1], [0.95, 0.4, 0.2], [0.99, 0.3, 0.3]])
    assert MacroAuc().value(truth, scores) == 0.5


def test_a_single_column_is_the_score_of_class_one():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    expected = sklearn_metrics.roc_auc_score(labels, scores)
    assert MacroAuc().value(labels, scores) == MacroAuc().value(labels[:, None], scores[:, None]) == expected


def test_undefined_resamples_are_nan():
    labels, scores = np.array([0, 0, 1]), np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    found = MacroAuc().replicates(labels, scores, np.array([[3, 0, 0], [1, 1, 1]]))
    assert np.isnan(found[0])
    assert found[1] == 1.0


def test_cosine_is_that_of_all_outputs_as_one_vector():
    generator = np.random.default_rng(7)
    ours, theirs = generator.normal(size=(30, 2, 4)), generator.normal(size=(30, 2, 4))
    expected = np.corrcoef(np.stack([ours.ravel(), theirs.ravel()]))[0, 1]
    a, b = ours - ours.mean(), theirs - theirs.mean()
    assert Cosine().value(b, a) == pytest.approx(expected, abs=ROUNDING)
    assert Cosine().value(theirs, np.zeros_like(theirs)) == 0.0
    with pytest.raises(AccuracyError, match="every output of the baseline is 0"):
        Cosine().value(np.zeros_like(theirs), ours)


def test_metrics_take_half_precision_and_infinite_scores():
    labels = np.array([0, 1, 1])
    scores = np.array([[1.0, -np.inf], [0.5, 2.0], [3.0, np.inf]], dtype=np.float16)
    assert Top1().value(labels, scores) == 1.0
    assert MacroAuc().value(labels, scores) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("name", "y_true", "y_pred", "message"),
    [
        ("top1", np.array([0, 3]), np.eye(2), "class numbers from 0 to 3 .* expected 0 to 1"),
        ("top1", np.array([0, -1]), np.eye(2), "class numbers from -1"),
        ("top1", np.array([0.5, 1.0]), np.eye(2), "whole class number"),
        ("top1", np.array([0, 1, 1]), np.eye(2), "whole class number per output"),
        ("top1", np.array([0, 1]), np.ones((2, 1)), "single column"),
        ("agreement", np.ones((2, 1)), np.ones((2, 1)), "single column"),
        ("top1", np.array([0, 1]), np.ones((2, 3, 4)), r"expected \(n, classes\)"),
        ("macro_auc", np.eye(2), np.ones((2, 3)), "same shape"),
        ("padded_cmap", np.full((2, 3), 0.5), np.ones((2, 3)), "other than 0 and 1"),
        ("balanced_accuracy", np.ones((2, 3)), np.ones((2, 3)), "several labels"),
        ("mse", np.array([0, 1]), np.ones((2, 3)), "same shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, y_true, y_pred, message):
    with pytest.raises(AccuracyError, match=message):
        metric_named(name).value(y_true, y_pred)


def test_a_users_function_is_resampled():
    def score(y_true, y_pred):
        return sklearn_metrics.f1_score(y_true, y_pred.argmax(axis=1), average="macro")

    generator = np.random.default_rng(8)
    labels, scores = generator.integers(0, 3, 40), outputs(generator, 40, 3, tied=False)
    metric, counts = UserMetric("score.py:score", score), counts_of(generator, 40)
    assert metric.replicates(labels, scores, counts) == pytest.approx(
        resampled(metric, labels, scores, counts), abs=ROUNDING
    )


def test_a_users_function_may_refuse_a_resample_but_not_the_whole():
    def only_both(y_true, y_pred):
        if len(set(y_true)) < 2:
            raise ValueError("only one class")
        return 0.25

    metric = UserMetric("only_both", only_both)
    labels, scores = np.array([0, 1]), np.eye(2)
    found = metric.replicates(labels, scores, np.array([[2, 0], [1, 1]]))
    assert np.isnan(found[0])
    assert found[1] == 0.25
    with pytest.raises(AccuracyError, match=r"`only_both` raised ValueError: only one class.*shape \(1,\)"):
        metric.value(labels[:1], scores[:1])


@pytest.mark.parametrize(
    ("result", "message"), [(float("nan"), "returned nan"), (None, "TypeError"), ("x", "ValueError")]
)
def test_a_users_function_must_return_a_number(result, message):
    with pytest.raises(AccuracyError, match=message):
        UserMetric("f", lambda *_: result).value(np.array([0]), np.ones((1, 2)))


def test_agreement_counts_the_same_guesses():
    assert Agreement().value(np.eye(3), np.eye(3)[[0, 1, 1]]) == pytest.approx(2 / 3)


def test_metrics_raise_no_warnings_on_degenerate_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels, scores = np.zeros(3, dtype=int), np.zeros((3, 2))
        assert PaddedCmap().value(labels, scores) == 1.0
        assert BalancedAccuracy().value(labels, scores) == 1.0


def test_a_metric_of_the_users_may_raise_anything_and_work_in_place() -> None:
    class OwnError(Exception):
        pass

    def picky(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        if len(set(y_true.tolist())) < 2:
            raise OwnError("one class only")
        y_pred -= y_pred.max()
        return float((y_pred.argmax(axis=1) == y_true).mean())

    metric = UserMetric(name="own.py:picky", function=picky)
    y_true, y_pred = np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]])
    before = y_pred.copy()
    assert metric.value(y_true, y_pred) == 1.0
    np.testing.assert_array_equal(y_pred, before)
    np.testing.assert_array_equal(
        metric.replicates(y_true, y_pred, np.array([[1, 1], [2, 0]])), [1.0, np.nan]
    )
    with pytest.raises(AccuracyError, match=r"`own\.py:picky` raised OwnError: one class only"):
        metric.value(y_true[:1], y_pred[:1])
