"""Calibration and validation: two parts of a data set that share no sample and no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import msgspec
import numpy as np

from alula.data.samples import Samples
from alula.errors import DataError, UsageError

__all__ = ["Split", "split"]


class Split(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which samples calibrate and which validate; goes to JSON and back with msgspec.

    Attributes:
        calibration: indices of the samples that set quantization ranges.
        validation: indices of the samples that accuracy is judged on; none of them calibrates.
        seed: seed of the random order.
        stratified: whether both parts have the classes in the proportions of the whole.

    Both are in a seeded random order, so that the first k of them are a fair sample too.

    >>> msgspec.json.encode(Split(calibration=(2,), validation=(0, 1), seed=0, stratified=False))
    b'{"calibration":[2],"validation":[0,1],"seed":0,"stratified":false}'
    """

    calibration: tuple[int, ...]
    validation: tuple[int, ...]
    seed: int
    stratified: bool

    def __post_init__(self) -> None:
        chosen = self.calibration + self.validation
        if len(set(chosen)) < len(chosen) or min(chosen, default=0) < 0:
            raise ValueError("an index must be 0 or more and occur once, in one of the two parts")
        if not self.calibration or len(self.validation) < 2:
            raise ValueError(
                "a split needs at least 1 calibration and 2 validation samples; got "
                f"{len(self.calibration)} and {len(self.validation)}"
            )


def split(
    samples: Samples, *, calibration: int = 300, max_validation: int | None = None, seed: int = 0
) -> Split:
    """Return a seeded division of a data set into calibration and validation samples.

    Calibration gets `calibration` samples or a third of the data set, whichever is less, and
    validation the rest. Samples of one group (one file) stay together, so with groups of several
    samples calibration may get fewer.

    With classes the parts are stratified: each stratum gets its share of the samples by largest
    remainder. A stratum is a class; for several labels, of a sample or of a group, it is the rarest
    of them in the data set, so that rare classes are divided evenly first, as in Sechidis, Tsoumakas
    and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011. The last group of a
    class goes to calibration only if half of the calibration samples cannot be had otherwise.
    The same seed gives the same split on every platform.

    Args:
        samples: the data set.
        calibration: calibration samples wanted.
        max_validation: keep at most this many validation samples, again stratified.
        seed: of the random order.

    Raises:
        DataError: the data set is too small for 1 calibration and 2 validation samples, or its
            groups are too large to give a third or less of it to calibration.
        UsageError: `calibration` is below 1, `max_validation` below 2, or `seed` below 0.
    """
    if calibration < 1:
        raise UsageError(f"`calibration` must be at least 1; got {calibration}.")
    if max_validation is not None and max_validation < 2:
        raise UsageError(f"`max_validation` must be at least 2; got {max_validation}.")
    if seed < 0:
        raise UsageError(f"`seed` must be 0 or more; got {seed}.")
    n = len(samples)
    target = min(calibration, n // 3)
    if target < 1:
        raise DataError(
            samples.source,
            f"Got {n} sample{'s' if n > 1 else ''} to split. Expected at least 3: 1 for calibration and 2 "
            "for validation. Add data.",
        )
    random = np.random.Generator(np.random.PCG64(seed))
    labels = _label_sets(samples)
    members: dict[str, list[int]] = {}
    for index, item in enumerate(samples.items):
        members.setdefault(item.group, []).append(index)
    smallest = min(map(len, members.values()))
    if smallest > target:
        raise DataError(
            samples.source,
            f"The {n} samples come from {len(members)} files, the smallest with {smallest}. A file is never "
            f"shared between calibration and validation, and calibration gets at most {target} samples here. "
            "Add files, or cut them into shorter ones.",
        )
    groups = _shuffled(_grouped(list(members.values()), labels), random)
    chosen = _choose(groups, target, keep_last=True)
    calibrating = _permuted([index for group in chosen for index in group.members], random)
    taken = set(calibrating)
    validating = [index for index in range(n) if index not in taken]
    if max_validation is not None and len(validating) > max_validation:
        alone = _shuffled(_grouped([[index] for index in validating], labels), random)
        validating = [group.members[0] for group in _choose(alone, max_validation, keep_last=False)]
    return Split(
        calibration=calibrating,
        validation=_permuted(validating, random),
        seed=seed,
        stratified=samples.task in ("single-label", "multi-label"),
    )


@final
@dataclass(frozen=True, slots=True)
class _Group:
    members: Sequence[int]
    stratum: int


def _label_sets(samples: Samples) -> list[tuple[int, ...]]:
    """Return the class indices of each sample; empty for samples of no class."""
    if samples.task == "single-label" and samples.targets is not None:
        return [(int(index),) for index in samples.targets]
    if samples.task == "multi-label" and samples.targets is not None:
        return [tuple(np.flatnonzero(row).tolist()) for row in samples.targets]
    return [()] * len(samples)


def _grouped(members: Sequence[Sequence[int]], labels: Sequence[tuple[int, ...]]) -> list[_Group]:
    counts = Counter(label for group in members for index in group for label in labels[index])

    def rarest(group: Sequence[int]) -> int:
        present = {label for index in group for label in labels[index]}
        return min(present, key=lambda label: (counts[label], label), default=-1)

    return [_Group(group, rarest(group)) for group in members]


def _shuffled(groups: Sequence[_Group], random: np.random.Generator) -> list[_Group]:
    return [groups[position] for position in random.permutation(len(groups))]


def _permuted(indices: Sequence[int], random: np.random.Generator) -> tuple[int, ...]:
    return tuple(indices[position] for position in random.permutation(len(indices)))


def _choose(groups: Sequence[_Group], target: int, *, keep_last: bool) -> list[_Group]:
    """Return groups of at most `target` samples in all, each stratum with its share, in order given."""
    strata: dict[int, list[_Group]] = {}
    for group in groups:  # in shuffled order, which breaks ties between strata fairly
        strata.setdefault(group.stratum, []).append(group)
    wanted = _quotas(strata, target, keep_last=keep_last)
    left = {stratum: len(found) for stratum, found in strata.items()}
    chosen = [False] * len(groups)
    got = 0
    spare = 1 if keep_last else 0
    # First each stratum's share; then what large groups left over; at last the last groups of classes.
    for by_share, spared, enough in ((True, spare, target), (False, spare, target), (False, 0, target // 2)):
        if got >= enough > 0:
            continue
        for position, group in enumerate(groups):
            size = len(group.members)
            fits = size <= (min(target - got, wanted[group.stratum]) if by_share else target - got)
            if fits and not chosen[position] and left[group.stratum] > spared:
                chosen[position] = True
                got += size
                left[group.stratum] -= 1
                wanted[group.stratum] -= size
    return [group for group, taken in zip(groups, chosen, strict=True) if taken]


def _quotas(strata: Mapping[int, Sequence[_Group]], target: int, *, keep_last: bool) -> dict[int, int]:
    """Return how many samples each stratum gives, by largest remainder, in whole numbers throughout."""
    sizes = {stratum: sum(len(group.members) for group in groups) for stratum, groups in strata.items()}
    n = sum(sizes.values())
    quotas = {stratum: target * size // n for stratum, size in sizes.items()}
    # A class with one group would vanish from validation: such classes come last.
    order = sorted(
        sizes,
        key=lambda stratum: (keep_last and len(strata[stratum]) == 1, -(target * sizes[stratum] % n)),
    )
    for stratum in order[: target - sum(quotas.values())]:
        quotas[stratum] += 1
    return quotas
