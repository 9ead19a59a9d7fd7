"""A rate that a search promises, sent to the bundle by a load generator that shares no code with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import write_linear_onnx

from alula.bundle import read_measurements
from alula.errors import MeasurementError
from alula.hardware import stolen_share, take_snapshot
from alula.workflows import optimize

REPLAY = Path(__file__).resolve().parents[2] / "benchmarks" / "replay.py"
LIMIT_S = 0.25
SECONDS = 2.0


@contextmanager
def excused_where_disturbed(failure: type[Exception]) -> Iterator[None]:
    """Skip, aloud, what fails in this way while the hypervisor gives the CPUs to others."""
    before = take_snapshot()
    try:
        yield
    except failure:
        stolen = stolen_share(before, take_snapshot())
        if stolen <= 0.05:
            raise
        pytest.skip(f"MACHINE DISTURBED: {stolen:.0%} of the CPU time was stolen, so no rate can be held")


def test_a_promised_rate_is_served_again(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = rng.normal(size=(2048, 1024)).astype(np.float32)  # a millisecond or so for one query
    reports: list[str] = []
    with excused_where_disturbed(MeasurementError):
        optimize(
            write_linear_onnx(tmp_path / "model.onnx", weights, shape=("b", 2048)),
            rng.normal(size=(60, 2048)).astype(np.float32),
            output=tmp_path / "a.alula",
            scenario="server",
            latency_limit=LIMIT_S,
            budget=20.0,
            threads=1,
            engines=["onnxruntime"],
            precisions=["fp32"],
            report=reports.append,
        ).close()
    found = read_measurements(tmp_path / "a.alula")
    assert found.server is not None
    assert found.finalists[0].rate_per_s == found.server.per_s
    assert [one.purpose for one in found.server.trials][-1] == "confirmation"
    assert any(text.startswith("looking for the highest rate of onnxruntime/fp32") for text in reports)
    with excused_where_disturbed(AssertionError):
        done = subprocess.run(
            [sys.executable, str(REPLAY), str(tmp_path / "a.alula"), "--seconds", str(SECONDS)],
            stdout=subprocess.PIPE,
            check=True,
        )
        again = json.loads(done.stdout)
        # Other tests may run beside this one: a queue that grew would miss the limit by far more than this.
        assert again["p99_s"] < 4 * LIMIT_S
    assert again["promised_per_s"] == found.server.per_s
    assert again["limit_s"] == LIMIT_S
    # Every query was served. Within five standard deviations of a Poisson process they are as many as said.
    expected = found.server.per_s * SECONDS
    assert again["queries"] == pytest.approx(expected, abs=5 * expected**0.5 + 1)
