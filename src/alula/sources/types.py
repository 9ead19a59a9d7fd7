"""The values that this package takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import msgspec

if TYPE_CHECKING:
    import torch

__all__ = ["Kind", "LoadedModel", "Source"]

Kind = Literal["factory", "timm", "torchvision", "exported", "torchscript", "onnx", "module"]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to build a model again in another process.

    Attributes:
        kind: what `spec` is.
        spec: as the user wrote it, with absolute paths.
        weights: absolute path of the weights to put in, or None to keep those that the model comes with.
        search_path: folders that are importable while the model loads.
        sha256: of the file behind a `module` source, so that only the file that was written is read.

    >>> msgspec.json.encode(Source(kind="timm", spec="timm:resnet18?in_chans=1"))
    b'{"kind":"timm","spec":"timm:resnet18?in_chans=1","weights":null,"search_path":[],"sha256":null}'
    """

    kind: Kind
    spec: str
    weights: str | None = None
    search_path: tuple[str, ...] = ()
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "module") != (self.sha256 is not None):
            raise ValueError("`sha256` belongs to sources of kind `module` and to no other")


@final
@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be exported or run.

    Attributes:
        kind: whether `module` or `onnx_path` holds it.
        module: in eval mode, on the CPU, float32, no gradients; None for ONNX files.
        onnx_path: the checked ONNX file; None for modules.
        name: a short name for people, such as `resnet18`.
    """

    kind: Literal["module", "onnx"]
    name: str
    module: torch.nn.Module | None = None
    onnx_path: Path | None = None
