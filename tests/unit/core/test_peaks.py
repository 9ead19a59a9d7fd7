"""Shares of a peak: arithmetic by hand, and what is said where there is none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.core import Precision, Roofline, Share, Work, share_of_peak

ROOF = Roofline(fp32_gmacs_per_s=100.0, int8_gmacs_per_s=400.0, threads=2, method="by hand")
PER_S = st.floats(1e-3, 1e6)
MACS = st.integers(1, 10**12)


@given(PER_S, MACS, st.sampled_from(["fp32", "int8"]))
def test_a_share_of_one_precision_is_work_over_peak(per_s: float, macs: int, precision: Precision) -> None:
    peak = {"fp32": 100e9, "int8": 400e9}[precision]
    got = share_of_peak(per_s, Work(**{precision: macs}), ROOF)
    assert got.share is not None
    assert got.share * peak == pytest.approx(per_s * macs)
    assert got.of == (precision,)


@given(PER_S, MACS, MACS)
def test_a_mixed_share_lies_between_the_shares_of_either_peak(per_s: float, narrow: int, wide: int) -> None:
    mixed = share_of_peak(per_s, Work(int8=narrow, fp32=wide), ROOF)
    all_narrow = share_of_peak(per_s, Work(int8=narrow + wide), ROOF)
    all_wide = share_of_peak(per_s, Work(fp32=narrow + wide), ROOF)
    assert mixed.share is not None and all_narrow.share is not None and all_wide.share is not None
    assert all_narrow.share < mixed.share < all_wide.share
    assert mixed.of == ("int8", "fp32")


def test_the_bound_of_mixed_work_is_each_part_at_its_own_peak() -> None:
    """4e9 in INT8 take 10 ms, 1e9 in FP32 take 10 ms too: 50 samples a second are all that there is."""
    work = Work(int8=4 * 10**9, fp32=10**9)
    assert share_of_peak(50.0, work, ROOF).share == pytest.approx(1.0)
    assert str(share_of_peak(31.0, work, ROOF)) == "62 % of INT8+FP32 peak"


@pytest.mark.parametrize(
    ("work", "roofline", "says"),
    [
        (None, ROOF, "multiply-accumulates of a sample are not known"),
        (Work(), ROOF, "multiplies no matrices"),
        (Work(fp32=1), None, "peaks were not measured"),
        (Work(bf16=1, int8=1), ROOF, "no peak of BF16"),
    ],
)
def test_what_is_not_known_is_no_number(work: Work | None, roofline: Roofline | None, says: str) -> None:
    got = share_of_peak(1.0, work, roofline)
    assert (got.share, got.of, str(got), got.too_high) == (None, (), "unknown", False)
    assert says in got.in_full


def test_bf16_counts_where_its_peak_is_known() -> None:
    known = msgspec.structs.replace(ROOF, bf16_gmacs_per_s=200.0)
    assert str(share_of_peak(20.0, Work(bf16=10**9), known)) == "10 % of BF16 peak"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0314, "3.1 %"), (0.00031, "0.031 %"), (0.0996, "10 %"), (1.0, "100 %"), (1.249, "125 %")],
)
def test_a_share_has_two_figures_or_whole_percents(share: float, text: str) -> None:
    assert str(Share(share=share, of=("int8",))) == f"{text} of INT8 peak"


def test_more_than_all_of_the_peak_is_said_and_told_apart() -> None:
    assert Share(share=1.01, of=("fp32",)).too_high
    assert not Share(share=1.0, of=("fp32",)).too_high


def test_they_go_through_json() -> None:
    for one in (ROOF, Work(int8=3), Share(share=0.5, of=("int8", "fp32")), Share(reason="none")):
        assert msgspec.json.decode(msgspec.json.encode(one), type=type(one)) == one
