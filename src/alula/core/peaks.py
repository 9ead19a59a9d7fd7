"""How much of what a machine can multiply at most a speed is.

The bound is that of Williams, Waterman and Patterson 2009 (Communications of the ACM 52(4)), its flat part:
the products a second that were measured where nothing else was to be done.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from alula.core.types import Precision

__all__ = ["Roofline", "Share", "Work", "share_of_peak"]

_WIDEST_LAST: tuple[Precision, ...] = ("int8", "bf16", "fp32")

Count = Annotated[int, msgspec.Meta(ge=0)]


class Roofline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine can do at most.

    Attributes:
        fp32_gmacs_per_s: multiply-accumulates of FP32 products, in 1e9 per second.
        int8_gmacs_per_s: of INT8 products.
        threads: that took part.
        method: how each figure was measured, in words.
        bf16_gmacs_per_s: of BF16 products; None where the CPU has no instructions for them.
        bandwidth_gb_per_s: bytes read and written in memory, in 1e9 per second; None if not measured.
    """

    fp32_gmacs_per_s: float
    int8_gmacs_per_s: float
    threads: int
    method: str
    bf16_gmacs_per_s: float | None = None
    bandwidth_gb_per_s: float | None = None

    def gmacs_per_s(self, precision: Precision) -> float | None:
        """Return the peak of a precision, None where it was not measured."""
        peaks = {
            "fp32": self.fp32_gmacs_per_s,
            "bf16": self.bf16_gmacs_per_s,
            "int8": self.int8_gmacs_per_s,
        }
        return peaks[precision]


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multiply-accumulates of one sample, by the precision that they are computed in.

    >>> Work(int8=900, fp32=100).total, Work(int8=900, fp32=100).precisions
    (1000, ('int8', 'fp32'))
    """

    fp32: Count = 0
    bf16: Count = 0
    int8: Count = 0

    def of(self, precision: Precision) -> int:
        """Return the multiply-accumulates in a precision."""
        return {"fp32": self.fp32, "bf16": self.bf16, "int8": self.int8}[precision]

    @property
    def total(self) -> int:
        """All of them."""
        return self.fp32 + self.bf16 + self.int8

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that there is any work in, the narrowest first."""
        return tuple(precision for precision in _WIDEST_LAST if self.of(precision))


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a machine's peak a speed is, or why that is not known.

    Attributes:
        share: 1.0 is all of the peak; more shows that the peak was measured too low. None if not known.
        of: precisions of the products that the peak is of, the narrowest first.
        reason: why there is no share; empty where there is one.

    >>> print(Share(share=0.6213, of=("int8",)))
    62 % of INT8 peak
    >>> print(Share(share=0.0314, of=("int8", "fp32")))
    3.1 % of INT8+FP32 peak
    >>> print(Share(reason="the machine's peaks were not measured"))
    unknown
    """

    share: float | None = None
    of: tuple[Precision, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.share is None:
            return "unknown"
        percent = 100 * self.share
        number = f"{percent:.0f}" if percent >= 9.95 else f"{percent:.2g}"
        return f"{number} % of {self.peak} peak"

    @property
    def peak(self) -> str:
        """The precisions in capitals, joined by a plus sign; empty where there is no share."""
        return "+".join(precision.upper() for precision in self.of)

    @property
    def too_high(self) -> bool:
        """Whether it is above all of the peak, so that the peak is wrong."""
        return self.share is not None and self.share > 1

    @property
    def in_full(self) -> str:
        """The share as text, or `unknown` with the reason."""
        return str(self) if self.share is not None else f"unknown: {self.reason}"


def share_of_peak(per_s: float, work: Work | None, roofline: Roofline | None) -> Share:
    """Return how much of a machine's peak a speed is.

    Where products are of several precisions, the bound is the speed at which each part of the work runs at
    its own peak, one after the other: a sample takes the sum of `MACs / peak` seconds at least.

    Args:
        per_s: samples per second.
        work: of one sample; None if it is not known.
        roofline: of the machine, with the same threads; None if it was not measured.

    >>> roof = Roofline(fp32_gmacs_per_s=100.0, int8_gmacs_per_s=400.0, threads=2, method="")
    >>> print(share_of_peak(10.0, Work(fp32=4_000_000_000), roof))
    40 % of FP32 peak
    >>> print(share_of_peak(50.0, Work(int8=2_000_000_000, fp32=1_000_000_000), roof))  # 5 ms and 10 ms
    75 % of INT8+FP32 peak
    >>> share_of_peak(10.0, Work(bf16=10**9), roof).reason
    'no peak of BF16 products was measured'
    """
    if work is None:
        return Share(reason="the multiply-accumulates of a sample are not known")
    if not work.total:
        return Share(reason="the model multiplies no matrices")
    if roofline is None:
        return Share(reason="the machine's peaks were not measured")
    seconds = 0.0
    for precision in work.precisions:
        peak = roofline.gmacs_per_s(precision)
        if not peak:
            return Share(reason=f"no peak of {precision.upper()} products was measured")
        seconds += work.of(precision) / (1e9 * peak)
    return Share(share=per_s * seconds, of=work.precisions)
