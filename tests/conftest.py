"""What every test may use: the support folder importable here and in child processes, `rng`, `data_root`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
SUPPORT = str(TESTS / "support")

sys.path.insert(0, SUPPORT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))

# Two processes test at once, so none needs two threads where it does not ask for them. Those of OpenMP spin
# while they wait for others of their team, which are often not running then. Both are read when a library is
# loaded, so they are set first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Children run it as their `sitecustomize`; this process has had its own already.
_spec = importlib.util.spec_from_file_location("torchvision_hook", TESTS / "support" / "sitecustomize.py")
assert _spec is not None and _spec.loader is not None
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))

# A shell that runs this in the background has it ignore interrupts, and children would: some tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data and weights; tests that ask for it are skipped where there is none."""
    given = os.environ.get("ALULA_TEST_DATA")
    root = Path(given) if given else TESTS.parent.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {root} is no folder; set ALULA_TEST_DATA to the folder of real data")
    return root


@pytest.fixture(scope="session", autouse=True)
def kept_peaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Peaks of no machine, so that no search measures them for seconds; in a cache that is not the user's."""
    from alula.core import Roofline
    from alula.workflows.peaks import CACHE_VARIABLE, keep_roofline

    folder = tmp_path_factory.mktemp("cache")
    for threads in {1, 2, len(os.sched_getaffinity(0))}:
        roof = Roofline(fp32_gmacs_per_s=1e6, int8_gmacs_per_s=4e6, threads=threads, method="by hand")
        assert keep_roofline(roof, [folder])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield


@pytest.fixture(autouse=True)
def denormals_kept() -> Iterator[None]:
    """ONNX Runtime and OpenVINO leave the calling thread flushing denormals; other tests need them."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and np.float64(5e-324) * np.float64(1.0) == 0.0:
        torch.set_flush_denormal(False)
