"""The content that the tests of the report start from: a search for ResNet-20 with all that can go wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from alula.report import ReportContent

SAMPLE = Path(__file__).resolve().parent / "sample.json"


@pytest.fixture(scope="session")
def sample() -> ReportContent:
    """A report's content with 85 outcomes: accepted, rejected, failed and not tried."""
    return msgspec.json.decode(SAMPLE.read_bytes(), type=ReportContent)
