"""The ladder that a job steps down when time gets short.

It is declared before the job, from validated scores and measured costs: what gives the least score per second
is dropped first, be it a member or a step of overlap; at the end only the cheapest member is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alula.errors import UsageError
from alula.pipeline import Rung
from alula.planning.costs import CostSheet, Member, Overlap, row_loads

__all__ = ["PlannedRung", "declare_ladder"]

Score = Callable[[frozenset[str], str], float]


class PlannedRung(Rung, frozen=True, kw_only=True):
    """A rung that says what it is made of.

    Attributes:
        members: names of those that are computed.
        overlap: name.
    """

    members: tuple[str, ...]
    overlap: str


def declare_ladder(
    members: Sequence[Member],
    overlaps: Sequence[Overlap],
    *,
    sheet: CostSheet,
    score: Score,
) -> tuple[PlannedRung, ...]:
    """Return ways to compute a row, the best first; each is cheaper and scores less than the one before.

    Rungs that a cheaper one beats are left out.

    Args:
        members: that the job starts with at most.
        overlaps: that the job may use; it starts with the densest.
        sheet: what stages cost.
        score: validated score of some of the members, by name, at an overlap, by name; higher is better.

    Raises:
        UsageError: there are no members or no overlaps, members share a name or a model, or a stage was not
            measured.
    """
    if not members or not overlaps:
        raise UsageError("A ladder got no members or no overlaps; expected at least one of each.")
    by_name = {member.name: member for member in members}
    if len({member.model for member in members}) < len(members) or len(by_name) < len(members):
        raise UsageError("Two members got one name or one model stage; expected each member to have its own.")
    dense = sorted(overlaps, key=lambda overlap: -overlap.windows_per_row)

    def rung(names: frozenset[str], level: int) -> PlannedRung:
        chosen = [member for member in members if member.name in names]
        return PlannedRung(
            name=_words(chosen, dense[level], several=len(dense) > 1),
            loads=row_loads(chosen, dense[level], sheet),
            score=score(names, dense[level].name),
            members=tuple(member.name for member in chosen),
            overlap=dense[level].name,
        )

    def smaller(names: frozenset[str], level: int) -> list[tuple[frozenset[str], int]]:
        fewer = [(names - {name}, level) for name in by_name if name in names] if len(names) > 1 else []
        sparser = [(names, level + 1)] if level + 1 < len(dense) else []
        return [*fewer, *sparser]

    way = (frozenset(by_name), 0)
    rungs = [rung(*way)]
    while after := smaller(*way):
        here = rungs[-1]
        rung_of = {one: rung(*one) for one in after}
        way = min(after, key=lambda one: _loss_per_core_s(here, rung_of[one], sheet))
        rungs.append(rung_of[way])
    singles = [rung(frozenset([name]), len(dense) - 1) for name in by_name]
    rungs.append(min(singles, key=lambda one: (row_core_s(one.loads, sheet), -one.score)))
    return _undominated(rungs, sheet)


def row_core_s(loads: Mapping[str, float], sheet: CostSheet) -> float:
    """Return the core-seconds of a row with these units of each stage."""
    return sum(units * sheet.stages[name].cost.core_s for name, units in loads.items())


def _loss_per_core_s(before: Rung, after: Rung, sheet: CostSheet) -> float:
    saved_s = row_core_s(before.loads, sheet) - row_core_s(after.loads, sheet)
    return (before.score - after.score) / saved_s


def _undominated(rungs: Sequence[PlannedRung], sheet: CostSheet) -> tuple[PlannedRung, ...]:
    """Return the rungs that no cheaper one equals or beats, in order."""
    kept: list[PlannedRung] = []
    for one in rungs:
        cost_s = row_core_s(one.loads, sheet)
        while kept and kept[-1].score <= one.score and row_core_s(kept[-1].loads, sheet) >= cost_s:
            kept.pop()
        if not kept or (one.score < kept[-1].score and cost_s < row_core_s(kept[-1].loads, sheet)):
            kept.append(one)
    return tuple(kept)


def _words(members: Sequence[Member], overlap: Overlap, *, several: bool) -> str:
    names = " + ".join(member.name for member in members)
    return f"{names}, overlap {overlap.name}" if several else names
