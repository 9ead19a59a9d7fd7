"""Exported programs, TorchScript, ONNX files and modules from Python give the same numbers as the module."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from alula.errors import ModelError
from alula.sources import Source, load_model, parse_source

SaveScript = Callable[[nn.Module, Path], None]
SaveExported = Callable[[nn.Module, torch.Tensor, Path], None]


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def failure(source: Source) -> str:
    with pytest.raises(ModelError) as error:
        load_model(source)
    text = str(error.value)
    assert "\n" not in text
    return text


def check(source: Source, net: nn.Module, x: torch.Tensor) -> nn.Module:
    model = load_model(source)
    assert model.module is not None
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    for batch in (x, x[:2], torch.cat([x, x])):
        # The same operations on the same numbers; only the order of sums may differ.
        torch.testing.assert_close(model.module(batch), net(batch), rtol=1e-6, atol=1e-6)
    return model.module


@pytest.mark.parametrize("name", ["m.pt2", "m.pt", "model"])
def test_exported(
    tmp_path: Path, net: nn.Module, x: torch.Tensor, save_exported: SaveExported, name: str
) -> None:
    save_exported(net, x, tmp_path / "m.pt2")
    (tmp_path / "m.pt2").rename(tmp_path / name)
    source = parse_source(tmp_path / name)
    assert source == Source(kind="exported", spec=str(tmp_path / name))
    module = check(source, net, x)
    assert module.eval() is module
    assert not module.training
    again = torch.export.export(module, (x,))  # What is loaded can be exported again.
    torch.testing.assert_close(again.module()(x), net(x), rtol=1e-6, atol=1e-6)


def test_exported_in_training_mode_is_refused(
    tmp_path: Path, net: nn.Module, x: torch.Tensor, save_exported: SaveExported
) -> None:
    save_exported(net.train(), x, tmp_path / "m.pt2")
    text = failure(parse_source(tmp_path / "m.pt2"))
    assert "was exported in training mode (`batch_norm` and 1 more)" in text
    assert "model.eval()" in text


def test_damaged_exported(
    tmp_path: Path,
    net: nn.Module,
    x: torch.Tensor,
    save_exported: SaveExported,
) -> None:
    path = tmp_path / "m.pt2"
    save_exported(net, x, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError) as error:
        parse_source(path)
    assert "is cut off: it starts like a zip archive and has no end" in str(error.value)

    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"{}" if name.endswith("models/model.json") else old.read(name))
    assert "cannot be loaded as ExportedProgram" in failure(parse_source(path))


def test_the_reader_of_exported_files_keeps_its_tracebacks_to_itself(
    tmp_path: Path, net: nn.Module, x: torch.Tensor, save_exported: SaveExported
) -> None:
    path = tmp_path / "m.pt2"
    save_exported(net, x, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if not name.endswith("sample_inputs/model.pt"):
                archive.writestr(name, content)
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch.export")
    logger.addHandler(handler)
    try:
        assert "cannot be loaded as ExportedProgram: RuntimeError: " in failure(parse_source(path))
        assert told == []
        logger.warning("heard again")
        assert len(told) == 1
    finally:
        logger.removeHandler(handler)


def rewritten(path: Path, changes: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    root = next(iter(members)).partition("/")[0]
    members |= {f"{root}/{name}": data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in members.items():
            new.writestr(name, data)


def test_hostile_pickles_in_exported_files_are_never_read(
    tmp_path: Path, net: nn.Module, x: torch.Tensor, save_exported: SaveExported
) -> None:
    target = tmp_path / "pwned"
    buffer = io.BytesIO()
    torch.save((Attack(target),), buffer)
    attacks: list[dict[str, bytes]] = [
        {"data/sample_inputs/model.pt": buffer.getvalue()},
        {"data/sample_inputs/model.pt": pickle.dumps(Attack(target))},
        {"data/sample_inputs/model.pt": pickle.dumps(Attack(target), protocol=0)},
        {"data/constants/opaque_obj_0": pickle.dumps(Attack(target), protocol=0)},
        {
            "data/weights/weight_0": pickle.dumps(Attack(target), protocol=0),
            "data/weights/model_weights_config.json": json.dumps(
                {"config": {"0.weight": {"path_name": "weight_0", "use_pickle": True}}}
            ).encode(),
        },
    ]
    for number, changes in enumerate(attacks):
        path = tmp_path / f"m{number}.pt2"
        save_exported(net, x, path)
        rewritten(path, changes)
        text = failure(parse_source(path))
        assert "`posix.system` to be read" in text
        assert "It was not read." in text
        assert not target.exists()


def test_compiled_packages_and_other_archives_are_named(tmp_path: Path) -> None:
    def archive(name: str, *members: str) -> str:
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for member in members:
                file.writestr(member, b"x")
        with pytest.raises(ModelError) as error:
            parse_source(tmp_path / name)
        return str(error.value)

    assert "a library compiled for one machine" in archive("a.pt2", "a/data/aotinductor/model/x.so")
    assert "an archive of NumPy arrays" in archive("a.npz", "x.npy", "y.npy")
    assert "a zip archive without a model in it" in archive("a.pt", "readme.txt")


@pytest.mark.parametrize("name", ["m.pt", "m.ts", "m.torchscript", "m.pt2"])
def test_torchscript(
    tmp_path: Path, net: nn.Module, x: torch.Tensor, save_torchscript: SaveScript, name: str
) -> None:
    save_torchscript(net.train(), tmp_path / name)
    source = parse_source(tmp_path / name)
    assert source == Source(kind="torchscript", spec=str(tmp_path / name))
    check(source, net.eval(), x)


def test_frozen_torchscript(tmp_path: Path, net: nn.Module, x: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.freeze(torch.jit.script(net)).save(str(tmp_path / "m.pt"))
    check(parse_source(tmp_path / "m.pt"), net, x)


def test_damaged_torchscript(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        file.writestr("m/constants.pkl", b"x")
        file.writestr("m/code/__torch__.py", b"x")
    text = failure(parse_source(tmp_path / "m.pt"))
    assert "cannot be loaded as TorchScript file: RuntimeError: " in text


def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, ["b", 4]) for name in "xy"]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:])),
        tmp_path / "m.onnx",
    )
    model = load_model(parse_source(tmp_path / "m.onnx"))
    assert (model.kind, model.name, model.module) == ("onnx", "m", None)
    assert model.onnx_path == tmp_path / "m.onnx"

    node.op_type = "NoSuchOperator"
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:])),
        tmp_path / "n.onnx",
    )
    text = failure(parse_source(tmp_path / "n.onnx"))
    assert "cannot be loaded as ONNX file: ValidationError: " in text
    assert "NoSuchOperator" in text

    (tmp_path / "o.onnx").write_bytes(b"this is no protobuf")
    assert "cannot be loaded as ONNX file" in failure(parse_source(tmp_path / "o.onnx"))


def test_files_that_changed_since_are_refused(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "m.pt")
    text = failure(Source(kind="torchscript", spec=str(tmp_path / "m.pt")))
    assert "is pickle. Expected torchscript. The file changed since it was chosen: start again." in text
    assert "does not exist" in failure(Source(kind="exported", spec=str(tmp_path / "gone.pt2")))


def test_a_module_from_python_is_built_again(tmp_path: Path, net: nn.Module, x: torch.Tensor) -> None:
    source = parse_source(net, workdir=tmp_path / "run")
    assert source.kind == "module"
    assert source.spec == str(tmp_path / "run" / "module.pkl")
    assert (tmp_path / "run" / "module.pkl").stat().st_mode & 0o077 == 0
    module = check(source, net, x)
    assert module is not net
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_weights_go_onto_a_module_from_python(tmp_path: Path, net: nn.Module, x: torch.Tensor) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    blank = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    check(parse_source(blank, workdir=tmp_path, weights=tmp_path / "w.pth"), net, x)


def test_a_module_of_a_script_is_built_again_in_another_process(tmp_path: Path) -> None:
    """Classes of `__main__` travel by value, classes of a script's neighbours by the search path."""
    (tmp_path / "layers_beside_script.py").write_text("from torch import nn\nclass Head(nn.Linear): pass\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib, msgspec, torch\n"
        "from torch import nn\n"
        "from layers_beside_script import Head\n"
        "from alula.sources import parse_source\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = Head(2, 2, bias=False)\n"
        "        self.head.weight.data = torch.eye(2) * 3\n"
        "    def forward(self, x): return self.head(x)\n"
        "source = parse_source(Net(), workdir=pathlib.Path(sys.argv[1]))\n"
        "sys.stdout.buffer.write(msgspec.json.encode(source))\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, cwd="/")
    assert done.returncode == 0, done.stderr
    model = load_model(msgspec.json.decode(done.stdout, type=Source))
    assert model.name == "Net"
    assert model.module is not None
    np.testing.assert_array_equal(model.module(torch.ones(1, 2)).numpy(), [[3, 3]])


def test_torchscript_and_exported_programs_from_python(
    tmp_path: Path, net: nn.Module, x: torch.Tensor
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(net)
    source = parse_source(scripted, workdir=tmp_path)
    assert source == Source(kind="torchscript", spec=str(tmp_path / "module.ts"))
    check(source, net, x)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    source = parse_source(program, workdir=tmp_path)
    assert source == Source(kind="exported", spec=str(tmp_path / "module.pt2"))
    check(source, net, x)


def test_modules_that_cannot_be_written(tmp_path: Path, net: nn.Module) -> None:
    net.stream = sys.stdout.buffer  # type: ignore[assignment]
    with pytest.raises(ModelError) as error:
        parse_source(net, workdir=tmp_path)
    text = str(error.value)
    assert text.startswith("The module Sequential cannot be handed to child processes: TypeError: ")
    assert "Give it as code that builds it: MODEL `file.py:NAME`" in text
    (tmp_path / "folder" / "module.pkl").mkdir(parents=True)
    with pytest.raises(ModelError, match="cannot be written to"):
        parse_source(nn.Identity(), workdir=tmp_path / "folder")


def test_only_the_module_file_that_was_written_is_read(tmp_path: Path, net: nn.Module) -> None:
    source = parse_source(net, workdir=tmp_path)
    target = tmp_path / "pwned"
    torch.save(Attack(target), source.spec)
    text = failure(source)
    assert "is not the file that was written for this run. It was not read." in text
    assert not target.exists()
    Path(source.spec).unlink()
    assert "cannot be opened: No such file or directory." in failure(source)


def test_a_module_whose_class_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vanishing_layers.py").write_text("from torch import nn\nclass Head(nn.Identity): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import vanishing_layers

    source = parse_source(vanishing_layers.Head(), workdir=tmp_path / "run")
    (tmp_path / "vanishing_layers.py").unlink()
    monkeypatch.delitem(sys.modules, "vanishing_layers")
    assert "raised ModuleNotFoundError: No module named 'vanishing_layers'" in failure(source)
