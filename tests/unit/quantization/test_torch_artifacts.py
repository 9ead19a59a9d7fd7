"""What PyTorch's quantizers share: backends, ranges, and the file that must come back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from calibration import material_of
from torch import nn

from alula.errors import EngineError
from alula.quantization.torch_artifacts import (
    largest_difference,
    looked_up,
    one_line_failures,
    qconfig_mapping,
    write_torchscript,
)


class Sized(nn.Module):
    """Scales by the batch size through a branch: a trace follows one way, a script both."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 8:
            return x * 2.0
        return x


class Counted(nn.Module):
    """Bakes the batch size into a trace, with Python that no script understands."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[0] * float(len(list(tensors[0])))


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(8, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def no_deprecation_seen(recwarn: pytest.WarningsRecorder) -> None:
    """Warnings are errors in these tests; what is silenced must be silenced by the code under test."""


def test_a_trace_that_took_a_batch_size_for_a_constant_is_scripted(x: np.ndarray, tmp_path: Path) -> None:
    write_torchscript(Sized(), material_of(nn.Identity(), x), tmp_path)
    with pytest.warns(DeprecationWarning):
        module = torch.jit.load(tmp_path / "model.torchscript")
    for size, factor in ((2, 1.0), (9, 2.0)):
        tensor = torch.ones(size, 6)
        torch.testing.assert_close(module(tensor), factor * tensor)


def test_numbers_of_python_stay_numbers(tmp_path: Path, rng: np.random.Generator) -> None:
    class Scaled(nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return 0.5 * codes.sum(dim=1, keepdim=True)

    codes = rng.integers(0, 9, (4, 3))
    write_torchscript(Scaled(), material_of(Scaled(), codes), tmp_path)
    with pytest.warns(DeprecationWarning):
        module = torch.jit.load(tmp_path / "model.torchscript")
    with torch.jit.optimized_execution(False):
        (got,) = module(torch.from_numpy(codes))
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), 0.5 * codes.sum(axis=1, keepdims=True))


def test_a_module_that_neither_way_keeps(x: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not survive .* Traced: Outputs differ by 0\.\d+ .* Scripted: ."):
        write_torchscript(Counted(), material_of(nn.Identity(), x), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_state_lost_on_the_way_is_seen(
    x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Linear(6, 3).eval()
    load = torch.jit.load

    def forgetful(path: str) -> torch.jit.ScriptModule:
        loaded = load(path)
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.zero_()
        return loaded

    monkeypatch.setattr(torch.jit, "load", forgetful)
    with pytest.raises(EngineError, match="does not survive being saved"):
        write_torchscript(module, material_of(module, x), tmp_path)


def test_no_calibration_sample(x: np.ndarray, tmp_path: Path) -> None:
    material = material_of(nn.Linear(6, 3), x)
    empty = type(material)(
        export=material.export,
        module=material.module,
        batches=lambda: iter(()),
        signature=material.signature,
        saturating=False,
    )
    with pytest.raises(EngineError, match="no calibration samples"):
        write_torchscript(material.module(), empty, tmp_path)


@pytest.mark.parametrize(
    ("backend", "saturating", "largest"),
    [
        ("x86", False, 127),
        ("x86", True, 127),
        ("fbgemm", False, 127),
        ("onednn", False, 255),
        ("onednn", True, 127),
    ],
)
def test_activations_leave_a_bit_unused_where_kernels_saturate(
    backend: str, saturating: bool, largest: int
) -> None:
    with one_line_failures("observers"):
        config = qconfig_mapping(backend, saturating=saturating).global_qconfig
        activation, weight = config.activation(), config.weight()
    activation(torch.linspace(0, 1, 100))
    scale, zero_point = activation.calculate_qparams()
    assert round(1 / float(scale)) + int(zero_point) == pytest.approx(largest, abs=2)
    assert weight.ch_axis == 0


def test_failures_are_one_line() -> None:
    with pytest.raises(EngineError, match=r"^It fails: first$"), one_line_failures("It fails"):
        raise RuntimeError("first\nsecond\nthird")


def test_a_part_that_a_release_lacks() -> None:
    with pytest.raises(EngineError, match=r"no abacus any more \(module 'torch' has no attribute"):
        looked_up(lambda: torch.abacus, "abacus")


def test_differences() -> None:
    one = torch.tensor([0.0, 10.0])
    assert largest_difference([one], [one + 0.5]) == pytest.approx(0.05)
    assert largest_difference([one], [one[:1]]) == float("inf")
    assert largest_difference([one], []) == float("inf")
    assert largest_difference([one], [one.double()]) == float("inf")
    assert largest_difference([one], [torch.tensor([0.0, float("nan")])]) == float("inf")
    assert largest_difference([torch.zeros(0)], [torch.zeros(0)]) == 0.0
    assert largest_difference([torch.tensor([True, False])], [torch.tensor([True, True])]) == 1.0
