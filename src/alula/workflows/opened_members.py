"""Bundles that may become an ensemble, loaded side by side as they would be in it, each to be run alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alula.bundle import GOLDEN_NAME, is_ensemble, read_manifest, verify
from alula.core import Blend, Mean, Settings, View
from alula.engines import Arrays
from alula.ensemble import Blender, EnsembleSession, align_labels, shared_batch_size
from alula.errors import UsageError, closest
from alula.features import feature_key
from alula.postprocess import PostProcessing
from alula.workflows.ensembling import Lineup, SharedReader, line_up, member_names, open_member, row_bytes_of

__all__ = ["OpenedMembers"]

# Of the baselines of two bundles of one model, which come from two exports and other batches.
_SAME_MODEL_TOLERANCE = 1e-3


class OpenedMembers:
    """Bundles loaded under one thread budget. Use it in a `with` block.

    Thread-safe, as each session is: calls of one member wait for each other.

    Args:
        bundles: folders, of one model each.
        blend: how scores are to become one.
        post: views of members by name, and steps after the blend.
        labels: the classes of the result in their order; None takes the members'.
        trust_code: see `load`.
        threads: that they share.
        report: gets lines of text about what is being done.
        clock: seconds; tells how long loading takes.

    Attributes:
        names: of the members, in the order of the bundles.
        folders: the bundles.
        manifests: of these.
        views: how each looks at a recording.
        lineup: what they have in common.
        load_s: seconds that verifying and loading each took.
        threads: that they share.

    Raises:
        BundleError: a bundle is damaged, or nothing in it is right here.
        UsageError: they do not go together, differ in their labels, or one is an ensemble.
    """

    def __init__(
        self,
        bundles: Sequence[str | Path],
        *,
        blend: Blend,
        post: PostProcessing,
        labels: Sequence[str] | None = None,
        trust_code: bool,
        threads: int,
        report: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folders = tuple(Path(bundle) for bundle in bundles)
        if not self.folders:
            raise UsageError("A plan got no bundles; expected at least one.")
        for folder in self.folders:
            if is_ensemble(folder):
                raise UsageError(
                    f"{folder} is an ensemble; expected bundles of one model each. Give those in its folder "
                    "`members`, unless they run over long stretches: plans are made window by window."
                )
        self.names = tuple(member_names(self.folders))
        for name in post.view:
            if name not in self.names:
                raise UsageError(
                    f"The post-processing has a view of `{name}`, but the members are "
                    f"{', '.join(self.names)}.{closest(name, self.names)}"
                )
        self.threads = threads
        self.manifests = tuple(read_manifest(folder) for folder in self.folders)
        self.views = tuple(post.view.get(name, View()) for name in self.names)
        for name, view in zip(self.names, self.views, strict=True):
            if view.rows > 1:
                raise UsageError(
                    f"The view of `{name}` says {view.rows} rows of a window, and a plan measures and judges "
                    "bundles window by window. Leave it out, or give its network window by window."
                )
        self.lineup = self.lined_up(self.views, blend=blend, post=post, labels=labels)
        self._check_labels()
        load_s = []
        with contextlib.ExitStack() as opened:
            members = []
            for place, (name, folder, manifest, view) in enumerate(
                zip(self.names, self.folders, self.manifests, self.views, strict=True)
            ):
                report(f"loading {name}")
                before_s = clock()
                verify(folder, manifest)
                member, _ = open_member(
                    folder,
                    manifest,
                    self.lineup,
                    place,
                    name=name,
                    view=view,
                    trust_code=trust_code,
                    threads=threads,
                )
                load_s.append(clock() - before_s)
                opened.callback(member.close)
                members.append(member)
            opened.pop_all()
        self.load_s = tuple(load_s)
        self._members = tuple(members)
        self._sessions = tuple(
            EnsembleSession(
                [member],
                blender=Blender(Mean(), align_labels([None], widths=[width])),
                activate=lambda scores: scores,
            )
            for member, width in zip(members, self.lineup.widths, strict=True)
        )

    def lined_up(
        self,
        views: Sequence[View],
        *,
        blend: Blend,
        post: PostProcessing,
        labels: Sequence[str] | None = None,
    ) -> Lineup:
        """Return what the members have in common where they look at recordings in some way."""
        return line_up(self.names, self.manifests, views, blend=blend, steps=post.step, labels=labels)

    @property
    def settings(self) -> Settings:
        """How `scores` is called: one call at a time, with all threads, many rows."""
        row_bytes = row_bytes_of(self.manifests, self.lineup.takes, self.lineup.inputs)
        size = shared_batch_size([member.settings for member in self._members], row_bytes=row_bytes)
        return Settings(threads=self.threads, instances=1, batch_size=size)

    def reader(self, lineup: Lineup | None = None) -> SharedReader:
        """Return what turns files into rows for all members."""
        return SharedReader((lineup or self.lineup).demands)

    def call_rows(self, place: int) -> int:
        """Return how many rows a member is given at once when it is run alone."""
        row_bytes = row_bytes_of([self.manifests[place]], [0], [1])
        return shared_batch_size([self._members[place].settings], row_bytes=row_bytes)

    def scores_of(self, place: int, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return the scores of one member for rows of its own input, shape (n, its columns)."""
        inputs = [rows] * (1 + max(self.lineup.takes))
        return self._sessions[place].run(inputs)

    def scores(self, batch: Arrays) -> Arrays:
        """Return the scores of all members side by side, shape (n, sum of their columns), as a 1-tuple."""
        return (np.concatenate([session.run(batch) for session in self._sessions], axis=1),)

    def by_class(self, joined: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Return the scores of each member from those side by side, in the order of the classes."""
        ends = np.cumsum(self.lineup.widths)[:-1]
        found = {}
        placements = self.lineup.blender.alignment.placements
        for name, part, placement in zip(self.names, np.split(joined, ends, axis=1), placements, strict=True):
            taken = part if placement.source is None else part[:, placement.source]
            found[name] = np.ascontiguousarray(taken, np.float32)
        return found

    def variants(self) -> dict[str, str]:
        """Return a word for each member that is one model in another precision as another member is.

        Two bundles are of one trained model if their golden inputs are the same and so are the outputs of the
        models that they were made from. Names tell nothing: folds share them, too.
        """
        found: dict[str, str] = {}
        seen: list[tuple[str, str, tuple[NDArray[Any], ...]]] = []
        for name, folder, manifest, demand in zip(
            self.names,
            self.folders,
            self.manifests,
            (self.lineup.demands[place] for place in self.lineup.takes),
            strict=True,
        ):
            key = feature_key(demand)
            with np.load(folder / GOLDEN_NAME, allow_pickle=False) as golden:
                kept = (*manifest.golden_inputs, "baseline_0")
                if not set(kept) <= set(golden.files):
                    continue
                arrays = tuple(golden[one] for one in kept)
            for other, other_key, others in seen:
                if key == other_key and _alike(arrays, others):
                    found[name] = found[other] = other
                    break
            else:
                seen.append((name, key, arrays))
        return found

    def _check_labels(self) -> None:
        alignment = self.lineup.blender.alignment
        if alignment.known.all():
            return
        place, column = (int(axis[0]) for axis in np.nonzero(~alignment.known))
        label = alignment.labels[column] if alignment.labels is not None else str(column)
        raise UsageError(
            f"`{self.names[place]}` has no class `{label}`, which another bundle has. A plan compares "
            "bundles of the same classes; say with --labels which they are, or leave the bundle out."
        )

    def close(self) -> None:
        """Free the engines' memory."""
        for session in self._sessions:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _alike(arrays: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]) -> bool:
    return all(
        one.shape == other.shape
        and np.allclose(
            one, other, rtol=_SAME_MODEL_TOLERANCE, atol=_SAME_MODEL_TOLERANCE * np.abs(other).max()
        )
        for one, other in zip(arrays, others, strict=True)
    )
