"""Simulated machines: folders that look like the `/proc` and `/sys` of another computer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Build = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Write files (path from `/` -> text) below a fresh root, and return the root."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return write
