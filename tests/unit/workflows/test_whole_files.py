"""Whole recordings at once, against the network in eager PyTorch window by window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from alula.accuracy import metric_named
from alula.core import ARTIFACT_FILES, Affine, AudioInput, LogMel, MinMax
from alula.data import open_audio
from alula.export import export_module
from alula.features import AudioFeatures
from alula.workflows import WholeFiles, WholeFileVerdict, open_whole_files

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


def recording(path: Path, seconds: float, *, seed: int = 0) -> Path:
    chance = np.random.default_rng(seed)
    wave = 0.1 * chance.standard_normal(round(seconds * RATE_HZ))
    wave *= 1.0 + np.sin(np.arange(len(wave)) / 2_000.0)
    soundfile.write(path, wave, RATE_HZ, subtype="FLOAT")
    return path


def windows(path: Path) -> np.ndarray:
    with open_audio(path) as audio:
        found = [one.samples for one in AudioFeatures(INPUT).windows(audio.blocks(), audio.rate_hz)]
    return np.stack(found)


def eager(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def exported(module: nn.Module, folder: Path) -> Path:
    sample = np.random.default_rng(0).standard_normal((3, 1, 16, 81)).astype(np.float32)
    export_module(module, [sample], target="onnx", folder=folder)
    return folder / ARTIFACT_FILES["onnx"]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """Return a network that pads its maps and uses all columns, and its ONNX file."""
    module = network(padded=True, middle=slice(None))
    return module, exported(module, tmp_path_factory.mktemp("padded"))


def opened(
    module: nn.Module,
    model: Path,
    folder: Path,
    files: list[Path],
    *,
    description: AudioInput = INPUT,
    max_drop: float = 1e-6,
    block_s: float = 1.7,
) -> tuple[WholeFiles | None, WholeFileVerdict]:
    return open_whole_files(
        model,
        folder,
        description=description,
        recordings=files,
        window_scores=lambda x: eager(module, x),
        metric=metric_named("cosine"),
        max_drop=max_drop,
        block_s=block_s,
    )


def whole(way: WholeFiles, path: Path) -> np.ndarray:
    with open_audio(path) as audio:
        return np.concatenate(list(way.scores(audio.blocks(), audio.rate_hz)))


def test_columns_that_see_no_window_end_give_the_scores_of_each_window(tmp_path: Path) -> None:
    # Without padding of its own, and with the outermost columns, which see padded frames, left out.
    module = network(padded=False, middle=slice(2, -2))
    file = recording(tmp_path / "a.wav", 20.3)
    way, verdict = opened(module, exported(module, tmp_path), tmp_path, [file])
    assert way is not None
    assert (verdict.allowed, verdict.gated) == (True, False)
    got, expected = whole(way, file), eager(module, windows(file))
    assert got.shape == expected.shape == (40, 5)
    # Float32 in another order of sums; scores are around 1.
    np.testing.assert_allclose(got, expected, atol=1e-4)
    way.close()


def test_padding_makes_a_difference_that_is_measured(padded: tuple[nn.Module, Path], tmp_path: Path) -> None:
    file = recording(tmp_path / "a.wav", 10.0)
    way, verdict = opened(*padded, tmp_path, [file], max_drop=1e-12)
    assert way is None
    assert not verdict.allowed
    assert verdict.accuracy is not None
    assert verdict.accuracy.drop > 1e-12
    assert "more than the 1e-12 allowed" in verdict.reason


def test_a_small_difference_within_the_limit_is_allowed_and_said(
    padded: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    file = recording(tmp_path / "a.wav", 10.0)
    way, verdict = opened(*padded, tmp_path, [file], max_drop=0.5)
    assert way is not None
    assert verdict.accuracy is not None
    assert verdict.accuracy.n == 19
    assert "at most 0.5 allowed" in verdict.reason
    assert verdict.computed_once is not None
    way.close()


def test_long_blocks_compute_half_of_windows_that_overlap_by_half(
    padded: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    file = recording(tmp_path / "a.wav", 3.0)
    way, verdict = opened(*padded, tmp_path, [file], max_drop=0.5, block_s=60.0)
    assert way is not None
    assert verdict.computed_once == pytest.approx(0.5, abs=0.005)
    way.close()


def test_what_belongs_to_each_window_is_refused_with_its_reason(
    padded: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    file = recording(tmp_path / "a.wav", 3.0)
    mel = LogMel(n_fft=256, hop=100, n_mels=16, normalize=(MinMax(),))
    description = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, hop_s=0.5, mel=mel)
    way, verdict = opened(*padded, tmp_path, [file], description=description)
    assert way is None
    assert verdict.accuracy is None
    assert "normalised by its own values" in verdict.reason
