"""The work of an export, counted in a child process, and kept for a search that continues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import Network
from tiny import CLASSES, FEATURES, write_onnx

from alula.core import ARTIFACT_FILES, ExportFormat
from alula.export import export_module
from alula.sources import parse_source
from alula.tuning import Workshop
from alula.tuning.messages import Counted, CountRequest, Problem
from alula.tuning.worker import Worker


def counted(folder: Path, target: ExportFormat, x: np.ndarray) -> Counted | Problem:
    """Ask a worker, in this process."""
    np.save(folder / "x.npy", x)
    path = str(folder / ARTIFACT_FILES[target])
    reply = Worker().answer(CountRequest(target=target, path=path, samples=(str(folder / "x.npy"),)))
    assert isinstance(reply, Counted | Problem)
    return reply


@pytest.mark.parametrize("target", ["onnx", "exported"])
def test_an_export_is_counted_by_hand(tmp_path: Path, rng: np.random.Generator, target: ExportFormat) -> None:
    """A convolution of 3 to 4 channels with 3x3 windows on 6x6, and a product of 4 by 5."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    ).eval()
    x = rng.normal(size=(4, 3, 6, 6)).astype(np.float32)
    export_module(module, [x[:2]], target=target, folder=tmp_path)
    reply = counted(tmp_path, target, x)
    assert isinstance(reply, Counted)
    assert {one.role: one.macs for one in reply.products} == {"stem": 6 * 6 * 4 * 3 * 9, "head": 4 * 5}


def test_sizes_that_a_file_leaves_open_are_those_of_the_samples(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    net = Network()
    pooled = net.add("GlobalAveragePool", net.conv("x", 3, 8, kernel=3, name="stem"), name="pool")
    flat = net.add("Flatten", pooled, name="flat")
    path = tmp_path / ARTIFACT_FILES["onnx"]
    net.write(path, output=net.linear(flat, 8, 5, name="head"), shape=(3, "h", "w"))
    reply = counted(tmp_path, "onnx", rng.normal(size=(4, 3, 10, 7)).astype(np.float32))
    assert isinstance(reply, Counted)
    assert sum(one.macs for one in reply.products) == 10 * 7 * 8 * 3 * 9 + 8 * 5


def test_a_format_without_a_graph_to_read_is_said(tmp_path: Path) -> None:
    reply = counted(tmp_path, "torchscript", np.zeros((2, 3), np.float32))
    assert isinstance(reply, Problem)
    assert "torchscript cannot be counted" in reply.error


def workshop(folder: Path, model: str | Path, x: Path, reports: list[str]) -> Workshop:
    return Workshop(
        parse_source(model),
        folder,
        calibration=(str(x),),
        validation=(str(x),),
        threads=1,
        saturating=False,
        memory_limit_bytes=4 * 2**30,
        timeout_s=lambda: 60.0,
        report=reports.append,
    )


def test_the_work_of_a_model_is_kept_for_a_search_that_continues(tmp_path: Path) -> None:
    x, model = tmp_path / "x.npy", write_onnx(tmp_path / "model.onnx")
    np.save(x, np.zeros((4, FEATURES), np.float32))
    (product,) = workshop(tmp_path / "work", model, x, []).products()
    assert (product.kind, product.macs) == ("matmul", FEATURES * CLASSES)
    model.unlink()
    assert workshop(tmp_path / "work", write_onnx(model), x, []).products() == (product,)


def test_what_cannot_be_counted_is_reported_and_costs_nothing_else(tmp_path: Path) -> None:
    """A model whose work is in the two sides of a branch."""
    shape = (2, FEATURES)
    sides = [
        helper.make_graph(
            [helper.make_node("Abs", ["x"], [side])],
            side,
            [],
            [helper.make_tensor_value_info(side, TensorProto.FLOAT, shape)],
        )
        for side in ("one", "other")
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["any"], to=TensorProto.BOOL),
        helper.make_node("If", ["any"], ["y"], name="branch", then_branch=sides[0], else_branch=sides[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx")
    x, reports = tmp_path / "x.npy", list[str]()
    np.save(x, np.zeros((4, FEATURES), np.float32))
    made = workshop(tmp_path / "work", tmp_path / "model.onnx", x, reports)
    assert made.products() == ()
    assert made.signature.inputs[0].shape == shape
    assert any("work of the model cannot be counted" in line and "`branch`" in line for line in reports)
