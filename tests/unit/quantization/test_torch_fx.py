"""FX quantization: every backend, fusion, scopes, and models that it cannot take."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration import cosine, loaded, material_of, outputs_of, quantized, settled, with_export
from torch import nn
from torch.nn import functional

from alula.core import Recipe, Settings
from alula.errors import EngineError
from alula.quantization import Material, quantizer_named
from alula.quantization.torch_fx import simplify

BACKENDS = ("x86", "onednn", "fbgemm", "qnnpack")


class NormAct(nn.BatchNorm2d):
    """Normalisation and activation in one class, called as a function: no fusion of PyTorch knows it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )
        return self.act(self.drop(x))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))


class Net(nn.Module):
    """(b, 3, 16, 16) to (b, 5): stem, depthwise, squeeze-excite, a sum, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm = NormAct(16)
        self.gate = Gate(16)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.point(self.gate(self.norm(self.deep(x))))
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    """Takes another way for other data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if x.sum() > 0 else self.head(-x)


class Two(nn.Module):
    """Two inputs, and a nest of outputs of which one is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = functional.relu(self.left(x)) + 0.1 * codes.flatten(1).sum(dim=1, keepdim=True)
        return {"logits": self.right(hidden), "echo": codes}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Noise around a slope, float32 (16, 3, 16, 16)."""
    rng = np.random.default_rng(3)
    slope = np.linspace(-1, 1, 16, dtype=np.float32)
    return (rng.normal(0, 1, (16, 3, 16, 16)) + rng.normal(0, 2, (16, 3, 1, 1)) * slope).astype(np.float32)


@pytest.fixture(scope="module")
def net(images: np.ndarray) -> nn.Module:
    torch.manual_seed(0)
    return settled(Net(), images)


@pytest.fixture(scope="module")
def material(net: nn.Module, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return with_export(material_of(net, images), tmp_path_factory.mktemp("net") / "export")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend of this build of PyTorch in turn."""
    name = str(request.param)
    if name not in torch.backends.quantized.supported_engines:
        pytest.skip(f"NOT COVERED HERE: this build of PyTorch has no {name}")
    return name


@pytest.fixture(scope="module")
def artifact(backend: str, material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the backend's recipe with all layers."""
    before = torch.backends.quantized.engine
    folder = quantized(name_of("torch", backend), material, tmp_path_factory.mktemp("fx") / "artifact")
    assert torch.backends.quantized.engine == before
    return folder


def operators(artifact: Path) -> list[str]:
    """Return the operators of a TorchScript file, in order."""
    with pytest.warns(DeprecationWarning):
        module = torch.jit.load(artifact / "model.torchscript")
    return [node.kind() for node in module.inlined_graph.nodes() if "::" in node.kind()]


def name_of(engine: str, backend: str) -> str:
    return f"{engine}/int8-fx" + ("" if backend == "x86" else f"-{backend}")


@pytest.mark.parametrize("engine", ["torch", "torchscript"])
def test_every_backend_resembles_the_module_at_any_batch_size(
    engine: str, backend: str, artifact: Path, net: nn.Module, material: Material, images: np.ndarray
) -> None:
    assert [path.name for path in artifact.iterdir()] == ["model.torchscript"]
    session = loaded(name_of(engine, backend), artifact, material)
    for size in (1, 3, 8, len(images)):
        (got,) = session.run((images[:size],))
        want = outputs_of(net, images[:size])
        assert got.shape == want.shape and got.dtype == np.float32
        assert cosine(got, want) > 0.98
        assert not np.allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())  # integers round
    session.close()


@pytest.mark.parametrize("engine", ["torch", "torchscript"])
def test_loaded_weights_keep_their_backend(
    engine: str,
    backend: str,
    artifact: Path,
    material: Material,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = [name for name in BACKENDS if name in torch.backends.quantized.supported_engines]
    answers = []
    for process_wide in there:
        monkeypatch.setattr(torch.backends.quantized, "engine", process_wide)
        session = loaded(name_of(engine, backend), artifact, material)
        assert torch.backends.quantized.engine == process_wide
        monkeypatch.setattr(torch.backends.quantized, "engine", there[0])
        answers.append(session.run((images,))[0])
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


@pytest.mark.parametrize("engine", ["torch", "torchscript"])
def test_two_threads_get_what_one_gets(
    engine: str, backend: str, artifact: Path, material: Material, images: np.ndarray
) -> None:
    session = loaded(name_of(engine, backend), artifact, material, Settings(threads=1, instances=2))
    parts = [images[:5], images[5:7]]
    expected = [session.run((part,))[0] for part in parts]
    answers: list[list[np.ndarray]] = [[], []]
    together = threading.Barrier(2)

    def work(index: int) -> None:
        together.wait(timeout=60)
        for _ in range(20):
            answers[index].append(session.run((parts[index],))[0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for want, got in zip(expected, answers, strict=True):
        assert len(got) == 20
        for answer in got:
            np.testing.assert_array_equal(answer, want)


def test_convolution_normalisation_and_relu_become_one_kernel(artifact: Path) -> None:
    found = operators(artifact)
    assert found.count("quantized::conv2d_relu") == 3  # stem, depthwise with its derived class, reduce
    assert found.count("quantized::conv2d") == 2  # expand, point
    assert found.count("quantized::linear") == 1
    assert not any("batch_norm" in name for name in found)


def test_simplifying_keeps_the_function(net: nn.Module, images: np.ndarray) -> None:
    traced = torch.fx.symbolic_trace(material_of(net, images).module())
    before = outputs_of(net, images)
    simplify(traced)
    np.testing.assert_allclose(outputs_of(traced, images), before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert not [node for node in traced.graph.nodes if node.target is functional.batch_norm]
    assert not [module for module in traced.modules() if type(module) is nn.Identity]


def test_a_normalisation_whose_convolution_is_read_elsewhere_is_kept(images: np.ndarray) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = NormAct(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    torch.manual_seed(1)
    module = settled(Twice(), images)
    before = outputs_of(module, images)
    traced = torch.fx.symbolic_trace(module)
    simplify(traced)
    np.testing.assert_allclose(outputs_of(traced, images), before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_a_convolution_that_is_called_twice_keeps_both_its_normalisations(images: np.ndarray) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.first, self.second = NormAct(3), NormAct(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.conv(self.first(self.conv(x))))

    torch.manual_seed(1)
    module = settled(Shared(), images)
    before = outputs_of(module, images)
    traced = torch.fx.symbolic_trace(module)
    simplify(traced)
    np.testing.assert_allclose(outputs_of(traced, images), before, rtol=0, atol=1e-6 * np.abs(before).max())


@pytest.mark.parametrize(
    ("scope", "integer", "in_float"),
    [
        # Left: the depthwise one.
        ("no-depthwise", {"conv2d": 2, "conv2d_relu": 2, "linear": 1}, 1),
        # Left: stem, reduce, expand and the linear head.
        ("no-edges", {"conv2d": 1, "conv2d_relu": 1}, 3),
        # Left: depthwise, reduce, expand.
        ("dense", {"conv2d": 1, "conv2d_relu": 1, "linear": 1}, 3),
    ],
)
def test_scopes(
    scope: str,
    integer: dict[str, int],
    in_float: int,
    net: nn.Module,
    material: Material,
    images: np.ndarray,
    tmp_path: Path,
) -> None:
    name = f"torch/int8-fx-{scope}"
    folder = quantized(name, material, tmp_path / "artifact")
    found = operators(folder)
    products = [kind.removeprefix("quantized::") for kind in found if kind.startswith("quantized::")]
    assert {kind: products.count(kind) for kind in ("conv2d", "conv2d_relu", "linear")} == {
        "conv2d": 0,
        "conv2d_relu": 0,
        "linear": 0,
        **integer,
    }
    assert sum(kind in ("aten::_convolution", "aten::conv2d") for kind in found) == in_float
    (got,) = loaded(name, folder, material).run((images,))
    assert cosine(got, outputs_of(net, images)) > 0.98


def test_dense_around_an_operation_with_float_and_integer_readers(tmp_path: Path, images: np.ndarray) -> None:
    class Residual(nn.Module):
        """The pool is read by a convolution and by a sum, as in every ResNet."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act, self.pool = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)
            self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.act(self.stem(x)))
            return self.head((x + self.conv(x)).mean((2, 3)))

    torch.manual_seed(4)
    module = Residual().eval()
    material = with_export(material_of(module, images), tmp_path / "export")
    folder = quantized("torch/int8-fx-dense", material, tmp_path / "artifact")
    found = operators(folder)
    assert found.count("quantized::conv2d_relu") == found.count("quantized::conv2d") == 1
    assert "quantized::add" not in found and "aten::add" in found
    (got,) = loaded("torch/int8-fx-dense", folder, material).run((images,))
    assert cosine(got, outputs_of(module, images)) > 0.98


def test_a_scope_that_leaves_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(8, 6)).astype(np.float32)
    material = with_export(material_of(nn.Sequential(nn.Linear(6, 3)).eval(), x), tmp_path / "export")
    with pytest.raises(EngineError, match=r"`no-depthwise` leaves no layer of this model in float"):
        quantized("torch/int8-fx-no-depthwise", material, tmp_path / "artifact")


@pytest.mark.parametrize("engine", ["torch", "torchscript"])
def test_several_inputs_and_a_nest_of_outputs(engine: str, tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(2)
    x, codes = rng.normal(size=(16, 6)).astype(np.float32), rng.integers(0, 9, (16, 2))
    module = Two().eval()
    material = material_of(module, x, codes)
    name = f"{engine}/int8-fx"
    session = loaded(name, quantized(name, material, tmp_path / "artifact"), material)
    logits, echo = session.run((x[:3], codes[:3]))
    with torch.no_grad():
        want = module(torch.from_numpy(x[:3]), torch.from_numpy(codes[:3]))["logits"].numpy()
    assert cosine(logits, want) > 0.98
    np.testing.assert_array_equal(echo, codes[:3])


def test_a_model_whose_batch_is_fixed(tmp_path: Path, rng: np.random.Generator) -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.reshape(4, 6))

    torch.manual_seed(2)
    x = rng.normal(size=(8, 6)).astype(np.float32)
    module = Folded().eval()
    flexible = material_of(nn.Linear(6, 3), x, batch_size=4, fixed=True)
    material = Material(
        export=flexible.export,
        module=lambda: module,
        batches=flexible.batches,
        signature=flexible.signature,
        saturating=False,
    )
    session = loaded("torch/int8-fx", quantized("torch/int8-fx", material, tmp_path / "a"), material)
    assert cosine(session.run((x[:4],))[0], outputs_of(module, x[:4])) > 0.98


def test_a_convolution_that_pads_by_the_size_is_traced_and_fused(tmp_path: Path, images: np.ndarray) -> None:
    class Same(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, columns = (max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.size()[-2:])
            if rows > 0 or columns > 0:
                x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = Same(3, 16, 3, 2, bias=False), NormAct(16)
            self.deep, self.head = Same(16, 16, 3, 2, groups=16), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.deep(self.norm(self.stem(x))).mean((2, 3)))

    torch.manual_seed(5)
    module = settled(Padded(), images)
    material = with_export(material_of(module, images), tmp_path / "export")
    for scope, integer in (("", 2), ("-no-depthwise", 1)):
        folder = quantized(f"torch/int8-fx{scope}", material, tmp_path / f"artifact{scope}")
        found = operators(folder)
        assert found.count("quantized::conv2d_relu") == 1
        assert sum(kind.startswith("quantized::conv2d") for kind in found) == integer
        for size in (1, 3):
            (got,) = loaded("torch/int8-fx", folder, material).run((images[:size],))
            assert cosine(got, outputs_of(module, images[:size])) > 0.98


def test_functional_convolutions_whose_weight_is_shared_are_left(images: np.ndarray) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.conv2d(x, self.inner.weight, self.inner.bias, 2)
            return functional.conv2d(y, self.inner.weight) + self.inner(y)

    torch.manual_seed(6)
    module = Shared().eval()
    traced = torch.fx.symbolic_trace(module)
    simplify(traced)
    before = outputs_of(module, images)
    np.testing.assert_allclose(outputs_of(traced, images), before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_data_dependent_control_flow_is_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    material = material_of(Branching().eval(), rng.normal(size=(8, 6)).astype(np.float32))
    with pytest.raises(EngineError, match=r"cannot be traced: symbolically traced variables") as caught:
        quantized("torch/int8-fx", material, tmp_path / "artifact")
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_to_quantize(tmp_path: Path, rng: np.random.Generator) -> None:
    material = material_of(nn.Sequential(nn.SiLU()), rng.normal(size=(8, 6)).astype(np.float32))
    with pytest.raises(EngineError, match=r"finds no layer in this model that it can quantize"):
        quantized("torch/int8-fx", material, tmp_path / "artifact")


def test_a_pytorch_without_fx_quantization(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = material_of(nn.Linear(6, 3), rng.normal(size=(8, 6)).astype(np.float32))
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.quantize_fx", None)
    with pytest.raises(EngineError, match=r"This PyTorch has no FX quantization any more \(.*\); choose"):
        quantized("torch/int8-fx", material, tmp_path / "artifact")


@pytest.mark.parametrize("engine", ["torch", "torchscript"])
def test_what_is_offered(engine: str) -> None:
    quantizer = quantizer_named(f"{engine}/int8-fx")
    on_x86 = [recipe.name for recipe in quantizer.recipes(("avx2", "avx512_vnni"))]
    assert on_x86 == [
        f"{engine}/int8-fx{rest}"
        for rest in ("", "-onednn", "-fbgemm", "-dense", "-no-depthwise", "-no-edges")
    ]
    without_vnni = [recipe.name for recipe in quantizer.recipes(("avx2",))]
    assert without_vnni == [name for name in on_x86 if not name.endswith("fbgemm")]
    on_arm = [recipe.name for recipe in quantizer.recipes(("neon", "asimddp"))]
    assert on_arm == [
        f"{engine}/int8-fx-qnnpack{rest}" for rest in ("", "-dense", "-no-depthwise", "-no-edges")
    ]
    assert quantizer.recipes(()) == ()
    for name in (*on_x86, *on_arm):
        assert Recipe.parse(name).name == name


def test_exports_are_asked_for_only_where_they_are_read() -> None:
    quantizer = quantizer_named("torch/int8-fx")
    formats = {recipe.scope: quantizer.export_format(recipe) for recipe in quantizer.recipes(("avx2",))}
    assert formats == {
        "all": "module",
        "dense": "exported",
        "no-depthwise": "exported",
        "no-edges": "exported",
    }
