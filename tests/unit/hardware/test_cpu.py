from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import msgspec
import pytest

from alula.hardware import Cpu, bf16_is_native, int8_class, read_cpu

X86_BASE = "fpu tsc sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi2"
SAPPHIRE_FLAGS = (
    f"{X86_BASE} avx512f avx512dq avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni avx512_fp16 "
    "amx_bf16 amx_tile amx_int8"
)


def x86_cpuinfo(vendor: str, name: str, flags: str, *, cores: int, threads_per_core: int = 1) -> str:
    """One entry per logical CPU, siblings numbered as Linux does: all first threads, then all second ones."""
    return "\n".join(
        f"processor\t: {number}\nvendor_id\t: {vendor}\nmodel name\t: {name}\nphysical id\t: 0\n"
        f"core id\t\t: {number % cores}\ncpu cores\t: {cores}\nflags\t\t: {flags}\npower management:\n"
        for number in range(cores * threads_per_core)
    )


def arm_cpuinfo(parts: list[int], features: list[str]) -> str:
    return "\n".join(
        f"processor\t: {number}\nBogoMIPS\t: 243.75\nFeatures\t: {has}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part:#05x}\nCPU revision\t: 1\n"
        for number, (part, has) in enumerate(zip(parts, features, strict=True))
    )


def test_amd_with_avx2_only_uses_topology_and_caches(build):
    cpu_folder = "/sys/devices/system/cpu"
    files = {
        "/proc/cpuinfo": x86_cpuinfo(
            "AuthenticAMD", "AMD EPYC 7763  64-Core Processor", X86_BASE, cores=2, threads_per_core=2
        ).replace("core id\t\t: 1", "core id\t\t: 0"),  # a hypervisor's wrong core ids: the topology wins
        f"{cpu_folder}/cpu0/cache/index0/level": "1\n",
        f"{cpu_folder}/cpu0/cache/index0/size": "32K\n",
        f"{cpu_folder}/cpu0/cache/index2/level": "2\n",
        f"{cpu_folder}/cpu0/cache/index2/size": "512K\n",
        f"{cpu_folder}/cpu0/cache/index3/level": "3\n",
        f"{cpu_folder}/cpu0/cache/index3/size": "32M\n",
        f"{cpu_folder}/cpufreq/x": "",
    }
    for number in range(4):
        files[f"{cpu_folder}/cpu{number}/topology/thread_siblings_list"] = f"{number % 2},{number % 2 + 2}\n"
    assert read_cpu(build(files), system="linux") == Cpu(
        arch="x86_64",
        vendor="AMD",
        model_name="AMD EPYC 7763 64-Core Processor",
        physical_cores=2,
        logical_cores=4,
        isa=("avx", "avx2", "f16c", "fma", "sse4_1", "sse4_2", "ssse3"),
        l2_bytes=512 * 1024,
        l3_bytes=32 * 1024**2,
    )


def test_ice_lake_without_sysfs_counts_cores_from_cpuinfo(build):
    flags = f"{X86_BASE} avx512f avx512dq avx512bw avx512vl avx512_vnni"
    name = "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz"
    root = build({"/proc/cpuinfo": x86_cpuinfo("GenuineIntel", name, flags, cores=4, threads_per_core=2)})
    cpu = read_cpu(root, system="linux")
    assert (cpu.vendor, cpu.model_name) == ("Intel", name)
    assert (cpu.physical_cores, cpu.logical_cores) == (4, 8)
    assert {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= set(cpu.isa)
    assert "tsc" not in cpu.isa
    assert (cpu.l2_bytes, cpu.l3_bytes) == (0, 0)
    assert int8_class(cpu.isa) == "vnni"
    assert not bf16_is_native(cpu.isa)


def test_sapphire_rapids_has_amx(build):
    root = build({"/proc/cpuinfo": x86_cpuinfo("GenuineIntel", "Xeon 8480", SAPPHIRE_FLAGS, cores=1)})
    cpu = read_cpu(root, system="linux")
    assert {"amx_tile", "amx_int8", "amx_bf16", "avx512_fp16", "avx_vnni", "avx512_bf16"} <= set(cpu.isa)
    assert int8_class(cpu.isa) == "amx"
    assert bf16_is_native(cpu.isa)


def test_neoverse(build):
    features = "fp asimd evtstrm aes crc32 fphp asimdhp asimddp sve sveffr svei8mm svebf16 i8mm bf16 dgh"
    root = build({"/proc/cpuinfo": arm_cpuinfo([0xD40] * 4, [features] * 4)})
    cpu = read_cpu(root, system="linux")
    assert (cpu.arch, cpu.vendor, cpu.model_name) == ("aarch64", "Arm", "Neoverse-V1")
    assert (cpu.physical_cores, cpu.logical_cores) == (4, 4)
    assert cpu.isa == ("asimddp", "asimdhp", "bf16", "i8mm", "neon", "sve", "svebf16", "svei8mm")
    assert int8_class(cpu.isa) == "i8mm"
    assert bf16_is_native(cpu.isa)


def test_kinds_of_cores_share_only_what_all_have(build):
    root = build(
        {
            "/proc/cpuinfo": arm_cpuinfo(
                [0xD05, 0xD05, 0xD99], ["fp asimd", "fp asimd", "fp asimd asimddp i8mm"]
            )
        }
    )
    cpu = read_cpu(root, system="linux")
    assert cpu.isa == ("neon",)
    assert cpu.model_name == "Cortex-A55 + Arm part 0xd99"
    assert int8_class(cpu.isa) == "none"


def test_container_shown_fewer_cpus_than_sysfs(build):
    files = {"/proc/cpuinfo": x86_cpuinfo("GenuineIntel", "Xeon", X86_BASE, cores=2)}
    for number in range(16):
        files[f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"] = f"{number}\n"
    cpu = read_cpu(build(files), system="linux")
    assert (cpu.physical_cores, cpu.logical_cores) == (2, 2)


APPLE_M2 = """\
hw.ncpu: 8
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.memsize: 17179869184
hw.l2cachesize: 4194304
hw.perflevel0.l2cachesize: 16777216
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
hw.optional.arm64: 1
machdep.cpu.brand_string: Apple M2
"""
APPLE_INTEL = """\
hw.physicalcpu: 4
hw.logicalcpu: 8
hw.l2cachesize: 262144
hw.l3cachesize: 8388608
machdep.cpu.vendor: GenuineIntel
machdep.cpu.brand_string: Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz
machdep.cpu.features: FPU SSE SSE2 SSSE3 FMA SSE4.1 SSE4.2 AVX1.0 F16C
machdep.cpu.leaf7_features: RDWRFSGS AVX2 AVX512F AVX512DQ AVX512BW AVX512VL AVX512VNNI
"""


def test_apple_silicon():
    cpu = read_cpu(system="darwin", sysctl=lambda: APPLE_M2)
    assert cpu == Cpu(
        arch="aarch64",
        vendor="Apple",
        model_name="Apple M2",
        physical_cores=8,
        logical_cores=8,
        isa=("asimddp", "asimdhp", "bf16", "i8mm", "neon"),
        l2_bytes=16 * 1024**2,
    )


def test_apple_with_intel():
    cpu = read_cpu(system="darwin", sysctl=lambda: APPLE_INTEL)
    assert (cpu.arch, cpu.vendor, cpu.physical_cores, cpu.logical_cores) == ("x86_64", "Intel", 4, 8)
    assert {"sse4_2", "avx", "avx2", "avx512bw", "avx512_vnni"} <= set(cpu.isa)
    assert (cpu.l2_bytes, cpu.l3_bytes) == (262144, 8388608)


@pytest.mark.parametrize(
    ("system", "files", "output"),
    [
        ("linux", {}, ""),
        ("linux", {"/proc/cpuinfo": "no colon\nprocessor : zero\n\x00\n"}, ""),
        ("darwin", {}, ""),
        ("darwin", {}, "hw.logicalcpu\nhw.physicalcpu: many"),
        ("win32", {}, ""),
    ],
)
def test_what_cannot_be_read_falls_back_to_python(build, system, files, output):
    cpu = read_cpu(build(files), system=system, sysctl=lambda: output)
    assert cpu.arch in {"x86_64", platform.machine().lower()}
    assert 1 <= cpu.physical_cores <= cpu.logical_cores
    assert cpu.isa == ()


def test_unknown_architecture_counts_its_harts(build):
    root = build({"/proc/cpuinfo": "processor\t: 0\nhart\t: 0\nisa\t: rv64gc\n\nprocessor\t: 1\nhart\t: 1\n"})
    cpu = read_cpu(root, system="linux")
    assert (cpu.logical_cores, cpu.physical_cores, cpu.isa) == (2, 2, ())


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        (("amx_int8", "avx512_vnni", "avx2"), "amx"),
        (("amx_tile", "avx512_vnni"), "vnni"),
        (("avx2", "avx_vnni"), "vnni"),
        (("avx2", "avx512f", "avx512bw"), "saturating"),
        (("ssse3",), "saturating"),
        (("neon", "asimddp", "i8mm"), "i8mm"),
        (("neon", "asimddp"), "dotprod"),
        (("neon",), "none"),
        ((), "none"),
    ],
)
def test_int8_class(isa, expected):
    assert int8_class(isa) == expected


def test_cpu_goes_to_json_and_back():
    cpu = read_cpu(system="darwin", sysctl=lambda: APPLE_M2)
    assert msgspec.json.decode(msgspec.json.encode(cpu), type=Cpu) == cpu


@pytest.mark.skipif(sys.platform != "linux", reason="lscpu reads Linux only")
@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu is not installed to compare with")
def test_this_machine_agrees_with_lscpu():
    lines = subprocess.run(["lscpu", "-p=CPU,CORE"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(",") for line in lines.splitlines() if not line.startswith("#")]
    cpu = read_cpu()
    assert cpu.logical_cores == len(rows)
    assert cpu.physical_cores == len({core for _, core in rows})
    assert cpu.arch == {"arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
