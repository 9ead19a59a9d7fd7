"""A folder of long recordings before a deadline: Alula's ensembles against the straightforward way.

The workload is that of BirdCLEF 2023 at 1:20: ten recordings of ten minutes, 32 kHz, Ogg Vorbis, made of real
clips of birds and frogs over noise. Three ensembles of `examples/birdclef` go over it: `c1`, one network of
pipeline C; `a`, three networks; `b`, seven. They are trained by `examples/birdclef/train.py` for minutes
on other recordings of the same kind, unless `--untrained` is given: enough for scores that follow the sound.
How well each way tells the clips apart on the workload is in the table.

The straightforward way: `librosa.load` once per file, `librosa.feature.melspectrogram` and `power_to_db` for
each window and network, one ONNX Runtime session with default options per network, and
`ThreadPoolExecutor(4)` over the files. Ours: the ensemble that `examples/birdclef/make.py` makes, by
`alula.workflows.predict`.

Each way has a process of its own; they take turns, and their scores are compared before anything is timed.
Then each stage runs alone, on all cores. The bound is the sum of their core-seconds over the cores; a job of
the same stages cannot be faster.

    python benchmarks/deadline.py [--ensembles c1,a,b] [--recordings 10] [--minutes 10] [--rounds 6]

Recordings and bundles are kept in `benchmarks/deadline.work`, and found again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import output
import zoo
from alula.bundle import read_ensemble
from alula.data import open_audio, open_samples
from alula.hardware import describe_disturbance, take_snapshot, thread_budget
from alula.measure import Round, interleave, ratio, throughput
from alula.measure.statistics import MIN_ROUNDS
from alula.planning import Duration
from soundscapes import PROJECT, RATE_HZ, class_name, clips, recordings
from ways import Contender, Stages, Way, batched, core_seconds

EXAMPLE = PROJECT / "examples" / "birdclef"
WORK = Path(__file__).resolve().with_suffix(".work")
sys.path.insert(0, str(EXAMPLE))

import pipelines  # noqa: E402 - found in the example's folder

ENSEMBLES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "c1": ("c", ("efficientnet_b0",)),
    "a": ("a", None),
    "b": ("b", None),
}
"""Ensembles by name: the letter of a pipeline, and which of its networks; None for all."""

USUAL_WORKERS = 4
USUAL_BATCH = 24
FULL_JOB = (200, 4)
"""Recordings of ten minutes and vCPUs of the job that is extrapolated to."""
FULL_LIMIT_S = 6_600.0
"""Ten minutes less than the two hours of that job."""

MAX_DROP = 0.03
"""Of the cosine of a network's outputs, most of which belong to classes that it has never heard."""

# A minute each; no recording of one kind is among another.
TRAINING, TRAINING_SEED = 80, 20_000
VALIDATION, VALIDATION_SEED = 40, 30_000
MOST_CASCADE_DROP = 0.005

USUAL = "straightforward"
OURS = "Alula"
STRETCHES = "Alula, long stretches"
PLANNED = "Alula, planned"
CASCADE = "Alula, cascade"


class EnsembleWay:
    """An ensemble, as `alula predict` runs it."""

    def __init__(self, bundle: str, _name: str) -> None:
        import alula

        loaded = alula.load(bundle, trust_code=True)
        assert isinstance(loaded, alula.Ensemble)
        self._ensemble = loaded

    def run(self, files: list[Path], table: Path) -> int:
        from alula.workflows import predict

        return predict(self._ensemble, files, output=table).job.samples

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        found = []
        for prediction in self._ensemble.map(files):
            if prediction.scores is None:
                raise SystemExit(f"{prediction.path} failed: {prediction.error}")
            found.append(prediction.scores)
        return found

    def stages(self, files: list[Path]) -> Stages:
        from alula.features import SharedAudioFeatures

        def decode() -> Iterator[list[np.ndarray]]:
            for path in files:
                with open_audio(path) as audio:
                    yield list(audio.blocks())

        features = SharedAudioFeatures(self._ensemble.demands)
        decoded = list(decode())

        def transform() -> Iterator[tuple[np.ndarray, ...]]:
            return (row.arrays for blocks in decoded for row in features.rows(blocks, RATE_HZ))

        rows = list(transform())
        size = self._ensemble.settings.batch_size
        batches = [
            tuple(np.stack(column) for column in zip(*part, strict=True)) for part in batched(rows, size)
        ]

        def infer() -> None:
            for batch in batches:
                self._ensemble.scores(batch)

        cores = thread_budget()
        return Stages(
            # Nothing is held longer than in a job, where the same memory is used again and again.
            core_seconds(lambda: spent(decode()), copies=cores),
            core_seconds(lambda: spent(transform()), copies=cores),
            core_seconds(infer),
        )


class UsualWay:
    """librosa for every network, ONNX Runtime as it comes, and a pool of threads over the files."""

    def __init__(self, folder: str, name: str) -> None:
        import onnxruntime

        self._pipeline = chosen(name)
        self._sessions = {
            member.name: onnxruntime.InferenceSession(
                str(Path(folder) / member.name / "model.onnx"), providers=["CPUExecutionProvider"]
            )
            for member in self._pipeline.members
        }
        self._found: dict[Path, np.ndarray] = {}

    def run(self, files: list[Path], table: Path) -> int:
        with ThreadPoolExecutor(max_workers=USUAL_WORKERS) as pool:
            scores = list(pool.map(self._predict, files))
        self._found = dict(zip(files, scores, strict=True))
        with table.open("w", encoding="utf-8") as file:
            for path, rows in zip(files, scores, strict=True):
                np.savetxt(file, rows, fmt="%.6g", delimiter=",", header=path.name)
        return sum(map(len, scores))

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        return [self._found[path] if path in self._found else self._predict(path) for path in files]

    def stages(self, files: list[Path]) -> Stages:
        cores = thread_budget()
        decode = [0.0]
        features = [0.0]
        model = [0.0]
        # One file at a time: the windows of every network over all files would fill the memory.
        for path in files:
            wave = self._decode(path)
            decode[0] += core_seconds(partial(self._decode, path), copies=cores)
            for member in self._pipeline.members:
                windows = self._transform(wave, member)
                features[0] += core_seconds(partial(self._transform, wave, member), copies=cores)
                model[0] += core_seconds(partial(self._infer, windows, member))
        return Stages(decode[0], features[0], model[0])

    def _predict(self, path: Path) -> np.ndarray:
        wave = self._decode(path)
        outputs = {m.name: self._infer(self._transform(wave, m), m) for m in self._pipeline.members}
        return self._pipeline.joined(outputs)

    def _decode(self, path: Path) -> np.ndarray:
        from by_librosa import read_wave

        return read_wave(path, RATE_HZ)

    def _transform(self, wave: np.ndarray, member: pipelines.Member) -> np.ndarray:
        from by_librosa import windows

        return windows(wave, member, self._pipeline.lead_s(member))

    def _infer(self, windows: np.ndarray, member: pipelines.Member) -> np.ndarray:
        session = self._sessions[member.name]
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: part})[0] for part in batched(windows, USUAL_BATCH)])


def spent(items: Iterator[object]) -> None:
    """Take all items and keep none."""
    for _ in items:
        pass


def chosen(name: str) -> pipelines.Pipeline:
    """Return the pipeline of an ensemble with the networks that belong to it."""
    return pipelines.read_pipeline(*ENSEMBLES[name])


def trained(name: str) -> Path:
    """Return a folder with the weights of an ensemble's networks, trained unless they are there."""
    from train import train_pipeline

    letter, only = ENSEMBLES[name]
    recordings(WORK / "train", TRAINING, 60.0, seed=TRAINING_SEED)
    folder = WORK / f"weights-{letter}"
    train_pipeline(letter, WORK / "train" / "truth.csv", folder, only=only)
    return folder


def work_of(options: argparse.Namespace) -> Path:
    """Return where models and bundles are kept: random ones apart from trained ones."""
    return WORK / "untrained" if options.untrained else WORK


def exported(name: str, files: list[Path], weights: Path | None, folder: Path) -> Path:
    """Return a folder with an ONNX file per network of an ensemble, made unless they are there."""
    from alula.core import ARTIFACT_FILES
    from alula.export import export_module
    from alula.features import AudioFeatures
    from alula.sources import load_model, parse_source

    for member in chosen(name).members:
        target = folder / member.name
        if (target / ARTIFACT_FILES["onnx"]).is_file():
            continue
        with open_audio(files[0], end_s=30.0) as audio:
            windows = AudioFeatures(member.description()).windows(audio.blocks(), audio.rate_hz)
            sample = np.stack([window.samples for _, window in zip(range(3), windows, strict=False)])
        file = None if weights is None else weights / f"{member.name}.safetensors"
        source = parse_source(str(EXAMPLE / member.model), weights=file)
        module = load_model(source).module
        assert module is not None
        target.mkdir(parents=True, exist_ok=True)
        export_module(module, [sample], target="onnx", folder=target)
    return folder


def made(
    name: str, tuning: Path, weights: Path | None, options: argparse.Namespace, *, stretches: Path | None
) -> Path:
    """Return an ensemble, made of bundles that are kept from run to run.

    Args:
        name: of `ENSEMBLES`.
        tuning: folder of clips.
        weights: folder of those of the networks; None for random ones.
        options: of the command.
        stretches: folder of long recordings, to run networks with context over stretches; or None.
    """
    from make import make_pipeline

    how = "" if stretches is None else "-stretches"
    letter, only = ENSEMBLES[name]
    return make_pipeline(
        letter,
        tuning,
        work_of(options) / f"{name}-{'-'.join(options.precisions)}{how}.alula",
        weights=weights,
        budget=options.budget,
        precisions=options.precisions,
        engines=options.engines,
        only=only,
        whole_files=stretches,
        max_drop=MAX_DROP,
    )


class Planned(NamedTuple):
    """An ensemble of a plan's, what the plan says of it, and what all members cost together over alone."""

    path: Path
    foretold: Duration
    said: str
    overhead: float


def planned(name: str, ensemble: Path, folder: Path, *, limit_s: float, cascade: bool) -> Planned | None:
    """Return what `alula plan` makes of an ensemble's members; None if it offers no cascade.

    Args:
        name: of `ENSEMBLES`.
        ensemble: whose members there are to choose from.
        folder: of the recordings to go over.
        limit_s: deadline of the job.
        cascade: whether it should be one.
    """
    from make import blend_of, post_of

    from alula.workflows import plan

    letter, pipeline = ENSEMBLES[name][0], chosen(name)
    recordings(WORK / "validation", VALIDATION, 60.0, seed=VALIDATION_SEED)
    path = ensemble.with_name(f"{ensemble.stem}-{'cascade' if cascade else 'planned'}.alula")
    names = [member.name for member in pipeline.members]
    report = plan(
        [ensemble.with_name(f"{ensemble.name}.members") / f"{one}.alula" for one in names],
        workload=folder,
        deadline=limit_s,
        data=WORK / "validation" / "truth.csv",
        blend=blend_of(letter),
        post=post_of(letter, names),
        # Of the others nothing is known that a cascade could be judged by.
        labels=[class_name(index) for index in range(len(clips()))],
        max_drop=MOST_CASCADE_DROP,
        cascade=cascade,
        trust_code=True,
        output=path,
        replace=True,
        report=output.say,
    )
    offer = report.plan.cascade
    if not cascade:
        said = ", ".join(f"{count} x {one}" for one, count in report.plan.counts.items())
        said += f"; validated {report.metric} {report.plan.score:.4f}"
        return Planned(path, report.plan.time, said, report.overhead)
    if offer is None:
        return None
    judged = offer.judged
    said = (
        f"{judged.cascade.cheap} first, then {', '.join(offer.counts)} on {100 * judged.share:.0f} % of the "
        f"rows; {report.metric} {judged.score:.4f}, on every row {judged.full_score:.4f}, "
        "judged on halves of the recordings that the bands were not learned on"
    )
    return Planned(path, offer.time, said, report.overhead)


def command_s(ensemble: Path, folder: Path, table: Path) -> float:
    """Return the wall seconds of `alula predict`, from its start to its end."""
    arguments = ["predict", str(ensemble), str(folder), "-o", str(table), "--trust-code", "--fresh", "-q"]
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "alula", *arguments], check=False, capture_output=True, text=True
    )
    took_s = time.monotonic() - started_s
    if done.returncode != 0:
        raise SystemExit(f"`alula {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return took_s


def truth_of(table: Path, classes: int) -> np.ndarray:
    """Return which classes are in each row of some recordings, bool of shape (rows, classes)."""
    targets = open_samples(table, labels=[class_name(index) for index in range(classes)]).targets
    if targets is None:
        raise SystemExit(f"{table} has no labels; remove its folder, and it is made again.")
    return np.asarray(targets) > 0


def macro_auc(truth: np.ndarray, scores: list[np.ndarray]) -> float:
    """Return the mean area under the ROC curve of the classes that are both there and not there.

    Args:
        truth: bool of shape (rows, classes).
        scores: of each recording; what is planned gives the first classes only, those that occur.
    """
    from sklearn.metrics import roc_auc_score

    found = np.concatenate(scores)
    judged = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    return float(roc_auc_score(truth[:, judged], found[:, judged], average="macro"))


def speed(mine: Sequence[float], usual: Sequence[float]) -> str:
    """Return a ratio with its interval, or with the range of the rounds where they are too few for one."""
    found = ratio(mine, usual)
    if len(mine) >= MIN_ROUNDS:
        return str(found)
    each = [one / other for one, other in zip(mine, usual, strict=True)]
    return f"{found.median:.2f}x (rounds: {min(each):.2f} to {max(each):.2f})"


def section(
    name: str,
    contenders: dict[str, Contender],
    rounds: dict[str, list[Round]],
    stages: dict[str, Stages],
    scores: dict[str, float],
    notes: list[str],
    *,
    options: argparse.Namespace,
) -> str:
    """Return the results of one ensemble as Markdown."""
    cores = thread_budget()
    hours = options.recordings * options.minutes / 60
    # Core-seconds of stages were taken on fewer recordings.
    share = options.stage_recordings / options.recordings
    usual = throughput(rounds[USUAL]).rounds_per_s
    speeds, parts = [], []
    for way, found in rounds.items():
        one, rate = contenders[way], throughput(found)
        wall_s = statistics.median(one.wall_s)
        bound_s = sum(stages[way]) / share / cores
        full_s = wall_s * FULL_JOB[0] * 10 / (options.recordings * options.minutes) * cores / FULL_JOB[1]
        speeds.append(
            (
                way,
                f"{wall_s:,.1f}",
                "1" if way == USUAL else speed(rate.rounds_per_s, usual),
                f"{bound_s:,.1f}",
                f"{wall_s / bound_s:.2f}",
                f"{one.peak_bytes / 2**20:,.0f}",
                f"{full_s / 60:,.0f}",
                f"{scores[way]:.4f}",
            )
        )
        cells = [*stages[way], sum(stages[way]), statistics.median(one.cpu_s) * share]
        parts.append((way, *(f"{value / (hours * share) / 6:,.2f}" for value in cells)))
    networks = len(chosen(name).members)
    return "\n".join(
        [
            f"### Deadline job `{name}`: {networks} network{'s' if networks > 1 else ''}",
            "",
            output.table(
                (
                    "way",
                    "wall s",
                    "speed (95 %)",
                    "bound s",
                    "wall / bound",
                    "peak MiB",
                    f"{FULL_JOB[0]} recordings on {FULL_JOB[1]} vCPUs, min",
                    "macro AUC",
                ),
                speeds,
            ),
            "",
            "Core-seconds per ten minutes of audio, each stage alone, and of the whole run:",
            "",
            output.table(("way", "decode", "features", "model", "sum", "whole run"), parts),
            "",
            f"{options.recordings} recordings of {options.minutes:g} minutes, {len(rounds[USUAL])} "
            f"interleaved rounds on {cores} threads. The bound is the sum of the stages, each alone on "
            f"{options.stage_recordings} of the recordings, over {cores} cores. The last column scales the "
            "wall time by recordings and cores: an estimate.",
            "",
            *(f"- {note}" for note in notes),
        ]
    )


def recipes_of(ensembles: dict[str, Path]) -> list[str]:
    """Return in words what runs in each ensemble, with its settings and its verdict."""
    from alula.bundle import read_manifest

    found = []
    for way in (OURS, STRETCHES):
        if way not in ensembles:
            continue
        for member in read_ensemble(ensembles[way]).members:
            chosen_one = read_manifest(ensembles[way] / member.folder).chosen
            said = f"{way}, {member.name}: {chosen_one.recipe}, {chosen_one.settings}"
            if (verdict := member.whole_files) is not None:
                said += f", over stretches, cosine falls by {verdict.accuracy.drop:.2g}"
            found.append(f"{said}.")
    return found


def checked(contenders: dict[str, Contender], files: list[Path], options: argparse.Namespace) -> list[str]:
    """Return in words how far each way's scores are from the straightforward way's.

    Raises:
        SystemExit: they are farther than the tolerance.
    """
    import reference  # not by the ways' processes, whose memory is measured: it imports PyTorch

    expected = np.concatenate(contenders[USUAL].scores(files))
    notes = []
    for way in (OURS, STRETCHES):
        if way not in contenders:
            continue
        found = reference.difference(expected, np.concatenate(contenders[way].scores(files)))
        notes.append(
            f"{way}: scores differ by at most {found.largest:.2g}, on average {found.mean:.2g}; cosine "
            f"{found.cosine:.5f}; same top-1 in {100 * found.same_top1:.1f} % of {found.rows} rows."
        )
        precision = "int8" if "int8" in options.precisions else "fp32"
        largest, cosine = reference.TOLERANCES[precision], reference.COSINES[precision]
        if found.largest > largest or found.cosine < cosine:
            raise SystemExit(
                f"{notes[-1]} Expected at most {largest:g} and a cosine of at least {cosine:g}. The times "
                "mean nothing."
            )
    return notes


def foretold(plans: dict[str, Planned], folder: Path, table: Path, rounds: int) -> list[str]:
    """Return in words what each plan foretold and how long `alula predict` really took."""
    took: dict[str, list[float]] = {way: [] for way in plans}
    for _ in range(rounds):
        for way, plan in plans.items():
            took[way].append(command_s(plan.path, folder, table))
    notes = []
    for way, plan in plans.items():
        real_s = statistics.median(took[way])
        error = plan.foretold.expected_s / real_s - 1.0
        notes.append(
            f"{way}: {plan.said}. Foretold {plan.foretold.expected_s:.1f} s "
            f"[{plan.foretold.low_s:.1f}, {plan.foretold.high_s:.1f}]; `alula predict` took {real_s:.1f} s "
            f"({', '.join(f'{one:.1f}' for one in took[way])}): {100 * error:+.0f} %. A small job of all "
            f"stages and members took {plan.overhead:.2f} of what they take alone."
        )
    return notes


def measure(name: str, files: list[Path], tuning: Path, options: argparse.Namespace) -> str:
    """Return the results of one ensemble as Markdown."""
    weights = None
    if not options.untrained:
        output.say(f"{name}: training")
        weights = trained(name)
    output.say(f"{name}: exporting")
    models = exported(name, files, weights, work_of(options) / "models" / name)
    output.say(f"{name}: making the ensemble")
    folder = files[0].parent
    ensembles = {OURS: made(name, tuning, weights, options, stretches=None)}
    if options.whole_files and any(chosen(name).lead_s(member) for member in chosen(name).members):
        output.say(f"{name}: making it for long stretches")
        stretched = made(name, tuning, weights, options, stretches=folder)
        if any(member.whole_files is not None for member in read_ensemble(stretched).members):
            ensembles[STRETCHES] = stretched
        else:
            output.say(f"{name}: no network keeps its scores over long stretches")
    plans: dict[str, Planned] = {}
    if options.plan and len(chosen(name).members) > 1:
        limit_s = FULL_LIMIT_S * options.recordings * options.minutes / (FULL_JOB[0] * 10)
        for way, cascade in ((PLANNED, False), (CASCADE, True)):
            output.say(f"{name}: planning{', with a cascade' if cascade else ''}")
            plan = planned(name, ensembles[OURS], folder, limit_s=limit_s, cascade=cascade)
            if plan is not None:
                plans[way] = plan
                ensembles[way] = plan.path
    with ExitStack() as stack:

        def contender(make: Callable[[str, str], Way], argument: Path) -> Contender:
            return stack.enter_context(Contender(make, (str(argument), name)))

        contenders = {USUAL: contender(UsualWay, models)}
        contenders |= {way: contender(EnsembleWay, bundle) for way, bundle in ensembles.items()}
        output.say(f"{name}: comparing scores")
        some = files[: options.stage_recordings]
        notes = checked(contenders, some, options) + recipes_of(ensembles)
        table = WORK / "table.csv"
        output.say(f"{name}: {options.rounds} rounds")
        before, started = take_snapshot(), time.monotonic()
        calls = {way: (lambda seconds, one=one: one.run(files, table)) for way, one in contenders.items()}
        rounds = interleave(calls, rounds=options.rounds, seconds=0.0).rounds
        own_s = sum(sum(one.cpu_s) for one in contenders.values())
        wall_s = time.monotonic() - started
        notes += describe_disturbance(before, take_snapshot(), own_cpu_s=own_s, wall_s=wall_s)
        walls = ", ".join(f"{way} {statistics.median(one.wall_s):.1f} s" for way, one in contenders.items())
        output.say(f"{name}: {walls}; stages alone")
        stages = {way: one.stages(some) for way, one in contenders.items()}
        output.say(f"{name}: scores of all recordings")
        truth = truth_of(folder / "truth.csv", chosen(name).classes)
        scores = {way: macro_auc(truth, one.scores(files)) for way, one in contenders.items()}
    if plans:
        output.say(f"{name}: the planned jobs")
        notes += foretold(plans, folder, table, options.rounds)
    return section(name, contenders, rounds, stages, scores, notes, options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ensembles", type=output.names, default=tuple(ENSEMBLES), help="of c1, a, b (default all)"
    )
    parser.add_argument("--recordings", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of each (default 10)")
    parser.add_argument("--rounds", type=int, default=6, help="over the whole folder (default 6)")
    parser.add_argument(
        "--stage-recordings", type=int, default=1, help="for the stages and the comparison (default 1)"
    )
    parser.add_argument(
        "--untrained", action="store_true", help="leave the weights random, which for `a` saves long training"
    )
    parser.add_argument("--clips", type=int, default=120, help="of 10 s, to tune on (default 120)")
    parser.add_argument("--budget", default="2m", help="of each network's search (default 2m)")
    parser.add_argument(
        "--engines",
        type=output.names,
        default=("onnxruntime", "openvino"),
        help="of the searches (default onnxruntime,openvino)",
    )
    parser.add_argument(
        "--precisions", type=output.names, default=("fp32", "int8"), help="fp32, or fp32,int8 (default)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="also run what `alula plan` makes of the members, and its cascade"
    )
    parser.add_argument(
        "--whole-files",
        action="store_true",
        help="also run networks with context over long stretches, where that keeps their scores",
    )
    output.add_markdown_option(parser)
    options = parser.parse_args()
    if unknown := sorted(set(options.ensembles) - ENSEMBLES.keys()):
        parser.error(f"no ensemble `{unknown[0]}`; there are {', '.join(ENSEMBLES)}")
    options.stage_recordings = min(options.stage_recordings, options.recordings)
    zoo.let_children_import_timm()
    zoo.import_timm()
    output.say(f"recordings in {WORK}")
    folder = WORK / f"{options.recordings}x{options.minutes:g}-minutes"
    files = recordings(folder, options.recordings, 60 * options.minutes, seed=0)
    tuning = WORK / f"{options.clips}-clips"
    recordings(tuning, options.clips, 10.0, seed=10_000)
    for name in options.ensembles:
        output.publish(measure(name, files, tuning, options), markdown=options.markdown)


if __name__ == "__main__":
    main()
