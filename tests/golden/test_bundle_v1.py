"""A bundle of schema version 1, as it was written once; every later release reads it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from alula.bundle import GOLDEN_NAME, decode_manifest, encode_manifest, read_manifest, start, verify
from alula.core import Affine, AudioInput, LogMel, MinMax, Ratio, Settings, ZScore
from alula.engines import engine_named
from alula.errors import EngineUnavailableError

BUNDLE = Path(__file__).resolve().parent / "bundle_v1"


def test_it_reads() -> None:
    manifest = read_manifest(BUNDLE)
    verify(BUNDLE, manifest)
    assert manifest.schema_version == 1
    assert manifest.labels == ("great tit", "chaffinch")
    assert manifest.activation == "sigmoid"
    assert manifest.chosen.recipe == "onnxruntime/fp32"
    assert manifest.chosen.settings == Settings(threads=1, instances=2, batch_size=8, knobs={"spin": False})
    assert manifest.baseline.throughput_per_s == 20.0
    assert (manifest.speedup.low, manifest.speedup.median, manifest.speedup.high) == (1.9, 2.0, 2.1)
    assert manifest.accuracy.warnings == ("50 samples are too few to tell",)
    assert manifest.folder is not None
    assert manifest.folder.samples_per_s == 35.0
    assert isinstance(manifest.input, AudioInput)
    assert manifest.input.hop_s == 0.5
    assert manifest.input.mel == LogMel(
        n_fft=256,
        hop=2000,
        win=200,
        n_mels=4,
        f_min_hz=50.0,
        f_max_hz=3500.0,
        scale="slaney",
        mel_norm="slaney",
        power=1,
        pad_mode="constant",
        ref="max",
        top_db=60.0,
        normalize=(MinMax(eps=0.001), ZScore(), Affine(mean=0.5, std=0.25)),
    )


def test_writing_it_again_changes_nothing() -> None:
    # Its checksum covers every field with its default: a new field needs a new schema version.
    manifest = read_manifest(BUNDLE)
    assert encode_manifest(manifest) == (BUNDLE / "bundle.json").read_bytes()
    assert msgspec.structs.asdict(
        decode_manifest(encode_manifest(manifest), BUNDLE)
    ) == msgspec.structs.asdict(manifest)


def test_an_interval_without_upper_end_reads() -> None:
    # As it was written from the start, after searches of fewer than six rounds.
    old = read_manifest(BUNDLE)
    few = msgspec.structs.replace(old, speedup=Ratio(2.0, 0.0, math.inf))
    assert b'"high": null' in encode_manifest(few)
    assert decode_manifest(encode_manifest(few), BUNDLE).speedup == few.speedup


def test_it_runs() -> None:
    try:
        engine_named("onnxruntime").version()
    except EngineUnavailableError as error:
        pytest.skip(f"NOT COVERED HERE: {error}")
    manifest = read_manifest(BUNDLE)
    running = start(BUNDLE, manifest, threads=1, here=manifest.machine)
    assert running.deployed == manifest.chosen
    with np.load(BUNDLE / GOLDEN_NAME, allow_pickle=False) as stored:
        (logits,) = running.session.run((stored["input_0"],))
        # Twenty float32 products per logit.
        np.testing.assert_allclose(logits, stored["chosen"], rtol=1e-5, atol=1e-5)
    running.session.close()


def test_its_fallback_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    manifest = read_manifest(BUNDLE)
    with pytest.warns(UserWarning, match=r"bundle_v1 runs as fake/fp32 here, not as onnxruntime/fp32: "):
        running = start(BUNDLE, manifest, threads=1, here=manifest.machine)
    assert running.deployed == manifest.fallbacks[0]
