"""What PT2E quantizes in which scope, and that it comes back from its file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alula.core import Recipe, Scope, Signature, TensorSpec
from alula.errors import EngineError
from alula.export import export_module
from alula.quantization import Material, quantizer_named

pytest.importorskip("torchao")

CALIBRATION = np.random.default_rng(7).normal(0, 1, (24, 3, 12, 12)).astype(np.float32)


class Net(nn.Module):
    """(b, 3, 12, 12) to (b, 5): stem, depthwise, pointwise with a shortcut, squeeze-excite, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = torch.relu(self.pointwise(y * gate) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    torch.manual_seed(3)
    net = Net().eval()
    export = tmp_path_factory.mktemp("export")
    signature = export_module(net, [CALIBRATION[:2]], target="exported", folder=export).signature
    return Material(
        export=export,
        module=lambda: net,
        batches=lambda: ((CALIBRATION[start : start + 8],) for start in range(0, 24, 8)),
        signature=signature,
        saturating=False,
    )


def recipe(scope: Scope = "all") -> Recipe:
    return Recipe("inductor", "int8", "pt2e", None, scope)


def quantized(material: Material, artifact: Path, scope: Scope = "all") -> torch.fx.GraphModule:
    """Return the module of the artifact."""
    artifact.mkdir(exist_ok=True)
    quantizer_named("inductor/int8-pt2e").quantize(material, artifact, recipe=recipe(scope))
    assert [path.name for path in artifact.iterdir()] == ["model.pt2"]
    return torch.export.load(artifact / "model.pt2").module()


def integer_layers(module: torch.fx.GraphModule) -> list[str]:
    """Return the operators whose weights are integers, as `conv/groups` or `linear`, in order."""
    found = []
    for node in module.graph.nodes:
        name = str(node.target)
        if name.startswith(("aten.conv", "aten.linear")) and "dequantize" in str(node.args[1].target):
            groups = node.args[6] if len(node.args) > 6 else 1
            found.append(f"conv/{groups}" if "conv" in name else "linear")
    return found


def test_offered_on_x86_only() -> None:
    quantizer = quantizer_named("inductor/int8-pt2e")
    assert quantizer.recipes(["neon", "asimddp"]) == ()
    names = [each.name for each in quantizer.recipes(["avx2"])]
    assert names == ["inductor/int8-pt2e", "inductor/int8-pt2e-dense", "inductor/int8-pt2e-no-edges"]


@pytest.mark.parametrize(
    ("scope", "layers"),
    [
        ("all", ["conv/1", "conv/8", "conv/1", "conv/1", "conv/1", "linear"]),
        ("dense", ["conv/1", "conv/1", "linear"]),
        ("no-edges", ["conv/8", "conv/1"]),
    ],
)
def test_scopes_and_results(material: Material, tmp_path: Path, scope: Scope, layers: list[str]) -> None:
    module = quantized(material, tmp_path, scope)
    assert integer_layers(module) == layers
    net = material.module()
    for count in (1, 3, 8):
        x = torch.from_numpy(CALIBRATION[:count])
        with torch.no_grad():
            want, (got,) = net(x), module(x)
        assert got.dtype == torch.float32
        error = (got - want).norm() / want.norm()
        assert 1e-4 < error < 0.05  # integers, and enough of them


def test_maximum_pools_stay_in_float(material: Material, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3)).eval()
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    signature = export_module(net, [CALIBRATION[:2]], target="exported", folder=export).signature
    other = dataclasses.replace(material, export=export, module=lambda: net, signature=signature)
    module = quantized(other, artifact)
    assert integer_layers(module) == ["conv/1", "conv/1"]
    (pool,) = [node for node in module.graph.nodes if "max_pool2d" in str(node.target)]
    assert "quantize" not in str(pool.args[0].target)


def test_float_weights_are_not_kept_beside_the_integers(material: Material, tmp_path: Path) -> None:
    module = quantized(material, tmp_path)
    held = [*module.named_parameters(), *module.named_buffers()]
    shapes = {tuple(value.shape): value.dtype for _, value in held if value.ndim > 1}
    assert set(shapes.values()) == {torch.int8}
    assert (8, 3, 3, 3) in shapes


def test_another_torchao_is_one_line(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantizer", None)
    with pytest.raises(EngineError, match=r"This torchao has no PT2E quantization for x86 \(") as caught:
        quantizer_named("inductor/int8-pt2e").quantize(material, tmp_path, recipe=recipe())
    assert len(str(caught.value).splitlines()) == 1


def test_saturating_cpus_get_seven_bits(material: Material, tmp_path: Path) -> None:
    def largest(module: torch.fx.GraphModule) -> set[int]:
        return {
            node.args[4]
            for node in module.graph.nodes
            if "quantized_decomposed.quantize_per_tensor" in str(node.target)
        }

    careful = dataclasses.replace(material, saturating=True)
    assert largest(quantized(material, tmp_path / "a")) == {255}
    assert largest(quantized(careful, tmp_path / "b")) == {127}


def test_a_fixed_batch_stays_fixed(material: Material, tmp_path: Path) -> None:
    fixed = dataclasses.replace(
        material, signature=Signature((TensorSpec("x", "float32", (8, 3, 12, 12)),), ())
    )
    module = quantized(fixed, tmp_path)
    (given,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    assert tuple(given.meta["val"].shape) == (8, 3, 12, 12)


class Sums(nn.Module):
    """Nothing to multiply."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + 1.0


@pytest.mark.parametrize(
    ("net", "scope", "message"),
    [
        (Sums(), "all", r"finds no layer of this model to quantize in scope `all`"),
        (nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1)), "no-edges", "finds no layer"),
        (
            nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)),
            "dense",
            "nothing in float .* use scope `all`",
        ),
    ],
)
def test_scopes_without_sense(
    material: Material, tmp_path: Path, net: nn.Module, scope: Scope, message: str
) -> None:
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    signature = export_module(net.eval(), [CALIBRATION[:2]], target="exported", folder=export).signature
    other = dataclasses.replace(material, export=export, module=lambda: net, signature=signature)
    with pytest.raises(EngineError, match=message):
        quantizer_named("inductor/int8-pt2e").quantize(other, artifact, recipe=recipe(scope))
    assert list(artifact.iterdir()) == []


def test_a_file_that_lost_something_is_not_kept(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.export.save

    def lossy(program: torch.export.ExportedProgram, path: Path) -> None:
        with torch.no_grad():
            (bias,) = [value for name, value in program.state_dict.items() if name.endswith("head.bias")]
            bias.add_(1.0)
        save(program, path)

    monkeypatch.setattr(torch.export, "save", lossy)
    with pytest.raises(EngineError, match="does not survive being saved: outputs differ by"):
        quantizer_named("inductor/int8-pt2e").quantize(material, tmp_path, recipe=recipe())
    assert list(tmp_path.iterdir()) == []
