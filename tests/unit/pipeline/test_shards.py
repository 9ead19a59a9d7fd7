"""Parts that make the whole, and are as even as their order allows."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from alula.errors import UsageError
from alula.pipeline import Shard, parse_shard, shard_of, shards

WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.1, 1.0, 5.0, 7.5, 600.0, 10_800.0, None])
    | st.floats(0, 1e5, allow_subnormal=False),
    min_size=1,
    max_size=9,
)


def least_largest(costs: list[float], count: int) -> float:
    """Return the smallest possible cost of the largest part, by trying all ways to cut."""
    return min(
        max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, len(costs))))
        for cuts in itertools.combinations(range(1, len(costs)), count - 1)
    )


@hypothesis_settings(deadline=None, max_examples=200)
@given(weights=WEIGHTS, data=st.data())
def test_parts_are_the_whole_in_order_and_as_even_as_can_be(
    weights: list[float | None], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(weights)))
    places = list(range(len(weights)))
    parts = [shard_of(places, Shard(k, count), weights=weights) for k in range(1, count + 1)]
    assert [place for part in parts for place in part] == places
    assert all(parts)
    known = [weight for weight in weights if weight is not None]
    mean = sum(known) / len(known) if known else 1.0
    costs = [mean if weight is None else weight for weight in weights]
    if mean > 0:
        largest = max(sum(costs[place] for place in part) for part in parts)
        # The bisection ends within a millionth.
        assert largest <= least_largest(costs, count) * (1 + 2e-6)


def test_files_of_unknown_length_are_counted() -> None:
    parts = [shard_of(range(10), Shard(k, 3)) for k in (1, 2, 3)]
    assert sorted(map(len, parts)) == [2, 4, 4]


def test_the_smallest_numbers_there_are() -> None:
    weights = [5e-324, 1e-323, 5e-324, 0.0, 5e-324]
    parts = [shard_of("abcde", Shard(k, 3), weights=weights) for k in (1, 2, 3)]
    assert "".join(letter for part in parts for letter in part) == "abcde"
    assert all(parts)


def test_ten_thousand_files() -> None:
    weights = [float(1 + k % 7) for k in range(10_000)]
    parts = [shard_of(weights, Shard(k, 10), weights=weights) for k in range(1, 11)]
    assert max(map(sum, parts)) <= sum(weights) / 10 + 7


def test_more_shards_than_files() -> None:
    with pytest.raises(UsageError, match=r"Shard got 1/3 of 2 files; .* Use at most 2"):
        shard_of("ab", Shard(1, 3))


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3", "1.0/2", "²/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="Shard got"):
        parse_shard(text)


def test_a_shard_as_text() -> None:
    assert str(parse_shard(" 03/10 ")) == "3/10"


@pytest.mark.parametrize("summed", [sum, math.fsum])
def test_no_file_is_lost_by_rounding(monkeypatch: pytest.MonkeyPatch, summed: object) -> None:
    """From Python 3.12 on `sum` of floats is more exact than adding one by one: 0.6, not 0.60000000000001."""
    monkeypatch.setattr(shards, "sum", summed, raising=False)
    for count in (1, 2, 3):
        parts = [shard_of("abc", Shard(k, count), weights=[0.1, 0.2, 0.3]) for k in range(1, count + 1)]
        assert "".join(itertools.chain(*parts)) == "abc"
        assert all(parts)
