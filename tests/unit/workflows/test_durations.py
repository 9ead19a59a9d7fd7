"""Durations in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.errors import UsageError
from alula.workflows import parse_duration_s


@given(hours=st.integers(0, 500), minutes=st.integers(0, 500), seconds=st.integers(0, 5000))
def test_parts_add_up(hours: int, minutes: int, seconds: int) -> None:
    expected = 3600 * hours + 60 * minutes + seconds
    for text in (f"{hours}h{minutes}m{seconds}s", f" {hours} h {minutes} m {seconds} s "):
        if expected:
            assert parse_duration_s(text) == expected
        else:
            with pytest.raises(UsageError, match="no positive duration"):
                parse_duration_s(text)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_plain_numbers_are_seconds(seconds: float) -> None:
    assert parse_duration_s(seconds) == seconds


@given(st.floats(min_value=1e-3, max_value=1e9))
def test_numbers_as_text_are_seconds(seconds: float) -> None:
    assert parse_duration_s(f"{seconds:.3f}") == float(f"{seconds:.3f}")


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        seconds = parse_duration_s(text)
    except UsageError as error:
        assert str(error).startswith(f"`{text}` is no ")
    else:
        assert 0 < seconds < float("inf")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), (45, 45), (0.25, 0.25)]
)
def test_examples(text: str | float, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "ten", "10x", "1h30", "-5s", "1e3s", ".5", "1..2s", "nan", "inf", "0", "9" * 400]
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration_s(text)


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf"), True])
def test_refused_numbers(number: float) -> None:
    with pytest.raises(UsageError):
        parse_duration_s(number)
