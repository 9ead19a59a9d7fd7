"""What this machine is and what this process may use of it: CPU, ISA, cores, quota, memory, disturbance.

Everything is read from the kernel's own files below a `root`, so whole machines can be simulated by a folder.
Nothing here raises because of what such a file says: what cannot be read counts as not there.
"""

from alula.hardware.age import process_age_s
from alula.hardware.cpu import Cpu, Int8Class, bf16_is_native, int8_class, read_cpu
from alula.hardware.disk import disk_full, free_bytes, is_full, writing
from alula.hardware.disturbance import Disturbance, describe_disturbance, stolen_share, take_snapshot
from alula.hardware.findings import doctor_findings
from alula.hardware.fingerprints import Fingerprint, differences, fingerprint, int8_is_safe_here
from alula.hardware.limits import CpuLimits, Memory, read_limits, read_memory, thread_budget

__all__ = [
    "Cpu",
    "CpuLimits",
    "Disturbance",
    "Fingerprint",
    "Int8Class",
    "Memory",
    "bf16_is_native",
    "describe_disturbance",
    "differences",
    "disk_full",
    "doctor_findings",
    "fingerprint",
    "free_bytes",
    "int8_class",
    "int8_is_safe_here",
    "is_full",
    "process_age_s",
    "read_cpu",
    "read_limits",
    "read_memory",
    "stolen_share",
    "take_snapshot",
    "thread_budget",
    "writing",
]
