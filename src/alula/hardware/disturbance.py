"""What disturbed a measurement: time stolen by a hypervisor, throttling by the quota, other processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from alula.hardware.cgroups import read_groups
from alula.hardware.kernel_files import read_pairs, read_text, whole_number

__all__ = ["Disturbance", "describe_disturbance", "stolen_share", "take_snapshot"]

# Below these the disturbance is smaller than the spread of repeated rounds on a quiet machine.
_STOLEN_SHARE = 0.02
_OTHERS_SHARE = 0.1


class Disturbance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counters of one moment; two of them around a measurement say what disturbed it.

    Attributes:
        cpus: logical CPUs that the counters cover; 0 when there are no counters.
        tick_s: resolution of `busy_s` and `stolen_s` on each CPU.
        busy_s: CPU time used by all processes since boot, over all CPUs.
        stolen_s: time that CPUs wanted to run and the hypervisor ran something else.
        throttled: times that the quota of this process' control group, or of an ancestor, stopped it.
        throttled_s: how long in all, summed over CPUs.
        load_1m: processes running or waiting, averaged over the last minute; 0 when unknown. It says less
            than the counters (it contains what this process did itself), so it counts only without them.
    """

    cpus: int = 0
    tick_s: float = 0.0
    busy_s: float = 0.0
    stolen_s: float = 0.0
    throttled: int = 0
    throttled_s: float = 0.0
    load_1m: float = 0.0


def take_snapshot(root: Path = Path("/")) -> Disturbance:
    """Return the counters of this moment; those that this system does not keep stay 0.

    Reads /proc/stat, /proc/loadavg and `cpu.stat` of the process' control group and its ancestors. Takes
    well under a millisecond.

    Args:
        root: what to take for `/`.
    """
    cpus, tick_s, busy_s, stolen_s = _read_cpu_times(root)
    throttled, throttled_s = 0, 0.0
    for group in read_groups("cpu", root):
        stat = read_pairs(group.folder / "cpu.stat")
        throttled += stat.get("nr_throttled", 0)
        throttled_s += stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9
    return Disturbance(
        cpus=cpus,
        tick_s=tick_s,
        busy_s=busy_s,
        stolen_s=stolen_s,
        throttled=throttled,
        throttled_s=throttled_s,
        load_1m=_read_load(root),
    )


def stolen_share(before: Disturbance, after: Disturbance) -> float:
    """Return the share of the CPU time wanted between two snapshots that the hypervisor gave to others.

    0 where nothing was wanted or the system does not tell; exact to a tick of each CPU at either end.

    >>> stolen_share(Disturbance(busy_s=10.0), Disturbance(busy_s=13.0, stolen_s=1.0))
    0.25
    """
    busy_s = max(0.0, after.busy_s - before.busy_s)
    stolen_s = max(0.0, after.stolen_s - before.stolen_s)
    return stolen_s / (busy_s + stolen_s) if stolen_s else 0.0


def describe_disturbance(
    before: Disturbance, after: Disturbance, *, own_cpu_s: float, wall_s: float
) -> tuple[str, ...]:
    """Return what disturbed the time between two snapshots, in words; empty when nothing worth saying did.

    Args:
        before: taken when the measurement began.
        after: taken when it ended.
        own_cpu_s: CPU time that the measured processes used in between, children included.
        wall_s: time in between.

    >>> quiet = Disturbance(cpus=2, busy_s=100.0)
    >>> busy = Disturbance(cpus=2, busy_s=118.0)
    >>> describe_disturbance(quiet, busy, own_cpu_s=10.0, wall_s=10.0)
    ('other processes used 0.8 of 2 CPUs',)
    """
    if wall_s <= 0:
        return ()
    found: list[str] = []
    if not before.cpus and before.load_1m >= 1:
        found.append(f"the load average was {before.load_1m:.1f} when the measurement began")
    cpus = min(before.cpus, after.cpus)
    # Each counter may be one tick behind on each CPU at either end.
    blur_s = 2 * cpus * after.tick_s
    busy_s = max(0.0, after.busy_s - before.busy_s)
    stolen_s = max(0.0, after.stolen_s - before.stolen_s)
    share = stolen_share(before, after)
    if cpus and stolen_s > blur_s and share >= _STOLEN_SHARE:
        found.append(f"{100 * share:.0f} % of the CPU time was stolen by the hypervisor")
    times = after.throttled - before.throttled
    if times > 0:
        held_s = max(0.0, after.throttled_s - before.throttled_s)
        found.append(
            f"throttled {times} {'time' if times == 1 else 'times'} by the CPU quota, "
            f"{held_s:.2g} s in all over the CPUs"
        )
    others = (busy_s - own_cpu_s) / wall_s
    if cpus and others - blur_s / wall_s >= _OTHERS_SHARE * cpus:
        found.append(f"other processes used {others:.1f} of {cpus} {'CPU' if cpus == 1 else 'CPUs'}")
    return tuple(found)


def _read_cpu_times(root: Path) -> tuple[int, float, float, float]:
    """Return number of CPUs, seconds per tick, busy seconds and stolen seconds from /proc/stat."""
    lines = [line.split() for line in read_text(root / "proc/stat").splitlines() if line.startswith("cpu")]
    ticks = [whole_number(field) or 0 for line in lines[:1] if line[0] == "cpu" for field in line[1:]]
    if len(ticks) < 4 or len(lines) < 2:
        return 0, 0.0, 0.0, 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (*ticks, 0, 0, 0, 0)  # steal: since 2.6.11
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    # Guest time is already part of user and nice.
    return len(lines) - 1, tick_s, (user + nice + system + irq + softirq) * tick_s, steal * tick_s


def _read_load(root: Path) -> float:
    if sys.platform == "darwin":
        return os.getloadavg()[0]
    fields = read_text(root / "proc/loadavg").split()
    try:
        return float(fields[0]) if fields else 0.0
    except ValueError:
        return 0.0
