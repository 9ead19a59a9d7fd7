"""Networks read through every adapter, and an independent count of their work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from alula.core import ARTIFACT_FILES
from alula.export import export_module
from alula.graphs import LayerGraph, read_fx, read_onnx, read_openvino

ReadEverywhere = Callable[[nn.Module, tuple[int, ...]], dict[str, LayerGraph]]


@pytest.fixture(scope="session")
def read_everywhere(tmp_path_factory: pytest.TempPathFactory) -> ReadEverywhere:
    """Give a function from a module and one sample's shape to its graph by each adapter."""

    def read(module: nn.Module, shape: tuple[int, ...]) -> dict[str, LayerGraph]:
        folder = tmp_path_factory.mktemp("network")
        samples = (np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32),)
        for target in ("onnx", "exported"):
            export_module(module.eval(), samples, target=target, folder=folder)
        onnx_file: Path = folder / ARTIFACT_FILES["onnx"]
        return {
            "onnx": read_onnx(onnx_file),
            "openvino": read_openvino(ov.Core().read_model(onnx_file)),
            "fx": read_fx(torch.export.load(folder / ARTIFACT_FILES["exported"]).module()),
        }

    return read


@pytest.fixture(scope="session")
def count_macs() -> Callable[[nn.Module, tuple[int, ...]], int]:
    """Give a function that counts the MACs of convolutions and linear layers by watching them run."""

    def count(module: nn.Module, shape: tuple[int, ...]) -> int:
        total = 0

        def watch(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            nonlocal total
            if isinstance(layer, nn.Linear):
                total += output.numel() * layer.in_features
            else:
                total += output.numel() * layer.weight[0].numel()

        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
        hooks = [m.register_forward_hook(watch) for m in module.modules() if isinstance(m, kinds)]
        with torch.no_grad():
            module.eval()(torch.zeros(1, *shape))
        for hook in hooks:
            hook.remove()
        return total

    return count
