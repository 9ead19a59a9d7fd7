"""Dynamic quantization of linear and recurrent layers, at every batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from calibration import cosine, loaded, material_of, outputs_of, quantized
from torch import nn

from alula.errors import EngineError
from alula.quantization import quantizer_named

STEPS, FEATURES, HIDDEN = 7, 12, 16


class Recurrent(nn.Module):
    """(b, 7, 12) to (b, 3): a recurrent layer, its last step, a linear head."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool, bidirectional: bool) -> None:
        super().__init__()
        self.recurrent = kind(
            FEATURES, HIDDEN, num_layers=2, batch_first=batch_first, bidirectional=bidirectional
        )
        self.batch_first = batch_first
        self.head = nn.Linear(HIDDEN * (2 if bidirectional else 1), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.recurrent(x if self.batch_first else x.transpose(0, 1))
        return self.head(y[:, -1] if self.batch_first else y[-1])


class Stepping(nn.Module):
    """(b, 7, 12) to (b, 16): a cell that is called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(FEATURES, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.size(0), HIDDEN)
        for step in range(STEPS):
            state = self.cell(x[:, step], state)
        return state


@pytest.fixture(scope="module")
def sequences() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(16, STEPS, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Recurrent(nn.LSTM, batch_first=True, bidirectional=False), id="lstm"),
        pytest.param(lambda: Recurrent(nn.LSTM, batch_first=False, bidirectional=True), id="bilstm"),
        pytest.param(lambda: Recurrent(nn.GRU, batch_first=True, bidirectional=True), id="bigru"),
        pytest.param(lambda: Recurrent(nn.GRU, batch_first=False, bidirectional=False), id="gru"),
        pytest.param(Stepping, id="cell"),
        pytest.param(lambda: nn.Sequential(nn.Flatten(), nn.Linear(84, 32), nn.ReLU()), id="linear"),
    ],
)
def test_any_batch_size_resembles_the_module(
    make: type[nn.Module], sequences: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    material = material_of(module, sequences)
    artifact = quantized("torch/int8-dynamic", material, tmp_path / "artifact")
    for engine in ("torch", "torchscript"):
        session = loaded(f"{engine}/int8-dynamic", artifact, material)
        for size in (1, 2, 3, 16):
            (got,) = session.run((sequences[:size],))
            want = outputs_of(module, sequences[:size])
            assert got.shape == want.shape
            assert cosine(got, want) > 0.98
            assert not np.allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
        session.close()


def test_a_model_without_such_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3, 8, 8)).astype(np.float32)
    with pytest.raises(EngineError, match=r"no layer for dynamic quantization; .* Linear, LSTM, GRU"):
        quantized("torch/int8-dynamic", material_of(nn.Conv2d(3, 4, 1), x), tmp_path / "artifact")


def test_what_is_offered() -> None:
    quantizer = quantizer_named("torch/int8-dynamic")
    assert [recipe.name for recipe in quantizer.recipes(("avx2",))] == ["torch/int8-dynamic"]
    assert [recipe.name for recipe in quantizer.recipes(("neon",))] == ["torch/int8-dynamic-qnnpack"]
    assert {quantizer.export_format(recipe) for recipe in quantizer.recipes(("avx2",))} == {"module"}
