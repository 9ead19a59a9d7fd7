"""How long this process has been running."""

from __future__ import annotations

import os
import time
from pathlib import Path

from alula.hardware.kernel_files import read_text, whole_number

__all__ = ["process_age_s"]

_START_FIELD = 19  # of what follows the name in `stat`, where `starttime` is the 22nd field of all


def process_age_s(root: Path = Path("/"), *, since_boot_s: float | None = None) -> float:
    """Return seconds since this process was started, before its first line ran.

    Where the kernel does not tell, it is the CPU time that the process has used: never too long.

    Args:
        root: of the kernel's files.
        since_boot_s: seconds since the machine was started; None asks the system.
    """
    used_s = time.process_time()
    # The name of the process may hold spaces and brackets; behind the last bracket there are numbers.
    fields = read_text(root / "proc/self/stat").rpartition(")")[2].split()
    ticks = whole_number(fields[_START_FIELD]) if len(fields) > _START_FIELD else None
    if not ticks:
        return used_s
    if since_boot_s is None:
        since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    age_s = since_boot_s - ticks / os.sysconf("SC_CLK_TCK")
    # Where the clocks of kernel and container differ, the two have nothing to do with each other.
    return age_s if used_s <= age_s <= since_boot_s else used_s
