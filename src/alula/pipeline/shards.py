"""One part of many of a list of files, the same whoever asks, so that machines can share a job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from alula.errors import UsageError

__all__ = ["Shard", "parse_shard", "shard_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a job: the `index`-th of `count`, from 1."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(
                f"Shard got {self}; expected one from 1/{self.count} to {self.count}/{self.count}."
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Return the shard that a text such as `3/10` names.

    Raises:
        UsageError: it names none.

    >>> parse_shard("3/10")
    Shard(index=3, count=10)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None or int(match[2]) == 0:
        raise UsageError(f"Shard got `{text}`; expected a part of a whole, such as 3/10.")
    return Shard(int(match[1]), int(match[2]))


def shard_of(items: Sequence[T], shard: Shard, *, weights: Sequence[float | None] | None = None) -> list[T]:
    """Return the consecutive items that make a shard; the shards one after the other are the whole list.

    The largest sum of weights in a shard is as small as consecutive items allow (within a millionth), and no
    shard is empty. The linear partition problem, solved by bisection over that sum.

    Args:
        items: in an order that is the same for all shards.
        shard: which part.
        weights: cost of each item, such as its duration; None where it is not known, which counts as the mean
            of those that are. Without any, all cost the same.

    Raises:
        UsageError: there are fewer items than shards.

    >>> [shard_of("abcdef", Shard(k, 3), weights=[4, 1, 1, 1, 1, None]) for k in (1, 2, 3)]
    [['a'], ['b', 'c', 'd', 'e'], ['f']]
    """
    if len(items) < shard.count:
        raise UsageError(
            f"Shard got {shard} of {len(items)} files; expected no more shards than files. Use at most "
            f"{len(items)}."
        )
    costs = _costs(len(items), weights)
    low, high = max((*costs, sum(costs) / shard.count)), sum(costs)
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break  # neighbours: the smallest numbers have no finer steps
        if len(_ends(costs, middle)) <= shard.count:
            high = middle
        else:
            low = middle
    ends = _ends(costs, high, count=shard.count)
    first = ends[shard.index - 2] if shard.index > 1 else 0
    return list(items[first : ends[shard.index - 1]])


def _costs(count: int, weights: Sequence[float | None] | None) -> list[float]:
    known = [weight for weight in weights or () if weight is not None]
    mean = sum(known) / len(known) if known else 1.0
    if mean == 0:
        return [1.0] * count
    return [mean if weight is None else weight for weight in weights or [None] * count]


def _ends(costs: Sequence[float], most: float, *, count: int | None = None) -> list[int]:
    """Return where each part ends if parts are filled one after the other up to a cost.

    Args:
        costs: of the items.
        most: a part may cost.
        count: of parts to make, where `most` suffices for as many; None makes as few as possible. Parts end
            early so that none behind them is empty.
    """
    ends: list[int] = []
    held = 0.0
    for place, cost in enumerate(costs):
        needed = count is not None and len(costs) - place <= count - len(ends) - 1
        # The last part takes what is left: `most` is a sum too, and rounded in another way than `held` is.
        last = count is not None and len(ends) == count - 1
        if place and not last and (held + cost > most or needed):
            ends.append(place)
            held = 0.0
        held += cost
    ends.append(len(costs))
    return ends
