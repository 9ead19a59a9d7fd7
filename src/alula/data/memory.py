"""Samples in memory: `.npz` files, arrays, sequences, torch data sets and loaders."""

from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from alula.data.arrays import check_numeric, read_array
from alula.data.samples import Item, Samples
from alula.data.targets import Targets, array_targets, checked_labels
from alula.errors import DataError

__all__ = [
    "MAX_KEPT_BYTES",
    "MAX_LABELLED",
    "loaded_torch",
    "open_batches",
    "open_indexable",
    "open_npy",
    "open_npz",
    "open_stacked",
    "open_stream",
]

MAX_LABELLED = 10_000
"""Samples taken from a torch `Dataset`, evenly spread over it if it has more: reading the labels
means reading every sample, and at 10,000 the standard error of an accuracy of 80 % is 0.4 points."""

MAX_KEPT_BYTES = 2 * 1024**3
"""Arrays kept of a torch `DataLoader` or `IterableDataset`; reading stops at the batch that reaches it."""

Array = npt.NDArray[Any]


class Indexable(Protocol):
    """Samples by number."""

    def __getitem__(self, index: int, /) -> object: ...


def open_npz(path: Path, *, labels: Sequence[str] | None = None) -> Samples:
    """Return the samples of a `.npz` file, loaded at once.

    `x` holds the samples along its first axis; a model of several inputs takes `x0`, `x1` and so on.
    `y` is optional, as in `array_targets`; `labels` is optional text of shape (c,), and the argument
    of that name goes before it.

    Raises:
        DataError: the file is damaged, holds pickled objects, or has no `x`, or lengths differ.
    """
    try:
        # Opened here: NumPy leaves a file open that turns out to be damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(path, "The file is a single array, not .npz. Save it with numpy.savez.")
            with archive:
                stored = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DataError(path, f"The file cannot be read: {error.strerror or error}.") from error
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        SyntaxError,
        EOFError,
        MemoryError,
        RuntimeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            path, f"The file is no whole .npz of plain arrays: {error}. Save it with numpy.savez."
        ) from error
    numbered = list(takewhile(stored.__contains__, (f"x{number}" for number in count())))
    inputs = ["x"] if "x" in stored else numbered
    if not inputs:
        raise DataError(
            path,
            f"The file has no array `x`; it holds {', '.join(f'`{name}`' for name in stored) or 'nothing'}."
            " Expected `x`, and if known `y` and `labels`.",
        )
    if "labels" in stored and labels is None:
        if stored["labels"].dtype.kind != "U" or stored["labels"].ndim != 1:
            raise DataError(path, "`labels` must be text of shape (c,): the names of the classes in order.")
        labels = stored["labels"].tolist()
    return open_stacked(
        tuple(stored[name] for name in inputs), stored.get("y"), labels=labels, source=str(path)
    )


def open_npy(path: Path) -> Samples:
    """Return the samples of a `.npy` file, along its first axis, without labels.

    Raises:
        DataError: as `read_array`.
    """
    return open_stacked((read_array(path),), None, source=str(path))


def open_stacked(
    x: object, y: object, *, labels: Sequence[str] | None = None, source: str = "arrays"
) -> Samples:
    """Return the samples along the first axis of arrays in memory.

    Args:
        x: one array, or a tuple, list or mapping of arrays, one per model input.
        y: as in `array_targets`, or None.
        labels: names of the classes in order.
        source: what to call the data in reports.

    Raises:
        DataError: lengths differ, or something is not an array of numbers.
    """
    inputs = _arrays(x, source)
    lengths = {len(array) if array.ndim else None for array in inputs}
    n = len(inputs[0]) if inputs[0].ndim else 0
    if len(lengths) > 1 or n == 0:
        shapes = ", ".join(str(array.shape) for array in inputs)
        raise DataError(source, f"Got arrays of shape {shapes}. Expected samples along one first axis.")
    targets = Targets(labels=checked_labels(labels))
    if y is not None:
        truth = _as_array(y, "the labels", source) if _is_array(y) else _label_array(list(_rows(y)), source)
        if truth.ndim == 0 or len(truth) != n:
            raise DataError(source, f"Got labels of shape {truth.shape} for {n} samples. Expected one each.")
        targets = array_targets(truth, labels, source=source)
    return _samples(
        n, targets, lambda index: tuple(array[index, ...] for array in inputs), f"{source}: {n} samples"
    )


def open_indexable(
    data: Indexable,
    n: int,
    *,
    labels: Sequence[str] | None = None,
    most: int | None = None,
    source: str,
) -> Samples:
    """Return samples that are read by number when they are asked for.

    Each is x, `(x,)` or `(x, y)`; x is an array, or a tuple, list or mapping of arrays, one per model
    input; y may be None. If the first sample has a y, each is read once now for its own.

    Args:
        data: gives one sample for a number from 0 to `n` - 1; what it raises is passed on.
        n: how many there are.
        labels: names of the classes in order.
        most: take at most this many samples, evenly spread.
        source: what to call the data in reports.

    Raises:
        DataError: a sample is of another form, or only some have a y.
    """
    if n == 0:
        raise DataError(source, "The data set is empty. Expected at least one sample.")
    taken = n if most is None else min(n, most)
    numbers = [position * n // taken for position in range(taken)]

    first_x, first_y = _pair(data[0], source)
    inputs = len(_arrays(first_x, f"{source}, sample 0"))

    def load(index: int) -> tuple[Array, ...]:
        where = f"{source}, sample {numbers[index]}"
        arrays = _arrays(_pair(data[numbers[index]], where)[0], where)
        if len(arrays) != inputs:
            raise DataError(where, f"Got {len(arrays)} arrays. Expected {inputs}, as in sample 0.")
        return arrays

    targets = Targets(labels=checked_labels(labels))
    if first_y is not None:
        truth = (_pair(data[number], f"{source}, sample {number}")[1] for number in numbers)
        targets = array_targets(_label_array(list(truth), source), labels, source=source)
    of = f"{taken} of {n} samples, evenly spread" if taken < n else f"{n} samples"
    return _samples(taken, targets, load, f"{source}: {of}")


def open_batches(batches: Iterable[object], *, labels: Sequence[str] | None = None, source: str) -> Samples:
    """Return the samples of a stream of batches, read once and kept, without their batch axis.

    A batch is x, `(x,)` or `(x, y)` with the samples along the first axis of every array. Reading
    stops at the batch with which `MAX_KEPT_BYTES` are reached; the source then says so. A loader in
    class order should therefore be shuffled.

    Raises:
        DataError: a batch is of another form, or the stream is empty.
    """
    kept: list[tuple[Array, ...]] = []
    truth: list[object] = []
    kept_bytes = 0
    stopped = False
    for number, batch in enumerate(batches):
        if kept_bytes >= MAX_KEPT_BYTES:
            stopped = True
            break
        where = f"{source}, batch {number}"
        x, y = _pair(batch, where)
        # Copied: arrays of worker processes lie in shared memory and hold a file descriptor each.
        arrays = tuple(np.array(array) for array in _arrays(x, where))
        sizes = {len(array) if array.ndim else None for array in arrays}
        ys = [None] * len(arrays[0]) if y is None and arrays[0].ndim else _rows(y)
        if sizes != {len(ys)} or (kept and len(arrays) != len(kept[0])):
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise DataError(
                where,
                f"Got arrays of shape {shapes} with {len(ys)} labels. Expected the batch axis first in all.",
            )
        kept.extend(zip(*arrays, strict=True))
        truth.extend(ys)
        kept_bytes += sum(array.nbytes for array in arrays)
    if not kept:
        raise DataError(source, "It gave no batch. Expected at least one sample.")
    kept = [tuple(np.asarray(array) for array in sample) for sample in kept]
    return _kept(kept, truth, labels, source, stopped=stopped)


def open_stream(stream: Iterable[object], *, labels: Sequence[str] | None = None, source: str) -> Samples:
    """Return the samples of a stream, read once and kept; as `open_batches`, but sample by sample.

    Raises:
        DataError: a sample is of another form, or the stream is empty.
    """
    kept: list[tuple[Array, ...]] = []
    truth: list[object] = []
    kept_bytes = 0
    stopped = False
    for number, sample in enumerate(stream):
        if kept_bytes >= MAX_KEPT_BYTES:
            stopped = True
            break
        where = f"{source}, sample {number}"
        x, y = _pair(sample, where)
        arrays = _arrays(x, where)
        if kept and len(arrays) != len(kept[0]):
            raise DataError(where, f"Got {len(arrays)} arrays. Expected {len(kept[0])}, as in sample 0.")
        kept.append(arrays)
        truth.append(y)
        kept_bytes += sum(array.nbytes for array in arrays)
    if not kept:
        raise DataError(source, "It gave no sample. Expected at least one.")
    return _kept(kept, truth, labels, source, stopped=stopped)


def _kept(
    kept: list[tuple[Array, ...]],
    truth: list[object],
    labels: Sequence[str] | None,
    source: str,
    *,
    stopped: bool,
) -> Samples:
    targets = Targets(labels=checked_labels(labels))
    if any(y is not None for y in truth):
        targets = array_targets(_label_array(truth, source), labels, source=source)
    limit = f" (the rest was not read: {MAX_KEPT_BYTES / 1024**3:g} GiB are kept)" if stopped else ""
    text = f"{source}: {'first ' if stopped else ''}{len(kept)} samples{limit}"
    return _samples(len(kept), targets, kept.__getitem__, text)


def _samples(n: int, targets: Targets, load: Callable[[int], tuple[Array, ...]], source: str) -> Samples:
    return Samples(
        kind="array",
        source=source,
        items=tuple(Item(group=str(index)) for index in range(n)),
        task=targets.task,
        targets=targets.values,
        labels=targets.labels,
        load=load,
    )


def _pair(sample: object, where: str) -> tuple[object, object]:
    """Return x and y; y is None if there is none."""
    if not isinstance(sample, tuple | list):
        return sample, None
    if len(sample) == 1:
        return sample[0], None
    if len(sample) == 2:
        return sample[0], sample[1]
    raise DataError(
        where,
        f"Got {len(sample)} values. Expected x, (x,) or (x, y). For a model of several inputs make x "
        "a tuple: ((a, b), y).",
    )


def _arrays(x: object, where: str) -> tuple[Array, ...]:
    parts = tuple(x.values()) if isinstance(x, Mapping) else tuple(x) if isinstance(x, tuple | list) else (x,)
    if not parts:
        raise DataError(where, "Got no array. Expected at least one.")
    return tuple(check_numeric(_as_array(part, "x", where), source=where) for part in parts)


def _is_array(value: object) -> bool:
    torch = loaded_torch()
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def loaded_torch() -> ModuleType | None:
    """Return torch if anything has imported it: without that, nothing can be a torch object."""
    return sys.modules.get("torch")


def _as_array(value: object, what: str, where: str) -> Array:
    torch = loaded_torch()
    if torch is not None and isinstance(value, torch.Tensor):
        tensor: Any = value.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its values.
        array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise DataError(
        where,
        f"Got {kind} as {what}. Expected a NumPy array or a torch tensor. Convert it with `numpy.asarray` or "
        "a transform of the data set.",
    )


def _rows(y: object) -> Sequence[object]:
    if isinstance(y, str):
        return [y]
    if _is_array(y):
        array = _as_array(y, "the labels", "the labels")
        return list(array) if array.ndim else [array]
    return y if isinstance(y, Sequence) else [y]


def _label_array(values: list[object], source: str) -> Array:
    """Return one array of all labels; scalars, texts and arrays of one shape can be stacked."""
    without = sum(value is None for value in values)
    if without:
        raise DataError(source, f"{without} of {len(values)} samples have no label. Label all or none.")
    plain = [_as_array(value, "a label", source) if _is_array(value) else value for value in values]
    try:
        return np.array(plain)
    except ValueError as error:
        raise DataError(source, "The labels have different shapes. Expected one shape for all.") from error
