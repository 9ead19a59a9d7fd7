"""A bundle runs where there is nothing but its own engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import write_wav

from alula.workflows import load, predict

BLOCKED = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "nncf",
    "timm",
    "openvino",
    "safetensors",
    "cloudpickle",
)

_SITE = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"`{{name}}` is not installed here")

sys.meta_path.insert(0, Blocker())
"""

_LOAD = """
import sys
from pathlib import Path
import numpy as np
import alula
folder = Path(sys.argv[1])
with alula.load(sys.argv[2], threads=1) as bundle:
    np.save(folder / "scores.npy", bundle(np.load(folder / "x.npy")))
    from alula.workflows import predict
    predict(bundle, [folder / "in"], output=folder / "scores.csv")
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that cannot import what trains, exports and quantizes models."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_SITE)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def test_the_block_blocks(bare: dict[str, str]) -> None:
    for name in BLOCKED:
        refused = subprocess.run([sys.executable, "-c", f"import {name}"], env=bare, capture_output=True)
        assert refused.returncode == 1
        assert b"is not installed here" in refused.stderr


def test_the_same_numbers(
    audio_bundle: Path, tmp_path: Path, bare: dict[str, str], rng: np.random.Generator
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        write_wav(tmp_path / "in" / f"{index}.wav", rng.uniform(-0.9, 0.9, 8000 * (index + 1)))
    with load(audio_bundle, threads=1) as bundle:
        (spec,) = bundle.manifest.signature.inputs
        x = rng.normal(size=(21, *map(int, spec.shape[1:]))).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        expected = bundle(x)
        predict(bundle, [tmp_path / "in"], output=tmp_path / "expected.csv")
    finished = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tmp_path), str(audio_bundle)],
        env=bare,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "onnxruntime" in finished.stdout
    assert not set(BLOCKED) & set(eval(finished.stdout))
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), expected)
    assert (tmp_path / "scores.csv").read_text() == (tmp_path / "expected.csv").read_text()


def test_without_its_engine_it_says_what_to_install(audio_bundle: Path, bare: dict[str, str]) -> None:
    site = Path(bare["PYTHONPATH"]) / "sitecustomize.py"
    site.write_text(site.read_text().replace("('torch',", "('onnxruntime', 'torch',"))
    finished = subprocess.run(
        [sys.executable, "-c", f"import alula; alula.load({str(audio_bundle)!r})"],
        env=bare,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("alula.errors.BundleError")
    assert "pip install 'alula[onnxruntime]'" in last
