"""How long a job will take, from what its stages were measured to cost: a number with an interval.

A job's work is the sum over its stages of units times core-seconds per unit. Every stage is counted once,
however many members ask for it, so shared features cost what they cost in the job.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, Self, TypeAlias

import msgspec

from alula.errors import UsageError, closest
from alula.pipeline import StageCost

__all__ = [
    "CostSheet",
    "Duration",
    "Machine",
    "Member",
    "Overlap",
    "Stage",
    "Workload",
    "duration",
    "in_words",
    "parse_workload",
    "row_loads",
]

Per: TypeAlias = Literal["job", "file", "row", "window"]

# Relative standard deviation added where a plan is for another machine than the one measured: engines, caches
# and memory do not scale with a single number.
_SCALING_SPREAD = 0.15


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a job as it was measured.

    Attributes:
        cost: core-seconds per unit.
        per: what a unit is. Decoding is per row of the output; a model is per window, of which overlap makes
            several per row; a spectrogram is per row where overlapping windows share it. What is per job
            comes once, before all else, and no other CPU works meanwhile: loading an engine.
        serial: whether one input's units come one after the other, as decoding and features do.
    """

    cost: StageCost
    per: Per
    serial: bool = False


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that may take part in an ensemble.

    Attributes:
        name: what it is called in the plan.
        model: its own stage.
        features: stages that it needs before, which others may need as well.
        variant_of: members with the same word here are one model in several precisions; at most one is
            chosen.
    """

    name: str
    model: str
    features: tuple[str, ...] = ()
    variant_of: str = ""


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """How densely windows are laid.

    Attributes:
        name: such as `none` or `2.5 s`.
        windows_per_row: windows computed for each row of the output.
    """

    name: str
    windows_per_row: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.windows_per_row < math.inf:
            raise ValueError(f"a row takes at least one window; got {self.windows_per_row}")


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has to compute.

    Attributes:
        files: how many inputs.
        rows: rows of the output, over all inputs.
        longest_rows: rows of the longest input.
    """

    files: int
    rows: int
    longest_rows: int

    def __post_init__(self) -> None:
        if not 0 < self.longest_rows <= self.rows or not 0 < self.files <= self.rows:
            raise ValueError(f"expected files with rows; got {self.files}, {self.rows}, {self.longest_rows}")

    @classmethod
    def of_lengths(cls, lengths_s: Iterable[float], *, row_s: float) -> Self:
        """Return the workload of recordings of given lengths.

        Args:
            lengths_s: seconds of each recording; the last row of each may be shorter than the others.
            row_s: seconds of sound per row.

        Raises:
            UsageError: there are no recordings, or a length is not positive.

        >>> Workload.of_lengths([600, 12], row_s=5)
        Workload(files=2, rows=123, longest_rows=120)
        """
        lengths = list(lengths_s)
        if not lengths or not row_s > 0 or not all(0 < length < math.inf for length in lengths):
            raise UsageError(
                f"A workload got {len(lengths)} recordings and rows of {row_s} s; expected at least one "
                "recording, and every length above 0. Check the folder."
            )
        rows = [math.ceil(length / row_s - 1e-9) for length in lengths]
        return cls(files=len(rows), rows=sum(rows), longest_rows=max(rows))


def parse_workload(text: str, *, row_s: float, seconds: Callable[[str], float]) -> Workload:
    """Return the workload of a text such as `200x10m`.

    Args:
        text: count, `x` and length.
        row_s: seconds of sound per row.
        seconds: gives the seconds of a duration such as `10m`, or raises `UsageError`.

    Raises:
        UsageError: it is no workload.

    >>> parse_workload("3x60", row_s=5, seconds=float).rows
    36
    """
    found = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\S.*)", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"`{text}` is no workload; expected count and length, for example `200x10m`.")
    each = Workload.of_lengths([seconds(found[2])], row_s=row_s)
    files = int(found[1])
    return Workload(files=files, rows=files * each.rows, longest_rows=each.rows)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the job runs.

    Attributes:
        cpus: threads that compute at once.
        speed: of one CPU, as a multiple of the one measured.
        measured: whether this is the machine that was measured; if not, times are estimates.
    """

    cpus: float
    speed: float = 1.0
    measured: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.cpus < math.inf and 0 < self.speed < math.inf):
            raise ValueError(f"CPUs and speed are above 0; got {self.cpus} and {self.speed}")


class CostSheet(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured before planning.

    Attributes:
        stages: every stage by name.
        common: names of the stages that every job has: opening, decoding, writing.
        overhead: time of a job over its work divided by the CPUs, where all always have work; at least 1.
        spread: relative standard deviation of a whole job's time that no stage explains: the machine itself.
    """

    stages: dict[str, Stage]
    common: tuple[str, ...] = ()
    overhead: float = 1.05
    spread: float = 0.05

    def __post_init__(self) -> None:
        missing = set(self.common) - set(self.stages)
        if missing or self.overhead < 1 or self.spread < 0:
            raise ValueError(
                f"expected costs of all common stages ({sorted(missing)} missing), an overhead of at least 1 "
                f"and a spread of at least 0; got {self.overhead} and {self.spread}"
            )


class Duration(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a job takes, with an interval.

    Attributes:
        expected_s: on average.
        low_s: lower end.
        high_s: upper end.
    """

    expected_s: float
    low_s: float
    high_s: float


def in_words(seconds: float) -> str:
    """Return a time in minutes where it is long, in seconds where it is not.

    >>> in_words(6130.0), in_words(90.0), in_words(0.25)
    ('102.2 min', '90.0 s', '0.25 s')
    """
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2g} s"


def row_loads(
    members: Iterable[Member],
    overlap: Overlap,
    sheet: CostSheet,
    *,
    shares: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the units of each stage that one row takes; stages per file and per job are left out.

    Args:
        members: that compute the row.
        overlap: how many windows a row has.
        sheet: what stages there are.
        shares: by member, the share of rows that its model computes, where not all. What a model needs before
            is made for all rows: which of them it will compute is not known then.

    Raises:
        UsageError: a member needs a stage that was not measured.
    """
    needed = dict.fromkeys(sheet.common, 1.0)
    for member in members:
        share = 1.0 if shares is None else shares.get(member.name, 1.0)
        for name, part in (*((before, 1.0) for before in member.features), (member.model, share)):
            if name not in sheet.stages:
                raise UsageError(
                    f"`{member.name}` needs the stage `{name}`, which was not measured."
                    f"{closest(name, sheet.stages)}"
                )
            needed[name] = max(needed.get(name, 0.0), part)
    units = {"row": 1.0, "window": overlap.windows_per_row}
    return {
        name: share * units[sheet.stages[name].per]
        for name, share in needed.items()
        if sheet.stages[name].per in units and share > 0
    }


def duration(
    members: Sequence[Member],
    overlap: Overlap,
    *,
    sheet: CostSheet,
    workload: Workload,
    machine: Machine,
    shares: Mapping[str, float] | None = None,
    extra_spread: float = 0.0,
    chance: float = 0.90,
) -> Duration:
    """Return how long a job takes.

    What comes once per job; then the models, which take all CPUs at a time while nothing else runs; and the
    serial stages, on all CPUs but for no less than those of the longest input take on one. Costs of different
    stages err independently, the machine errs for all at once, and the time is taken as log-normal.

    Args:
        members: of the ensemble.
        overlap: how windows are laid.
        sheet: what was measured.
        workload: what is to be computed.
        machine: where.
        shares: see `row_loads`.
        extra_spread: relative standard deviation of the time from elsewhere, such as uncertain shares.
        chance: of the interval.

    Raises:
        UsageError: a member needs a stage that was not measured.
    """
    loads = row_loads(members, overlap, sheet, shares=shares)
    used = {*sheet.common, *(name for member in members for name in (*member.features, member.model))}
    units = {name: load * workload.rows for name, load in loads.items()}
    units |= {name: float(workload.files) for name in used if sheet.stages[name].per == "file"}
    work_s = {name: units[name] * sheet.stages[name].cost.core_s for name in units}
    once_s = {name: sheet.stages[name].cost.core_s for name in used if sheet.stages[name].per == "job"}
    total_s = sum(work_s.values())
    serial = [name for name in work_s if sheet.stages[name].serial]
    serial_s = sum(work_s[name] for name in serial)
    longest_s = sum(
        loads.get(name, 0.0) * workload.longest_rows * sheet.stages[name].cost.core_s for name in serial
    )
    busy_s = (total_s - serial_s) * sheet.overhead / machine.cpus
    busy_s += max(serial_s * sheet.overhead / machine.cpus, longest_s)
    expected_s = (busy_s + sum(once_s.values())) / machine.speed
    if not expected_s > 0:
        return Duration(expected_s=0.0, low_s=0.0, high_s=0.0)
    # Each stage's part of the time.
    parts_s = {name: work / total_s * busy_s for name, work in work_s.items()} | once_s
    variance = sum((part * sheet.stages[name].cost.spread) ** 2 for name, part in parts_s.items())
    variance /= sum(parts_s.values()) ** 2
    variance += sheet.spread**2 + extra_spread**2 + (0.0 if machine.measured else _SCALING_SPREAD**2)
    factor = math.exp(NormalDist().inv_cdf((1 + chance) / 2) * math.sqrt(math.log1p(variance)))
    return Duration(expected_s=expected_s, low_s=expected_s / factor, high_s=expected_s * factor)
