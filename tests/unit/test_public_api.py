"""The names that users may rely on, and how little importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import alula

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "scipy",
    "soundfile",
    "soxr",
    "PIL",
    "pyarrow",
    "pandas",
    "safetensors",
    "cloudpickle",
    "timm",
    "torchvision",
)


def test_the_public_names() -> None:
    assert sorted(alula.__all__) == [
        "AlulaError",
        "Bundle",
        "Ensemble",
        "Prediction",
        "__version__",
        "load",
        "optimize",
    ]
    for name in alula.__all__:
        assert getattr(alula, name) is not None


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module `alula` has no attribute `optimise`"):
        alula.optimise  # noqa: B018  (the access is the test)


def test_the_parameters_of_the_workflows() -> None:
    names = list(inspect.signature(alula.optimize).parameters)
    assert names[:2] == ["model", "data"]
    assert {"metric", "max_drop", "budget", "output"} <= set(names)
    assert list(inspect.signature(alula.load).parameters) == ["path", "trust_code", "threads"]
    for workflow in (alula.optimize, alula.load):
        kinds = [parameter.kind for parameter in inspect.signature(workflow).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[2:])


@pytest.mark.parametrize(
    "statement",
    [
        "import alula; alula.__version__",
        "import alula.workflows",
        "import alula; alula.load; alula.optimize",
        "import alula.bundle, alula.engines, alula.export, alula.quantization, alula.tuning",
        "import alula.data, alula.features, alula.accuracy, alula.measure, alula.pipeline, alula.sources",
    ],
)
def test_importing_loads_nothing_heavy_and_has_no_effects(statement: str) -> None:
    program = "\n".join(
        [
            "import logging, os, sys, threading",
            "before = (dict(os.environ), threading.active_count(), list(logging.getLogger().handlers))",
            statement,
            "after = (dict(os.environ), threading.active_count(), list(logging.getLogger().handlers))",
            "assert before == after, (before, after)",
            f"print(sorted(set(sys.modules) & set({HEAVY!r})))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
