"""What calibration keeps: found once, right for every recipe, never taken for other data or another model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx_models import images, material_for, write_residual, write_separable

from alula.core import Recipe
from alula.quantization import onnxruntime_calibration as calibration
from alula.quantization import quantizer_named
from alula.quantization.onnxruntime_findings import (
    BINS,
    Findings,
    Histogram,
    findings_file,
    read_findings,
    write_findings,
)

QUANTIZER = quantizer_named("onnxruntime/int8-static")
NAMES = [recipe.name for recipe in QUANTIZER.recipes(())]


@pytest.fixture
def samples() -> np.ndarray:
    """Calibration images."""
    return images(np.random.default_rng(4), 12)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each pass over the samples computed."""
    passes: list[int] = []
    compute = calibration._Activations.computed

    def counting(self: calibration._Activations, batches: object) -> object:
        passes.append(len(self._inside) + len(self._given))
        return compute(self, batches)

    monkeypatch.setattr(calibration._Activations, "computed", counting)
    return passes


def quantized(export: Path, samples: np.ndarray, artifact: Path, name: str = NAMES[0]) -> bytes:
    artifact.mkdir(parents=True)
    QUANTIZER.quantize(material_for(export, samples), artifact, recipe=Recipe.parse(name))
    return (artifact / "model.onnx").read_bytes()


def test_every_recipe_is_the_same_as_calibrated_alone(
    tmp_path: Path, samples: np.ndarray, computed: list[int]
) -> None:
    shared = write_separable(tmp_path).parent
    for name in NAMES:
        alone = tmp_path / name / "export"
        alone.mkdir(parents=True)
        shutil.copy2(shared / "model.onnx", alone)
        expected = quantized(alone, samples, tmp_path / name / "alone", name)
        before = len(computed)
        assert quantized(shared, samples, tmp_path / name / "shared", name) == expected
        # The plain recipe computes extremes, the first without outliers counts; the rest is known by then.
        first_of_its_kind = name in ("onnxruntime/int8-static", "onnxruntime/int8-static-percentile")
        assert len(computed) - before == first_of_its_kind
    assert [path.suffix for path in sorted(shared.glob("calibration-*"))] == [".npz"]


def test_what_a_smaller_scope_did_not_need_is_added(
    tmp_path: Path, samples: np.ndarray, computed: list[int]
) -> None:
    export = write_separable(tmp_path).parent
    quantized(export, samples, tmp_path / "dense", "onnxruntime/int8-static-dense")
    quantized(export, samples, tmp_path / "all", "onnxruntime/int8-static")
    (path,) = export.glob("calibration-*.npz")
    assert all(count > 0 for count in computed)
    assert sum(computed) == len(read_findings(path).extremes)


def test_other_samples_and_other_models_are_not_mistaken(tmp_path: Path, samples: np.ndarray) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    export, fresh = write_separable(tmp_path / "a").parent, write_separable(tmp_path / "b").parent
    first = quantized(export, samples, tmp_path / "first")
    expected = quantized(fresh, 3 * samples, tmp_path / "fresh")
    assert quantized(export, 3 * samples, tmp_path / "second") == expected != first
    write_residual(export)  # in the same place
    quantized(export, samples, tmp_path / "third")
    assert len(list(export.glob("calibration-*.npz"))) == 3


def test_the_file_depends_on_how_samples_are_shaped(tmp_path: Path, samples: np.ndarray) -> None:
    import onnx

    model = onnx.load(write_separable(tmp_path))
    paths = {
        findings_file(tmp_path, model, lambda given=given: iter([(given,)]))
        for given in (samples, samples.reshape(6, 2, *samples.shape[1:]), samples.view(np.int32), samples[1:])
    }
    assert len(paths) == 4
    assert findings_file(tmp_path, model, lambda: iter([(samples.copy(),)])) in paths


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, samples: np.ndarray, damage: bytes, computed: list[int]
) -> None:
    export = write_separable(tmp_path).parent
    expected = quantized(export, samples, tmp_path / "first")
    (path,) = export.glob("calibration-*.npz")
    path.write_bytes(damage)
    assert quantized(export, samples, tmp_path / "second") == expected
    assert len(computed) == 2
    assert read_findings(path).extremes


def test_findings_come_back_to_the_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    low, high = -float(rng.random()), float(rng.random())
    histogram = Histogram(low, high)
    histogram.add(rng.uniform(low, high, 999).astype(np.float32))
    write_findings(tmp_path / "f.npz", Findings({"x": (low, high), "y": (0.1, 0.1)}, {"x": histogram}))
    read = read_findings(tmp_path / "f.npz")
    assert read.extremes == {"x": (low, high), "y": (0.1, 0.1)}
    assert list(read.histograms) == ["x"]
    np.testing.assert_array_equal(read.histograms["x"].counts, histogram.counts)
    assert (read.histograms["x"].low, read.histograms["x"].high) == (low, high)
    assert len(histogram.counts) == BINS


def test_where_nothing_can_be_kept_it_is_found_anew(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "f.npz"
    write_findings(path, Findings({"x": (0.0, 1.0)}))
    assert read_findings(path) == Findings()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
