"""Where the process' own control groups are, in every layout: v1, v2, hybrid, and inside containers.

The formats are those of cgroups(7), cgroup_namespaces(7) and proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from alula.hardware.kernel_files import is_folder, read_text

__all__ = ["Group", "read_groups"]

_SLASH = PurePosixPath("/")


class Group(NamedTuple):
    """One control group that the process is in, or an ancestor of it.

    Attributes:
        version: 1 or 2.
        shown: its path as the process sees it, for messages.
        folder: the same path below the root that was asked for.
    """

    version: Literal[1, 2]
    shown: PurePosixPath
    folder: Path


class _Mount(NamedTuple):
    version: Literal[1, 2]
    top: PurePosixPath  # the group that the mount point shows, as named in /proc/self/cgroup
    point: PurePosixPath


def read_groups(controller: str, root: Path = Path("/")) -> tuple[Group, ...]:
    """Return the process' groups of a controller, each before its ancestors: v1 ones, then v2 ones.

    Limits of every one of them apply. In hybrid layouts both versions are mounted side by side and either
    may hold the controller, so both are returned; a file that is not there sets no limit.

    Args:
        controller: v1 name of the controller: `cpu`, `memory`.
        root: what to take for `/`.
    """
    groups: list[Group] = []
    mounts = tuple(_read_mounts(controller, root))
    for version, path in _read_own_paths(controller, root).items():
        chains = [_chain(mount, path, root) for mount in mounts if mount.version == version]
        if chains:
            # The best known place; of equals, the mount that shows the most ancestors.
            _, chain = min(chains, key=lambda found: (found[0], -len(found[1])))
            groups.extend(chain)
    return tuple(groups)


def _read_own_paths(controller: str, root: Path) -> dict[Literal[1, 2], PurePosixPath]:
    """Return the process' path in the hierarchy of each version, from lines `id:controllers:path`."""
    paths: dict[Literal[1, 2], PurePosixPath] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        if controller in fields[1].split(","):
            paths[1] = _SLASH / fields[2]
        elif fields[0] == "0" and not fields[1]:
            paths[2] = _SLASH / fields[2]
    return dict(sorted(paths.items()))


def _read_mounts(controller: str, root: Path) -> Iterator[_Mount]:
    """Yield the mounts that show a controller's hierarchy; a later one hides an earlier on the same point."""
    found: dict[PurePosixPath, _Mount] = {}
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(" "), after.split(" ")
        if len(place) < 6 or len(kind) < 3:
            continue
        top, point = (_SLASH / _unescape(place[at]) for at in (3, 4))
        if kind[0] == "cgroup2":
            found[point] = _Mount(2, top, point)
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            found[point] = _Mount(1, top, point)
    yield from found.values()


def _unescape(text: str) -> str:
    """Return a mountinfo field with its octal escapes (space, tab, newline, backslash) undone."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _chain(mount: _Mount, path: PurePosixPath, root: Path) -> tuple[int, list[Group]]:
    """Return how surely the group was found (0 is sure) and the group with its ancestors up to the mount."""
    base = root / mount.point.relative_to("/")
    doubt, inside = _find_inside(mount, path, base)
    steps = [inside, *inside.parents] if inside.parts else [inside]
    return doubt, [Group(mount.version, mount.point / step, base / step) for step in steps]


def _find_inside(mount: _Mount, path: PurePosixPath, base: Path) -> tuple[int, PurePosixPath]:
    """Return a doubt and the group's path below the mount point."""
    # Sure: the mount shows the group itself or an ancestor of it.
    if path.is_relative_to(mount.top):
        inside = path.relative_to(mount.top)
        if ".." not in inside.parts and is_folder(base / inside):
            return 0, inside
    # A cgroup namespace below what is mounted (the host's groups bound into a container): the mount's top is
    # `/..` steps above ours and our names there are unknown, but the group of ours lists this process.
    ups = mount.top.parts.count("..")
    if ups and mount.top.parts == ("/", *[".."] * ups):
        below = path.relative_to("/")
        for folder in sorted(_folders_at(base, ups)):
            inside = PurePosixPath(folder.relative_to(base)) / below
            if str(os.getpid()) in read_text(base / inside / "cgroup.procs").split():
                return 0, inside
    # The host's path, with only its lower part visible here.
    names = [name for name in path.parts[1:] if name != ".."]
    for start in range(len(names)):
        inside = PurePosixPath(*names[start:])
        if is_folder(base / inside):
            return 1, inside
    # The usual case in containers without a namespace of their own: the mount point is our group.
    return 2, PurePosixPath()


def _folders_at(base: Path, depth: int) -> Iterator[Path]:
    """Yield the folders exactly `depth` levels below `base`."""
    if depth == 0:
        yield base
        return
    try:
        inner = [entry for entry in base.iterdir() if is_folder(entry)]
    except OSError:
        return
    for folder in inner:
        yield from _folders_at(folder, depth - 1)
