"""Networks over long stretches of recordings, against the network in eager PyTorch window by window."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from alula.accuracy import metric_named
from alula.bundle import read_ensemble
from alula.core import ARTIFACT_FILES, Affine, AudioInput, LogMel, View
from alula.data import open_samples
from alula.errors import AccuracyError, DataError, UsageError
from alula.export import export_module
from alula.features import Demand, SharedAudioFeatures
from alula.workflows import Ensemble, load, make_ensemble, optimize_whole_files, whole_files

RATE_HZ = 8_000
# A window holds 81 frames, of which the networks use 80; starts lie 40 frames apart, at whole columns.
INPUT = AudioInput(
    sample_rate_hz=RATE_HZ,
    window_s=1.0,
    hop_s=0.5,
    mel=LogMel(
        n_fft=256, hop=100, n_mels=16, pad_mode="constant", top_db=None, normalize=(Affine(std=40.0),)
    ),
)


class Detector(nn.Module):
    """Two strided convolutions, maxima over the middle of the window and means over frequency."""

    def __init__(self, *, padded: bool, middle: slice) -> None:
        super().__init__()
        pad = 1 if padded else 0
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=pad)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=pad)
        self.scores = nn.Conv1d(8, 5, 1)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.norm(self.first(x[..., :80])))
        frames = torch.relu(self.second(maps)).mean(dim=2)
        return self.scores(frames)[..., self.middle].amax(dim=-1)


def network(*, padded: bool, middle: slice) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Detector(padded=padded, middle=middle).eval()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six recordings of noise that swells, of 5 to 13 s."""
    folder = tmp_path_factory.mktemp("recordings")
    chance = np.random.default_rng(0)
    for index in range(6):
        wave = 0.1 * chance.standard_normal(round((5.0 + 1.6 * index) * RATE_HZ))
        wave *= 1.0 + np.sin(np.arange(len(wave)) / 2_000.0)
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ, subtype="FLOAT")
    return folder


def exported(module: nn.Module, folder: Path) -> Path:
    sample = np.random.default_rng(0).standard_normal((3, 1, 16, 81)).astype(np.float32)
    export_module(module, [sample], target="onnx", folder=folder)
    return folder / ARTIFACT_FILES["onnx"]


def windows_of(path: Path) -> np.ndarray:
    wave, _ = soundfile.read(path, dtype="float32", always_2d=True)
    rows = SharedAudioFeatures([Demand(INPUT, keep_s=0.5)]).rows([wave], RATE_HZ)
    return np.stack([row.arrays[0] for row in rows])


def eager(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def made(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """Return a network whose columns see no window's end, and what was made of it."""
    folder = tmp_path_factory.mktemp("made")
    module = network(padded=False, middle=slice(2, -2))
    output = folder / "detector.alula"
    optimize_whole_files(
        exported(module, folder),
        recordings,
        output=output,
        input=INPUT,
        windows=6,
        keep_s=0.5,
        metric="cosine",
        engines=["onnxruntime"],
        precisions=["fp32"],
        budget="20s",
        labels=["a", "b", "c", "d", "e"],
        max_drop=1e-3,
    ).close()
    return module, output


def test_the_rows_of_a_recording_are_those_of_window_by_window(
    made: tuple[nn.Module, Path], recordings: Path
) -> None:
    module, output = made
    files = sorted(recordings.iterdir())
    with load(output) as ensemble:
        assert isinstance(ensemble, Ensemble)
        results = list(ensemble.map(files))
    for path, result in zip(files, results, strict=True):
        expected = eager(module, windows_of(path))
        assert result.scores is not None
        assert result.start_s is not None
        assert result.start_s.tolist() == [0.5 * k for k in range(len(expected))]
        # The first and the last window see silence here, and zeros of the spectrogram's padding there.
        np.testing.assert_allclose(result.scores[1:-1], expected[1:-1], atol=1e-3)


def test_the_verdict_is_kept_in_the_ensemble(made: tuple[nn.Module, Path]) -> None:
    (record,) = read_ensemble(made[1]).members
    assert record.view == View(rows=6, keep_s=0.5)
    verdict = record.whole_files
    assert verdict is not None
    assert verdict.accuracy.metric == "cosine"
    assert verdict.accuracy.drop <= 1e-3
    assert not verdict.gated
    # 19 columns of a window each, and one column for every 4 frames of 3.5 s.
    assert verdict.computed_share == pytest.approx((3.5 / 0.05 - 1) / (6 * 19), abs=0.01)
    assert not made[1].with_name("detector.alula.stretches").exists()


SCORE = """
import numpy as np

calls = []

def fn(y_true, y_pred):
    calls.append(y_true)
    np.save(r"{seen}", calls[0])
    return -float(len(calls))  # each call is worse than the one before
"""


def test_the_label_of_a_recording_counts_for_each_of_its_windows(recordings: Path, tmp_path: Path) -> None:
    lengths: dict[int, int] = {0: 0, 1: 0}
    for index, path in enumerate(sorted(recordings.iterdir())):
        folder = tmp_path / "classes" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
        lengths[index % 2] += len(windows_of(path))
    score = tmp_path / "score.py"
    score.write_text(SCORE.format(seen=tmp_path / "seen.npy"), "utf-8")
    with pytest.raises(AccuracyError, match=r"score.py:fn` fell from -1 to -2"):
        optimize_whole_files(
            exported(network(padded=True, middle=slice(None)), tmp_path),
            tmp_path / "classes",
            output=tmp_path / "x.alula",
            input=INPUT,
            windows=6,
            keep_s=0.5,
            metric=f"{score}:fn",
            labels=["a", "b", "c", "d", "e"],
        )
    seen = np.load(tmp_path / "seen.npy")
    # Of the recordings that validate, all windows, each with its recording's class.
    assert set(seen.tolist()) == {0, 1}
    assert all(0 < np.count_nonzero(seen == label) <= count for label, count in lengths.items())
    assert len(seen) > 2


def test_it_goes_into_larger_ensembles_with_its_view(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    manifest = make_ensemble([made[1], made[1]], tmp_path / "two.alula")
    assert [member.view for member in manifest.members] == 2 * [View(rows=6, keep_s=0.5)]
    assert all(member.whole_files is not None for member in manifest.members)


def with_a_broken_one(recordings: Path, folder: Path) -> Path:
    """Return a folder of the recordings behind a first one that is none."""
    folder.mkdir()
    (folder / "!.wav").write_bytes(b"no sound")
    for path in recordings.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_a_comparison_stops_within_a_recording_and_leaves_out_what_cannot_be_read(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings of 5 and 6.6 s have 10 and 14 rows, six of a stretch."""
    monkeypatch.setattr(whole_files, "_MOST_ROWS", 20)
    samples = open_samples(with_a_broken_one(recordings, tmp_path / "in"))
    stretch = msgspec.structs.replace(INPUT, window_s=3.5, hop_s=3.0)
    features = SharedAudioFeatures([Demand(INPUT, keep_s=0.5), Demand(stretch, keep_s=0.5, rows=6)])
    scored: list[int] = []
    reports: list[str] = []

    def by_window(x: np.ndarray) -> np.ndarray:
        scored.append(len(x))
        return np.ones((len(x), 3), np.float32)

    def compared(indices: range) -> whole_files._Comparison:
        return whole_files._Comparison(samples, indices, features, by_window=by_window, report=reports.append)

    comparison = compared(range(4))
    assert scored == [6, 4, 6, 6]
    assert len(reports) == 1
    assert reports[0].startswith(f"left out: {tmp_path / 'in' / '!.wav'}: ")
    stretches: list[int] = []

    def by_stretch(x: np.ndarray) -> np.ndarray:
        stretches.append(len(x))
        return np.ones((len(x), 6, 3), np.float32)

    accuracy = comparison.of(by_stretch, metric=metric_named("cosine"), max_drop=0.1)
    assert (accuracy.n, stretches) == (22, [1, 1, 1, 1])
    with pytest.raises(DataError, match="1 of 1 recordings to compare cannot be read"):
        compared(range(1))


def test_scores_that_differ_too_much_are_not_written(recordings: Path, tmp_path: Path) -> None:
    module = network(padded=True, middle=slice(None))
    recordings = with_a_broken_one(recordings, tmp_path / "in")
    with pytest.raises(AccuracyError, match="more than the 1e-12 allowed"):
        optimize_whole_files(
            exported(module, tmp_path),
            recordings,
            output=tmp_path / "x.alula",
            input=INPUT,
            windows=6,
            keep_s=0.5,
            metric="cosine",
            max_drop=1e-12,
        )
    assert not list(tmp_path.glob("x.alula*"))


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"hop_s": None}, {}, "do not overlap"),
        ({"mel": None}, {}, "no spectrogram"),
        ({}, {"windows": 1}, "expected at least 2"),
        ({}, {"metric": "top2"}, "Did you mean `top1`"),
        ({}, {"engines": ["openvin"]}, "Did you mean `openvino`"),
        ({}, {"budget": "soon"}, "soon"),
    ],
)
def test_what_gains_nothing_or_cannot_be_judged_is_refused(
    recordings: Path, tmp_path: Path, changes: dict[str, object], options: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        optimize_whole_files(
            "model.onnx",
            recordings,
            output=tmp_path / "x.alula",
            input=msgspec.structs.replace(INPUT, **changes),
            **options,  # type: ignore[arg-type]
        )


def test_the_folder_of_a_search_is_one_calls_own_and_stays_with_what_was_interrupted(tmp_path: Path) -> None:
    folder, target = tmp_path / "a.alula.stretches", tmp_path / "a.alula"
    with whole_files._models_in(folder, target):
        with (
            pytest.raises(UsageError, match="Another search works in"),
            whole_files._models_in(folder, target),
        ):
            pass
        assert (folder / "stretch").is_dir()
    with pytest.raises(AccuracyError), whole_files._models_in(folder, target):
        raise AccuracyError("The scores differ.")
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), whole_files._models_in(folder, target):
        (folder / "a.alula.search").mkdir()
        raise KeyboardInterrupt
    with pytest.raises(UsageError), whole_files._models_in(folder, target):
        raise UsageError("There are no such weights.")
    assert (folder / "a.alula.search").is_dir()
