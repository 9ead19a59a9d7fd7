"""Bundles written without a search, and data to run them on."""

from __future__ import annotations

import wave
from pathlib import Path

import msgspec
import numpy as np
from tiny import write_linear_onnx

from alula.bundle import Activation, Baseline, Deployed, Manifest, write_bundle
from alula.core import (
    Accuracy,
    AudioInput,
    ImageInput,
    InputDescription,
    LogMel,
    Ratio,
    Recipe,
    Settings,
    Signature,
    TensorSpec,
)
from alula.engines import engine_named
from alula.engines.fake import FakeScript
from alula.features import AudioFeatures, make_features
from alula.hardware import fingerprint

COLOURS = ("blue", "green", "red")
COLOUR_IMAGES = ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,))
SONGS = ("chirp", "hum", "whistle")
RECORDINGS = AudioInput(
    sample_rate_hz=8000, window_s=1.0, mel=LogMel(n_fft=256, hop=128, n_mels=8, f_max_hz=4000.0)
)


def write_scripted_bundle(
    target: Path,
    *,
    scratch: Path,
    description: InputDescription,
    outputs: tuple[TensorSpec, ...],
    shape: tuple[int, ...],
    labels: tuple[str, ...] | None = None,
    activation: Activation = "none",
    scale: float = 1.0,
    settings: Settings | None = None,
) -> Path:
    """Write a bundle on the fake engine: each output is the input's first values times `scale`; return it.

    Args:
        target: the bundle.
        scratch: folder for what goes into it.
        description: how files become inputs.
        outputs: of the model.
        shape: of one input, float32.
        labels: class names.
        activation: applied to the first output.
        scale: of the outputs.
        settings: how it runs.
    """
    scratch = scratch / target.name
    (scratch / "artifact").mkdir(parents=True)
    (scratch / "search.jsonl").write_bytes(b"")
    (scratch / "artifact" / "fake.json").write_bytes(msgspec.json.encode(FakeScript(scale=scale)))
    signature = Signature((TensorSpec("x", "float32", ("b", *shape)),), outputs)
    settings = Settings(batch_size=4) if settings is None else settings
    session = engine_named("fake").load(
        scratch / "artifact", recipe=Recipe("fake", "fp32"), signature=signature, settings=settings
    )
    golden = np.random.default_rng(3).uniform(0.1, 1, (4, *shape)).astype(np.float32)
    results = {f"fake_{index}": result for index, result in enumerate(session.run((golden,)))}
    write_bundle(
        target,
        _manifest(
            signature,
            description,
            labels=labels,
            activation=activation,
            recipe="fake/fp32",
            settings=settings,
            golden=tuple(results),
        ),
        artifacts={"artifacts/fake-fp32": scratch / "artifact"},
        golden={"input_0": golden, "baseline_0": results["fake_0"], **results},
        journal=scratch / "search.jsonl",
    )
    return target


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


def write_audio_bundle(target: Path, *, scratch: Path, seed: int = 11) -> Path:
    """Write a bundle of one linear layer over the mel bands of `RECORDINGS`, with three labels; return it.

    Args:
        target: the bundle.
        scratch: empty folder for what goes into it.
        seed: of the weights.
    """
    random = np.random.default_rng(seed)
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
    return write_onnx_bundle(
        target, scratch, RECORDINGS, golden, signature=signature, labels=SONGS, activation="sigmoid"
    )


def write_onnx_bundle(
    target: Path,
    scratch: Path,
    description: InputDescription,
    golden: np.ndarray,
    *,
    signature: Signature,
    labels: tuple[str, ...],
    activation: Activation,
) -> Path:
    """Write a bundle of an ONNX file as it is, for ONNX Runtime; return it.

    Args:
        target: the bundle.
        scratch: folder with `artifact/model.onnx`, and for the rest of what goes into it.
        description: how files become inputs.
        golden: some inputs, (n, ...).
        signature: of the file.
        labels: class names, one per column of the only output.
        activation: applied to it.
    """
    artifact = scratch / "artifact"
    settings = Settings(threads=1, instances=1, batch_size=8)
    session = engine_named("onnxruntime").load(
        artifact, recipe=Recipe("onnxruntime", "fp32"), signature=signature, settings=settings
    )
    (outputs,) = session.run((golden,))
    session.close()
    (scratch / "search.jsonl").write_bytes(b"")
    manifest = _manifest(
        signature,
        description,
        labels=labels,
        activation=activation,
        recipe="onnxruntime/fp32",
        settings=settings,
        golden=("onnxruntime-fp32_0",),
    )
    write_bundle(
        target,
        manifest,
        artifacts={"artifacts/onnxruntime-fp32": artifact},
        golden={"input_0": golden, "onnxruntime-fp32_0": outputs},
        journal=scratch / "search.jsonl",
    )
    return target


def _manifest(
    signature: Signature,
    description: InputDescription,
    *,
    labels: tuple[str, ...] | None,
    activation: Activation,
    recipe: str,
    settings: Settings,
    golden: tuple[str, ...],
) -> Manifest:
    return Manifest(
        schema_version=1,
        alula_version="0",
        created="2024-01-01T00:00:00+00:00",
        model="a model",
        signature=signature,
        input=description,
        labels=labels,
        activation=activation,
        chosen=Deployed(
            recipe=recipe,
            artifact=f"artifacts/{recipe.replace('/', '-')}",
            settings=settings,
            throughput_per_s=100.0,
            rounds_per_s=(100.0,),
            runs_code=False,
            golden=golden,
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
