"""What is shared about PyTorch: outputs as a flat tuple, the backend that weights are packed for."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import nn

from alula.errors import EngineError, EngineUnavailableError
from alula.libraries import leaves, require_torch, using_backend, with_flat_outputs


class Nested(nn.Module):
    """Returns tensors and other things in a nest."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
        return {"sum": x + y, "more": [x - y, ("a word", x * y)], "none": None}


def test_outputs_are_flat_and_in_order() -> None:
    x, y = torch.tensor([3.0]), torch.tensor([2.0])
    wrapped = with_flat_outputs(Nested().train())
    assert not wrapped.training
    assert [float(output) for output in wrapped(x, y)] == [5.0, 1.0, 6.0]
    assert [name for name, _ in wrapped.named_children()] == ["model"]
    assert leaves(x) == (x,)


def test_pytorch_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require_torch() == torch.__version__
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[torch\]'"):
        require_torch()
    with pytest.raises(EngineUnavailableError), using_backend("x86"):
        pytest.fail("must not be entered")


def test_a_backend_that_is_not_there_is_named_with_those_that_are() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(EngineError, match=r"no quantized kernels `abacus` on this CPU; it has \w+"):  # noqa: SIM117
        with using_backend("abacus"):
            pytest.fail("must not be entered")
    assert torch.backends.quantized.engine == before


def test_the_backend_is_put_back_after_an_error() -> None:
    before = torch.backends.quantized.engine
    other = next(name for name in torch.backends.quantized.supported_engines if name not in (before, "none"))
    with pytest.raises(KeyError), using_backend(other):
        assert torch.backends.quantized.engine == other
        raise KeyError
    assert torch.backends.quantized.engine == before


def test_one_thread_packs_at_a_time() -> None:
    """Or the first one's weights would be packed for the second one's backend."""
    there = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    before = torch.backends.quantized.engine
    first, second = next(name for name in there if name != before), before
    seen = []

    def pack() -> None:
        with using_backend(second):
            seen.append(torch.backends.quantized.engine)

    other = threading.Thread(target=pack)
    with using_backend(first):
        other.start()
        other.join(timeout=0.05)
        assert other.is_alive()
        assert seen == []
        assert torch.backends.quantized.engine == first
    other.join()
    assert seen == [second]
    assert torch.backends.quantized.engine == before
