"""The fingerprint of a machine that goes into a bundle, and what it means that two of them differ."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from alula.hardware.cpu import int8_class, read_cpu
from alula.hardware.limits import read_limits, read_memory

__all__ = ["Fingerprint", "differences", "fingerprint", "int8_is_safe_here"]

# The kernel's own share of the memory changes by a few percent from one version to the next.
_MEMORY_TOLERANCE = 0.1


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine that a measurement was taken on.

    Attributes:
        arch: as in `Cpu`.
        vendor: as in `Cpu`.
        model_name: as in `Cpu`.
        isa: as in `Cpu`.
        physical_cores: as in `Cpu`.
        logical_cores: as in `Cpu`.
        thread_budget: threads that were used there, or could have been.
        memory_bytes: memory that a run could use there; 0 when unknown.
        os: name and version of the operating system and its C library.
        python: version of Python.
    """

    arch: str
    vendor: str
    model_name: str
    isa: tuple[str, ...]
    physical_cores: int
    logical_cores: int
    thread_budget: int
    memory_bytes: int
    os: str
    python: str


def fingerprint(root: Path = Path("/"), *, affinity: int | None = None) -> Fingerprint:
    """Return the fingerprint of this machine, within the limits of this process.

    Args:
        root: what to take for `/`.
        affinity: number of CPUs to assume; None asks the operating system.

    >>> here = fingerprint()
    >>> msgspec.json.decode(msgspec.json.encode(here), type=Fingerprint) == here
    True
    >>> differences(here, here)
    ()
    """
    cpu = read_cpu(root)
    return Fingerprint(
        arch=cpu.arch,
        vendor=cpu.vendor,
        model_name=cpu.model_name,
        isa=cpu.isa,
        physical_cores=cpu.physical_cores,
        logical_cores=cpu.logical_cores,
        thread_budget=read_limits(root, affinity=affinity).budget,
        memory_bytes=read_memory(root).total_bytes,
        os=platform.platform(),
        python=platform.python_version(),
    )


def differences(tuned_on: Fingerprint, here: Fingerprint) -> tuple[str, ...]:
    """Return in words what differs in a way that can change speed or results; empty when nothing does.

    Versions of the kernel, patch releases of Python and a tenth of the memory do not count.

    Args:
        tuned_on: the machine that a bundle was made on.
        here: this machine.
    """
    found: list[str] = []

    def compare(what: str, before: str, now: str) -> None:
        if before != now:
            found.append(f"{what}: tuned on {before}, here {now}")

    compare("architecture", tuned_on.arch, here.arch)
    compare(
        "CPU", f"{tuned_on.vendor} {tuned_on.model_name}".strip(), f"{here.vendor} {here.model_name}".strip()
    )
    if tuned_on.arch == here.arch:
        if missing := sorted(set(tuned_on.isa) - set(here.isa)):
            found.append(f"instruction sets missing here: {', '.join(missing)}")
        if gained := sorted(set(here.isa) - set(tuned_on.isa)):
            found.append(f"instruction sets only here: {', '.join(gained)}")
    compare(
        "cores",
        f"{tuned_on.physical_cores} physical and {tuned_on.logical_cores} logical",
        f"{here.physical_cores} physical and {here.logical_cores} logical",
    )
    compare("thread budget", str(tuned_on.thread_budget), str(here.thread_budget))
    if abs(tuned_on.memory_bytes - here.memory_bytes) > _MEMORY_TOLERANCE * tuned_on.memory_bytes:
        compare("memory", f"{tuned_on.memory_bytes / 1e9:.3g} GB", f"{here.memory_bytes / 1e9:.3g} GB")
    compare("operating system", tuned_on.os.partition("-")[0], here.os.partition("-")[0])
    compare("Python", _minor(tuned_on.python), _minor(here.python))
    return tuple(found)


def int8_is_safe_here(tuned_on: Fingerprint, here: Fingerprint) -> bool:
    """Return whether INT8 artifacts made there compute the same sums here.

    They do not when their weights use all 8 bits, because the kernels there do not saturate, and the kernels
    here do. On an x86 CPU whose instruction sets are unknown they are taken to saturate.

    Args:
        tuned_on: the machine that the artifact was made on.
        here: this machine.
    """
    kind = int8_class(here.isa)
    saturates_here = kind == "saturating" or (kind == "none" and here.arch == "x86_64")
    return not saturates_here or int8_class(tuned_on.isa) == "saturating"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
