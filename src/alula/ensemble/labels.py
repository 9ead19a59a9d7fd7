"""Label sets of several members made one, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alula.errors import UsageError, closest

__all__ = ["Alignment", "Placement", "align_labels"]

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Placement:
    """Which columns of a member go where; both None where all go where they are.

    Attributes:
        source: columns of the member, in the order of `target`.
        target: ascending columns of the result; None where it is every one.
    """

    source: Indices | None
    target: Indices | None


@dataclass(frozen=True, eq=False)
class Alignment:
    """The classes of an ensemble, and where each member's columns belong.

    Attributes:
        labels: class names in the order of the result's columns; None where members have none.
        classes: how many columns the result has.
        placements: one per member.
        known: whether a member knows a class, boolean, shape (m, c).
    """

    labels: tuple[str, ...] | None
    classes: int
    placements: tuple[Placement, ...]
    known: npt.NDArray[np.bool_]


def align_labels(
    members: Sequence[tuple[str, ...] | None], *, widths: Sequence[int], wanted: Sequence[str] | None = None
) -> Alignment:
    """Return where the columns of each member belong.

    The classes are `wanted` in that order, or else every label of any member in the order in which they are
    first met. Columns of labels that are not wanted are left out. A member that lacks a label has no say in
    it.

    Args:
        members: label set of each member, in the order of its columns.
        widths: columns of each member.
        wanted: the classes of the result; None takes all.

    Raises:
        UsageError: some members have labels and others not, columns without labels differ in number, labels
            and columns of a member do, a label is there twice, or nobody knows a wanted one.

    >>> align_labels([("wren", "robin"), ("robin",)], widths=[2, 1]).known.tolist()
    [[True, True], [False, True]]
    """
    if all(labels is None for labels in members):
        return _without_labels(widths, wanted)
    found: dict[str, None] = {}
    for number, (labels, width) in enumerate(zip(members, widths, strict=True), 1):
        if labels is None:
            raise UsageError(
                f"Member {number} has no labels and another has, so their columns cannot be aligned by name. "
                "Make its bundle again with `--labels`."
            )
        if len(set(labels)) != len(labels) or len(labels) != width:
            raise UsageError(
                f"Member {number} has {len(labels)} labels, {len(set(labels))} of them different, for "
                f"{width} columns; expected one label of its own per column. Make its bundle again "
                "with `--labels`."
            )
        found.update(dict.fromkeys(labels))
    result = tuple(found) if wanted is None else tuple(wanted)
    if len(set(result)) != len(result) or not result:
        raise UsageError("The labels of an ensemble must be different from each other, and at least one.")
    for label in result:
        if label not in found:
            raise UsageError(f"No member knows the label `{label}`.{closest(label, found)}")
    placements = []
    known = np.zeros((len(members), len(result)), np.bool_)
    for number, labels in enumerate(members):
        assert labels is not None
        column = {label: index for index, label in enumerate(labels)}
        target = np.array([index for index, label in enumerate(result) if label in column], np.intp)
        source = np.array([column[label] for label in result if label in column], np.intp)
        known[number, target] = True
        placements.append(
            Placement(
                source=None if labels == result else source,
                target=None if len(target) == len(result) else target,
            )
        )
    return Alignment(result, len(result), tuple(placements), known)


def _without_labels(widths: Sequence[int], wanted: Sequence[str] | None) -> Alignment:
    if len(set(widths)) != 1:
        raise UsageError(
            f"Members without labels have {', '.join(map(str, widths))} columns; expected the same number. "
            "Make their bundles again with `--labels`, and columns are aligned by name."
        )
    if wanted is not None:
        raise UsageError("Labels cannot be chosen where the members have none. Make them with `--labels`.")
    shape = (len(widths), widths[0])
    return Alignment(None, widths[0], (Placement(None, None),) * len(widths), np.ones(shape, np.bool_))
