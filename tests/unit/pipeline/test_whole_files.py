"""Long sequences in blocks: the columns of the whole at once, and the windows in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.pipeline import ColumnWalk, columns_of, windows_of

# Two convolutions over one channel: kernel, stride, padding.
LAYERS = [((3, 1, 1), (5, 2, 2)), ((3, 2, 0), (3, 2, 1)), ((4, 3, 0), (2, 2, 0)), ((7, 2, 3), (3, 4, 1))]


def convolved(x: np.ndarray, kernel: int, stride: int, pad: int) -> np.ndarray:
    """Return a convolution of (..., t), every value of the kernel another one, then a square."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(pad, pad)])
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=-1)[..., ::stride, :]
    return np.square(views @ np.arange(1.0, kernel + 1)) + 1.0


class Network:
    """Two convolutions, and how far they look."""

    def __init__(self, layers: tuple[tuple[int, int, int], ...]) -> None:
        self.layers = layers
        self.stride, self.before, self.after = 1, 0, 0
        self.longest = 0
        for kernel, stride, pad in layers:
            self.before += self.stride * pad
            self.after += self.stride * (kernel - 1 - pad)
            self.stride *= stride

    def __call__(self, stretch: np.ndarray) -> tuple[np.ndarray, ...]:
        self.longest = max(self.longest, stretch.shape[-1])
        for kernel, stride, pad in self.layers:
            stretch = convolved(stretch, kernel, stride, pad)
        # A second output, its time on another axis.
        return stretch, np.moveaxis(stretch, -1, 1) * 2.0

    def walk(self, block: int) -> ColumnWalk:
        return ColumnWalk(
            stride=self.stride,
            before=self.before,
            after=self.after,
            axis=1,
            column_axes=(2, 1),
            block_frames=block,
        )


def pieces(sequence: np.ndarray, size: int) -> list[np.ndarray]:
    return [sequence[:, at : at + size] for at in range(0, sequence.shape[1], size)]


@given(
    layers=st.sampled_from(LAYERS),
    frames=st.integers(40, 200),
    block=st.integers(1, 60),
    size=st.integers(1, 70),
)
def test_blocks_give_the_columns_of_the_whole(
    layers: tuple[tuple[int, int, int], ...], frames: int, block: int, size: int
) -> None:
    network = Network(layers)
    sequence = np.random.default_rng(frames).standard_normal((2, frames))
    expected = network(sequence[None])
    parts = list(columns_of(pieces(sequence, size), network, walk=network.walk(block)))
    for index, axis in enumerate((2, 1)):
        got = np.concatenate([part[index] for part in parts], axis=axis)
        np.testing.assert_allclose(got, expected[index], rtol=1e-12)


def test_no_stretch_is_longer_than_a_block_with_its_margins() -> None:
    network = Network(LAYERS[0])
    walk = network.walk(20)
    list(columns_of(pieces(np.zeros((1, 2_000)), 10), network, walk=walk))
    assert network.longest < walk.margin + 2 * walk.block + network.after + 10
    assert walk.repeated == pytest.approx((walk.margin + 20 + network.after + 1 - 2) / 20)


def test_an_empty_sequence_has_no_columns() -> None:
    network = Network(LAYERS[0])
    assert list(columns_of([], network, walk=network.walk(20))) == []
    assert network.longest == 0


@given(total=st.integers(10, 60), cut=st.integers(1, 13), hop=st.integers(1, 7))
def test_windows_are_cut_from_the_columns(total: int, cut: int, hop: int) -> None:
    width = 10
    columns = np.arange(total)[None, :]
    count = 1 + -(-(total - width) // hop)
    parts = [(columns[:, at : at + cut],) for at in range(0, total, cut)]
    got = list(
        windows_of(parts, column_axes=(1,), width=width, first_column=lambda k: k * hop, count=lambda: count)
    )
    firsts = [min(k * hop, total - width) for k in range(count)]
    assert [window[0].tolist() for window in got] == [list(range(at, at + width)) for at in firsts]


def test_too_few_columns_for_a_window_is_an_error() -> None:
    parts = [(np.zeros((1, 4)),)]
    with pytest.raises(ValueError, match="10 columns, but the sequence only 4"):
        list(windows_of(parts, column_axes=(1,), width=10, first_column=lambda k: k, count=lambda: 1))


def test_no_columns_no_windows() -> None:
    assert list(windows_of([], column_axes=(1,), width=10, first_column=lambda k: k, count=lambda: 0)) == []


def test_a_walk_needs_a_stride_and_a_block() -> None:
    with pytest.raises(ValueError, match="stride 0"):
        ColumnWalk(stride=0, before=0, after=0, axis=1, column_axes=(1,), block_frames=1)
