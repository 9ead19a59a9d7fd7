"""What each stage of a job costs on this machine, measured in short interleaved rounds."""

from __future__ import annotations

import itertools
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alula.core import AudioInput, LogMel
from alula.data import Kind, open_audio, read_array, read_image
from alula.errors import AlulaError, DataError
from alula.features import (
    ArrayFeatures,
    Demand,
    ImageFeatures,
    SharedAudioFeatures,
    make_features,
    spectrum_key,
)
from alula.features.audio import mixed, resampled
from alula.measure import Clock, Concurrency, Round, SystemClock, interleave
from alula.pipeline import Row, StageCost, run_job, sink_for
from alula.planning import CostSheet, Member, Stage
from alula.workflows.opened_members import OpenedMembers
from alula.workflows.workloads import PIECE_S, Inputs, SoundKind

__all__ = ["Measured", "measure_stages"]

Array: TypeAlias = NDArray[Any]
Report: TypeAlias = Callable[[str], None]

_WRITE_ROWS = 256
# What is written in a round stays on the disk until the end.
_WRITE_S = 0.1
_WARM_S = 0.0
_TOGETHER = "all together"
# Two numbers that were taken within minutes on a machine of others are not closer than this.
_LEAST_STAGE_SPREAD = 0.02
_LEAST_SHEET_SPREAD = 0.05
# Loading is measured once, with a disk that may be faster than the next time.
_LOAD_SPREAD = 0.3
# Of two that share a part, neither the part nor the rest is ever nothing.
_LEAST_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Costs of the stages, and what each member needs.

    Attributes:
        sheet: of costs.
        members: with the stages that they need.
        notes: what a reader must know of the figures.
    """

    sheet: CostSheet
    members: tuple[Member, ...]
    notes: tuple[str, ...]


class _Bench:
    """The contenders by name: each runs for about some seconds, and what a unit of its rounds is.

    Args:
        threads: of the budget.
        clock: tells the time.
        opened: closes what contenders hold.
    """

    def __init__(self, threads: int, clock: Clock, opened: ExitStack) -> None:
        self.contenders: dict[str, Callable[[float], Round]] = {}
        self._unit: dict[str, float] = {}
        self._cores: dict[str, int] = {}
        self._threads = threads
        self._clock = clock
        self._opened = opened

    def add(
        self,
        name: str,
        run: Callable[[int], int],
        *,
        per_sample: float = 1.0,
        wide: bool = False,
        alone: bool = False,
        at_most_s: float = math.inf,
    ) -> None:
        """Take part in the rounds.

        Args:
            name: of the stage.
            run: does some work in the instance that it is given, and returns how many samples that were.
            per_sample: units of the stage in one of its samples.
            wide: whether one call takes all threads by itself.
            alone: whether it runs on one thread in a job, too.
            at_most_s: of a round.
        """
        instances = 1 if wide or alone else self._threads
        concurrency = self._opened.enter_context(Concurrency(instances, clock=self._clock))
        self._cores[name] = 1 if alone else self._threads
        self._unit[name] = per_sample

        def rounds(seconds: float) -> Round:
            return concurrency.round(run, seconds=min(seconds, at_most_s))

        self.contenders[name] = rounds

    def core_s(self, name: str, one: Round) -> float:
        """Return the core-seconds of a unit in a round: every thread of the budget counts, idle or not."""
        return one.wall_s * self._cores[name] / (one.samples * self._unit[name])


def measure_stages(
    opened: OpenedMembers,
    inputs: Inputs,
    *,
    row_s: float | None,
    windows_per_row: float,
    labels: Sequence[str] | None,
    scratch: Path,
    rounds: int,
    round_s: float,
    report: Report,
    clock: Clock | None = None,
) -> Measured:
    """Return what each stage of a job costs here.

    Every thread of the budget runs decoding and features at once, as in a job; a member runs as it would in
    the ensemble, in its own layout, while nothing else does. All take turns in every round, so that the
    machine disturbs them alike; what it does to all at once becomes the spread of the whole job. In each
    round a small job goes through all stages and members: what it takes more than their sum is the overhead.

    Args:
        opened: the members.
        inputs: what the job reads.
        row_s: seconds of a recording that a row of the output stands for; None for images and arrays.
        windows_per_row: that the members' own hop gives.
        labels: columns of the table.
        scratch: folder for what is written.
        rounds: how often each is timed, at least twice.
        round_s: length of a round, above 0.
        report: gets lines of text about what is being done.
        clock: tells the time of rounds.

    Raises:
        DataError: a file that was fine before cannot be read.
        EngineError: a member failed.
    """
    used = SystemClock() if clock is None else clock
    with ExitStack() as held:
        bench = _Bench(opened.threads, used, held)
        if inputs.kind == "audio":
            assert row_s is not None
            stages: _AudioStages | _FileStages = _AudioStages(opened, inputs, bench, row_s)
        else:
            stages = _FileStages(opened, inputs, bench)
        for place, name in enumerate(opened.names):
            bench.add(f"model {name}", _member_runner(opened, place, stages.examples(place)), wide=True)
        bench.add(_TOGETHER, _small_job(opened, inputs.samples[inputs.main]), wide=True)
        held.enter_context(_Writing(bench, scratch, opened, labels, inputs.kind))
        report(f"measuring {len(bench.contenders)} stages, {rounds} rounds of {round_s:g} s each")
        for contender in bench.contenders.values():
            contender(_WARM_S)
        taken = interleave(bench.contenders, rounds=rounds, seconds=round_s)
    for error in taken.dropped.values():
        raise error
    measured = {name: [bench.core_s(name, one) for one in found] for name, found in taken.rounds.items()}
    together = measured.pop(_TOGETHER)
    models = [f"model {name}" for name in opened.names]
    alone = []
    for number in range(rounds):
        costs = {name: StageCost(core_s=found[number], spread=0.0) for name, found in measured.items()}
        before = stages.stages(costs, {inputs.main: 1.0})[0].values()
        per_window = {"row": 1 / windows_per_row, "window": 1.0}
        alone.append(
            sum(stage.cost.core_s * per_window[stage.per] for stage in before)
            + sum(costs[name].core_s for name in models)
        )
    costs, spread = _costs(measured, alone, together)
    sheet_stages, needs, common = stages.stages(costs, inputs.shares)
    for name in models:
        sheet_stages[name] = Stage(cost=costs[name], per="window")
    sheet_stages["write"] = Stage(cost=costs["write"], per="row")
    sheet_stages["start"] = Stage(cost=StageCost(core_s=_start_s(), spread=_LOAD_SPREAD), per="job")
    for name, load_s in zip(opened.names, opened.load_s, strict=True):
        cost = StageCost(core_s=max(load_s, 1e-6), spread=_LOAD_SPREAD)
        sheet_stages[f"load {name}"] = Stage(cost=cost, per="job")
    variants = opened.variants()
    return Measured(
        sheet=CostSheet(
            stages=sheet_stages,
            common=(*common, "write", "start"),
            overhead=max(1.0, sum(together) / sum(alone)),
            spread=spread,
        ),
        members=tuple(
            Member(
                name=name,
                model=f"model {name}",
                features=(f"load {name}", *needs[place]),
                variant_of=variants.get(name, ""),
            )
            for place, name in enumerate(opened.names)
        ),
        notes=inputs.notes,
    )


def _costs(
    measured: Mapping[str, Sequence[float]], alone: Sequence[float], together: Sequence[float]
) -> tuple[dict[str, StageCost], float]:
    """Return the mean of each stage with its own uncertainty, and the spread that all have in common.

    The mean, because a long job meets slow rounds as often as they come. What a round did to the sum of all
    stages and to the small job, the machine did; its spread is that of one round, because what disturbs a
    shared machine lasts. What is left of a stage is its own, and is that of a mean of so many.

    Args:
        measured: core-seconds of a unit of each stage, by round.
        alone: of a window through all stages, by round.
        together: of a window in the small job, by round.
    """
    machine = (np.log(alone) + np.log(together)) / 2
    machine -= machine.mean()
    costs = {}
    for name, found in measured.items():
        own = float((np.log(found) - machine).std(ddof=1)) / math.sqrt(len(found))
        costs[name] = StageCost(core_s=statistics.fmean(found), spread=max(_LEAST_STAGE_SPREAD, own))
    return costs, max(_LEAST_SHEET_SPREAD, float(machine.std(ddof=1)))


def _small_job(opened: OpenedMembers, files: Sequence[Path]) -> Callable[[int], int]:
    """Return what runs one batch of rows through everything but the writing, as a job does."""
    reader, settings, threads = opened.reader(), opened.settings, opened.threads
    counts = [len(part) for part in np.array_split(np.arange(settings.batch_size), threads)]

    def every_row() -> Iterator[tuple[Any, Any]]:
        for path in itertools.cycle(files):
            there = False
            try:
                for row in reader.rows(path):
                    there = True
                    yield row
            except DataError:
                # Samples were tried at their beginning; behind it one may be damaged.
                if not there:
                    raise

    def rows_of(count: int) -> Iterator[tuple[Any, Any]]:
        return itertools.islice(every_row(), count)

    def fail(count: int, error: AlulaError) -> None:
        raise error

    def run(instance: int) -> int:
        job = run_job(
            [count for count in counts if count],
            prepare=rows_of,
            infer=opened.scores,
            emit=lambda task, keys, outputs: None,
            fail=fail,
            settings=settings,
            cpu_budget=threads,
        )
        return job.samples

    return run


def _start_s() -> float:
    before_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import alula.cli, alula.workflows"], check=True)
    return time.perf_counter() - before_s


def _member_runner(opened: OpenedMembers, place: int, examples: Array) -> Callable[[int], int]:
    rows = np.resize(examples, (opened.call_rows(place), *examples.shape[1:]))

    def run(instance: int) -> int:
        opened.scores_of(place, rows)
        return len(rows)

    return run


class _Writing:
    """The table of a job, written into a scratch folder; a contender of the rounds."""

    def __init__(
        self, bench: _Bench, scratch: Path, opened: OpenedMembers, labels: Sequence[str] | None, kind: Kind
    ) -> None:
        self._folder = scratch
        classes = opened.lineup.blender.alignment.classes
        self._labels = labels
        self._kind = kind
        self._scores = np.random.default_rng(0).random((_WRITE_ROWS, classes), np.float32)
        timed = kind == "audio"
        self._rows = [
            Row(f"recordings/{k // 100:06}.ogg", 5.0 * k if timed else None, 5.0 * k + 5 if timed else None)
            for k in range(_WRITE_ROWS)
        ]
        bench.add("write", self._write, alone=True, at_most_s=_WRITE_S)

    def __enter__(self) -> None:
        path = self._folder / "table.csv"
        self._sink = sink_for(path, format="csv", labels=self._labels, kind=self._kind)
        self._sink.open()

    def __exit__(self, *_: object) -> None:
        self._sink.discard()

    def _write(self, instance: int) -> int:
        self._sink.write(self._rows, self._scores)
        return len(self._rows)


class _FileStages:
    """Reading and features of images or arrays."""

    def __init__(self, opened: OpenedMembers, inputs: Inputs, bench: _Bench) -> None:
        self._opened = opened
        files = itertools.cycle(inputs.samples[None])
        self._features = [make_features(demand.description) for demand in opened.lineup.demands]
        read: Callable[[Path], Array] = read_image if inputs.kind == "image" else read_array
        self._example = read(inputs.samples[None][0])

        def read_one(instance: int) -> int:
            read(next(files))
            return 1

        bench.add("decode", read_one)
        self._names = [f"features {place + 1}" for place in range(len(self._features))]
        for name, place in zip(self._names, range(len(self._features)), strict=True):
            bench.add(name, lambda instance, place=place: len(self._transformed(place)[None]))  # type: ignore[misc]

    def _transformed(self, place: int) -> Array:
        features = self._features[place]
        assert isinstance(features, ImageFeatures | ArrayFeatures)
        return features.transform(self._example)

    def examples(self, place: int) -> Array:
        """Return rows for a member, shape (n, ...)."""
        return self._transformed(self._opened.lineup.takes[place])[None]

    def stages(
        self, costs: Mapping[str, StageCost], shares: Mapping[SoundKind | None, float]
    ) -> tuple[dict[str, Stage], list[tuple[str, ...]], tuple[str, ...]]:
        """Return the stages, those that each member needs, and those that every job has."""
        names = ["decode", *self._names]
        found = {name: Stage(cost=costs[name], per="row", serial=True) for name in names}
        return found, [(self._names[place],) for place in self._opened.lineup.takes], ("decode",)


@dataclass(frozen=True, kw_only=True)
class _Spectrum:
    """Demands that share one FFT, or one wave."""

    name: str
    rate_hz: int
    places: tuple[int, ...]


class _AudioStages:
    """Decoding, resampling and features of recordings.

    What demands share of an FFT is not measured by itself, but follows from each alone and all together.
    """

    def __init__(self, opened: OpenedMembers, inputs: Inputs, bench: _Bench, row_s: float) -> None:
        self._opened = opened
        self._inputs = inputs
        self._row_s = row_s
        self._demands = opened.lineup.demands
        self._spectra = _spectra(self._demands)
        self._resampled: list[tuple[SoundKind, int]] = []
        rates = list(dict.fromkeys(spectrum.rate_hz for spectrum in self._spectra))
        self._blocks: dict[int, list[Array]] = {}
        for kind, files in inputs.samples.items():
            assert kind is not None
            # Milliseconds, because rounds count whole samples.
            bench.add(f"decode {kind}", _decoder(files), per_sample=1e-3)
            waves = _waves(files[0])
            for rate_hz in rates:
                if rate_hz == kind.rate_hz:
                    self._blocks.setdefault(rate_hz, [wave[:, None] for wave in waves])
                    continue
                self._resampled.append((kind, rate_hz))
                bench.add(
                    _resampling(kind, rate_hz), _resampler(waves, kind.rate_hz, rate_hz), per_sample=1e-3
                )
                at_rate = [wave[:, None] for wave in resampled(waves, kind.rate_hz, rate_hz) if len(wave)]
                self._blocks.setdefault(rate_hz, at_rate)
        for spectrum in self._spectra:
            for place in spectrum.places:
                bench.add(self._alone(place), self._feature_runner([place], spectrum.rate_hz))
            if len(spectrum.places) > 1:
                bench.add(spectrum.name, self._feature_runner(spectrum.places, spectrum.rate_hz))

    def _alone(self, place: int) -> str:
        return f"features {place + 1} alone"

    def _feature_runner(self, places: Sequence[int], rate_hz: int) -> Callable[[int], int]:
        features = SharedAudioFeatures([self._demands[place] for place in places])
        blocks = self._blocks[rate_hz]

        def run(instance: int) -> int:
            return sum(1 for _ in features.rows(blocks, rate_hz))

        return run

    def examples(self, place: int) -> Array:
        """Return rows for a member, shape (n, ...)."""
        demand = self._demands[self._opened.lineup.takes[place]]
        assert isinstance(demand.description, AudioInput)
        rate_hz = demand.description.sample_rate_hz
        rows = SharedAudioFeatures([demand]).rows(self._blocks[rate_hz], rate_hz)
        return np.stack([row.arrays[0] for row in itertools.islice(rows, 16)])

    def stages(
        self, costs: Mapping[str, StageCost], shares: Mapping[SoundKind | None, float]
    ) -> tuple[dict[str, Stage], list[tuple[str, ...]], tuple[str, ...]]:
        """Return the stages, those that each member needs, and those that every job has."""
        found = {
            "decode": _per_row(
                [(costs[f"decode {kind}"], share) for kind, share in shares.items()], self._row_s
            )
        }
        resampling: defaultdict[int, list[tuple[StageCost, float]]] = defaultdict(list)
        for kind, rate_hz in self._resampled:
            if kind in shares:
                resampling[rate_hz].append((costs[_resampling(kind, rate_hz)], shares[kind]))
        for rate_hz, weighed in resampling.items():
            found[f"resample to {rate_hz / 1000:g} kHz"] = _per_row(weighed, self._row_s)
        needs: dict[int, tuple[str, ...]] = {}
        for spectrum in self._spectra:
            before = (
                (f"resample to {spectrum.rate_hz / 1000:g} kHz",) if spectrum.rate_hz in resampling else ()
            )
            alone = [costs[self._alone(place)] for place in spectrum.places]
            together = costs[spectrum.name] if len(alone) > 1 else None
            shared, rests = _shared_part(alone, together)
            if shared is not None:
                found[spectrum.name] = Stage(cost=shared, per="window", serial=True)
                before = (*before, spectrum.name)
            for place, rest in zip(spectrum.places, rests, strict=True):
                name = f"features {place + 1}"
                found[name] = Stage(cost=rest, per="window", serial=True)
                needs[place] = (*before, name)
        return found, [needs[place] for place in self._opened.lineup.takes], ("decode",)


def _resampling(kind: SoundKind, rate_hz: int) -> str:
    return f"resample {kind} to {rate_hz / 1000:g} kHz"


def _per_row(weighed: Sequence[tuple[StageCost, float]], row_s: float) -> Stage:
    """Return a stage per row whose seconds of sound cost differently, with the share of each."""
    core_s = sum(cost.core_s * share for cost, share in weighed)
    errors = [cost.core_s * share * cost.spread for cost, share in weighed]
    spread = math.hypot(*errors) / core_s
    return Stage(cost=StageCost(core_s=row_s * core_s, spread=spread), per="row", serial=True)


def _shared_part(
    alone: Sequence[StageCost], together: StageCost | None
) -> tuple[StageCost | None, list[StageCost]]:
    """Return what demands have in common, and what each takes beside.

    Each of n alone takes s + r[i], all together s + the sum of r; so s = (sum alone - together) / (n - 1).
    """
    if together is None:
        return None, list(alone)
    sums = sum(cost.core_s for cost in alone)
    least = min(cost.core_s for cost in alone)
    shared_s = (sums - together.core_s) / (len(alone) - 1)
    shared_s = min(max(shared_s, _LEAST_SHARE * least), (1 - _LEAST_SHARE) * least)
    spread = max(cost.spread for cost in alone)
    rests = [StageCost(core_s=cost.core_s - shared_s, spread=cost.spread) for cost in alone]
    return StageCost(core_s=shared_s, spread=spread), rests


def _spectra(demands: Sequence[Demand]) -> list[_Spectrum]:
    """Return which demands share windows, their scaling and their FFT."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, demand in enumerate(demands):
        audio = demand.description
        assert isinstance(audio, AudioInput)
        keep_s = audio.window_s if demand.keep_s is None else demand.keep_s
        cut = (audio.sample_rate_hz, audio.window_samples, round(keep_s * audio.sample_rate_hz))
        scaling = (audio.peak_normalize, audio.std_normalize)
        groups[*cut, *scaling, _spectrum_of(audio.mel)].append(place)
    return [
        _Spectrum(name=f"spectrum {number}", rate_hz=key[0], places=tuple(places))
        for number, (key, places) in enumerate(groups.items(), 1)
    ]


def _spectrum_of(mel: LogMel | None) -> object:
    return None if mel is None else spectrum_key(mel)


def _waves(path: Path) -> list[Array]:
    with open_audio(path, end_s=PIECE_S) as audio:
        return [mixed(block) for block in audio.blocks()]


def _decoder(files: Sequence[Path]) -> Callable[[int], int]:
    following: Iterator[Path] = itertools.cycle(files)

    def run(instance: int) -> int:
        frames = 0
        # `next` of a cycle is one step of the interpreter, so threads may share it.
        with open_audio(next(following), end_s=PIECE_S) as audio:
            for block in audio.blocks():
                frames += len(block)
            return max(1, round(1000 * frames / audio.rate_hz))

    return run


def _resampler(waves: Sequence[Array], from_hz: int, to_hz: int) -> Callable[[int], int]:
    length_ms = max(1, round(1000 * sum(map(len, waves)) / from_hz))

    def run(instance: int) -> int:
        for _ in resampled(waves, from_hz, to_hz):
            pass
        return length_ms

    return run
