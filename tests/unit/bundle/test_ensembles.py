"""An ensemble on disk: whole members inside, and every change to them found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from alula.bundle import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    EnsembleManifest,
    MemberRecord,
    decode_ensemble,
    encode_ensemble,
    encode_manifest,
    is_ensemble,
    read_ensemble,
    read_manifest,
    verify,
    verify_members,
    write_ensemble,
)
from alula.bundle.manifest import sha256_of
from alula.core import CentralMaximum, CutOff, Mean, Power, Smoothing, View
from alula.errors import BundleError

FILE = "members/b/artifacts/fake/fp32/fake.json"


@pytest.fixture
def bundles(make, describe, recipe) -> dict[str, Path]:
    return {
        name: make.write(describe(recipe("fake/fp32", golden="chosen")), name=f"{name}.alula")
        for name in "ab"
    }


def described(bundles: dict[str, Path], **fields: object) -> EnsembleManifest:
    members = tuple(
        MemberRecord(name=name, folder=f"members/{name}", checksum=read_manifest(bundle).checksum)
        for name, bundle in bundles.items()
    )
    values = {
        "schema_version": SCHEMA_VERSION,
        "alula_version": "0.1.0",
        "created": "2024-02-29T12:00:00Z",
        "members": members,
        "blend": Power(exponent=3, weights=(1, 2)),
        "labels": ("a", "b"),
        "steps": (Smoothing(kernel=(1, 2, 1)), CutOff(below=0.1)),
        "files": {},
    }
    return EnsembleManifest(**{**values, **fields})


def written(bundles: dict[str, Path], target: Path, **fields: object) -> Path:
    folders = {f"members/{name}": bundle for name, bundle in bundles.items()}
    write_ensemble(target, described(bundles, **fields), members=folders)
    return target


@pytest.fixture
def ensemble(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return written(bundles, tmp_path / "ens.alula")


def checked(folder: Path) -> None:
    manifest = read_ensemble(folder)
    verify(folder, manifest)
    verify_members(folder, manifest)


def sealed_again(folder: Path, manifest: EnsembleManifest) -> None:
    """Write the manifest with hashes of what is there now, as somebody who forges would."""
    files = {
        name: msgspec.structs.replace(
            record, sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size
        )
        for name, record in manifest.files.items()
        if (folder / name).is_file()
    }
    sealed = msgspec.structs.replace(manifest, files=files)
    (folder / MANIFEST_NAME).write_bytes(encode_ensemble(sealed))


def test_it_reads_as_it_was_written(ensemble: Path, bundles: dict[str, Path]) -> None:
    manifest = read_ensemble(ensemble)
    expected = msgspec.structs.replace(described(bundles), files=manifest.files, checksum=manifest.checksum)
    assert manifest == expected
    assert manifest.blend == Power(exponent=3.0, weights=(1.0, 2.0))
    checked(ensemble)
    assert verify_members(ensemble, manifest) == tuple(map(read_manifest, bundles.values()))
    assert encode_ensemble(manifest) == (ensemble / MANIFEST_NAME).read_bytes()
    for name, bundle in bundles.items():
        assert read_manifest(ensemble / "members" / name) == read_manifest(bundle)


def test_an_ensemble_of_before_there_was_some_field_is_read(ensemble: Path) -> None:
    """Its checksum is that of what it says; the one of `bundle-format.md`, by another JSON library."""
    path = ensemble / MANIFEST_NAME
    document = json.loads(path.read_bytes())
    for member in document["members"]:
        del member["view"]["hop_s"]
    del document["prior"], document["cascade"]
    document["blend"]["weights"] = [1, 2]  # an older writer's floats
    for checksum in ("", hashlib.sha256(compact(document | {"checksum": ""})).hexdigest()):
        path.write_text(json.dumps(document | {"checksum": checksum}, indent=4, ensure_ascii=False))
        if not checksum:
            with pytest.raises(BundleError, match="does not fit its checksum"):
                read_ensemble(ensemble)
    manifest = read_ensemble(ensemble)
    assert (manifest.prior, manifest.blend) == (None, Power(exponent=3.0, weights=(1.0, 2.0)))


def compact(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def test_views_are_kept(bundles: dict[str, Path], tmp_path: Path) -> None:
    view = View(keep_s=5.0, output="frames", frames=CentralMaximum(central_s=5.0, layout="ct"))
    members = tuple(msgspec.structs.replace(each, view=view) for each in described(bundles).members)
    assert read_ensemble(written(bundles, tmp_path / "e", members=members)).members == members


def test_it_may_be_moved_and_its_members_may_go(ensemble: Path, bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        shutil.rmtree(bundle)
    checked(ensemble.rename(ensemble.with_name("moved.alula")))


def test_the_two_kinds_are_told_apart(ensemble: Path, bundles: dict[str, Path]) -> None:
    assert is_ensemble(ensemble)
    assert not is_ensemble(bundles["a"])
    with pytest.raises(BundleError, match="manifest of an ensemble; expected a bundle of one model"):
        read_manifest(ensemble)
    with pytest.raises(BundleError, match="It is no ensemble"):
        read_ensemble(bundles["a"])
    with pytest.raises(BundleError, match="does not exist"):
        is_ensemble(ensemble / "nowhere")


def test_an_existing_bundle_is_replaced_only_when_that_was_said(
    ensemble: Path, bundles: dict[str, Path]
) -> None:
    before = (ensemble / MANIFEST_NAME).read_bytes()
    folders = {f"members/{name}": bundle for name, bundle in bundles.items()}
    other = described(bundles, blend=Mean())
    with pytest.raises(BundleError, match="It exists already"):
        write_ensemble(ensemble, other, members=folders)
    assert (ensemble / MANIFEST_NAME).read_bytes() == before
    write_ensemble(ensemble, other, members=folders, replace=True)
    assert read_ensemble(ensemble).blend == Mean()
    assert [path.name for path in ensemble.parent.iterdir() if path.name.startswith(".")] == []


def test_a_member_that_cannot_be_copied_leaves_nothing(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(BundleError, match="It cannot be written"):
        write_ensemble(folder / "e.alula", described(bundles), members={"members/a": tmp_path / "nowhere"})
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", [FILE, "members/b/bundle.json", "members/a/golden.npz"])
def test_a_changed_file(ensemble: Path, name: str) -> None:
    data = bytearray((ensemble / name).read_bytes())
    data[len(data) // 2] ^= 1
    (ensemble / name).write_bytes(data)
    with pytest.raises(BundleError, match="Its content was changed"):
        checked(ensemble)


def test_files_that_are_missing_added_or_linked(ensemble: Path) -> None:
    (ensemble / "members" / "a" / "more").write_text("")
    with pytest.raises(BundleError, match="does not list it"):
        checked(ensemble)
    (ensemble / "members" / "a" / "more").unlink()
    (ensemble / FILE).rename(ensemble / "elsewhere")
    with pytest.raises(BundleError, match="does not list it"):
        checked(ensemble)
    (ensemble / FILE).symlink_to(ensemble / "elsewhere")
    with pytest.raises(BundleError, match=r"does not list it|It is a link"):
        checked(ensemble)
    (ensemble / FILE).unlink()
    (ensemble / "elsewhere").unlink()
    with pytest.raises(BundleError, match="It is missing"):
        checked(ensemble)


def test_a_changed_manifest(ensemble: Path) -> None:
    text = (ensemble / MANIFEST_NAME).read_text()
    (ensemble / MANIFEST_NAME).write_text(text.replace('"exponent": 3.0', '"exponent": 4.0'))
    with pytest.raises(BundleError, match="does not fit its checksum"):
        read_ensemble(ensemble)


def test_a_member_that_was_exchanged_with_fitting_hashes(ensemble: Path, make, describe, recipe) -> None:
    manifest = read_ensemble(ensemble)
    other = msgspec.structs.replace(describe(recipe("fake/fp32", golden="chosen")), seed=7)
    shutil.rmtree(ensemble / "members" / "b")
    shutil.copytree(make.write(other, name="c.alula"), ensemble / "members" / "b")
    sealed_again(ensemble, manifest)
    with pytest.raises(BundleError, match="It is another bundle than the ensemble was made of"):
        checked(ensemble)


def test_a_member_whose_file_was_exchanged_with_fitting_hashes_of_the_ensemble(ensemble: Path) -> None:
    manifest = read_ensemble(ensemble)
    (ensemble / FILE).write_text("{}")
    sealed_again(ensemble, manifest)
    with pytest.raises(BundleError, match="say different things of it"):
        checked(ensemble)


def test_a_file_in_a_member_that_only_the_ensemble_lists(ensemble: Path) -> None:
    manifest = read_ensemble(ensemble)
    (ensemble / "members" / "a" / "more").write_text("x")
    files = {**manifest.files, "members/a/more": manifest.files[FILE]}
    sealed_again(ensemble, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(BundleError, match="more: The ensemble and the member say different"):
        checked(ensemble)


def test_manifests_that_are_refused(ensemble: Path) -> None:
    manifest = read_ensemble(ensemble)
    first, second = manifest.members
    for members, says in (
        ((first, msgspec.structs.replace(second, name="a")), "Two of its members have one name"),
        ((first, msgspec.structs.replace(second, folder="members/a")), "Two of its members have one folder"),
        ((first, msgspec.structs.replace(second, folder="../b")), "outside the bundle"),
        ((), "It is damaged"),
        ((first, msgspec.structs.replace(second, name="../b")), "It is damaged"),
    ):
        forged = msgspec.structs.replace(manifest, members=members)
        # Written without a check of the values, as by another program.
        data = json.loads(msgspec.json.encode(forged))
        with contextlib.suppress(msgspec.ValidationError):
            data = json.loads(encode_ensemble(forged))
        with pytest.raises(BundleError, match=says):
            decode_ensemble(json.dumps(data).encode(), ensemble)
    newer = msgspec.json.encode(msgspec.structs.replace(manifest, schema_version=2))
    with pytest.raises(BundleError, match="schema version 2"):
        decode_ensemble(newer, ensemble)
    for data in (b"", b"[]", b"{"):
        with pytest.raises(BundleError, match="It is damaged"):
            decode_ensemble(data, ensemble)
    with pytest.raises(BundleError, match="It is damaged"):
        decode_ensemble(b'{"schema_version": 1, "type": "ensemble"}', ensemble)
    with pytest.raises(BundleError, match="It is no ensemble"):
        decode_ensemble(encode_manifest(verify_members(ensemble, manifest)[0]), ensemble)
