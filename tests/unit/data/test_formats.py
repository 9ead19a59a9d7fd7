"""Inputs on disk: kinds by extension, folders, files and globs."""

from pathlib import Path

import pytest

from alula.data import detect_kind, find_inputs, kind_of
from alula.data.formats import list_files
from alula.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(found: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    touch(tmp_path, "b.WAV", "a.wav", "notes.txt", ".hidden.wav", "._a.wav", "photo.JPG", "data.npy")
    touch(tmp_path, "deep/er/c.Flac", "deep/d.mp3", ".git/e.wav", "__MACOSX/f.wav")
    return tmp_path


@pytest.mark.parametrize("name", ["a.wav", "A.WAV", "a.Flac", "a.ogg", "a.mp3"])
def test_audio_extensions_in_any_case(name: str) -> None:
    assert kind_of(name) == "audio"


@pytest.mark.parametrize("name", ["a.jpg", "A.JPEG", "a.Png", "a.tiff", "a.webp", "a.BMP"])
def test_image_extensions_in_any_case(name: str) -> None:
    assert kind_of(name) == "image"


def test_folder_is_searched_at_any_depth_without_hidden_and_other_files(tree: Path) -> None:
    found = find_inputs([tree], kind="audio")
    assert names(found, tree) == ["a.wav", "b.WAV", "deep/d.mp3", "deep/er/c.Flac"]
    assert names(find_inputs([str(tree)], kind="image"), tree) == ["photo.JPG"]
    assert names(find_inputs([tree], kind="array"), tree) == ["data.npy"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["a.wav", "b.WAV"]),
        ("*.WAV", ["a.wav", "b.WAV"]),
        ("**/*.flac", ["deep/er/c.Flac"]),
        ("**/*.wav", ["a.wav", "b.WAV"]),
        ("**", ["a.wav", "b.WAV", "deep/d.mp3", "deep/er/c.Flac"]),
        ("*", ["a.wav", "b.WAV", "deep/d.mp3", "deep/er/c.Flac"]),
        ("[ab].*", ["a.wav", "b.WAV"]),
        ("d*p", ["deep/d.mp3", "deep/er/c.Flac"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_inputs([tree / pattern], kind="audio"), tree) == expected


def test_files_are_sorted_and_found_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    found = find_inputs(["deep/d.mp3", "b.WAV", "./deep/../b.WAV", str(tree / "b.WAV"), "deep"], kind="audio")
    assert found == [Path("b.WAV"), Path("deep/d.mp3"), Path("deep/er/c.Flac")]


def test_a_file_named_as_such_is_kept_whatever_its_extension(tree: Path) -> None:
    found = find_inputs([tree / "notes.txt", tree / ".hidden.wav", tree / "photo.JPG"], kind="audio")
    assert names(found, tree) == [".hidden.wav", "notes.txt", "photo.JPG"]


def test_a_name_with_brackets_is_itself_where_it_exists(tmp_path: Path) -> None:
    touch(tmp_path, "take [1].wav", "take 1.wav")
    assert names(find_inputs([tmp_path / "take [1].wav"], kind="audio"), tmp_path) == ["take [1].wav"]


def test_nothing_in_a_folder_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.TXT", "c.csv", "README")
    with pytest.raises(DataError) as error:
        find_inputs([tmp_path], kind="audio")
    text = str(error.value)
    assert str(tmp_path) in text
    assert "found 4 files: 2 with the extension .txt" in text
    assert "1 with the extension .csv" in text
    assert "1 without an extension" in text
    assert ".wav" in text


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no files"):
        find_inputs([tmp_path], kind="image")


@pytest.mark.parametrize("pattern", ["*.wav", "**/*.wav", "nope/**/*.wav"])
def test_a_glob_that_matches_nothing_says_what_is_beside_it(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a.aac")
    with pytest.raises(DataError, match=r"matches nothing.*(1 with the extension \.aac|does not exist)"):
        find_inputs([tmp_path / pattern], kind="audio")


def test_one_empty_pattern_among_others_is_an_error(tree: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.wav: The file or folder does not exist"):
        find_inputs([tree, tree / "missing.wav"], kind="audio")


def test_no_pattern_is_an_error() -> None:
    with pytest.raises(DataError, match="No input was given"):
        find_inputs([], kind="audio")


def test_links_are_followed_once_and_broken_ones_kept(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.wav")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "real" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert names(list_files(tmp_path), tmp_path) == ["real/a.wav", "real/gone.wav"]


@pytest.mark.parametrize("pattern", ["**/*.wav", "**", "*", "r*", "*/*.wav"])
def test_globs_find_each_file_once_whatever_links_to_its_folder(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "real/a.wav")
    for name in ("latest", "other"):
        (tmp_path / name).symlink_to(tmp_path / "real")
        (tmp_path / "real" / name).symlink_to(tmp_path)
    found = find_inputs([tmp_path / pattern], kind="audio")
    # A glob without `**` matches a file by every name that fits.
    expected = 3 if pattern == "*/*.wav" else 1
    assert len(found) == expected
    assert {path.name for path in found} == {"a.wav"}


def test_a_link_to_itself_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "b.wav")
    assert names(find_inputs([tmp_path], kind="audio"), tmp_path) == ["a.wav", "b.wav"]


def test_pipes_are_not_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.wav")
    touch(tmp_path, "a.wav")
    assert names(find_inputs([tmp_path], kind="audio"), tmp_path) == ["a.wav"]


def test_detect_kind() -> None:
    assert detect_kind(["a.PNG", Path("b.jpg"), "c.txt"]) == "image"
    with pytest.raises(DataError, match=r"1 audio files \(such as `a\.wav`\) and 2 image files"):
        detect_kind(["a.wav", "b.png", "c.png"])
    with pytest.raises(DataError, match=r"found 1 file: 1 with the extension \.txt"):
        detect_kind(["a.txt"])
