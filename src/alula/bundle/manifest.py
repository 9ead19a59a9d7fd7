"""`bundle.json`: everything a bundle knows about itself, strictly typed and versioned."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec

from alula.core import Accuracy, InputDescription, Ratio, Settings, Share, Signature
from alula.errors import BundleError
from alula.hardware import Fingerprint

__all__ = [
    "ENSEMBLE",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Activation",
    "Baseline",
    "Deployed",
    "FileRecord",
    "FolderRun",
    "Manifest",
    "check_inside",
    "checked_type",
    "decode_manifest",
    "document_checksum",
    "encode_manifest",
    "sealed_document",
    "sha256_of",
]

MANIFEST_NAME = "bundle.json"
SCHEMA_VERSION = 1
ENSEMBLE = "ensemble"
Activation = Literal["none", "sigmoid", "softmax"]


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the bundle."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The user's model as it was, measured beside the chosen candidate.

    Attributes:
        recipe: how it ran.
        settings: with which settings.
        throughput_per_s: samples per second of the model alone.
        rounds_per_s: raw rounds of that measurement.
        of_peak: how much of the machine's peak that is; None in bundles of before there was one.
    """

    recipe: str
    settings: Settings
    throughput_per_s: float
    rounds_per_s: tuple[float, ...]
    of_peak: Share | None = None


# Defaults are left out, so that a bundle of before there was `of_peak` is written again as it was.
class Deployed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A recipe that the bundle carries and how to run it.

    Attributes:
        recipe: such as `openvino/int8-nncf`.
        artifact: its folder inside the bundle.
        settings: as tuned; fitted to the thread budget where it is loaded.
        throughput_per_s: samples per second of the model alone.
        rounds_per_s: raw rounds of that measurement.
        runs_code: whether loading it executes code from the bundle.
        golden: names of the arrays in `golden.npz` with its outputs, in order.
        of_peak: how much of the machine's peak its speed is; None in bundles of before there was one.
    """

    recipe: str
    artifact: str
    settings: Settings
    throughput_per_s: float
    rounds_per_s: tuple[float, ...]
    runs_code: bool
    golden: tuple[str, ...]
    of_peak: Share | None = None


class FolderRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Throughput of the whole way (decode, features, model), measured with the bundle itself on the data."""

    samples_per_s: float
    samples: int
    files: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of `bundle.json`.

    Attributes:
        schema_version: of this layout; a newer one is refused.
        alula_version: that wrote it.
        created: UTC, ISO 8601.
        model: its name and where it came from, for people.
        signature: inputs and outputs with named axes.
        input: how a file becomes the model's input.
        labels: class names in the order of the output columns, if known.
        activation: applied to the first output by `predict`.
        chosen: the fastest accepted candidate.
        fallbacks: tried in order where the chosen one is not right.
        baseline: the user's model as it was.
        speedup: chosen over baseline, from interleaved rounds.
        accuracy: of the chosen candidate against the baseline.
        folder: throughput of the folder run, None for data in memory.
        calibration: indices in the data of the calibration samples that were read.
        validation: the same of the validation samples.
        data: what the data was, for people.
        seed: of the split and the bootstrap.
        machine: the CPU it was tuned on.
        versions: of the libraries that made it.
        notes: what was rewritten before export.
        warnings: what a reader of the numbers should know.
        golden_inputs: names of the arrays in `golden.npz` that go in, in order.
        files: every other file of the bundle.
        checksum: SHA-256 of this document with an empty checksum.
    """

    schema_version: int
    alula_version: str
    created: str
    model: str
    signature: Signature
    input: InputDescription
    labels: tuple[str, ...] | None
    activation: Activation
    chosen: Deployed
    fallbacks: tuple[Deployed, ...]
    baseline: Baseline
    speedup: Ratio
    accuracy: Accuracy
    folder: FolderRun | None
    calibration: tuple[int, ...]
    validation: tuple[int, ...]
    data: str
    seed: int
    machine: Fingerprint
    versions: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    golden_inputs: tuple[str, ...]
    files: dict[str, FileRecord]
    checksum: str = ""


class _Version(msgspec.Struct):
    schema_version: int
    type: str = ""


def document_checksum(data: bytes) -> str:
    """Return the SHA-256 of a JSON object as it is written, compact and with an empty `checksum`.

    Of the document, not of what this release reads in it: one of before there was some field keeps its own.

    >>> document_checksum(b'{"a": 1, "checksum": "x"}') == document_checksum(b'{"a":1,"checksum":""}')
    True
    """
    document = {**msgspec.json.decode(data), "checksum": ""}
    return hashlib.sha256(msgspec.json.encode(document)).hexdigest()


def sealed_document(manifest: msgspec.Struct) -> bytes:
    """Return a manifest as JSON, indented, with its checksum filled in."""
    # Once there and back: 1 in a field of floats becomes 1.0, as it will be read.
    plain = msgspec.json.encode(msgspec.json.decode(msgspec.json.encode(manifest), type=type(manifest)))
    document = {**msgspec.json.decode(plain), "checksum": document_checksum(plain)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `bundle.json`, indented, with its checksum filled in."""
    return sealed_document(manifest)


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """Return the manifest in `data`, checked.

    Args:
        data: content of `bundle.json`.
        path: where it came from, for messages.

    Raises:
        BundleError: it is no JSON, of a newer schema, has wrong fields, was changed, or names files
            outside the bundle.
    """
    if checked_type(data, path) == ENSEMBLE:
        raise BundleError(
            path,
            "It is the manifest of an ensemble; expected a bundle of one model. Give one of the bundles in "
            "its folder `members`.",
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(path, f"It is damaged: {error}. Copy the bundle again.") from error
    if manifest.checksum != document_checksum(data):
        raise BundleError(
            path, "Its content does not fit its checksum: it was changed after it was written. Make it again."
        )
    for name in [*manifest.files, manifest.chosen.artifact, *(f.artifact for f in manifest.fallbacks)]:
        check_inside(name, path)
    return manifest


def checked_type(data: bytes, path: Path) -> str:
    """Return the type that a manifest says of itself: empty for that of one model.

    Raises:
        BundleError: it is no JSON, or of a newer schema.
    """
    try:
        said = msgspec.json.decode(data, type=_Version)
    except msgspec.MsgspecError as error:
        raise BundleError(path, f"It is damaged: {error}. Copy the bundle again.") from error
    if said.schema_version != SCHEMA_VERSION:
        raise BundleError(
            path,
            f"It has schema version {said.schema_version}; this release reads version {SCHEMA_VERSION}. "
            "Upgrade with `pip install --upgrade alula`, or make the bundle again.",
        )
    return said.type


def check_inside(name: str, path: Path) -> None:
    """Check that a name in a manifest leads to a file inside the bundle.

    Raises:
        BundleError: it may lead elsewhere.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(path, f"It names the file `{name}`, which is outside the bundle. Do not use it.")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
