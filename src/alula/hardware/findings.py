"""What the CPU and its limits mean for precision and threads, in plain sentences."""

from __future__ import annotations

from alula.hardware.cpu import Cpu, Int8Class, bf16_is_native, int8_class
from alula.hardware.limits import CpuLimits

__all__ = ["doctor_findings"]

# Rates are multiply-adds per instruction against FP32 at the same width, times what issues per cycle:
# AVX-512 and AVX2 VNNI 4 per lane; AMX 1024 (INT8) and 512 (BF16) per cycle against 32 for two FP32 FMA ports
# (Intel 64 and IA-32 Architectures Optimization Reference Manual); SDOT 16, SMMLA 32 and BFMMLA 16 against 4
# for FMLA (Arm Architecture Reference Manual for A-profile). Without VNNI three AVX2 instructions do
# the work of four FP32 ones.
_INT8_MEANS: dict[Int8Class, str] = {
    "amx": "AMX-INT8: INT8 matrix multiplies run at up to 32x the FP32 rate.",
    "vnni": "{name}: INT8 multiplies run at up to 4x the FP32 rate.",
    "i8mm": "I8MM: INT8 matrix multiplies run at up to 8x the FP32 rate.",
    "dotprod": "Dot product (SDOT, UDOT): INT8 multiplies run at up to 4x the FP32 rate.",
    "saturating": (
        "No VNNI: INT8 kernels add pairs of products in 16 bits, where they saturate; recipes use "
        "reduced-range weights, and INT8 multiplies run at up to about 1.3x the FP32 rate."
    ),
    "none": "No INT8 instructions are known of: INT8 saves memory here, not time.",
}


def doctor_findings(cpu: Cpu, limits: CpuLimits) -> tuple[str, ...]:
    """Return what they mean for precision and threads: INT8, bfloat16, vector width, cores, budget.

    Args:
        cpu: the CPU of this machine.
        limits: what this process may use of it.
    """
    name = "AVX-512 VNNI" if "avx512_vnni" in cpu.isa else "AVX-VNNI"
    found = [_INT8_MEANS[int8_class(cpu.isa)].format(name=name), _explain_bf16(cpu)]
    if cpu.arch == "x86_64" and "avx2" not in cpu.isa:
        found.append("No AVX2: engines fall back to code that is several times slower, or do not load.")
    if cpu.logical_cores > cpu.physical_cores:
        found.append(
            f"{cpu.logical_cores} logical CPUs share {cpu.physical_cores} physical "
            f"{'core' if cpu.physical_cores == 1 else 'cores'}: threads on one core share its vector "
            "units, so the second of them adds little."
        )
    found.append(_explain_threads(cpu, limits))
    return tuple(found)


def _explain_bf16(cpu: Cpu) -> str:
    if not bf16_is_native(cpu.isa):
        return "No BF16 instructions: bf16 would be emulated and slow, so it is not offered."
    if "amx_bf16" in cpu.isa:
        return "AMX-BF16: bf16 matrix multiplies run at up to 16x the FP32 rate; `bf16` recipes use them."
    if "avx512_bf16" in cpu.isa:
        return "AVX-512 BF16: bf16 multiplies run at up to 2x the FP32 rate; `bf16` recipes use them."
    return "BF16: bf16 matrix multiplies run at up to 4x the FP32 rate; `bf16` recipes use them."


def _explain_threads(cpu: Cpu, limits: CpuLimits) -> str:
    used = f"{limits.budget} {'thread is' if limits.budget == 1 else 'threads are'} used."
    cpus = f"{limits.affinity} {'CPU' if limits.affinity == 1 else 'CPUs'}"
    if limits.quota is not None and limits.quota < limits.affinity:
        return f"The CPU quota ({limits.quota:.3g}) is below the {cpus} of the affinity: {used}"
    if limits.affinity < cpu.logical_cores:
        return f"The affinity allows {cpus} of {cpu.logical_cores}: {used}"
    return f"No quota or affinity narrows the {cpus}: {used}"
