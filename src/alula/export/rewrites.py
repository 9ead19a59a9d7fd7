"""Rewrites of a module that keep its function and make it exportable or faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from alula.core import largest_difference
from alula.errors import ModelError
from alula.libraries import copies, leaves

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FLUSH_BELOW", "flush_denormals", "fold_computed_weights", "rewritten"]

# Far above float32's smallest normal number (1.2e-38), so that products with activations of ordinary
# size stay normal too, and far below anything that changes a result: 1e-30 of a weight of 1.
FLUSH_BELOW = 1e-30


def rewritten(module: nn.Module, samples: Sequence[NDArray[np.generic]]) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of the module with every rewrite applied, and what was done in words.

    The copy is compared with the original on the samples; a difference is an error.

    Args:
        module: in eval mode; not changed.
        samples: one array (b, ...) per input, b >= 2.

    Raises:
        ModelError: the rewritten module differs from the original by more than 1e-4 of the output scale.
    """
    import torch

    result = copy.deepcopy(module)
    tensors = [torch.from_numpy(np.array(sample)) for sample in samples]
    notes = []
    if folded := fold_computed_weights(result, tensors):
        notes.append(f"folded computed weights of {folded} convolutions into plain ones")
    if flushed := flush_denormals(result):
        notes.append(f"flushed {flushed} weights below {FLUSH_BELOW:g} to zero")
    if notes:
        _check_same(module, result, tensors)
    return result, tuple(notes)


def flush_denormals(module: nn.Module) -> int:
    """Set every parameter and buffer value below `FLUSH_BELOW` in magnitude to zero; return how many.

    Denormal numbers take the CPU a hundred times longer (onnxruntime#12959).
    """
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    count = 0
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                # Bits without the sign: a thread that flushes denormals compares them as equal to zero.
                nonzero = tensor.view(integers[tensor.element_size()]) << 1 != 0
                tiny = (tensor.abs() < FLUSH_BELOW) & nonzero
                found = int(tiny.sum())
                if found:
                    tensor[tiny] = 0
                    count += found
    return count


def fold_computed_weights(module: nn.Module, tensors: Sequence[torch.Tensor]) -> int:
    """Replace convolutions that compute their weight in every call by plain ones; return how many.

    Covers weight standardisation in any spelling (timm's `ScaledStdConv2d` and `StdConv2d`, own
    classes, `weight_norm`): the weight that reaches the convolution is recorded while two different
    batches pass; where it does not depend on the input, it becomes the weight of an `nn.Conv2d`.
    Padding added before the convolution (`same` padding) is kept as an explicit constant pad.

    Source: Brock et al. 2021 (arXiv:2101.08692), scaled weight standardisation.
    """
    from torch import nn

    candidates = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.Conv2d) and _computes_weight(child)
    }
    if not candidates:
        return 0
    first = _record_convolutions(module, candidates, tensors)
    others = [tensor.flip(0) * 0.5 if tensor.is_floating_point() else tensor.flip(0) for tensor in tensors]
    second = _record_convolutions(module, candidates, others)
    folded = 0
    for name, child in candidates.items():
        plain = _plain_convolution(child, first.get(name), second.get(name))
        if plain is not None:
            parent_name, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent_name), attribute, plain.train(child.training))
            folded += 1
    return folded


def _computes_weight(conv: nn.Conv2d) -> bool:
    from torch import nn
    from torch.nn.utils import parametrize

    return (
        type(conv).forward is not nn.Conv2d.forward
        or bool(conv._forward_pre_hooks)
        or parametrize.is_parametrized(conv)
    )


def _record_convolutions(
    module: nn.Module, candidates: dict[str, nn.Conv2d], tensors: Sequence[torch.Tensor]
) -> dict[str, list[_Call]]:
    import torch
    from torch.overrides import TorchFunctionMode

    calls: dict[str, list[_Call]] = {}
    running: list[tuple[str, torch.Tensor | None]] = []

    class Recorder(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: Sequence[Any] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            if func in (torch.conv2d, torch.nn.functional.conv2d) and running:
                name, received = running[-1]
                result = func(*args, **(kwargs or {}))
                calls.setdefault(name, []).append(_Call(received, args, kwargs or {}, result))
                return result
            return func(*args, **(kwargs or {}))

    def entering(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A plain convolution may not know the keyword, so a call by keyword is left alone.
            running.append((name, args[0] if args and not kwargs else None))

        return hook

    def leaving(_module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        name, _ = running.pop()
        for call in calls.get(name, []):
            call.is_all = call.is_all and call.result is output

    handles = []
    for name, child in candidates.items():
        handles.append(child.register_forward_pre_hook(entering(name), prepend=True, with_kwargs=True))
        handles.append(child.register_forward_hook(leaving))
    try:
        with torch.no_grad(), Recorder():
            module(*copies(tensors))
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _Call:
    """One convolution as it was really called, and whether its result is all that the module made."""

    _DEFAULTS: ClassVar[dict[str, Any]] = {
        "bias": None,
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
    }

    def __init__(
        self, received: torch.Tensor | None, args: Sequence[Any], kwargs: dict[str, Any], result: torch.Tensor
    ) -> None:
        self.result = result
        self.is_all = True
        names = ("input", "weight", *self._DEFAULTS)
        given = {**self._DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
        self.weight = given["weight"].detach().clone()
        self.bias = None if given["bias"] is None else given["bias"].detach().clone()
        self.stride, self.padding = given["stride"], given["padding"]
        self.dilation, self.groups = given["dilation"], given["groups"]
        self.pad = None if received is None else _constant_pad(received, given["input"])


def _constant_pad(received: torch.Tensor, given: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Return (left, right, top, bottom) zeros that turn `received` into `given`; None when nothing does."""
    import torch

    if received.shape == given.shape:
        return (0, 0, 0, 0) if torch.equal(received, given) else None
    rows, columns = (given.shape[axis] - received.shape[axis] for axis in (-2, -1))
    if rows < 0 or columns < 0 or received.shape[:-2] != given.shape[:-2]:
        return None
    # `same` padding puts the odd zero at the end (TensorFlow's rule).
    pad = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return pad if torch.equal(torch.nn.functional.pad(received, pad), given) else None


def _plain_convolution(
    child: nn.Conv2d, first: list[_Call] | None, second: list[_Call] | None
) -> nn.Module | None:
    import torch
    from torch import nn

    if first is None or second is None or len(first) != 1 or len(second) != 1:
        return None  # never called, or called several times with possibly different paddings
    one, other = first[0], second[0]
    if one.pad is None or not one.is_all or not torch.equal(one.weight, other.weight):
        return None  # something happens before or after it, or the weight depends on the input
    stored = child._parameters.get("weight")  # none where the weight is an attribute that is computed
    if stored is not None and torch.equal(one.weight, stored):
        return None
    out_channels, in_per_group, *kernel = one.weight.shape
    plain = nn.Conv2d(
        in_per_group * one.groups,
        out_channels,
        tuple(kernel),
        stride=one.stride,
        padding=one.padding,
        dilation=one.dilation,
        groups=one.groups,
        bias=one.bias is not None,
    )
    plain.weight = nn.Parameter(one.weight, requires_grad=False)
    if one.bias is not None:
        plain.bias = nn.Parameter(one.bias, requires_grad=False)
    return nn.Sequential(nn.ConstantPad2d(one.pad, 0.0), plain) if any(one.pad) else plain


def _check_same(original: nn.Module, result: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    import torch

    def outputs(module: nn.Module) -> list[NDArray[Any]]:
        return [leaf.numpy() for leaf in leaves(module(*copies(tensors)))]

    with torch.no_grad():
        difference = largest_difference(outputs(original), outputs(result))
        if not difference <= 1e-4:
            raise ModelError(
                f"The rewritten module differs from the original by {difference:.2g} of the output scale; "
                "expected at most 1e-4. Please report the model: a rewrite is wrong for it."
            )
