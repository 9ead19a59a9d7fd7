"""Metrics by name and by the user's own code."""

import sys

import numpy as np
import pytest

from alula.accuracy import METRIC_NAMES, default_metric, metric_named
from alula.errors import UsageError


def test_every_built_in_metric_is_found_by_its_name():
    assert [metric_named(name).name for name in METRIC_NAMES] == list(METRIC_NAMES)
    assert {"top1", "balanced_accuracy", "macro_auc", "padded_cmap", "mse", "agreement"} <= set(METRIC_NAMES)


def test_a_mistyped_name_gets_the_closest_and_the_way_out():
    with pytest.raises(UsageError, match=r"no metric `makro_auc`\. Did you mean `macro_auc`\?.*file\.py"):
        metric_named("makro_auc")


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "my_score.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "LIMIT = 3\n"
        "@dataclass\n"
        "class Pair:\n"
        "    a: int\n"
        "def right(y_true, y_pred):\n"
        "    return np.mean(y_pred.argmax(1) == y_true)\n"
    )
    yield path
    sys.modules.pop("alula_metric_my_score", None)


def test_a_function_from_a_file(script):
    metric = metric_named(f"{script}:right")
    assert metric.name == f"{script}:right"
    assert metric.higher_is_better
    assert metric.needs_labels
    assert metric.value(np.array([0, 0]), np.eye(2)) == 0.5


def test_a_function_from_a_package(monkeypatch, script):
    monkeypatch.syspath_prepend(str(script.parent))
    assert metric_named("my_score:right").value(np.array([0, 1]), np.eye(2)) == 1.0
    sys.modules.pop("my_score")


def test_a_file_a_module_or_a_function_that_is_not_there(script, tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        metric_named(f"{tmp_path}/none.py:right")
    with pytest.raises(UsageError, match=r"no function `rihgt`\. Did you mean `right`"):
        metric_named(f"{script}:rihgt")
    with pytest.raises(UsageError, match="no function `LIMIT`"):
        metric_named(f"{script}:LIMIT")
    with pytest.raises(UsageError, match="No module named"):
        metric_named("no_such_package.module:fn")
    with pytest.raises(UsageError, match="could not be loaded"):
        metric_named(":fn")


@pytest.mark.parametrize("code", ["def f(:", "import no_such_thing_at_all", "1 / 0", "undefined"])
def test_a_file_that_does_not_load(tmp_path, code):
    path = tmp_path / "broken_score.py"
    path.write_text(code)
    with pytest.raises(UsageError, match="could not be loaded"):
        metric_named(f"{path}:f")
    assert "alula_metric_broken_score" not in sys.modules


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, "agreement"),
        (np.array([0, 4, 2]), "top1"),
        (np.array([True, False]), "top1"),
        (np.eye(3), "top1"),
        (np.array([[1, 1], [0, 1]]), "macro_auc"),
        (np.array([[0, 0], [0, 1]]), "macro_auc"),
        (np.array([[0], [1]]), "macro_auc"),
        (np.array([[1], [1]]), "macro_auc"),
        (np.array([0.5, 1.5]), "mse"),
        (np.array([[0.5, 0.5]]), "mse"),
        (np.zeros((2, 3, 4)), "mse"),
    ],
)
def test_the_default_follows_the_targets(targets, expected):
    assert default_metric(targets) == expected
    assert expected in METRIC_NAMES
