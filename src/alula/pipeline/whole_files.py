"""Long sequences through a network that looks only so far: block after block, then pooled window by window.

Each block is computed with a margin on both sides as wide as the network sees, and the margin's columns are
dropped, so that the columns are those of the whole sequence at once, and memory does not grow with it.
Knows nothing of audio or engines: sequences, the network and its head are arrays and callables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ColumnWalk", "columns_of", "windows_of"]

Arrays = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True, kw_only=True)
class ColumnWalk:
    """How a network walks along a sequence.

    Attributes:
        stride: frames between two columns.
        before: frames that a column sees before its own.
        after: likewise, after its own.
        axis: of the frames in what the network takes, without the batch axis.
        column_axes: of the columns in each array that it gives, with the batch axis.
        block_frames: new frames of a block, rounded up to whole columns.

    Raises:
        ValueError: a number is out of range.
    """

    stride: int
    before: int
    after: int
    axis: int
    column_axes: tuple[int, ...]
    block_frames: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.before < 0 or self.after < 0 or self.block_frames < 1:
            raise ValueError(
                f"stride and block must be positive and margins not negative; got stride {self.stride}, "
                f"block {self.block_frames}, margins {self.before} and {self.after}"
            )

    @property
    def margin(self) -> int:
        """Frames computed before each block's own, in whole columns."""
        return -(-self.before // self.stride) * self.stride

    @property
    def block(self) -> int:
        """New frames of a block, in whole columns."""
        return -(-self.block_frames // self.stride) * self.stride

    @property
    def repeated(self) -> float:
        """Frames computed for each new one, 1 where nothing is computed twice."""
        return (self.margin + self.block + max(0, self.after + 1 - self.stride)) / self.block


def columns_of(
    chunks: Iterable[npt.NDArray[Any]], network: Callable[[npt.NDArray[Any]], Arrays], *, walk: ColumnWalk
) -> Iterator[Arrays]:
    """Yield the columns of a sequence, block after block: the same as of the whole sequence at once.

    The sequence's own ends are padded as the network does it. The same holds for a network that is `gated`,
    except that its gates are those of a block with its margins.

    Args:
        chunks: consecutive pieces of the sequence, any length, without batch axis.
        network: takes one stretch (1, ...), gives one array per output, batch axis first.
        walk: how far it sees.

    Yields:
        One array per output of the network, its batch axis kept.
    """
    source = iter(chunks)
    held: list[npt.NDArray[Any]] = []
    origin = start = end = 0  # frames: the first held, the next block's first, the last read
    while True:
        stop = start + walk.block
        needed = max(stop, stop - walk.stride + walk.after + 1)
        # Enough for a column after this block, or the block is the last, and its columns go on to the end.
        ended = False
        while end < stop + walk.after + 1 and not ended:
            piece = next(source, None)
            if piece is None:
                ended = True
            else:
                held.append(piece)
                end += piece.shape[walk.axis]
        if end == 0:
            return
        stretch = np.concatenate(held, axis=walk.axis)
        taken = stretch if ended else _part(stretch, walk.axis, 0, needed - origin)
        outputs = network(np.ascontiguousarray(taken[None]))
        skipped = (start - origin) // walk.stride
        count = None if ended else walk.block // walk.stride
        yield tuple(
            _part(array, axis, skipped, None if count is None else skipped + count)
            for array, axis in zip(outputs, walk.column_axes, strict=True)
        )
        if ended:
            return
        start = stop
        kept_from = max(origin, start - walk.margin)
        held = [_part(stretch, walk.axis, kept_from - origin, None)]
        origin = kept_from


def windows_of(
    columns: Iterable[Arrays],
    *,
    column_axes: tuple[int, ...],
    width: int,
    first_column: Callable[[int], int],
    count: Callable[[], int],
) -> Iterator[Arrays]:
    """Yield the columns of each window, in order, each array without batch axis, as views.

    Args:
        columns: what `columns_of` yields.
        column_axes: of the columns in each array, with the batch axis.
        width: columns of a window.
        first_column: where the window of an index begins, never falling. A window that would reach beyond
            the last column is moved back to it.
        count: how many windows there are; asked when all columns have come.

    Raises:
        ValueError: the sequence has fewer columns than a window.
    """
    held: Arrays = ()
    origin = known = index = 0

    def window(first: int) -> Arrays:
        return tuple(
            _part(array, axis, first - origin, first - origin + width)[0]
            for array, axis in zip(held, column_axes, strict=True)
        )

    for new in columns:
        known += new[0].shape[column_axes[0]]
        held = _joined(held, new, column_axes) if held else new
        while first_column(index) + width <= known:
            yield window(first_column(index))
            index += 1
        # The last windows may be moved back by what they would reach beyond the end.
        kept_from = max(origin, min(first_column(index), known - width))
        held = tuple(
            _part(array, axis, kept_from - origin, None)
            for array, axis in zip(held, column_axes, strict=True)
        )
        origin = kept_from
    left = range(index, count() if known else 0)
    if left and known < width:
        raise ValueError(f"a window has {width} columns, but the sequence only {known}")
    for later in left:
        yield window(min(first_column(later), known - width))


def _joined(before: Arrays, after: Arrays, axes: tuple[int, ...]) -> Arrays:
    pairs = zip(before, after, axes, strict=True)
    return tuple(np.concatenate([one, other], axis=axis) for one, other, axis in pairs)


def _part(array: npt.NDArray[Any], axis: int, start: int, stop: int | None) -> npt.NDArray[Any]:
    places: list[slice] = [slice(None)] * array.ndim
    places[axis] = slice(start, stop)
    part: npt.NDArray[Any] = array[tuple(places)]
    return part
