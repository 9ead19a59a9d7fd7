"""Makes a network with random weights behave like a trained one, in a process of its own.

Speed does not depend on the values of weights, with one exception: INT8 needs activations of ordinary size,
which a freshly built network does not have. So BatchNorm's statistics are measured on noise. `main` reads the
request in the folder that the command line names, and writes the answer there.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from alula.errors import AlulaError
from alula.sources import Source, load_model
from alula.sources.foreign import called
from alula.tuning import end_group

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ANSWER", "REQUEST", "Preparation", "PreparationRequest", "prepare", "settle_statistics"]

REQUEST, ANSWER = "prepare.json", "prepared.json"
BATCHES, BATCH = 3, 8
# Graphs of files hold trained weights; what is built from code may have fresh ones.
_BUILT = ("factory", "module", "timm", "torchvision")


class PreparationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Load a model, and give it statistics if it has none.

    Attributes:
        source: the model.
        shape: of one sample, without the batch axis.
        threads: that may compute.
    """

    source: Source
    shape: tuple[int, ...]
    threads: int


class Preparation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of it.

    Attributes:
        parameters: numbers that were, or would be, trained; None for a graph that does not tell.
        weights: state dict with the new statistics; None where none were needed.
        error: why the model cannot be used, one line.
    """

    parameters: int | None = None
    weights: str | None = None
    error: str | None = None


def prepare(request: PreparationRequest, folder: Path) -> Preparation:
    """Return a model's parameters, after writing weights with statistics into the folder if it needs any.

    Raises:
        ModelError: it cannot be loaded, or does not take samples of this shape.
        EngineUnavailableError: what loads it is not installed.
    """
    model = load_model(request.source)
    module = model.module
    if module is None:
        return Preparation()
    import torch

    torch.set_num_threads(request.threads)
    parameters = sum(one.numel() for one in module.parameters())
    shape = "x".join(map(str, request.shape))
    if request.source.kind not in _BUILT or not called(
        f"`{model.name}` on samples of {shape}", lambda: settle_statistics(module, request.shape)
    ):
        return Preparation(parameters=parameters)
    path = folder / "statistics.pth"
    torch.save(module.state_dict(), path)
    return Preparation(parameters=parameters, weights=str(path))


def settle_statistics(module: nn.Module, shape: Sequence[int]) -> bool:
    """Run a module on noise, and return whether statistics that no training has touched were set from it.

    Every BatchNorm then gives values of zero mean and unit variance, by the plain mean of the statistics of a
    few batches. Scales that start at zero, as the last one of a residual block often does, become 1: a block
    of zeros is no block. Without such a BatchNorm the module is only tried, on one batch.

    Args:
        module: in eval mode; changed in place.
        shape: of one sample, without the batch axis.
    """
    import torch

    norms = [child for child in module.modules() if _is_untouched(child)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # cumulative: all batches count alike
        norm.train()
        if norm.weight is not None and not bool(norm.weight.any()):
            torch.nn.init.ones_(norm.weight)
    chance = np.random.default_rng(0)
    with torch.no_grad():
        for _ in range(BATCHES if norms else 1):
            module(torch.from_numpy(chance.standard_normal((BATCH, *shape), dtype=np.float32)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return bool(norms)


def _is_untouched(child: nn.Module) -> bool:
    from torch import nn

    if not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
        return False
    mean: torch.Tensor | None = child.running_mean
    variance: torch.Tensor | None = child.running_var
    if mean is None or variance is None:
        return False
    return not bool(mean.any()) and bool((variance == 1).all())


def main() -> None:
    """Answer the request in the folder that the command line names, unless standard input ends before."""
    threading.Thread(target=_end_with_who_asked, daemon=True).start()
    folder = Path(sys.argv[1])
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=PreparationRequest)
    try:
        answer = prepare(request, folder)
    except AlulaError as error:
        answer = Preparation(error=str(error))
    except MemoryError:
        answer = Preparation(error="The process ran out of memory.")
    (folder / ANSWER).write_bytes(msgspec.json.encode(answer))


def _end_with_who_asked() -> None:
    # Nothing is ever sent. Not through `sys.stdin`: Python aborts if it ends while a thread reads that.
    os.read(sys.stdin.fileno(), 1)
    end_group()


if __name__ == "__main__":
    main()
