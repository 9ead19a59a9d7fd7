"""Reading: every damage has its own words, and nothing of a bundle is run to find it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from alula.bundle import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    FileRecord,
    decode_manifest,
    encode_manifest,
    read_manifest,
    start,
    verify,
)
from alula.bundle.manifest import sha256_of
from alula.errors import BundleError

FAKE = "artifacts/fake/fp32/fake.json"


def checked(bundle: Path) -> None:
    verify(bundle, read_manifest(bundle))


@pytest.fixture
def bundle(make, manifest) -> Path:
    return make.write(manifest)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere: It does not exist; expected a bundle folder such as"):
        read_manifest(tmp_path / "nowhere")


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(BundleError, match=r"It cannot be read: File name too long\."):
        read_manifest(Path(300 * "x"))


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="It is a file; expected a bundle folder"):
        read_manifest(tmp_path / "model.onnx")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"It holds no bundle\.json; expected a bundle made by `alula optimize`"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b"[1, 2]", b"{", b"no json", b'{"schema_version": "1"}']
)
def test_a_garbled_manifest(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json: It is damaged: .*\. Copy the bundle again\."):
        read_manifest(bundle)


def test_a_cut_manifest(bundle: Path) -> None:
    data = (bundle / MANIFEST_NAME).read_bytes()
    for end in range(0, len(data) - 2, 97):
        with pytest.raises(BundleError, match="It is damaged"):
            decode_manifest(data[:end], bundle)


def test_a_huge_manifest(bundle: Path) -> None:
    with (bundle / MANIFEST_NAME).open("r+b") as file:
        file.truncate(2**30)  # sparse: takes no space
    with pytest.raises(BundleError, match="which no manifest is"):
        read_manifest(bundle)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_schema_version(bundle: Path, version: int) -> None:
    document = json.loads((bundle / MANIFEST_NAME).read_bytes())
    (bundle / MANIFEST_NAME).write_text(json.dumps({"schema_version": version, "new": document["model"]}))
    with pytest.raises(
        BundleError,
        match=rf"schema version {version}; this release reads version 1\. Upgrade with `pip install",
    ):
        read_manifest(bundle)


def test_an_edited_manifest(bundle: Path) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(path.read_text().replace('"chosen": 0.89', '"chosen": 0.99'))
    with pytest.raises(BundleError, match="does not fit its checksum: it was changed after it was written"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "change", [{"seed": "zero"}, {"surprise": 1}, {"files": {"a": {"sha256": "x", "bytes": 1}}}]
)
def test_wrong_fields(bundle: Path, change: dict[str, object]) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(BundleError, match="It is damaged: "):
        read_manifest(bundle)


def test_a_reindented_manifest_is_the_same(bundle: Path) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    checked(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "artifacts/../../outside",
        "/etc/passwd",
        "..",
        "",
        "C:\\windows",
        "C:/windows",
        "a\\..\\..\\b",
        "nul\0byte",
    ],
)
@pytest.mark.parametrize("where", ["files", "chosen", "fallback"])
def test_names_that_lead_outside(bundle: Path, name: str, where: str) -> None:
    manifest = read_manifest(bundle)
    if where == "files":
        changed = msgspec.structs.replace(
            manifest, files={**manifest.files, name: FileRecord(sha256="0" * 64, bytes=0)}
        )
    elif where == "chosen":
        changed = msgspec.structs.replace(
            manifest, chosen=msgspec.structs.replace(manifest.chosen, artifact=name)
        )
    else:
        fallback = msgspec.structs.replace(manifest.fallbacks[0], artifact=name)
        changed = msgspec.structs.replace(manifest, fallbacks=(fallback,))
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    with pytest.raises(BundleError, match=r"which is outside the bundle\. Do not use it"):
        read_manifest(bundle)


def test_a_changed_file(bundle: Path) -> None:
    path = bundle / FAKE
    path.write_bytes(path.read_bytes().replace(b"1.0", b"9.0"))
    with pytest.raises(BundleError, match=rf"{FAKE}: Its content was changed after the bundle was written"):
        checked(bundle)


@pytest.mark.parametrize("name", [FAKE, GOLDEN_NAME, "search.jsonl"])
def test_a_cut_file(bundle: Path, name: str) -> None:
    size = (bundle / name).stat().st_size
    with (bundle / name).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(BundleError, match=rf"{name}: It has {size - 1} bytes; expected {size}\. Copy"):
        checked(bundle)


def test_a_missing_file(bundle: Path) -> None:
    (bundle / FAKE).unlink()
    with pytest.raises(BundleError, match=rf"{FAKE}: It is missing\. Copy the bundle again"):
        checked(bundle)


@pytest.mark.parametrize("name", ["extra.py", "artifacts/fake/fp32/more.bin", ".hidden"])
def test_an_added_file(bundle: Path, name: str) -> None:
    (bundle / name).write_text("added")
    with pytest.raises(BundleError, match=rf"{name}: bundle\.json does not list it\. Remove it"):
        checked(bundle)


def test_a_link_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    (bundle / FAKE).rename(tmp_path / "elsewhere")
    (bundle / FAKE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=rf"{FAKE}: It is a link, which can lead out of the bundle"):
        checked(bundle)


def test_a_linked_folder(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "artifacts", tmp_path / "elsewhere")
    (bundle / "artifacts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"artifacts: It is a link"):
        checked(bundle)


def test_a_dangling_link(bundle: Path) -> None:
    (bundle / "dangling").symlink_to("nowhere")
    with pytest.raises(BundleError, match="dangling: It is a link"):
        checked(bundle)


class Bomb:
    """Unpickling it raises."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle of the bundle was loaded",))


@pytest.mark.parametrize("kind", ["object array", "bare pickle", "bare array", "cut archive"])
def test_golden_arrays_that_are_none_and_no_pickle_is_loaded(bundle: Path, kind: str) -> None:
    path = bundle / GOLDEN_NAME
    if kind == "object array":
        data = io.BytesIO()
        np.save(data, np.array([Bomb()], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("input_0.npy", data.getvalue())
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "bare array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:-60])
    manifest = read_manifest(bundle)
    files = {**manifest.files, GOLDEN_NAME: FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)}
    sealed = msgspec.structs.replace(manifest, files=files)
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(sealed))
    checked(bundle)
    with pytest.raises(BundleError, match=rf"{GOLDEN_NAME}: "):
        start(bundle, read_manifest(bundle))
