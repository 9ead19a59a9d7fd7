"""The peaks of this machine, measured once and kept: what every speed is a share of."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from alula._version import __version__
from alula.core import Roofline, Share
from alula.hardware import fingerprint, read_memory
from alula.tuning import Child, ChildError, PeaksMeasured, PeaksRequest
from alula.tuning.roofline import SHORT

__all__ = ["cache_folder", "doubts", "keep_roofline", "kept_roofline", "roofline_here", "time_for_peaks_s"]

CACHE_VARIABLE = "ALULA_CACHE"
ROUNDS, ROUND_S = 6, 0.05
LIMIT_S = 30.0
LEAST_S = 12.0  # two CPUs took 6 to 9 s, processes and loading included
BUDGET_SHARE = 0.1
MEMORY_SHARE = 0.8
_ENGINES = ("numpy", "onnx", "onnxruntime", "openvino")  # what the peaks are measured by


def roofline_here(
    *,
    threads: int,
    limit_s: float = LIMIT_S,
    also: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Roofline | None:
    """Return the peaks of products here: those that were kept, or else measured now and kept.

    They are measured in a process of its own, through OpenVINO and ONNX Runtime, whatever engine they are
    held against later. None comes with its reason as a line of report.

    Args:
        threads: thread budget.
        limit_s: what measuring may take; 0 for what is kept only.
        also: a folder to keep them in too, for where there is no cache folder that can be written.
        report: gets lines of text about what is being done.
    """
    places = [place for place in (cache_folder(), also) if place is not None]
    known = kept_roofline(places, threads=threads)
    if known is not None or limit_s <= 0:
        return known
    report("measuring the machine's peaks, once")
    memory_limit_bytes = int(read_memory().available_bytes * MEMORY_SHARE) or 2**62
    request = PeaksRequest(threads=threads, workload=SHORT, rounds=ROUNDS, seconds=ROUND_S)
    with (
        tempfile.TemporaryDirectory(prefix="alula-peaks-") as scratch,
        Child(Path(scratch), "peaks", threads=threads, memory_limit_bytes=memory_limit_bytes) as child,
    ):
        try:
            found = child.ask(request, PeaksMeasured, timeout_s=limit_s).roofline
        except ChildError as error:
            report(f"the machine's peaks are not known, nor shares of them: {error}")
            return None
    keep_roofline(found, places)
    return found


def time_for_peaks_s(budget_s: float) -> float:
    """Return what measuring the peaks may take of a budget: a tenth, or 0 where that is not enough.

    >>> time_for_peaks_s(600.0), time_for_peaks_s(180.0), time_for_peaks_s(60.0)
    (30.0, 18.0, 0.0)
    """
    given_s = min(LIMIT_S, BUDGET_SHARE * budget_s)
    return given_s if given_s >= LEAST_S else 0.0


def kept_roofline(places: Sequence[Path], *, threads: int) -> Roofline | None:
    """Return the peaks that were measured on this machine with so many threads and these versions, if any.

    Args:
        places: folders to look in, in order.
        threads: thread budget.
    """
    for place in places:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((place / _file_name(threads)).read_bytes(), type=Roofline)
    return None


def keep_roofline(roofline: Roofline, places: Sequence[Path]) -> bool:
    """Return whether the peaks could be kept in any of some folders; each file is whole or absent.

    Of a peak that was kept before, the higher figure stays: what was reached once can be reached, and
    a measurement that was disturbed shall not undo one that was not.
    """
    kept = False
    for place in places:
        path = place / _file_name(roofline.threads)
        draft = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(
                msgspec.json.encode(_higher(roofline, kept_roofline([place], threads=roofline.threads)))
            )
            draft.replace(path)
            kept = True
    return kept


def _higher(new: Roofline, old: Roofline | None) -> Roofline:
    if old is None:
        return new
    peaks = ("fp32_gmacs_per_s", "bf16_gmacs_per_s", "int8_gmacs_per_s", "bandwidth_gb_per_s")
    figures = {name: (getattr(new, name), getattr(old, name)) for name in peaks}
    higher = {
        name: max((one for one in both if one is not None), default=None) for name, both in figures.items()
    }
    if all(higher[name] == getattr(new, name) for name in peaks):
        return new
    return msgspec.structs.replace(new, **higher, method=f"{new.method}; or earlier, where that was higher")


def cache_folder() -> Path | None:
    """Return the user's folder for what can be measured again: `$ALULA_CACHE`, or `alula` in the system's.

    None where the user has no home.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    system = os.environ.get("XDG_CACHE_HOME")
    if system and Path(system).is_absolute():  # others are to be ignored (XDG Base Directory Specification)
        return Path(system) / "alula"
    try:
        return Path.home() / ".cache" / "alula"
    except RuntimeError:
        return None


def doubts(shares: Sequence[tuple[str, Share]]) -> tuple[str, ...]:
    """Return a warning for shares above all of the peak, if there are any.

    Args:
        shares: with the names of what they are of.

    >>> doubts([("a", Share(share=0.9, of=("fp32",))), ("b", Share(share=1.25, of=("int8",)))])[0][:28]
    'b reached 125 % of INT8 peak'
    """
    above = [f"{name} reached {share}" for name, share in shares if share.too_high]
    if not above:
        return ()
    return (
        f"{'; '.join(above)}: no speed can be above the peak, so the machine was disturbed when the peak was "
        "measured; measure it again with `alula doctor --roofline`",
    )


def _file_name(threads: int) -> str:
    """Return the name of the file for this machine, these threads and these versions."""
    versions = {"alula": __version__}
    for name in _ENGINES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    # What a container leaves of memory does not matter to products, and its CPUs are the threads.
    machine = msgspec.structs.replace(fingerprint(), memory_bytes=0, thread_budget=0)
    key = msgspec.json.encode([machine, threads, versions], order="deterministic")
    return f"roofline-{hashlib.sha256(key).hexdigest()[:16]}.json"
