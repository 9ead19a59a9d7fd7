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
from alula.core import ARTIFACT_FILES, InputDescription, Precision, Ratio, Recipe, Settings, Throughput
from alula.errors import AlulaError, DataError, MeasurementError, ModelError, UsageError
from alula.features import make_features, read_description
from alula.graphs import LayerGraph, read_onnx, total_macs, total_parameters
from alula.hardware import Fingerprint, fingerprint, int8_class, read_memory, thread_budget
from alula.measure import Clock, SystemClock
from alula.pipeline import AtomicFile
from alula.report.pareto import Across, ParetoPoint, pareto_front, pareto_svg
from alula.sources import Source, parse_source
from alula.tuning import Journal, SearchPlan, offered_recipes, read_journal, search
from alula.tuning.workshop import StepError, Workshop
from alula.workflows.durations import parse_duration_s
from alula.workflows.random_weights import ANSWER, REQUEST, Preparation, PreparationRequest
from alula.workflows.roofline import Roofline, measure_roofline, share_of_roofline

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
"""What is surveyed unless other names are given: backbones that bioacoustics and vision contests were won with."""

NOISE_SAMPLES = 16
# Weights are random: what the outputs are is of no interest, and no metric of agreement can drop by more.
ANY_DROP = 2.0
ROUND_S = 0.4
FINAL_ROUNDS = 6  # the fewest that give an interval
TIMEOUT_S = 600.0
MEMORY_SHARE = 0.8
_SCORE_COLUMNS = ("model", "score")


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
        share: of the machine's peak for the recipe's precision, None if not measured.
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
    share: float | None = None
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

    Weights are random, and samples are noise: nothing is said of accuracy. A model that cannot be built, exported
    or run costs its own row, and the others are measured. An interrupt ends the race of the model under way with
    the best found until then, and the survey with the rows that are done.

    Args:
        names: of architectures of timm, or anything else that `optimize` takes as its model; none for `SEEDS`.
            Those of timm get the channels of the input.
        input: shape of one sample, such as `1x128x313`; or an input description, a preset's name, or a TOML file.
        scores_csv: a table with the columns `model` and `score`, where higher is better.
        against: what speed is weighed against: `score`, `macs` or `parameters`; None takes the score if one is
            known, else the work. Without scores, more work or parameters stand in for a better model.
        budget_per_model: such as `60s`, or seconds as a number; kept once a first recipe was measured.
        engines: only these.
        precisions: only these.
        threads: thread budget; None takes min(affinity, CPU quota).
        roofline: whether to measure the machine's peaks first, for the share of them that each model reaches.
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
    machine = fingerprint()
    recipes = offered_recipes(
        machine.isa,
        engines=None if engines is None else tuple(engines),
        precisions=None if precisions is None else tuple(precisions),
    )
    scores = {} if scores_csv is None else _read_scores(Path(scores_csv))
    targets = [Path(path) for path in (output, plot) if path is not None]
    for target in targets:
        AtomicFile(target).discard()  # an hour is a long time to learn that a file cannot be written
    warnings = []
    if scores and not scores.keys() & set(asked):
        warnings.append(f"none of the {len(scores)} scores is of a model that was asked for")
    roof = measure_roofline(threads=budget_threads, report=report) if roofline else None
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

    def summary(rows: Sequence[SurveyRow], *, interrupted: bool) -> SurveyReport:
        axis = against or _default_axis(rows)
        doubts = [f"{row.model}: {text}" for row in rows if row.throughput for text in row.throughput.warnings]
        return SurveyReport(
            shape=shape,
            rows=tuple(rows),
            against=axis,
            front=tuple(row.model for row in _front(rows, axis)),
            budget_per_model_s=budget_s,
            threads=budget_threads,
            machine=machine,
            roofline=roof,
            warnings=(*warnings, *doubts),
            interrupted=interrupted,
        )

    rows: list[SurveyRow] = []
    with _Interrupts() as interrupts:
        for position, name in enumerate(asked):
            left_min = math.ceil((len(asked) - position) * budget_s / 60)
            report(f"{position + 1} of {len(asked)}: {name}; about {left_min} min left")
            try:
                row = run.row(name)
            except KeyboardInterrupt:
                if not rows:
                    raise
                break
            rows.append(msgspec.structs.replace(row, score=scores.get(name)))
            _write_files(summary(rows, interrupted=len(rows) < len(asked)), output, plot)
            if interrupts.came:
                break
    return summary(rows, interrupted=len(rows) < len(asked))


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
        """Return the row of a model, with its error should it fail."""
        started_s = self.clock.monotonic()
        row = SurveyRow(model=name, recipes_offered=len(self.recipes))
        try:
            with tempfile.TemporaryDirectory(prefix="alula-survey-") as folder:
                for row in self._stages(row, Path(folder), started_s):  # noqa: B007, PLR1704 - the last one counts
                    pass
        except AlulaError as error:
            row = msgspec.structs.replace(row, error=" ".join(str(error).split()))
        return msgspec.structs.replace(row, seconds=self.clock.monotonic() - started_s)
