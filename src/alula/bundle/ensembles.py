"""`bundle.json` of an ensemble: whole bundles in one folder, and how their scores become one.

Members are stored inside, not named by a path: a bundle must stay right when it is moved, and a path with a
hash could only ever say that it is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from alula.bundle.manifest import (
    ENSEMBLE,
    FileRecord,
    check_inside,
    checked_type,
    document_checksum,
    sealed_document,
)
from alula.core import Accuracy, Blend, Step, View
from alula.errors import BundleError

__all__ = [
    "DeclaredCascade",
    "DeclaredRung",
    "EnsembleManifest",
    "MemberRecord",
    "WholeFileVerdict",
    "decode_ensemble",
    "encode_ensemble",
]


class WholeFileVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of running a network over long stretches of a recording instead of window by window.

    Attributes:
        accuracy: of the member as it is in the bundle, against the network in FP32 window by window, on
            recordings that no quantizer saw.
        gated: whether the network has gates over the whole time, which see the stretch instead of the window.
        computed_share: share of the columns of overlapping windows that are computed; its inverse bounds what
            the way gains.
    """

    accuracy: Accuracy
    gated: bool
    computed_share: float


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bundle of an ensemble.

    Attributes:
        name: what it is called, different from the other members' names.
        folder: where it is inside the ensemble.
        checksum: of its own manifest.
        view: how it looks at a recording, and which of its outputs counts.
        whole_files: what running it over long stretches did to its scores; None for window by window.
    """

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    folder: str
    checksum: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    view: View = View()
    whole_files: WholeFileVerdict | None = None


class DeclaredCascade(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the members are asked: one scores every window, the others those where it is uncertain.

    Where it is not, its own scores are the ensemble's. Where it is, those of all members are blended; its own
    weight may be 0.

    Attributes:
        member: that scores every window.
        lower: by label, the lowest score that is uncertain.
        upper: by label, the highest; below the lowest where none is.
        share: of windows that were uncertain when this was learned.
    """

    member: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]


class DeclaredRung(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to compute a row, for a job that may get short of time.

    Attributes:
        members: names of those that score it.
        every: only one of so many windows is computed.
        score: validated; higher is better. Below that of the rung before.
    """

    members: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    score: float


class EnsembleManifest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag=ENSEMBLE
):
    """The whole of an ensemble's `bundle.json`.

    Attributes:
        schema_version: of this layout; a newer one is refused.
        alula_version: that wrote it.
        created: UTC, ISO 8601.
        members: at least one, in the order of the blend's weights.
        blend: how their scores become one.
        labels: class names in the order of the result's columns; None where the members have none.
        steps: post-processing of each file after the blend, in order.
        ladder: what a job does that gets short of time, the best first; empty for the default.
        cascade: which windows need all members; None where all do.
        prior: by label, what a row holds that there was no time for; None where it is not known.
        files: every other file of the folder, those of the members included.
        checksum: SHA-256 of this document with an empty checksum.
    """

    schema_version: int
    alula_version: str
    created: str
    members: Annotated[tuple[MemberRecord, ...], msgspec.Meta(min_length=1)]
    blend: Blend
    labels: tuple[str, ...] | None
    steps: tuple[Step, ...]
    files: dict[str, FileRecord]
    ladder: tuple[DeclaredRung, ...] = ()
    cascade: DeclaredCascade | None = None
    prior: tuple[float, ...] | None = None
    checksum: str = ""


def encode_ensemble(manifest: EnsembleManifest) -> bytes:
    """Return the bytes of an ensemble's `bundle.json`, indented, with its checksum filled in."""
    return sealed_document(manifest)


def decode_ensemble(data: bytes, path: Path) -> EnsembleManifest:
    """Return the ensemble's manifest in `data`, checked.

    Args:
        data: content of `bundle.json`.
        path: where it came from, for messages.

    Raises:
        BundleError: it is no JSON, of a newer schema, no ensemble, has wrong fields, was changed, names files
            outside the folder, or two members alike.
    """
    if checked_type(data, path) != ENSEMBLE:
        raise BundleError(path, "It is no ensemble; expected a bundle made by `alula ensemble`.")
    try:
        manifest = msgspec.json.decode(data, type=EnsembleManifest)
    except msgspec.MsgspecError as error:
        raise BundleError(path, f"It is damaged: {error}. Copy the bundle again.") from error
    if manifest.checksum != document_checksum(data):
        raise BundleError(
            path, "Its content does not fit its checksum: it was changed after it was written. Make it again."
        )
    for name in [*manifest.files, *(member.folder for member in manifest.members)]:
        check_inside(name, path)
    for what in ("name", "folder"):
        given = [getattr(member, what) for member in manifest.members]
        if len(set(given)) != len(given):
            raise BundleError(path, f"Two of its members have one {what}. Do not use it.")
    return manifest
