"""Cascades: who is asked for which rows."""

from __future__ import annotations

import numpy as np

from alula.ensemble import Bands, cascaded

BANDS = Bands(lower=np.float32([0.4, 0.9]), upper=np.float32([0.6, 0.1]))


def test_the_rest_is_asked_where_a_score_is_in_its_band_or_no_number() -> None:
    """The second class has an empty band; a score of it that is no number says nothing all the same."""
    nan = np.nan
    scores = np.float32([[0.1, 0.5], [0.5, 0.5], [nan, 0.5], [0.1, nan], [0.4, 0.5], [0.7, 0.0], [nan, nan]])
    asked: list[list[int]] = []

    def rest(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.full((len(rows), 2), 2.0, np.float32)

    got = cascaded(scores, bands=BANDS, rest=rest)
    assert asked == [[1, 2, 3, 4, 6]]
    expected = scores.copy()
    expected[[1, 2, 3, 4, 6]] = 2.0
    np.testing.assert_array_equal(got, expected)


def test_nobody_else_is_asked_where_all_are_sure() -> None:
    sure = np.float32([[0.1, 0.0], [0.9, 1.0]])
    got = cascaded(sure, bands=BANDS, rest=lambda rows: None)
    np.testing.assert_array_equal(got, sure)
    assert cascaded(np.float32([[0.5, 0.0]]), bands=BANDS, rest=lambda rows: None) is None
