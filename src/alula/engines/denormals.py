"""Flushing denormal numbers to zero in the calling thread, for the length of a block only."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["flushed_denormals"]


@dataclass(frozen=True)
class _Register:
    """Where the C library's `fenv_t` keeps the flags, and what it is made of.

    Attributes:
        size: of `fenv_t` in bytes.
        index: of the 32-bit word with the flags.
        flags: to set.
    """

    size: int
    index: int
    flags: int


# glibc and musl alike. x86-64: MXCSR follows the 28 bytes of x87 state; bit 15 flushes results, bit 6 takes
# operands for zero (Intel SDM, volume 1, 10.2.3). AArch64: FPCR comes first; bit 24 does both (Arm ARM,
# C5.2.8).
_REGISTERS = {
    ("linux", "x86_64"): _Register(size=32, index=7, flags=1 << 15 | 1 << 6),
    ("linux", "aarch64"): _Register(size=8, index=0, flags=1 << 24),
}


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Keeps this thread's denormals flushed to zero inside, and puts its floating-point state back.

    Denormals can make a network many times slower, and are zero for every purpose of one. Runtimes that set
    the flags leave them set in whatever thread loaded a model first, where they change the results of the
    caller's own arithmetic, and do not set them in other threads. Does nothing on systems that it does
    not know. Costs a few microseconds.

    >>> import numpy as np
    >>> tiny = np.float64(5e-324)
    >>> with flushed_denormals():
    ...     pass
    >>> bool(tiny * 1.0 > 0)
    True
    """
    access = _access()
    if access is None:
        yield
        return
    register, get, put = access
    before = (ctypes.c_uint32 * (register.size // 4))()
    get(before)
    inside = type(before).from_buffer_copy(before)
    inside[register.index] |= register.flags
    put(inside)
    try:
        yield
    finally:
        put(before)


@functools.cache
def _access() -> tuple[_Register, Callable[..., int], Callable[..., int]] | None:
    register = _REGISTERS.get((sys.platform, platform.machine()))
    if register is None:
        return None
    for name in ("libm.so.6", None):  # glibc's, then musl's, which is part of what is loaded already
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            return register, library.fegetenv, library.fesetenv
    return None
