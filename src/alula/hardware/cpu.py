"""The CPU: its name, cores, caches and the instruction sets that decide which precisions pay."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from alula.hardware.kernel_files import read_sysctl, read_text, whole_number

__all__ = ["Cpu", "Int8Class", "bf16_is_native", "int8_class", "read_cpu"]

Int8Class = Literal["amx", "vnni", "dotprod", "i8mm", "saturating", "none"]

_X86_ISA = (
    "ssse3",
    "sse4_1",
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512dq",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)
_ARM_ISA = {  # names of /proc/cpuinfo; Linux' Documentation/arch/arm64/elf_hwcaps.rst
    "asimd": "neon",
    "asimdhp": "asimdhp",
    "asimddp": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "svei8mm": "svei8mm",
    "svebf16": "svebf16",
    "sme": "sme",
    "sme2": "sme2",
}
_APPLE_ARM_ISA = {  # names of sysctl
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.neon": "neon",
    "hw.optional.arm.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
}
_APPLE_X86_ISA = {  # names in machdep.cpu.features and its kin that differ by more than case
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "avx1.0": "avx",
    "avx512vnni": "avx512_vnni",
}
_X86_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "HygonGenuine": "Hygon"}
_ARM_VENDORS = {  # MIDR_EL1.Implementer
    0x41: "Arm",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x50: "APM",
    0x51: "Qualcomm",
    0x53: "Samsung",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}
_ARM_PARTS = {  # MIDR_EL1.PartNum of Arm's own cores
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD84: "Neoverse-V3",
    0xD8E: "Neoverse-N3",
}
_SIZE_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


class Cpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A CPU as engines see it.

    Attributes:
        arch: `x86_64`, `aarch64`, or what Python calls the machine.
        vendor: such as `Intel`, `AMD`, `Arm`, `Apple`; `unknown` when it does not say.
        model_name: the vendor's name of it; on Arm the names of its kinds of cores.
        physical_cores: cores of the machine, whatever this process may use of them.
        logical_cores: hardware threads of the machine that are online.
        isa: instruction sets that every core has, by Linux' names, sorted. `neon` stands for Arm's `asimd`.
        l2_bytes: one L2 cache, as the first core sees it; 0 when unknown.
        l3_bytes: one L3 cache, as the first core sees it; 0 when there is none or it is unknown.
    """

    arch: str
    vendor: str
    model_name: str
    physical_cores: int
    logical_cores: int
    isa: tuple[str, ...]
    l2_bytes: int = 0
    l3_bytes: int = 0


def int8_class(isa: Collection[str]) -> Int8Class:
    """Return what INT8 kernels can rely on.

    - `amx`: tiles; `vnni`: dot products into 32 bits (AVX512_VNNI or AVX_VNNI). Exact.
    - `saturating`: x86 without them. The u8 × s8 kernels add pairs of products in 16 bits (`pmaddubsw`) and
      saturate above 32767, so weights must be kept to 7 bits.
    - `i8mm`, `dotprod`: the Arm instructions of that name. Exact.
    - `none`: no INT8 instructions known; right on Arm, where products are widened first, but not fast.

    Args:
        isa: names as in `Cpu.isa`.

    >>> int8_class(["avx2", "avx512_vnni"]), int8_class(["avx2"]), int8_class(["neon", "asimddp"])
    ('vnni', 'saturating', 'dotprod')
    """
    ranking: tuple[tuple[str, Int8Class], ...] = (
        ("amx_int8", "amx"),
        ("avx512_vnni", "vnni"),
        ("avx_vnni", "vnni"),
        ("i8mm", "i8mm"),
        ("asimddp", "dotprod"),
        ("ssse3", "saturating"),
        ("sse4_2", "saturating"),
        ("avx", "saturating"),
        ("avx2", "saturating"),
        ("avx512f", "saturating"),
    )
    return next((kind for name, kind in ranking if name in isa), "none")


def bf16_is_native(isa: Collection[str]) -> bool:
    """Return whether bfloat16 products have instructions, so that precision `bf16` can be faster than `fp32`.

    >>> bf16_is_native(["avx512_vnni"]), bf16_is_native(["amx_bf16"]), bf16_is_native(["neon", "bf16"])
    (False, True, True)
    """
    return any(name in isa for name in ("amx_bf16", "avx512_bf16", "bf16"))


def read_cpu(
    root: Path = Path("/"), *, system: str = sys.platform, sysctl: Callable[[], str] = read_sysctl
) -> Cpu:
    """Return the CPU of this machine.

    Linux: /proc/cpuinfo and /sys/devices/system/cpu. macOS: `sysctl -a`, as far as it says. Elsewhere, and
    where those cannot be read: what Python knows, with no instruction sets.

    Args:
        root: what to take for `/`.
        system: `sys.platform` of the machine.
        sysctl: gives the output of `sysctl -a`; called on macOS only.
    """
    if system == "darwin":
        values = dict(_split_pair(line) for line in sysctl().splitlines())
        return _read_apple(values) if "hw.logicalcpu" in values else _ask_python()
    processors = _read_processors(root)
    return _read_linux(processors, root) if processors else _ask_python()


def _ask_python() -> Cpu:
    cores = os.cpu_count() or 1
    return Cpu(
        arch=_normalise_arch(platform.machine()),
        vendor="unknown",
        model_name=platform.processor() or "unknown",
        physical_cores=cores,
        logical_cores=cores,
        isa=(),
    )


def _normalise_arch(machine: str) -> str:
    lower = machine.lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(lower, lower) or "unknown"


def _split_pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _read_processors(root: Path) -> list[dict[str, str]]:
    """Return the fields of each logical CPU in /proc/cpuinfo."""
    processors: list[dict[str, str]] = []
    for line in read_text(root / "proc/cpuinfo").splitlines():
        name, value = _split_pair(line)
        if name == "processor" and whole_number(value) is not None:
            processors.append({})
        if processors and name:
            processors[-1][name] = value
    return processors


def _read_linux(processors: list[dict[str, str]], root: Path) -> Cpu:
    # Cores of different kinds may differ in what they can do; code may be moved to any of them.
    flags = set.intersection(*(set(one.get("flags", one.get("Features", "")).split()) for one in processors))
    if "asimd" in flags:
        arch, isa = "aarch64", {_ARM_ISA[name] for name in flags & _ARM_ISA.keys()}
        vendor, model_name = _name_arm(processors)
    elif "flags" in processors[0]:
        arch, isa = "x86_64", flags & set(_X86_ISA)
        vendor_id = processors[0].get("vendor_id", "")
        vendor = _X86_VENDORS.get(vendor_id, vendor_id or "unknown")
        model_name = " ".join(processors[0].get("model name", "unknown").split())
    else:
        arch, isa = _normalise_arch(platform.machine()), set()
        vendor, model_name = "unknown", processors[0].get("model name", "unknown")
    return Cpu(
        arch=arch,
        vendor=vendor,
        model_name=model_name,
        # A container may be shown fewer CPUs in /proc/cpuinfo than in /sys.
        physical_cores=min(_count_cores(processors, root), len(processors)),
        logical_cores=len(processors),
        isa=tuple(sorted(isa)),
        l2_bytes=_read_cache_bytes(2, root),
        l3_bytes=_read_cache_bytes(3, root),
    )


def _name_arm(processors: Iterable[Mapping[str, str]]) -> tuple[str, str]:
    """Return vendor and names of the kinds of cores, in the order in which they come."""
    vendors: dict[str, None] = {}
    models: dict[str, None] = {}
    for one in processors:
        implementer, part = (_hexadecimal(one.get(name, "")) for name in ("CPU implementer", "CPU part"))
        vendor = _ARM_VENDORS.get(implementer, "unknown")
        known = _ARM_PARTS.get(part) if vendor == "Arm" else None
        vendors[vendor] = None
        models[known or one.get("model name") or f"{vendor} part {part:#05x}"] = None
    return " + ".join(vendors), " + ".join(models)


def _hexadecimal(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else 0


def _count_cores(processors: list[dict[str, str]], root: Path) -> int:
    """Return the number of physical cores: groups of hardware threads that share one."""
    folder = root / "sys/devices/system/cpu"
    siblings = {
        read_text(one / "topology" / "thread_siblings_list").strip() for one in _list_cpu_folders(folder)
    } - {""}
    if siblings:
        return len(siblings)
    cores = {(one.get("physical id"), one["core id"]) for one in processors if "core id" in one}
    return len(cores) or len(processors)


def _list_cpu_folders(folder: Path) -> list[Path]:
    try:
        found = [one for one in folder.iterdir() if re.fullmatch(r"cpu[0-9]+", one.name)]
    except OSError:
        return []
    return sorted(found, key=lambda one: int(one.name[3:]))


def _read_cache_bytes(level: int, root: Path) -> int:
    """Return the size of one data or unified cache of a level, as the first CPU sees it; 0 when unknown."""
    for cpu in _list_cpu_folders(root / "sys/devices/system/cpu")[:1]:
        for index in range(8):  # indexN: L1 data, L1 instruction, L2, L3; more than that is not known of
            cache = cpu / "cache" / f"index{index}"
            size = re.fullmatch(r"([0-9]{1,12})([KMG]?)", read_text(cache / "size").strip())
            if size and whole_number(read_text(cache / "level")) == level:
                return int(size[1]) * _SIZE_UNITS[size[2]]
    return 0


def _read_apple(values: Mapping[str, str]) -> Cpu:
    def number(*names: str) -> int:
        return next((found for name in names if (found := whole_number(values.get(name, "")))), 0)

    is_arm = number("hw.optional.arm64") == 1
    if is_arm:
        isa = {isa for name, isa in _APPLE_ARM_ISA.items() if number(name) == 1}
    else:
        text = f"{values.get('machdep.cpu.features', '')} {values.get('machdep.cpu.leaf7_features', '')}"
        names = {_APPLE_X86_ISA.get(name, name) for name in text.lower().split()}
        isa = names & set(_X86_ISA)
    vendor = values.get("machdep.cpu.vendor", "")
    logical = number("hw.logicalcpu") or 1
    return Cpu(
        arch="aarch64" if is_arm else "x86_64",
        vendor="Apple" if is_arm else _X86_VENDORS.get(vendor, vendor or "unknown"),
        model_name=values.get("machdep.cpu.brand_string", "") or "unknown",
        physical_cores=number("hw.physicalcpu") or logical,
        logical_cores=logical,
        isa=tuple(sorted(isa)),
        l2_bytes=number("hw.perflevel0.l2cachesize", "hw.l2cachesize"),
        l3_bytes=number("hw.l3cachesize"),
    )
