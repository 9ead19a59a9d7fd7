"""What is tried, in which order, with which settings."""

from __future__ import annotations

import pytest

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import engine_named, engine_names
from alula.errors import UsageError
from alula.quantization import quantizer_named, quantizer_names
from alula.tuning import BATCH_SIZES, offered_recipes, settings_grid
from alula.tuning.candidates import SERVER_BATCH_SIZES, batch_neighbours


def signature(*shape: int | str) -> Signature:
    return Signature((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", (shape[0], 2)),))


ISA = ("avx2", "avx512_vnni")


def test_everything_declared_is_offered_once() -> None:
    names = [recipe.name for recipe in offered_recipes(ISA)]
    declared = [
        r.name for e in engine_names() if engine_named(e).offered for r in engine_named(e).recipes(ISA)
    ]
    declared += [recipe.name for name in quantizer_names() for recipe in quantizer_named(name).recipes(ISA)]
    assert sorted(names) == sorted(declared)
    assert len(names) == len(set(names))


def test_the_fake_engine_is_tried_only_when_asked() -> None:
    assert all(recipe.engine != "fake" for recipe in offered_recipes(ISA))
    assert offered_recipes(ISA, engines=("fake",)) == (Recipe("fake", "fp32"),)


def test_cheap_and_promising_recipes_come_first() -> None:
    names = [recipe.name for recipe in offered_recipes(ISA)]
    assert names[:2] == ["openvino/fp32", "onnxruntime/fp32"]
    assert names.index("openvino/int8-nncf") < names.index("inductor/fp32")  # compiles for up to a minute


def test_bf16_is_offered_only_where_the_cpu_has_it() -> None:
    assert not any(recipe.precision == "bf16" for recipe in offered_recipes(ISA))


def test_engines_restrict_their_quantizers_too() -> None:
    recipes = offered_recipes(ISA, engines=("onnxruntime",))
    assert {recipe.engine for recipe in recipes} == {"onnxruntime"}
    assert {recipe.precision for recipe in recipes} == {"fp32", "int8"}


def test_precisions_restrict() -> None:
    assert {recipe.precision for recipe in offered_recipes(ISA, precisions=("int8",))} == {"int8"}


def test_an_unknown_engine_is_named_with_the_closest_known() -> None:
    with pytest.raises(UsageError, match=r"no engine `openvin`.*Did you mean `openvino`\?"):
        offered_recipes(ISA, engines=("onnxruntime", "openvin"))


def test_the_grid_shares_the_threads_in_every_way_at_each_batch_size() -> None:
    grid = settings_grid(4, signature("b", 3))
    assert {(s.threads, s.instances) for s in grid} == {(4, 1), (2, 2), (1, 4)}
    assert {s.batch_size for s in grid} == set(BATCH_SIZES)
    assert len(grid) == len(set(map(str, grid))) == 3 * len(BATCH_SIZES)
    assert all(s.total_threads == 4 for s in grid)
    assert grid[0].batch_size == 8  # what accuracy is judged with


def test_a_server_has_batches_of_a_few_queries() -> None:
    grid = settings_grid(4, signature("b", 3), scenario="server")
    assert {(s.threads, s.instances) for s in grid} == {(4, 1), (2, 2), (1, 4)}
    assert {s.batch_size for s in grid} == set(SERVER_BATCH_SIZES)
    assert max(SERVER_BATCH_SIZES) < max(BATCH_SIZES)
    largest = Settings(batch_size=2 * max(SERVER_BATCH_SIZES))
    near = batch_neighbours(largest, signature("b", 3), scenario="server")
    assert [s.batch_size for s in near] == [max(SERVER_BATCH_SIZES)]
    assert len(batch_neighbours(largest, signature("b", 3))) == 2


def test_a_single_stream_has_one_instance_with_all_threads_or_fewer() -> None:
    grid = settings_grid(8, signature("b", 3), scenario="single-stream")
    assert [(s.threads, s.instances, s.batch_size) for s in grid] == [(8, 1, 1), (4, 1, 1), (1, 1, 1)]


def test_one_thread_has_one_layout() -> None:
    assert {(s.threads, s.instances) for s in settings_grid(1, signature("b", 3))} == {(1, 1)}


def test_a_fixed_batch_axis_is_measured_as_it_is() -> None:
    assert settings_grid(2, signature(5, 3)) == (
        Settings(threads=2, instances=1, batch_size=5),
        Settings(threads=1, instances=2, batch_size=5),
    )
