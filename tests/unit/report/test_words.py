"""Sentences and numbers that people read."""

from __future__ import annotations

import msgspec
import pytest

from alula.core import Accuracy, Recipe
from alula.report.words import accuracy_sentence, drop_scale, metric_value, recipe_words


def accuracy(metric="top1", drop=0.0, low=0.0, high=0.0, limit=0.005):
    return Accuracy(
        metric=metric, n=1, baseline=0.8, chosen=0.7, drop=drop, drop_low=low, drop_high=high, limit=limit
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            accuracy(drop=0.0009, low=-0.003, high=0.0047),
            "top-1 accuracy drops by 0.09 points [−0.30, +0.47] on 1 sample; a drop of 0.5 points is allowed",
        ),
        (
            accuracy(drop=-0.0021, low=-0.0053, high=0.0013),
            "top-1 accuracy rises by 0.21 points [−0.13, +0.53] on 1 sample; a drop of 0.5 points is allowed",
        ),
        (
            accuracy(drop=0.0, low=-0.0006, high=0.0006),
            "top-1 accuracy does not change [−0.06, +0.06] on 1 sample; a drop of 0.5 points is allowed",
        ),
        (
            accuracy(drop=0.00001),
            "top-1 accuracy drops by less than 0.01 points [0.00, 0.00] on 1 sample; "
            "a drop of 0.5 points is allowed",
        ),
        (
            accuracy("mse", drop=0.0012, low=-0.001, high=0.003),
            "mean squared error rises by 0.12 % [−0.10, +0.30] on 1 sample; a rise of 0.5 % is allowed",
        ),
        (
            accuracy("mse", drop=-0.0012, low=-0.003, high=0.001),
            "mean squared error drops by 0.12 % [−0.10, +0.30] on 1 sample; a rise of 0.5 % is allowed",
        ),
        (
            accuracy("score.py:f2", drop=0.0123, low=0.01, high=0.02, limit=0.02),
            "score.py:f2 drops by 0.0123 [+0.0100, +0.0200] on 1 sample; a drop of 0.02 is allowed",
        ),
    ],
)
def test_the_accuracy_in_a_sentence(given, expected):
    assert " ".join(accuracy_sentence(given)) == expected


@pytest.mark.parametrize(
    ("limit", "drop", "written"),
    [
        (0.005, 0.00004, "0.00 points"),
        (0.0001, 0.00004, "+0.004 points"),
        (0.0, 0.00004, "0.00 points"),
        (0.00002, 0.00004, "+0.0040 points"),
    ],
)
def test_there_are_enough_decimals_to_tell_the_limit_from_zero(limit, drop, written):
    scale = drop_scale(accuracy(limit=limit))
    assert scale.text(drop) == written


def test_a_limit_is_written_without_idle_zeros():
    assert drop_scale(accuracy(limit=0.01)).limit(0.01) == "1 points"
    assert drop_scale(accuracy("macro_auc", limit=0.02)).limit(0.02) == "0.02"
    assert drop_scale(accuracy(limit=0.0)).limit(0.0) == "0 points"
    assert drop_scale(accuracy(limit=float("inf"))).limit(float("inf")) == "no limit"
    assert drop_scale(accuracy(limit=1e300)).limit(1e300) == "1e+302 points"


def test_values_of_metrics():
    assert metric_value("agreement", 0.9934) == "99.34 %"
    assert metric_value("cosine", -0.25) == "−0.2500"
    assert metric_value("mse", float("nan")) == "–"


def test_a_recipe_in_words_says_what_differs_from_the_default():
    text = recipe_words(Recipe("openvino", "int8", "nncf", "full-bias", "dense"))
    assert text.startswith("OpenVINO runs the network with products in 8-bit integers (INT8).")
    assert "Only dense convolutions" in text
    assert "`full-bias`" in text
    assert recipe_words(Recipe("torch", "bf16")).startswith("Eager PyTorch runs")


def test_a_scale_keeps_its_unit_apart(sample):
    scale = drop_scale(msgspec.structs.replace(sample.accuracy, metric="balanced_accuracy"))
    assert scale.interval(-0.003, 0.0047) == "−0.30 to +0.47"
    assert scale.interval(-0.003, 0.0047, between=", ") == "−0.30, +0.47"
