"""Label sets aligned by name."""

from __future__ import annotations

import numpy as np
import pytest

from alula.ensemble import align_labels
from alula.errors import UsageError


def test_equal_sets_need_no_copy() -> None:
    alignment = align_labels([("a", "b"), ("a", "b")], widths=[2, 2])
    assert alignment.labels == ("a", "b")
    assert all(placement.source is None and placement.target is None for placement in alignment.placements)


def test_all_labels_in_the_order_in_which_they_are_met() -> None:
    alignment = align_labels([("b", "a"), ("c", "a")], widths=[2, 2])
    assert (alignment.labels, alignment.classes) == (("b", "a", "c"), 3)
    np.testing.assert_array_equal(alignment.known, [[True, True, False], [False, True, True]])
    second = alignment.placements[1]
    assert second.source is not None
    assert second.target is not None
    np.testing.assert_array_equal(second.source, [1, 0])
    np.testing.assert_array_equal(second.target, [1, 2])


def test_wanted_labels_are_chosen_and_ordered() -> None:
    alignment = align_labels([("b", "a", "x"), ("x", "c")], widths=[3, 2], wanted=["c", "b"])
    assert alignment.labels == ("c", "b")
    np.testing.assert_array_equal(alignment.known, [[False, True], [True, False]])
    columns = [
        None if placement.source is None else list(placement.source) for placement in alignment.placements
    ]
    assert columns == [[0], [1]]


def test_without_labels_columns_stay_where_they_are() -> None:
    alignment = align_labels([None, None], widths=[3, 3])
    assert alignment.labels is None
    assert alignment.classes == 3
    assert alignment.known.all()


@pytest.mark.parametrize(
    ("sets", "widths", "wanted", "says"),
    [
        ([None, ("a",)], [1, 1], None, "Member 1 has no labels and another has"),
        ([None, None], [1, 2], None, "have 1, 2 columns"),
        ([None, None], [1, 1], ["a"], "cannot be chosen"),
        ([("a", "a")], [2], None, "2 labels, 1 of them different"),
        ([("a", "b")], [3], None, "2 labels, 2 of them different, for 3 columns"),
        ([("robin",)], [1], ["robins"], "knows the label `robins`. Did you mean `robin`"),
        ([("a",)], [1], ["a", "a"], "different from each other"),
        ([("a",)], [1], [], "at least one"),
    ],
)
def test_sets_that_do_not_go_together(
    sets: list[tuple[str, ...] | None], widths: list[int], wanted: list[str] | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        align_labels(sets, widths=widths, wanted=wanted)
