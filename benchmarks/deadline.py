"""A folder of long recordings before a deadline: Alula's ensembles against the straightforward way.

The workload is that of BirdCLEF 2023 at 1:20: ten recordings of ten minutes, 32 kHz, Ogg Vorbis, made of real
clips of birds and frogs over noise. Three ensembles of `examples/birdclef` go over it: `c1`, one network of
pipeline C; `a`, three networks; `b`, seven. Their weights are random and settled on noise.

The straightforward way: `librosa.load` once per file, `librosa.feature.melspectrogram` and `power_to_db` for
each window and network, one ONNX Runtime session with default options per network, and
`ThreadPoolExecutor(4)` over the files. Ours: the ensemble that `examples/birdclef/make.py` makes, by
`alula.workflows.predict`.

Each way has a process of its own; they take turns, and their scores are compared before anything is timed.
Then each stage runs alone, on all cores. The bound is the sum of their core-seconds over the cores; a job of
the same stages cannot be faster.

    python benchmarks/deadline.py [--ensembles c1,a,b] [--recordings 10] [--minutes 10] [--rounds 3]

Recordings and bundles are kept in `benchmarks/deadline.work`, and found again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import output
import zoo
from alula.bundle import read_ensemble
from alula.core import Affine, AudioInput, LogMel, MinMax, ZScore
from alula.data import open_audio
from alula.hardware import describe_disturbance, take_snapshot, thread_budget
from alula.measure import Round, interleave, ratio, throughput

PROJECT = Path(__file__).resolve().parent.parent
EXAMPLE = PROJECT / "examples" / "birdclef"
WORK = Path(__file__).resolve().with_suffix(".work")
sys.path.insert(0, str(EXAMPLE))

import pipelines  # noqa: E402 - found in the example's folder

RATE_HZ = 32_000
ROW_S = 5.0
ENSEMBLES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "c1": ("c", ("efficientnet_b0",)),
    "a": ("a", None),
    "b": ("b", None),
}
"""Ensembles by name: the letter of a pipeline, and which of its networks; None for all."""

USUAL_WORKERS = 4
USUAL_BATCH = 24
STAGE_REPEATS = 1
FULL_JOB = (200, 4)
"""Recordings of ten minutes and vCPUs of the job that is extrapolated to."""

# FP32 against FP32: sums in other orders, and window functions that are rounded in other places.
TOLERANCE = 2e-3
# What each search and each verdict of long stretches allows to networks with random weights.
COSINE = 0.97

USUAL = "straightforward"
OURS = "Alula"
STRETCHES = "Alula, long stretches"


class Stages(NamedTuple):
    """Core-seconds of each stage over some recordings, measured alone."""

    decode_s: float
    features_s: float
    model_s: float


class Way(Protocol):
    """One way through a folder."""

    def run(self, files: list[Path], table: Path) -> int:
        """Go the whole way once; return how many rows there were."""

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        """Return the scores of each file, float32 of shape (rows, classes)."""

    def stages(self, files: list[Path]) -> Stages:
        """Run each stage alone."""


class EnsembleWay:
    """An ensemble, as `alula predict` runs it."""

    def __init__(self, bundle: str, _name: str) -> None:
        import alula

        self._ensemble = alula.load(bundle, trust_code=True)

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

    def run(self, files: list[Path], table: Path) -> int:
        with ThreadPoolExecutor(max_workers=USUAL_WORKERS) as pool:
            scores = list(pool.map(self._predict, files))
        with table.open("w", encoding="utf-8") as file:
            for path, rows in zip(files, scores, strict=True):
                np.savetxt(file, rows, fmt="%.6g", delimiter=",", header=path.name)
        return sum(map(len, scores))

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        return [self._predict(path) for path in files]

    def stages(self, files: list[Path]) -> Stages:
        cores = thread_budget()
        decode = [0.0]
        features = [0.0]
        model = [0.0]
        # One file at a time: the windows of every network over all files would fill the memory.
        for path in files:
            wave = self._decode(path)
            decode[0] += core_seconds(lambda path=path: self._decode(path), copies=cores)
            for member in self._pipeline.members:
                windows = self._transform(wave, member)
                features[0] += core_seconds(lambda m=member, w=wave: self._transform(w, m), copies=cores)
                model[0] += core_seconds(lambda m=member, x=windows: self._infer(x, m))
        return Stages(decode[0], features[0], model[0])

    def _predict(self, path: Path) -> np.ndarray:
        wave = self._decode(path)
        outputs = {m.name: self._infer(self._transform(wave, m), m) for m in self._pipeline.members}
        return self._pipeline.joined(outputs)

    def _decode(self, path: Path) -> np.ndarray:
        import librosa

        wave, _ = librosa.load(path, sr=RATE_HZ, mono=True)
        return wave

    def _transform(self, wave: np.ndarray, member: pipelines.Member) -> np.ndarray:
        description = member.description()
        lead = round(self._pipeline.lead_s(member) * RATE_HZ)
        rows = -(-len(wave) // round(ROW_S * RATE_HZ))
        length, hop = description.window_samples, description.hop_samples
        padded = np.pad(wave, (lead, lead + rows * hop - len(wave)))
        return np.stack([image(padded[k * hop : k * hop + length], description) for k in range(rows)])

    def _infer(self, windows: np.ndarray, member: pipelines.Member) -> np.ndarray:
        session = self._sessions[member.name]
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: part})[0] for part in batched(windows, USUAL_BATCH)])


def image(window: np.ndarray, description: AudioInput) -> np.ndarray:
    """Return librosa's spectrogram of one window by a description, float32 of shape (1, f, t)."""
    mel = description.mel
    assert mel is not None
    if description.peak_normalize:
        window = window / (np.abs(window).max() or 1.0)
    if description.std_normalize:
        window = window / (window.std() or 1.0)
    found = decibels(window, mel)
    for how in mel.normalize:
        match how:
            case ZScore(eps=eps):
                found = (found - found.mean()) / (found.std() + eps)
            case MinMax(eps=eps):
                found = (found - found.min()) / (found.max() - found.min() + eps)
            case Affine(mean=mean, std=std):
                found = (found - mean) / std
    return found[None].astype(np.float32)


def decibels(window: np.ndarray, mel: LogMel) -> np.ndarray:
    """Return librosa's log-mel spectrogram, (f, t)."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=window,
        sr=RATE_HZ,
        n_fft=mel.n_fft,
        hop_length=mel.hop,
        win_length=mel.win,
        n_mels=mel.n_mels,
        fmin=mel.f_min_hz,
        fmax=mel.f_max_hz,
        htk=mel.scale == "htk",
        norm=mel.mel_norm,
        power=mel.power,
        center=mel.center,
        pad_mode=mel.pad_mode,
    )
    return librosa.power_to_db(power, ref=mel.ref, amin=mel.amin, top_db=mel.top_db)


def batched(rows: Any, size: int) -> Iterator[Any]:
    """Yield parts of a list or an array, each of at most so many rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def spent(items: Iterator[Any]) -> None:
    """Take all items and keep none."""
    for _ in items:
        pass


def core_seconds(stage: Callable[[], object], *, copies: int = 1) -> float:
    """Return the median CPU seconds, summed over all threads, of a stage that has run before.

    Args:
        stage: what runs.
        copies: that run at once, for a stage that takes one thread. With the other threads idle it would be
            faster than it ever is in a job, most of all where two of them share a core.
    """
    found = []
    with ThreadPoolExecutor(copies) as pool:
        for _ in range(STAGE_REPEATS):
            before = time.process_time()
            for running in [pool.submit(stage) for _ in range(copies)]:
                running.result()
            found.append((time.process_time() - before) / copies)
    return statistics.median(found)


def chosen(name: str) -> pipelines.Pipeline:
    """Return the pipeline of an ensemble with the networks that belong to it."""
    import msgspec

    letter, only = ENSEMBLES[name]
    pipeline = pipelines.read_pipeline(letter)
    members = tuple(member for member in pipeline.members if only is None or member.name in only)
    return msgspec.structs.replace(pipeline, members=members)


# Each way lives in a process of its own, where this is set once: engines that share a process share
# threads, and ONNX Runtime's default threads spin for a while after their work is done.
_way: Way | None = None


def _open(make: Callable[[str, str], Way], argument: str, name: str) -> None:
    global _way  # noqa: PLW0603 - the process serves one way
    _way = make(argument, name)


def _here() -> Way:
    assert _way is not None
    return _way


def _run_here(files: list[Path], table: Path) -> tuple[int, float, float]:
    """Return rows, wall seconds and core-seconds of one run in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = _here().run(files, table)
    return rows, time.perf_counter() - wall, time.process_time() - cpu


def _scores_here(files: list[Path]) -> list[np.ndarray]:
    return _here().scores(files)


def _stages_here(files: list[Path]) -> Stages:
    return _here().stages(files)


def _peak_bytes_here() -> int:
    """Return the largest memory that this process has held."""
    # Not `ru_maxrss`, which a child begins with at what its parent held when it was made.
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status does not tell the peak of memory; expected a line `VmHWM:`.")


@dataclass
class Contender:
    """A way in its process, and what it took.

    Attributes:
        pool: the process.
        cpu_s: core-seconds of each run.
        wall_s: wall seconds of each run.
        peak_bytes: largest memory that the process had held when all runs were done.
    """

    pool: ProcessPoolExecutor
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def run(self, files: list[Path], table: Path) -> Round:
        """Go over the folder once."""
        rows, wall_s, cpu_s = self.pool.submit(_run_here, files, table).result()
        self.cpu_s.append(cpu_s)
        self.wall_s.append(wall_s)
        return Round(samples=rows, wall_s=wall_s, calls=(wall_s,))


def clips() -> list[np.ndarray]:
    """Return the real clips, mono at 32 kHz, each with a peak of 1.

    Raises:
        SystemExit: they are not there.
    """
    import soxr

    given = os.environ.get("ALULA_TEST_DATA")
    root = (Path(given) if given else PROJECT.parent / "shared" / "data") / "birds"
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    if not files:
        raise SystemExit(f"{root} holds no clips; set ALULA_TEST_DATA to the folder of real data.")
    found = []
    for path in files:
        with open_audio(path) as audio:
            wave = np.concatenate(list(audio.blocks())).mean(axis=1)
            wave = soxr.resample(wave, audio.rate_hz, RATE_HZ).astype(np.float32)
        # Clips of almost no length or no sound are tests of readers, not sounds.
        if len(wave) >= RATE_HZ and (peak := float(np.abs(wave).max())) > 1e-3:
            found.append(wave / peak)
    return found


def soundscape(sounds: Sequence[np.ndarray], seconds: float, *, seed: int) -> np.ndarray:
    """Return a recording: clips at random times and distances over noise that falls with the frequency."""
    from scipy.signal import lfilter

    chance = np.random.default_rng(seed)
    samples = round(seconds * RATE_HZ)
    white = chance.standard_normal(samples).astype(np.float32)
    # Falls by 6 dB an octave from 100 Hz on.
    wave = np.asarray(0.002 * (white + lfilter([0.3], [1.0, -0.98], white)), np.float32)
    at = 0
    while at < samples:
        sound = sounds[int(chance.integers(len(sounds)))]
        first = int(chance.integers(max(1, len(sound) - 8 * RATE_HZ)))
        part = sound[first : first + int(chance.integers(1, 8) * RATE_HZ)][: samples - at]
        wave[at : at + len(part)] += np.float32(10.0 ** chance.uniform(-1.6, -0.3)) * part
        at += int(chance.uniform(0.5, 12.0) * RATE_HZ)
    return np.clip(wave, -0.99, 0.99)


def recordings(folder: Path, count: int, seconds: float, *, seed: int) -> list[Path]:
    """Return Ogg files, made unless they are there."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"soundscape_{seed + index:05d}.ogg" for index in range(count)]
    missing = [path for path in files if not path.is_file()]
    sounds = clips() if missing else []
    for path in missing:
        wave = soundscape(sounds, seconds, seed=int(path.stem.rpartition("_")[2]))
        half_made = path.with_suffix(".part")
        # In pieces: one long write has made the Vorbis encoder of libsndfile overflow its stack.
        with soundfile.SoundFile(half_made, "w", RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(wave), RATE_HZ):
                file.write(wave[start : start + RATE_HZ])
        half_made.rename(path)
    return files


def exported(name: str, files: list[Path], folder: Path) -> Path:
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
        module = load_model(parse_source(str(EXAMPLE / member.model))).module
        assert module is not None
        target.mkdir(parents=True, exist_ok=True)
        export_module(module, [sample], target="onnx", folder=target)
    return folder


def made(
    name: str, tuning: Path, folder: Path, options: argparse.Namespace, *, stretches: Path | None
) -> Path:
    """Return an ensemble, made of bundles that are kept from run to run.

    Args:
        name: of `ENSEMBLES`.
        tuning: folder of clips.
        folder: for the ensemble.
        options: of the command.
        stretches: folder of long recordings, to run networks with context over stretches; or None.
    """
    from make import make_pipeline

    how = "" if stretches is None else "-stretches"
    path = folder / f"{name}-{'-'.join(options.precisions)}{how}.alula"
    letter, only = ENSEMBLES[name]
    return make_pipeline(
        letter,
        tuning,
        path,
        budget=options.budget,
        precisions=options.precisions,
        engines=options.engines,
        only=only,
        whole_files=stretches,
    )


def compared(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return largest difference, mean cosine and top-1 agreement of the rows of some recordings."""
    want, have = np.concatenate(list(expected)), np.concatenate(list(got))
    if want.shape != have.shape:
        raise SystemExit(
            f"The ways gave scores of shapes {want.shape} and {have.shape}; the times mean nothing."
        )
    lengths = np.linalg.norm(want, axis=1) * np.linalg.norm(have, axis=1)
    cosine = float(np.mean((want * have).sum(axis=1) / np.maximum(lengths, 1e-12)))
    same = float(np.mean(want.argmax(axis=1) == have.argmax(axis=1)))
    return float(np.abs(want - have).max()), cosine, same


def section(
    name: str,
    contenders: dict[str, Contender],
    rounds: dict[str, list[Round]],
    stages: dict[str, Stages],
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
                "1" if way == USUAL else str(ratio(rate.rounds_per_s, usual)),
                f"{bound_s:,.1f}",
                f"{wall_s / bound_s:.2f}",
                f"{one.peak_bytes / 2**20:,.0f}",
                f"{full_s / 60:,.0f}",
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
    for way, path in ensembles.items():
        for member in read_ensemble(path).members:
            chosen_one = read_manifest(path / member.folder).chosen
            said = f"{way}, {member.name}: {chosen_one.recipe}, {chosen_one.settings}"
            if (verdict := member.whole_files) is not None:
                said += f", over stretches, cosine falls by {verdict.accuracy.drop:.2g}"
            found.append(f"{said}.")
    return found


def measure(name: str, files: list[Path], tuning: Path, options: argparse.Namespace) -> str:
    """Return the results of one ensemble as Markdown."""
    output.say(f"{name}: exporting")
    models = exported(name, files, WORK / "models" / name)
    output.say(f"{name}: making the ensemble")
    ensembles = {OURS: made(name, tuning, WORK, options, stretches=None)}
    if options.whole_files and any(chosen(name).lead_s(member) for member in chosen(name).members):
        output.say(f"{name}: making it for long stretches")
        stretched = made(name, tuning, WORK, options, stretches=files[0].parent)
        if any(member.whole_files is not None for member in read_ensemble(stretched).members):
            ensembles[STRETCHES] = stretched
        else:
            output.say(f"{name}: no network keeps its scores over long stretches")
    with ExitStack() as stack:

        def contender(make: Callable[[str, str], Way], argument: Path) -> Contender:
            pool: Any = ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=_open, initargs=(make, str(argument), name)
            )
            return Contender(stack.enter_context(pool))

        contenders = {USUAL: contender(UsualWay, models)}
        contenders |= {way: contender(EnsembleWay, bundle) for way, bundle in ensembles.items()}
        output.say(f"{name}: comparing scores")
        checked = files[: options.stage_recordings]
        # All at once: nothing is timed yet, and loading takes a while.
        asked = {way: one.pool.submit(_scores_here, checked) for way, one in contenders.items()}
        scores = {way: future.result() for way, future in asked.items()}
        notes = []
        for way in ensembles:
            difference, cosine, same = compared(scores[USUAL], scores[way])
            notes.append(
                f"{way}: scores differ by at most {difference:.2g}; cosine {cosine:.5f}; same top-1 in "
                f"{100 * same:.1f} % of {sum(map(len, scores[USUAL]))} rows."
            )
            if way == OURS and options.precisions == ("fp32",) and difference > TOLERANCE:
                raise SystemExit(
                    f"FP32 differs from FP32 by {difference:.2g}; rounding is at most {TOLERANCE:g}. "
                    "The times mean nothing."
                )
            if cosine < COSINE:
                raise SystemExit(
                    f"{notes[-1]} The cosine should be {COSINE:g} at least. The times mean nothing."
                )
        notes += recipes_of(ensembles)
        table = WORK / "table.csv"
        output.say(f"{name}: {options.rounds} rounds")
        before, started = take_snapshot(), time.monotonic()
        calls = {way: (lambda seconds, one=one: one.run(files, table)) for way, one in contenders.items()}
        rounds = interleave(calls, rounds=options.rounds, seconds=0.0).rounds
        for one in contenders.values():
            # Before the stages, each of which holds all of its results.
            one.peak_bytes = one.pool.submit(_peak_bytes_here).result()
        own_s = sum(sum(one.cpu_s) for one in contenders.values())
        wall_s = time.monotonic() - started
        notes += describe_disturbance(before, take_snapshot(), own_cpu_s=own_s, wall_s=wall_s)
        walls = ", ".join(f"{way} {statistics.median(one.wall_s):.1f} s" for way, one in contenders.items())
        output.say(f"{name}: {walls}; stages alone")
        stages = {way: one.pool.submit(_stages_here, checked).result() for way, one in contenders.items()}
        return section(name, contenders, rounds, stages, notes, options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ensembles", type=output.names, default=tuple(ENSEMBLES), help="of c1, a, b (default all)"
    )
    parser.add_argument("--recordings", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of each (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="over the whole folder (default 3)")
    parser.add_argument(
        "--stage-recordings", type=int, default=1, help="for the stages and the comparison (default 1)"
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
    folder = WORK / f"{options.minutes:g}-minutes"
    files = recordings(folder, options.recordings, 60 * options.minutes, seed=0)
    tuning = WORK / f"{options.clips}-clips"
    recordings(tuning, options.clips, 10.0, seed=10_000)
    for name in options.ensembles:
        output.publish(measure(name, files, tuning, options), markdown=options.markdown)


if __name__ == "__main__":
    main()
