"""What a job does when time gets short, and what its pieces cost, as declared before it: values only."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import msgspec

__all__ = ["Ladder", "LadderRung", "LadderStage"]


class LadderRung(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to compute the rows of an ensemble.

    Attributes:
        members: names of the members that are computed, in the order of the ensemble; the others have no say,
            and the weights of these are scaled to sum to 1.
        every: of so many neighbouring windows of a file one is computed, beginning with the first; 1 for all.
        score: validated; higher is better.
    """

    members: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    score: float


class LadderStage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage of a job as it was measured.

    Attributes:
        name: such as `decode` or `model b0`; different for each.
        core_s: core-seconds of a unit.
        spread: relative standard deviation of that.
        per: what a unit is: a `window` that is computed, or the stretch of a recording that one window stands
            for when all are computed (`row`), whether it is computed or not, as in decoding.
        members: that need the stage; it is computed once for all of them. Empty where every job does.
    """

    name: str
    core_s: Annotated[float, msgspec.Meta(gt=0)]
    spread: Annotated[float, msgspec.Meta(ge=0)]
    per: Literal["row", "window"]
    members: tuple[str, ...] = ()


class Ladder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ways to compute the rows of an ensemble, the best first, each cheaper than the one before.

    Attributes:
        rungs: the ways.
        stages: what their pieces cost where they were declared; a job elsewhere learns it anew.
        prior: by class, what a row holds that there was no time for; in the order of the ensemble's labels.

    >>> stages = (
    ...     LadderStage(name="decode", core_s=0.1, spread=0.1, per="row"),
    ...     LadderStage(name="model a", core_s=1.0, spread=0.1, per="window", members=("a",)),
    ...     LadderStage(name="model b", core_s=3.0, spread=0.1, per="window", members=("b",)),
    ... )
    >>> ladder = Ladder(
    ...     rungs=(LadderRung(members=("a", "b"), score=0.9), LadderRung(members=("a",), every=2, score=0.8)),
    ...     stages=stages,
    ...     prior=(0.1,),
    ... )
    >>> [ladder.loads(rung) for rung in ladder.rungs]
    [{'decode': 1.0, 'model a': 1.0, 'model b': 1.0}, {'decode': 1.0, 'model a': 0.5}]
    """

    rungs: Annotated[tuple[LadderRung, ...], msgspec.Meta(min_length=1)]
    stages: Annotated[tuple[LadderStage, ...], msgspec.Meta(min_length=1)]
    prior: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.prior, *(rung.score for rung in self.rungs)))):
            raise ValueError("a ladder's priors and scores must be finite")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("each stage of a ladder must have a name of its own")
        costs = [
            sum(units * self._stage(name).core_s for name, units in self.loads(rung).items())
            for rung in self.rungs
        ]
        if any(after >= before for before, after in itertools.pairwise(costs)):
            raise ValueError(
                "each rung of a ladder must be cheaper than the one before; got "
                f"{', '.join(f'{cost:.4g}' for cost in costs)} core-seconds per row"
            )

    @property
    def members(self) -> tuple[str, ...]:
        """Every member that a rung or a stage names, each once."""
        rungs = [name for rung in self.rungs for name in rung.members]
        return tuple(dict.fromkeys([*rungs, *(name for stage in self.stages for name in stage.members)]))

    def loads(self, rung: LadderRung) -> dict[str, float]:
        """Return the units of each stage per window on a rung, windows that it leaves out counted."""
        return {
            stage.name: 1.0 if stage.per == "row" else 1.0 / rung.every
            for stage in self.stages
            if not stage.members or set(stage.members) & set(rung.members)
        }

    def _stage(self, name: str) -> LadderStage:
        return next(stage for stage in self.stages if stage.name == name)
