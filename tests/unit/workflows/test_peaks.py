"""The machine's peaks: measured once and kept, within what a budget leaves, and told where they are wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from tiny import CLASSES, FEATURES, write_onnx

from alula.bundle import Measurements, read_measurements
from alula.cli import cli
from alula.core import Recipe, Roofline, Share
from alula.hardware import thread_budget
from alula.tuning.roofline import Workload
from alula.workflows import diagnosis, optimize, peaks, write_report
from alula.workflows.peaks import (
    cache_folder,
    doubts,
    keep_roofline,
    kept_roofline,
    roofline_here,
    time_for_peaks_s,
)

ROOF = Roofline(
    fp32_gmacs_per_s=100.0, int8_gmacs_per_s=400.0, bandwidth_gb_per_s=20.0, threads=1, method="by hand"
)
# The work of `tiny` on images of 16x16, by hand.
TINY_MACS = 8 * 8 * 8 * 3 * 9 + 8 * CLASSES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv(peaks.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines of report; measuring is quick, and its figures are good for nothing."""
    small = Workload(layers=2, channels=8, size=6, rows=5, features=16)
    monkeypatch.setattr(peaks, "SHORT", small)
    monkeypatch.setattr(peaks, "ROUND_S", 0.001)
    monkeypatch.setattr(peaks, "ROUNDS", 1)
    return []


def test_peaks_are_measured_once(cache: Path, reports: list[str]) -> None:
    first = roofline_here(threads=1, report=reports.append)
    assert reports == ["measuring the machine's peaks, once"]
    assert first is not None
    assert first.threads == 1
    assert first.fp32_gmacs_per_s > 0
    assert first.bandwidth_gb_per_s is None
    assert len(list(cache.iterdir())) == 1
    assert roofline_here(threads=1, report=reports.append) == first
    assert roofline_here(threads=1, limit_s=0.0) == first
    assert len(reports) == 1


def test_a_failure_to_measure_is_a_line_and_no_number(cache: Path, reports: list[str]) -> None:
    assert roofline_here(threads=0, report=reports.append) is None
    assert reports[1].startswith("the machine's peaks are not known, nor shares of them: ")
    assert "thread" in reports[1]


def test_peaks_are_kept_by_threads_and_versions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_roofline(ROOF, [cache])
    assert kept_roofline([cache], threads=1) == ROOF
    assert kept_roofline([cache], threads=2) is None
    monkeypatch.setattr(peaks, "__version__", "another")
    assert kept_roofline([cache], threads=1) is None


def test_the_higher_of_two_measurements_stays(cache: Path) -> None:
    disturbed = Roofline(fp32_gmacs_per_s=110.0, int8_gmacs_per_s=300.0, threads=1, method="again")
    keep_roofline(ROOF, [cache])
    keep_roofline(disturbed, [cache])
    got = kept_roofline([cache], threads=1)
    assert got is not None
    assert (got.fp32_gmacs_per_s, got.int8_gmacs_per_s, got.bandwidth_gb_per_s) == (110.0, 400.0, 20.0)
    assert got.bf16_gmacs_per_s is None
    assert got.method == "again; or earlier, where that was higher"
    best = msgspec.structs.replace(ROOF, fp32_gmacs_per_s=120.0, method="best")
    keep_roofline(best, [cache])
    assert kept_roofline([cache], threads=1) == best


def test_without_a_cache_folder_the_search_keeps_them(cache: Path, tmp_path: Path) -> None:
    cache.write_text("no folder")
    assert not keep_roofline(ROOF, [cache])
    assert keep_roofline(ROOF, [cache, tmp_path / "search"])
    assert roofline_here(threads=1, limit_s=0.0, also=tmp_path / "search") == ROOF
    assert roofline_here(threads=1, limit_s=0.0) is None


def test_a_damaged_file_is_as_none(cache: Path) -> None:
    keep_roofline(ROOF, [cache])
    for path in cache.iterdir():
        path.write_bytes(b"{")
    assert kept_roofline([cache], threads=1) is None


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(peaks.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/alula")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/alula")


def test_measuring_takes_no_more_than_a_tenth_of_a_budget() -> None:
    for budget_s in (0.001, 30.0, 119.0, 120.0, 200.0, 6000.0):
        given_s = time_for_peaks_s(budget_s)
        assert given_s <= 0.1 * budget_s
        assert given_s == 0 or given_s >= peaks.LEAST_S
    assert time_for_peaks_s(119.0) == 0
    assert time_for_peaks_s(6000.0) == peaks.LIMIT_S


def test_only_shares_above_the_peak_are_doubted() -> None:
    fine = Share(share=1.0, of=("fp32",))
    assert doubts([("a", fine), ("b", Share(reason="none"))]) == ()
    (text,) = doubts([("a", fine), ("b", Share(share=1.31, of=("int8",)))])
    assert text.startswith("b reached 131 % of INT8 peak: ")
    assert "`alula doctor --roofline`" in text


# What the results say.


def test_a_bundle_states_its_shares(optimized: SimpleNamespace) -> None:
    manifest = optimized.bundle.manifest
    found = read_measurements(optimized.bundle.path)
    assert found.roofline is not None
    assert sum(one.macs for one in found.products) == TINY_MACS
    for one in (manifest.baseline, manifest.chosen, *manifest.fallbacks):
        assert one.of_peak.of == ("fp32",)
        assert one.of_peak.share == pytest.approx(
            one.throughput_per_s * TINY_MACS / (1e9 * found.roofline.fp32_gmacs_per_s)
        )


def test_the_report_states_the_share(optimized: SimpleNamespace, tmp_path: Path) -> None:
    text = write_report(optimized.bundle.path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Of the machine's FP32 peak" in text.replace("&#x27;", "'").replace("&#39;", "'")
    assert f"The chosen recipe reached {optimized.bundle.manifest.chosen.of_peak}" in text
    assert f">{optimized.bundle.manifest.baseline.of_peak}<" in text


def test_a_share_above_the_peak_is_printed_and_warned_of(
    cache: Path, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    low = msgspec.structs.replace(ROOF, fp32_gmacs_per_s=1e-9)
    keep_roofline(low, [cache])
    x = rng.normal(size=(30, FEATURES)).astype(np.float32)
    with optimize(
        write_onnx(tmp_path / "model.onnx", batch=8),
        x,
        output=tmp_path / "b.alula",
        threads=1,
        engines=["fake"],
        budget=1e-3,
    ) as bundle:
        manifest = bundle.manifest
    assert manifest.chosen.of_peak.share > 1
    assert any("no speed can be above the peak" in text for text in manifest.warnings)
    with pytest.raises(SystemExit):
        cli(args=["inspect", str(tmp_path / "b.alula")], prog_name="alula")
    out = " ".join(capsys.readouterr().out.split())
    assert "% of FP32 peak" in out
    assert "no speed can be above the peak" in out


def test_measurements_of_before_are_read_and_know_nothing() -> None:
    old = msgspec.json.decode(b'{"scenario": "offline"}', type=Measurements)
    assert str(old.of_peak(Recipe.parse("torch/fp32"), 10.0)) == "unknown"


def test_doctor_measures_only_when_asked_and_keeps_what_it_found(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def measure(*, threads: int, report: object) -> Roofline:
        asked.append(threads)
        return msgspec.structs.replace(ROOF, threads=threads)

    monkeypatch.setattr(diagnosis, "measure_roofline", measure)
    monkeypatch.setattr(diagnosis, "engine_names", lambda: ())
    assert diagnosis.diagnose().roofline is None
    assert asked == []
    with pytest.raises(SystemExit):
        cli(args=["doctor", "--roofline"], prog_name="alula")
    out, _ = capfd.readouterr()
    assert f"FP32 100, INT8 400 GMAC/s with {thread_budget()} threads" in out
    assert "20.0 GB/s" in out
    with pytest.raises(SystemExit):
        cli(args=["doctor", "--roofline", "--json"], prog_name="alula")
    out, _ = capfd.readouterr()
    assert msgspec.json.decode(out)["roofline"]["int8_gmacs_per_s"] == 400.0
    assert asked == [thread_budget()] * 2
    kept = kept_roofline([cache], threads=thread_budget())
    assert kept is not None
    assert kept.int8_gmacs_per_s == 400.0
