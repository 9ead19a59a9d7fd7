"""Which files are which kind of data, and how inputs are found on disk."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from alula.data.audio import AUDIO_SUFFIXES
from alula.errors import DataError

__all__ = [
    "ARRAY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "Kind",
    "describe_files",
    "detect_kind",
    "expected_suffixes",
    "find_inputs",
    "is_hidden",
    "kind_of",
    "list_files",
]

Kind = Literal["audio", "image", "array"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
ARRAY_SUFFIXES = frozenset({".npy"})

_SUFFIXES: dict[Kind, frozenset[str]] = {
    "audio": frozenset(AUDIO_SUFFIXES),
    "image": IMAGE_SUFFIXES,
    "array": ARRAY_SUFFIXES,
}


def kind_of(path: str | Path) -> Kind | None:
    """Return the kind that a file's extension stands for, in any case; None for an unknown one.

    >>> kind_of("song.WAV"), kind_of("photo.Jpeg"), kind_of("notes.txt")
    ('audio', 'image', None)
    """
    suffix = Path(path).suffix.lower()
    return next((kind for kind, suffixes in _SUFFIXES.items() if suffix in suffixes), None)


def expected_suffixes(*kinds: Kind) -> str:
    """Return the extensions of these kinds (of all kinds without any) as text for a message.

    >>> expected_suffixes("array")
    '.npy'
    """
    return ", ".join(sorted(suffix for kind in kinds or tuple(_SUFFIXES) for suffix in _SUFFIXES[kind]))


def describe_files(paths: Iterable[Path]) -> str:
    """Return what kinds of file these are, as text for a message.

    >>> describe_files([Path("a.txt"), Path("b.TXT"), Path("c")])
    'found 3 files: 2 with the extension .txt, 1 without an extension'
    >>> describe_files([])
    'found no files'
    """
    counts = Counter(path.suffix.lower() for path in paths)
    if not counts:
        return "found no files"
    total = counts.total()
    shown = [
        f"{count} {f'with the extension {suffix}' if suffix else 'without an extension'}"
        for suffix, count in counts.most_common(5)
    ]
    if len(counts) > len(shown):
        shown.append(f"{total - sum(count for _, count in counts.most_common(5))} others")
    return f"found {total} file{'s' if total > 1 else ''}: {', '.join(shown)}"


def detect_kind(paths: Iterable[str | Path], *, source: str | Path = "the inputs") -> Kind:
    """Return the one kind that these files are; files of unknown extension do not count.

    Args:
        paths: files; only their names are looked at.
        source: what to call them in an error.

    Raises:
        DataError: none of them is of a known kind, or they are of several kinds.

    >>> detect_kind(["a.wav", "b.MP3", "readme.txt"])
    'audio'
    """
    files = [Path(path) for path in paths]
    examples: dict[Kind, Path] = {}
    counts: Counter[Kind] = Counter()
    for path in files:
        kind = kind_of(path)
        if kind is not None:
            examples.setdefault(kind, path)
            counts[kind] += 1
    if not counts:
        raise DataError(
            source, f"No data file found: {describe_files(files)}. Expected one of {expected_suffixes()}."
        )
    if len(counts) > 1:
        mix = " and ".join(
            f"{count} {kind} files (such as `{examples[kind].name}`)" for kind, count in counts.items()
        )
        raise DataError(source, f"Got a mix of {mix}. Expected one kind. Move the others elsewhere.")
    return next(iter(counts))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is skipped: dot files and what macOS adds to archives.

    >>> is_hidden("._song.wav"), is_hidden("song.wav")
    (True, False)
    """
    return name.startswith(".") or name == "__MACOSX"


def list_files(folder: Path) -> list[Path]:
    """Return every file below a folder that is not hidden, sorted by the names in its path (code points).

    Links to folders are followed once each, so that a loop of links ends. Broken links are listed,
    so that reading them reports them; pipes, sockets and devices are not.

    Raises:
        DataError: the folder or one below it cannot be listed.
    """
    return sorted(_walk(folder, set()), key=lambda path: path.parts)


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return
        seen.add(identity)
        with os.scandir(folder) as entries:
            # Sorted, so that of two links to one folder the same one is followed everywhere.
            listed = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda e: e.name)
    except OSError as error:
        raise DataError(folder, f"The folder cannot be listed: {error.strerror}.") from error
    for entry in listed:
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself, or to where nobody may look: reading it says why
            is_folder, is_file = False, True
        if is_folder:
            yield from _walk(folder / entry.name, seen)
        elif is_file or (entry.is_symlink() and not (folder / entry.name).exists()):
            yield folder / entry.name


def find_inputs(patterns: Sequence[str | Path], *, kind: Kind) -> list[Path]:
    """Return the files that folders, file names and globs stand for, sorted and without duplicates.

    A folder stands for all files of `kind` below it. A glob (`*`, `?`, `[...]`, `**` for any depth)
    stands for the files of `kind` that it matches, and for folders that it matches; the case of its
    extension does not matter. Hidden files are skipped. A file named as such is kept whatever its
    extension, so that reading it can report it.

    Raises:
        DataError: one of the patterns finds nothing; says what was looked for and what is there.
    """
    if not patterns:
        raise DataError("the inputs", "No input was given. Expected folders, files or globs.")
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern, kind):
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (resolve() would follow links)
    return sorted(found.values(), key=lambda path: path.parts)


def _expand(pattern: str | Path, kind: Kind) -> list[Path]:
    path = Path(pattern)
    expected = f"Expected {kind} files: {expected_suffixes(kind)}."
    # A name that exists is itself, even where it has brackets like a glob.
    if path.is_dir():
        there = list_files(path)
        files = [file for file in there if kind_of(file) == kind]
        if not files:
            raise DataError(path, f"Nothing to read in this folder: {describe_files(there)}. {expected}")
        return files
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(str(pattern)):
        raise DataError(path, f"The file or folder does not exist. {expected} {_beside(path.parent)}")
    fixed = _fixed_part(path)
    files = _deep_matches(path, fixed) if "**" in path.parts else _matches(path)
    kept = [
        file
        for file in files
        if kind_of(file) == kind and not any(map(is_hidden, file.parts[len(fixed.parts) :]))
    ]
    if not kept:
        was = f"The pattern matches nothing to read: {describe_files(files)}."
        raise DataError(pattern, f"{was} {expected} {_beside(fixed)}".strip())
    return kept


def _matches(pattern: Path) -> list[Path]:
    """Return the files that a glob without `**` matches, and those in the folders that it matches."""
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()  # a folder may be matched by its name and by a link's
    # Path.glob has no absolute patterns, and matches hidden files.
    for match in map(Path, sorted(glob.glob(_any_case(str(pattern))))):  # noqa: PTH207 (see above)
        if match.is_dir():
            files += sorted(_walk(match, seen), key=lambda path: path.parts)
        else:
            files.append(match)
    return files


def _deep_matches(pattern: Path, fixed: Path) -> list[Path]:
    """Return the files that a glob with `**` matches; a folder is looked into once, whatever links to it."""
    if not fixed.is_dir():
        return []
    wanted = Path(_any_case(str(pattern))).parts[len(fixed.parts) :]
    return [file for file in list_files(fixed) if _fits(file.parts[len(fixed.parts) :], wanted)]


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether the parts of a path fit those of a glob, of which `**` fits any number.

    >>> _fits(("a", "b", "c.wav"), ("**", "*.wav")), _fits(("c.wav",), ("**", "*.wav"))
    (True, True)
    >>> _fits(("a", "c.wav"), ("b", "**", "*.wav")), _fits(("a", "b"), ("**", "c", "**"))
    (False, False)
    """
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_fits(parts[skipped:], wanted[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])


def _any_case(pattern: str) -> str:
    """Return the glob with the letters of its extension in either case.

    >>> _any_case("in/*.wav")
    'in/*.[wW][aA][vV]'
    >>> _any_case("in.d/*")
    'in.d/*'
    """
    match = re.fullmatch(r"(.*\.)([A-Za-z0-9]+)", pattern, flags=re.DOTALL)
    if match is None:
        return pattern
    letters = (f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in match[2])
    return match[1] + "".join(letters)


def _fixed_part(path: Path) -> Path:
    parts: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _beside(folder: Path) -> str:
    if not folder.is_dir():
        return f"The folder `{folder}` does not exist either."
    try:
        names = [Path(entry.name) for entry in os.scandir(folder) if entry.is_file()]
    except OSError as error:
        return f"The folder `{folder}` cannot be listed: {error.strerror}."
    return f"In `{folder}`: {describe_files(names)}."
