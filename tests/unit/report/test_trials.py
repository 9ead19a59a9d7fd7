"""From outcomes to rows: which settings stand for a recipe, what its verdict is, how speeds are compared."""

from __future__ import annotations

import math

import msgspec
import pytest

from alula.core import Accepted, Accuracy, Candidate, Failed, Ratio, Recipe, Rejected, Settings, Throughput
from alula.report import Finalist
from alula.report.trials import problems, rows, screened_ratio, verdict_of

FAST = Recipe("openvino", "int8", "nncf")
PLAIN = Recipe("openvino", "fp32")
OTHER = Recipe("onnxruntime", "fp32")
ONE, TWO, THREE = (Settings(batch_size=size) for size in (1, 2, 4))


def accuracy(drop=0.0, n=4700):
    return Accuracy(
        metric="top1",
        n=n,
        baseline=0.8,
        chosen=0.8 - drop,
        drop=drop,
        drop_low=drop,
        drop_high=drop,
        limit=0.005,
    )


def accepted(recipe, settings, per_s, *, relative=None, n=4700, drop=0.0, rounds=None, seconds=1.0):
    return Accepted(
        candidate=Candidate(recipe, settings),
        accuracy=accuracy(drop, n),
        throughput=Throughput(per_s=per_s, rounds_per_s=rounds or (per_s,)),
        relative=relative,
        seconds=seconds,
    )


@pytest.fixture
def content(sample):
    """A search that chose `FAST` at batch 1: 400 samples/s, four times the baseline's 100."""
    return msgspec.structs.replace(
        sample,
        chosen=Candidate(FAST, ONE),
        chosen_throughput=Throughput(per_s=400.0, rounds_per_s=(390.0, 400.0, 410.0)),
        baseline_throughput=Throughput(per_s=100.0, rounds_per_s=(100.0,)),
        speedup=Ratio(4.0, 3.5, 4.5),
        accuracy=accuracy(0.001),
        outcomes=(),
        finalists=(),
    )


def row_of(content, recipe, *outcomes, finalists=()):
    found = rows(msgspec.structs.replace(content, outcomes=outcomes, finalists=finalists))
    return next(row for row in found if row.recipe == recipe)


def test_the_fastest_settings_stand_for_a_recipe(content):
    row = row_of(content, PLAIN, accepted(PLAIN, ONE, 150.0), accepted(PLAIN, TWO, 180.0))
    assert (row.verdict, row.settings, row.per_s, row.trials, row.seconds) == ("accepted", TWO, 180.0, 2, 2.0)
    assert row.ratio == Ratio(1.8, 0.0, math.inf)
    assert not row.confirmed


def test_speeds_over_the_anchor_count_more_than_samples_per_second(content):
    # The machine was slow when batch 2 had its turn, and so was the anchor beside it.
    row = row_of(
        content, PLAIN, accepted(PLAIN, ONE, 150.0, relative=1.0), accepted(PLAIN, TWO, 90.0, relative=1.2)
    )
    assert row.settings == TWO


def test_the_chosen_candidate_leads_from_the_anchor_to_the_baseline(content):
    other = accepted(PLAIN, ONE, 70.0, relative=0.5)
    with_chosen = msgspec.structs.replace(
        content, outcomes=(accepted(FAST, ONE, 200.0, relative=2.0), accepted(FAST, ONE, 150.0, relative=1.8))
    )
    # A quarter of the chosen one's speed, which is four times the baseline's.
    assert screened_ratio(other, with_chosen) == pytest.approx(1.0)
    assert screened_ratio(other, content) == pytest.approx(0.7)


def test_a_speed_that_cannot_be_compared_has_no_ratio(content):
    still = msgspec.structs.replace(content, baseline_throughput=Throughput(per_s=0.0, rounds_per_s=()))
    assert screened_ratio(accepted(PLAIN, ONE, 150.0), still) is None
    assert row_of(still, PLAIN, accepted(PLAIN, ONE, 150.0)).ratio is None


def test_settings_that_failed_later_do_not_stand_for_a_recipe(content):
    failed = Failed(recipe=PLAIN, settings=TWO, error="it died", reproduce="")
    row = row_of(content, PLAIN, accepted(PLAIN, ONE, 150.0), accepted(PLAIN, TWO, 180.0), failed)
    assert (row.verdict, row.settings) == ("accepted", ONE)


def test_a_recipe_is_out_when_the_last_word_about_it_as_a_whole_says_so(content):
    early = accepted(PLAIN, ONE, 150.0, n=256)
    rejected = Rejected(recipe=PLAIN, reason="too much", accuracy=accuracy(0.01))
    row = row_of(content, PLAIN, early, rejected)
    assert (row.verdict, row.reason) == ("rejected", "too much")
    assert row.accuracy == accuracy(0.01)
    assert row.ratio is not None, "its speed is known and worth showing"
    failed = Failed(recipe=PLAIN, error="no export", reproduce="")
    assert row_of(content, PLAIN, failed).verdict == "failed"
    assert row_of(content, PLAIN, early, failed).verdict == "failed"
    left = Rejected(recipe=PLAIN, reason="the budget is used up", tried=False)
    assert row_of(content, PLAIN, left).verdict == "not tried"


def test_a_recipe_that_failed_at_all_settings_failed(content):
    lost = [Failed(recipe=PLAIN, settings=one, error=f"{one.batch_size}", reproduce="") for one in (ONE, TWO)]
    row = row_of(content, PLAIN, *lost)
    assert (row.verdict, row.reason, row.settings) == ("failed", "2", None)


def test_the_check_on_the_most_samples_gives_the_accuracy(content):
    row = row_of(
        content,
        PLAIN,
        accepted(PLAIN, ONE, 150.0, n=256, drop=0.004),
        accepted(PLAIN, ONE, 150.0, n=4700, drop=0.002),
        accepted(PLAIN, TWO, 160.0, n=256, drop=0.004),
    )
    assert row.accuracy == accuracy(0.002)


def test_the_last_comparison_counts_more_than_screening(content):
    final = Finalist(
        candidate=Candidate(PLAIN, THREE),
        throughput=Throughput(per_s=300.0, rounds_per_s=(290.0, 310.0)),
        speedup=Ratio(3.0, 2.8, 3.2),
    )
    row = row_of(content, PLAIN, accepted(PLAIN, ONE, 999.0), finalists=(final,))
    assert (row.settings, row.per_s, row.ratio, row.confirmed) == (THREE, 300.0, Ratio(3.0, 2.8, 3.2), True)
    assert row.range_ratio == (2.9, 3.1)


def test_the_chosen_one_comes_first_with_the_figures_of_the_bundle(content):
    screened = accepted(FAST, TWO, 1000.0)
    faster = accepted(OTHER, ONE, 500.0)
    slower = accepted(PLAIN, ONE, 150.0)
    found = rows(msgspec.structs.replace(content, outcomes=(slower, screened, faster)))
    assert [row.recipe for row in found] == [FAST, OTHER, PLAIN]
    assert [row.number for row in found] == [1, 2, 3]
    chosen = found[0]
    assert (chosen.verdict, chosen.settings, chosen.per_s) == ("chosen", ONE, 400.0)
    assert chosen.ratio == content.speedup
    assert chosen.accuracy == content.accuracy


def test_what_went_wrong_in_the_same_words_is_said_once():
    lost = [
        Failed(recipe=PLAIN, settings=one, error="too large", reproduce=f"run {one.batch_size}")
        for one in (ONE, TWO, ONE)
    ]
    other = Failed(recipe=OTHER, error="too large", reproduce="")
    rejected = Rejected(recipe=PLAIN, reason="too large")
    first, second, third = problems([*lost, other, rejected, accepted(PLAIN, ONE, 1.0)])
    assert (first.recipe, first.settings, first.reproduce) == (PLAIN, (ONE, TWO), "run 1")
    assert (second.recipe, second.settings) == (OTHER, ())
    assert (third.recipe, third.verdict) == (PLAIN, "rejected")


def test_every_outcome_has_a_verdict():
    assert verdict_of(accepted(PLAIN, ONE, 1.0)) == "accepted"
    assert verdict_of(Failed(recipe=PLAIN, error="", reproduce="")) == "failed"
    assert verdict_of(Rejected(recipe=PLAIN, reason="NaN")) == "rejected"
    assert verdict_of(Rejected(recipe=PLAIN, reason="no time", tried=False)) == "not tried"
