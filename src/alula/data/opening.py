"""The one door for data: whatever the user has becomes `Samples`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alula.data.folders import open_folder
from alula.data.manifests import MANIFEST_SUFFIXES, open_manifest
from alula.data.memory import (
    MAX_LABELLED,
    loaded_torch,
    open_batches,
    open_indexable,
    open_npy,
    open_npz,
    open_stacked,
    open_stream,
)
from alula.data.samples import Samples
from alula.errors import DataError, UsageError

__all__ = ["open_samples"]


def open_samples(source: Any, *, labels: Sequence[str] | None = None) -> Samples:
    """Return the samples of a data set in any of the forms that are understood.

    - a folder of class folders with audio, images or `.npy` arrays; a folder of files has no labels;
    - a `.csv` or `.parquet` manifest, `path,label[,start_s,end_s]`;
    - `.npz` with `x` and, if known, `y` and `labels`; `.npy` with samples along its first axis;
    - an array or tensor with samples along its first axis, or a tuple `(x, y)` of two such, where x
      may also be a dict of arrays;
    - a sequence of arrays or of pairs `(x, y)`; x may be a tuple, list or mapping of arrays;
    - a torch `Dataset` (read on demand, at most `MAX_LABELLED` samples evenly spread),
      `DataLoader` or `IterableDataset` (read once, at most `MAX_KEPT_BYTES` kept).

    Args:
        source: one of these.
        labels: names of the classes in the order of the model's outputs; without them, the order
            that the source has or, for names, sorted order.

    Raises:
        DataError: the data cannot be used; says where and why.
        UsageError: `source` is of none of these forms, or `labels` are not distinct names.
        EngineUnavailableError: reading it needs a library that is not installed.
    """
    if isinstance(source, str | Path):
        return _open_path(Path(source), labels)
    if isinstance(source, np.ndarray):
        return open_stacked(source, None, labels=labels, source="array")
    torch = loaded_torch()
    if torch is not None:
        samples = _open_torch(source, torch, labels)
        if samples is not None:
            return samples
    if isinstance(source, tuple) and len(source) == 2 and _stacked(source[0], torch):
        return open_stacked(source[0], source[1], labels=labels, source="arrays (x, y)")
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray | memoryview):
        return open_indexable(source, len(source), labels=labels, source=type(source).__name__)
    raise UsageError(
        f"`data` is of type `{type(source).__module__}.{type(source).__qualname__}`. Expected a path, an "
        "array, a sequence of arrays or of pairs (x, y), or a torch Dataset or DataLoader. "
        "Make a list of an iterator."
    )


def _open_path(path: Path, labels: Sequence[str] | None) -> Samples:
    if path.is_dir():
        return open_folder(path, labels=labels)
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(path, "The data does not exist. Expected a folder, .csv, .parquet, .npz or .npy.")
    if suffix in MANIFEST_SUFFIXES:
        return open_manifest(path, labels=labels)
    if suffix == ".npz":
        return open_npz(path, labels=labels)
    if suffix == ".npy":
        return open_npy(path)
    raise DataError(
        path, f"Got a file of type `{suffix}`. Expected a folder, .csv, .parquet, .npz or .npy as data."
    )


def _open_torch(source: Any, torch: Any, labels: Sequence[str] | None) -> Samples | None:
    name = type(source).__name__
    if isinstance(source, torch.Tensor):
        return open_stacked(source, None, labels=labels, source="tensor")
    if isinstance(source, torch.utils.data.DataLoader):
        if source.batch_size is None and source.batch_sampler is None:
            raise UsageError("The DataLoader makes no batches (batch_size=None). Give it a `batch_size`.")
        return open_batches(source, labels=labels, source=name)
    if isinstance(source, torch.utils.data.IterableDataset):
        return open_stream(source, labels=labels, source=name)
    if isinstance(source, torch.utils.data.Dataset):
        try:
            n = len(source)
        except TypeError as error:
            raise DataError(name, "The Dataset has no length. Give it a `__len__`.") from error
        return open_indexable(source, n, labels=labels, most=MAX_LABELLED, source=name)
    return None


def _stacked(x: object, torch: Any) -> bool:
    """Whether x of a tuple (x, y) is stacked: two samples alone would be too few to split."""
    return isinstance(x, np.ndarray | dict) or (torch is not None and isinstance(x, torch.Tensor))
