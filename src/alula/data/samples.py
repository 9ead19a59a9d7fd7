"""A data set as Alula sees it: samples that can be read one by one, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy.typing as npt

from alula.data.formats import Kind
from alula.errors import DataError

__all__ = ["Item", "Samples", "Task"]

Array = npt.NDArray[Any]
Task = Literal["single-label", "multi-label", "regression"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Where one sample comes from.

    Attributes:
        path: its file; None for a sample in memory.
        start_s: where it begins in the file, for audio.
        end_s: where it ends; None for the end of the file.
        group: items of the same group, such as windows of one file, are never split apart.
    """

    path: Path | None = None
    start_s: float = 0.0
    end_s: float | None = None
    group: str


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Samples:
    """A data set: n samples and, if known, the truth about them.

    Attributes:
        kind: what the samples are: `audio` and `image` are files; `array` is read by `array()`.
        source: a short description for reports.
        items: where each sample comes from, length n.
        task: what the targets mean; None without targets.
        targets: the truth, read-only; None if unknown.
            `single-label`: class index, int64 of shape (n,);
            `multi-label`: which classes are present, float32 of shape (n, c), 0 or 1;
            `regression`: the values to predict, float32 of shape (n, ...).
        labels: names of the classes, in the order of `targets`; None if they have no names.
        load: for kind `array`, what reads the arrays of the n-th sample; call `array()` instead.
    """

    kind: Kind
    source: str
    items: Sequence[Item]
    task: Task | None = None
    targets: Array | None = None
    labels: tuple[str, ...] | None = None
    load: Callable[[int], tuple[Array, ...]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError(self.source, "The data set is empty. Expected at least one sample.")
        if (self.targets is None) != (self.task is None):
            raise ValueError("`task` and `targets` belong together")
        if self.targets is not None:
            if len(self.targets) != len(self.items):
                raise ValueError(
                    f"expected one target a sample; got {len(self.targets)} for {len(self.items)} samples"
                )
            self.targets.flags.writeable = False
        if (self.kind == "array") != (self.load is not None):
            raise ValueError("`load` belongs to samples of kind `array`")

    def __len__(self) -> int:
        return len(self.items)

    def array(self, index: int) -> tuple[Array, ...]:
        """Return the arrays of one sample, one per model input, without batch axis.

        They are read when asked for. Safe from several threads where the source is: files and
        arrays in memory are, a torch `Dataset` is if its `__getitem__` is.

        Raises:
            DataError: the samples are files of audio or images, or the sample cannot be read.
            IndexError: there is no such sample.
        """
        if self.load is None:
            raise DataError(self.source, f"The samples are {self.kind} files. Read them by their paths.")
        if not 0 <= index < len(self.items):
            raise IndexError(f"expected an index from 0 to {len(self.items) - 1}; got {index}")
        return self.load(index)
