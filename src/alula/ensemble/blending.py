"""Blends carried out with NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from alula.core import Blend, Geometric, Maximum, Mean, Minimum, Power, Rank
from alula.ensemble.labels import Alignment, Placement
from alula.errors import EngineError, UsageError

__all__ = ["Blender", "rank_shares"]

Float32 = npt.NDArray[np.float32]

# Probabilities in reduced precision undershoot 0 by rounding; less than this is another kind of number.
_ROUNDING = 1e-6
# Columns that are ranked at once: enough for NumPy, and the places of a million rows stay under 100 MB.
_RANK_COLUMNS = 4


class Blender:
    """Makes the scores of several members one.

    Thread-safe: an object holds its weights and nothing else.

    Args:
        blend: how; its docstring in `alula.core` has the formula.
        alignment: where the columns of each member belong.
        members: those whose scores will be blended, in ascending order; their weights are scaled to sum to 1
            again. What comes out for a class that none of them has a say in means nothing; see `heard`. None
            for all.

    Attributes:
        whole_job: whether a row's result depends on all rows of the job, so that `blend` must be given all of
            them.

    Raises:
        UsageError: the weights are for another number of members or for classes that there are not, or a
            class has no member with a weight above 0.

    >>> from alula.ensemble import align_labels
    >>> blender = Blender(Mean(weights=(3, 1)), align_labels([None, None], widths=[1, 1]))
    >>> blender.blend([np.array([[0.8]], np.float32), np.array([[0.4]], np.float32)]).round(6).tolist()
    [[0.699999988079071]]
    """

    def __init__(self, blend: Blend, alignment: Alignment, *, members: Sequence[int] | None = None) -> None:
        self.whole_job = isinstance(blend, Rank)
        self.alignment = alignment
        self._blend = blend
        weights = _weights(blend, alignment)
        _check_heard(weights, alignment)
        if members is not None:
            places = list(members)
            weights = weights[places]
            self.alignment = dataclasses.replace(
                alignment,
                placements=tuple(alignment.placements[place] for place in places),
                known=alignment.known[places],
            )
        self._weights = _shares(weights)

    @property
    def heard(self) -> npt.NDArray[np.bool_]:
        """For each class whether a member has a say in it, shape (c,)."""
        return np.asarray((self._weights > 0).any(axis=0))

    def blend(self, scores: Sequence[npt.NDArray[Any]]) -> Float32:
        """Return the blended scores.

        Args:
            scores: of each member, shape (n, its columns), n the same for all.

        Returns:
            A new array, shape (n, c), float32.

        Raises:
            EngineError: shapes do not fit, or scores below 0 where the blend needs some from 0 up.
        """
        n = self._checked_rows(scores)
        match self._blend:
            case Mean():
                return self._weighted_sum(n, self._parts(scores))
            case Geometric():
                return self._geometric(n, scores)
            case Power(exponent=exponent):
                return self._power(n, scores, exponent)
            case Rank():
                return self._weighted_sum(n, map(rank_shares, self._parts(scores)))
            case Minimum():
                return self._extreme(n, scores, np.minimum, np.inf)
            case Maximum():
                return self._extreme(n, scores, np.maximum, -np.inf)
            case _:
                assert_never(self._blend)

    def blend_class(self, place: int, columns: Sequence[npt.NDArray[Any] | None]) -> Float32:
        """Return the blended ranks of one class for all rows of a job, with the bits of `blend`.

        So the ranks of a job need memory for a few of its columns only.

        Args:
            place: of the class in the result.
            columns: of each member, its scores of that class, shape (n,); None where it does not know it; see
                `columns_of_class`.

        Returns:
            A new array, shape (n,), float32.
        """
        given = [(column, m) for m, column in enumerate(columns) if column is not None]
        total = np.zeros(len(given[0][0]), np.float32)
        for column, m in given:
            total += rank_shares(np.asarray(column, np.float32)[:, None])[:, 0] * self._weights[m, place]
        return total

    def columns_of_class(self, place: int) -> list[int | None]:
        """Return which column of each member holds a class of the result; None where it does not know it."""
        found: list[int | None] = []
        for placement in self.alignment.placements:
            at = place
            if placement.target is not None:
                at = int(np.searchsorted(placement.target, place))
                if at == len(placement.target) or placement.target[at] != place:
                    found.append(None)
                    continue
            found.append(at if placement.source is None else int(placement.source[at]))
        return found

    def _checked_rows(self, scores: Sequence[npt.NDArray[Any]]) -> int:
        shapes = [part.shape for part in scores]
        if len(scores) != len(self.alignment.placements) or any(len(shape) != 2 for shape in shapes):
            raise EngineError(
                f"The members gave scores of shapes {', '.join(map(str, shapes))}; expected rows and classes "
                f"of {len(self.alignment.placements)} members. For scores per frame give the member `frames`."
            )
        if len({shape[0] for shape in shapes}) != 1:
            raise EngineError(
                f"The members gave {', '.join(str(s[0]) for s in shapes)} rows; expected as many each."
            )
        return int(shapes[0][0])

    def _parts(self, scores: Sequence[npt.NDArray[Any]]) -> Iterator[Float32]:
        """Yield the columns of each member that the result has, in the result's order."""
        for part, placement in zip(scores, self.alignment.placements, strict=True):
            taken = part if placement.source is None else part[:, placement.source]
            yield np.asarray(taken, dtype=np.float32)

    def _likelihoods(self, scores: Sequence[npt.NDArray[Any]]) -> Iterator[Float32]:
        """Yield the parts, none of them below 0."""
        for number, part in enumerate(self._parts(scores), 1):
            lowest = float(part.min(initial=0.0))
            if lowest < -_ROUNDING:
                raise EngineError(
                    f"Member {number} gave the score {lowest:g}; expected scores from 0 up for a geometric "
                    "or power blend. Give its bundle an activation, or blend by `mean`."
                )
            yield np.maximum(part, np.float32(0.0)) if lowest < 0 else part

    def _weighted_sum(self, n: int, parts: Iterator[Float32]) -> Float32:
        total = np.zeros((n, self.alignment.classes), np.float32)
        for part, weights, placement in zip(parts, self._weights, self.alignment.placements, strict=True):
            if placement.target is None:
                total += part * weights
            else:
                total[:, placement.target] += part * weights[placement.target]
        return total

    def _geometric(self, n: int, scores: Sequence[npt.NDArray[Any]]) -> Float32:
        def logarithms() -> Iterator[Float32]:
            parts = zip(self._likelihoods(scores), self._weights, self.alignment.placements, strict=True)
            for part, weights, placement in parts:
                with np.errstate(divide="ignore"):
                    logarithm = np.log(part)
                # 0 times the logarithm of 0 would be NaN; a member without weight has no say.
                logarithm[:, _at(weights, placement) == 0] = 0.0
                yield logarithm

        return np.exp(self._weighted_sum(n, logarithms()))

    def _power(self, n: int, scores: Sequence[npt.NDArray[Any]], exponent: float) -> Float32:
        likelihoods = list(self._likelihoods(scores))
        # Divided by the highest first: 1e-6 to the power of 8 is 0 in float32.
        highest = np.zeros((n, self.alignment.classes), np.float32)
        for part, weights, placement in zip(
            likelihoods, self._weights, self.alignment.placements, strict=True
        ):
            heard = np.where(_at(weights, placement) > 0, part, np.float32(0.0))
            _fold(highest, heard, np.maximum, placement)
        scale = np.where(highest > 0, highest, np.float32(1.0))

        def powers() -> Iterator[Float32]:
            for part, weights, placement in zip(
                likelihoods, self._weights, self.alignment.placements, strict=True
            ):
                relative = part / (scale if placement.target is None else scale[:, placement.target])
                relative[:, _at(weights, placement) == 0] = 0.0
                power = np.square(relative) if exponent == 2 else relative ** np.float32(exponent)
                yield np.asarray(power, dtype=np.float32)

        return highest * self._weighted_sum(n, powers()) ** np.float32(1.0 / exponent)

    def _extreme(self, n: int, scores: Sequence[npt.NDArray[Any]], fold: np.ufunc, start: float) -> Float32:
        result = np.full((n, self.alignment.classes), start, np.float32)
        for part, placement in zip(self._parts(scores), self.alignment.placements, strict=True):
            _fold(result, part, fold, placement)
        return result


def _at(weights: Float32, placement: Placement) -> Float32:
    return weights if placement.target is None else weights[placement.target]


def _fold(result: Float32, part: Float32, fold: np.ufunc, placement: Placement) -> None:
    if placement.target is None:
        fold(result, part, out=result)
    else:
        result[:, placement.target] = fold(result[:, placement.target], part)


def _weights(blend: Blend, alignment: Alignment) -> npt.NDArray[np.float64]:
    """Return the weight of each member for each class, shape (m, c), as it was given."""
    members = len(alignment.placements)
    weights = np.ones((members, alignment.classes))
    if not isinstance(blend, Minimum | Maximum):
        if blend.weights is not None:
            weights[:] = _column(blend.weights, members, "`weights`")[:, None]
        for label, row in blend.class_weights.items():
            if alignment.labels is None or label not in alignment.labels:
                raise UsageError(
                    f"`class_weights` names the class `{label}`, which the ensemble does not have."
                )
            weights[:, alignment.labels.index(label)] = _column(row, members, f"`class_weights` of `{label}`")
    return np.asarray(weights * alignment.known)


def _shares(weights: npt.NDArray[np.float64]) -> Float32:
    """Return weights of which each column sums to 1, or stays 0."""
    sums = weights.sum(axis=0)
    return np.asarray(weights / np.where(sums > 0, sums, 1.0), dtype=np.float32)


def _check_heard(weights: npt.NDArray[np.float64], alignment: Alignment) -> None:
    sums = weights.sum(axis=0)
    if not (sums > 0).all():
        place = int(np.flatnonzero(~(sums > 0))[0])
        name = f"column {place}" if alignment.labels is None else f"the class `{alignment.labels[place]}`"
        raise UsageError(
            f"No member that knows {name} has a weight above 0, so it has no score. Raise a weight, or leave "
            "the class out of the labels."
        )


def _column(weights: Sequence[float], members: int, name: str) -> npt.NDArray[np.float64]:
    if len(weights) != members:
        raise UsageError(f"{name} got {len(weights)} values; expected {members}, one for each member.")
    return np.asarray(weights, np.float64)


def rank_shares(scores: npt.NDArray[Any]) -> Float32:
    """Return each score's rank among those of its column, divided by their number: in (0, 1].

    Equal scores share the mean of their ranks, as in `scipy.stats.rankdata`; NaN stays NaN and has the last
    ranks.

    Args:
        scores: shape (n, c).

    Returns:
        A new array of that shape, float32.

    >>> rank_shares(np.array([[0.1], [0.7], [0.7], [0.2]])).ravel().tolist()
    [0.25, 0.875, 0.875, 0.5]
    """
    n = len(scores)
    result = np.empty(scores.shape, np.float32)
    place = np.arange(n)[:, None]
    for begin in range(0, scores.shape[1], _RANK_COLUMNS):
        block = scores[:, begin : begin + _RANK_COLUMNS]
        order = np.argsort(block, axis=0, kind="stable")
        ascending = np.take_along_axis(block, order, axis=0)
        steps = ascending[1:] != ascending[:-1]
        opens = np.concatenate([np.ones_like(ascending[:1], np.bool_), steps])
        closes = np.concatenate([steps, np.ones_like(ascending[:1], np.bool_)])
        first = np.maximum.accumulate(np.where(opens, place, 0), axis=0)
        last = np.minimum.accumulate(np.where(closes, place, n)[::-1], axis=0)[::-1]
        shares = ((first + last) / 2 + 1) / n
        np.put_along_axis(result[:, begin : begin + _RANK_COLUMNS], order, shares.astype(np.float32), axis=0)
    if scores.dtype.kind == "f":
        result[np.isnan(scores)] = np.nan
    return result
