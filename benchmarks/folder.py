"""Hours of audio per hour over a folder of recordings: Alula's bundle against the usual recipe.

The network is `tf_efficientnet_b0_ns` on log-mel windows of 5 s, its weights random, its BatchNorm measured
on real windows. The recordings are soundscapes in Ogg Vorbis, synthesised on the fly.

The usual recipe: `librosa.load`, `librosa.feature.melspectrogram`, `power_to_db` and the same normalisation
for each window, one ONNX Runtime FP32 session with default options, and `ThreadPoolExecutor(max_workers=4)`
over the files, each file's windows in batches. Ours: a bundle made by `alula.optimize` and
`alula.workflows.predict`, the table written included; once with FP32 recipes only, like for like, and
once with INT8 recipes, if one is accepted by its agreement with the FP32 network.

Each way has its own process; they take turns. Their scores are compared before anything is timed. Then
each stage runs alone, and the core-seconds that it takes are reported per hour of audio.

    python benchmarks/folder.py [--recordings 8] [--minutes 2] [--rounds 7] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import alula
import output
import zoo
from alula.core import AudioInput, Precision, Throughput
from alula.data import open_audio
from alula.demo.songs import write_clips, write_soundscapes
from alula.errors import AccuracyError
from alula.features import PRESETS, AudioFeatures
from alula.hardware import describe_disturbance, take_snapshot
from alula.measure import Round, interleave, ratio, stability_warnings, throughput
from alula.workflows import predict
from soundscapes import PROJECT
from ways import Contender, Stages, Way, batched, core_seconds

sys.path.insert(0, str(PROJECT / "examples" / "birdclef"))

MODEL = f"{Path(zoo.__file__).resolve()}:tf_efficientnet_b0_ns"
INPUT = "mel-128x313"
CALIBRATED_WINDOWS = 64
USUAL_WORKERS = 4
USUAL_BATCH = 24  # windows: two minutes, as much as notebooks that take a file at once usually hold
STAGE_REPEATS = 3

# FP32 against FP32: sums in other orders, which random weights do not dampen. A wrong window, filter or
# normalisation changes scores by tenths.
TOLERANCE = 1e-3

USUAL = "usual recipe"
FP32 = "Alula, FP32 recipes"
INT8 = "Alula, INT8 recipes"


def description() -> AudioInput:
    """Return the input description that both sides carry out."""
    found = PRESETS[INPUT]
    assert isinstance(found, AudioInput)
    return found


class BundleWay:
    """A bundle, as `alula predict` runs it."""

    def __init__(self, bundle: str) -> None:
        loaded = alula.load(bundle, trust_code=True)
        assert isinstance(loaded, alula.Bundle)
        self._bundle = loaded

    def run(self, files: list[Path], table: Path) -> int:
        return predict(self._bundle, files, output=table).job.samples

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        found = []
        for prediction in self._bundle.map(files):
            if prediction.scores is None:
                raise SystemExit(f"{prediction.path} failed: {prediction.error}")
            found.append(prediction.scores)
        return found

    def stages(self, files: list[Path]) -> Stages:
        features = AudioFeatures(description())

        def decode() -> list[list[np.ndarray]]:
            found = []
            for path in files:
                with open_audio(path) as audio:
                    found.append(list(audio.blocks()))
            return found

        decoded = decode()
        rate_hz = description().sample_rate_hz

        def transform() -> list[np.ndarray]:
            return [w.samples for blocks in decoded for w in features.windows(blocks, rate_hz)]

        batches = list(batched(np.stack(transform()), self._bundle.settings.batch_size))
        with ThreadPoolExecutor(self._bundle.settings.instances) as pool:

            def infer() -> None:
                list(pool.map(lambda batch: self._bundle.infer((batch,)), batches))

            return Stages(
                *(core_seconds(stage, repeats=STAGE_REPEATS) for stage in (decode, transform, infer))
            )


class UsualWay:
    """librosa, ONNX Runtime as it comes, and a pool of threads over the files."""

    def __init__(self, model: str) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._description = description()

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
        def decode() -> list[np.ndarray]:
            return [self._decode(path) for path in files]

        waves = decode()

        def transform() -> list[np.ndarray]:
            return [self._transform(wave) for wave in waves]

        windows = transform()

        def infer() -> None:
            for one in windows:
                self._infer(one)

        return stages_of(decode, transform, infer)

    def _predict(self, path: Path) -> np.ndarray:
        return self._infer(self._transform(self._decode(path)))

    def _decode(self, path: Path) -> np.ndarray:
        from by_librosa import read_wave

        return read_wave(path, self._description.sample_rate_hz)

    def _transform(self, wave: np.ndarray) -> np.ndarray:
        from by_librosa import image

        length = self._description.window_samples
        padded = np.pad(wave, (0, -len(wave) % length))
        return np.stack([image(window, self._description) for window in padded.reshape(-1, length)])

    def _infer(self, windows: np.ndarray) -> np.ndarray:
        parts = [self._session.run(None, {self._input: batch})[0] for batch in batched(windows, USUAL_BATCH)]
        return np.concatenate(parts)


def stages_of(*stages: Callable[[], object]) -> Stages:
    """Return the core-seconds of decoding, features and the model."""
    return Stages(*(core_seconds(stage, repeats=STAGE_REPEATS) for stage in stages))


def real_windows(clips: list[Path]) -> np.ndarray:
    """Return windows of clips spread evenly over all, float32 of shape (n, c, f, t)."""
    features = AudioFeatures(description())
    windows: list[np.ndarray] = []
    for path in clips[:: max(1, len(clips) // CALIBRATED_WINDOWS)][:CALIBRATED_WINDOWS]:
        with open_audio(path) as audio:
            windows += [window.samples for window in features.windows(audio.blocks(), audio.rate_hz)]
    return np.stack(windows)


def calibrated_weights(windows: np.ndarray, target: Path) -> Path:
    """Write the network's weights with BatchNorm measured on windows, and return the path."""
    import torch

    batches = [torch.from_numpy(batch) for batch in batched(windows, zoo.CALIBRATION_BATCH)]
    module = zoo.calibrate(zoo.tf_efficientnet_b0_ns(), [batch for batch in batches if len(batch) > 1])
    torch.save(module.state_dict(), target)
    return target


def flat_clips(folder: Path, per_species: int) -> Path:
    """Return a folder of clips without labels: the network's classes are not theirs."""
    target = folder / "clips"
    target.mkdir()
    for path in write_clips(folder / "by_species", per_species, seed=1, audio_format="ogg"):
        path.rename(target / path.name)
    return target


def export_for_usual(weights: Path, windows: np.ndarray, folder: Path) -> Path:
    """Return the network as an ONNX file, by PyTorch's exporter."""
    from alula.core import ARTIFACT_FILES
    from alula.export import export_module
    from alula.sources import load_model, parse_source

    module = load_model(parse_source(MODEL, weights=weights)).module
    assert module is not None
    folder.mkdir()
    export_module(module, [windows[:4]], target="onnx", folder=folder)
    return folder / ARTIFACT_FILES["onnx"]


def optimized(
    clips: Path,
    weights: Path,
    target: Path,
    *,
    options: argparse.Namespace,
    precisions: tuple[Precision, ...],
) -> alula.Bundle:
    """Return a bundle, closed: it is loaded again in a process of its own."""
    bundle = alula.optimize(
        MODEL,
        clips,
        weights=weights,
        input=INPUT,
        metric="agreement",
        output=target,
        budget=options.budget,
        engines=options.engines,
        precisions=precisions,
        calibration=options.clips * 3,
        report=output.say,
    )
    bundle.close()
    return bundle


def described(bundle: alula.Bundle) -> str:
    """Return recipe, settings and agreement of a bundle."""
    accuracy = bundle.manifest.accuracy
    return (
        f"{bundle.recipe}, {bundle.settings}, "
        f"agreement with FP32 {100 * accuracy.chosen:.1f} % of {accuracy.n} windows"
    )


def compared(expected: list[np.ndarray], got: list[np.ndarray]) -> tuple[float, float]:
    """Return the largest difference of scores, as a share of the largest score, and the top-1 agreement."""
    want, have = np.concatenate(expected), np.concatenate(got)
    if want.shape != have.shape:
        raise SystemExit(
            f"The ways gave scores of shapes {want.shape} and {have.shape}; the times mean nothing."
        )
    difference = float(np.abs(want - have).max() / np.abs(want).max())
    return difference, float(np.mean(want.argmax(axis=1) == have.argmax(axis=1)))


def check(contenders: dict[str, Contender], files: list[Path]) -> list[str]:
    """Return how far each way's scores are from the usual recipe's, in words.

    Raises:
        SystemExit: FP32 differs from FP32 by more than rounding.
    """
    scores = {name: one.scores(files) for name, one in contenders.items()}
    lines = []
    for name in contenders:
        if name == USUAL:
            continue
        difference, agreement = compared(scores[USUAL], scores[name])
        if name == FP32 and difference > TOLERANCE:
            raise SystemExit(
                f"{name} differs from the {USUAL} by {difference:.2g} of the largest score; rounding is at "
                f"most {TOLERANCE:g}. The times mean nothing."
            )
        limit = f"; allowed are {TOLERANCE:g}" if name == FP32 else ""
        lines.append(
            f"Scores of {name} differ from those of the {USUAL} by at most {difference:.2g} of the largest "
            f"score{limit}; same top-1 in {100 * agreement:.1f} % of the windows."
        )
    return lines


def section(
    contenders: dict[str, Contender],
    rounds: dict[str, list[Round]],
    stages: dict[str, Stages],
    notes: list[str],
    *,
    runs: dict[str, str],
    recordings: str,
    hours: float,
) -> str:
    """Return the results as Markdown."""
    window_s = description().window_s
    rates: dict[str, Throughput] = {name: throughput(found) for name, found in rounds.items()}
    speeds = []
    for name, rate in rates.items():
        gain = "1" if name == USUAL else str(ratio(rate.rounds_per_s, rates[USUAL].rounds_per_s))
        speeds.append((name, runs[name], f"{rate.per_s * window_s:,.0f}", gain))
    per_hour = []
    for name, parts in stages.items():
        cells = [*parts, sum(parts), statistics.median(contenders[name].cpu_s)]
        per_hour.append((name, *(f"{value / hours:,.1f}" for value in cells)))
    lines = [
        "### Folder run, tf_efficientnet_b0_ns on log-mel 1x128x313",
        "",
        output.table(("way", "what runs", "hours of audio per hour", "ratio (95 %)"), speeds, left=2),
        "",
        "Core-seconds per hour of audio, each stage measured alone, and of the whole run:",
        "",
        output.table(("way", "decode", "features", "model", "sum", "whole run"), per_hour),
        "",
        f"{recordings}; {len(rounds[USUAL])} interleaved rounds over the whole folder.",
    ]
    for name, found in rounds.items():
        # A round is one pass over the folder, not several calls: that warning does not apply.
        doubts = [text for text in stability_warnings(found) if "calls per instance" not in text]
        notes = [*notes, *(f"{name}: {text}" for text in doubts)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def measure(options: argparse.Namespace, folder: Path) -> str:
    """Return the results as Markdown."""
    output.say(f"synthesising {options.recordings} recordings of {options.minutes:g} minutes, and clips")
    recordings = folder / "recordings"
    write_soundscapes(
        recordings, options.recordings, duration_s=60 * options.minutes, seed=2, audio_format="ogg"
    )
    files = sorted(recordings.glob("*.ogg"))
    hours = options.recordings * options.minutes / 60
    clips = flat_clips(folder, options.clips)
    windows = real_windows(sorted(clips.iterdir()))
    weights = calibrated_weights(windows, folder / "weights.pth")
    notes: list[str] = []
    bundles = {FP32: optimized(clips, weights, folder / "fp32.alula", options=options, precisions=("fp32",))}
    try:
        bundles[INT8] = optimized(
            clips, weights, folder / "int8.alula", options=options, precisions=("int8",)
        )
    except AccuracyError as error:
        notes.append(f"No INT8 recipe was accepted, so there is no third row. {error}")
    with ExitStack() as stack:

        def contender(make: Callable[[str], Way], argument: Path) -> Contender:
            return stack.enter_context(Contender(make, (str(argument),)))

        model = export_for_usual(weights, windows, folder / "usual")
        contenders = {USUAL: contender(UsualWay, model)}
        contenders |= {name: contender(BundleWay, bundle.path) for name, bundle in bundles.items()}
        usual = f"librosa, onnxruntime/fp32 with default options, {USUAL_WORKERS} files at once"
        runs = {USUAL: f"{usual}, batch {USUAL_BATCH}"}
        runs |= {name: described(bundle) for name, bundle in bundles.items()}
        output.say("comparing scores")
        notes = check(contenders, files) + notes
        table = folder / "table.csv"
        output.say("warming up")
        for one in contenders.values():
            one.run(files, table)
            one.forget_runs()
        output.say(f"{options.rounds} rounds of {len(contenders)} ways")
        before, started = take_snapshot(), time.monotonic()
        calls = {name: (lambda seconds, one=one: one.run(files, table)) for name, one in contenders.items()}
        rounds = interleave(calls, rounds=options.rounds, seconds=0.0).rounds
        own_s = sum(sum(one.cpu_s) for one in contenders.values())
        wall_s = time.monotonic() - started
        notes += describe_disturbance(before, take_snapshot(), own_cpu_s=own_s, wall_s=wall_s)
        output.say("measuring the stages alone")
        stages = {name: one.stages(files) for name, one in contenders.items()}
        what = f"{options.recordings} recordings of {options.minutes:g} minutes, Ogg Vorbis, 32 kHz mono"
        return section(contenders, rounds, stages, notes, runs=runs, recordings=what, hours=hours)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recordings", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--minutes", type=float, default=2.0, help="length of each (default 2)")
    parser.add_argument("--clips", type=int, default=20, help="of 5 s per species, to tune on (default 20)")
    parser.add_argument("--rounds", type=int, default=7, help="over the whole folder (default 7)")
    parser.add_argument("--budget", default="10m", help="of each search (default 10m)")
    parser.add_argument(
        "--engines",
        type=output.names,
        default=("onnxruntime", "openvino"),
        help="of the search (default onnxruntime,openvino)",
    )
    output.add_markdown_option(parser)
    options = parser.parse_args()
    zoo.let_children_import_timm()
    with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as folder:
        text = measure(options, Path(folder))
    output.publish(text, markdown=options.markdown)


if __name__ == "__main__":
    main()
