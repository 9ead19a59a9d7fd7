"""Eager-mode quantization: stubs, and sequences that are found by watching."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration import cosine, loaded, material_of, outputs_of, quantized, settled
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from alula.errors import EngineError
from alula.quantization import quantizer_named
from alula.quantization.torch_eager_mode import fused, sequences_called


class Block(nn.Module):
    """A residual block whose only ReLU is used twice; its parts are not in the order of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.add = FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.add.add(x, self.norm2(self.conv2(y))))


class Stubbed(nn.Module):
    """(b, 3, 12, 12) to (b, 4), with a head that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = Block()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.head.qconfig = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(self.quant(x)))
        x = self.dequant(self.hidden(torch.flatten(self.pool(x), 1)))
        return self.head(x)


class ReadTwice(nn.Module):
    """Its first convolution is read by more than the normalisation that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(x)
        return self.norm2(self.conv2(y + self.norm1(y)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(4)
    return (rng.normal(0, 1, (32, 3, 12, 12)) + rng.normal(0, 1, (32, 3, 1, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def stubbed(images: np.ndarray) -> nn.Module:
    torch.manual_seed(0)
    return settled(Stubbed(), images)


def test_sequences_follow_the_calls(stubbed: nn.Module, images: np.ndarray) -> None:
    assert sequences_called(stubbed, [torch.from_numpy(images[:2])]) == [
        ("stem.0", "stem.1", "stem.2"),
        ("block.conv1", "block.norm1"),  # the ReLU is called twice
        ("block.conv2", "block.norm2"),
        ("hidden.0", "hidden.1"),
    ]


def test_fusing_keeps_the_function(stubbed: nn.Module, images: np.ndarray) -> None:
    before = outputs_of(stubbed, images)
    result = fused(stubbed, [torch.from_numpy(images[:4])])
    np.testing.assert_allclose(outputs_of(result, images), before, rtol=0, atol=1e-4 * np.abs(before).max())
    assert type(result.get_submodule("stem.1")) is nn.Identity
    assert type(result.get_submodule("block.norm2")) is nn.Identity
    assert type(stubbed.get_submodule("stem.1")) is nn.BatchNorm2d  # the caller's is not changed


def test_a_sequence_that_changes_the_function_is_left_out(images: np.ndarray) -> None:
    torch.manual_seed(1)
    module = settled(ReadTwice(), images)
    before = outputs_of(module, images)
    assert sequences_called(module, [torch.from_numpy(images[:2])]) == [
        ("conv1", "norm1"),
        ("conv2", "norm2"),
    ]
    result = fused(module, [torch.from_numpy(images[:4])])
    np.testing.assert_allclose(outputs_of(result, images), before, rtol=0, atol=1e-4 * np.abs(before).max())
    assert type(result.get_submodule("norm1")) is nn.BatchNorm2d
    assert type(result.get_submodule("norm2")) is nn.Identity


def test_a_module_without_any_sequence_is_as_it_was(images: np.ndarray) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU())
    result = fused(module, [torch.from_numpy(images[:2])])
    np.testing.assert_array_equal(outputs_of(result, images), outputs_of(module, images))


@pytest.fixture(scope="module")
def artifact(stubbed: nn.Module, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eager") / "artifact"
    return quantized("torch/int8-eager", material_of(stubbed, images), folder)


@pytest.mark.parametrize("engine", ["torch", "torchscript"])
def test_the_quantized_module_resembles_the_module(
    engine: str, stubbed: nn.Module, images: np.ndarray, artifact: Path
) -> None:
    session = loaded(f"{engine}/int8-eager", artifact, material_of(stubbed, images))
    for size in (1, 3, 32):
        (got,) = session.run((images[:size],))
        want = outputs_of(stubbed, images[:size])
        assert cosine(got, want) > 0.98
        assert not np.allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_kernels_are_integer_and_fused(artifact: Path) -> None:
    with pytest.warns(DeprecationWarning):
        module = torch.jit.load(artifact / "model.torchscript")
    found = [node.kind() for node in module.inlined_graph.nodes()]
    assert found.count("quantized::conv2d_relu") == 1
    assert found.count("quantized::conv2d") == 2
    assert found.count("quantized::linear_relu") == 1
    assert found.count("quantized::add") == 1
    assert found.count("aten::linear") == 1  # the head has its own qconfig: None


def test_a_module_without_stubs(images: np.ndarray, tmp_path: Path) -> None:
    material = material_of(nn.Sequential(nn.Conv2d(3, 4, 1)), images)
    with pytest.raises(EngineError, match=r"has no QuantStub; recipe `int8-eager` is for") as caught:
        quantized("torch/int8-eager", material, tmp_path / "artifact")
    assert len(str(caught.value).splitlines()) == 1


def test_a_stub_around_what_has_no_integer_kernel(images: np.ndarray, tmp_path: Path) -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = QuantStub(), DeQuantStub()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dequant(self.conv(self.quant(x)).erf())

    with pytest.raises(EngineError, match=r"^The quantized module fails: ") as caught:
        quantized("torch/int8-eager", material_of(Wrong().eval(), images), tmp_path / "artifact")
    assert len(str(caught.value).splitlines()) == 1


def test_a_pytorch_without_eager_mode_quantization(
    stubbed: nn.Module, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = material_of(stubbed, images)
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    monkeypatch.delattr(torch.ao, "quantization")
    with pytest.raises(EngineError, match="This PyTorch has no eager-mode quantization any more"):
        quantized("torch/int8-eager", material, tmp_path / "artifact")


def test_what_is_offered() -> None:
    quantizer = quantizer_named("torchscript/int8-eager")
    assert [recipe.name for recipe in quantizer.recipes(("avx2",))] == ["torchscript/int8-eager"]
    assert [recipe.name for recipe in quantizer.recipes(("neon",))] == ["torchscript/int8-eager-qnnpack"]
    assert {quantizer.export_format(recipe) for recipe in quantizer.recipes(("avx2",))} == {"module"}
