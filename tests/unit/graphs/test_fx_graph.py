"""Exported programs: decomposed or not, open axes, tied weights, recurrence."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from alula.errors import ModelError
from alula.graphs import LayerGraph, assign_roles, read_fx, total_macs, total_parameters


def exported(
    module: nn.Module, *shape: int, axes: dict[int, str] | None = None, least: int = 1
) -> torch.export.ExportedProgram:
    dynamic = {
        axis: torch.export.Dim(name, min=least if axis else 1, max=512)
        for axis, name in (axes or {0: "b"}).items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecated parts
        return torch.export.export(
            module.eval(), (torch.randn(2, *shape),), dynamic_shapes=(dynamic,), strict=False
        )


class Block(nn.Module):
    """(b, 6, 8): attention, an LSTM, a head; normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


class Convolved(nn.Module):
    """(b, 3, 8, 8): every way to write a convolution, batch normalisation and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 4, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2, groups=4)
        self.line = nn.Conv1d(4, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.norm(self.same(x)))
        return self.line(self.up(x).flatten(2)).amax(-1)


def signatures(graph: LayerGraph) -> list[tuple[object, ...]]:
    roles = assign_roles(graph)
    return [
        (layer.kind, layer.groups, layer.in_channels, layer.out_channels, layer.macs, roles[layer.name])
        for layer in graph.layers
        if layer.kind in ("conv", "matmul", "recurrent")
    ]


@pytest.mark.parametrize(("build", "shape"), [(Block, (6, 8)), (Convolved, (3, 8, 8))])
def test_decomposition_changes_no_product(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    program = exported(build(), *shape)
    whole = read_fx(program.module())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = read_fx(program.run_decompositions().module())
    assert len(signatures(whole)) == len(signatures(parts)) == 3
    assert signatures(whole) == signatures(parts)
    assert total_macs(whole) == total_macs(parts)
    assert total_parameters(whole) == sum(parameter.numel() for parameter in build().parameters())


def test_names_are_the_nodes_names() -> None:
    module = exported(Convolved(), 3, 8, 8).module()
    names = {node.name for node in module.graph.nodes}
    graph = read_fx(module)
    assert {layer.name for layer in graph.layers} <= names
    assert set(graph.inputs) <= names
    assert graph.layers[0].inputs == graph.inputs


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_recurrent_layer_is_counted(layer: type[nn.Module], gates: int, both_ways: bool) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(3, 5, num_layers=2, batch_first=True, bidirectional=both_ways)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    ways = 2 if both_ways else 1
    steps, size, state = 6, 3, 5
    graph = read_fx(exported(Recurrent(), steps, size).module())
    each = gates * state * ((size + state) + (ways * state + state))
    assert total_macs(graph) == steps * ways * each


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.relu(self.one(x)))

    graph = read_fx(exported(Tied(), 4).module())
    assert total_parameters(graph) == 16
    assert total_macs(graph) == 32


def test_open_sizes_are_given_or_unknown() -> None:
    program = exported(nn.Conv1d(3, 4, 3), 3, 16, axes={0: "b", 2: "t"}, least=4)
    module = program.module()
    graph = read_fx(module)
    assert [layer.macs for layer in graph.layers] == [None]
    (name,) = graph.inputs
    for batch in (1, 5):
        assert total_macs(read_fx(module, shapes={name: (batch, 3, 20)})) == 4 * 9 * 18


def test_a_batch_folded_into_another_axis_is_one_sample() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            b, n, c = x.shape
            return self.mix(x.reshape(b * 3, n // 3, c)).reshape(b, n, c)

    graph = read_fx(exported(Windows(), 6, 4).module())
    (layer,) = [layer for layer in graph.layers if layer.kind == "matmul"]
    assert layer.output_shape == (3, 2, 4)
    assert layer.macs == 6 * 16


def test_a_program_of_one_fixed_batch_is_counted_per_sample() -> None:
    program = torch.export.export(nn.Linear(4, 5).eval(), (torch.randn(3, 4),))
    assert total_macs(read_fx(program.module())) == 20


def test_what_runs_in_a_context_is_read_in_its_place() -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            with torch.autocast("cpu", enabled=False):
                scores = x @ x.transpose(1, 2)
                doubled = 2 * x
            return self.second(scores @ doubled)

    graph = read_fx(exported(Guarded(), 5, 4).module())
    kinds = [(layer.kind, layer.macs) for layer in graph.layers if layer.macs]
    product = ("attention", 5 * 5 * 6)
    assert kinds == [("matmul", 5 * 4 * 6), product, product, ("matmul", 5 * 6 * 3)]
    (inside,) = [layer for layer in graph.layers if layer.name.endswith(".matmul")]
    (outside,) = [layer for layer in graph.layers if layer.kind == "attention" and layer is not inside]
    assert {layer.kind for layer in graph.producers(inside.name)} == {"activation", "shape"}
    assert [layer.kind for layer in graph.producers(outside.name)] == ["attention", "multiply"]
    roles = assign_roles(graph)
    assert [role for role in roles.values() if role in ("matmul", "head")] == ["matmul", "head"]
    assert total_parameters(graph) == 4 * 6 + 6 + 6 * 3 + 3


def test_a_traced_graph_is_refused() -> None:
    with pytest.raises(ModelError, match=r"torch\.export"):
        read_fx(torch.fx.symbolic_trace(nn.Linear(4, 5)))


class Spectral(nn.Module):
    """(b, 8): a product with weights, and work that is none of the products that are counted."""

    def __init__(self, more: str) -> None:
        super().__init__()
        self.first, self.more = nn.Linear(8, 4), more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.more == "FFT":
            return torch.fft.rfft(x).abs()
        return torch.ops.alula_test.doubled(x) if self.more == "foreign" else torch.relu(x)


@torch.library.custom_op("alula_test::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("more", ["nothing", "FFT", "foreign"])
def test_work_that_is_not_counted_makes_the_whole_unknown(more: str) -> None:
    graph = read_fx(exported(Spectral(more), 8).module())
    if more == "nothing":
        assert total_macs(graph) == 8 * 4
        return
    with pytest.raises(ModelError, match="cannot be counted"):
        total_macs(graph)
