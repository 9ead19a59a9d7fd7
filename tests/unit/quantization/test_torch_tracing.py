"""Tracing with known sizes: control flow on sizes is followed, the batch stays open."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from alula.quantization.torch_tracing import trace


class SamePadding(nn.Module):
    """Pads so that sizes are divided by the stride, as far as the sizes need it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.size()[-2:]
        rows, columns = (max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (height, width))
        if rows > 0 or columns > 0:
            x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return functional.conv2d(x, self.weight, None, 2)


class Windows(nn.Module):
    """Moves windows into the batch and back: sizes that follow the batch without being it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        windows = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        windows = windows.reshape(-1, channels, 2, 2)
        if windows.ndim == 4 and windows.dim() == 4 and windows.size(1) == channels:
            windows = windows * windows.shape[0]
        return windows.reshape(batch, -1)


class Asking(nn.Module):
    """Asks for a type, for an option that is not given, and for a property of the whole batch."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is not None:
            x = x * mask
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x * 0.5
        if x.dtype == torch.float32 and x.shape[0] == x.flip(0).shape[0]:
            x = x + 1
        return x.mean(dim=tuple(range(1, x.ndim)))


def both(b: int) -> tuple[tuple[torch.Tensor], tuple[torch.Tensor]]:
    return (torch.randn(b, 3, 8, 8),), (torch.randn(b + 1, 3, 8, 8),)


@pytest.mark.parametrize("make", [SamePadding, Windows, Asking])
def test_the_graph_computes_what_the_module_does_at_any_batch_size(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    traced = trace(module, *both(2))
    for size in (1, 2, 3, 7):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)


def test_plain_tracing_cannot_do_that() -> None:
    with pytest.raises(fx.proxy.TraceError):
        fx.symbolic_trace(SamePadding())


def test_an_option_that_is_not_given_is_no_input() -> None:
    traced = trace(Asking(), *both(2))
    assert [node.name for node in traced.graph.nodes if node.op == "placeholder"] == ["x"]


def test_a_size_that_does_not_change_is_a_constant() -> None:
    x = torch.randn(2, 3, 8, 8)
    traced = trace(Windows(), (x,), (x,))
    assert not [node for node in traced.graph.nodes if node.target == "size"]
    torch.testing.assert_close(traced(x), Windows()(x))


def test_modules_of_pytorch_are_leaves_under_their_paths() -> None:
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Flatten())
    traced = trace(module, *both(2))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0.0", "0.1", "1"]


def test_control_flow_on_values_fails() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(fx.proxy.TraceError):
        trace(Branching(), *both(2))


class InPlace(nn.Module):
    """Statements whose results nobody takes, and a name that others still hold."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.sub_(0.5)
        also = y
        self.relu(y)
        functional.hardtanh(y, 0.0, 1.0, inplace=True)
        return y + also * 3


def test_what_works_in_place_is_read_by_what_comes_later() -> None:
    traced = trace(InPlace(), *both(2))
    traced.graph.eliminate_dead_code()
    traced.recompile()
    x = torch.randn(5, 3, 8, 8)
    expected = InPlace()(x.clone())
    assert not torch.equal(expected, (x * 2 - 0.5) * 4)
    torch.testing.assert_close(traced(x.clone()), expected, rtol=0, atol=0)


def test_a_change_that_no_node_gives_back_is_refused() -> None:
    class Away(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            torch._foreach_mul_([y], 2.0)
            return y + 1

    with pytest.raises(ValueError, match=r"`mul` is read after it was changed in place\."):
        trace(Away(), *both(2))
