"""How the scores of several members become one: values only, carried out by `alula.ensemble`.

In the formulas `x[m]` is the score of member m for one row and one class, and `w[m]` its weight for that
class, scaled so that the weights of the members that know the class sum to 1. A member that does not know a
class has no say in it: its weight there is 0.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

__all__ = ["Blend", "Geometric", "Maximum", "Mean", "Minimum", "Power", "Rank"]

Weight = Annotated[float, msgspec.Meta(ge=0)]
Weights = tuple[Weight, ...]


def _check_weights(weights: Weights | None, class_weights: dict[str, Weights]) -> None:
    rows = {"`weights`": weights} if weights is not None else {}
    rows |= {f"`class_weights` of `{label}`": row for label, row in class_weights.items()}
    sizes = {len(row) for row in rows.values()}
    if len(sizes) > 1:
        raise ValueError(f"all weights must be for the same members; got {sorted(sizes)} values")
    for name, row in rows.items():
        if not row or not all(math.isfinite(weight) for weight in row) or not sum(row) > 0:
            raise ValueError(f"{name} must be finite and sum to more than 0; got {list(row)}")


class Mean(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mean"):
    """Weighted arithmetic mean: `sum(w[m] * x[m])`.

    Attributes:
        of: `scores` are what each bundle gives, its activation applied; `logits` are the models' own numbers,
            and the activation, which must be the same for all, is applied to their mean.
        weights: one per member, in any unit; None weighs all alike.
        class_weights: by label, weights that take the place of `weights` for that class.
    """

    of: Literal["scores", "logits"] = "scores"
    weights: Weights | None = None
    class_weights: dict[str, Weights] = {}

    def __post_init__(self) -> None:
        _check_weights(self.weights, self.class_weights)


class Geometric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="geometric"):
    """Weighted geometric mean: `exp(sum(w[m] * ln(x[m])))`, of scores from 0 up.

    It is 0 where a member with a weight above 0 says 0. Attributes as in `Mean`.
    """

    weights: Weights | None = None
    class_weights: dict[str, Weights] = {}

    def __post_init__(self) -> None:
        _check_weights(self.weights, self.class_weights)


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="power"):
    """Weighted power mean: `sum(w[m] * x[m] ** exponent) ** (1 / exponent)`, of scores from 0 up.

    Exponent 2 is the quadratic mean; the larger it is, the more the highest score decides. Other attributes
    as in `Mean`.
    """

    exponent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0
    weights: Weights | None = None
    class_weights: dict[str, Weights] = {}

    def __post_init__(self) -> None:
        _check_weights(self.weights, self.class_weights)


class Rank(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rank"):
    """Weighted mean of ranks: `sum(w[m] * rank(x[m]) / n)`, in (0, 1].

    `rank` counts, for one member and one class, the place of a row's score among those of all n rows of the
    job, from 1 for the lowest; equal scores share the mean of their places (`scipy.stats.rankdata`,
    "average").

    A row's result depends on every other row of the job. So there is none before the last file is done,
    results of two jobs cannot be compared, and a job keeps the scores of all members on disk until its end: 4
    bytes per member, class and row. Other attributes as in `Mean`.
    """

    weights: Weights | None = None
    class_weights: dict[str, Weights] = {}

    def __post_init__(self) -> None:
        _check_weights(self.weights, self.class_weights)


class Minimum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="min"):
    """The lowest score: `min(x[m])` over the members that know the class."""


class Maximum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="max"):
    """The highest score: `max(x[m])` over the members that know the class."""


Blend = Mean | Geometric | Power | Rank | Minimum | Maximum
