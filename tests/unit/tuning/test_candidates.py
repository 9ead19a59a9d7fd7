"""What is tried, in which order, with which settings."""

from __future__ import annotations

import pytest

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import engine_named, engine_names
from alula.errors import UsageError
from alula.quantization import quantizer_names
from alula.tuning import BATCH_SIZES, offered_recipes, settings_grid


def signature(*shape: int | str) -> Signature:
    return Signature((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", (shape[0], 2)),))


def test_everything_offered_is_tried_once() -> None:
    names = [recipe.name for recipe in offered_recipes()]
    offered = {f"{name}/fp32" for name in engine_names() if engine_named(name).offered}
    assert set(names) == offered | set(quantizer_names())
    assert len(names) == len(set(names))


def test_the_fake_engine_is_tried_only_when_asked() -> None:
    assert all(recipe.engine != "fake" for recipe in offered_recipes())
    assert offered_recipes(engines=("fake",)) == (Recipe("fake", "fp32"),)


def test_cheap_and_promising_recipes_come_first() -> None:
    names = [recipe.name for recipe in offered_recipes()]
    assert names[:2] == ["openvino/fp32", "onnxruntime/fp32"]
    assert names[-1] == "inductor/fp32"  # compiles for up to a minute


def test_engines_restrict_their_quantizers_too() -> None:
    recipes = offered_recipes(engines=("onnxruntime",))
    assert {recipe.engine for recipe in recipes} == {"onnxruntime"}
    assert {recipe.precision for recipe in recipes} == {"fp32", "int8"}


def test_precisions_restrict() -> None:
    assert {recipe.precision for recipe in offered_recipes(precisions=("int8",))} == {"int8"}
    assert offered_recipes(engines=("torch",), precisions=("int8",)) == ()


def test_an_unknown_engine_is_named_with_the_closest_known() -> None:
    with pytest.raises(UsageError, match=r"no engine `openvin`.*Did you mean `openvino`\?"):
        offered_recipes(engines=("onnxruntime", "openvin"))


def test_the_grid_has_one_wide_instance_and_many_narrow_ones_at_each_batch_size() -> None:
    grid = settings_grid(4, signature("b", 3))
    assert {(s.threads, s.instances) for s in grid} == {(4, 1), (1, 4)}
    assert {s.batch_size for s in grid} == set(BATCH_SIZES)
    assert len(grid) == len(set(map(str, grid))) == 2 * len(BATCH_SIZES)
    assert all(s.total_threads == 4 for s in grid)
    assert grid[0].batch_size == 8  # what accuracy is judged with


def test_one_thread_has_one_layout() -> None:
    assert {(s.threads, s.instances) for s in settings_grid(1, signature("b", 3))} == {(1, 1)}


def test_a_fixed_batch_axis_is_measured_as_it_is() -> None:
    assert settings_grid(2, signature(5, 3)) == (
        Settings(threads=2, instances=1, batch_size=5),
        Settings(threads=1, instances=2, batch_size=5),
    )
