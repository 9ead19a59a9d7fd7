"""The whole way on a built-in example: clips, search, bundle, folder run, score against the truth."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.accuracy import metric_named
from alula.bundle import Manifest
from alula.core import Outcome
from alula.demo.model import demo_input, weights_path
from alula.demo.songs import LABELS, read_truth, window_truth, write_clips, write_soundscapes
from alula.errors import UsageError
from alula.workflows import PredictionReport, load_bundle, optimize, predict

__all__ = ["DemoResult", "run_demo"]

CLIPS_PER_CLASS = 40
SOUNDSCAPES = 10
SOUNDSCAPE_S = 120.0
WINDOW_S = 5.0
MARK = ".alula-demo"


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found and where it put it.

    Attributes:
        folder: everything lies below it.
        bundle: the bundle.
        manifest: what the bundle says about itself.
        prediction: the folder run over the soundscapes.
        macro_auc: of the predictions against the known songs, over classes that occur.
        windows: 5-second windows scored.
    """

    folder: str
    bundle: str
    manifest: Manifest
    prediction: PredictionReport
    macro_auc: float
    windows: int


def run_demo(
    folder: Path,
    *,
    budget: str,
    report: Callable[[str], None],
    on_outcome: Callable[[Outcome], None],
) -> DemoResult:
    """Make synthetic birds, optimize the built-in classifier, predict over soundscapes, score it.

    Args:
        folder: made anew; one that an earlier demo made is replaced, any other is refused.
        budget: of the search, such as `3m`.
        report: gets lines of text about what is being done.
        on_outcome: gets every outcome of the search.

    Raises:
        UsageError: the folder exists and is not a demo's.
    """
    if folder.exists():
        if not (folder / MARK).is_file():
            raise UsageError(f"{folder} exists and was not made by the demo; choose another with -o.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("made by `alula demo`; replaced by the next one\n", encoding="utf-8")
    report(f"synthesising {CLIPS_PER_CLASS} clips of each of {len(LABELS)} species")
    write_clips(folder / "clips", CLIPS_PER_CLASS, seed=0)
    report(f"synthesising {SOUNDSCAPES} soundscapes of {SOUNDSCAPE_S / 60:g} minutes")
    truth_path = write_soundscapes(folder / "soundscapes", SOUNDSCAPES, duration_s=SOUNDSCAPE_S, seed=1)
    bundle_path = folder / "birds.alula"
    optimize(
        "alula.demo.model:songnet",
        folder / "clips",
        weights=weights_path(),
        input=demo_input(),
        labels=LABELS,
        output=bundle_path,
        activation="sigmoid",
        calibration=100,
        max_drop=0.01,
        budget=budget,
        report=report,
        on_outcome=on_outcome,
    ).close()
    report("predicting over the soundscapes")
    # The demo's own bundle, made a moment ago: its code is ours.
    with load_bundle(bundle_path, trust_code=True) as bundle:
        prediction = predict(
            bundle, sorted((folder / "soundscapes").glob("*.wav")), output=folder / "predictions.csv"
        )
        manifest = bundle.manifest
    scores, truth = _against_truth(folder / "predictions.csv", truth_path)
    return DemoResult(
        folder=str(folder),
        bundle=str(bundle_path),
        manifest=manifest,
        prediction=prediction,
        macro_auc=metric_named("macro_auc").value(truth, scores),
        windows=len(scores),
    )


def _against_truth(predictions: Path, truth_path: Path) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Return predicted scores and 0/1 truth, both (n, c), window by window."""
    events = read_truth(truth_path)
    per_file = round(SOUNDSCAPE_S / WINDOW_S)
    by_file: dict[str, list[list[float]]] = {}
    with predictions.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_file.setdefault(Path(row["path"]).name, []).append([float(row[label]) for label in LABELS])
    truth = [
        window_truth(events.get(name, []), WINDOW_S, n_windows=per_file, labels=LABELS) for name in by_file
    ]
    scores = [np.array(rows) for rows in by_file.values()]
    return np.concatenate(scores), np.concatenate(truth)
