"""Turns a `Source` into the model."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.errors import ModelError
from alula.libraries import import_torch
from alula.sources.content import detect_content
from alula.sources.factories import build_factory, build_named, parse_options
from alula.sources.foreign import READ_ERRORS, called, importable, said
from alula.sources.pickles import scan_checkpoint
from alula.sources.types import LoadedModel, Source
from alula.sources.weights import load_weights

if TYPE_CHECKING:
    import torch

__all__ = ["load_model"]


def load_model(source: Source) -> LoadedModel:
    """Return the model that a source describes; the same source gives the same weights in every process.

    Modules come in eval mode, on the CPU, in float32, without gradients. Not thread-safe: while code is
    loaded, the process's import path and random state are changed, and put back.

    Raises:
        EngineUnavailableError: torch, timm or torchvision is needed and not installed.
        ModelError: the model or its weights cannot be loaded; the message says why.
    """
    match source.kind:
        case "onnx":
            return _load_onnx(Path(source.spec))
        case "exported":
            module = _load_exported(Path(source.spec))
        case "torchscript":
            module = _load_torchscript(Path(source.spec))
        case "module":
            module = _load_written(source)
        case "factory":
            module = build_factory(source.spec, search_path=source.search_path)
        case "timm" | "torchvision":
            module = build_named(source.spec)
    if source.weights is not None:
        has_options = source.kind in {"timm", "torchvision"}
        load_weights(module, Path(source.weights), has_options=has_options)
    # Graphs of files hold devices and dtypes inside; only modules built from code can change theirs.
    module = _settled(module, source, from_code=source.kind not in {"exported", "torchscript"})
    return LoadedModel(kind="module", name=_name(source, module), module=module)


def _name(source: Source, module: torch.nn.Module) -> str:
    if source.kind == "factory":
        return source.spec.rpartition(":")[2]
    if source.kind in {"timm", "torchvision"}:
        return parse_options(source.spec.partition(":")[2])[0]
    if source.kind == "module":
        return type(module).__name__
    return Path(source.spec).stem


def _settled(module: torch.nn.Module, source: Source, *, from_code: bool) -> torch.nn.Module:
    torch = import_torch()
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ModelError(
            f"`{source.spec}` has weights on the meta device, which hold no values. "
            f"Build it on the CPU, or pass its weights with --weights."
        )
    devices = sorted({tensor.device.type for tensor in tensors} - {"cpu"})
    if devices and not from_code:
        raise ModelError(
            f"`{source.spec}` was saved for device {', '.join(devices)}. Expected the CPU. "
            f"Move the model to the CPU and export it again."
        )
    if from_code:
        module = module.to("cpu")
        if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
            module = module.float()
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    # What `torch.nn.utils.weight_norm` and its like computed last: with its gradients it cannot be copied.
    for child in module.modules():
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                vars(child)[name] = value.detach()
    return module


def _load_written(source: Source) -> torch.nn.Module:
    """Return a module that `parse_source` wrote, and refuse any other file: unpickling runs code."""
    torch = import_torch()
    path = Path(source.spec)
    what = f"Module file `{path}`"
    try:
        file = path.open("rb")
    except OSError as error:
        raise ModelError(
            f"{what} cannot be opened: {error.strerror}. It lives as long as the run it is of."
        ) from error
    with file:
        if hashlib.file_digest(file, "sha256").hexdigest() != source.sha256:
            raise ModelError(
                f"{what} is not the file that was written for this run. It was not read. Start again."
            )
        file.seek(0)

        def unpickle() -> Any:
            return torch.load(file, map_location="cpu", weights_only=False)

        with importable(source.search_path):
            module = called(what, unpickle)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{what} holds a {type(module).__qualname__}. Expected a torch.nn.Module.")
    return module


def _load_torchscript(path: Path) -> torch.nn.Module:
    torch = import_torch()
    _expect(path, "torchscript")
    with warnings.catch_warnings():
        # TorchScript is deprecated; those who still have such a model know.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(_unreadable(path, "TorchScript file", error)) from error


def _load_exported(path: Path) -> torch.nn.Module:
    """Return the module of a `.pt2` file.

    The module's `train` and `eval`, which raise, are put back to those of every module; that is right
    here because a graph exported in training mode is refused.
    """
    torch = import_torch()
    _expect(path, "exported")
    _refuse_hostile_members(path)
    with warnings.catch_warnings(), _silenced("torch.export"), path.open("rb") as file:
        warnings.simplefilter("ignore")  # About the age of the file's format.
        try:
            program = torch.export.load(file)
            module = program.module()
        except READ_ERRORS as error:
            raise ModelError(_unreadable(path, "ExportedProgram", error)) from error
    trained = _training_nodes(module)
    if trained:
        raise ModelError(
            f"`{path}` was exported in training mode (`{trained[0]}` and {len(trained) - 1} more), "
            f"so that its outputs depend on the batch or on chance. "
            f"Call `model.eval()` before `torch.export.export` and save it again."
        )
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module


def _training_nodes(module: Any) -> list[str]:
    """Return the names of the graph's nodes that have a flag for training, and have it on."""
    torch = import_torch()
    found = []
    for node in module.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        for position, argument in enumerate(node.target._schema.arguments):
            if argument.name not in {"train", "training"}:
                continue
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if value is True:
                found.append(node.name)
    return found


def _refuse_hostile_members(path: Path) -> None:
    """Refuse a `.pt2` whose pickles need more than tensors: its reader would load them without asking.

    This stops pickles only. The graph of a `.pt2` is code, and to be trusted like code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = _pickled_members(archive)
            for name in archive.namelist():
                with archive.open(name) as member:
                    head = member.read(2)
                # Raw weights may start like a pickle by chance; they do not then read like one.
                if name in pickled or head == b"PK" or head[:1] == b"\x80":
                    needs = scan_checkpoint(io.BytesIO(archive.read(name))).needs
                    if needs:
                        raise ModelError(
                            f"`{path}` needs {', '.join(f'`{need}`' for need in needs[:5])} to be read "
                            f"(in {name}), and would run their code. It was not read. Expected tensors only: "
                            f"export the model with tensors as inputs and constants."
                        )
    except READ_ERRORS as error:
        raise ModelError(_unreadable(path, "ExportedProgram", error)) from error


def _pickled_members(archive: zipfile.ZipFile) -> set[str]:
    """Return the members that are pickles by their name or by what the archive says of them."""
    pickled = set()
    for name in archive.namelist():
        folder, _, file = name.rpartition("/")
        if file.endswith((".pt", ".pkl")) or file.startswith(("custom_obj_", "opaque_obj_")):
            pickled.add(name)
        elif file.endswith("_config.json"):
            entries = json.loads(archive.read(name)).get("config", {}).values()
            pickled |= {f"{folder}/{entry['path_name']}" for entry in entries if entry.get("use_pickle")}
    return pickled


def _load_onnx(path: Path) -> LoadedModel:
    """Return the file itself, checked where the `onnx` package is installed; an engine reads it."""
    _expect(path, "onnx")
    try:
        import onnx
    except ImportError:
        return LoadedModel(kind="onnx", name=path.stem, onnx_path=path)
    try:
        # By path, because that also finds weights in files beside it, and files above 2 GB.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, *READ_ERRORS) as error:
        raise ModelError(_unreadable(path, "ONNX file", error)) from error
    return LoadedModel(kind="onnx", name=path.stem, onnx_path=path)


def _expect(path: Path, content: str) -> None:
    found = detect_content(path)
    if found != content:
        raise ModelError(
            f"`{path}` is {found}. Expected {content}. The file changed since it was chosen: start again."
        )


def _unreadable(path: Path, what: str, error: BaseException) -> str:
    return (
        f"`{path}` cannot be loaded as {what}: {said(error)}. The file may be cut off, "
        f"damaged, or of another version of its library: export it again with the versions installed here."
    )


@contextlib.contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Keep a logger quiet, whose tracebacks repeat the error that is raised anyway."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
