"""Blends against their formulas, one row and one class at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alula.core import Blend, Geometric, Maximum, Mean, Minimum, Power, Rank
from alula.ensemble import Blender, align_labels, rank_shares
from alula.errors import EngineError, UsageError

Formula = Callable[[Sequence[float], Sequence[float]], float]

# float32 has 6e-8; logarithms and powers lose a factor of ten to a hundred.
RTOL = 2e-5


def weighted_mean(x: Sequence[float], w: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, w, strict=True)) / sum(w)


def weighted_geometric_mean(x: Sequence[float], w: Sequence[float]) -> float:
    if any(a == 0 and b > 0 for a, b in zip(x, w, strict=True)):
        return 0.0
    heard = [(a, b) for a, b in zip(x, w, strict=True) if b > 0]
    return math.prod(a ** (b / sum(w)) for a, b in heard)


def power_mean(exponent: float) -> Formula:
    def formula(x: Sequence[float], w: Sequence[float]) -> float:
        return weighted_mean([a**exponent for a in x], w) ** (1 / exponent)

    return formula


FORMULAS: list[tuple[Callable[..., Blend], Formula]] = [
    (Mean, weighted_mean),
    (Geometric, weighted_geometric_mean),
    (Power, power_mean(2)),
    (lambda **weights: Power(exponent=3.5, **weights), power_mean(3.5)),
]

scores = st.floats(0, 1, width=32).filter(lambda x: x == 0 or x > 1e-6)
weight = st.sampled_from([0.0, 0.25, 1.0, 3.0])


@st.composite
def members(draw: st.DrawFn) -> tuple[list[tuple[str, ...]], list[np.ndarray], list[float]]:
    """Label sets that overlap, scores of as many rows each, and weights of which no class is left without."""
    sets = draw(st.lists(st.permutations("abcde").map(lambda p: p[:3]), min_size=1, max_size=4))
    rows = draw(st.integers(0, 5))
    values = [draw(arrays(np.float32, (rows, 3), elements=scores)) for _ in sets]
    weights = draw(st.lists(weight, min_size=len(sets), max_size=len(sets)))
    for label in {label for labels in sets for label in labels}:
        if not any(w for w, labels in zip(weights, sets, strict=True) if label in labels):
            weights = [w or 1.0 for w in weights]
    return [tuple(labels) for labels in sets], values, weights


def by_formula(
    labels: Sequence[str],
    sets: Sequence[Sequence[str]],
    values: Sequence[np.ndarray],
    weights: Callable[[str], Sequence[float]],
    formula: Formula,
) -> np.ndarray:
    result = np.empty((len(values[0]), len(labels)))
    for row in range(len(result)):
        for column, label in enumerate(labels):
            knowing = [m for m, names in enumerate(sets) if label in names]
            x = [float(values[m][row, list(sets[m]).index(label)]) for m in knowing]
            result[row, column] = formula(x, [weights(label)[m] for m in knowing])
    return result


@pytest.mark.parametrize(("make", "formula"), FORMULAS, ids=["mean", "geometric", "quadratic", "power"])
@settings(max_examples=60, deadline=None)
@given(drawn=members(), special=st.sampled_from("abcde"))
def test_weighted_blends(make: Callable[..., Blend], formula: Formula, drawn: object, special: str) -> None:
    sets, values, general = drawn  # type: ignore[misc]
    alignment = align_labels(sets, widths=[3] * len(sets))
    assert alignment.labels is not None
    own = [1.0 + m for m in range(len(sets))]
    class_weights = {special: tuple(own)} if special in alignment.labels else {}
    blender = Blender(make(weights=tuple(general), class_weights=class_weights), alignment)
    before = [each.copy() for each in values]
    got = blender.blend(values)
    expected = by_formula(
        alignment.labels, sets, values, lambda label: own if label in class_weights else general, formula
    )
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=1e-7)
    for each, old in zip(values, before, strict=True):
        np.testing.assert_array_equal(each, old)
    assert not blender.whole_job


@settings(max_examples=60, deadline=None)
@given(drawn=members())
def test_extremes(drawn: object) -> None:
    sets, values, _ = drawn  # type: ignore[misc]
    alignment = align_labels(sets, widths=[3] * len(sets))
    for blend, formula in ((Minimum(), min), (Maximum(), max)):
        expected = by_formula(
            alignment.labels or (), sets, values, lambda _: [1.0] * len(sets), lambda x, _, f=formula: f(x)
        )
        np.testing.assert_array_equal(Blender(blend, alignment).blend(values), expected.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(drawn=members())
def test_ranks_are_those_of_scipy(drawn: object) -> None:
    sets, values, general = drawn  # type: ignore[misc]
    alignment = align_labels(sets, widths=[3] * len(sets))
    blender = Blender(Rank(weights=tuple(general)), alignment)
    ranks = [
        scipy.stats.rankdata(each, axis=0, method="average") / max(1, len(each)) if len(each) else each
        for each in values
    ]
    expected = by_formula(alignment.labels or (), sets, ranks, lambda _: general, weighted_mean)
    blended = blender.blend(values)
    np.testing.assert_allclose(blended, expected, rtol=1e-6)
    assert blender.whole_job
    for place in range(blended.shape[1]):
        columns = [
            None if column is None else each[:, column]
            for each, column in zip(values, blender.columns_of_class(place), strict=True)
        ]
        np.testing.assert_array_equal(blender.blend_class(place, columns), blended[:, place])


@settings(max_examples=60, deadline=None)
@given(drawn=members(), data=st.data())
def test_some_members_blend_as_if_there_were_no_others(drawn: object, data: st.DataObject) -> None:
    sets, values, general = drawn  # type: ignore[misc]
    alignment = align_labels(sets, widths=[3] * len(sets))
    places = sorted(data.draw(st.sets(st.integers(0, len(sets) - 1), min_size=1)))
    some = Blender(Mean(weights=tuple(general)), alignment, members=places)
    labels = alignment.labels or ()
    heard = [any(general[place] > 0 and label in sets[place] for place in places) for label in labels]
    assert some.heard.tolist() == heard
    expected = by_formula(
        labels,
        [sets[place] for place in places],
        [values[place] for place in places],
        lambda _: [general[place] for place in places],
        lambda x, w: weighted_mean(x, w) if sum(w) else 0.0,
    )
    got = some.blend([values[place] for place in places])
    np.testing.assert_allclose(got[:, heard], expected[:, heard], rtol=RTOL, atol=1e-7)


def test_ranks_of_many_columns_and_nan(rng: np.random.Generator) -> None:
    x = rng.integers(0, 20, (100, 11)).astype(np.float32)
    np.testing.assert_allclose(rank_shares(x), scipy.stats.rankdata(x, axis=0) / 100, rtol=1e-6)
    x[3, 2] = np.nan
    assert np.isnan(rank_shares(x)[3, 2])
    assert np.isfinite(np.delete(rank_shares(x)[:, 2], 3)).all()


def test_logits_may_be_negative(rng: np.random.Generator) -> None:
    values = [rng.normal(size=(4, 2)).astype(np.float32) for _ in range(2)]
    blender = Blender(Mean(of="logits"), align_labels([None, None], widths=[2, 2]))
    np.testing.assert_allclose(blender.blend(values), (values[0] + values[1]) / 2, rtol=1e-6)
    for blend in (Geometric(), Power()):
        with pytest.raises(EngineError, match="expected scores from 0 up"):
            Blender(blend, align_labels([None, None], widths=[2, 2])).blend(values)


def test_rounding_below_zero_is_zero() -> None:
    values = [np.array([[-1e-8]], np.float32), np.array([[0.5]], np.float32)]
    alignment = align_labels([None, None], widths=[1, 1])
    assert Blender(Geometric(), alignment).blend(values)[0, 0] == 0.0
    np.testing.assert_allclose(Blender(Power(), alignment).blend(values), [[math.sqrt(0.125)]], rtol=1e-6)


def test_large_exponents_of_small_scores_do_not_vanish() -> None:
    values = [np.array([[1e-6]], np.float32), np.array([[2e-6]], np.float32)]
    blender = Blender(Power(exponent=50.0), align_labels([None, None], widths=[1, 1]))
    np.testing.assert_allclose(blender.blend(values), [[2e-6 * 0.5 ** (1 / 50)]], rtol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ([(2, 3)], "expected rows and classes of 2 members"),
        ([(2, 3), (2, 3, 4)], "give the member `frames`"),
        ([(2, 3), (1, 3)], "2, 1 rows"),
    ],
)
def test_scores_that_do_not_fit(shapes: list[tuple[int, ...]], says: str) -> None:
    blender = Blender(Mean(), align_labels([None, None], widths=[3, 3]))
    with pytest.raises(EngineError, match=says):
        blender.blend([np.zeros(shape, np.float32) for shape in shapes])


@pytest.mark.parametrize(
    ("blend", "says"),
    [
        (Mean(weights=(1,)), "got 1 values; expected 2"),
        (Mean(class_weights={"c": (1, 2)}), "the class `c`, which the ensemble does not have"),
        (Mean(weights=(1, 0)), "knows the class `b` has a weight above 0"),
        (Rank(class_weights={"a": (1, 2, 3)}), "`class_weights` of `a` got 3 values"),
    ],
)
def test_weights_that_do_not_fit(blend: Blend, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Blender(blend, align_labels([("a",), ("a", "b")], widths=[1, 2]))


@pytest.mark.parametrize(
    "weights",
    [
        {"weights": ()},
        {"weights": (0.0, 0.0)},
        {"weights": (1.0, math.inf)},
        {"weights": (1.0, 1.0), "class_weights": {"a": (1.0,)}},
        {"class_weights": {"a": (0.0,)}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Mean, Geometric, Power, Rank])
def test_impossible_weights(kind: Callable[..., Blend], weights: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"sum to more than 0|for the same members"):
        kind(**weights)
