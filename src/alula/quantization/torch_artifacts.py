"""What PyTorch's quantizers share: backends, ranges, calibration, and the TorchScript file that they write.

PyTorch announces the end of these quantizers in every release, so all of their parts are looked up when they
are used, and a part that is gone is an error in one line.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alula import core
from alula.core import ARTIFACT_FILES, Recipe
from alula.errors import EngineError
from alula.libraries import copies, leaves, with_flat_outputs
from alula.quantization.base import Batches, Material

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "another",
    "calibrate",
    "example_of",
    "largest_difference",
    "leaves",
    "looked_up",
    "offered_recipes",
    "one_line_failures",
    "qconfig_mapping",
    "write_torchscript",
]

# Operators whose second argument may be a number.
_WITH_A_NUMBER = ("add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "pow", "remainder")

# Reloaded weights are the same integers, so only float layers left in between may round otherwise.
MAX_DIFFERENCE = 1e-4


def offered_recipes(
    isa: Collection[str], *, engine: str, quantizer: str, every_backend: bool = False
) -> tuple[Recipe, ...]:
    """Return the recipes of a quantizer on a CPU, one for each of PyTorch's backends that can be fast there.

    On x86 the backend `x86` has no word in the name: with AVX512_VNNI it chooses between the kernels of
    `onednn` and `fbgemm` layer by layer, and without it is `fbgemm`. `qnnpack` is for Arm. A CPU with neither
    AVX2 nor NEON gets none.

    Args:
        isa: as in `Quantizer.recipes`.
        engine: of the recipes.
        quantizer: of the recipes.
        every_backend: whether also those that the first one chooses from.

    >>> [recipe.name for recipe in offered_recipes(["neon"], engine="torch", quantizer="fx")]
    ['torch/int8-fx-qnnpack']
    """
    variants: tuple[str | None, ...] = ()
    if "avx2" in isa:
        variants = (None, "onednn", "fbgemm") if "avx512_vnni" in isa else (None, "onednn")
    elif "neon" in isa:
        variants = ("qnnpack",)
    return tuple(
        Recipe(engine, "int8", quantizer, variant)
        for variant in (variants if every_backend else variants[:1])
    )


@contextlib.contextmanager
def one_line_failures(what: str) -> Iterator[None]:
    """Turn what PyTorch raises for a model that it cannot handle into one line; silence its warnings.

    Args:
        what: begins the message, such as `FX quantization failed`.

    Raises:
        EngineError: something inside failed.
    """
    try:
        with warnings.catch_warnings():
            # Of deprecation, of tracing, of observers: advice to PyTorch's own developers and users.
            warnings.simplefilter("ignore")
            yield
    except _failures() as error:
        raise EngineError(f"{what}: {_first_line(error)}") from error


def _failures() -> tuple[type[Exception], ...]:
    import torch

    return (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        AssertionError,
        OSError,
        torch.jit.frontend.FrontendError,
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript's interpreter tells where it was first and what happened last.
    told_last = len(lines) > 1 and lines[0].startswith("The following operation failed")
    text = lines[-1 if told_last else 0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def looked_up(look_up: Callable[[], Any], name: str) -> Any:
    """Return a part of PyTorch that a release may lack.

    Raises:
        EngineError: this one lacks it.
    """
    try:
        return look_up()
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"This PyTorch has no {name} any more ({_first_line(error)}); choose another recipe."
        ) from error


def qconfig_mapping(backend: str, *, saturating: bool) -> Any:
    """Return PyTorch's own choice of observers for a backend, as a `QConfigMapping`.

    Activations are observed by histograms and weights per channel (`qnnpack`: per tensor). For `x86` and
    `fbgemm` PyTorch leaves one bit of the activations unused, on CPUs with VNNI too: their kernels for
    depthwise convolutions add pairs of products in 16 bits everywhere. `onednn` uses all 8 bits, except
    where this CPU saturates.
    """
    from torch.ao.quantization import get_default_qconfig_mapping

    # The two differ in nothing but the unused bit, and in weights of transposed convolutions.
    return get_default_qconfig_mapping("x86" if backend == "onednn" and saturating else backend)


def calibrate(module: nn.Module, batches: Batches) -> None:
    """Run every calibration batch through a module with observers."""
    import torch

    with torch.no_grad():
        for batch in batches():
            module(*_tensors(batch))


def example_of(material: Material) -> tuple[torch.Tensor, ...]:
    """Return the first calibration batch.

    Raises:
        EngineError: there is none.
    """
    batch = next(material.batches(), None)
    if batch is None:
        raise EngineError("There are no calibration samples; quantization needs some.")
    return _tensors(batch)


def write_torchscript(module: nn.Module, material: Material, artifact: Path) -> None:
    """Write a quantized module as TorchScript that is known to come back as it was.

    It is traced on a calibration batch, and scripted where the trace does not fit other batches. The file is
    loaded again and compared on a batch of other values and, where the model allows it, of another size, as
    it is and as TorchScript optimises it: quantized weights can be lost on the way without a word, and a
    trace can take a batch size for a constant.
    Must run under `using_backend`, for which the weights are packed when the file is loaded.

    Args:
        module: quantized, in eval mode.
        material: for its batches and signature.
        artifact: folder for the file.

    Raises:
        EngineError: neither way gives a file whose outputs are those of the module.
    """
    import torch

    path = artifact / ARTIFACT_FILES["torchscript"]
    example = example_of(material)
    other = another(example, material)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: _traced(module, copies(example)),
        lambda: torch.jit.script(module),
    )
    problems = []
    with torch.no_grad(), one_line_failures("The quantized module fails"):
        expected = leaves(module(*copies(other)))
        for make in ways:
            try:
                make().save(str(path))
                difference = max(largest_difference(expected, got) for got in _outputs_again(path, other))
            except _failures() as error:
                problems.append(_first_line(error))
                continue
            if difference <= MAX_DIFFERENCE:
                return
            problems.append(f"Outputs differ by {difference:.2g} of their scale.")
    path.unlink(missing_ok=True)
    raise EngineError(
        "The quantized module does not survive being saved as TorchScript. "
        f"Traced: {problems[0]} Scripted: {problems[1]}"
    )


def _traced(module: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    """Return the trace of a module, flat outputs, with Python's numbers as numbers.

    A trace makes tensors of them, in double precision, and a file forgets that they were numbers: a product
    of integers and 0.1 would be double.
    """
    import torch

    traced = torch.jit.trace(with_flat_outputs(module), example, check_trace=False, strict=False)
    graph = traced.graph
    torch._C._jit_pass_inline(graph)
    for node in (node for kind in _WITH_A_NUMBER for node in graph.findAllNodes(f"aten::{kind}")):
        number = list(node.inputs())[1]
        value = number.toIValue() if number.node().kind() == "prim::Constant" else None
        if isinstance(value, (int, float)) and number.type().kind() == "TensorType":
            with graph.insert_point_guard(node):
                node.replaceInput(1, graph.insertConstant(value))
    return traced


def _outputs_again(path: Path, batch: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield what a file gives run as it is, profiled, and optimised."""
    import torch

    for optimised in (False, True):
        module = torch.jit.load(str(path))
        with torch.jit.optimized_execution(optimised):
            for _ in range(1 + optimised):
                yield leaves(module(*copies(batch)))


def _tensors(batch: Sequence[NDArray[np.generic]]) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(np.array(array)) for array in batch)


def another(batch: Sequence[torch.Tensor], material: Material) -> tuple[torch.Tensor, ...]:
    """Return the batch backwards and one sample larger; of its own size where the model fixes it."""
    import torch

    fixed = isinstance(material.signature.inputs[0].shape[0], int)
    backwards = [tensor.flip(0) for tensor in batch]
    return tuple(tensor if fixed else torch.cat([tensor, tensor[:1]]) for tensor in backwards)


def largest_difference(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Return `alula.core.largest_difference` of tensors; NaN and another dtype give infinity."""
    if [one.dtype for one in expected] != [one.dtype for one in got]:
        return float("inf")
    wide = ([one.double().numpy() for one in several] for several in (expected, got))
    difference = core.largest_difference(*wide)
    return float("inf") if math.isnan(difference) else difference
