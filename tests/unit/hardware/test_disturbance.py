from __future__ import annotations

import os

import pytest

from alula.hardware import Disturbance, describe_disturbance, stolen_share, take_snapshot

QUIET = Disturbance(cpus=2, tick_s=0.01, busy_s=100.0, stolen_s=1.0, throttled=5, throttled_s=0.5)


def after(**change: float) -> Disturbance:
    """The snapshot 10 s after QUIET, when the measured process had used 10 s of CPU time."""
    return Disturbance(
        cpus=2,
        tick_s=0.01,
        busy_s=100.0 + 10.0 + change.get("others_s", 0.0),
        stolen_s=1.0 + change.get("stolen_s", 0.0),
        throttled=5 + int(change.get("throttled", 0)),
        throttled_s=0.5 + change.get("throttled_s", 0.0),
    )


def describe(end: Disturbance) -> tuple[str, ...]:
    return describe_disturbance(QUIET, end, own_cpu_s=10.0, wall_s=10.0)


def test_snapshot_counts_time_and_throttling_of_the_group_and_its_ancestors(build):
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, wait, irq, soft, steal, guest = (tick * n for n in (7, 1, 2, 90, 5, 3, 4, 6, 7))
    root = build(
        {
            "/proc/stat": f"cpu  {user} {nice} {system} {idle} {wait} {irq} {soft} {steal} {guest} 0\n"
            "cpu0 1 0 0 0 0 0 0 0 0 0\ncpu1 1 0 0 0 0 0 0 0 0 0\nintr 5\nctxt 9\n",
            "/proc/loadavg": "1.76 1.63 0.93 1/93 6111\n",
            "/proc/self/cgroup": "1:cpu:/job\n0::/a/b\n",
            "/proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "/sys/fs/cgroup/cpu/job/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000\n",
            "/sys/fs/cgroup/unified/a/cpu.stat": "usage_usec 5\nnr_throttled 20\nthrottled_usec 250000\n",
            "/sys/fs/cgroup/unified/a/b/cpu.stat": "nr_throttled 8\nthrottled_usec 250000\n",
        }
    )
    snapshot = take_snapshot(root)
    assert snapshot.cpus == 2
    assert snapshot.busy_s == pytest.approx(7 + 1 + 2 + 3 + 4)  # guest time is inside user time
    assert snapshot.stolen_s == pytest.approx(6)
    assert (snapshot.throttled, snapshot.throttled_s) == (31, pytest.approx(2.0))
    assert snapshot.load_1m == 1.76


@pytest.mark.parametrize(
    "stat", ["", "cpu\n", "cpu 1 2\ncpu0 1 2\n", "intr 1 2 3 4 5\n", "cpux 1 2 3 4 5 6 7 8\n"]
)
def test_snapshot_without_counters_is_empty(build, stat):
    assert take_snapshot(build({"/proc/stat": stat})) == Disturbance()


def test_counters_of_a_very_old_kernel_have_no_steal(build):
    tick = os.sysconf("SC_CLK_TCK")
    root = build({"/proc/stat": f"cpu  {tick} 0 {tick} {tick}\ncpu0 1 0 1 1\n"})
    assert (take_snapshot(root).busy_s, take_snapshot(root).stolen_s) == (pytest.approx(2.0), 0.0)


def test_nothing_is_said_about_a_quiet_time():
    assert describe(after()) == ()
    assert describe(after(others_s=1.0, stolen_s=0.1)) == ()
    assert describe_disturbance(QUIET, after(others_s=9.0), own_cpu_s=10.0, wall_s=0.0) == ()


def test_steal_is_told_as_share_of_the_time_wanted():
    assert describe(after(stolen_s=10.0 * 12 / 88)) == ("12 % of the CPU time was stolen by the hypervisor",)


def test_the_share_of_stolen_time():
    assert stolen_share(QUIET, after(stolen_s=10.0 / 3)) == pytest.approx(0.25)
    assert stolen_share(QUIET, after(others_s=10.0, stolen_s=20.0 / 3)) == pytest.approx(0.25)
    assert stolen_share(QUIET, QUIET) == stolen_share(after(stolen_s=9.0), QUIET) == 0.0


def test_other_processes_are_told_in_cpus():
    assert describe(after(others_s=8.0)) == ("other processes used 0.8 of 2 CPUs",)
    one = Disturbance(cpus=1, busy_s=0.0)
    assert describe_disturbance(one, Disturbance(cpus=1, busy_s=5.0), own_cpu_s=0.0, wall_s=10.0) == (
        "other processes used 0.5 of 1 CPU",
    )


def test_a_short_time_is_not_judged_by_a_few_ticks():
    later = Disturbance(cpus=2, tick_s=0.01, busy_s=100.08, stolen_s=1.03, throttled=5, throttled_s=0.5)
    assert describe_disturbance(QUIET, later, own_cpu_s=0.05, wall_s=0.1) == ()


def test_throttling_is_told_with_its_time():
    assert describe(after(throttled=31, throttled_s=1.24)) == (
        "throttled 31 times by the CPU quota, 1.2 s in all over the CPUs",
    )
    assert describe(after(throttled=1, throttled_s=0.01))[0].startswith("throttled 1 time by")


def test_counters_that_ran_backwards_say_nothing():
    assert (
        describe_disturbance(after(others_s=9, stolen_s=9, throttled=9), QUIET, own_cpu_s=1, wall_s=1) == ()
    )


def test_load_counts_only_without_counters():
    blind = Disturbance(load_1m=3.14)
    assert describe_disturbance(blind, blind, own_cpu_s=1.0, wall_s=1.0) == (
        "the load average was 3.1 when the measurement began",
    )
    seeing = Disturbance(cpus=2, load_1m=3.14)
    assert describe_disturbance(seeing, seeing, own_cpu_s=0.0, wall_s=1.0) == ()


def test_several_at_once():
    assert len(describe(after(others_s=5.0, stolen_s=4.0, throttled=2))) == 3
