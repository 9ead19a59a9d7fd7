from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alula.errors import UsageError
from alula.hardware import (
    describe_disturbance,
    read_cpu,
    read_limits,
    read_memory,
    take_snapshot,
    thread_budget,
)

GIB = 1024**3
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"
V1_MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
"""
HYBRID_MOUNTS = V1_MOUNTS + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V2_MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
CPU1 = "/sys/fs/cgroup/cpu,cpuacct"


def v1_quota(folder: str, quota: int | str, period: int | str = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


def test_no_cgroups_means_no_quota(build):
    limits = read_limits(build({}), affinity=3)
    assert (limits.affinity, limits.quota, limits.budget) == (3, None, 3)
    assert limits.source == "no CPU quota found"


def test_v2_quota_says_where_it_stands(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/user.slice/app.scope\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/user.slice/app.scope/cpu.max": "150000 100000\n",
        }
    )
    limits = read_limits(root, affinity=2)
    assert limits.quota == 1.5
    assert limits.budget == 1
    assert limits.source == "cgroup v2 /sys/fs/cgroup/user.slice/app.scope/cpu.max: 150000 of 100000 us"


def test_v2_tighter_ancestor_wins_over_the_group_and_its_period_counts(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/a/b/c\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/a/cpu.max": "110000 50000\n",
            "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "/sys/fs/cgroup/a/b/c/cpu.max": "400000 100000\n",
            "/sys/fs/cgroup/a/sibling/cpu.max": "1000 100000\n",
        }
    )
    limits = read_limits(root, affinity=8)
    assert limits.quota == pytest.approx(2.2)
    assert "/sys/fs/cgroup/a/cpu.max" in limits.source
    assert limits.budget == 2


def test_v1_nested_quota(build):
    root = build(
        {
            "/proc/self/cgroup": "9:name=systemd:/x\n5:cpu,cpuacct:/outer/inner\n4:memory:/m\n3:cpuset:/x\n",
            "/proc/self/mountinfo": V1_MOUNTS,
            **v1_quota(CPU1, -1),
            **v1_quota(f"{CPU1}/outer", 300_000),
            **v1_quota(f"{CPU1}/outer/inner", -1),
            **v1_quota(f"{CPU1}/x", 1_000),
            "/sys/fs/cgroup/systemd/outer/inner/cgroup.procs": "1\n",
        }
    )
    limits = read_limits(root, affinity=4)
    assert limits.quota == 3.0
    assert limits.budget == 3
    assert limits.source == f"cgroup v1 {CPU1}/outer/cpu.cfs_quota_us: 300000 of 100000 us"


@pytest.mark.parametrize("where", ["v1", "v2"])
def test_hybrid_reads_both_versions(build, where):
    root = build(
        {
            "/proc/self/cgroup": "4:memory:/\n1:cpu,cpuacct:/job\n0::/job.scope\n",
            "/proc/self/mountinfo": HYBRID_MOUNTS,
            **v1_quota(f"{CPU1}/job", 200_000 if where == "v1" else -1),
            "/sys/fs/cgroup/unified/job.scope/cpu.max": "max 100000" if where == "v1" else "200000 100000",
        }
    )
    limits = read_limits(root, affinity=4)
    assert limits.quota == 2.0
    assert limits.source.startswith(f"cgroup {where} ")


def test_docker_v1_mount_shows_only_the_own_group(build):
    group = "/docker/4f1c"
    root = build(
        {
            "/proc/self/cgroup": f"1:cpu,cpuacct:{group}\n",
            "/proc/self/mountinfo": V1_MOUNTS.replace("0:29 / /sys", f"0:29 {group} /sys"),
            **v1_quota(CPU1, 250_000),
        }
    )
    limits = read_limits(root, affinity=4)
    assert (limits.quota, limits.budget) == (2.5, 2)


def test_docker_v1_group_below_the_mounted_one(build):
    root = build(
        {
            "/proc/self/cgroup": "1:cpu,cpuacct:/docker/4f1c/worker\n",
            "/proc/self/mountinfo": V1_MOUNTS.replace("0:29 / /sys", "0:29 /docker/4f1c /sys"),
            **v1_quota(CPU1, 250_000),
            **v1_quota(f"{CPU1}/worker", 120_000),
        }
    )
    assert read_limits(root, affinity=4).quota == 1.2


def test_docker_v2_with_its_own_namespace(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/cpu.max": "50000 100000\n",
        }
    )
    limits = read_limits(root, affinity=4)
    assert (limits.quota, limits.budget) == (0.5, 1)


def test_kubernetes_host_path_that_is_not_visible_falls_back_to_the_mount_point(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/kubepods.slice/pod12.slice/cri-77.scope\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/cpu.max": "300000 100000\n",
        }
    )
    assert read_limits(root, affinity=8).quota == 3.0


def test_kubernetes_pod_limit_below_the_container_limit(build):
    pod = "/sys/fs/cgroup/kubepods.slice/pod12.slice"
    root = build(
        {
            "/proc/self/cgroup": "0::/kubepods.slice/pod12.slice/cri-77.scope\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            f"{pod}/cpu.max": "100000 100000\n",
            f"{pod}/cri-77.scope/cpu.max": "200000 100000\n",
        }
    )
    assert read_limits(root, affinity=8).quota == 1.0


def test_host_path_with_only_its_lower_part_visible(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/host.slice/box/app\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/app/cpu.max": "200000 100000\n",
            "/sys/fs/cgroup/cpu.max": "max 100000\n",
        }
    )
    assert read_limits(root, affinity=8).quota == 2.0


def test_host_groups_bound_into_a_namespace_are_searched_for_this_process(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/app\n",
            "/proc/self/mountinfo": V2_MOUNTS.replace("0:26 / /sys", "0:26 /../.. /sys"),
            "/sys/fs/cgroup/docker/one/app/cgroup.procs": "1\n",
            "/sys/fs/cgroup/docker/one/app/cpu.max": "100000 100000\n",
            "/sys/fs/cgroup/docker/two/app/cgroup.procs": f"7\n{os.getpid()}\n",
            "/sys/fs/cgroup/docker/two/app/cpu.max": "300000 100000\n",
            "/sys/fs/cgroup/docker/cpu.max": "600000 100000\n",
        }
    )
    assert read_limits(root, affinity=8).quota == 3.0


def test_of_two_mounts_the_one_that_shows_the_group_counts(build):
    other = "29 23 0:26 /other /mnt/other\\040box rw - cgroup2 cgroup2 rw\n"
    root = build(
        {
            "/proc/self/cgroup": "0::/mine\n",
            "/proc/self/mountinfo": other + V2_MOUNTS,
            "/mnt/other box/mine/cpu.max": "10000 100000\n",
            "/sys/fs/cgroup/mine/cpu.max": "200000 100000\n",
        }
    )
    assert read_limits(root, affinity=8).quota == 2.0


def test_of_two_good_mounts_the_one_with_more_ancestors_counts_and_spaces_are_read(build):
    deep = "29 23 0:26 /a/b /mnt/deep rw - cgroup2 cgroup2 rw\n"
    whole = "30 23 0:26 / /mnt/all\\040groups rw - cgroup2 cgroup2 rw\n"
    root = build(
        {
            "/proc/self/cgroup": "0::/a/b\n",
            "/proc/self/mountinfo": deep + whole,
            "/mnt/deep/cpu.max": "400000 100000\n",
            "/mnt/all groups/a/cpu.max": "100000 100000\n",
            "/mnt/all groups/a/b/cpu.max": "400000 100000\n",
        }
    )
    limits = read_limits(root, affinity=8)
    assert limits.quota == 1.0
    assert "/mnt/all groups/a/cpu.max" in limits.source


def test_group_outside_the_namespace_is_not_mistaken(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/../elsewhere\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/elsewhere/cpu.max": "10000 100000\n",
            "/sys/fs/cgroup/cpu.max": "200000 100000\n",
        }
    )
    assert read_limits(root, affinity=8).quota == 2.0


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ("max 100000\n", None),
        ("max\n", None),
        ("", None),
        ("-1 100000", None),
        ("0 100000", None),
        ("100000 0", None),
        ("100000 soon", None),
        ("1e5 100000", None),
        ("9" * 30 + " 1", None),
        ("250000", 2.5),  # the period may be left out
        ("50000 25000 extra", 2.0),
    ],
)
def test_v2_quota_forms(build, content, quota):
    root = build(
        {
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/cpu.max": content,
        }
    )
    assert read_limits(root, affinity=2).quota == quota


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [(-1, 100_000, None), ("", "", None), ("x", 100_000, None), (100_000, 0, None), (75_000, 50_000, 1.5)],
)
def test_v1_quota_forms(build, quota, period, expected):
    root = build(
        {
            "/proc/self/cgroup": "1:cpu,cpuacct:/\n",
            "/proc/self/mountinfo": V1_MOUNTS,
            **v1_quota(CPU1, quota, period),
        }
    )
    assert read_limits(root, affinity=2).quota == expected


@pytest.mark.parametrize(
    ("affinity", "quota_us", "budget"),
    [(2, 150_000, 1), (2, 300_000, 2), (8, 799_999, 7), (8, 800_000, 8), (1, 10_000, 1)],
)
def test_budget_is_the_floor_of_the_smaller_and_at_least_one(build, affinity, quota_us, budget):
    root = build(
        {
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/cpu.max": f"{quota_us} 100000",
        }
    )
    assert thread_budget(root=root, affinity=affinity) == budget


def test_override_may_exceed_the_quota_but_not_the_affinity(build):
    root = build(
        {
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/cpu.max": "200000 100000",
        }
    )
    assert thread_budget(1, root=root, affinity=4) == 1
    assert thread_budget(4, root=root, affinity=4) == 4
    for wrong in (0, -1, 5):
        with pytest.raises(UsageError) as caught:
            thread_budget(wrong, root=root, affinity=4)
        assert str(caught.value) == (
            f"The number of threads cannot be {wrong}. Expected 1 to 4, the CPUs that this process may "
            "run on. Leave it out to use 2."
        )


def test_memory_without_a_limit(build):
    memory = read_memory(build({"/proc/meminfo": MEMINFO}))
    assert (memory.total_bytes, memory.available_bytes) == (16 * GIB, 8 * GIB)
    assert memory.source == "/proc/meminfo"


def test_memory_of_an_old_kernel_without_available(build):
    meminfo = "MemTotal: 4194304 kB\nMemFree: 1048576 kB\nBuffers: 1024 kB\nCached: 1047552 kB\n"
    assert read_memory(build({"/proc/meminfo": meminfo})).available_bytes == 2 * GIB


def test_memory_v2_limit_of_an_ancestor_less_idle_cache(build):
    root = build(
        {
            "/proc/meminfo": MEMINFO,
            "/proc/self/cgroup": "0::/pod/box\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
            "/sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
            "/sys/fs/cgroup/pod/memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\n",
            "/sys/fs/cgroup/pod/box/memory.max": "max\n",
            "/sys/fs/cgroup/pod/box/memory.current": f"{GIB}\n",
        }
    )
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 2 * GIB)
    assert memory.source == "cgroup v2 /sys/fs/cgroup/pod/memory.max"


def test_memory_v2_high_slows_before_max(build):
    root = build(
        {
            "/proc/meminfo": MEMINFO,
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": V2_MOUNTS,
            "/sys/fs/cgroup/memory.max": f"{4 * GIB}",
            "/sys/fs/cgroup/memory.high": f"{3 * GIB}",
            "/sys/fs/cgroup/memory.current": f"{5 * GIB}",
        }
    )
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (3 * GIB, 0)


@pytest.mark.parametrize(("limit", "total"), [(2 * GIB, 2 * GIB), (9223372036854771712, 16 * GIB)])
def test_memory_v1(build, limit, total):
    folder = "/sys/fs/cgroup/memory"
    root = build(
        {
            "/proc/meminfo": MEMINFO,
            "/proc/self/cgroup": "4:memory:/box\n",
            "/proc/self/mountinfo": V1_MOUNTS,
            f"{folder}/box/memory.limit_in_bytes": f"{limit}\n",
            f"{folder}/box/memory.usage_in_bytes": f"{GIB}\n",
            f"{folder}/box/memory.stat": f"cache {GIB}\ntotal_inactive_file {GIB // 2}\n",
        }
    )
    memory = read_memory(root)
    assert memory.total_bytes == total
    assert memory.available_bytes == (3 * GIB // 2 if limit == total else 8 * GIB)


def test_memory_of_a_mac_and_of_nothing(build):
    assert read_memory(system="darwin", sysctl=lambda: "hw.memsize: 8589934592\n").total_bytes == 8 * GIB
    assert read_memory(system="darwin", sysctl=lambda: "").total_bytes == 0
    assert read_memory(build({})).source == "unknown"


FRAGMENTS = [
    *(
        "0::/",
        "1:cpu:/a",
        "a/..",
        "..",
        "/",
        " ",
        ":",
        "\n",
        "\\777",
        "\x00",
        "²",
        "nan",
        "max",
        "-1",
        "100000",
    ),
    *(" - ", "cgroup2 cgroup2 rw", "cgroup cgroup rw,cpu", "30 23 0:26 / /sys/fs/cgroup rw", "9" * 25),
    *("cpu ", "cpu0", "processor: 0\n", "flags: avx2", "Features: asimd", "MemTotal: 5 kB"),
]
TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(FRAGMENTS),
        max_size=12,
    ).map("".join),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=9, max_size=9))
def test_no_content_of_these_files_can_make_it_raise(build, texts):
    names = ["self/cgroup", "self/mountinfo", "cpuinfo", "stat", "meminfo", "loadavg"]
    groups = ["cpu.max", "cpu.cfs_quota_us", "memory.max"]
    paths = [f"/proc/{name}" for name in names] + [f"/sys/fs/cgroup/{name}" for name in groups]
    root = build(dict(zip(paths, texts, strict=True)))
    limits = read_limits(root, affinity=4)
    assert 1 <= limits.budget <= 4
    memory = read_memory(root)
    assert 0 <= memory.available_bytes <= memory.total_bytes
    assert read_cpu(root, system="linux").logical_cores >= 1
    before = take_snapshot(root)
    assert describe_disturbance(before, before, own_cpu_s=0.0, wall_s=1.0) is not None


def test_a_mount_point_that_cannot_be_a_path_counts_as_absent(build):
    mounts = V2_MOUNTS.replace("/sys/fs/cgroup", "/sys/\\000")  # unescapes to a NUL
    root = build({"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": mounts})
    assert read_limits(root, affinity=2).quota is None


def test_an_unreadable_file_counts_as_absent(build):
    root = build({"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": V2_MOUNTS})
    (root / "sys/fs/cgroup/cpu.max").mkdir(parents=True)  # reading a folder fails, whoever the user is
    (root / "proc/meminfo").mkdir()
    assert read_limits(root, affinity=2).quota is None
    assert read_memory(root).total_bytes == 0


# The real kernel.

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="control groups and affinity are Linux' own")
REPORT = """
import json, os, sys, time
from pathlib import Path
for folder in sys.argv[1:]:
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
from alula.hardware import describe_disturbance, read_limits, take_snapshot, thread_budget
limits = read_limits()
before, start, used = take_snapshot(), time.perf_counter(), time.process_time()
while len(sys.argv) > 1 and time.process_time() - used < 0.15:
    pass
said = describe_disturbance(
    before, take_snapshot(), own_cpu_s=time.process_time() - used, wall_s=time.perf_counter() - start
)
print(json.dumps([limits.affinity, limits.quota, limits.source, thread_budget(), said]))
"""


def read_controllers(v2_mount: Path) -> list[str]:
    return (v2_mount / "cgroup.controllers").read_text().split()


@pytest.fixture
def quota_group() -> Iterator[Path]:
    """A real group with a quota of 0.3 CPUs in 20 ms periods; what is given is an unlimited group in it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    folder = next(
        (
            Path(point) / path.lstrip("/")
            for _, point, kind, options, *_ in mounts
            for _, controllers, path in own
            if (Path(point) / path.lstrip("/")).is_dir()
            and (
                (kind == "cgroup" and "cpu" in options.split(",") and "cpu" in controllers.split(","))
                or (kind == "cgroup2" and not controllers and "cpu" in read_controllers(Path(point)))
            )
        ),
        None,
    )
    if folder is None:
        pytest.skip("no cgroup mount with the cpu controller is visible here")
    outer = folder / f"alula-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
        if (outer / "cpu.max").exists():
            (outer / "cpu.max").write_text("6000 20000")
        else:
            (outer / "cpu.cfs_period_us").write_text("20000")
            (outer / "cpu.cfs_quota_us").write_text("6000")
    except OSError as error:
        for made in (inner, outer):
            if made.exists():
                made.rmdir()
        pytest.skip(f"this user may not make a control group with a quota: {error}")
    yield inner
    inner.rmdir()
    outer.rmdir()


def run_report(*groups: Path) -> tuple[int, float | None, str, int, list[str]]:
    command = [sys.executable, "-c", REPORT, *map(str, groups)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    affinity, quota, source, budget, said = json.loads(done.stdout)
    return affinity, quota, source, budget, said


@linux_only
def test_real_quota_of_a_parent_group_is_found_and_its_throttling_told(quota_group):
    _, quota, source, budget, said = run_report(quota_group)
    assert quota == 0.3
    assert str(quota_group.parent) in source
    assert budget == 1
    assert any("by the CPU quota" in sentence for sentence in said)


@linux_only
def test_real_affinity_bounds_the_budget():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        affinity, _, _, budget, _ = run_report()
        assert (affinity, budget) == (1, 1)
        assert thread_budget() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert read_limits().affinity == len(allowed)
