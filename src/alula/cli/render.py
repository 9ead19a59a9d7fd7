"""Draws results for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from alula.bundle import JOURNAL_NAME, EnsembleManifest, Manifest, MemberRecord, read_measurements
from alula.core import Accepted, Accuracy, Failed, Outcome, Ratio, Recipe, Rejected, Share
from alula.demo.run import DemoResult
from alula.hardware import differences, fingerprint
from alula.planning import plan_rows
from alula.tuning import NO_TIME, read_journal, standing
from alula.workflows import (
    PRIOR,
    BenchReport,
    DeadlineReport,
    Diagnosis,
    PlanReport,
    PredictionReport,
    SurveyReport,
    SurveyRow,
)
from alula.workflows.durations import in_words

__all__ = [
    "draw_bench",
    "draw_demo",
    "draw_diagnosis",
    "draw_ensemble",
    "draw_manifest",
    "draw_plan",
    "draw_prediction",
    "draw_search",
    "draw_survey",
]

_ROUGHLY = "passed"  # and so many samples
_OUTDONE = "they cannot win by what is known of others; `alula report` says why"


def _plain_table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        # The first column is what people look for: never cut, never folded.
        table.add_column(
            column,
            justify="right" if index in set(right) else "left",
            overflow="fold",
            no_wrap=index == 0,
        )
    return table


def _in_words(accuracy: Accuracy) -> str:
    """Return the verdict as one sentence with its evidence."""
    worse = "worse" if accuracy.drop > 0 else "better" if accuracy.drop < 0 else "the same"
    by = "" if accuracy.drop == 0 else f" by {abs(accuracy.drop):.4f}"
    return (
        f"{accuracy.metric} {accuracy.chosen:.4f} against {accuracy.baseline:.4f} before: {worse}{by} "
        f"(drop {accuracy.drop:+.4f}, 95 % interval [{accuracy.drop_low:+.4f}, {accuracy.drop_high:+.4f}], "
        f"limit {accuracy.limit:g}, {accuracy.n} samples)"
    )


def draw_search(console: Console, bundle: Path, manifest: Manifest) -> None:
    """Draw what a search tried and what won."""
    outcomes = list(read_journal(bundle / JOURNAL_NAME))
    measurements = read_measurements(bundle)
    table = _plain_table(
        *("recipe", "best settings", "samples/s", "x baseline", "of peak", "drop", "verdict"),
        right=(2, 3, 5),
    )
    base = manifest.baseline
    table.add_row(
        f"{base.recipe} (as it was)",
        str(base.settings),
        f"{base.throughput_per_s:.1f}",
        "1.0",
        _of_peak(base.of_peak or Share()),
        "",
        "baseline",
    )
    untried: dict[str, list[str]] = {}
    losses: list[tuple[str, str]] = []
    luckier = roughly = False

    def per_s_of(row: Outcome) -> float:
        if not isinstance(row, Accepted):
            return 0.0
        # The chosen one was measured again beside the baseline; the others stand as screened.
        is_chosen = row.candidate.recipe.name == manifest.chosen.recipe
        return manifest.chosen.throughput_per_s if is_chosen else row.throughput.per_s

    for row in sorted(_best_by_recipe(outcomes), key=per_s_of, reverse=True):
        if isinstance(row, Rejected) and not row.tried:
            why = NO_TIME if row.reason.startswith(NO_TIME) else _OUTDONE
            untried.setdefault(why, []).append(row.recipe.name)
        elif isinstance(row, Accepted):
            recipe = row.candidate.recipe.name
            chosen = recipe == manifest.chosen.recipe
            settings = manifest.chosen.settings if chosen else row.candidate.settings
            per_s = per_s_of(row)
            luckier = luckier or per_s > manifest.chosen.throughput_per_s
            rough = not chosen and row.accuracy.n < manifest.accuracy.n
            roughly = roughly or rough
            table.add_row(
                recipe,
                str(settings),
                f"{per_s:.1f}",
                f"{per_s / base.throughput_per_s:.1f}",
                _of_peak(measurements.of_peak(row.candidate.recipe, per_s)),
                f"{(manifest.accuracy if chosen else row.accuracy).drop:+.4f}",
                "chosen" if chosen else f"{_ROUGHLY} {row.accuracy.n}" if rough else "accepted",
            )
        else:
            losses.append((row.recipe.name, _loss(row)))
    console.print(table)
    if luckier:
        console.print(
            "The chosen one won side by side; the others' figures are from short looks in other minutes.",
            style="dim",
        )
    if roughly:
        console.print(
            f"`{_ROUGHLY} N`: a rough check, on N samples of {manifest.accuracy.n}; "
            "what may win is judged on all.",
            style="dim",
            highlight=False,
        )
    if losses:
        console.print()
        _draw_pairs(console, losses)
        console.print()
    for reason, names in untried.items():
        console.print(f"not tried ({reason}): {_short(names)}", style="dim", highlight=False)
    console.print()
    draw_manifest(console, bundle, manifest)


def _of_peak(share: Share) -> str:
    """Return a share in few words, for a column that is named after it.

    >>> _of_peak(Share(share=0.62, of=("int8", "fp32"))), _of_peak(Share(reason="not measured"))
    ('62 % INT8+FP32', 'unknown')
    """
    return str(share).replace(" of ", " ").removesuffix(" peak")


def _loss(outcome: Failed | Rejected) -> str:
    return f"failed: {outcome.error}" if isinstance(outcome, Failed) else f"rejected: {outcome.reason}"


def _best_by_recipe(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the fastest settings of each recipe, with its verdict on the most samples, and the losses."""
    best: dict[Recipe, Accepted] = {}
    for accepted in standing(outcomes):
        recipe = accepted.candidate.recipe
        known = best.setdefault(recipe, accepted)
        best[recipe] = msgspec.structs.replace(
            max(accepted, known, key=lambda one: one.throughput.per_s),
            accuracy=max(accepted.accuracy, known.accuracy, key=lambda one: one.n),
        )
    losses = {one.recipe: one for one in outcomes if not isinstance(one, Accepted) and one.recipe not in best}
    return [*best.values(), *losses.values()]


def draw_manifest(console: Console, bundle: Path, manifest: Manifest) -> None:
    """Draw what is inside a bundle, what was measured, and why it was chosen."""
    chosen, baseline = manifest.chosen, manifest.baseline
    size = sum(record.bytes for record in manifest.files.values())
    rows = [
        ("bundle", f"{bundle} ({size / 2**20:.1f} MiB, {len(manifest.files) + 1} files)"),
        ("model", manifest.model),
        ("inputs", "; ".join(map(str, manifest.signature.inputs))),
        ("outputs", "; ".join(map(str, manifest.signature.outputs))),
        ("labels", "none" if manifest.labels is None else _short(manifest.labels)),
        ("chosen", f"{chosen.recipe}, {chosen.settings}"),
        ("fallbacks", ", ".join(item.recipe for item in manifest.fallbacks) or "none"),
        (
            "speed",
            f"{chosen.throughput_per_s:.1f} samples/s against {baseline.throughput_per_s:.1f} before "
            f"({baseline.recipe}, {baseline.settings})",
        ),
        (
            "speed-up",
            f"{manifest.speedup} over {len(chosen.rounds_per_s)} interleaved rounds"
            + ("" if manifest.speedup.certain else ": no difference"),
        ),
        ("of peak", _peak_in_words(manifest)),
        ("accuracy", _in_words(manifest.accuracy)),
    ]
    measurements = read_measurements(bundle)
    if measurements.latency is not None:
        rows.append(("latency", f"{measurements.latency} (single-stream)"))
    if measurements.server is not None:
        rows.append(("rate", f"{measurements.server} (server)"))
    if manifest.folder is not None:
        rows.append(
            ("folder run", f"{manifest.folder.samples_per_s:.1f} samples/s with decoding and features")
        )
    rows += [
        ("data", f"{manifest.data}: {len(manifest.calibration)} for calibration, the rest for the verdict"),
        ("machine", f"{manifest.machine.model_name}, {manifest.machine.thread_budget} threads"),
        *(("differs here", text) for text in differences(manifest.machine, fingerprint())),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    rows += [("rewritten", note) for note in manifest.notes]
    rows += [("warning", text) for text in manifest.warnings]
    _draw_pairs(console, rows)


def _peak_in_words(manifest: Manifest) -> str:
    """Return which share of the machine's peak the chosen recipe reached, and the model before."""
    chosen, before = manifest.chosen.of_peak, manifest.baseline.of_peak
    if chosen is None or before is None:
        return "unknown: the bundle was made by a release that did not ask"
    return chosen.in_full if before.share is None else f"{chosen.in_full}; {before} before"


def _draw_pairs(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table, highlight=False, markup=False)


def draw_ensemble(console: Console, bundle: Path, manifest: EnsembleManifest) -> None:
    """Draw what an ensemble is made of and how its scores become one."""
    size = sum(record.bytes for record in manifest.files.values())
    _draw_pairs(
        console,
        [
            ("ensemble", f"{bundle} ({size / 2**20:.1f} MiB, {len(manifest.files) + 1} files)"),
            *(("member", _member(member)) for member in manifest.members),
            ("blend", _fields(str(manifest.blend.__struct_config__.tag), manifest.blend)),
            ("labels", "none" if manifest.labels is None else _short(manifest.labels)),
            *(("step", _fields(str(step.__struct_config__.tag), step)) for step in manifest.steps),
            *(("rung", _fields(" + ".join(rung.members), rung)) for rung in manifest.ladder),
        ],
    )


def _member(member: MemberRecord) -> str:
    said = _fields(member.name, member.view, skipped=() if member.view.rows > 1 else ("rows",))
    if (verdict := member.whole_files) is None:
        return said
    accuracy = verdict.accuracy
    return (
        f"{said}; over stretches, {verdict.computed_share:.0%} of the columns computed: `{accuracy.metric}` "
        f"{accuracy.chosen:.4g} with window by window on {accuracy.n} windows, a drop of {accuracy.drop:.2g} "
        f"with {accuracy.limit:g} allowed" + ("; its gates see the stretch" if verdict.gated else "")
    )


def _fields(name: str, value: msgspec.Struct, *, skipped: Sequence[str] = ()) -> str:
    """Return a name and what a value says, without what is nothing and without some fields.

    >>> from alula.core import TopScaling
    >>> _fields("top", TopScaling(k=3))
    'top, k 3'
    """
    said = [name]
    for field in msgspec.structs.fields(value):
        given = getattr(value, field.name)
        if given not in (None, {}) and field.name not in skipped:
            words = msgspec.json.encode(given).decode() if not isinstance(given, str) else given
            said.append(f"{field.name} {words}")
    return ", ".join(said)


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{len(names)}: {shown}{', …' if len(names) > 6 else ''}"


def draw_plan(console: Console, report: PlanReport) -> None:
    """Draw what a plan takes and leaves out, what its stages cost, and what it was made from."""
    made, work = report.plan, report.workload
    heading, *rows = plan_rows(made)
    table = _plain_table(*heading, right=(1,))
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
    console.print()
    costs = _plain_table("stage", "unit", "core-ms", "+-", "core-s in the job", right=(2, 3, 4))
    for stage in report.stages:
        costs.add_row(
            stage.name,
            stage.per,
            f"{1e3 * stage.core_s:.3g}",
            f"{stage.spread:.0%}",
            f"{stage.job_core_s:.3g}" if stage.job_core_s else "not needed",
        )
    console.print(costs, highlight=False, markup=False)
    console.print()
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in made.weights.items())
    left_s = report.deadline_s - made.time.expected_s
    pairs = [
        ("members", weights),
        ("overlap", made.overlap),
        (
            "score",
            f"{report.metric} {made.score:.4f} on {report.rows} rows of {report.recordings} recordings",
        ),
        (
            "time",
            f"{in_words(made.time.expected_s)}, with 90 % between {in_words(made.time.low_s)} and "
            f"{in_words(made.time.high_s)}; {in_words(left_s)} before the deadline of "
            f"{in_words(report.deadline_s)}",
        ),
        ("workload", f"{work.files} files, {work.rows} rows"),
        ("machine", f"{report.machine.cpus:g} CPUs" + _other_machine(report)),
        (
            "overhead",
            f"{report.overhead - 1:.1%} of a small job over the sum of its stages; the machine's speed "
            f"varies by {report.spread:.0%}",
        ),
        ("judged by", report.judged_on),
        *(("short of time", f"{rung.name}: {rung.score:.4f}") for rung in made.ladder[1:]),
    ]
    if report.output is not None:
        pairs.append(("ensemble", report.output))
    pairs += [("note", note) for note in report.notes]
    _draw_pairs(console, pairs)


def _other_machine(report: PlanReport) -> str:
    machine = report.machine
    return "" if machine.measured else f" of {machine.speed:g} times the speed of one here: an estimate"


def draw_prediction(console: Console, report: PredictionReport) -> None:
    """Draw what a folder run did."""
    job = report.job
    rows = [
        ("output", report.output),
        (
            "done",
            f"{job.tasks_done} files, {job.samples} samples in {job.wall_s:.1f} s ({report.recipe})"
            + _resumed(report),
        ),
        ("speed", f"{job.samples_per_s:.1f} samples/s with decoding and features" + _against(report)),
        ("work", f"decoding and features {job.prepare_cpu_s:.1f} CPU s, model {job.model_s:.1f} s"),
    ]
    if report.errors is not None:
        rows.append(("failed", f"{report.failed} files; {report.errors} says which and why"))
    if report.deadline is not None:
        rows.extend(_deadline_rows(report.deadline))
    rows.extend(("note", note) for note in report.notes)
    _draw_pairs(console, rows)


def _deadline_rows(deadline: DeadlineReport) -> Iterator[tuple[str, str]]:
    """Yield what a deadline did, in pairs of a name and words."""
    left = f"{deadline.left_s:.0f} s before" if deadline.left_s >= 0 else f"{-deadline.left_s:.0f} s after"
    yield "deadline", f"done {left} it; {deadline.allowed_s:.0f} s were allowed"
    if deadline.unfinished is None:
        return
    for name, count in deadline.rows.items():
        scores = " to ".join(f"{score:g}" for score in deadline.prior)
        yield "rows", f"{count} with {name}" + (f": scores of {scores}" if name == PRIOR else "")
    yield (
        "unfinished",
        f"{deadline.unfinished} lists the rows that were not computed in full; the same command with more "
        "time computes them again",
    )
    if deadline.guessed_files:
        yield (
            "guessed",
            f"the headers of {deadline.guessed_files} files that there was no time for do not tell their "
            "length; how many rows they have is a guess",
        )


def _resumed(report: PredictionReport) -> str:
    if not report.resumed:
        return ""
    return f"; {report.resumed} of {report.files} files were finished by a run before"


def _against(report: PredictionReport) -> str:
    if report.promised_per_s is None:
        return ""
    return f"; the search measured {report.promised_per_s:.1f}"


def draw_demo(console: Console, result: DemoResult) -> None:
    """Draw the whole of the demo: what was tried, what won, what came out, where it is."""
    draw_search(console, Path(result.bundle), result.manifest)
    console.print()
    draw_prediction(console, result.prediction)
    folder = result.folder
    _draw_pairs(
        console,
        [
            (
                "score",
                f"macro AUC {result.macro_auc:.3f} of {result.windows} windows against the known songs",
            ),
            (
                "files",
                f"{folder}/birds.alula, {folder}/predictions.csv, {folder}/soundscapes, {folder}/clips",
            ),
            ("next", f"alula inspect {result.bundle}"),
        ],
    )


def draw_bench(console: Console, report: BenchReport) -> None:
    """Draw the speeds of bundles."""
    table = _plain_table(
        *("what", "recipe", "settings", "samples/s", "of peak", "when tuned", "change", "x first"),
        right=(3, 5, 6),
    )
    for row in report.rows:
        table.add_row(
            row.name,
            row.recipe,
            str(row.settings),
            f"{row.throughput.per_s:.1f}",
            _of_peak(row.of_peak),
            "" if row.tuned_per_s is None else f"{row.tuned_per_s:.1f}",
            "" if row.change is None else f"{row.change:+.1%}",
            "" if row.ratio is None else str(row.ratio) + ("" if row.ratio.certain else ", no difference"),
        )
    console.print(table, highlight=False, markup=False)
    for reason in dict.fromkeys(row.of_peak.reason for row in report.rows if row.of_peak.reason):
        console.print(f"of peak: unknown where {reason}", highlight=False, markup=False)
    for row in report.rows:
        if row.latency is not None:
            console.print(f"{row.name}: {row.latency}", highlight=False, markup=False)
        if row.server is not None:
            console.print(f"{row.name}: {row.server}", highlight=False, markup=False)
    doubts = [text for row in report.rows for text in (row.latency.warnings if row.latency else ())]
    doubts += [text for row in report.rows for text in (row.server.warnings if row.server else ())]
    notes = [*report.warnings, *(text for row in report.rows for text in row.throughput.warnings), *doubts]
    for text in dict.fromkeys(notes):
        console.print(f"warning: {text}", highlight=False, markup=False)


def _speedup(ratio: Ratio) -> str:
    """Return a speed-up in few words, for a column.

    >>> _speedup(Ratio(2.31, 2.0, 2.6)), _speedup(Ratio(1.02, 0.9, 1.2))
    ('2.3', '1.0 (no difference)')
    """
    return f"{ratio.median:.1f}" + ("" if ratio.certain else " (no difference)")


def draw_survey(console: Console, report: SurveyReport) -> None:
    """Draw models side by side, the fastest first, then those that failed."""
    done = sorted(
        (row for row in report.rows if row.throughput is not None),
        key=lambda row: -(row.throughput.per_s if row.throughput else 0.0),
    )
    columns: dict[str, Callable[[SurveyRow], str]] = {
        "M parameters": lambda row: _scaled(row.parameters, 1e6),
        "GMAC": lambda row: _scaled(row.macs, 1e9),
        "samples/s": lambda row: "" if row.throughput is None else f"{row.throughput.per_s:.1f}",
        "x as it is": lambda row: "" if row.speedup is None else _speedup(row.speedup),
        "of peak": lambda row: "" if row.of_peak is None else _of_peak(row.of_peak),
        "score": lambda row: "" if row.score is None else f"{row.score:g}",
    }
    shown = {name: text for name, text in columns.items() if any(map(text, done)) or name == "samples/s"}
    table = _plain_table("model", *shown, "front", "recipe and settings", right=range(1, len(shown) + 1))
    for row in done:
        figures = [text(row) for text in shown.values()]
        front = "yes" if row.model in report.front else ""
        table.add_row(row.model, *figures, front, f"{row.recipe}, {row.settings}{_race(row)}")
    if done:
        console.print(table, highlight=False, markup=False)
        console.print()
    for row in report.rows:
        if row.error is not None:
            console.print(f"failed: {row.model}: {row.error}", highlight=False, markup=False, soft_wrap=True)
    more = {"score": "has a higher score", "macs": "does more work", "parameters": "has more parameters"}
    if report.front:
        console.print(f"front: no other is both faster and {more[report.against]}", highlight=False)
    if report.interrupted:
        console.print("interrupted: the models after these were not measured", highlight=False)
    for text in report.warnings:
        console.print(f"warning: {text}", highlight=False, markup=False)


def _scaled(value: int | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.3g}"


def _race(row: SurveyRow) -> str:
    """Return how much of the field a race saw, where that was not all."""
    if row.recipes_measured >= row.recipes_offered:
        return ""
    return f" ({row.recipes_measured} of {row.recipes_offered} recipes measured)"


def draw_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Draw what this machine can do."""
    cpu, limits = diagnosis.cpu, diagnosis.limits
    quota = "none" if limits.quota is None else f"{limits.quota:g} CPUs ({limits.source})"
    rows = [
        ("CPU", f"{cpu.model_name} ({cpu.vendor}, {cpu.arch})"),
        ("cores", f"{cpu.physical_cores} physical, {cpu.logical_cores} logical"),
        ("ISA", ", ".join(cpu.isa)),
        ("caches", f"L2 {cpu.l2_bytes / 2**20:g} MiB, L3 {cpu.l3_bytes / 2**20:g} MiB"),
        ("affinity", f"{limits.affinity} CPUs"),
        ("CPU quota", quota),
        ("threads", f"{diagnosis.threads}: what every run uses unless told otherwise"),
        (
            "memory",
            f"{diagnosis.memory.total_bytes / 2**30:.1f} GiB, {diagnosis.memory.available_bytes / 2**30:.1f} "
            f"available ({diagnosis.memory.source})",
        ),
    ]
    rows += [
        (part.name, part.version or f"not installed: {part.install}")
        for part in (*diagnosis.engines, *diagnosis.quantizers)
    ]
    if diagnosis.torch is not None:
        build = diagnosis.torch
        parts = {"oneDNN": build.onednn, "MKL": build.mkl, "OpenMP": build.openmp}
        uses = [name for name, has in parts.items() if has]
        rows.append(
            (
                "torch build",
                f"{build.cpu_capability}, {', '.join(uses)}; quantized: {', '.join(build.quantized_engines)}",
            )
        )
    if diagnosis.roofline is not None:
        roof = diagnosis.roofline
        peaks = {"FP32": roof.fp32_gmacs_per_s, "BF16": roof.bf16_gmacs_per_s, "INT8": roof.int8_gmacs_per_s}
        shown = ", ".join(f"{name} {peak:,.0f}" for name, peak in peaks.items() if peak is not None)
        rows.append(("peak products", f"{shown} GMAC/s with {roof.threads} threads"))
        if roof.bandwidth_gb_per_s is not None:
            rows.append(("memory speed", f"{roof.bandwidth_gb_per_s:.1f} GB/s"))
        rows.append(("measured by", roof.method))
    _draw_pairs(console, rows)
    console.print()
    for finding in diagnosis.findings:
        console.print(f"- {finding}", highlight=False, markup=False)
