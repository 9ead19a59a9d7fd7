"""Writes bundles: a folder beside the target is filled and then moved into place in one step."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.bundle.ensembles import EnsembleManifest, encode_ensemble
from alula.bundle.manifest import MANIFEST_NAME, FileRecord, Manifest, encode_manifest, sha256_of
from alula.bundle.measurements import MEASUREMENTS_NAME, Measurements
from alula.errors import BundleError
from alula.hardware import writing

__all__ = ["GOLDEN_NAME", "JOURNAL_NAME", "is_bundle", "rewrite_manifest", "write_bundle", "write_ensemble"]

GOLDEN_NAME = "golden.npz"
JOURNAL_NAME = "search.jsonl"


def write_bundle(
    target: Path,
    manifest: Manifest,
    *,
    artifacts: Mapping[str, Path],
    golden: Mapping[str, NDArray[np.generic]],
    journal: Path,
    measurements: Measurements | None = None,
    replace: bool = False,
) -> None:
    """Write a bundle; `manifest.files` is filled in here.

    Args:
        target: folder to make, usually `NAME.alula`.
        manifest: everything else that `bundle.json` says.
        artifacts: by folder inside the bundle, the folder to copy.
        golden: arrays of `golden.npz` by name.
        journal: the `search.jsonl` to copy.
        measurements: for `measurements.json`.
        replace: whether an existing bundle at `target` may be replaced.

    Raises:
        BundleError: the target exists and may not be replaced, is no bundle, or cannot be written.
        DiskFullError: there is no space for it; what was at the target is as it was.
    """

    def fill(scratch: Path) -> None:
        for name, folder in artifacts.items():
            shutil.copytree(folder, scratch / name, copy_function=_copied)
        np.savez(scratch / GOLDEN_NAME, allow_pickle=False, **dict(golden))
        shutil.copy2(journal, scratch / JOURNAL_NAME)
        if measurements is not None:
            (scratch / MEASUREMENTS_NAME).write_bytes(msgspec.json.encode(measurements))

    def seal(files: dict[str, FileRecord]) -> bytes:
        return encode_manifest(msgspec.structs.replace(manifest, files=files))

    _put(target, fill, seal, replace=replace)


def write_ensemble(
    target: Path, manifest: EnsembleManifest, *, members: Mapping[str, Path], replace: bool = False
) -> None:
    """Write an ensemble, its members copied into it; `manifest.files` is filled in here.

    Args:
        target: folder to make, usually `NAME.alula`.
        manifest: everything else that its `bundle.json` says.
        members: by folder inside the ensemble, the verified bundle to copy.
        replace: whether an existing bundle at `target` may be replaced.

    Raises:
        BundleError: the target exists and may not be replaced, is no bundle, or cannot be written.
        DiskFullError: there is no space for it; what was at the target is as it was.
    """

    def fill(scratch: Path) -> None:
        for name, folder in members.items():
            shutil.copytree(folder, scratch / name, copy_function=_copied)

    def seal(files: dict[str, FileRecord]) -> bytes:
        return encode_ensemble(msgspec.structs.replace(manifest, files=files))

    _put(target, fill, seal, replace=replace)


def check_target(target: Path, *, replace: bool) -> None:
    """Find out before the work, not after it, that a bundle cannot be written; nothing is left behind.

    Args:
        target: folder to make, usually `NAME.alula`.
        replace: whether an existing bundle there may be replaced.

    Raises:
        BundleError: the target exists and may not be replaced, is no bundle, or its folder cannot be written.
        DiskFullError: there is no space even for an empty folder.
    """
    try:
        if target.exists() and not (replace and is_bundle(target)):
            raise BundleError(
                target,
                "It exists already. Choose another name, or replace it with --replace if it is a bundle.",
            )
        with writing("the bundle", target):
            # Folders that are not there yet are made when there is something to put into them.
            folder = next(parent for parent in target.absolute().parents if parent.exists())
            Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=folder)).rmdir()
    except OSError as error:
        raise BundleError(target, f"It cannot be written: {error.strerror or error}.") from error


def _put(
    target: Path,
    fill: Callable[[Path], None],
    seal: Callable[[dict[str, FileRecord]], bytes],
    *,
    replace: bool,
) -> None:
    """Make the folder: `fill` writes its files, `seal` gives the manifest that lists them."""
    try:
        if target.exists() and not (replace and is_bundle(target)):
            raise BundleError(target, "It exists already. Choose another name, or remove it first.")
        with writing("the bundle", target):
            _write(target, fill, seal)
    except OSError as error:
        raise BundleError(target, f"It cannot be written: {error.strerror or error}.") from error


def _write(
    target: Path, fill: Callable[[Path], None], seal: Callable[[dict[str, FileRecord]], bytes]
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fill(scratch)
        files = {
            path.relative_to(scratch).as_posix(): FileRecord(
                sha256=sha256_of(path), bytes=path.stat().st_size
            )
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        (scratch / MANIFEST_NAME).write_bytes(seal(files))
        scratch.chmod(0o755)  # mkdtemp makes private folders
        if target.exists():
            old = scratch.with_name(f"{scratch.name}-old")
            try:
                target.rename(old)
                scratch.rename(target)
            except BaseException:
                # An interrupt may come just after either of the two.
                if not target.exists():
                    old.rename(target)
                shutil.rmtree(old, ignore_errors=True)
                raise
            # The new one is in place: what is left of the old one is no reason to say that it is not.
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _copied(source: str, target: str) -> str:
    # `copytree` collects errors as text, which no longer says that the disk is full.
    with writing("the bundle", Path(target)):
        shutil.copy2(source, target)
    return target


def is_bundle(path: Path) -> bool:
    """Return whether a folder looks like a bundle."""
    return (path / MANIFEST_NAME).is_file()


def rewrite_manifest(bundle: Path, manifest: Manifest) -> None:
    """Replace `bundle.json` in one step; the files that it names stay as they are.

    Raises:
        BundleError: it cannot be written.
        DiskFullError: there is no space for it; the old one is as it was.
    """
    temporary = bundle / f".{MANIFEST_NAME}.partial"
    try:
        with writing("the manifest of the bundle", bundle):
            temporary.write_bytes(encode_manifest(manifest))
            temporary.replace(bundle / MANIFEST_NAME)
    except OSError as error:
        raise BundleError(bundle, f"It cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):  # after an error or an interrupt: a bundle holds nothing unknown
            temporary.unlink(missing_ok=True)
