"""Every error as a user sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from alula import errors
from alula.errors import (
    AccuracyError,
    AlulaError,
    BundleError,
    DataError,
    DiskFullError,
    EngineError,
    EngineUnavailableError,
    JobError,
    MeasurementError,
    ModelError,
    UsageError,
    closest,
)

RENDERED = [
    (AlulaError("It failed."), "It failed.", 1),
    (UsageError("There is no metric `top`."), "There is no metric `top`.", 2),
    (ModelError("The model cannot be exported."), "The model cannot be exported.", 1),
    (EngineError("Engine `torch` got 2 inputs; expected 1."), "Engine `torch` got 2 inputs; expected 1.", 1),
    (
        EngineUnavailableError("openvino", install="pip install 'alula[openvino]'"),
        "`openvino` is not installed here. Install it with `pip install 'alula[openvino]'`.",
        1,
    ),
    (AccuracyError("No label occurs twice."), "No label occurs twice.", 1),
    (MeasurementError("The clock stood still."), "The clock stood still.", 1),
    (
        DataError(Path("a/b.wav"), "It is empty. Remove it."),
        "a/b.wav: It is empty. Remove it.",
        1,
    ),
    (
        BundleError("birds.alula", "It is damaged. Copy it again."),
        "birds.alula: It is damaged. Copy it again.",
        1,
    ),
    (
        DiskFullError("the journal", Path("a/search.jsonl"), free_bytes=3 << 19, resumes=True),
        "The disk is full: the journal could not be written to a/search.jsonl, where 1.5 MiB are free. "
        "Free some space and run the same command again; it goes on where it stopped.",
        1,
    ),
    (JobError("No input could be read."), "No input could be read.", 1),
]
IDS = [type(error).__name__ for error, _, _ in RENDERED]


@pytest.mark.parametrize(("error", "text", "exit_code"), RENDERED, ids=IDS)
def test_rendered(error: AlulaError, text: str, exit_code: int) -> None:
    assert str(error) == text
    assert error.exit_code == exit_code
    assert isinstance(error, AlulaError)


def test_every_error_class_is_rendered_above() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, AlulaError)
    }
    assert set(IDS) == defined
    assert defined | {"closest", "plain_text"} == set(errors.__all__)


def test_names_that_are_no_utf_8_can_be_shown() -> None:
    error = DataError("caf\udce9.wav", "It is empty.")
    assert str(error).encode() == rb"caf\udce9.wav: It is empty."
    assert error.path == "caf\udce9.wav"


def test_what_is_missing_is_an_engine_error() -> None:
    assert issubclass(EngineUnavailableError, EngineError)


def test_parts_are_kept_for_programs() -> None:
    missing = EngineUnavailableError("soxr", install="pip install 'alula[audio]'")
    assert (missing.what, missing.install) == ("soxr", "pip install 'alula[audio]'")
    for kind in (DataError, BundleError):
        error = kind(Path("x.npy"), "It is cut.")
        assert (error.path, error.reason) == ("x.npy", "It is cut.")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("openvin", " Did you mean `openvino`?"),
        ("OPENVINO", ""),
        ("", ""),
    ],
)
def test_closest(name: str, hint: str) -> None:
    assert closest(name, ["onnxruntime", "openvino"]) == hint
