"""Turns what a user gives as MODEL into a `Source`."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.errors import ModelError, UsageError, closest
from alula.libraries import import_torch
from alula.sources.content import detect_content
from alula.sources.factories import factory_names, parse_options
from alula.sources.foreign import cause_of
from alula.sources.pickles import scan_checkpoint
from alula.sources.types import Kind, Source
from alula.sources.weights import is_state_dict_file

if TYPE_CHECKING:
    import torch

__all__ = ["parse_source"]

_FORMS = (
    "Expected a file (.pt2, TorchScript, .onnx), `file.py:NAME`, `package.module:NAME`, `timm:NAME` "
    "or `torchvision:NAME`."
)


def parse_source(
    model: str | Path | torch.nn.Module,
    *,
    weights: str | Path | None = None,
    workdir: Path | None = None,
) -> Source:
    """Return how to build `model` again in any process.

    Files are looked at (see `detect_content`) but not loaded, and factories are not run.

    Args:
        model: a module; or a file; or `file.py:NAME`, `package.module:NAME`, `timm:NAME?option=value`,
            `torchvision:NAME?option=value`. ExportedPrograms are taken too.
        weights: a weights file for a model that is built from code.
        workdir: a private folder of this run; a module from Python is written there, as `module.pkl`
            (`module.ts` for TorchScript, `module.pt2` for an ExportedProgram), for child processes to read.

    Raises:
        ModelError: a file is missing or is not a model; a module cannot be written.
        UsageError: `model` has no known form, or does not take weights.
    """
    weights_path = None if weights is None else _weights_path(weights)
    source = (
        _text_source(str(model)) if isinstance(model, str | Path) else _live_source(model, workdir=workdir)
    )
    if weights_path is None:
        return source
    if source.kind in {"exported", "torchscript", "onnx"}:
        raise UsageError(
            f"`{source.spec}` holds its weights itself; got --weights `{weights_path}` too. "
            f"Leave --weights out, or give the model as code."
        )
    return Source(
        kind=source.kind,
        spec=source.spec,
        weights=str(weights_path),
        search_path=source.search_path,
        sha256=source.sha256,
    )


def _weights_path(weights: str | Path) -> Path:
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"Weights file `{path}` does not exist.{closest(path.name, others)} Check the path.")
    return path


def _text_source(text: str) -> Source:
    path = Path(text).expanduser().absolute()
    if path.exists():
        return _file_source(path)
    scheme, colon, name = text.partition(":")
    if scheme == "timm" and colon:
        parse_options(name)
        return Source(kind="timm", spec=text)
    if scheme == "torchvision" and colon:
        parse_options(name)
        return Source(kind="torchvision", spec=text)
    if ":" in text:
        return _factory_source(text)
    if path.suffix or os.sep in text:
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"`{path}` does not exist.{closest(path.name, others)} Check the path.")
    raise UsageError(
        f"`{text}` is neither a file nor a known form of MODEL. {_FORMS} "
        f"An architecture by its name is `timm:{text}` or `torchvision:{text}`."
    )


def _factory_source(text: str) -> Source:
    where, _, name = text.rpartition(":")
    path = Path(where).expanduser().absolute()
    if not name.isidentifier():
        raise UsageError(f"`{text}` names no factory: `{name}` is not a Python name. {_FORMS}")
    if where.endswith(".py"):
        return Source(kind="factory", spec=f"{path}:{name}", search_path=(str(path.parent),))
    if os.sep in where or path.is_file():
        raise UsageError(f"`{where}` is not a Python file. Factories live in `file.py:NAME`.")
    if not all(part.isidentifier() for part in where.split(".")):
        raise UsageError(f"`{where}` is not the name of a Python module. {_FORMS}")
    return Source(kind="factory", spec=text, search_path=_own_search_path())


def _file_source(path: Path) -> Source:
    if path.suffix == ".py":
        names = factory_names(path)
        example = names[-1] if names else "NAME"
        listed = f" It defines {', '.join(f'`{name}`' for name in names[:5])}." if names else ""
        raise UsageError(
            f"`{path}` is Python source without a factory named.{listed} Write `{path.name}:{example}`."
        )
    content = detect_content(path)
    if content == "safetensors" or (content == "pickle" and is_state_dict_file(path)):
        raise ModelError(
            f"`{path}` is a state dict (weights), not a model. "
            f"Give the architecture as MODEL and this file as --weights."
        )
    if content == "pickle":
        with path.open("rb") as file:
            scan = scan_checkpoint(file)
        if scan.hostile:
            raise ModelError(
                f"`{path}` would call {', '.join(f'`{name}`' for name in scan.hostile[:5])} when it is read. "
                f"It was not read. Models need no such function and attacks do: do not open this file."
            )
        held = f"a pickled object of class `{scan.whole}`" if scan.whole else "a pickle"
        raise ModelError(
            f"`{path}` is {held}, which only runs where its code is, and runs code when it is read. "
            f"Where that code is, write `torch.save(model.state_dict(), 'weights.pth')`, "
            f"then give the architecture as MODEL and weights.pth as --weights."
        )
    return Source(kind=content, spec=str(path))


def _live_source(model: object, *, workdir: Path | None) -> Source:
    torch = import_torch()
    if not isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        raise UsageError(
            f"MODEL is a value of type {type(model).__qualname__}. Expected a torch.nn.Module or text."
        )
    if workdir is None:
        raise UsageError("A module from Python needs a `workdir`, where child processes can read it.")
    workdir = workdir.absolute()
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    kind: Kind
    with warnings.catch_warnings():
        # TorchScript is deprecated; those who still have such a model know.
        warnings.simplefilter("ignore", DeprecationWarning)
        if isinstance(model, torch.export.ExportedProgram):
            kind, path = "exported", workdir / "module.pt2"
            _written(model, path, lambda: torch.export.save(model, str(path)))
        elif isinstance(model, torch.jit.ScriptModule):
            kind, path = "torchscript", workdir / "module.ts"
            _written(model, path, lambda: torch.jit.save(model, str(path)))
        else:
            kind, path = "module", workdir / "module.pkl"
            _written(model, path, lambda: _pickle_module(model, path))
    if kind != "module":
        return Source(kind=kind, spec=str(path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(kind=kind, spec=str(path), search_path=_own_search_path(), sha256=digest)


def _pickle_module(model: Any, path: Path) -> None:
    import cloudpickle
    import torch

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        torch.save(model, file, pickle_module=cloudpickle, pickle_protocol=pickle.DEFAULT_PROTOCOL)


def _written(model: object, path: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise ModelError(
            f"The model cannot be written to `{path}`: {error}. Free space or fix the folder."
        ) from error
    except Exception as error:  # Pickling runs the code of every object in the module.
        raise ModelError(
            f"The module {type(model).__qualname__} cannot be handed to child processes: {cause_of(error)}. "
            f"Give it as code that builds it: MODEL `file.py:NAME`, with its state dict as weights."
        ) from error


def _own_search_path() -> tuple[str, ...]:
    """Return where this process finds the user's own modules: the path without the installation's folders."""
    installed = {Path(sys.prefix), Path(sys.base_prefix)}
    own = [str(Path.cwd())]
    for entry in sys.path:
        path = Path(entry).absolute()
        if path.exists() and not any(path.is_relative_to(folder / "lib") for folder in installed):
            own.append(str(path))
    return tuple(dict.fromkeys(own))
