"""A folder of class folders, or of files without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from alula.data.arrays import read_array
from alula.data.formats import Kind, describe_files, detect_kind, expected_suffixes, kind_of, list_files
from alula.data.samples import Item, Samples
from alula.data.targets import Targets, checked_labels, named_targets
from alula.errors import DataError

__all__ = ["array_reader", "file_group", "open_folder"]

# Folders of these names hold parts of a data set, not classes.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def open_folder(folder: Path, *, labels: Sequence[str] | None = None) -> Samples:
    """Return the files of a folder: labelled by its class folders, unlabelled if it has none.

    A class is a folder right inside `folder`; files count at any depth below it. Without `labels`
    the classes are sorted by name (code points), as torchvision's `ImageFolder` does: `10` comes before
    `9`, unlike numbers in the label column of a manifest. Files are sorted in the same way, folder by
    folder. Files of no known extension are ignored. Where there are no class folders, `labels` are names of
    the model's outputs and say nothing of the files.

    Raises:
        DataError: nothing readable is there, kinds are mixed, a class folder is empty, files lie
            beside the class folders, or a class folder is not among `labels`.
    """
    everything = list_files(folder)
    files = [path for path in everything if kind_of(path) is not None]
    if not files:
        raise DataError(
            folder,
            f"Nothing to read in this folder: {describe_files(everything)}. Expected audio, images or "
            f"arrays: {expected_suffixes()}.",
        )
    kind = detect_kind(files, source=folder)
    names = [path.relative_to(folder).parts[0] for path in files]
    loose = [path for path in files if path.parent == folder]
    given = checked_labels(labels)
    if len(loose) == len(files):
        # What the model's outputs are called may be known where the files' classes are not.
        targets = Targets()
        what = f"{len(files)} {kind} files without class folders"
    elif loose:
        raise DataError(
            folder,
            f"{len(loose)} files lie beside the class folders, such as `{loose[0].name}`. Move them into "
            "one.",
        )
    else:
        targets = named_targets(names, given or _classes(folder, set(names)), source=folder)
        what = f"{len(files)} {kind} files in {len(set(names))} class folders"
    return Samples(
        kind=kind,
        source=f"{folder}: {what}",
        items=tuple(Item(path=path, group=file_group(path)) for path in files),
        task=targets.task,
        targets=targets.values,
        labels=targets.labels,
        load=array_reader(kind, files),
    )


def file_group(path: Path) -> str:
    """Return the group of a file: one name for all the ways to write or link to it."""
    return str(path.resolve())


def array_reader(kind: Kind, files: Sequence[Path]) -> Callable[[int], tuple[npt.NDArray[Any], ...]] | None:
    """Return what reads the n-th file for samples of kind `array`; None for other kinds."""
    return (lambda index: (read_array(files[index]),)) if kind == "array" else None


def _classes(folder: Path, used: set[str]) -> list[str]:
    if used <= _PARTS:
        part = folder / min(used)
        raise DataError(
            folder,
            f"The folders {', '.join(f'`{name}`' for name in sorted(used))} look like parts of a data set, "
            f"not classes. Pass one of them, such as `{part}`.",
        )
    folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    empty = sorted(folders - used - {"__MACOSX"})
    if empty:
        raise DataError(
            folder,
            f"Nothing to read in {len(empty)} of {len(folders)} class folders: "
            f"{', '.join(f'`{name}`' for name in empty[:5])}{' and more' if len(empty) > 5 else ''}. "
            "Fill or remove them, or give the class names in the model's order.",
        )
    return sorted(used)
