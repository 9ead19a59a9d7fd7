"""What this process may use: threads (affinity and CPU quota) and memory (machine and cgroup limit)."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from alula.errors import UsageError
from alula.hardware.cgroups import Group, read_groups
from alula.hardware.kernel_files import read_pairs, read_sysctl, read_text, whole_number

__all__ = ["CpuLimits", "Memory", "read_limits", "read_memory", "thread_budget"]

_DEFAULT_PERIOD_US = 100_000  # the kernel's, where cpu.max names a quota alone


class CpuLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many CPUs this process may use.

    Attributes:
        affinity: logical CPUs that the scheduler may place it on (taskset, cpuset, `docker --cpuset-cpus`).
        quota: CPUs' worth of time that the tightest of its control groups grants (`docker --cpus`,
            Kubernetes `limits.cpu`); None for no quota.
        source: where the quota was read, with the values found there, or that there is none.

    >>> CpuLimits(affinity=4, quota=2.5, source="cgroup v2").budget
    2
    >>> CpuLimits(affinity=4, quota=0.5, source="cgroup v2").budget
    1
    """

    affinity: int
    quota: float | None = None
    source: str = "no CPU quota found"

    @property
    def budget(self) -> int:
        """Threads that can compute at once without being throttled: floor(min(affinity, quota)), 1 at least.

        Rounded down, because one thread too many makes the kernel stop all of them for the rest of each
        period, which costs more than the fraction of a CPU left unused.
        """
        allowed = float(self.affinity) if self.quota is None else min(self.affinity, self.quota)
        return max(1, math.floor(allowed))


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much memory this process may use.

    Attributes:
        total_bytes: of the machine, or the limit of the tightest control group; 0 when unknown.
        available_bytes: that can be taken now without swapping or reaching a limit; 0 when unknown.
        source: where the total was read.
    """

    total_bytes: int
    available_bytes: int
    source: str


def read_limits(root: Path = Path("/"), *, affinity: int | None = None) -> CpuLimits:
    """Return the affinity and the tightest CPU quota of this process' control group and its ancestors.

    Reads cgroup v2 `cpu.max` and v1 `cpu.cfs_quota_us` / `cpu.cfs_period_us`, both in hybrid layouts.

    Args:
        root: what to take for `/`.
        affinity: number of CPUs to assume; None asks the operating system about the calling thread. Some
            OpenMP settings pin the main thread on load, so ask before an engine is imported.
    """
    cpus = _count_allowed_cpus() if affinity is None else affinity
    quotas = list(_read_quotas(root))
    if not quotas:
        return CpuLimits(affinity=cpus)
    quota, source = min(quotas)
    return CpuLimits(affinity=cpus, quota=quota, source=source)


def thread_budget(override: int | None = None, *, root: Path = Path("/"), affinity: int | None = None) -> int:
    """Return how many threads all parts of a run may use together, at least 1.

    Args:
        override: what the user asked for. It may exceed the quota (a measurement then says that it was
            throttled), never the affinity.
        root: what to take for `/`.
        affinity: number of CPUs to assume; None asks the operating system.

    Raises:
        UsageError: `override` is below 1 or above the affinity.

    >>> thread_budget(1)
    1
    """
    limits = read_limits(root, affinity=affinity)
    if override is None:
        return limits.budget
    if not 1 <= override <= limits.affinity:
        raise UsageError(
            f"The number of threads cannot be {override}. Expected 1 to {limits.affinity}, the CPUs that "
            f"this process may run on. Leave it out to use {limits.budget}."
        )
    return override


def read_memory(
    root: Path = Path("/"), *, system: str = sys.platform, sysctl: Callable[[], str] = read_sysctl
) -> Memory:
    """Return total and available memory, whichever is tighter of the machine's and the control groups'.

    Page cache that nobody used lately counts as available in a control group, as in Kubernetes' working set.
    On macOS the available memory is not read and equals the total.

    Args:
        root: what to take for `/`.
        system: `sys.platform` of the machine.
        sysctl: gives the output of `sysctl -a`; called on macOS only.
    """
    if system == "darwin":
        for line in sysctl().splitlines():
            name, _, value = line.partition(":")
            if name == "hw.memsize" and (size := whole_number(value)) is not None:
                return Memory(total_bytes=size, available_bytes=size, source="sysctl hw.memsize")
        return Memory(total_bytes=0, available_bytes=0, source="unknown")

    meminfo = read_pairs(root / "proc/meminfo")  # in KiB
    total = meminfo.get("MemTotal", 0) * 1024
    free = meminfo.get("MemFree", 0) + meminfo.get("Buffers", 0) + meminfo.get("Cached", 0)
    available = meminfo.get("MemAvailable", free) * 1024  # MemAvailable: Linux 3.14 and newer
    source = "/proc/meminfo" if total else "unknown"
    for group in read_groups("memory", root):
        for limit, name in _read_memory_limits(group):
            room = max(0, limit - _read_used_bytes(group))
            available = room if not total else min(available, room)
            if not total or limit < total:
                total, source = limit, f"cgroup v{group.version} {group.shown / name}"
    return Memory(total_bytes=total, available_bytes=min(available, total), source=source)


def _count_allowed_cpus() -> int:
    """Return the number of logical CPUs that the calling thread may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:  # noqa: RET505 - without it mypy calls the rest unreachable
        return os.cpu_count() or 1


def _read_quotas(root: Path) -> Iterator[tuple[float, str]]:
    """Yield each quota in CPUs with where it stands."""
    for group in read_groups("cpu", root):
        if group.version == 2:
            name = "cpu.max"
            values = read_text(group.folder / name).split()
        else:
            name = "cpu.cfs_quota_us"
            values = [read_text(group.folder / file).strip() for file in (name, "cpu.cfs_period_us")]
        quota_us = whole_number(values[0]) if values else None
        period_us = whole_number(values[1]) if len(values) > 1 and values[1] else _DEFAULT_PERIOD_US
        if quota_us and period_us:
            shown = group.shown / name
            yield quota_us / period_us, f"cgroup v{group.version} {shown}: {quota_us} of {period_us} us"


def _read_memory_limits(group: Group) -> Iterator[tuple[int, str]]:
    """Yield each limit in bytes with the name of its file."""
    # Above memory.high the kernel does not kill but slows a process until it has given memory back.
    names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
    for name in names:
        limit = whole_number(read_text(group.folder / name))
        if limit:
            yield limit, name


def _read_used_bytes(group: Group) -> int:
    """Return what the group holds, less the page cache that can be dropped at once."""
    usage_file, cache_field = (
        ("memory.current", "inactive_file")
        if group.version == 2
        else ("memory.usage_in_bytes", "total_inactive_file")
    )
    used = whole_number(read_text(group.folder / usage_file)) or 0
    return max(0, used - read_pairs(group.folder / "memory.stat").get(cache_field, 0))
