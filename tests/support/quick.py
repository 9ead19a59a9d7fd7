"""Searches whose rounds are so short that no two of them agree: to wait for that would take for ever."""

from __future__ import annotations

import math

import pytest

from alula.tuning import strategy

__all__ = ["take_looks_as_they_are"]


def take_looks_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """Let a search in this process repeat no look because of others that it differs from."""
    patch.setattr(strategy, "_STEADY", math.inf)
    patch.setattr(strategy, "_MOST_LOOKS", 1)
