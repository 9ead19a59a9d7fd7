"""How long the process runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alula.hardware import process_age_s


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_it_is_what_ps_says() -> None:
    told_s = int(subprocess.check_output(["ps", "-o", "etimes=", "-p", str(os.getpid())], text=True))
    assert told_s - 2 <= process_age_s() <= told_s + 3


def test_names_with_brackets_and_kernels_that_do_not_tell(tmp_path: Path) -> None:
    stat = tmp_path / "proc" / "self" / "stat"
    stat.parent.mkdir(parents=True)
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"7 (a) b) S {' '.join(['0'] * 18)} {1000 * ticks} 0 0\n")
    assert process_age_s(tmp_path, since_boot_s=10_000.0) == pytest.approx(9_000.0)
    # A start after now belongs to another clock.
    for text in (f"7 (a) S {' '.join(['0'] * 18)} {20_000 * ticks}", "7 (a) S 0", ""):
        stat.write_text(text)
        before = time.process_time()
        assert before <= process_age_s(tmp_path, since_boot_s=10_000.0) <= time.process_time()
