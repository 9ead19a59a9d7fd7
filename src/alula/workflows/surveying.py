"""Backbones side by side at one input: how large they are and how fast each can be made here."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, get_args

import msgspec
import numpy as np

from alula.accuracy import metric_named
from alula.core import (
    ARTIFACT_FILES,
    Accepted,
    Failed,
    InputDescription,
    Precision,
    Ratio,
    Recipe,
    Roofline,
    Settings,
    Share,
    Throughput,
    share_of_peak,
)
from alula.errors import AlulaError, DataError, EngineError, ModelError, UsageError
from alula.features import make_features, read_description
from alula.graphs import Products, products_of, read_onnx, total_parameters
from alula.hardware import Fingerprint, fingerprint, int8_class, read_memory, thread_budget
from alula.measure import Clock, SystemClock
from alula.pipeline import AtomicFile
from alula.quantization import work_of
from alula.report.pareto import Across, ParetoPoint, pareto_front, pareto_svg
from alula.sources import Source, parse_source
from alula.tuning import Journal, SearchPlan, measure_roofline, offered_recipes, read_journal, search
from alula.tuning.workshop import Workshop
from alula.workflows.durations import parse_duration_s
from alula.workflows.peaks import cache_folder, doubts, keep_roofline, kept_roofline, roofline_here
from alula.workflows.random_weights import ANSWER, REQUEST, Preparation, PreparationRequest

__all__ = ["SEEDS", "SurveyReport", "SurveyRow", "survey"]

SEEDS = (
    "eca_nfnet_l0",
    "tf_efficientnet_b0_ns",
    "tf_efficientnet_b3_ns",
    "tf_efficientnetv2_s_in21k",
    "resnet18",
    "resnet34d",
    "resnet50",
    "seresnext26t_32x4d",
    "mobilenetv3_large_100",
    "regnety_008",
    "convnext_tiny",
    "efficientvit_b0",
)
"""What is surveyed unless other names are given: backbones in use for images and for spectrograms."""

NOISE_SAMPLES = 16
# Weights are random: what the outputs are is of no interest, and no metric of agreement can drop by more.
ANY_DROP = 2.0
ROUND_S = 0.4
FINAL_ROUNDS = 6  # the fewest that give an interval
TIMEOUT_S = 600.0
MEMORY_SHARE = 0.8
# Where INT8 products have instructions of their own, INT8 wins on nearly all networks.
_NATIVE_INT8 = ("amx", "vnni", "dotprod", "i8mm")
_SCORE_COLUMNS = ("model", "score")
_FILE_SUFFIXES = (".onnx", ".pt", ".pt2", ".py", ".ts")  # no name of an architecture ends so


class SurveyRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model, measured or with the reason why not.

    Attributes:
        model: as it was asked for.
        parameters: that training sets; None if not known.
        macs: multiply-accumulates of one sample, counted from its graph; None if not known.
        recipe: the fastest found, by name.
        settings: with which it ran.
        throughput: samples per second of that, in the last comparison of its race.
        baseline_per_s: of the model as it is, in eager PyTorch or, from an ONNX file, in ONNX Runtime.
        speedup: over that.
        of_peak: how much of the machine's peak that is; None if it was not measured.
        score: of the model, from the table of scores.
        recipes_measured: how many recipes were timed before the budget was used up.
        recipes_offered: how many there are.
        seconds: spent on it.
        error: why it was not measured, in one line.
    """

    model: str
    parameters: int | None = None
    macs: int | None = None
    recipe: str | None = None
    settings: Settings | None = None
    throughput: Throughput | None = None
    baseline_per_s: float | None = None
    speedup: Ratio | None = None
    of_peak: Share | None = None
    score: float | None = None
    recipes_measured: int = 0
    recipes_offered: int = 0
    seconds: float = 0.0
    error: str | None = None

    def across(self, axis: Across) -> float | None:
        """Return the value for a horizontal axis, None if it is not known."""
        values: dict[Across, float | None] = {
            "score": self.score,
            "macs": self.macs,
            "parameters": self.parameters,
        }
        return values[axis]


class SurveyReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a survey found.

    Attributes:
        shape: of one sample, without the batch axis.
        rows: in the order asked for.
        against: what speed is weighed against.
        front: models than which no other is both faster and has more of `against`, the slowest first.
        budget_per_model_s: that each model had.
        threads: thread budget of each.
        machine: what it was measured on.
        roofline: the machine's peaks, None if they were not measured.
        warnings: what a reader of the figures should know.
        interrupted: whether models were left out because of an interrupt.
    """

    shape: tuple[int, ...]
    rows: tuple[SurveyRow, ...]
    against: Across
    front: tuple[str, ...]
    budget_per_model_s: float
    threads: int
    machine: Fingerprint
    roofline: Roofline | None
    warnings: tuple[str, ...]
    interrupted: bool


def survey(
    names: Sequence[str] = (),
    *,
    input: str | Path | Sequence[int] | InputDescription,  # noqa: A002 - the name of the option
    scores_csv: str | Path | None = None,
    against: Across | None = None,
    budget_per_model: str | float = "60s",
    engines: Sequence[str] | None = None,
    precisions: Sequence[Precision] | None = None,
    threads: int | None = None,
    roofline: bool = False,
    output: str | Path | None = None,
    plot: str | Path | None = None,
    report: Callable[[str], None] = lambda text: None,
    clock: Clock | None = None,
) -> SurveyReport:
    """Return models side by side: parameters, work, and the speed of the best recipe of a short race each.

    Weights are random, and samples are noise: nothing is said of accuracy. A model that cannot be built,
    exported or run costs its own row, and the others are measured. An interrupt ends the race of the model
    under way with the best found until then, and the survey with the rows that are done.

    Args:
        names: of architectures of timm, or anything else that `optimize` takes as its model; none for
            `SEEDS`. Those of timm get the channels of the input.
        input: shape of one sample, such as `1x128x313`; or an input description, a preset's name, or a TOML
            file.
        scores_csv: a table with the columns `model` and `score`, where higher is better.
        against: what speed is weighed against: `score`, `macs` or `parameters`; None takes the score if one
            is known, else the work. Without scores, more work or parameters stand in for a better model.
        budget_per_model: such as `60s`, or seconds as a number; kept once a first recipe was measured.
        engines: only these.
        precisions: only these.
        threads: thread budget; None takes min(affinity, CPU quota).
        roofline: whether to measure the machine's peaks anew and at length before, which takes half a minute;
            what was kept counts where it is higher. Without it they are those that were kept, or a few
            seconds are taken for them once.
        output: a CSV file with a line for each model, written anew after each.
        plot: an SVG file of speed against `against`, written anew after each model.
        report: gets lines of text about what is being done.
        clock: tells how long a model has taken.

    Raises:
        UsageError: an option is wrong.
        DataError: the table of scores cannot be used.
        JobError: a file cannot be written.
        EngineUnavailableError: the roofline is asked for, and nothing that measures it is installed.
    """
    shape = _shape(input)
    asked = tuple(dict.fromkeys(names or SEEDS))
    if against is not None and against not in get_args(Across):
        raise UsageError(f"There is no axis `{against}`; expected {', '.join(get_args(Across))}.")
    if against == "score" and scores_csv is None:
        raise UsageError("To weigh speed against scores, a table of scores is needed.")
    budget_s = parse_duration_s(budget_per_model)
    budget_threads = thread_budget(threads)
    machine = msgspec.structs.replace(fingerprint(), thread_budget=budget_threads)
    recipes = offered_recipes(
        machine.isa,
        engines=None if engines is None else tuple(engines),
        precisions=None if precisions is None else tuple(precisions),
    )
    if int8_class(machine.isa) in _NATIVE_INT8:
        recipes = _int8_first(recipes)
    scores = {} if scores_csv is None else _read_scores(Path(scores_csv))
    targets = [Path(path) for path in (output, plot) if path is not None]
    for target in targets:
        AtomicFile(target).discard()  # an hour is a long time to learn that a file cannot be written
    warnings = []
    if scores and not scores.keys() & set(asked):
        warnings.append(f"none of the {len(scores)} scores is of a model that was asked for")
    roof = _peaks(anew=roofline, threads=budget_threads, report=report)
    run = _Run(
        shape=shape,
        recipes=recipes,
        threads=budget_threads,
        saturating=int8_class(machine.isa) == "saturating",
        budget_s=budget_s,
        roofline=roof,
        report=report,
        clock=clock or SystemClock(),
    )

    def summary(rows: Sequence[SurveyRow]) -> SurveyReport:
        axis = against or _default_axis(rows)
        points = _points(rows, axis)
        shown = {point.name for point in points}
        absent = [row.model for row in rows if row.throughput is not None and row.model not in shown]
        found = [f"{row.model}: {text}" for row in rows if row.throughput for text in row.throughput.warnings]
        found += _above_peak(rows)
        if absent:
            found.append(f"compared by speed alone, because {axis} is not known: {', '.join(absent)}")
        return SurveyReport(
            shape=shape,
            rows=tuple(rows),
            against=axis,
            front=_front(points),
            budget_per_model_s=budget_s,
            threads=budget_threads,
            machine=machine,
            roofline=roof,
            warnings=(*warnings, *found),
            interrupted=len(rows) < len(asked),
        )

    rows: list[SurveyRow] = []
    with _Interrupts() as interrupts:
        try:
            for position, name in enumerate(asked):
                left_min = math.ceil((len(asked) - position) * budget_s / 60)
                report(f"{position + 1} of {len(asked)}: {name}; about {left_min} min left")
                rows.append(msgspec.structs.replace(run.row(name), score=scores.get(name)))
                _write_files(summary(rows), output, plot)
                if interrupts.came:
                    break
        except KeyboardInterrupt:
            if not rows:
                raise
            _write_files(summary(rows), output, plot)
    return summary(rows)


def _peaks(*, anew: bool, threads: int, report: Callable[[str], None]) -> Roofline | None:
    if not anew:
        return roofline_here(threads=threads, report=report)
    found = measure_roofline(threads=threads, report=report)
    folder = cache_folder()
    if folder is not None and keep_roofline(found, [folder]):
        return kept_roofline([folder], threads=threads)
    return found


def _above_peak(rows: Sequence[SurveyRow]) -> tuple[str, ...]:
    return doubts([(row.model, row.of_peak) for row in rows if row.of_peak is not None])


# One model.


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all models of a survey have in common."""

    shape: tuple[int, ...]
    recipes: tuple[Recipe, ...]
    threads: int
    saturating: bool
    budget_s: float
    roofline: Roofline | None
    report: Callable[[str], None]
    clock: Clock

    def row(self, name: str) -> SurveyRow:
        """Return the row of a model; what is known of it before it fails is kept."""
        started_s = self.clock.monotonic()
        row = SurveyRow(model=name, recipes_offered=len(self.recipes))
        with tempfile.TemporaryDirectory(prefix="alula-survey-") as scratch:
            folder = Path(scratch)
            try:
                source, parameters = self._prepared(name, folder)
                row = msgspec.structs.replace(row, parameters=parameters)
                row, products = self._counted(row, source, folder)
                row = self._raced(row, source, folder, products, started_s=started_s)
            except AlulaError as error:
                row = msgspec.structs.replace(row, error=" ".join(str(error).split()))
        return msgspec.structs.replace(row, seconds=self.clock.monotonic() - started_s)

    def _prepared(self, name: str, folder: Path) -> tuple[Source, int | None]:
        """Return the model with weights that give ordinary activations, and its parameters."""
        self.report("preparing the model")
        source = parse_source(_model(name, self.shape), workdir=folder)
        chance = np.random.default_rng(0)
        for path in self._noise(folder):
            np.save(path, chance.standard_normal((NOISE_SAMPLES, *self.shape), dtype=np.float32))
        answer = _ask(PreparationRequest(source=source, shape=self.shape, threads=self.threads), folder)
        if answer.error is not None:
            raise ModelError(answer.error)
        if answer.weights is not None:
            source = msgspec.structs.replace(source, weights=answer.weights)
        return source, answer.parameters

    def _noise(self, folder: Path) -> tuple[str, str]:
        """Return the files of samples for calibration and for measurement."""
        return str(folder / "calibration_0.npy"), str(folder / "validation_0.npy")

    def _counted(
        self, row: SurveyRow, source: Source, folder: Path
    ) -> tuple[SurveyRow, tuple[Products, ...]]:
        """Return the row with what can be counted in the graph, and its work by layers, none where it cannot.

        The search finds the export made.
        """
        calibration, validation = self._noise(folder)
        workshop = Workshop(
            source,
            folder,
            calibration=(calibration,),
            validation=(validation,),
            threads=self.threads,
            saturating=self.saturating,
            memory_limit_bytes=_memory_limit_bytes(),
            timeout_s=lambda: TIMEOUT_S,
            report=self.report,
        )
        try:
            graph = read_onnx(workshop.export("onnx") / ARTIFACT_FILES["onnx"])
        except (EngineError, ModelError) as error:  # engines that need no ONNX file may still run it
            self.report(f"its work cannot be counted: {error}")
            return row, ()
        parameters = total_parameters(graph) if row.parameters is None else row.parameters
        row = msgspec.structs.replace(row, parameters=parameters)
        try:
            products = products_of(graph)
        except ModelError as error:
            self.report(f"its work cannot be counted: {error}")
            return row, ()
        return msgspec.structs.replace(row, macs=sum(one.macs for one in products)), products

    def _raced(
        self,
        row: SurveyRow,
        source: Source,
        folder: Path,
        products: tuple[Products, ...],
        *,
        started_s: float,
    ) -> SurveyRow:
        """Return the row with the speed of the best recipe."""
        calibration, validation = self._noise(folder)
        plan = SearchPlan(
            source=source,
            workdir=folder,
            calibration=(calibration,),
            validation=(validation,),
            targets=None,
            metric=metric_named("agreement"),
            max_drop=ANY_DROP,
            recipes=self.recipes,
            threads=self.threads,
            saturating=self.saturating,
            budget_s=self.budget_s - (self.clock.monotonic() - started_s),
            closing_s=0.0,
            memory_limit_bytes=_memory_limit_bytes(),
            timeout_s=TIMEOUT_S,
            round_s=ROUND_S,
            final_rounds=FINAL_ROUNDS,
        )
        journal = Journal(folder / "search.jsonl")
        result = search(plan, journal=journal, report=self.report)
        if not result.finalists:
            losses = [one for one in read_journal(journal.path) if not isinstance(one, Accepted)]
            reasons = [
                f"{one.recipe}: {one.error if isinstance(one, Failed) else one.reason}" for one in losses
            ]
            raise ModelError(" ".join(["No recipe could be measured.", *reasons[:3]]))
        winner = result.finalists[0]
        candidate = winner.accepted.candidate
        return msgspec.structs.replace(
            row,
            recipe=candidate.recipe.name,
            settings=candidate.settings,
            throughput=winner.throughput,
            baseline_per_s=result.baseline_throughput.per_s,
            speedup=winner.speedup,
            of_peak=share_of_peak(
                winner.throughput.per_s, work_of(products, candidate.recipe), self.roofline
            ),
            recipes_measured=len(result.accepted),
        )


def _memory_limit_bytes() -> int:
    return int(read_memory().available_bytes * MEMORY_SHARE) or 2**62


def _model(name: str, shape: Sequence[int]) -> str:
    """Return a model as `parse_source` takes it: a bare name is timm's, and timm's get the input's channels.

    >>> _model("resnet18", (1, 128, 313)), _model("timm:resnet18?num_classes=9", (1, 128, 313))
    ('timm:resnet18?in_chans=1', 'timm:resnet18?num_classes=9&in_chans=1')
    >>> _model("resnet18", (3, 224, 224)), _model("net.py:small", (1, 128, 313))
    ('timm:resnet18', 'net.py:small')
    """
    bare = re.fullmatch(r"[\w.-]+(\?.*)?", name) is not None
    is_file = Path(name).suffix in _FILE_SUFFIXES or Path(name).exists()
    text = f"timm:{name}" if bare and not is_file else name
    if not text.startswith("timm:") or len(shape) != 3 or shape[0] == 3 or "in_chans=" in text:
        return text
    return f"{text}{'&' if '?' in text else '?'}in_chans={shape[0]}"


def _ask(request: PreparationRequest, folder: Path) -> Preparation:
    """Return what a process of its own answers, so that whatever a model does is survived.

    Raises:
        ModelError: it crashed, hung, or gave no answer.
    """
    (folder / REQUEST).write_bytes(msgspec.json.encode(request))
    log = folder / "prepare.log"
    # Not `-m`: the package imports the module, and Python warns of what is imported before it is run.
    code = "from alula.workflows.random_weights import main; main()"
    threads = str(request.threads)
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdin=subprocess.PIPE,  # it ends when this process does, however that comes
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        ) as process,
    ):
        try:
            code_ended = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"Stopped: the model was not ready within {TIMEOUT_S:.0f} s.") from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        return msgspec.json.decode((folder / ANSWER).read_bytes(), type=Preparation)
    except (FileNotFoundError, msgspec.MsgspecError) as error:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = f": {lines[-1][:200]}" if lines else ""
        raise ModelError(
            f"The process that builds the model ended with exit code {code_ended}{said}."
        ) from error


class _Interrupts:
    """Takes note of interrupts, which a search answers with the best so far. Use it in a `with` block."""

    def __init__(self) -> None:
        self.came = False
        self._before: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> Self:
        before = signal.getsignal(signal.SIGINT)
        # Python runs handlers in the main thread alone, and lets no other change them.
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self._before is not None:
            self._before(number, frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


# What goes in.


def _int8_first(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """Return recipes with the likely winners in front, for a race that ends before most of them are tried.

    These are the plain INT8, BF16 and FP32 recipes of the two most promising engines, in this order; then
    come the plain ones of other engines, and then all variants.

    >>> names = "a/fp32 a/fp32-direct b/fp32 a/int8-x a/int8-x-dense c/int8-z b/int8-y".split()
    >>> [recipe.name for recipe in _int8_first([Recipe.parse(name) for name in names])]
    ['a/int8-x', 'b/int8-y', 'a/fp32', 'b/fp32', 'c/int8-z', 'a/fp32-direct', 'a/int8-x-dense']
    """
    first = list(dict.fromkeys(recipe.engine for recipe in recipes))[:2]
    plain: dict[tuple[str, Precision], Recipe] = {}
    for recipe in recipes:
        plain.setdefault((recipe.engine, recipe.precision), recipe)
    ranks: tuple[Precision, ...] = ("int8", "bf16", "fp32")
    ordered = sorted(plain.values(), key=lambda one: (one.engine not in first, ranks.index(one.precision)))
    return (*ordered, *(recipe for recipe in recipes if recipe not in ordered))


def _shape(given: str | Path | Sequence[int] | InputDescription) -> tuple[int, ...]:
    """Return the shape of one sample.

    >>> _shape("1x128x313"), _shape("imagenet"), _shape((16000,))
    ((1, 128, 313), (3, 224, 224), (16000,))

    Raises:
        UsageError: it is no shape and no input description, or one that leaves the shape open.
    """
    if isinstance(given, str) and re.fullmatch(r"\d+(x\d+)*", given):
        given = tuple(map(int, given.split("x")))
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given or min(given) < 1:
            raise UsageError(
                f"The shape {given} has no samples; expected sizes from 1 on, such as 1x128x313."
            )
        return tuple(given)
    description = read_description(given) if isinstance(given, str | Path) else given
    shape = make_features(description).sample_shape
    if shape is None:
        raise UsageError(f"The input {given} leaves the shape open; expected one, such as 1x128x313.")
    return tuple(shape)


def _read_scores(path: Path) -> dict[str, float]:
    """Return scores by model.

    Raises:
        DataError: the file cannot be read, lacks a column, or holds something else than a number for each
        model.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not set(_SCORE_COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(
                    path,
                    f"It has the columns {', '.join(reader.fieldnames or ())}; expected model and score.",
                )
            lines = [(line["model"] or "", line["score"] or "") for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"The scores cannot be read: {error}.") from error
    scores: dict[str, float] = {}
    for number, (model, text) in enumerate(lines, 2):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise DataError(path, f"The score of `{model}` (line {number}) is `{text}`; expected a number.")
        if scores.setdefault(model, score) != score:
            raise DataError(path, f"`{model}` (line {number}) has two scores; keep one.")
    return scores


# What comes out.


def _default_axis(rows: Sequence[SurveyRow]) -> Across:
    axes: tuple[Across, ...] = ("score", "macs")
    for axis in axes:
        if any(row.throughput is not None and row.across(axis) is not None for row in rows):
            return axis
    return "parameters"


def _points(rows: Sequence[SurveyRow], axis: Across) -> list[ParetoPoint]:
    return [
        ParetoPoint(name=row.model, across=value, per_s=row.throughput.per_s)
        for row in rows
        if row.throughput is not None and (value := row.across(axis)) is not None
    ]


def _front(points: Sequence[ParetoPoint]) -> tuple[str, ...]:
    members = pareto_front([(point.across, point.per_s) for point in points])
    return tuple(points[index].name for index in members)


def _write_files(report: SurveyReport, output: str | Path | None, plot: str | Path | None) -> None:
    if output is not None:
        _write(Path(output), _table(report))
    points = _points(report.rows, report.against)
    if plot is not None and points:
        caption = (
            f"Samples of {'x'.join(map(str, report.shape))}, {report.threads} threads of "
            f"{report.machine.model_name}, the fastest recipe found for each model"
        )
        _write(Path(plot), pareto_svg(points, across=report.against, caption=caption))


def _write(path: Path, text: str) -> None:
    file = AtomicFile(path)
    try:
        file.write(text.encode())
        file.commit()
    finally:
        file.discard()


def _table(report: SurveyReport) -> str:
    """Return the rows as CSV; an empty field is what is not known."""
    text = io.StringIO()
    lines = [_line(row, report) for row in report.rows]
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: SurveyRow, report: SurveyReport) -> Mapping[str, Any]:
    settings, speedup = row.settings, row.speedup
    return {
        "model": row.model,
        "parameters": row.parameters,
        "macs": row.macs,
        "samples_per_s": None if row.throughput is None else row.throughput.per_s,
        "as_it_is_per_s": row.baseline_per_s,
        "speedup": None if speedup is None else speedup.median,
        "speedup_low": None if speedup is None else speedup.low,
        "speedup_high": None if speedup is None else speedup.high,
        "recipe": row.recipe,
        "threads": None if settings is None else settings.threads,
        "instances": None if settings is None else settings.instances,
        "batch_size": None if settings is None else settings.batch_size,
        "knobs": None
        if settings is None
        else " ".join(f"{k}={v}" for k, v in sorted(settings.knobs.items())),
        "share_of_roofline": None if row.of_peak is None else row.of_peak.share,
        "roofline_of": None if row.of_peak is None else row.of_peak.peak or "unknown",
        "score": row.score,
        "on_front": row.model in report.front if row.throughput is not None else None,
        "recipes_measured": row.recipes_measured,
        "recipes_offered": row.recipes_offered,
        "seconds": round(row.seconds, 1),
        "error": row.error,
    }
