"""Rewrites: what is folded, what is left alone, and that the user's module stays as it was."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from alula.export import flush_denormals, fold_computed_weights, rewritten
from alula.export.rewrites import FLUSH_BELOW

SAMPLES = (np.random.default_rng(1).normal(size=(2, 4, 11, 9)).astype(np.float32),)
# A folded weight is the computed one, bit for bit; only the convolution's own summation may differ.
LIMIT = 1e-6


class OwnStandardised(nn.Conv2d):
    """Weight standardisation as people write it themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = centred / (centred.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByKeyword(nn.Conv2d):
    """The same, with every argument by its name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(
            input=x, weight=self.weight * 2, bias=self.bias, stride=self.stride, padding=self.padding
        )


class InputDependent(nn.Conv2d):
    """A weight that depends on the input, as dynamic convolutions have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight * x.abs().mean(), self.bias, self.stride, self.padding)


class ScaledInput(nn.Conv2d):
    """A convolution that prepares its input in another way than by padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x * 3, self.weight * 2, self.bias, self.stride, self.padding)


class ScaledOutput(OwnStandardised):
    """A convolution that does more than its convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 3


def hooked(conv: nn.Module) -> nn.Module:
    """Return the convolution with a hook that changes its output."""
    conv.register_forward_hook(lambda module, args, output: output + 1)
    return conv


class Twice(nn.Module):
    """One convolution at two places."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x))


def net(conv: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()


def run(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(SAMPLES[0])).numpy())


@pytest.mark.parametrize(
    "conv",
    [
        pytest.param(lambda: ScaledStdConv2d(4, 8, 3), id="timm-scaled"),
        pytest.param(
            lambda: ScaledStdConv2d(4, 8, 3, stride=2, groups=2, bias=False), id="timm-scaled-groups"
        ),
        pytest.param(lambda: ScaledStdConv2dSame(4, 8, 3, stride=2), id="timm-scaled-same"),
        pytest.param(lambda: ScaledStdConv2dSame(4, 8, 4), id="timm-scaled-same-even-kernel"),
        pytest.param(lambda: StdConv2d(4, 8, 3, padding=1, dilation=2), id="timm-std"),
        pytest.param(lambda: StdConv2dSame(4, 8, 3, stride=3), id="timm-std-same"),
        pytest.param(lambda: OwnStandardised(4, 8, 3, padding=(0, 2)), id="own"),
        pytest.param(lambda: OwnStandardised(4, 8, 3, padding="same"), id="own-same"),
        pytest.param(lambda: ByKeyword(4, 8, 3, stride=2), id="by-keyword"),
        pytest.param(lambda: weight_norm(nn.Conv2d(4, 8, 3, padding=1)), id="weight-norm"),
    ],
)
def test_a_computed_weight_becomes_a_plain_one(conv) -> None:
    module = net(conv())
    expected = run(module)
    result, notes = rewritten(module, SAMPLES)
    assert notes == ("folded computed weights of 1 convolutions into plain ones",)
    kinds = {type(part) for part in result.modules()}
    assert kinds <= {nn.Sequential, nn.Conv2d, nn.ReLU, nn.ConstantPad2d}
    assert not result.training
    np.testing.assert_allclose(run(result), expected, atol=LIMIT * np.abs(expected).max())


@pytest.mark.parametrize(
    "conv",
    [
        pytest.param(lambda: nn.Conv2d(4, 8, 3), id="plain"),
        pytest.param(lambda: Conv2dSame(4, 8, 3, stride=2), id="timm-same"),
        pytest.param(lambda: InputDependent(4, 8, 3), id="input-dependent"),
        pytest.param(lambda: ScaledInput(4, 8, 3), id="prepared-input"),
        pytest.param(lambda: ScaledOutput(4, 8, 3), id="changed-output"),
        pytest.param(lambda: hooked(OwnStandardised(4, 8, 3)), id="output-changed-by-hook"),
        pytest.param(lambda: Twice(ScaledStdConv2dSame(4, 4, 3, stride=2)), id="used-twice"),
    ],
)
def test_what_cannot_be_folded_is_left_alone(conv) -> None:
    inner = conv()
    module = net(inner) if not isinstance(inner, Twice) else inner.eval()
    expected = run(module)
    result, notes = rewritten(module, SAMPLES)
    assert notes == ()
    assert [type(part) for part in result.modules()] == [type(part) for part in module.modules()]
    np.testing.assert_array_equal(run(result), expected)


def test_a_convolution_that_is_never_called_is_left_alone() -> None:
    module = net(nn.Conv2d(4, 8, 3))
    module[1].unused = ScaledStdConv2d(4, 8, 3)
    assert fold_computed_weights(module, [torch.from_numpy(SAMPLES[0])]) == 0
    assert isinstance(module[1].unused, ScaledStdConv2d)


def test_a_model_with_integer_inputs() -> None:
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = StdConv2d(4, 8, 3)
            self.codes = nn.Embedding(5, 8)

        def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3)) + self.codes(code)

    module = Coded().eval()
    result, notes = rewritten(module, (SAMPLES[0], np.array([4, 2])))
    assert notes == ("folded computed weights of 1 convolutions into plain ones",)
    assert type(result.conv) is nn.Conv2d


def test_a_call_by_keyword_is_left_alone() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = StdConv2d(4, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x=x)

    assert rewritten(ByName().eval(), SAMPLES)[1] == ()


def test_folding_inside_named_parts() -> None:
    module = nn.Sequential(OrderedDict(stem=nn.Sequential(OrderedDict(conv=StdConv2d(4, 8, 3))))).eval()
    assert fold_computed_weights(module, [torch.from_numpy(SAMPLES[0])]) == 1
    assert type(module.stem.conv) is nn.Conv2d


@pytest.mark.parametrize("flushing_cpu", [False, True])
def test_denormal_weights_become_zero(flushing_cpu: bool) -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    torch.set_flush_denormal(False)
    tiny = np.array([1e-41, -1e-39, 0.9 * FLUSH_BELOW, -0.5 * FLUSH_BELOW], np.float32)
    with torch.no_grad():
        module[0].weight.view(-1)[:4] = torch.from_numpy(tiny)
        module[0].weight.view(-1)[4] = 2 * FLUSH_BELOW
        module[0].weight.view(-1)[5] = 0.0
        module[1].running_mean[0] = 1e-35
    before = module[0].weight.detach().numpy().copy()
    # A session of eager PyTorch leaves this on; the weights' bits are still denormal then.
    torch.set_flush_denormal(flushing_cpu)
    try:
        assert flush_denormals(module) == 4 + 1
    finally:
        torch.set_flush_denormal(False)
    after = module[0].weight.detach().numpy()
    assert after.ravel()[:4].view(np.uint32).tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(after.ravel()[4:], before.ravel()[4:])
    assert module[1].running_mean[0] == 0
    assert module[1].num_batches_tracked.dtype == torch.int64
    assert flush_denormals(module) == 0


def test_the_users_module_is_not_changed() -> None:
    module = net(ScaledStdConv2dSame(4, 8, 3, stride=2))
    with torch.no_grad():
        module[2].weight[0, 0] = 1e-36
    state = copy.deepcopy(module.state_dict())
    kinds = [type(part) for part in module.modules()]
    expected = run(module)
    result, notes = rewritten(module, SAMPLES)
    assert notes == (
        "folded computed weights of 1 convolutions into plain ones",
        "flushed 1 weights below 1e-30 to zero",
    )
    assert [type(part) for part in module.modules()] == kinds
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
    np.testing.assert_array_equal(run(module), expected)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(run(module), expected)
