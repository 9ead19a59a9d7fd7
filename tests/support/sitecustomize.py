"""Lets torchvision import beside a torch of another build, in this process and its children.

A torchvision wheel that was linked for another torch cannot load its own operators, and then fails to
import because `torchvision::nms` is not defined. Only the tests need it, through timm, and none runs these
operators: defining them without code is enough. Python imports this file at its start when its folder
is on `PYTHONPATH`; torch is not imported before torchvision is.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class TorchvisionHook:
    """A meta-path finder that finds nothing; it prepares torch when torchvision is first looked for."""

    def __init__(self) -> None:
        self.asked = False
        self.library = None  # Its operators live as long as it does.

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not self.asked:
            self.asked = True
            spec = importlib.machinery.PathFinder.find_spec(name)
            if spec is not None and spec.origin is not None:
                self.library = define_operators(Path(spec.origin).parent)


def define_operators(package):
    """Define the missing operators and return the library that holds them, or None if none is missing."""
    import torch

    for binary in (*package.glob("_C.so"), *package.glob("_C.*.so"), *package.glob("_C.pyd")):
        try:
            torch.ops.load_library(binary)
        except OSError:
            continue  # Linked for another torch.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


def install():
    if not any(type(finder).__name__ == TorchvisionHook.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionHook())


def run_shadowed():
    """Run the `sitecustomize` of the machine or the environment, which this file hides."""
    others = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


install()
if __name__ == "sitecustomize":
    run_shadowed()
