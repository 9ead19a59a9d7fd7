"""The comparison of living processes: who is lost, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import FEATURES

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.measure import Round
from alula.tuning import LoadRequest, comparison
from alula.tuning.messages import Loaded
from alula.tuning.process import ChildError

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("b", FEATURES)),), (TensorSpec("scores", "float32", ("b", 4)),)
)


class StandIn:
    """A child that is loaded at once."""

    reproduce = "again"

    def __init__(self, folder: Path, name: str, **options: object) -> None:
        self.name = name

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ask(self, request: LoadRequest, reply: type, *, timeout_s: float) -> Loaded:
        return Loaded(seconds=0.0)


def test_contenders_that_are_all_lost_keep_their_own_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(
        child: StandIn, inputs: tuple[str, ...], seconds: float, *, timeout_s: float
    ) -> tuple[Round, float]:
        asked.append(child.name)
        if asked.count(child.name) == {"compare-0": 2, "compare-1": 4}[child.name]:
            raise ChildError(f"{child.name} is gone.")
        return Round(samples=8, wall_s=1.0, calls=(0.1,)), 0.0

    monkeypatch.setattr(comparison, "Child", StandIn)
    monkeypatch.setattr(comparison, "measure_round", measured)
    np.save(tmp_path / "x.npy", np.zeros((2, FEATURES), np.float32))
    request = LoadRequest(
        recipe=Recipe("onnxruntime", "fp32"), artifact="a", signature=SIGNATURE, settings=Settings()
    )
    found = comparison.compare_speeds(
        {"first": request, "second": request},
        inputs=(str(tmp_path / "x.npy"),),
        folder=tmp_path,
        threads=1,
        memory_limit_bytes=2**30,
        rounds=6,
        round_s=0.1,
        timeout_s=10.0,
    )
    assert found.rounds == {}
    assert {name: loss.error for name, loss in found.losses.items()} == {
        "first": "compare-0 is gone.",
        "second": "compare-1 is gone.",
    }
