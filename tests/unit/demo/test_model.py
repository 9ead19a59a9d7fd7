"""The shipped network: small enough for the package, good on songs that it was not trained on."""

from __future__ import annotations

import numpy as np
import pytest

from alula.demo.model import demo_input, load_songnet, songnet, weights_path
from alula.demo.songs import (
    CLIP_S,
    LABELS,
    SAMPLE_RATE_HZ,
    synthesize_clip,
    synthesize_soundscape,
    window_truth,
)
from alula.features import AudioFeatures


def _scores(waves: np.ndarray) -> np.ndarray:
    """Logits of windows (n, t), float32 (n, 12)."""
    torch = pytest.importorskip("torch")
    network = load_songnet()
    spectrograms = torch.from_numpy(AudioFeatures(demo_input()).transform(waves))
    with torch.inference_mode():
        return np.concatenate([network(part).numpy() for part in spectrograms.split(16)])


def test_weights_fit_into_the_package() -> None:
    assert weights_path().stat().st_size <= 3_000_000


def test_demo_input_gives_what_the_network_takes() -> None:
    assert AudioFeatures(demo_input()).sample_shape == (1, 128, 313)


def test_only_dense_convolutions() -> None:
    nn = pytest.importorskip("torch.nn")
    convolutions = [module for module in songnet().modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > 10
    assert all(convolution.groups == 1 for convolution in convolutions)


def test_logits_of_a_window_do_not_depend_on_its_batch() -> None:
    clips = np.stack([synthesize_clip(species, 42) for species in range(3)])
    together = _scores(clips)
    assert together.shape == (3, len(LABELS))
    # Convolutions sum in another order for another batch size.
    np.testing.assert_allclose(_scores(clips[1:2])[0], together[1], rtol=1e-4, atol=1e-4)


def test_accuracy_on_fresh_clips() -> None:
    """Right about most clips, but not all: the task must leave room for an accuracy verdict."""
    clips = np.stack([synthesize_clip(species, seed) for seed in range(10) for species in range(12)])
    truth = np.tile(np.arange(12), 10)
    assert np.mean(_scores(clips).argmax(axis=1) == truth) >= 0.85


def test_macro_auc_over_soundscape_windows() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    windows, targets = [], []
    for seed in range(8):
        sound, events = synthesize_soundscape(seed, 60.0)
        windows.append(sound.reshape(-1, round(CLIP_S * SAMPLE_RATE_HZ)))
        targets.append(window_truth(events, CLIP_S, n_windows=12, labels=LABELS))
    truth = np.concatenate(targets)
    scores = _scores(np.concatenate(windows))
    present = truth.any(axis=0)
    assert present.sum() >= 10
    assert metrics.roc_auc_score(truth[:, present], scores[:, present], average="macro") >= 0.85
