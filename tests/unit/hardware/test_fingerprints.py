from __future__ import annotations

import msgspec
import pytest

from alula.hardware import Fingerprint, differences, fingerprint, int8_is_safe_here

XEON = Fingerprint(
    arch="x86_64",
    vendor="Intel",
    model_name="Xeon 8375C",
    isa=("avx2", "avx512_vnni", "avx512f"),
    physical_cores=4,
    logical_cores=8,
    thread_budget=4,
    memory_bytes=16_000_000_000,
    os="Linux-6.1.0-x86_64-with-glibc2.36",
    python="3.11.7",
)


def changed(**fields: object) -> Fingerprint:
    return msgspec.structs.replace(XEON, **fields)


def test_fingerprint_of_a_simulated_machine(build):
    root = build(
        {
            "/proc/cpuinfo": "processor: 0\nvendor_id: GenuineIntel\nmodel name: Xeon\nflags: avx2 fma\n",
            "/proc/meminfo": "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n",
            "/proc/self/cgroup": "0::/\n",
            "/proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "/sys/fs/cgroup/cpu.max": "250000 100000",
            "/sys/fs/cgroup/memory.max": str(1024**3),
        }
    )
    found = fingerprint(root, affinity=4)
    assert (found.vendor, found.model_name, found.isa) == ("Intel", "Xeon", ("avx2", "fma"))
    assert (found.thread_budget, found.memory_bytes) == (2, 1024**3)
    assert found.os
    assert found.python.count(".") == 2


def test_json_round_trip_and_strictness():
    text = msgspec.json.encode(XEON)
    assert msgspec.json.decode(text, type=Fingerprint) == XEON
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text.replace(b'"isa"', b'"flags"'), type=Fingerprint)


@pytest.mark.parametrize(
    ("here", "sentence"),
    [
        (changed(model_name="Xeon 8480"), "CPU: tuned on Intel Xeon 8375C, here Intel Xeon 8480"),
        (changed(isa=("avx2",)), "instruction sets missing here: avx512_vnni, avx512f"),
        (changed(isa=(*XEON.isa, "amx_int8")), "instruction sets only here: amx_int8"),
        (
            changed(physical_cores=8),
            "cores: tuned on 4 physical and 8 logical, here 8 physical and 8 logical",
        ),
        (changed(thread_budget=1), "thread budget: tuned on 4, here 1"),
        (changed(memory_bytes=8_000_000_000), "memory: tuned on 16 GB, here 8 GB"),
        (changed(os="macOS-15.1-arm64-arm-64bit"), "operating system: tuned on Linux, here macOS"),
        (changed(python="3.13.0"), "Python: tuned on 3.11, here 3.13"),
    ],
)
def test_each_difference_in_words(here, sentence):
    assert differences(XEON, here) == (sentence,)


def test_another_architecture_is_not_listed_flag_by_flag():
    arm = changed(arch="aarch64", vendor="Arm", model_name="Neoverse-V1", isa=("neon",))
    assert differences(XEON, arm) == (
        "architecture: tuned on x86_64, here aarch64",
        "CPU: tuned on Intel Xeon 8375C, here Arm Neoverse-V1",
    )


def test_what_does_not_matter_is_not_told():
    here = changed(memory_bytes=15_500_000_000, os="Linux-6.18.1-x86_64-with-glibc2.41", python="3.11.9")
    assert differences(XEON, here) == ()


@pytest.mark.parametrize(
    ("tuned_isa", "arch", "here_isa", "safe"),
    [
        (("avx512_vnni", "avx2"), "x86_64", ("avx2",), False),
        (("amx_int8", "avx512_vnni"), "x86_64", ("avx2",), False),
        (("neon", "i8mm"), "x86_64", ("avx2",), False),
        (("avx512_vnni",), "x86_64", (), False),  # nothing known about an x86 CPU
        ((), "x86_64", ("avx2",), False),  # nothing known about how the weights were made
        (("avx2",), "x86_64", ("avx2",), True),
        (("avx2",), "x86_64", ("avx512_vnni", "avx2"), True),
        (("avx512_vnni",), "x86_64", ("avx_vnni", "avx2"), True),
        (("avx512_vnni",), "x86_64", ("amx_int8", "avx512_vnni"), True),
        (("avx512_vnni",), "aarch64", ("neon",), True),
    ],
)
def test_int8_moves_only_where_it_computes_the_same(tuned_isa, arch, here_isa, safe):
    assert int8_is_safe_here(changed(isa=tuned_isa), changed(arch=arch, isa=here_isa)) is safe
