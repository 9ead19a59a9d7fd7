"""A bundle made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import write_audio_bundle


@pytest.fixture(scope="session")
def audio_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle of one linear layer over mel bands."""
    folder = tmp_path_factory.mktemp("audio")
    return write_audio_bundle(folder / "songs.alula", scratch=folder / "scratch")
