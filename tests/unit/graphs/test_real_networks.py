"""Networks whose layers are known: counts of roles by architecture, and published amounts of work."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from alula.graphs import LayerGraph, assign_roles, left_in_float, read_fx, total_macs, total_parameters


@functools.cache
def network(name: str, size: int) -> tuple[nn.Module, LayerGraph]:
    torch.manual_seed(0)
    options = {"img_size": size} if name.startswith("vit") else {}
    module = timm.create_model(name, pretrained=False, **options).eval()
    sample = torch.randn(2, 3, size, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated parts
        program = torch.export.export(
            module, (sample,), dynamic_shapes=({0: torch.export.Dim("b")},), strict=False
        )
    return module, read_fx(program.module())


def roles_of(graph: LayerGraph) -> Counter[str]:
    """Count the roles of layers with weights."""
    roles = assign_roles(graph)
    return Counter(roles[layer.name] for layer in graph.layers if layer.kind in ("conv", "matmul"))


ARCHITECTURES = {
    # 16 blocks, each with two gating convolutions; the first has no widening, the last convolution is dense.
    "tf_efficientnet_b0": {
        "stem": 1,
        "depthwise": 16,
        "squeeze-excite": 32,
        "pointwise": 15 + 16 + 1,
        "head": 1,
    },
    # 15 blocks, 8 of them with gates; one convolution comes after the pool.
    "mobilenetv3_large_100": {
        "stem": 1,
        "depthwise": 15,
        "squeeze-excite": 16,
        "pointwise": 14 + 15 + 1 + 1,
        "head": 1,
    },
    # 12 blocks of two pointwise and two grouped convolutions and a gate across channels. The first block has
    # 64 channels, one group; of the stem's four convolutions only one reads the image; 4 shortcuts.
    "eca_nfnet_l0": {
        "stem": 1,
        "conv": 3 + 2,
        "grouped": 22,
        "pointwise": 24 + 4 + 1,
        "squeeze-excite": 12,
        "head": 1,
    },
    "resnet18": {"stem": 1, "conv": 16, "pointwise": 3, "head": 1},
    # 12 blocks: qkv, projection and two layers of the MLP.
    "vit_tiny_patch16_224": {"stem": 1, "matmul": 48, "head": 1},
    # 2 + 2 + 6 + 2 blocks; 3 convolutions between the stages.
    "convnext_atto": {"stem": 1, "depthwise": 12, "pointwise": 24, "conv": 3, "head": 1},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_of_known_architectures(
    name: str, count_macs: Callable[[nn.Module, tuple[int, ...]], int]
) -> None:
    module, graph = network(name, 64)
    assert roles_of(graph) == ARCHITECTURES[name]
    products = [layer.macs for layer in graph.layers if layer.kind in ("conv", "matmul")]
    assert sum(products) == count_macs(module, (3, 64, 64))
    assert total_parameters(graph) == pytest.approx(sum(p.numel() for p in module.parameters()), rel=1e-4)


def test_attention_is_counted() -> None:
    _, graph = network("vit_tiny_patch16_224", 64)
    attention = [layer for layer in graph.layers if layer.kind == "attention"]
    tokens, heads, size = 17, 3, 64
    assert [layer.macs for layer in attention] == [2 * heads * tokens * tokens * size] * 12


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    # torchvision's published counts for the same architectures at 224x224, in millions.
    [("resnet50", 4089, 25.557), ("efficientnet_b0", 386, 5.289)],
)
def test_published_amounts_of_work(name: str, macs: float, parameters: float) -> None:
    _, graph = network(name, 224)
    assert total_macs(graph) / 1e6 == pytest.approx(macs, rel=2e-3)
    assert total_parameters(graph) / 1e6 == pytest.approx(parameters, rel=1e-3)


def test_scopes_of_a_known_architecture() -> None:
    _, graph = network("tf_efficientnet_b0", 64)
    convolutions = {layer.name for layer in graph.layers if layer.kind in ("conv", "matmul")}
    left = {scope: convolutions & set(left_in_float(graph, scope)) for scope in ("dense", "no-depthwise")}
    assert (len(left["dense"]), len(left["no-depthwise"])) == (16 + 32, 16)
    assert len(convolutions & set(left_in_float(graph, "no-edges"))) == 1 + 32 + 1
