"""Bundles written without a search, and data to run them on."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from tiny import write_linear_onnx

from alula.bundle import Baseline, Deployed, Manifest, write_bundle
from alula.core import (
    Accuracy,
    AudioInput,
    ImageInput,
    LogMel,
    Ratio,
    Recipe,
    Settings,
    Signature,
    TensorSpec,
)
from alula.engines import engine_named
from alula.features import AudioFeatures, make_features
from alula.hardware import fingerprint

COLOURS = ("blue", "green", "red")
COLOUR_IMAGES = ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,))
SONGS = ("chirp", "hum", "whistle")
RECORDINGS = AudioInput(
    sample_rate_hz=8000, window_s=1.0, mel=LogMel(n_fft=256, hop=128, n_mels=8, f_max_hz=4000.0)
)


def write_images(folder: Path, *, per_class: int, seed: int = 0) -> Path:
    """Write noisy PNG files of 16x16, a folder per colour; return the folder."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def write_wav(path: Path, samples: np.ndarray, *, rate_hz: int = 8000) -> Path:
    """Write mono 16-bit WAV of samples in [-1, 1]; return the path."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return path


def write_audio_bundle(target: Path, *, scratch: Path) -> Path:
    """Write a bundle of one linear layer over the mel bands of `RECORDINGS`, with three labels; return it.

    Args:
        target: the bundle.
        scratch: empty folder for what goes into it.
    """
    random = np.random.default_rng(11)
    features = make_features(RECORDINGS)
    assert isinstance(features, AudioFeatures)
    waves = random.uniform(-1, 1, (4, RECORDINGS.window_samples, 1)).astype(np.float32)
    golden = np.stack(
        [
            window.samples
            for wave_ in waves
            for window in features.windows(iter([wave_]), RECORDINGS.sample_rate_hz)
        ]
    )
    shape = golden.shape[1:]
    artifact = scratch / "artifact"
    artifact.mkdir(parents=True)
    weights = random.normal(0, 0.01, (int(np.prod(shape)), len(SONGS))).astype(np.float32)
    write_linear_onnx(artifact / "model.onnx", weights, shape=("b", *shape))
    signature = Signature(
        (TensorSpec("x", "float32", ("b", *shape)),),
        (TensorSpec("scores", "float32", ("b", len(SONGS))),),
    )
    settings = Settings(threads=1, instances=1, batch_size=8)
    session = engine_named("onnxruntime").load(
        artifact, recipe=Recipe("onnxruntime", "fp32"), signature=signature, settings=settings
    )
    (outputs,) = session.run((golden,))
    session.close()
    (scratch / "search.jsonl").write_bytes(b"")
    manifest = Manifest(
        schema_version=1,
        alula_version="0",
        created="2024-01-01T00:00:00+00:00",
        model="linear",
        signature=signature,
        input=RECORDINGS,
        labels=SONGS,
        activation="sigmoid",
        chosen=Deployed(
            recipe="onnxruntime/fp32",
            artifact="artifacts/onnxruntime-fp32",
            settings=settings,
            throughput_per_s=100.0,
            rounds_per_s=(100.0,),
            runs_code=False,
            golden=("onnxruntime-fp32_0",),
        ),
        fallbacks=(),
        baseline=Baseline(
            recipe="torch/fp32", settings=settings, throughput_per_s=50.0, rounds_per_s=(50.0,)
        ),
        speedup=Ratio(2.0, 1.9, 2.1),
        accuracy=Accuracy(
            metric="top1", n=10, baseline=1, chosen=1, drop=0, drop_low=0, drop_high=0, limit=0.01
        ),
        folder=None,
        calibration=(0,),
        validation=(1, 2),
        data="noise",
        seed=0,
        machine=fingerprint(),
        versions={},
        notes=(),
        warnings=(),
        golden_inputs=("input_0",),
        files={},
    )
    write_bundle(
        target,
        manifest,
        artifacts={"artifacts/onnxruntime-fp32": artifact},
        golden={"input_0": golden, "onnxruntime-fp32_0": outputs},
        journal=scratch / "search.jsonl",
    )
    return target
