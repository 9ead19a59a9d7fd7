"""What the speed of one recipe tells of another's, so that not every one of them must be tried.

Two recipes of one engine whose files differ in scales and biases alone are equally fast, or nearly; one
that has zero points besides is no faster. Of others it is known how much they differ at most: the limits
below lie well above what was seen on the networks of `benchmarks`. They say nothing of engines and
quantizers of third parties, nor of an INT8 recipe by an FP32 one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from alula.core import Recipe

__all__ = ["Bound", "is_no_faster", "outdone", "same_files", "speed_bound"]

_PYTORCH = ("torch", "torchscript", "inductor")
_COMPILED = ("openvino", "onnxruntime")
_FLOAT = ("fp32", "bf16")

# For each variant of a quantizer, those whose files differ from its own in numbers alone and are at least as
# fast. Zero points are there for accuracy: where the activations have them (NNCF's preset `mixed`, behind
# what is no ReLU), they cost up to a fifth of the speed.
_OTHER_NUMBERS: Mapping[str, Mapping[str | None, Collection[str | None]]] = {
    "openvino/nncf": {
        None: ("full-bias",),
        "full-bias": (None,),
        "mixed": (None, "full-bias"),
        "mixed-bf16": ("bf16",),
    },
    "onnxruntime/static": {
        None: ("percentile", "entropy"),
        "percentile": (None, "entropy"),
        "entropy": (None, "percentile"),
    },
}
# The variant of which the engine computes in BF16 what is not quantized.
_REST_IN_BF16: Mapping[str | None, str] = {None: "bf16", "mixed": "mixed-bf16"}
_REST_IN_FP32 = {narrow: wide for wide, narrow in _REST_IN_BF16.items()}

# How many times as fast as the best of its engine, precision and quantizer a recipe can be. Which layers are
# quantized made up to 1.6 in OpenVINO; layouts up to 1.8 in PyTorch; the way into OpenVINO next to nothing.
_OTHER_VARIANT: Mapping[tuple[str, bool], float] = {
    ("openvino", False): 1.25,
    ("openvino", True): 2.0,
    ("onnxruntime", True): 2.0,
    ("torch", False): 2.5,
    ("torch", True): 2.0,
    ("torchscript", False): 2.5,
    ("torchscript", True): 2.0,
    ("inductor", False): 1.5,
    ("inductor", True): 1.5,
}
# As the better of eager PyTorch and TorchScript in the same precision; TorchInductor reached 3.4 times of it.
_COMPILED_BY_INDUCTOR = 4.0
_EQUAL = 0.95  # of another's speed: more is noise
# One file, frozen or not.
_FROZEN = 2.0
# As the better of OpenVINO and ONNX Runtime in the same precision; none of PyTorch's reached more than 0.95.
_PYTORCH_OVER_COMPILED = 1.5


class Bound(NamedTuple):
    """A recipe is at most `limit` times as fast as `kin`, which has this speed."""

    kin: Recipe
    limit: float
    speed: float

    @property
    def at_most(self) -> float:
        """The highest speed that the recipe can have."""
        return self.limit * self.speed


def is_no_faster(one: Recipe, other: Recipe) -> bool:
    """Return whether a recipe differs from another in numbers of its files that gain accuracy, but no speed.

    >>> plain = Recipe.parse("openvino/int8-nncf-dense")
    >>> mixed = Recipe.parse("openvino/int8-nncf-mixed-dense")
    >>> is_no_faster(mixed, plain), is_no_faster(plain, mixed)
    (True, False)
    >>> is_no_faster(mixed, Recipe.parse("openvino/int8-nncf"))
    False
    """
    at_least_as_fast = _OTHER_NUMBERS.get(f"{one.engine}/{one.quantizer}", {}).get(one.variant, ())
    return other.variant in at_least_as_fast and (one.engine, one.quantizer, one.scope) == (
        other.engine,
        other.quantizer,
        other.scope,
    )


def same_files(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the recipes whose artifacts have the same files as this one's.

    >>> [one.name for one in same_files(Recipe.parse("openvino/int8-nncf-dense"))]
    ['openvino/int8-nncf-bf16-dense']
    >>> [one.name for one in same_files(Recipe.parse("torch/int8-fx-fbgemm"))]
    ['torchscript/int8-fx-fbgemm']
    >>> same_files(Recipe.parse("onnxruntime/int8-static"))
    ()
    """
    made = (recipe.precision, recipe.quantizer, recipe.variant, recipe.scope)
    match (recipe.engine, recipe.quantizer, recipe.variant):
        case ("openvino", "nncf", variant) if variant in _REST_IN_BF16:
            return (Recipe("openvino", "int8", "nncf", _REST_IN_BF16[variant], recipe.scope),)
        case ("openvino", "nncf", variant) if variant in _REST_IN_FP32:
            return (Recipe("openvino", "int8", "nncf", _REST_IN_FP32[variant], recipe.scope),)
        case ("torch", "fx" | "eager" | "dynamic", _):
            return (Recipe("torchscript", *made),)
        case ("torchscript", "fx" | "eager" | "dynamic", _):
            return (Recipe("torch", *made),)
        case _:
            return ()


def speed_bound(recipe: Recipe, speeds: Mapping[Recipe, float]) -> Bound | None:
    """Return the lowest bound of a recipe's speed that follows from the speeds of others, None without one.

    Args:
        recipe: was not measured.
        speeds: the best of every recipe that was, in any unit.

    >>> speeds = {Recipe("openvino", "fp32"): 40.0, Recipe("onnxruntime", "fp32"): 50.0}
    >>> bound = speed_bound(Recipe("torch", "fp32"), speeds)
    >>> bound.kin.name, bound.at_most
    ('onnxruntime/fp32', 75.0)
    >>> speed_bound(Recipe("torch", "int8", "fx"), speeds) is None
    True
    """
    groups: dict[float, list[Recipe]] = {}
    for kin in speeds:
        limit = _limit(recipe, kin)
        if limit is not None:
            groups.setdefault(limit, []).append(kin)
    bounds = []
    for limit, group in groups.items():
        best = max(group, key=lambda one: speeds[one])
        bounds.append(Bound(best, limit, speeds[best]))
    return min(bounds, key=lambda one: one.at_most, default=None)


def outdone(
    recipe: Recipe, speeds: Mapping[Recipe, float], *, wrong: Collection[Recipe], best: float
) -> str | None:
    """Return why a recipe cannot win, in words; None if it may.

    Args:
        recipe: was not tried.
        speeds: the best of every recipe that was, those found wrong included.
        wrong: recipes that were found wrong.
        best: the highest speed of a recipe that was not.

    >>> plain, full = Recipe("openvino", "int8", "nncf"), Recipe("openvino", "int8", "nncf", "full-bias")
    >>> outdone(full, {plain: 40.0}, wrong=(), best=40.0)
    'it would be no faster than openvino/int8-nncf, which is accurate enough'
    >>> outdone(full, {plain: 40.0}, wrong=[plain], best=30.0) is None
    True
    >>> outdone(full, {plain: 40.0}, wrong=[plain], best=80.0)
    'it would be no faster than openvino/int8-nncf, which reached 50 % of the highest speed'
    """
    for other, speed in speeds.items():
        if is_no_faster(recipe, other):
            if speed < _EQUAL * best:
                return f"it would be no faster than {other}, {_reached(speed, best)}"
            if other not in wrong:
                return f"it would be no faster than {other}, which is accurate enough"
    bound = speed_bound(recipe, speeds)
    if bound is not None and bound.at_most < best:
        return f"it is at most {bound.limit:g} times as fast as {bound.kin}, {_reached(bound.speed, best)}"
    return None


def _reached(speed: float, best: float) -> str:
    return f"which reached {speed / best:.0%} of the highest speed".replace("%", " %")


def _limit(recipe: Recipe, kin: Recipe) -> float | None:
    """Return how many times as fast as the best of its kind a recipe can be, None for no kin."""
    if recipe.precision != kin.precision or recipe == kin:
        return None
    if (recipe.engine, recipe.quantizer) == (kin.engine, kin.quantizer):
        # What stays in float may gain anything by another precision.
        other_rest = recipe.rest_in_bf16 and not kin.rest_in_bf16
        return None if other_rest else _OTHER_VARIANT.get((recipe.engine, recipe.precision == "int8"))
    return _float_limit(recipe, kin) if recipe.precision in _FLOAT else _int8_limit(recipe, kin)


def _float_limit(recipe: Recipe, kin: Recipe) -> float | None:
    if recipe.engine in _PYTORCH and kin.engine in _COMPILED:
        return _PYTORCH_OVER_COMPILED
    if recipe.engine == "inductor" and kin.engine in _PYTORCH:
        return _COMPILED_BY_INDUCTOR
    either = {recipe.engine, kin.engine} == {"torch", "torchscript"}
    return _OTHER_VARIANT[recipe.engine, False] if either else None


def _int8_limit(recipe: Recipe, kin: Recipe) -> float | None:
    of_same_files = {(one.engine, one.quantizer) for one in same_files(recipe)}
    return _FROZEN if (kin.engine, kin.quantizer) in of_same_files else None
