"""Members of an ensemble run one after the other, each in the layout of threads that it was tuned for.

Alone, a model is fastest with the instances and the batch size that its search found, and these differ from
member to member. So the ensemble is one wide call to whoever schedules it: it is given many rows at once, and
within the call each member in turn has all threads, as many instances side by side as it wants. What it costs
more than the members alone is what a thread waits for the last batch of a member, which is why a call has
several for each.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import Settings
from alula.ensemble.blending import Blender
from alula.errors import EngineError

__all__ = ["EnsembleSession", "Member", "shared_batch_size"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

# Batches that each instance gets in a call, at least: with two, a thread waits for half of one on average.
_ROUNDS = 2
_MIN_ROWS = 32
# The inputs of one call. A job holds about three calls' worth.
_MAX_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A loaded model of an ensemble.

    Attributes:
        name: for messages.
        settings: instances and batch size that it is called with; its threads are its own affair.
        takes: which of the arrays of a row is its input.
        inputs: that this array holds for each row of a batch: several where rows belong together that other
            members have one input for.
        rows: that the member gives of each input.
        score: takes (b, ...) with b up to the batch size, and returns scores (b, c), or (b, r, c) where it
            gives r rows of each. Thread-safe for `settings.instances` callers. It must not keep its input.
        close: frees what it holds.
    """

    name: str
    settings: Settings
    takes: int
    score: Callable[[Array], Array]
    close: Callable[[], None]
    inputs: int = 1
    rows: int = 1


def shared_batch_size(
    settings: Sequence[Settings], *, row_bytes: int, inputs: Sequence[int] | None = None
) -> int:
    """Return how many rows to give to an ensemble at once.

    A multiple of what every member takes in one round of its instances where there is a small one, so that
    none runs a part of a round; two rounds or more; fewer where rows are large.

    Args:
        settings: of each member.
        row_bytes: size of the arrays of one row.
        inputs: that each member has in one row: several where a row stands for some that belong together;
            None for one each.

    >>> shared_batch_size([Settings(instances=2, batch_size=8), Settings(batch_size=12)], row_bytes=1)
    48
    """
    if inputs is None:
        inputs = [1] * len(settings)
    steps = [
        -(-each.instances * each.batch_size // count) for each, count in zip(settings, inputs, strict=True)
    ]
    least = max(steps)
    common = math.lcm(*steps)
    unit = common if common <= 4 * least else least
    wanted = max(_ROUNDS * least, _MIN_ROWS // max(inputs))
    affordable = _MAX_BATCH_BYTES // max(1, row_bytes)
    return max(least, min(-(-wanted // unit), affordable // unit) * unit)


class EnsembleSession:
    """Runs batches through all members and blends what they give.

    Thread-safe: calls wait for each other, because each uses all threads of the budget.

    Args:
        members: in the order of the blend; each uses no more than the shared budget of threads.
        blender: makes their scores one.
        activate: what is applied to the blended scores.
    """

    def __init__(
        self, members: Sequence[Member], *, blender: Blender, activate: Callable[[Float32], Float32]
    ) -> None:
        self._members = tuple(members)
        self._blender = blender
        self._activate = activate
        self._lock = threading.Lock()
        # Threads of its own for each member, since some engines tie pools to the thread that calls them.
        self._pools = tuple(
            ThreadPoolExecutor(member.settings.instances, thread_name_prefix=f"alula-{member.name}")
            for member in self._members
        )

    def run(self, inputs: Sequence[Array]) -> Float32:
        """Return the blended scores of a batch, or the joined ones where the blend needs the whole job.

        Args:
            inputs: arrays (n, ...), of which each member takes one.

        Returns:
            Blended scores, shape (n, c), float32, or (n * r, c) where r rows belong together, those of the
            first input first; for a blend with `whole_job` the scores of all members side by side, shape
            (n, sum of their columns), for `blend_all`.

        Raises:
            EngineError: a member failed, or its scores have another number of axes.
        """
        with self._lock:
            scores = [
                self._scores_of(member, pool, inputs[member.takes])
                for member, pool in zip(self._members, self._pools, strict=True)
            ]
        if self._blender.whole_job:
            return np.concatenate(scores, axis=1)
        return self._activate(self._blender.blend(scores))

    def blend_all(self, joined: Sequence[Array], widths: Sequence[int]) -> list[Float32]:
        """Return the blended scores of a whole job, in the parts that its joined scores came in.

        Args:
            joined: results of `run`, shapes (n_i, sum of widths), such as one for each file.
            widths: columns of each member.
        """
        if not joined:
            return []
        together = np.concatenate(joined)
        blended = self._blender.blend(np.split(together, np.cumsum(widths)[:-1], axis=1))
        return np.split(self._activate(blended), np.cumsum([len(part) for part in joined])[:-1])

    def close(self) -> None:
        """Free what the members hold. Calling it twice is allowed; `run` afterwards is not."""
        for pool in self._pools:
            pool.shutdown()
        for member in self._members:
            member.close()

    def _scores_of(self, member: Member, pool: ThreadPoolExecutor, rows: Array) -> Float32:
        size = member.settings.batch_size
        if member.inputs > 1:
            rows = rows.reshape(-1, *rows.shape[2:])
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        # `map` gives them in order, and raises what the first failing one raised once all before are there.
        scored = list(pool.map(member.score, parts))
        if member.rows > 1 and scored[0].shape[1:2] == (member.rows,):
            scored = [scores.reshape(-1, scores.shape[-1]) for scores in scored]
        if scored[0].ndim != 2:
            raise EngineError(
                f"Member `{member.name}` gave scores of shape {scored[0].shape}; expected one score for each "
                "class. For scores per frame give it a view with `frames`."
            )
        return np.concatenate(scored, dtype=np.float32, casting="same_kind")
