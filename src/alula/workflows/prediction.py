"""Runs a bundle over files: decode, features, model and tables, under one thread budget, through any kill."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription
from alula.data import Kind, find_inputs
from alula.engines import Arrays
from alula.errors import AlulaError, JobError, UsageError
from alula.hardware import disk_full
from alula.pipeline import (
    Backlog,
    DetectionFolderSink,
    DetectionSink,
    ErrorReport,
    FileKey,
    FileTask,
    JobSummary,
    Journal,
    Progress,
    Recordings,
    RowSpec,
    SampleSubmission,
    Selection,
    Shard,
    Sink,
    TableOptions,
    UnfinishedList,
    file_key,
    forget_unfinished,
    journal_folder,
    read_sample_submission,
    run_job,
    shard_of,
    sink_for,
)
from alula.workflows.deadlines import PacedJob, Way, pacer_of, reserve_of, ways_of
from alula.workflows.delivery import Delivery
from alula.workflows.ensembling import Ensemble
from alula.workflows.lateness import (
    Deadline,
    DeadlineReport,
    Late,
    duration_s,
    guess_by_size,
    prior_of,
    read_headers,
)
from alula.workflows.running import Bundle, Key, bounds_s, job_key, keep

__all__ = [
    "PredictionReport",
    "default_error_report",
    "default_list",
    "kind_of_input",
    "predict",
    "run_over_files",
]


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
        deadline: what a deadline did; None without one.
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
    deadline: DeadlineReport | None = None


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


def default_list(output: Path, shard: Shard | None = None) -> Path:
    """Return where rows are listed that a deadline left no time for: `unfinished.csv` beside the output."""
    name = "unfinished.csv" if shard is None else f"unfinished-{shard.index}-of-{shard.count}.csv"
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
    deadline_s: float | None = None,
    prior: float | Mapping[str, float] | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    since_s: float | None = None,
) -> PredictionReport:
    """Run a bundle over folders, files and globs, and write one table.

    A file that cannot be read costs one line in the error report; the others finish. Both files are
    written atomically: either whole or not at all.

    What is finished is kept in a journal, `OUTPUT.job` beside the output, which goes when the output is
    there. After a kill, an error or a full disk the same call goes on: a file is computed again only if
    its path, size, time of change, the bundle or the recipe is another. The output is the same to the
    byte, in the order of the files, as that of a run without an interruption.

    With a deadline the output is there before it, and whole, as long as the machine does not stand still
    while it is written. When time gets short, an ensemble computes rows with fewer members, sparser windows
    where they overlap, or its cheapest member; rows for which even that takes too long hold the prior. These
    rows are listed beside the output, and the journal stays, with the files that were computed as without a
    deadline; a later call computes the others again. Files for which there was time have the bytes that they
    have without a deadline.

    Args:
        bundle: from `alula.load`, of one model or an ensemble.
        inputs: folders (searched through), files, or globs.
        output: the table, or for some formats a folder; see `alula.pipeline.sink_for`.
        format: one of `alula.pipeline.FORMATS`; None takes it from the suffix.
        errors: the error report; None puts `errors.csv` beside the output.
        sample: the `sample_submission.csv` of a competition, for format `birdclef`.
        selection: which scores are detections, for formats of detections.
        shard: compute only this part of the files. Parts hold consecutive files, of about the same length
            together, so that the tables of all parts, one after the other, are the table of the whole. Which
            files those are follows from the headers of all, so all are read first.
        fresh: forget what an interrupted run has finished.
        deadline_s: seconds until the output must be there; None for no deadline.
        prior: score of rows that there was no time for: one for all, or by label; None is what an ensemble
            declares, or 0.
        progress: called a few times a second.
        clock: seconds, never going back; thread-safe.
        since_s: the clock's time from which `deadline_s` counts; None is that of the call.

    Raises:
        DataError: nothing matches, or the sample submission cannot be used.
        UsageError: unknown format, or one that does not fit the bundle; an interrupted run of another
            bundle; more shards than files; a deadline or prior that is impossible.
        JobError: the output cannot be written, or another run is writing it; or the time was over before it
            was known which files a shard has.
        DiskFullError: there is no space; the same call goes on.
        EngineError: the engine failed; no table is written.
    """
    start_s = clock() if since_s is None else since_s
    if isinstance(bundle, Bundle) and len(bundle.manifest.signature.inputs) > 1:
        raise UsageError(
            f"{bundle.path.name} takes {len(bundle.manifest.signature.inputs)} inputs, and a file gives one. "
            "Call it from Python: `alula.load(path)(x1, x2)`."
        )
    description = bundle.description
    kind = kind_of_input(description)
    everything = find_inputs(inputs, kind=kind)
    target = Path(output)
    report_path = default_error_report(target, shard) if errors is None else Path(errors)
    if report_path.absolute() == target.absolute():
        raise UsageError(f"The output and the error report are both {target}; give them two names.")
    folder = journal_folder(target)
    asked = None if sample is None else read_sample_submission(sample)
    deadline = None
    if deadline_s is not None:
        deadline = _deadline_of(
            bundle,
            deadline_s,
            prior=prior,
            start_s=start_s,
            kind=kind,
            asked=asked,
            format=format,
            clock=clock,
        )
    elif prior is not None:
        raise UsageError("A prior is for rows that a deadline leaves no time for; there is no deadline.")
    files, known_s = _files_of(everything, shard, kind=kind, threads=bundle.threads, deadline=deadline)
    # A disk may hang when the table is written: what must be there in time is made of what was read before.
    lengths_s: dict[str, float | None] = {}
    sink = sink_for(
        target,
        format=format,
        labels=bundle.labels,
        kind=kind,
        options=TableOptions(
            selection=selection,
            recordings=_recordings(
                description, everything, duration_s=duration_s if deadline is None else lengths_s.get
            ),
            sample=_part(asked, files, everything, shard),
            shard=shard,
            drafts=folder,
        ),
    )
    tasks = [FileTask(path, file_key(path)) for path in files]
    sink.expect([str(task.path) for task in tasks])
    try:
        with Journal(folder, job_key(bundle), fresh=fresh) as journal:
            resumed = sum(journal.find(task.key) is not None for task in tasks)
            missing = len(tasks) - resumed
            late = None
            list_path = default_list(target, shard)
            with sink, ErrorReport(report_path, drafts=_drafts_of(report_path, folder)) as report:
                row_spec = _row_spec(bundle, everything)
                if deadline is None:
                    job = _run_and_write(
                        bundle,
                        tasks,
                        journal=journal,
                        sink=sink,
                        report=report,
                        missing=missing,
                        row_spec=row_spec,
                        progress=progress,
                    )
                else:
                    with UnfinishedList(list_path, drafts=_drafts_of(list_path, folder)) as listed:
                        job, late = _run_before(
                            bundle,
                            tasks,
                            deadline,
                            journal=journal,
                            sink=sink,
                            report=report,
                            listed=listed,
                            missing=missing,
                            known_s=known_s,
                            lengths_s=lengths_s,
                            row_spec=row_spec,
                            progress=progress,
                        )
                unfinished = late is not None and late.unfinished is not None
                # Without an unfinished run of this output, a list there is that of another output.
                if journal.continues and not unfinished:
                    forget_unfinished(list_path)
            if deadline is not None and late is not None:
                late = msgspec.structs.replace(late, left_s=deadline.at_s - clock())
            journal.finish(whole=not unfinished)
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
        deadline=late,
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
    delivery = Delivery(bundle, backlog, journal, sink=sink, report=report, late=None)
    rows = _RowCount(bundle)

    def emit(task: FileTask, keys: list[Key], outputs: Arrays) -> None:
        keys, outputs = bundle.apart(keys, outputs)
        keep(journal, task, keys, outputs)
        rows.delivered += len(keys)
        delivery.write_some()

    def fail(task: FileTask, error: AlulaError) -> None:
        journal.keep_failure(task.key, str(task), error)
        delivery.write_some()

    job = run_job(
        backlog.missing(),
        prepare=lambda task: bundle.rows(task.path),
        infer=bundle.full_batch_scores,
        emit=emit,
        fail=fail,
        settings=bundle.settings,
        cpu_budget=bundle.threads,
        progress=rows.told(progress),
        total_tasks=missing,
        ordered=False,
        row_spec=row_spec,
    )
    delivery.write_rest()
    return rows.summed_up(job)


def _run_before(
    bundle: Bundle | Ensemble,
    tasks: Sequence[FileTask],
    deadline: Deadline,
    *,
    journal: Journal,
    sink: Sink,
    report: ErrorReport,
    listed: UnfinishedList,
    missing: int,
    known_s: Mapping[Path, float | None],
    lengths_s: dict[str, float | None],
    row_spec: RowSpec | None,
    progress: Callable[[Progress], None] | None,
) -> tuple[JobSummary, DeadlineReport]:
    """Do what `_run_and_write` does, as far as there is time.

    `lengths_s` is filled with the lengths of the recordings that a table of detections asks for.
    """
    clock = deadline.clock
    kept_rows = [kept.rows for task in tasks if (kept := journal.find(task.key)) is not None]
    unknown = [task for task in tasks if journal.find(task.key) is None]
    of_all = isinstance(sink, DetectionSink | DetectionFolderSink)
    read_s = deadline.lengths_of(tasks if of_all else unknown, known_s=known_s)
    lengths_s.update({str(task.path): read_s.get(task.key) for task in tasks})
    lengths = {task.key: read_s[task.key] for task in unknown}
    expected = {key: _count(bundle.spans(length_s)) for key, length_s in lengths.items()}
    # What is prepared, computed and paced may be several rows of the output at once.
    guesses = {
        key: None if count is None else -(-count // bundle.joint_rows) for key, count in expected.items()
    }
    ways = ways_of(bundle, prior=deadline.prior, clock=clock)
    ladder: list[Way] = []
    pacer = pacer_of(
        ways,
        guesses,
        ladder=ladder,
        deadline_s=deadline.at_s,
        reserve=reserve_of(
            bundle,
            rows=_rows_of(kept_rows, list(expected.values())),
            files=len(tasks),
            columns=deadline.prior.size,
            allowed_s=deadline.allowed_s,
        ),
        clock=clock,
    )
    paced = PacedJob(
        ways,
        ladder,
        pacer=pacer,
        last_rows={key: count - 1 for key, count in guesses.items() if count is not None},
        clock=clock,
    )
    late = Late(
        bundle,
        ladder=ladder,
        prior=deadline.prior,
        durations_s=lengths,
        guess_s=guess_by_size(lengths),
        listed=listed,
        asked_s=deadline.asked_s,
    )
    # Known before the first row is, or all would wait for the first file, which may lie on a disk that hangs.
    spec = row_spec or bundle.row_spec
    backlog = Backlog(tasks, journal)
    delivery = Delivery(bundle, backlog, journal, sink=sink, report=report, late=late)
    rows = _RowCount(bundle)

    def emit(task: FileTask, keys: list[Key], outputs: Arrays) -> None:
        keys, outputs = bundle.apart(keys, outputs)
        rows.delivered += len(keys)
        end_s = paced.uncovered_end_s(task)
        if paced.is_whole(task, np.asarray(outputs[1], np.int16)):
            keep(journal, task, keys, outputs)
        elif end_s is not None:
            lengths[task.key] = end_s  # its header told another
            keep_graded(task, keys, outputs, ended=False)
        else:
            keep_graded(task, keys, outputs, ended=True)
        delivery.write_some()

    def leave(task: FileTask, keys: list[Key], outputs: Arrays) -> None:
        keys, outputs = bundle.apart(keys, outputs)
        rows.delivered += len(keys)
        keep_graded(task, keys, outputs, ended=False)

    def keep_graded(task: FileTask, keys: list[Key], outputs: Arrays, *, ended: bool) -> None:
        scores, rungs = outputs[0], np.asarray(outputs[1], np.int16)
        there = rungs >= 0
        if there.any():
            start_s, end_s = bounds_s([key for key, is_there in zip(keys, there, strict=True) if is_there])
            journal.keep(
                task.key,
                start_s=start_s,
                end_s=end_s,
                scores=scores[there],
                rungs=rungs[there],
                ended=ended and bool(there.all()),
            )

    def fail(task: FileTask, error: AlulaError) -> None:
        journal.keep_failure(task.key, str(task), error)
        delivery.write_some()

    job = run_job(
        _long_ones_first(backlog.missing(), guesses, threads=bundle.threads),
        prepare=paced.prepare,
        infer=paced.infer,
        emit=emit,
        fail=fail,
        leave=leave,
        settings=bundle.settings,
        cpu_budget=bundle.threads,
        progress=rows.told(progress),
        total_tasks=missing,
        clock=clock,
        ordered=False,
        row_spec=None if spec is None else (*spec, ((), np.dtype(np.int16))),
        pace=pacer,
    )
    delivery.write_rest()
    return rows.summed_up(job), DeadlineReport(
        allowed_s=deadline.allowed_s,
        left_s=deadline.at_s - clock(),
        rows=late.rows_by_rung(),
        prior=tuple(sorted({float(deadline.prior.min()), float(deadline.prior.max())})),
        steps=pacer.steps(since_s=deadline.at_s - deadline.allowed_s),
        unfinished=str(listed.path) if listed.lines else None,
        guessed_files=late.guessed_files,
    )


class _RowCount:
    """Counts rows of the result, where the job counts what stands for several. Belongs to one thread.

    Attributes:
        delivered: rows so far.
    """

    def __init__(self, scorer: Bundle | Ensemble) -> None:
        self.delivered = 0
        self._joint_rows = scorer.joint_rows

    def told(self, progress: Callable[[Progress], None] | None) -> Callable[[Progress], None] | None:
        """Return what reports progress in rows; of files that are under way, in as many as there may be."""
        if progress is None or self._joint_rows == 1:
            return progress

        def in_rows(given: Progress) -> None:
            progress(msgspec.structs.replace(given, samples=given.samples * self._joint_rows))

        return in_rows

    def summed_up(self, job: JobSummary) -> JobSummary:
        """Return the summary of a job in rows of the result."""
        return msgspec.structs.replace(
            job,
            samples=self.delivered,
            samples_per_s=self.delivered / job.wall_s if job.wall_s > 0 else 0.0,
            peak_rows=job.peak_rows * self._joint_rows,
        )


def _count(spans: Sequence[Key] | None) -> int | None:
    return None if spans is None else len(spans)


def _rows_of(kept: Sequence[int], expected: Sequence[int | None]) -> float:
    """Return about how many rows a table has.

    Args:
        kept: rows of the files that were done before.
        expected: those of the others; None where a header does not tell, which counts as the mean.
    """
    known = [count for count in expected if count is not None] or list(kept) or [1]
    mean = sum(known) / len(known)
    return sum(kept) + sum(mean if count is None else count for count in expected)


def _long_ones_first(
    tasks: Iterable[FileTask], rows: Mapping[FileKey, int | None], *, threads: int
) -> list[FileTask]:
    """Return the tasks in order, those first that are so long that one thread would end with them alone."""
    given = list(tasks)
    most = sum(count or 0 for count in rows.values()) / (4 * threads)
    return sorted(given, key=lambda task: (rows.get(task.key) or 0) <= most)


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


def _recordings(
    description: InputDescription, files: Sequence[Path], *, duration_s: Callable[[str], float | None]
) -> Recordings | None:
    if not isinstance(description, AudioInput):
        return None
    mel = description.mel
    high_hz = None if mel is None else mel.f_max_hz
    return Recordings(
        root=Path(os.path.commonpath([os.path.abspath(path.parent) for path in files])),  # noqa: PTH100
        low_hz=0.0 if mel is None else mel.f_min_hz,
        high_hz=description.sample_rate_hz / 2 if high_hz is None else high_hz,
        duration_s=duration_s,
    )


def _deadline_of(
    bundle: Bundle | Ensemble,
    deadline_s: float,
    *,
    prior: float | Mapping[str, float] | None,
    start_s: float,
    kind: Kind,
    asked: SampleSubmission | None,
    format: str | None,  # noqa: A002 - as in `predict`
    clock: Callable[[], float],
) -> Deadline:
    """Return what a run is told of its deadline; see `predict`."""
    if not 0 < deadline_s < math.inf:
        raise UsageError(f"The deadline got {deadline_s} s; expected a number of seconds above 0.")
    deadline = Deadline(
        at_s=start_s + deadline_s,
        allowed_s=deadline_s,
        kind=kind,
        prior=prior_of(
            prior,
            labels=bundle.labels,
            shape=bundle.row_shape,
            declared=bundle.manifest.prior if isinstance(bundle, Ensemble) else None,
        ),
        asked_s={} if asked is None else asked.ends_s(),
        threads=bundle.threads,
        clock=clock,
    )
    if format == "birdclef" and not ((deadline.prior >= 0) & (deadline.prior <= 1)).all():
        raise UsageError("The prior of a submission holds a score outside 0 to 1; expected none.")
    return deadline


def _files_of(
    everything: list[Path], shard: Shard | None, *, kind: Kind, threads: int, deadline: Deadline | None
) -> tuple[list[Path], dict[Path, float | None]]:
    """Return the files of a shard, and how long recordings are by the headers that were read to tell."""
    if shard is None:
        return everything, {}
    if kind != "audio":
        return shard_of(everything, shard), {}
    over = _never if deadline is None else deadline.over_for_headers(share=1.0)
    found = read_headers(everything, threads=threads, over=over)
    if len(found) < len(everything) and over():
        raise JobError(
            f"The time was over when {len(found)} of {len(everything)} headers were read; expected all, as "
            "they say which files a shard has. Give more time, or folders with fewer files and no shard."
        )
    # What kept a header from being read, such as a missing library, says so here.
    lengths_s = [found[k] if k in found else duration_s(path) for k, path in enumerate(everything)]
    return shard_of(everything, shard, weights=lengths_s), dict(zip(everything, lengths_s, strict=True))


def _never() -> bool:
    return False


def _part(
    sample: SampleSubmission | None, files: Sequence[Path], everything: Sequence[Path], shard: Shard | None
) -> SampleSubmission | None:
    """Return what a sample submission asks of the files of a shard."""
    if sample is None or shard is None:
        return sample
    here = set(files)
    return sample.part(
        {path.stem for path in files},
        others={path.stem for path in everything if path not in here},
        last=shard.index == shard.count,
    )


def _drafts_of(path: Path, journal: Path) -> Path | None:
    """Return where a file is until it is whole: in the journal, unless that may be on another disk."""
    return journal if path.resolve().parent == journal.parent else None


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
