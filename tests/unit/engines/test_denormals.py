"""Denormals are flushed inside the block, in this thread, and nowhere else."""

from __future__ import annotations

import platform
import sys
import threading

import numpy as np
import pytest

from alula.engines import denormals
from alula.engines.denormals import flushed_denormals

SMALLEST = np.float64(5e-324)
known = pytest.mark.skipif(
    (sys.platform, platform.machine()) not in denormals._REGISTERS,
    reason="NOT COVERED HERE: nothing is flushed on this system",
)


def flushes() -> bool:
    """Return whether this thread's arithmetic takes denormals for zero."""
    return bool(SMALLEST * np.float64(1.0) == 0.0)


@known
def test_inside_only() -> None:
    assert not flushes()
    with flushed_denormals():
        assert flushes()
        with flushed_denormals():
            assert flushes()
        assert flushes()
    assert not flushes()


@known
def test_put_back_after_a_failure() -> None:
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert not flushes()


@known
def test_other_threads_are_left_alone() -> None:
    seen = []
    inside, looked = threading.Event(), threading.Event()

    def look() -> None:
        inside.wait()
        seen.append(flushes())
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with flushed_denormals():
        inside.set()
        looked.wait()
    thread.join()
    assert seen == [False]


def test_other_floating_point_state_stays() -> None:
    with flushed_denormals():
        third = np.float32(1) / np.float32(3)
    assert third == np.float32(1) / np.float32(3) == np.float32(0.33333334)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError), flushed_denormals():
        np.float64(1) / np.float64(0)


def test_unknown_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denormals, "_REGISTERS", {})
    denormals._access.cache_clear()
    try:
        with flushed_denormals():
            assert not flushes()
    finally:
        denormals._access.cache_clear()
