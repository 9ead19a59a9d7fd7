"""Eager PyTorch: layouts, bfloat16, and settings that it does not know."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import Session, engine_named
from alula.engines.torch_eager import TorchSession
from alula.errors import EngineError
from alula.export import export_module

FP32, CHANNELS_LAST = "torch/fp32", "torch/fp32-channels-last"
BF16, BF16_CHANNELS_LAST = "torch/bf16", "torch/bf16-channels-last"


class Net(nn.Module):
    """(b, 3, 12, 12) to (b, 5): what is flattened has positions, and one step insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(1, 8, 1, 1))
        self.head = nn.Linear(4 * 12 * 12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.conv(x))) * self.scale
        x = self.up(x)
        with torch.autocast("cpu", enabled=False):
            x = x.float() * 2
        return self.head(torch.flatten(x, 1)).softmax(dim=1)


class Tied(nn.Module):
    """(b, 6) codes to (b, 6, 20): one table to look up and to multiply with."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.mixing = nn.Linear(16, 16)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.mixing(self.table(codes)), self.table.weight)


class Waves(nn.Module):
    """(b, 64) samples to (b, 4): the image is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.reshape(-1, 1, 8, 8)).amax((2, 3))


class Products(TorchDispatchMode):
    """Keeps type and layout of what every convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.conv2d.default, torch.ops.aten.conv_transpose2d.input):
            for tensor in args[:2]:
                innermost = tensor.is_contiguous(memory_format=torch.channels_last)
                self.seen.append((tensor.dtype, innermost and not tensor.is_contiguous()))
        return func(*args, **(kwargs or {}))


class Exported:
    """A module's artifact, and its sessions by recipe name."""

    def __init__(self, module: nn.Module, example: np.ndarray, folder: Path) -> None:
        self.module = module.eval()
        self.example = example
        self.folder = folder
        self.signature: Signature = export_module(
            self.module, [example], target="exported", folder=folder
        ).signature

    def load(self, name: str, settings: Settings | None = None) -> Session:
        return engine_named("torch").load(
            self.folder,
            recipe=Recipe.parse(name),
            signature=self.signature,
            settings=settings or Settings(threads=1),
        )

    def expected(self, batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.module(torch.from_numpy(batch)).numpy()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    example = np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)
    return Exported(Net(), example, tmp_path_factory.mktemp("net"))


@pytest.mark.parametrize(
    ("name", "limit"), [(FP32, 1e-5), (CHANNELS_LAST, 1e-5), (BF16, 2e-2), (BF16_CHANNELS_LAST, 2e-2)]
)
def test_recipes_agree_with_the_module_at_any_batch_size(name: str, limit: float, net: Exported) -> None:
    session = net.load(name)
    for size in (1, 3, 8):
        batch = net.example[:size].copy()
        (got,) = session.run((batch,))
        want = net.expected(batch)
        assert got.dtype == np.float32 and got.shape == want.shape
        assert np.abs(got - want).max() <= limit * np.abs(want).max()
        np.testing.assert_array_equal(batch, net.example[:size])
    session.close()


@pytest.mark.parametrize(
    ("name", "dtype", "innermost"),
    [
        (FP32, torch.float32, False),
        (CHANNELS_LAST, torch.float32, True),
        (BF16, torch.bfloat16, False),
        (BF16_CHANNELS_LAST, torch.bfloat16, True),
    ],
)
def test_convolutions_read_what_the_recipe_says(
    name: str, dtype: torch.dtype, innermost: bool, net: Exported
) -> None:
    session = net.load(name)
    with Products() as products:
        session.run((net.example,))
    assert products.seen == [(dtype, innermost)] * 4  # two convolutions, of each the data and the weight


def test_bf16_differs_from_fp32(net: Exported) -> None:
    (narrow,), (wide,) = (net.load(name).run((net.example,)) for name in (BF16, FP32))
    assert np.abs(narrow - wide).max() > 1e-5 * np.abs(wide).max()


def test_a_weight_that_is_also_looked_up_stays_float32(tmp_path: Path) -> None:
    torch.manual_seed(1)
    codes = np.random.default_rng(1).integers(0, 20, (4, 6))
    tied = Exported(Tied(), codes, tmp_path)
    (got,) = tied.load(BF16).run((codes,))
    want = tied.expected(codes)
    assert np.abs(got - want).max() <= 0.03 * np.abs(want).max()


@pytest.mark.parametrize("name", [CHANNELS_LAST, BF16_CHANNELS_LAST])
def test_images_made_inside_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    waves = np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32)
    made = Exported(Waves(), waves, tmp_path)
    (got,) = made.load(name).run((waves,))
    want = made.expected(waves)
    assert np.abs(got - want).max() <= (1e-5 if name == CHANNELS_LAST else 2e-2) * np.abs(want).max()


@pytest.mark.parametrize("name", [CHANNELS_LAST, BF16, BF16_CHANNELS_LAST])
def test_two_threads_get_what_one_gets(name: str, net: Exported) -> None:
    session = net.load(name, Settings(threads=1, instances=2))
    parts = [net.example[:5].copy(), net.example[5:].copy()]
    expected = [session.run((part,))[0] for part in parts]
    answers: list[list[np.ndarray]] = [[], []]
    together = threading.Barrier(2)

    def work(index: int) -> None:
        together.wait(timeout=60)
        for _ in range(10):
            answers[index].append(session.run((parts[index],))[0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for want, got in zip(expected, answers, strict=True):
        assert len(got) == 10
        for answer in got:
            np.testing.assert_array_equal(answer, want)


def test_autocast_does_not_leak(net: Exported) -> None:
    net.load(BF16).run((net.example,))
    assert not torch.is_autocast_enabled("cpu")
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32


def test_bf16_is_offered_where_it_has_instructions() -> None:
    engine = engine_named("torch")
    assert [recipe.name for recipe in engine.recipes(("avx2",))] == [FP32, CHANNELS_LAST]
    for isa in (("amx_bf16",), ("neon", "bf16")):
        names = [recipe.name for recipe in engine.recipes(isa)]
        assert names == [FP32, CHANNELS_LAST, BF16, BF16_CHANNELS_LAST]


def test_unknown_knobs(net: Exported) -> None:
    with pytest.raises(EngineError, match=r"Engine `torch` has no knob `turbo`; known are none\."):
        net.load(FP32, Settings(knobs={"turbo": True}))


def test_a_module_that_works_in_place_leaves_the_callers_arrays_alone() -> None:
    signature = Signature((TensorSpec("x", "float32", ("b", 3)),), (TensorSpec("y", "float32", ("b", 3)),))
    session = TorchSession("torch", lambda x: x.mul_(2.0), signature=signature, settings=Settings())
    for _ in range(3):
        x = np.ones((2, 3), np.float32)
        (y,) = session.run((x,))
        np.testing.assert_array_equal(x, 1)
        np.testing.assert_array_equal(y, 2)


def test_what_a_module_cannot_look_up_or_asserts_is_an_error_of_the_engine() -> None:
    signature = Signature((TensorSpec("x", "int64", ("b",)),), (TensorSpec("y", "float32", ("b", 3)),))
    table = torch.nn.Embedding(4, 3)

    def checked(x: torch.Tensor) -> torch.Tensor:
        assert x.min() >= 0, "negative"
        return table(x)

    session = TorchSession("torch", checked, signature=signature, settings=Settings())
    for wrong, says in ((9, "index out of range"), (-1, "negative")):
        with pytest.raises(EngineError, match=says):
            session.run((np.array([wrong]),))
