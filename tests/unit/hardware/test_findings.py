from __future__ import annotations

import pytest

from alula.hardware import Cpu, CpuLimits, doctor_findings


def cpu(*isa: str, arch: str = "x86_64", physical: int = 2, logical: int = 2) -> Cpu:
    return Cpu(arch=arch, vendor="V", model_name="M", physical_cores=physical, logical_cores=logical, isa=isa)


FREE = CpuLimits(affinity=2)


@pytest.mark.parametrize(
    ("isa", "arch", "expected"),
    [
        (
            ("avx2", "avx512_vnni", "avx512_bf16"),
            "x86_64",
            (
                "AVX-512 VNNI: INT8 multiplies run at up to 4x the FP32 rate.",
                "AVX-512 BF16: bf16 multiplies run at up to 2x the FP32 rate; `bf16` recipes use them.",
            ),
        ),
        (
            ("avx2", "avx_vnni"),
            "x86_64",
            (
                "AVX-VNNI: INT8 multiplies run at up to 4x the FP32 rate.",
                "No BF16 instructions: bf16 would be emulated and slow, so it is not offered.",
            ),
        ),
        (
            ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
            "x86_64",
            (
                "AMX-INT8: INT8 matrix multiplies run at up to 32x the FP32 rate.",
                "AMX-BF16: bf16 matrix multiplies run at up to 16x the FP32 rate; `bf16` recipes use them.",
            ),
        ),
        (
            ("avx2",),
            "x86_64",
            (
                "No VNNI: INT8 kernels add pairs of products in 16 bits, where they saturate; recipes use "
                "reduced-range weights, and INT8 multiplies run at up to about 1.3x the FP32 rate.",
                "No BF16 instructions: bf16 would be emulated and slow, so it is not offered.",
            ),
        ),
        (
            ("neon", "asimddp", "i8mm", "bf16"),
            "aarch64",
            (
                "I8MM: INT8 matrix multiplies run at up to 8x the FP32 rate.",
                "BF16: bf16 matrix multiplies run at up to 4x the FP32 rate; `bf16` recipes use them.",
            ),
        ),
        (
            ("neon", "asimddp"),
            "aarch64",
            (
                "Dot product (SDOT, UDOT): INT8 multiplies run at up to 4x the FP32 rate.",
                "No BF16 instructions: bf16 would be emulated and slow, so it is not offered.",
            ),
        ),
    ],
)
def test_precision(isa, arch, expected):
    assert doctor_findings(cpu(*isa, arch=arch), FREE)[:-1] == expected


def test_nothing_known_is_said_as_such():
    assert doctor_findings(cpu("neon", arch="aarch64"), FREE)[0].startswith("No INT8 instructions are known")


def test_old_cpus_are_warned_about():
    assert any(text.startswith("No AVX2") for text in doctor_findings(cpu("ssse3", "avx"), FREE))


def test_threads_that_share_cores():
    shared = cpu("avx2", physical=1, logical=2)
    assert (
        "2 logical CPUs share 1 physical core: threads on one core share its vector units, "
        "so the second of them adds little."
    ) in doctor_findings(shared, FREE)
    assert not any("share" in text for text in doctor_findings(cpu("avx2"), FREE))


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (FREE, "No quota or affinity narrows the 2 CPUs: 2 threads are used."),
        (
            CpuLimits(affinity=2, quota=1.5),
            "The CPU quota (1.5) is below the 2 CPUs of the affinity: 1 thread is used.",
        ),
        (CpuLimits(affinity=1), "The affinity allows 1 CPU of 2: 1 thread is used."),
        (CpuLimits(affinity=1, quota=4.0), "The affinity allows 1 CPU of 2: 1 thread is used."),
        (CpuLimits(affinity=2, quota=2.0), "No quota or affinity narrows the 2 CPUs: 2 threads are used."),
    ],
)
def test_threads(limits, sentence):
    assert doctor_findings(cpu("avx2"), limits)[-1] == sentence
