"""Reads bundles: verifies every byte, then loads what is right on this machine."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alula.bundle.ensembles import EnsembleManifest, decode_ensemble
from alula.bundle.manifest import (
    ENSEMBLE,
    MANIFEST_NAME,
    Deployed,
    Manifest,
    checked_type,
    decode_manifest,
    sha256_of,
)
from alula.bundle.write import GOLDEN_NAME
from alula.core import Recipe, Settings, rms_difference
from alula.engines import Session, engine_named, run_in_batches
from alula.errors import AlulaError, BundleError
from alula.hardware import Fingerprint, fingerprint, int8_is_safe_here, thread_budget

__all__ = [
    "BundleWarning",
    "Running",
    "fitted",
    "is_ensemble",
    "read_ensemble",
    "read_manifest",
    "start",
    "verify",
    "verify_members",
]

MANIFEST_BYTES = 64 * 2**20

# Golden outputs may differ by rounding between CPUs and releases. FP32: order of sums. INT8: a value
# that falls on the other side of a rounding step; saturation, by contrast, changes outputs by their size.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": 5e-2}


class BundleWarning(UserWarning):
    """A bundle runs here in another way than it was tuned for."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A recipe of a bundle, loaded here.

    Attributes:
        deployed: the recipe that runs.
        settings: fitted to this machine's thread budget.
        session: takes batches; thread-safe for `settings.instances` callers.
        passed_over: why recipes before it in the order were not used, one line each.
    """

    deployed: Deployed
    settings: Settings
    session: Session
    passed_over: tuple[str, ...]


def read_manifest(bundle: Path) -> Manifest:
    """Return the manifest of a bundle folder.

    Raises:
        BundleError: it is no bundle, or its manifest is refused (see `decode_manifest`).
    """
    return decode_manifest(manifest_bytes(bundle), bundle / MANIFEST_NAME)


def manifest_bytes(bundle: Path) -> bytes:
    """Return the content of `bundle.json`, unchecked.

    Raises:
        BundleError: it is no bundle, or its manifest cannot be read.
    """
    path = bundle / MANIFEST_NAME
    try:
        if not bundle.is_dir():
            what = "It is a file" if bundle.exists() else "It does not exist"
            raise BundleError(bundle, f"{what}; expected a bundle folder such as `birds.alula`.")
        if not path.is_file():
            raise BundleError(
                bundle, f"It holds no {MANIFEST_NAME}; expected a bundle made by `alula optimize`."
            )
        if path.stat().st_size > MANIFEST_BYTES:
            raise BundleError(path, f"It is larger than {MANIFEST_BYTES} bytes, which no manifest is.")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(path, f"It cannot be read: {error.strerror or error}.") from error


def verify(bundle: Path, manifest: Manifest | EnsembleManifest) -> None:
    """Check that the bundle's files are those that its manifest lists: no more, no fewer, no other bytes.

    Raises:
        BundleError: naming the first file that is missing, added, a link, or changed.
    """
    present = {
        path.relative_to(bundle).as_posix(): path
        for path in sorted(bundle.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }
    present.pop(MANIFEST_NAME, None)
    for name, path in present.items():
        if path.is_symlink() or any(parent.is_symlink() for parent in _inside(path, bundle)):
            raise BundleError(path, "It is a link, which can lead out of the bundle. Copy the bundle again.")
        if name not in manifest.files:
            raise BundleError(path, f"{MANIFEST_NAME} does not list it. Remove it, or copy the bundle again.")
    for name, record in manifest.files.items():
        if name not in present:
            raise BundleError(bundle / name, "It is missing. Copy the bundle again.")
        size = present[name].stat().st_size
        if size != record.bytes:
            raise BundleError(
                bundle / name, f"It has {size} bytes; expected {record.bytes}. Copy the bundle again."
            )
        if sha256_of(present[name]) != record.sha256:
            raise BundleError(
                bundle / name, "Its content was changed after the bundle was written. Copy the bundle again."
            )


def is_ensemble(bundle: Path) -> bool:
    """Return whether a bundle is an ensemble.

    Raises:
        BundleError: it is no bundle, its manifest cannot be read, or is of a newer schema.
    """
    return checked_type(manifest_bytes(bundle), bundle / MANIFEST_NAME) == ENSEMBLE


def read_ensemble(bundle: Path) -> EnsembleManifest:
    """Return the manifest of an ensemble's folder.

    Raises:
        BundleError: it is no ensemble, or its manifest is refused (see `decode_ensemble`).
    """
    return decode_ensemble(manifest_bytes(bundle), bundle / MANIFEST_NAME)


def verify_members(bundle: Path, manifest: EnsembleManifest) -> tuple[Manifest, ...]:
    """Return the manifests of an ensemble's members, which are those that it was made of.

    The bytes of the members' files are not read again: the ensemble lists them too, and `verify` has.

    Args:
        bundle: verified folder.
        manifest: its manifest.

    Raises:
        BundleError: a member's manifest is refused, is another, or lists other files than the ensemble does.
    """
    manifests = []
    for member in manifest.members:
        folder = bundle / member.folder
        own = read_manifest(folder)
        if own.checksum != member.checksum:
            raise BundleError(
                folder, "It is another bundle than the ensemble was made of. Make the ensemble again."
            )
        listed = {
            name.removeprefix(f"{member.folder}/"): record
            for name, record in manifest.files.items()
            if name.startswith(f"{member.folder}/")
        }
        listed.pop(MANIFEST_NAME, None)
        if listed != own.files:
            name = min(set(listed.items()) ^ set(own.files.items()), key=str)[0]
            raise BundleError(
                folder / name,
                "The ensemble and the member say different things of it. Make the ensemble again.",
            )
        manifests.append(own)
    return tuple(manifests)


def _inside(path: Path, bundle: Path) -> Sequence[Path]:
    return [parent for parent in path.parents if parent.is_relative_to(bundle) and parent != bundle]


def start(
    bundle: Path,
    manifest: Manifest,
    *,
    trust_code: bool = False,
    threads: int | None = None,
    here: Fingerprint | None = None,
) -> Running:
    """Return the first of the chosen recipe and its fallbacks that is right on this machine.

    A recipe is passed over when its engine is missing, when it would run code that the user has not
    said to trust, when its INT8 products would saturate here but did not where it was tuned, or when
    its golden outputs are not what they were. One `BundleWarning` says what was passed over and why.

    Args:
        bundle: verified folder.
        manifest: its manifest.
        trust_code: whether artifacts that are code (TorchScript, `.pt2`) may be loaded.
        threads: thread budget, as `thread_budget` has allowed it before any engine was imported: some pin the
            thread that imports them, and the affinity reads smaller then. None takes this machine's.
        here: this machine; None reads it.

    Raises:
        BundleError: no recipe of the bundle is right here; the reasons are listed.
    """
    here = fingerprint() if here is None else here
    budget = thread_budget() if threads is None else threads
    passed_over: list[str] = []
    golden = _read_golden(bundle / GOLDEN_NAME)
    for deployed in (manifest.chosen, *manifest.fallbacks):
        settings = fitted(deployed.settings, budget, tuned_for=manifest.machine.thread_budget)
        reason = _reason_against(deployed, manifest, here, trust_code=trust_code)
        if reason is None:
            try:
                session = _start_checked(bundle, manifest, deployed, settings, golden)
            except AlulaError as error:
                reason = str(error)
            else:
                if passed_over:
                    warnings.warn(
                        f"{bundle.name} runs as {deployed.recipe} here, not as {manifest.chosen.recipe}: "
                        + "; ".join(passed_over),
                        BundleWarning,
                        stacklevel=3,
                    )
                return Running(
                    deployed=deployed, settings=settings, session=session, passed_over=tuple(passed_over)
                )
        passed_over.append(f"{deployed.recipe}: {reason}")
    raise BundleError(bundle, "No recipe in it is right on this machine. " + " ".join(passed_over))


def _read_golden(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise BundleError(path, "It is no archive of arrays. Copy the bundle again.")
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(path, f"Its arrays cannot be read: {error}. Do not use the bundle.") from error


def _reason_against(
    deployed: Deployed, manifest: Manifest, here: Fingerprint, *, trust_code: bool
) -> str | None:
    try:
        # The engine knows whether its artifacts are code; the manifest's word may be a forger's.
        runs_code = deployed.runs_code or engine_named(deployed.recipe.partition("/")[0]).runs_code
    except AlulaError as error:
        return str(error)
    if runs_code and not trust_code:
        return (
            "loading it runs code from the bundle; say that you trust it with --trust-code (trust_code=True)"
        )
    if "/int8" in deployed.recipe and not int8_is_safe_here(manifest.machine, here):
        return "INT8 products saturate on this CPU and did not where it was tuned, so results would be wrong"
    if manifest.machine.arch != here.arch and runs_code:
        return f"it was made for {manifest.machine.arch}; this machine is {here.arch}"
    return None


def _start_checked(
    bundle: Path,
    manifest: Manifest,
    deployed: Deployed,
    settings: Settings,
    golden: dict[str, NDArray[np.generic]],
) -> Session:
    try:
        recipe = Recipe.parse(deployed.recipe)
    except ValueError as error:
        raise BundleError(bundle, f"It names a recipe that this release does not know: {error}.") from error
    session = engine_named(recipe.engine).load(
        bundle / deployed.artifact, recipe=recipe, signature=manifest.signature, settings=settings
    )
    try:
        missing = {*manifest.golden_inputs, *deployed.golden} - set(golden)
        if missing:
            raise BundleError(bundle / GOLDEN_NAME, f"It lacks the arrays {', '.join(sorted(missing))}.")
        inputs = tuple(golden[name] for name in manifest.golden_inputs)
        expected = tuple(golden[name] for name in deployed.golden)
        parts = run_in_batches(
            session, inputs, specs=manifest.signature.inputs, batch_size=settings.batch_size
        )
        outputs = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        if len(expected) != len(outputs):
            raise BundleError(
                bundle, f"{deployed.recipe} gave {len(outputs)} outputs; expected {len(expected)}."
            )
        difference = float(np.max([rms_difference(*pair) for pair in zip(expected, outputs, strict=True)]))
        limit = TOLERANCE[recipe.precision]
        if not difference <= limit:
            raise BundleError(
                bundle,
                f"golden outputs of {deployed.recipe} differ by {difference:.2g} here; "
                f"expected at most {limit:g}",
            )
    except BaseException:
        session.close()
        raise
    return session


def fitted(settings: Settings, budget: int, *, tuned_for: int) -> Settings:
    """Return settings that use a thread budget in the way these use theirs.

    Many narrow instances stay narrow, one wide instance stays one; what left threads idle when it was chosen
    leaves them idle here. Knobs are left out where anything changes: they were chosen for the threads that
    there were, and may be impossible with others.

    Args:
        settings: what was chosen.
        budget: threads that there are.
        tuned_for: threads that there were when the settings were chosen.

    >>> str(fitted(Settings(threads=1, instances=2, batch_size=8), 4, tuned_for=2))
    '4x1 threads, batch 8'
    >>> str(fitted(Settings(threads=2, instances=1, batch_size=8), 1, tuned_for=2))
    '1x1 threads, batch 8'
    >>> str(fitted(Settings(threads=1, instances=1, batch_size=1), 8, tuned_for=2))
    '1x1 threads, batch 1'
    """
    used = settings.total_threads
    if used == budget or used < min(tuned_for, budget):
        return settings
    if settings.instances > 1:
        threads = min(settings.threads, budget)
        return Settings(threads=threads, instances=max(1, budget // threads), batch_size=settings.batch_size)
    return Settings(threads=budget, instances=1, batch_size=settings.batch_size)
