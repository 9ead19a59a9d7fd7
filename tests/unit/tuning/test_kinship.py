"""What the speed of one recipe tells of another's."""

from __future__ import annotations

import pytest

from alula.core import Recipe
from alula.tuning import offered_recipes
from alula.tuning.kinship import is_no_faster, outdone, same_files, speed_bound

ISA = ("avx2", "avx512_vnni", "avx512_bf16")


def recipe(name: str) -> Recipe:
    return Recipe.parse(name)


def speeds(**of: float) -> dict[Recipe, float]:
    return {recipe(name.replace("__", "/").replace("_", "-")): speed for name, speed in of.items()}


def test_one_is_no_faster_than_itself_by_no_rule_and_files_are_the_same_both_ways() -> None:
    offered = offered_recipes(ISA)
    for one in offered:
        assert not is_no_faster(one, one)
        assert one not in same_files(one)
        for other in offered:
            assert (other in same_files(one)) == (one in same_files(other))


def test_other_numbers_are_no_faster_and_zero_points_may_be_slower() -> None:
    offered = offered_recipes(ISA)
    pairs = {(one.name, other.name) for one in offered for other in offered if is_no_faster(one, other)}
    for one, other in (
        ("onnxruntime/int8-static-percentile-no-edges", "onnxruntime/int8-static-no-edges"),
        ("onnxruntime/int8-static-entropy", "onnxruntime/int8-static"),
        ("onnxruntime/int8-static-entropy", "onnxruntime/int8-static-percentile"),
        ("openvino/int8-nncf-full-bias", "openvino/int8-nncf"),
    ):
        assert {(one, other), (other, one)} <= pairs
    for one, other in (
        ("openvino/int8-nncf-mixed", "openvino/int8-nncf"),
        ("openvino/int8-nncf-mixed", "openvino/int8-nncf-full-bias"),
        ("openvino/int8-nncf-mixed-bf16-dense", "openvino/int8-nncf-bf16-dense"),
    ):
        assert (one, other) in pairs
        assert (other, one) not in pairs
    # The precision of the rest and the way into OpenVINO change what is computed.
    assert ("openvino/int8-nncf-mixed-bf16-dense", "openvino/int8-nncf-mixed-dense") not in pairs
    assert not {name for pair in pairs for name in pair} & {
        "openvino/int8-nncf-direct",
        *("onnxruntime/int8-dynamic", "torch/int8-fx", "torch/int8-fx-fbgemm"),
    }


def test_nothing_is_known_of_a_recipe_by_another_precision_or_by_third_parties() -> None:
    known = {one: 1.0 for one in offered_recipes(ISA) if one.precision != "int8"}
    for one in offered_recipes(ISA):
        if one.precision == "int8":
            assert speed_bound(one, known) is None
    foreign = Recipe("foreign", "fp32")
    assert speed_bound(foreign, known) is None
    assert speed_bound(Recipe("foreign", "fp32", variant="other"), {foreign: 1.0}) is None
    assert speed_bound(foreign, {}) is None


def test_the_best_of_the_kin_counts_and_of_several_kinds_the_lowest_bound() -> None:
    # Each engine has a bad day now and then.
    of_both = speed_bound(recipe("torch/fp32"), speeds(openvino__fp32=10.0, onnxruntime__fp32=40.0))
    assert of_both is not None
    assert (of_both.kin.name, of_both.at_most) == ("onnxruntime/fp32", 60.0)
    own = speed_bound(recipe("torch/fp32-channels-last"), speeds(onnxruntime__fp32=40.0, torch__fp32=4.0))
    assert own is not None
    assert (own.kin.name, own.at_most) == ("torch/fp32", 10.0)


def test_a_rest_in_bf16_is_not_bounded_by_one_in_fp32_but_the_other_way_round() -> None:
    wide, narrow = recipe("openvino/int8-nncf-dense"), recipe("openvino/int8-nncf-bf16-dense")
    assert speed_bound(narrow, {wide: 1.0}) is None
    assert speed_bound(wide, {narrow: 1.0}) is not None
    zero_points = recipe("openvino/int8-nncf-mixed-bf16-dense")
    assert speed_bound(zero_points, {wide: 1.0}) is None
    assert speed_bound(zero_points, {wide: 9.0, narrow: 3.0}) == (narrow, 2.0, 3.0)


def test_one_file_serves_for_both_precisions_of_the_rest() -> None:
    for plain, other in (("", "-bf16"), ("-dense", "-bf16-dense"), ("-mixed-dense", "-mixed-bf16-dense")):
        one, two = recipe(f"openvino/int8-nncf{plain}"), recipe(f"openvino/int8-nncf{other}")
        assert same_files(one) == (two,)
        assert same_files(two) == (one,)
    assert same_files(recipe("openvino/int8-nncf-full-bias")) == ()


@pytest.mark.parametrize(
    ("name", "known", "is_outdone"),
    [
        # Twice as fast as its plain sibling is what a scope may be, no more.
        ("openvino/int8-nncf-dense", {"openvino/int8-nncf": 40.0}, True),
        ("openvino/int8-nncf-dense", {"openvino/int8-nncf": 60.0}, False),
        ("torchscript/fp32", {"onnxruntime/fp32": 60.0, "openvino/fp32": 50.0}, True),
        ("torchscript/fp32", {"onnxruntime/fp32": 60.0, "openvino/fp32": 70.0}, False),
        ("inductor/fp32-max-autotune", {"inductor/fp32": 60.0}, True),
        ("inductor/bf16", {"torch/bf16": 20.0}, True),
        ("torch/int8-fx-dense", {"torchscript/int8-fx": 40.0}, True),
        ("torch/int8-fx", {"torch/int8-eager": 1.0}, False),
        ("inductor/int8-pt2e", {"openvino/int8-nncf": 100.0, "torch/fp32": 1.0}, False),
    ],
)
def test_a_recipe_is_outdone_by_what_its_kin_reached(
    name: str, known: dict[str, float], is_outdone: bool
) -> None:
    reason = outdone(recipe(name), {recipe(one): v for one, v in known.items()}, wrong=(), best=100.0)
    assert (reason is not None) == is_outdone


def test_the_reason_says_by_whom_and_by_how_much() -> None:
    text = outdone(recipe("torch/fp32"), speeds(onnxruntime__fp32=30.0), wrong=(), best=100.0)
    assert text == (
        "it is at most 1.5 times as fast as onnxruntime/fp32, which reached 30 % of the highest speed"
    )


def test_what_is_wrong_outdoes_its_sibling_only_by_its_speed() -> None:
    plain, percentile = recipe("onnxruntime/int8-static"), recipe("onnxruntime/int8-static-percentile")
    assert outdone(percentile, {plain: 100.0}, wrong=(), best=100.0) is not None
    assert outdone(percentile, {plain: 100.0}, wrong={plain}, best=90.0) is None
    assert outdone(percentile, {plain: 40.0}, wrong={plain}, best=90.0) is not None
