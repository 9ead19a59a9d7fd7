"""Contenders that take turns, so that what disturbs the machine disturbs them all alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from alula.errors import AlulaError, DiskFullError, MeasurementError
from alula.measure.rounds import Round

__all__ = ["Interleaved", "interleave"]


class Interleaved(NamedTuple):
    """What the contenders did.

    Attributes:
        rounds: rounds of each contender that finished, all equally many, in the order taken.
        dropped: the error of each contender that did not finish.
    """

    rounds: dict[str, list[Round]]
    dropped: dict[str, AlulaError]


def interleave(
    contenders: Mapping[str, Callable[[float], Round]],
    *,
    rounds: int,
    seconds: float,
    on_round: Callable[[str, int, Round], None] | None = None,
    seed: int = 0,
) -> Interleaved:
    """Return the rounds of contenders that took turns.

    In each round every contender runs once. The order changes from round to round by a Williams
    design: over a whole cycle each contender directly follows every other one equally often, so that
    heat or cache contents left by one do not always fall on the same next (Williams 1949, Australian
    Journal of Scientific Research A 2). Round i of one and round i of another are neighbours in time,
    which is what `ratio(paired=True)` needs.

    Args:
        contenders: by name, a function that runs for about the seconds it is given.
        rounds: how often each runs.
        seconds: of one contender in one round.
        on_round: called after each with the name, the number of the round from 0, and what it did.
        seed: of the order.

    A contender that raises an `AlulaError` takes no further part and its rounds are left out, so that
    those of the others still belong together.

    Raises:
        AlulaError: the error of the last contender, when none is left.
        DiskFullError: the disk is full, for whichever contender.
        MeasurementError: there is no contender, or fewer than one round was asked for.
    """
    if not contenders or rounds < 1:
        raise MeasurementError(
            f"Got {len(contenders)} contenders and {rounds} rounds; expected at least one of each."
        )
    done: dict[str, list[Round]] = {name: [] for name in contenders}
    dropped: dict[str, AlulaError] = {}
    orders = _orders(list(contenders), seed=seed)
    for number in range(rounds):
        for name in orders[number % len(orders)]:
            if name in dropped:
                continue
            try:
                finished = contenders[name](seconds)
            except DiskFullError:
                raise
            except AlulaError as error:
                if len(done) == 1:
                    raise
                dropped[name] = error
                del done[name]
                continue
            done[name].append(finished)
            if on_round is not None:
                on_round(name, number, finished)
    return Interleaved(done, dropped)


def _orders(names: list[str], *, seed: int) -> list[list[str]]:
    """Return the rows of a Williams design: k rows for an even number of names, 2k for an odd one."""
    chance = random.Random(seed)
    chance.shuffle(names)
    k = len(names)
    # 0, 1, k-1, 2, k-2, ...: neighbours differ by every amount modulo k exactly once (twice with the
    # mirror image, which an odd k needs).
    zigzag = [(step + 1) // 2 if step % 2 else (k - step // 2) % k for step in range(k)]
    rows = [[names[(place + shift) % k] for place in zigzag] for shift in range(k)]
    if k % 2 and k > 1:
        rows += [row[::-1] for row in rows]
    chance.shuffle(rows)
    return rows
