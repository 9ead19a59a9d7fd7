"""TorchScript: layouts, bfloat16 and oneDNN's graph compiler, on a module that is frozen when loaded."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from alula.core import Recipe, Settings, Signature
from alula.engines import Session, engine_named
from alula.errors import EngineError
from alula.export import export_module

FP32, CHANNELS_LAST = "torchscript/fp32", "torchscript/fp32-channels-last"
BF16 = "torchscript/bf16-channels-last"
LIMITS = {FP32: 1e-5, CHANNELS_LAST: 1e-5, BF16: 2e-2}
PLAIN, FUSED = {}, {"onednn_graph": True}


class Net(nn.Module):
    """(b, 3, 12, 12) to (b, 5) and (b, 16): a map with positions is viewed; an LSTM reads a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.steps = nn.LSTM(48, 16, batch_first=True)
        self.head = nn.Linear(288, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.silu(self.norm(self.conv(x)))
        steps, _ = self.steps(x.view(-1, 6, 48))
        return self.head(x.view(-1, 288)).softmax(dim=1), steps[:, -1]


class Convolutions(TorchDispatchMode):
    """Keeps type and layout of what every convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._convolution.default:
            for tensor in args[:2]:
                innermost = tensor.is_contiguous(memory_format=torch.channels_last)
                self.seen.append((tensor.dtype, innermost and not tensor.is_contiguous()))
        return func(*args, **(kwargs or {}))


class Exported:
    """The module's artifact, and its sessions."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.module = Net().eval()
        self.example = np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)
        self.folder = folder
        self.signature: Signature = export_module(
            self.module, [self.example], target="torchscript", folder=folder
        ).signature

    def load(self, name: str, *, instances: int = 1, **knobs: bool) -> Session:
        return engine_named("torchscript").load(
            self.folder,
            recipe=Recipe.parse(name),
            signature=self.signature,
            settings=Settings(threads=1, instances=instances, batch_size=4, knobs=knobs),
        )

    def expected(self, batch: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in self.module(torch.from_numpy(batch))]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("knobs", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("name", list(LIMITS))
def test_recipes_agree_with_the_module_at_any_batch_size(
    name: str, knobs: dict[str, bool], net: Exported
) -> None:
    before = torch.jit.onednn_fusion_enabled()
    session = net.load(name, **knobs)
    assert torch.jit.onednn_fusion_enabled() == before
    for size in (4, 1, 3, 8, 4):
        outputs = session.run((net.example[:size].copy(),))
        for got, want in zip(outputs, net.expected(net.example[:size]), strict=True):
            assert got.dtype == np.float32 and got.shape == want.shape
            assert np.abs(got - want).max() <= LIMITS[name] * np.abs(want).max()
    session.close()


def test_bf16_differs_from_fp32(net: Exported) -> None:
    narrow, wide = (net.load(name).run((net.example,))[0] for name in (BF16, FP32))
    assert np.abs(narrow - wide).max() > 1e-5 * np.abs(wide).max()


@pytest.mark.parametrize(("name", "dtype"), [(CHANNELS_LAST, torch.float32), (BF16, torch.bfloat16)])
def test_convolutions_read_what_the_recipe_says(name: str, dtype: torch.dtype, net: Exported) -> None:
    session = net.load(name)
    with Convolutions() as convolutions:
        session.run((net.example,))
    assert convolutions.seen == [(dtype, True)] * 2  # the data and the weight


def test_the_graph_compiler_compiles(net: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    freeze = torch.jit.freeze
    monkeypatch.setattr(torch.jit, "freeze", lambda module: frozen.append(freeze(module)) or frozen[-1])
    for knobs, fused in ((FUSED, True), (PLAIN, False)):
        session = net.load(CHANNELS_LAST, **knobs)
        for _ in range(3):
            session.run((net.example[:4],))
        plans = frozen[-1].get_debug_state().execution_plans.values()
        assert any("oneDNNFusionGroup" in str(plan.graph) for plan in plans) == fused


@pytest.mark.parametrize("knobs", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("name", list(LIMITS))
def test_two_threads_get_what_one_gets(name: str, knobs: dict[str, bool], net: Exported) -> None:
    session = net.load(name, instances=2, **knobs)
    parts = [net.example[:4].copy(), net.example[4:].copy()]
    expected = [session.run((part,)) for part in parts]
    answers: list[list[tuple[np.ndarray, ...]]] = [[], []]
    together = threading.Barrier(2)

    def work(index: int) -> None:
        together.wait(timeout=60)
        for _ in range(20):
            answers[index].append(session.run((parts[index],)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for want, got in zip(expected, answers, strict=True):
        assert len(got) == 20
        for answer in got:
            for one, other in zip(want, answer, strict=True):
                np.testing.assert_array_equal(one, other)


def test_the_graph_compiler_needs_known_sizes(net: Exported) -> None:
    (spec,) = net.signature.inputs
    open_ended = Signature((type(spec)(spec.name, spec.dtype, ("b", 3, "h", 12)),), net.signature.outputs)
    with pytest.raises(EngineError, match=r"input `x float32\(b, 3, h, 12\)` leaves some open"):
        engine_named("torchscript").load(
            net.folder,
            recipe=Recipe("torchscript", "fp32"),
            signature=open_ended,
            settings=Settings(knobs=FUSED),
        )


def test_what_is_offered() -> None:
    engine = engine_named("torchscript")
    assert [recipe.name for recipe in engine.recipes(("avx2",))] == [FP32, CHANNELS_LAST]
    assert [recipe.name for recipe in engine.recipes(("avx512_bf16",))] == [FP32, CHANNELS_LAST, BF16]
    for recipe in engine.recipes(("avx512_bf16",)):
        assert engine.knobs(recipe, Settings()) == (FUSED,)
    assert engine.knobs(Recipe("torchscript", "int8", "fx"), Settings()) == ()


@pytest.mark.parametrize("name", [FP32, "torchscript/int8-fx"])
def test_unknown_knobs(name: str, net: Exported) -> None:
    with pytest.raises(EngineError, match=r"Engine `torchscript` has no knob `turbo`; known are (none|one)"):
        net.load(name, turbo=True)
    with pytest.raises(EngineError, match=r"Engine `torchscript` has no knob `onednn_graph`; known are none"):
        net.load("torchscript/int8-fx", onednn_graph=True)


def test_a_backend_that_is_not_there(net: Exported) -> None:
    before = torch.backends.quantized.engine
    for engine in ("torch", "torchscript"):
        with pytest.raises(EngineError, match=r"no quantized kernels `abacus` on this CPU; it has \w+"):
            engine_named(engine).load(
                net.folder,
                recipe=Recipe(engine, "int8", "fx", "abacus"),
                signature=net.signature,
                settings=Settings(),
            )
    assert torch.backends.quantized.engine == before


class Doubled(nn.Module):
    """Works in place, which a batch of zeros does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.mul_(2.0))


def test_what_is_compiled_on_zeros_leaves_the_callers_arrays_alone(tmp_path: Path) -> None:
    example = np.ones((4, 3, 5, 5), np.float32)
    signature = export_module(Doubled().eval(), [example], target="torchscript", folder=tmp_path).signature
    session = engine_named("torchscript").load(
        tmp_path,
        recipe=Recipe.parse("torchscript/fp32"),
        signature=signature,
        settings=Settings(threads=1, batch_size=4, knobs=FUSED),
    )
    for _ in range(3):
        session.run((example,))
        np.testing.assert_array_equal(example, 1)
    session.close()


class Attention(nn.Module):
    """(b, 6, 16) to (b, 6, 16): steps whose first value is not positive are masked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = (x[:, :, 0] > 0)[:, None, :].expand(-1, 6, -1) | torch.eye(6, dtype=torch.bool)
        return functional.scaled_dot_product_attention(x, 3 * x, x, attn_mask=mask)


def test_a_mask_of_truth_values_stays_one_in_bf16(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 6, 16)).astype(np.float32)
    module = Attention().eval()
    signature = export_module(module, [x], target="torchscript", folder=tmp_path).signature
    session = engine_named("torchscript").load(
        tmp_path, recipe=Recipe.parse(BF16), signature=signature, settings=Settings(batch_size=4)
    )
    (found,) = session.run((x,))
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
        ones = functional.scaled_dot_product_attention(*map(torch.from_numpy, (x, 3 * x, x))).numpy()
    assert np.abs(ones - expected).max() > 0.1
    assert np.abs(found - expected).max() < 0.05


def test_a_module_is_loaded_with_the_threads_of_its_settings(
    net: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It packs weights then; in a user's process PyTorch takes every core of the host else."""
    seen: list[int] = []
    freeze = torch.jit.freeze
    monkeypatch.setattr(
        torch.jit, "freeze", lambda module: (seen.append(torch.get_num_threads()), freeze(module))[1]
    )
    before = torch.get_num_threads()
    settings = Settings(threads=before + 1, batch_size=4)
    engine_named("torchscript").load(
        net.folder, recipe=Recipe.parse(FP32), signature=net.signature, settings=settings
    ).close()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
