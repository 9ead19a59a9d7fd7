"""Runs a bundle over files: decode, features, model and tables, under one thread budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription
from alula.data import Kind, find_inputs
from alula.engines import Arrays
from alula.errors import AlulaError, UsageError
from alula.pipeline import ErrorReport, JobSummary, Progress, Row, run_job, sink_for
from alula.workflows.ensembling import Ensemble
from alula.workflows.running import Bundle, Key

__all__ = ["PredictionReport", "default_error_report", "kind_of_input", "predict", "run_over_files"]


class PredictionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder run did.

    Attributes:
        output: the table.
        errors: the error report, or None when every file went well.
        recipe: what ran.
        job: files, samples, times; `job.samples_per_s` covers decode, features and model, from the first
            file read to the last row written, without loading the bundle.
        promised_per_s: what the search measured for the same way on its data, or None.
    """

    output: str
    errors: str | None
    recipe: str
    job: JobSummary
    promised_per_s: float | None


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


def default_error_report(output: Path) -> Path:
    """Return where the error report goes when nothing was said: `errors.csv` beside the output."""
    return output.with_name("errors.csv")


def predict(
    bundle: Bundle | Ensemble,
    inputs: Sequence[str | Path],
    *,
    output: str | Path,
    format: str | None = None,  # noqa: A002 - the name of the option
    errors: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> PredictionReport:
    """Run a bundle over folders, files and globs, and write one table.

    A file that cannot be read costs one line in the error report; the others finish. Both files are
    written atomically: either whole or not at all.

    Args:
        bundle: from `alula.load`, of one model or an ensemble.
        inputs: folders (searched through), files, or globs.
        output: the table, `.csv` or `.parquet`.
        format: `csv`, `parquet` or `birdclef`; None takes it from the suffix.
        errors: the error report; None puts `errors.csv` beside the output.
        progress: called a few times a second.

    Raises:
        DataError: nothing matches.
        UsageError: unknown format, or one that does not fit the bundle.
        JobError: the output cannot be written.
        EngineError: the engine failed; no table is written.
    """
    if isinstance(bundle, Bundle) and len(bundle.manifest.signature.inputs) > 1:
        raise UsageError(
            f"{bundle.path.name} takes {len(bundle.manifest.signature.inputs)} inputs, and a file gives one. "
            "Call it from Python: `alula.load(path)(x1, x2)`."
        )
    kind = kind_of_input(bundle.description)
    files = find_inputs(inputs, kind=kind)
    target = Path(output)
    report_path = default_error_report(target) if errors is None else Path(errors)
    if report_path.absolute() == target.absolute():
        raise UsageError(f"The output and the error report are both {target}; give them two names.")
    sink = sink_for(target, format=format, labels=bundle.labels, kind=kind)
    with sink, ErrorReport(report_path) as report:

        def emit(path: Path, keys: list[Key], outputs: Arrays) -> None:
            sink.write([Row(str(path), start_s, end_s) for start_s, end_s in keys], outputs[0])

        def fail(path: Path, error: AlulaError) -> None:
            report.add(str(path), error)

        job = run_over_files(bundle, files, emit=emit, fail=fail, progress=progress)
    folder = bundle.manifest.folder if isinstance(bundle, Bundle) else None
    return PredictionReport(
        output=str(target),
        errors=str(report_path) if report.count else None,
        recipe=bundle.recipe,
        job=job,
        promised_per_s=None if folder is None else folder.samples_per_s,
    )


def run_over_files(
    bundle: Bundle | Ensemble,
    files: Sequence[Path],
    *,
    emit: Callable[[Path, list[Key], Arrays], None],
    fail: Callable[[Path, AlulaError], None],
    progress: Callable[[Progress], None] | None = None,
) -> JobSummary:
    """Send files through a bundle; see `alula.pipeline.run_job` for `emit`, `fail` and what is raised.

    An ensemble whose blend needs the whole job emits nothing before its last file is computed.
    """
    held: list[tuple[Path, list[Key], Arrays]] = []

    def hold(path: Path, keys: list[Key], outputs: Arrays) -> None:
        held.append((path, keys, outputs))

    def emit_finished(path: Path, keys: list[Key], outputs: Arrays) -> None:
        emit(path, *bundle.finished(keys, outputs))

    blend_all = bundle.blend_all if isinstance(bundle, Ensemble) and bundle.whole_job else None
    job = run_job(
        files,
        prepare=bundle.rows,
        infer=bundle.scores,
        emit=emit_finished if blend_all is None else hold,
        fail=fail,
        settings=bundle.settings,
        cpu_budget=bundle.threads,
        progress=progress,
        total_tasks=len(files),
    )
    if blend_all is not None:
        blended = blend_all([outputs[0] for _, _, outputs in held])
        for (path, keys, _), scores in zip(held, blended, strict=True):
            emit_finished(path, keys, (scores,))
    return job
