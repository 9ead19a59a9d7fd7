"""Libraries are imported without reporting it, and the process is left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alula.errors import EngineUnavailableError
from alula.libraries import import_nncf, import_onnxruntime, import_openvino, openvino_cause

_TELLTALE = """
from pathlib import Path
Path(__file__).with_name("reported").write_text("")
raise RuntimeError("would send")
"""

# As `alula doctor` does, which asks in its own process.
_VERSIONS = """
import os, sys
from alula.engines import engine_named
from alula.quantization import quantizer_named
for name in ("openvino/int8-nncf", "onnxruntime/int8-static"):
    assert quantizer_named(name).version()
for name in ("openvino", "onnxruntime"):
    assert engine_named(name).version()
print("openvino_telemetry" in sys.modules, "ORT_DISABLE_TELEMETRY" in os.environ)
"""


def test_nobody_is_told(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "openvino_telemetry.py").write_text(_TELLTALE)
    home = tmp_path / "home"
    home.mkdir()
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": path,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    done = subprocess.run([sys.executable, "-c", _VERSIONS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]
    assert not (tmp_path / "site" / "reported").exists()
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    theirs = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    import_onnxruntime()
    import_openvino()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert sys.modules["openvino_telemetry"] is theirs


@pytest.mark.parametrize(
    ("one", "missing", "extra"),
    [
        (import_onnxruntime, "onnxruntime", "onnxruntime"),
        (import_openvino, "openvino", "openvino"),
        (import_nncf, "nncf", "openvino"),
        (import_nncf, "openvino", "openvino"),
    ],
)
def test_what_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, one: object, missing: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EngineUnavailableError, match=rf"`{missing}`.*pip install 'alula\[{extra}\]'"):
        one()


def test_the_cause_is_the_last_line() -> None:
    assert openvino_cause(RuntimeError("Exception from a.cpp:1:\nno such layer \n\n")) == "no such layer"
    assert openvino_cause(RuntimeError()) == "RuntimeError"
