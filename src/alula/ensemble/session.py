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
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import Settings
from alula.engines import filled_up
from alula.ensemble.blending import Blender
from alula.errors import EngineError

__all__ = ["EnsembleSession", "Member", "cascade_batch_size", "shared_batch_size"]

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

# Batches that each instance gets in a call, at least: with two, a thread waits for half of one on average.
_ROUNDS = 2
_MIN_ROWS = 32
# The inputs of one call. A job holds about three calls' worth.
_MAX_BATCH_BYTES = 64 * 2**20
# Of the rows of a cascade: a rarer one is not waited for.
_LEAST_SHARE = 0.05
# That each instance gets of the uncertain rows of a call: with more, less is filled up.
_CASCADE_ROUNDS = 4


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
    settings: Sequence[Settings],
    *,
    row_bytes: int,
    share: float = 1.0,
    inputs: Sequence[int] | None = None,
) -> int:
    """Return how many rows to give to an ensemble at once.

    A multiple of what every member takes in one round of its instances where there is a small one, so that
    none runs a part of a round; two rounds or more; fewer where rows are large.

    Args:
        settings: of each member.
        row_bytes: size of the arrays of one row.
        share: of the rows that most members compute, as in a cascade; twice the memory is then affordable.
        inputs: that each member has in one row: several where a row stands for some that belong together;
            None for one each.

    >>> shared_batch_size([Settings(instances=2, batch_size=8), Settings(batch_size=12)], row_bytes=1)
    48
    >>> shared_batch_size([Settings(instances=2, batch_size=8)], row_bytes=1, share=0.25)
    128
    """
    if inputs is None:
        inputs = [1] * len(settings)
    steps = [
        -(-each.instances * each.batch_size // count) for each, count in zip(settings, inputs, strict=True)
    ]
    least = max(steps)
    common = math.lcm(*steps)
    unit = common if common <= 4 * least else least
    wanted = math.ceil(max(_ROUNDS * least, _MIN_ROWS // max(inputs)) / max(share, _LEAST_SHARE))
    return max(least, min(-(-wanted // unit), _affordable_rows(row_bytes, share) // unit) * unit)


def cascade_batch_size(settings: Settings, *, row_bytes: int, share: float) -> int:
    """Return the batch size of a member that computes only the uncertain rows of a cascade.

    The member's own, or a smaller power of two: batches are filled up, and where a call has thirty rows for a
    member, a batch of 32 on each of two instances would be one batch of half real rows and an idle instance.

    Args:
        settings: of the member, as it was tuned for many rows.
        row_bytes: size of the arrays of one row.
        share: of the rows that are uncertain.

    >>> cascade_batch_size(Settings(instances=2, batch_size=32), row_bytes=2**20, share=0.25)
    4
    >>> cascade_batch_size(Settings(batch_size=12), row_bytes=2**10, share=0.5)
    12
    """
    rows = share * _affordable_rows(row_bytes, share) / (_CASCADE_ROUNDS * settings.instances)
    return min(settings.batch_size, 1 << (max(1, int(rows)).bit_length() - 1))


def _affordable_rows(row_bytes: int, share: float) -> int:
    return _MAX_BATCH_BYTES * (1 if share == 1 else 2) // max(1, row_bytes)


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

    def run(self, inputs: Sequence[Array], *, full_batches: bool = False) -> Float32:
        """Return the blended scores of a batch, or the joined ones where the blend needs the whole job.

        The blend is that of all members; for some of them see `run_some`.

        Args:
            inputs: arrays (n, ...), of which each member takes one.
            full_batches: whether members get batches of their full size only, the last one filled up.
                Kernels may sum in another order for another size; so a row's scores do not depend on n.

        Returns:
            Blended scores, shape (n, c), float32, or (n * r, c) where r rows belong together, those of the
            first input first; for a blend with `whole_job` the scores of all members side by side, shape
            (n, sum of their columns) or (n * r, ...), for `Blender.blend_class`.

        Raises:
            EngineError: a member failed, or its scores have another number of axes.
        """
        scores, _ = self.run_some(
            inputs, range(len(self._members)), blender=self._blender, full_batches=full_batches
        )
        assert scores is not None
        return scores

    def run_some(
        self,
        inputs: Sequence[Array],
        chosen: Sequence[int],
        *,
        blender: Blender,
        full_batches: bool,
        known: Mapping[int, Float32] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> tuple[Float32 | None, list[float]]:
        """Return what `run` does from some of the members, and the seconds that each of these took.

        Args:
            inputs: see `run`; only those that the chosen members take are read.
            chosen: places of the members.
            blender: of these members.
            full_batches: see `run`.
            known: by place, scores of the same rows that a member gave before (see `run_one`): it is not run
                again, and takes no time.
            stopped: asked before each batch of a member. Once it says yes there are no scores but None, and
                at most one batch of each instance is waited for.
            clock: seconds.
        """
        known = {} if known is None else known
        parts: list[Float32] = []
        took_s: list[float] = []
        with self._lock:
            for place in chosen:
                start_s = clock()
                scores = known.get(place)
                if scores is None:
                    scores = self._scores_of(place, inputs, full_batches=full_batches, stopped=stopped)
                if scores is None:
                    return None, took_s
                parts.append(scores)
                took_s.append(clock() - start_s)
        return self.blended(parts, blender), took_s

    def run_one(
        self,
        inputs: Sequence[Array],
        place: int,
        *,
        full_batches: bool,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> tuple[Float32 | None, float]:
        """Return what one member gives before any blend, and the seconds that it took; see `run_some`.

        That is of shape (n, c) or (n * r, c) with classes of its own, or None when stopped.
        """
        with self._lock:
            start_s = clock()
            scores = self._scores_of(place, inputs, full_batches=full_batches, stopped=stopped)
            return scores, clock() - start_s

    def blended(self, parts: Sequence[Float32], blender: Blender) -> Float32:
        """Return the blend of what members gave, as `run_some` returns it.

        Args:
            parts: of each of the blender's members, of the same rows.
            blender: of these members.
        """
        if blender.whole_job:
            return np.concatenate(parts, axis=1)
        return self._activate(blender.blend(parts))

    @property
    def round_rows(self) -> int:
        """Rows of a round of the largest member: fewer leave some of its instances idle."""
        return max(
            -(-member.settings.instances * member.settings.batch_size // member.inputs)
            for member in self._members
        )

    def close(self) -> None:
        """Free what the members hold. Calling it twice is allowed; `run` afterwards is not."""
        for pool in self._pools:
            pool.shutdown()
        for member in self._members:
            member.close()

    def _scores_of(
        self,
        place: int,
        inputs: Sequence[Array],
        *,
        full_batches: bool,
        stopped: Callable[[], bool],
    ) -> Float32 | None:
        member, pool = self._members[place], self._pools[place]
        rows = inputs[member.takes]
        size = member.settings.batch_size
        if member.inputs > 1:
            rows = rows.reshape(-1, *rows.shape[2:])
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        last = len(parts[-1])
        if full_batches:
            (parts[-1],) = filled_up((parts[-1],), size)
        # `map` gives them in order, and raises what the first failing one raised once all before are there.
        given = list(pool.map(lambda part: None if stopped() else member.score(part), parts))
        scored = [scores for scores in given if scores is not None]
        if len(scored) < len(given):
            return None
        scored[-1] = scored[-1][:last]
        if member.rows > 1 and scored[0].shape[1:2] == (member.rows,):
            scored = [scores.reshape(-1, scores.shape[-1]) for scores in scored]
        if scored[0].ndim != 2:
            raise EngineError(
                f"Member `{member.name}` gave scores of shape {scored[0].shape}; expected one score for each "
                "class. For scores per frame give it a view with `frames`."
            )
        return np.concatenate(scored, dtype=np.float32, casting="same_kind")
