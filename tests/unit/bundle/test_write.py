"""Writing: all or nothing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from alula.bundle import (
    GOLDEN_NAME,
    JOURNAL_NAME,
    check_target,
    read_manifest,
    rewrite_manifest,
    verify,
    write_bundle,
)
from alula.errors import BundleError, DiskFullError


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(make, manifest, x) -> None:
    bundle = make.write(manifest)
    read = read_manifest(bundle)
    verify(bundle, read)
    files = [
        "artifacts/fake/fp32/fake.json",
        "artifacts/fake/int8-static/fake.json",
        GOLDEN_NAME,
        JOURNAL_NAME,
    ]
    assert sorted(read.files) == files
    assert names(bundle) == sorted([*files, "bundle.json"])
    assert len(read.checksum) == 64
    assert msgspec.structs.replace(read, files={}, checksum="") == manifest
    with np.load(bundle / GOLDEN_NAME, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["input_0"], x)
    assert (bundle / JOURNAL_NAME).read_text() == '{"outcome": "accepted"}\n'
    assert bundle.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in bundle.parent.iterdir()] == ["birds.alula"]


def test_whether_it_can_be_written_is_known_before(make, manifest, tmp_path: Path) -> None:
    bundle = make.write(manifest)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    check_target(tmp_path / "new" / "folder" / "x.alula", replace=False)
    check_target(bundle, replace=True)
    for target, replace, says in (
        (bundle, False, "exists already"),
        (tmp_path / "file", True, "exists already"),
        (tmp_path / "file" / "x.alula", False, "cannot be written: Not a directory"),
        (tmp_path / ("x" * 300), False, "cannot be written: File name too long"),
    ):
        with pytest.raises(BundleError, match=says):
            check_target(target, replace=replace)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_bundle_is_kept(make, manifest) -> None:
    bundle = make.write(manifest)
    before = (bundle / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match=r"It exists already\. Choose another name, or remove it first"):
        make.write(msgspec.structs.replace(manifest, model="another"))
    assert (bundle / "bundle.json").read_bytes() == before


def test_an_existing_bundle_is_replaced_when_asked(make, manifest) -> None:
    bundle = make.write(manifest)
    (bundle / "left over").write_text("from before")
    make.write(msgspec.structs.replace(manifest, model="another"), replace=True)
    assert read_manifest(bundle).model == "another"
    verify(bundle, read_manifest(bundle))
    assert [path.name for path in bundle.parent.iterdir()] == ["birds.alula"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_never_replaced(make, manifest, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out" / "birds.alula"
    target.parent.mkdir()
    if kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    else:
        target.write_text("years of work")
    with pytest.raises(BundleError, match="It exists already"):
        make.write(manifest, replace=True)
    assert (target / "thesis.tex" if kind == "folder" else target).read_text() == "years of work"


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(
    make, manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make.write(manifest)

    def full(source: str, target: str) -> None:
        Path(target).write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(DiskFullError, match=r"^The disk is full: the bundle could not be written to "):
        make.write(msgspec.structs.replace(manifest, model="another"), replace=True)
    assert [path.name for path in bundle.parent.iterdir()] == ["birds.alula"]
    assert read_manifest(bundle).model == manifest.model
    verify(bundle, read_manifest(bundle))


def test_an_interrupt_leaves_nothing(make, manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make.write(manifest)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_swap_that_fails_leaves_the_old_bundle(
    make, manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make.write(manifest)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == bundle and not self.name.endswith("-old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="Input/output error"):
        make.write(msgspec.structs.replace(manifest, model="another"), replace=True)
    assert [path.name for path in bundle.parent.iterdir()] == ["birds.alula"]
    assert read_manifest(bundle).model == manifest.model


@pytest.mark.parametrize("swapped", [1, 2])
def test_an_interrupt_between_the_steps_of_a_swap_leaves_one_whole_bundle(
    make, manifest, monkeypatch: pytest.MonkeyPatch, swapped: int
) -> None:
    bundle = make.write(manifest)
    rename, done = Path.rename, list[Path]()

    def interrupted(self: Path, target: Path) -> Path:
        rename(self, target)
        done.append(target)
        if len(done) == swapped:
            raise KeyboardInterrupt
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make.write(msgspec.structs.replace(manifest, model="another"), replace=True)
    assert [path.name for path in bundle.parent.iterdir()] == ["birds.alula"]
    assert read_manifest(bundle).model == (manifest.model if swapped == 1 else "another")
    verify(bundle, read_manifest(bundle))


def test_an_old_bundle_that_cannot_be_removed_is_replaced_all_the_same(
    make, manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make.write(manifest)

    def refused(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refused)
        make.write(msgspec.structs.replace(manifest, model="another"), replace=True)
    assert read_manifest(bundle).model == "another"
    verify(bundle, read_manifest(bundle))


def test_a_name_that_is_too_long(make, manifest) -> None:
    make.write(manifest)  # without the folder around it, its own name is not asked for
    with pytest.raises(BundleError, match=r"It cannot be written: File name too long\."):
        make.write(manifest, name=f"{300 * 'x'}.alula")


def test_golden_arrays_of_objects_are_refused(make, manifest, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    journal.write_text("")
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_bundle(
            tmp_path / "b.alula",
            manifest,
            artifacts={},
            golden={"a": np.array([{}], dtype=object)},
            journal=journal,
        )
    assert not (tmp_path / "b.alula").exists()


def test_a_rewritten_manifest_is_sealed_again(make, manifest) -> None:
    bundle = make.write(manifest)
    read = read_manifest(bundle)
    rewrite_manifest(bundle, msgspec.structs.replace(read, warnings=("measured again",)))
    again = read_manifest(bundle)
    assert again.warnings == ("measured again",)
    assert again.checksum != read.checksum
    verify(bundle, again)


def test_a_manifest_that_cannot_be_rewritten_stays(make, manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make.write(manifest)
    before = names(bundle)

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskFullError, match="the manifest of the bundle could not be written"):
        rewrite_manifest(bundle, read_manifest(bundle))
    assert names(bundle) == before
    read_manifest(bundle)


def test_an_interrupt_leaves_nothing_unknown_in_a_bundle(
    make, manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make.write(manifest)

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rewrite_manifest(bundle, read_manifest(bundle))
    verify(bundle, read_manifest(bundle))
