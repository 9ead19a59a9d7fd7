"""The same network through ONNX, OpenVINO and torch.export: the same products, roles and work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from alula.graphs import LayerGraph, assign_roles, total_macs, total_parameters


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(functional.silu(self.reduce(pooled))))


class LinearExcite(nn.Module):
    """Pools by an adaptive pool, gates by linear layers and a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, 4)
        self.expand = nn.Linear(4, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        gate = functional.hardsigmoid(self.expand(torch.relu(self.reduce(pooled))))
        return x * gate[:, :, None, None]


class ChannelAttention(nn.Module):
    """One convolution across pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        return x * torch.sigmoid(self.conv(y)).view(x.shape[0], -1, 1, 1).expand_as(x)


class Mobile(nn.Module):
    """(b, 3, 16, 16): stem, inverted residual with a gate, grouped convolution, head."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.widen = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(inplace=True))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate = gate
        self.project = nn.Conv2d(16, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.gate(functional.silu(self.depthwise(self.widen(x))))
        x = functional.relu(self.grouped(self.project(y) + x))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """(b, n, 8) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Transformer(nn.Module):
    """(b, 3, 16, 16): patches, one block, a head on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 17, 8))
        self.norm1 = nn.LayerNorm(8)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class Upsampling(nn.Module):
    """(b, 3, 8, 8): a transposed convolution, and channels last as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.mix = nn.Linear(6, 7)
        self.scale = nn.Parameter(torch.randn(7))
        self.last = nn.Conv2d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.mix(self.up(self.stem(x)).permute(0, 2, 3, 1))) * self.scale
        return self.last(x.permute(0, 3, 1, 2))


class Sums(nn.Module):
    """(b, 6, 4): Einstein sums with weights and of activations, a table, weights on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5))
        self.left = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("bnc,cd->bnd", x, self.weight)
        scores = torch.einsum("bnd,bmd->bnm", x, x).softmax(-1)
        return self.left @ (scores @ x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "squeeze-excite": (lambda: Mobile(SqueezeExcite(16)), (3, 16, 16)),
    "linear-excite": (lambda: Mobile(LinearExcite(16)), (3, 16, 16)),
    "channel-attention": (lambda: Mobile(ChannelAttention()), (3, 16, 16)),
    "transformer": (Transformer, (3, 16, 16)),
    "upsampling": (Upsampling, (3, 8, 8)),
    "sums": (Sums, (6, 4)),
}
MOBILE = {
    ("conv", 1, 8, 3 * 8 * 9 * 64, "stem"): 1,
    ("conv", 1, 16, 8 * 16 * 64, "pointwise"): 1,
    ("conv", 16, 16, 16 * 9 * 64, "depthwise"): 1,
    ("conv", 1, 8, 8 * 16 * 64, "pointwise"): 1,
    ("conv", 2, 12, 4 * 12 * 9 * 64, "grouped"): 1,
    ("matmul", 1, 5, 60, "head"): 1,
}
EXPECTED = {
    "squeeze-excite": MOBILE
    | {("conv", 1, 4, 64, "squeeze-excite"): 1, ("conv", 1, 16, 64, "squeeze-excite"): 1},
    "linear-excite": MOBILE
    | {("matmul", 1, 4, 64, "squeeze-excite"): 1, ("matmul", 1, 16, 64, "squeeze-excite"): 1},
    "channel-attention": MOBILE | {("conv", 1, 1, 16 * 3, "squeeze-excite"): 1},
    "transformer": {
        ("conv", 1, 8, 3 * 8 * 16 * 16, "stem"): 1,
        ("matmul", 1, 24, 17 * 8 * 24, "matmul"): 1,
        ("matmul", 1, 8, 17 * 8 * 8, "matmul"): 1,
        ("matmul", 1, 32, 17 * 8 * 32, "matmul"): 1,
        ("matmul", 1, 8, 17 * 32 * 8, "matmul"): 1,
        ("matmul", 1, 5, 40, "head"): 1,
    },
    "upsampling": {
        ("conv", 1, 8, 3 * 8 * 4 * 16, "stem"): 1,
        ("conv", 2, 6, 8 * 3 * 4 * 16, "grouped"): 1,
        ("matmul", 1, 7, 6 * 7 * 64, "matmul"): 1,
        ("conv", 1, 2, 7 * 2 * 64, "head"): 1,
    },
    "sums": {
        ("matmul", 1, 5, 6 * 4 * 5, "matmul"): 1,
        ("matmul", 1, 3, 3 * 6 * 5, "head"): 1,
    },
}
ATTENTION_MACS = {"transformer": 2 * 2 * 17 * 17 * 4, "sums": 2 * 6 * 6 * 5}


def products(graph: LayerGraph) -> Counter[tuple[str, int, int | None, int | None, str]]:
    roles = assign_roles(graph)
    return Counter(
        (layer.kind, layer.groups, layer.out_channels, layer.macs, roles[layer.name])
        for layer in graph.layers
        if layer.kind in ("conv", "matmul")
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_adapter_sees_the_same_network(
    name: str, read_everywhere: Callable[..., dict[str, LayerGraph]]
) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    module = build()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)  # zeros are left out of files, and equal weights stored once
    graphs = read_everywhere(module, shape)
    for adapter, graph in graphs.items():
        assert products(graph) == EXPECTED[name], adapter
        roles = assign_roles(graph)
        attention = [layer.macs for layer in graph.layers if roles[layer.name] == "attention"]
        assert sum(attention) == ATTENTION_MACS.get(name, 0), adapter
        assert total_macs(graph) == sum(
            count * macs for (*_, macs, _), count in EXPECTED[name].items()
        ) + sum(attention), adapter
        assert len(graph.inputs) == len(graph.outputs) == 1, adapter
    # Exact where nothing is folded.
    assert total_parameters(graphs["fx"]) == sum(parameter.numel() for parameter in module.parameters())
    # Folding a batch normalisation keeps one of its two numbers per channel.
    folded = sum(norm.num_features for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))
    for adapter in ("onnx", "openvino"):
        assert total_parameters(graphs["fx"]) - total_parameters(graphs[adapter]) == folded, adapter
