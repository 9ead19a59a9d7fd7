"""The rates of the finalists in the server scenario: of as many as there is time for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from alula.errors import MeasurementError
from alula.measure import ServerRate

__all__ = ["ranked_by_rate"]

MOST = 2  # finalists whose rate is measured
# That a second one is worth: with less there is too little left for a confirmation of each.
WORTH_S = 75.0
LEAST_S = 10.0

Contender = TypeVar("Contender")


def ranked_by_rate(
    contenders: Sequence[Contender],
    rate: Callable[[Contender, float], ServerRate],
    *,
    left_s: Callable[[], float],
    on_interrupt: Callable[[], None],
) -> tuple[tuple[Contender, ServerRate | None], ...]:
    """Return contenders with their rates, the highest first; behind them those whose rate is not known.

    One that holds no rate at all is left out, unless an interrupt came before another was known.

    Args:
        contenders: the most promising first.
        rate: measures one within so many seconds.
        left_s: gives the seconds that are left for all.
        on_interrupt: called when an interrupt ends the measuring; may raise it again.

    Raises:
        MeasurementError: none of those that were measured holds any rate.
    """
    known: list[tuple[Contender, ServerRate]] = []
    failures: list[MeasurementError] = []
    left = list(contenders)
    try:
        while left and len(known) + len(failures) < MOST:
            budget_s = left_s()
            if known and budget_s < WORTH_S:
                break
            if len(left) > 1 and not known and not failures and budget_s >= MOST * WORTH_S:
                budget_s /= MOST
            contender = left[0]
            try:
                known.append((contender, rate(contender, max(LEAST_S, budget_s))))
            except MeasurementError as error:
                failures.append(error)
            left.pop(0)
    except KeyboardInterrupt:
        on_interrupt()
        left = left if known or not failures else list(contenders)
    else:
        if failures and not known:
            raise failures[0]
    known.sort(key=lambda pair: -pair[1].per_s)
    return (*known, *((contender, None) for contender in left))
