"""Runs a bundle over files: decode, features, model and tables, under one thread budget, through any kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription
from alula.data import Kind, find_inputs, open_audio
from alula.engines import Arrays
from alula.errors import AlulaError, DataError, JobError, UsageError
from alula.hardware import disk_full
from alula.pipeline import (
    READY_PER_RESULT,
    Backlog,
    ColumnFile,
    ErrorReport,
    FileTask,
    JobSummary,
    Journal,
    Kept,
    Progress,
    Recordings,
    Row,
    RowSpec,
    Selection,
    Shard,
    Sink,
    TableOptions,
    file_key,
    journal_folder,
    read_sample_submission,
    run_job,
    shard_of,
    sink_for,
)
from alula.workflows.ensembling import Ensemble
from alula.workflows.running import Bundle, Key, job_key, keep, kept_rows, keys_of

__all__ = ["PredictionReport", "default_error_report", "kind_of_input", "predict", "run_over_files"]


class PredictionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder run did.

    Attributes:
        output: the table, or the folder of tables.
        errors: the error report, or None when every file went well.
        recipe: what ran.
        job: files, samples, times of this run; `job.samples_per_s` covers decode, features and model, from
            the first file read to the last row written, without loading the bundle.
        promised_per_s: what the search measured for the same way on its data, or None.
        files: in the output or the error report, those that an interrupted run had finished among them.
        failed: of them, in the error report.
        resumed: of them, finished by an interrupted run.
        notes: what to know about the output, one sentence each.
    """

    output: str
    errors: str | None
    recipe: str
    job: JobSummary
    promised_per_s: float | None
    files: int
    failed: int
    resumed: int
    notes: tuple[str, ...]


def kind_of_input(description: InputDescription) -> Kind:
    """Return which kind of files a description reads.

    >>> kind_of_input(AudioInput())
    'audio'
    """
    match description:
        case AudioInput():
            return "audio"
        case ImageInput():
            return "image"
        case ArrayInput():
            return "array"


def default_error_report(output: Path, shard: Shard | None = None) -> Path:
    """Return where the error report goes when nothing was said: `errors.csv` beside the output.

    Shards may be written side by side, so each has its own.

    >>> default_error_report(Path("out/scores.csv"), Shard(3, 10)).as_posix()
    'out/errors-3-of-10.csv'
    """
    name = "errors.csv" if shard is None else f"errors-{shard.index}-of-{shard.count}.csv"
    return output.with_name(name)


def predict(
    bundle: Bundle | Ensemble,
    inputs: Sequence[str | Path],
    *,
    output: str | Path,
    format: str | None = None,  # noqa: A002 - the name of the option
    errors: str | Path | None = None,
    sample: str | Path | None = None,
    selection: Selection | None = None,
    shard: Shard | None = None,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> PredictionReport:
    """Run a bundle over folders, files and globs, and write one table.

    A file that cannot be read costs one line in the error report; the others finish. Both files are
    written atomically: either whole or not at all.

    What is finished is kept in a journal, `OUTPUT.job` beside the output, which goes when the output is
    there. After a kill, an error or a full disk the same call goes on: a file is computed again only if
    its path, size, time of change, the bundle or the recipe is another. The output is the same to the
    byte, in the order of the files, as that of a run without an interruption.

    Args:
        bundle: from `alula.load`, of one model or an ensemble.
        inputs: folders (searched through), files, or globs.
        output: the table, or for some formats a folder; see `alula.pipeline.sink_for`.
        format: one of `alula.pipeline.FORMATS`; None takes it from the suffix.
        errors: the error report; None puts `errors.csv` beside the output.
        sample: the `sample_submission.csv` of a competition, for format `birdclef`.
        selection: which scores are detections, for formats of detections.
        shard: compute only this part of the files. Parts hold consecutive files, of about the same length
            together, so that the tables of all parts, one after the other, are the table of the whole.
        fresh: forget what an interrupted run has finished.
        progress: called a few times a second.

    Raises:
        DataError: nothing matches, or the sample submission cannot be used.
        UsageError: unknown format, or one that does not fit the bundle; an interrupted run of another
            bundle; more shards than files.
        JobError: the output cannot be written, or another run is writing it.
        DiskFullError: there is no space; the same call goes on.
        EngineError: the engine failed; no table is written.
    """
    if isinstance(bundle, Bundle) and len(bundle.manifest.signature.inputs) > 1:
        raise UsageError(
            f"{bundle.path.name} takes {len(bundle.manifest.signature.inputs)} inputs, and a file gives one. "
            "Call it from Python: `alula.load(path)(x1, x2)`."
        )
    description = bundle.description
    kind = kind_of_input(description)
    everything = find_inputs(inputs, kind=kind)
    files = everything
    if shard is not None:
        files = shard_of(everything, shard, weights=_durations_s(everything, kind, threads=bundle.threads))
    target = Path(output)
    report_path = default_error_report(target, shard) if errors is None else Path(errors)
    if report_path.absolute() == target.absolute():
        raise UsageError(f"The output and the error report are both {target}; give them two names.")
    folder = journal_folder(target)
    sink = sink_for(
        target,
        format=format,
        labels=bundle.labels,
        kind=kind,
        options=TableOptions(
            selection=selection,
            recordings=_recordings(description, everything),
            sample=None if sample is None else read_sample_submission(sample),
            drafts=folder,
        ),
    )
    tasks = [FileTask(path, file_key(path)) for path in files]
    try:
        with Journal(folder, job_key(bundle), fresh=fresh) as journal:
            resumed = sum(journal.find(task.key) is not None for task in tasks)
            with sink, ErrorReport(report_path) as report:
                job = _run_and_write(
                    bundle,
                    tasks,
                    journal=journal,
                    sink=sink,
                    report=report,
                    missing=len(tasks) - resumed,
                    row_spec=_row_spec(bundle, everything),
                    progress=progress,
                )
            journal.finish()
    except JobError as error:
        full = disk_full(error, what="the output", path=target, resumes=True)
        if full is None:
            raise
        raise full from error
    promised = bundle.manifest.folder if isinstance(bundle, Bundle) else None
    return PredictionReport(
        output=str(target),
        errors=str(report_path) if report.count else None,
        recipe=bundle.recipe,
        job=job,
        promised_per_s=None if promised is None else promised.samples_per_s,
        files=len(tasks),
        failed=report.count,
        resumed=resumed,
        notes=sink.notes,
    )


def _run_and_write(
    bundle: Bundle | Ensemble,
    tasks: Sequence[FileTask],
    *,
    journal: Journal,
    sink: Sink,
    report: ErrorReport,
    missing: int,
    row_spec: RowSpec | None,
    progress: Callable[[Progress], None] | None,
) -> JobSummary:
    """Compute what the journal lacks, and write all that it has in the order of the tasks."""
    backlog = Backlog(tasks, journal)
    ranked = isinstance(bundle, Ensemble) and bundle.whole_job

    def emit(task: FileTask, keys: list[Key], outputs: Arrays) -> None:
        keep(journal, task, keys, outputs)
        write(READY_PER_RESULT)

    def fail(task: FileTask, error: AlulaError) -> None:
        journal.keep_failure(task.key, str(task), error)
        write(READY_PER_RESULT)

    def write(limit: int | None) -> None:
        # Always from the journal, so that it cannot matter which run has computed a file, or when.
        if ranked:
            return
        for task, kept in backlog.ready(limit):
            _write_one(bundle, task.path, kept, journal=journal, sink=sink, report=report)

    job = run_job(
        backlog.missing(),
        prepare=lambda task: bundle.rows(task.path),
        infer=bundle.full_batch_scores,
        emit=emit,
        fail=fail,
        settings=bundle.settings,
        cpu_budget=bundle.threads,
        progress=progress,
        total_tasks=missing,
        ordered=False,
        row_spec=row_spec,
    )
    write(None)
    if isinstance(bundle, Ensemble) and ranked:
        _write_ranked(bundle, list(backlog.ready()), journal=journal, sink=sink, report=report)
    return job


def _write_one(
    bundle: Bundle | Ensemble,
    path: Path,
    kept: Kept,
    *,
    journal: Journal,
    sink: Sink,
    report: ErrorReport,
) -> None:
    name = str(path)
    if kept.reason is not None:
        report.add(name, DataError(name, kept.reason))
    elif bundle.needs_whole_files:
        keys, (scores,) = bundle.finished(*_as_computed(journal, kept))
        _write_rows(sink, name, keys, scores)
    else:
        for block in journal.blocks(kept):
            keys = keys_of(block.start_s, block.end_s, rows=len(block.scores))
            _write_rows(sink, name, keys, block.scores)


def _as_computed(journal: Journal, kept: Kept) -> tuple[list[Key], Arrays]:
    keys, scores = kept_rows(journal, kept)
    return keys, (scores,)


def _write_rows(sink: Sink, name: str, keys: Sequence[Key], scores: NDArray[Any]) -> None:
    sink.write([Row(name, start_s, end_s) for start_s, end_s in keys], scores)


def _write_ranked(
    ensemble: Ensemble,
    done: Sequence[tuple[FileTask, Kept]],
    *,
    journal: Journal,
    sink: Sink,
    report: ErrorReport,
) -> None:
    """Write the rows of a job whose blend needs all of them: from the journal, column by column, by file."""
    total = sum(kept.rows for _, kept in done)
    wide, narrow = ensemble.job_shape
    if not total:
        for task, kept in done:
            _write_one(ensemble, task.path, kept, journal=journal, sink=sink, report=report)
        return
    with ColumnFile(journal.folder, columns=narrow, rows=total) as blended:
        with ColumnFile(journal.folder, columns=wide, rows=total) as joined:
            at = 0
            for _, kept in done:
                for block in journal.blocks(kept):
                    joined.values[:, at : at + len(block.scores)] = block.scores.T
                    at += len(block.scores)
            ensemble.blend_job(joined.values, blended.values)
        at = 0
        for task, kept in done:
            if kept.reason is not None:
                report.add(str(task.path), DataError(str(task.path), kept.reason))
                continue
            keys = [
                key
                for block in journal.blocks(kept)
                for key in keys_of(block.start_s, block.end_s, rows=len(block.scores))
            ]
            scores = np.array(blended.values[:, at : at + kept.rows].T, order="C")
            at += kept.rows
            keys, (scores,) = ensemble.finished(keys, (scores,))
            _write_rows(sink, str(task.path), keys, scores)


def _row_spec(bundle: Bundle | Ensemble, files: Sequence[Path]) -> RowSpec | None:
    """Return the shape and type that all rows must have where the description leaves them open.

    They are those of the first file that can be read. A run that goes on has that file behind it, and would
    take them from another.
    """
    description = bundle.description
    if not isinstance(description, ArrayInput) or description.shape is not None:
        return None
    for path in files:
        try:
            for _, arrays in bundle.rows(path):
                return tuple((array.shape, array.dtype) for array in arrays)
        except (AlulaError, OSError, MemoryError):
            continue  # reported when its turn comes
    return None


def _recordings(description: InputDescription, files: Sequence[Path]) -> Recordings | None:
    if not isinstance(description, AudioInput):
        return None
    mel = description.mel
    high_hz = None if mel is None else mel.f_max_hz
    return Recordings(
        root=Path(os.path.commonpath([os.path.abspath(path.parent) for path in files])),  # noqa: PTH100
        low_hz=0.0 if mel is None else mel.f_min_hz,
        high_hz=description.sample_rate_hz / 2 if high_hz is None else high_hz,
        duration_s=_duration_s,
    )


def _duration_s(path: str | Path) -> float | None:
    """Return how long a recording is by its header; None where it does not tell, or cannot be read."""
    try:
        return open_audio(path).duration_s
    except DataError:
        return None


def _durations_s(files: Sequence[Path], kind: Kind, *, threads: int) -> list[float | None] | None:
    if kind != "audio":
        return None
    with ThreadPoolExecutor(threads, thread_name_prefix="alula-header") as pool:
        return list(pool.map(_duration_s, files))


def run_over_files(
    bundle: Bundle,
    files: Sequence[Path],
    *,
    emit: Callable[[Path, list[Key], Arrays], None],
    fail: Callable[[Path, AlulaError], None],
    progress: Callable[[Progress], None] | None = None,
) -> JobSummary:
    """Send files through a bundle; see `alula.pipeline.run_job` for `emit`, `fail` and what is raised."""
    return run_job(
        files,
        prepare=bundle.rows,
        infer=bundle.scores,
        emit=emit,
        fail=fail,
        settings=bundle.settings,
        cpu_budget=bundle.threads,
        progress=progress,
        total_tasks=len(files),
    )
