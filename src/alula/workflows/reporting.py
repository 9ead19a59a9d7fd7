"""From a bundle to the content of its report, and to the page."""

from __future__ import annotations

import shlex
from pathlib import Path

from alula.bundle import Deployed, Manifest, Measurements, read_manifest, read_measurements, verify
from alula.core import ARTIFACT_FILES, Candidate, Outcome, Recipe, Throughput
from alula.errors import BundleError, EngineUnavailableError
from alula.graphs import read_onnx, total_macs
from alula.pipeline import AtomicFile
from alula.report import Finalist, FolderSpeed, ReportContent, Stage, render_page
from alula.tuning import read_journal

__all__ = ["report_content", "write_report"]


def write_report(path: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a bundle as one HTML page that needs no network, and return where.

    Args:
        path: the bundle.
        output: the page; None names it as the bundle, with `.html`, in the current folder.

    Raises:
        BundleError: the bundle is refused.
        JobError: the page cannot be written.
    """
    bundle = Path(path)
    target = Path(f"{bundle.name.removesuffix('.alula')}.html") if output is None else Path(output)
    page = render_page(report_content(bundle))
    file = AtomicFile(target)
    try:
        file.write(page.encode())
        file.commit()
    finally:
        file.discard()
    return target


def report_content(bundle: Path) -> ReportContent:
    """Return all that a report says of a bundle.

    Raises:
        BundleError: the bundle is refused.
    """
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    measurements = read_measurements(bundle)
    journal = bundle / "search.jsonl"
    outcomes: tuple[Outcome, ...] = tuple(read_journal(journal)) if journal.is_file() else ()
    return ReportContent(
        model=manifest.model,
        created=manifest.created,
        alula_version=manifest.alula_version,
        chosen=_candidate(bundle, manifest.chosen),
        chosen_throughput=_throughput(manifest.chosen),
        baseline=Candidate(Recipe.parse(manifest.baseline.recipe), manifest.baseline.settings),
        baseline_throughput=Throughput(
            per_s=manifest.baseline.throughput_per_s, rounds_per_s=manifest.baseline.rounds_per_s
        ),
        speedup=manifest.speedup,
        accuracy=manifest.accuracy,
        outcomes=outcomes,
        machine=manifest.machine,
        finalists=tuple(
            Finalist(candidate=one.candidate, throughput=one.throughput, speedup=one.speedup)
            for one in measurements.finalists
        ),
        folder=None
        if manifest.folder is None
        else FolderSpeed(
            samples_per_s=manifest.folder.samples_per_s,
            samples=manifest.folder.samples,
            files=manifest.folder.files,
        ),
        data=manifest.data,
        calibration_samples=len(manifest.calibration),
        fallbacks=tuple(one.recipe for one in manifest.fallbacks),
        versions=manifest.versions,
        notes=manifest.notes,
        warnings=manifest.warnings,
        stages=tuple(Stage(name=name, seconds=seconds) for name, seconds in measurements.stages_s.items()),
        macs_per_sample=_macs(bundle, manifest),
        facts=_facts(measurements),
        commands={
            "measure it again here": f"alula bench {shlex.quote(str(bundle))}",
            "see what is inside": f"alula inspect {shlex.quote(str(bundle))}",
        },
    )


def _candidate(bundle: Path, deployed: Deployed) -> Candidate:
    try:
        return Candidate(Recipe.parse(deployed.recipe), deployed.settings)
    except ValueError as error:
        raise BundleError(bundle, f"It names a recipe that this release does not know: {error}.") from error


def _throughput(deployed: Deployed) -> Throughput:
    return Throughput(per_s=deployed.throughput_per_s, rounds_per_s=deployed.rounds_per_s)


def _facts(measurements: Measurements) -> dict[str, str]:
    facts: dict[str, str] = {"scenario": measurements.scenario}
    if measurements.latency is not None:
        latency = measurements.latency
        facts["latency of one sample"] = f"{latency.p50}, {latency.p90}, {latency.p99}; {latency.n} queries"
    if measurements.server is not None:
        server = measurements.server
        facts["highest rate"] = (
            f"{server.per_s:.4g} queries/s with p99 under {1e3 * server.p99_limit_s:.3g} ms, a margin of "
            f"{server.margin:.0%} included"
        )
    return facts


def _macs(bundle: Path, manifest: Manifest) -> float | None:
    """Return the multiply-accumulates of one sample, if the bundle carries an FP32 ONNX file to count in."""
    for deployed in (manifest.chosen, *manifest.fallbacks):
        path = bundle / deployed.artifact / ARTIFACT_FILES["onnx"]
        if deployed.recipe.endswith("/fp32") and path.is_file():
            try:
                return float(total_macs(read_onnx(path)))
            except EngineUnavailableError:  # onnx reads the file; running a bundle does not need it
                return None
    return None
