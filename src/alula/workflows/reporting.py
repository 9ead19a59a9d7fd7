"""From a bundle to the content of its report, and to the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from alula.bundle import Deployed, Manifest, Measurements, read_manifest, read_measurements, verify
from alula.core import ARTIFACT_FILES, Accepted, Candidate, Outcome, Recipe, Throughput, Work
from alula.errors import BundleError, EngineUnavailableError, ModelError
from alula.graphs import Products, products_of, read_onnx
from alula.pipeline import AtomicFile
from alula.quantization import work_of
from alula.report import Finalist, FolderSpeed, ReportContent, Roofline, Stage, render_page
from alula.tuning import read_journal

__all__ = ["products_in", "report_content", "write_report"]

_KNOBS = {
    "pin": "whether each thread is bound to a core of its own",
    "spin": "whether threads that wait for work keep their core busy",
    "graph": "how far the graph is optimized when the model is loaded",
    "inter_op": "threads between operators, which compute nothing since ONNX Runtime 1.14",
    "onednn_graph": "whether oneDNN fuses operations",
}


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
    products = products_in(bundle, manifest)
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
        roofline=_roofline(measurements, manifest),
        peaks=measurements.roofline,
        work=_work(products, (manifest.baseline.recipe, manifest.chosen.recipe), outcomes),
        macs_per_sample=float(sum(one.macs for one in products)) if products else None,
        knob_meanings={name: _KNOBS[name] for name in manifest.chosen.settings.knobs if name in _KNOBS},
        facts=_facts(measurements, manifest),
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


def _facts(measurements: Measurements, manifest: Manifest) -> dict[str, str]:
    facts: dict[str, str] = {"scenario": measurements.scenario}
    if manifest.chosen.of_peak is None or manifest.chosen.of_peak.share is None:
        facts["of the machine's peak"] = "unknown"
    if measurements.disturbance:
        facts["disturbed during the search"] = "; ".join(measurements.disturbance)
    if measurements.latency is not None:
        latency = measurements.latency
        for one in (latency.p50, latency.p90, latency.p99):
            facts[f"latency of one sample, p{100 * one.q:g}"] = f"{1e3 * one.value_s:.4g} ms"
        facts["measured by"] = f"{latency.n:,} queries, {latency.seconds:.0f} s"
    if measurements.server is not None:
        rate = measurements.server
        facts["highest rate"] = f"{rate.per_s:.4g} queries/s"
        facts["at a p99 of"] = f"{1e3 * rate.p99_limit_s:.3g} ms at most"
        facts["measured by"] = f"{rate.queries:,} queries, {rate.seconds:.0f} s"
    others = [one for one in measurements.finalists[1:] if one.rate_per_s is not None]
    if others:
        facts["rates of others"] = "; ".join(f"{one.candidate} {one.rate_per_s:.4g}/s" for one in others)
    return facts


def products_in(bundle: Path, manifest: Manifest) -> tuple[Products, ...]:
    """Return the work of a bundle's model by kind and role of layers; none where nothing in it tells.

    What the search counted is in the bundle. One of before that is counted in its FP32 ONNX file, if it
    carries one.

    Raises:
        BundleError: its measurements are damaged.
    """
    stored = read_measurements(bundle).products
    if stored:
        return stored
    for deployed in (manifest.chosen, *manifest.fallbacks):
        path = bundle / deployed.artifact / ARTIFACT_FILES["onnx"]
        if deployed.recipe.endswith("/fp32") and path.is_file():
            try:
                return products_of(read_onnx(path))
            except (EngineUnavailableError, ModelError):  # running a bundle needs neither onnx nor counts
                return ()
    return ()


def _work(products: Sequence[Products], names: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, Work]:
    """Return the work of a sample by names of recipes, those given and those accepted, where it is known."""
    accepted = [one.candidate.recipe for one in outcomes if isinstance(one, Accepted)]
    recipes = dict.fromkeys((*map(Recipe.parse, names), *accepted))
    found = {recipe.name: work_of(products, recipe) for recipe in recipes}
    return {name: work for name, work in found.items() if work is not None}


def _roofline(measurements: Measurements, manifest: Manifest) -> Roofline | None:
    share = manifest.chosen.of_peak
    if share is None or share.share is None or measurements.roofline is None:
        return None
    peaks = measurements.roofline
    figures = ", ".join(
        f"{precision.upper()} {peak:,.0f} GMAC/s"
        for precision in share.of
        if (peak := peaks.gmacs_per_s(precision)) is not None
    )
    return Roofline(
        share=share.share,
        of=share.peak,
        explanation=f"The chosen recipe reached {share}: multiply-accumulates of a sample times samples a "
        f"second, over what this machine was measured to multiply at most with "
        f"{peaks.threads} threads ({figures}): {peaks.method}.",
    )
