"""From files and data sets to model inputs: where `data` and `features` meet."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription
from alula.data import Samples, open_audio, read_array, read_image
from alula.errors import DataError
from alula.features import ArrayFeatures, AudioFeatures, ImageFeatures, make_features
from alula.pipeline import RowSpec

__all__ = ["Decoding", "FileReader", "Materialized", "Piece", "default_description", "materialize", "spec_of"]

Arrays = tuple[NDArray[Any], ...]


class Decoding(Protocol):
    """Returns an iterator with the same items, watched or as it is."""

    def __call__(self, blocks: Iterator[NDArray[Any]], /) -> Iterator[NDArray[Any]]:
        """Return it."""
        ...


class Piece(NamedTuple):
    """One model input made from a file: its place in the file (None for images and arrays) and arrays."""

    start_s: float | None
    end_s: float | None
    arrays: Arrays


class FileReader:
    """Turns files into model inputs by a description. Thread-safe: one call per file, any thread."""

    def __init__(self, description: InputDescription) -> None:
        self._features = make_features(description)

    def pieces(
        self,
        path: Path,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        decoding: Decoding = iter,
    ) -> Iterator[Piece]:
        """Yield the model inputs of a file, in order: its windows, or the one image or array.

        Args:
            path: the file.
            start_s: of a recording, where to begin.
            end_s: where to end; None for its end.
            decoding: is given what decodes, piece by piece, and returns it, watched.

        Raises:
            DataError: the file cannot be read, now or further on.
        """
        features = self._features
        match features:
            case AudioFeatures():
                with open_audio(path, start_s=start_s, end_s=end_s) as audio:
                    for window in features.windows(decoding(audio.blocks()), audio.rate_hz):
                        yield Piece(start_s + window.start_s, start_s + window.end_s, (window.samples,))
            case ImageFeatures():
                for image in decoding(map(read_image, [path])):
                    yield Piece(None, None, (features.transform(image),))
            case ArrayFeatures():
                for array in decoding(map(read_array, [path])):
                    yield Piece(None, None, (_described(path, features, array),))

    @property
    def row_spec(self) -> RowSpec | None:
        """Shape and type of the arrays of a row; None where the description leaves them open."""
        features = self._features
        return None if isinstance(features, ArrayFeatures) else spec_of([features.sample_shape])

    def spans(self, duration_s: float | None) -> list[tuple[float | None, float | None]] | None:
        """Return where the pieces of a file lie, without reading it; None where that cannot be told.

        Args:
            duration_s: of a recording; None where it is not known.
        """
        if not isinstance(self._features, AudioFeatures):
            return [(None, None)]
        return None if duration_s is None else list(self._features.spans(duration_s))


def spec_of(shapes: Iterable[tuple[int, ...]]) -> RowSpec:
    """Return the shapes and types of arrays of features, all of them float32."""
    return tuple((shape, np.dtype(np.float32)) for shape in shapes)


def _described(path: Path, features: ArrayFeatures, array: NDArray[Any]) -> NDArray[Any]:
    try:
        return features.transform(array)
    except DataError as error:
        raise DataError(path, error.reason) from error


def default_description(samples: Samples) -> InputDescription:
    """Return the description of samples that need none: arrays as they are.

    Raises:
        DataError: the samples are files of audio or images, which need a description.
    """
    if samples.kind != "array":
        preset = "imagenet" if samples.kind == "image" else "mel-128x313"
        raise DataError(
            samples.source,
            f"The data are {samples.kind} files, and how the model sees them was not said. "
            f"Give an input description: --input {preset}, another preset, or a TOML file.",
        )
    first = samples.array(0)
    return ArrayInput(dtype=str(first[0].dtype if first[0].dtype != np.float64 else np.dtype(np.float32)))


class Materialized(msgspec.Struct, frozen=True, kw_only=True):
    """Model inputs on disk.

    Attributes:
        paths: one `.npy` (n, ...) per model input.
        rows: for each row, the index of the sample that it came from.
        samples: that were taken, readable or not.
        problems: samples that could not be read, one line each.
    """

    paths: tuple[str, ...]
    rows: tuple[int, ...]
    samples: int
    problems: tuple[str, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """Indices of the samples that gave rows, in order."""
        return tuple(dict.fromkeys(self.rows))


def materialize(
    samples: Samples,
    indices: Sequence[int],
    *,
    description: InputDescription,
    folder: Path,
    name: str,
    threads: int,
    max_rows: int,
    until_s: float = math.inf,
    least_rows: int = 0,
) -> Materialized:
    """Write the model inputs of some samples as `.npy` files, in the order of the indices.

    A sample that cannot be read is left out and reported. A recording gives a row per window.

    Args:
        samples: the data set.
        indices: which samples.
        description: how files become arrays.
        folder: where to write.
        name: first part of the file names.
        threads: files read at once.
        max_rows: stop after so many rows.
        until_s: of `time.monotonic()`, when no more samples are taken.
        least_rows: that are taken however late it is.

    Raises:
        DataError: more than half of the samples cannot be read, or rows differ in shape.
    """
    _check_kind(samples, description)
    reader = FileReader(description)

    def read(index: int) -> list[Arrays] | DataError:
        try:
            if samples.kind == "array":
                return [_cast(samples.array(index), description)]
            item = samples.items[index]
            assert item.path is not None
            pieces = reader.pieces(item.path, start_s=item.start_s, end_s=item.end_s)
            return [piece.arrays for piece in itertools.islice(pieces, max_rows)]
        except DataError as error:
            return error

    rows: list[int] = []
    problems: list[str] = []
    writers: list[_NpyWriter] = []
    taken = 0
    try:
        for index, result in _map_ahead(read, indices, threads):
            taken += 1
            if isinstance(result, DataError):
                problems.append(str(result))
                continue
            for arrays in result:
                if len(rows) == max_rows:
                    break
                if not writers:
                    writers = [_NpyWriter(folder / f"{name}_{i}.npy", a) for i, a in enumerate(arrays)]
                for writer, array in zip(writers, arrays, strict=True):
                    writer.append(array, samples.items[index].path or f"{samples.source}[{index}]")
                rows.append(index)
            if len(rows) == max_rows or (len(rows) >= least_rows and time.monotonic() > until_s):
                break
    finally:
        for writer in writers:
            writer.close()
    if not rows or len(problems) > taken / 2:
        shown = " ".join(problems[:3])
        raise DataError(
            samples.source, f"{len(problems)} of {taken} samples cannot be read, for example: {shown}"
        )
    return Materialized(
        paths=tuple(str(writer.path) for writer in writers),
        rows=tuple(rows),
        samples=taken,
        problems=tuple(problems),
    )


def _map_ahead(
    read: Callable[[int], list[Arrays] | DataError], indices: Sequence[int], threads: int
) -> Iterator[tuple[int, list[Arrays] | DataError]]:
    """Yield results in order, with a bounded number of samples read ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="alula-read") as pool:
        left = iter(indices)
        waiting = deque((index, pool.submit(read, index)) for index in itertools.islice(left, 4 * threads))
        try:
            while waiting:
                index, future = waiting.popleft()
                result = future.result()
                del future  # or what was read would stay while it is used
                waiting.extend((one, pool.submit(read, one)) for one in itertools.islice(left, 1))
                yield index, result
        finally:
            for _, future in waiting:
                future.cancel()


def _check_kind(samples: Samples, description: InputDescription) -> None:
    kinds: dict[type, str] = {AudioInput: "audio", ImageInput: "image", ArrayInput: "array"}
    expected = kinds[type(description)]
    if samples.kind != expected:
        raise DataError(
            samples.source,
            f"The data are {samples.kind} files, but the input description is for {expected}. "
            "Give the description that the model was trained with.",
        )


def _cast(arrays: Arrays, description: InputDescription) -> Arrays:
    if len(arrays) == 1:
        features = make_features(description)
        assert isinstance(features, ArrayFeatures)
        return (features.transform(arrays[0]),)
    # Several inputs: token ids beside float features keep their own types; float64 is what lists give.
    return tuple(array.astype(np.float32) if array.dtype == np.float64 else array for array in arrays)


class _NpyWriter:
    """Writes an `.npy` file row by row, when the number of rows is not known before.

    Source of the layout: NumPy enhancement proposal 1 (the .npy format).
    """

    _HEADER_BYTES = 256  # room for any number of rows; the format pads headers with spaces

    def __init__(self, path: Path, first: NDArray[Any]) -> None:
        self.path = path
        self._shape, self._dtype = first.shape, first.dtype
        self._rows = 0
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        fields = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        room = self._HEADER_BYTES - 10
        text = f"{fields!r}".ljust(room - 1) + "\n"
        self._file.seek(0, os.SEEK_SET)
        self._file.write(b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.encode("latin1"))

    def append(self, array: NDArray[Any], source: str | Path) -> None:
        if array.shape != self._shape or array.dtype != self._dtype:
            raise DataError(
                source,
                f"It gives {array.dtype} of shape {array.shape}; the samples before gave {self._dtype} of "
                f"shape {self._shape}. All samples must have one shape: crop, pad or resize them.",
            )
        self._file.write(np.ascontiguousarray(array).tobytes())
        self._rows += 1

    def close(self) -> None:
        try:
            self._write_header()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
