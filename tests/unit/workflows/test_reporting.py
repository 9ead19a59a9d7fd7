"""From a bundle to its page, and bench in the scenarios that are no throughput."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import CLASSES, FEATURES, write_factory, write_onnx

from alula.bundle import read_measurements
from alula.cli.render import draw_manifest
from alula.core import Accepted
from alula.errors import BundleError, ModelError, UsageError
from alula.measure import Latency
from alula.tuning import comparison
from alula.workflows import bench, benching, optimize, write_report


def test_the_page_of_a_bundle(optimized: SimpleNamespace, tmp_path: Path) -> None:
    page = write_report(optimized.bundle.path, tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    for outcome in optimized.outcomes:
        recipe = outcome.candidate.recipe if isinstance(outcome, Accepted) else outcome.recipe
        assert recipe.name in text
    assert "last comparison" in text
    assert page.name == "page.html"


def test_the_page_is_named_as_the_bundle(
    optimized: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = write_report(optimized.bundle.path)
    assert page == Path(f"{optimized.bundle.path.name.removesuffix('.alula')}.html")
    assert page.is_file()


def test_a_folder_without_a_bundle_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        write_report(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_search_for_latency_measures_single_samples(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "STREAM_S", 1.0)
    x = rng.normal(size=(30, FEATURES)).astype(np.float32)
    bundle = optimize(
        write_onnx(tmp_path / "model.onnx"),
        x,
        output=tmp_path / "a.alula",
        scenario="single-stream",
        threads=1,
        engines=["onnxruntime"],
        precisions=["fp32"],
    )
    bundle.close()
    found = read_measurements(bundle.path)
    assert found.scenario == "single-stream"
    assert found.latency is not None
    assert found.latency.n >= 368
    assert found.latency.p50.value_s <= found.latency.p99.value_s
    assert bundle.manifest.chosen.settings.batch_size == 1
    page = write_report(bundle.path, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "latency of one sample" in page.lower()
    assert f"{found.latency.n:,} queries, {found.latency.seconds:.0f} s" in page
    text = io.StringIO()
    draw_manifest(Console(file=text, width=200), bundle.path, bundle.manifest)
    assert f"{found.latency} (single-stream)" in text.getvalue()
    asked: list[str] = []

    def measured(child: comparison.Child, inputs: tuple[str, ...], **options: Any) -> Latency:
        asked.append(child.request_file.stem)
        assert options["parts"] == benching.PASSES == 4
        return found.latency

    monkeypatch.setattr(benching, "measure_latency", measured)
    other = shutil.copytree(bundle.path, tmp_path / "b.alula")
    report = bench([bundle.path, other], scenario="single-stream", threads=1, rounds=1, round_s=0.01)
    first, second = "scenario-0", "scenario-1"
    assert asked == [first, second, second, first, first, second, second, first]
    for row in report.rows:
        assert row.latency is not None
        assert row.latency.times_s == 4 * found.latency.times_s
        assert row.change is None


def test_a_limit_belongs_to_the_server_scenario(tmp_path: Path) -> None:
    for scenario, limit in (("server", None), ("offline", "50ms"), ("single-stream", "50ms")):
        with pytest.raises(UsageError, match="latency limit belongs to the scenario `server`"):
            bench(["a.alula"], scenario=scenario, latency_limit=limit)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="latency limit belongs to the scenario `server`"):
            optimize(
                "m.onnx",
                tmp_path,
                output=tmp_path / "b.alula",
                scenario=scenario,  # type: ignore[arg-type]
                latency_limit=limit,
            )


def test_a_model_beside_a_bundle(optimized: SimpleNamespace, tmp_path: Path) -> None:
    model = f"{write_factory(tmp_path)}:tiny"
    report = bench([optimized.bundle.path, model], threads=1, rounds=1, round_s=0.01)
    first, second = report.rows
    assert (second.name, second.recipe, second.tuned_per_s) == (model, "torch/fp32", None)
    assert second.ratio is not None
    assert first.ratio is None
    assert report.roofline is not None
    for row in report.rows:  # both compute the same network in FP32; its products by hand
        macs = 8 * 8 * 8 * 3 * 9 + 8 * CLASSES
        expected = row.throughput.per_s * macs / (1e9 * report.roofline.fp32_gmacs_per_s)
        assert row.of_peak.share == pytest.approx(expected)


@pytest.mark.parametrize("batch", ["b", 4])
def test_an_onnx_file_is_a_model_as_it_is(tmp_path: Path, batch: int | str) -> None:
    path = write_onnx(tmp_path / "model.onnx", batch=batch)
    for scenario in ("offline", "single-stream"):
        report = bench([path], shape=(FEATURES,), scenario=scenario, threads=1, rounds=1, round_s=0.01)  # type: ignore[arg-type]
        (row,) = report.rows
        assert row.recipe == "onnxruntime/fp32"
        assert row.throughput.per_s > 0
        assert row.of_peak.share is not None
        assert (row.latency is None) == (scenario == "offline")


def test_a_model_alone_needs_a_shape(tmp_path: Path) -> None:
    model = f"{write_factory(tmp_path)}:tiny"
    with pytest.raises(UsageError, match="give the shape of one sample"):
        bench([model], threads=1, rounds=1, round_s=0.01)
    report = bench([model], shape=(3, 16, 16), threads=1, rounds=1, round_s=0.01)
    assert report.rows[0].throughput.per_s > 0
    with pytest.raises(ModelError):
        bench([model], shape=(4, 16, 16), threads=1, rounds=1, round_s=0.01)
