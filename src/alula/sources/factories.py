"""Builds modules from code: factories in files and packages, and the names of timm and torchvision."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from alula.errors import EngineUnavailableError, ModelError, UsageError, closest
from alula.libraries import import_torch
from alula.sources.foreign import called, cause_of, importable, repeatable

if TYPE_CHECKING:
    import torch

__all__ = ["Option", "build_factory", "build_named", "factory_names", "parse_options"]

Option = bool | int | float | str

_HUB_OPTIONS = {
    "timm": {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"},
    "torchvision": {"weights", "weights_backbone"},
}


def build_factory(spec: str, *, search_path: tuple[str, ...] = ()) -> torch.nn.Module:
    """Return the module that a factory `file.py:NAME` or `package.module:NAME` makes.

    NAME is a callable without required arguments, a subclass of `nn.Module`, or an instance of one
    (which is copied, so that the original stays as it is).

    Raises:
        ModelError: no such file, module or name; it raised, needs arguments, or made something else.
    """
    import_torch()
    where, _, name = spec.rpartition(":")
    with importable(search_path), repeatable():
        namespace = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
        near = Path(namespace.__file__).parent if namespace.__file__ else None
        return _build(_find(namespace, name, where), spec, near)


def build_named(spec: str) -> torch.nn.Module:
    """Return the module that `timm:NAME?option=value` or `torchvision:NAME?option=value` names, no weights.

    Raises:
        EngineUnavailableError: timm or torchvision is not installed.
        ModelError: no such model, or it does not take these options.
        UsageError: an option that would load weights from a hub.
    """
    import_torch()
    library, _, rest = spec.partition(":")
    name, options = parse_options(rest)
    hub = sorted(_HUB_OPTIONS[library] & options.keys())
    if hub:
        raise UsageError(
            f"`{spec}` asks for weights by `{hub[0]}`. Hubs are not contacted. "
            f"Leave the option out and pass a weights file with --weights."
        )
    if ":" in name or "/" in name:
        raise UsageError(
            f"`{spec}` names a hub or a path. Expected the name of an architecture. "
            f"Write {library}:NAME and pass a weights file with --weights."
        )
    # Renamed models and initialisation notes are the libraries' talk with their own users.
    with warnings.catch_warnings(), repeatable():
        warnings.simplefilter("ignore")
        build = _timm_model if library == "timm" else _torchvision_model
        return build(spec, name, options)


def parse_options(text: str) -> tuple[str, dict[str, Option]]:
    """Return the name and the options of `NAME?key=value&key=value`.

    >>> parse_options("resnet18?in_chans=1&drop_rate=0.1&global_pool=avg&features_only=false")
    ('resnet18', {'in_chans': 1, 'drop_rate': 0.1, 'global_pool': 'avg', 'features_only': False})

    Raises:
        UsageError: no name, or an option that is not `key=value`, or one given twice.
    """
    name, mark, tail = text.partition("?")
    if not name:
        raise UsageError(f"`{text}` names no model. Expected NAME?option=value&option=value.")
    options: dict[str, Option] = {}
    for part in tail.split("&") if mark else ():
        key, equals, value = part.partition("=")
        if not (equals and key.isidentifier() and value):
            raise UsageError(
                f"`{part}` in `{text}` is not an option. Expected option=value, joined by `&`; "
                f"quote the whole MODEL in a shell."
            )
        if key in options:
            raise UsageError(f"Option `{key}` is given twice in `{text}`. Keep one.")
        options[key] = _value(value)
    return name, options


def _value(text: str) -> Option:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def factory_names(path: Path) -> list[str]:
    """Return the functions and classes that a Python file defines, without running it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        others = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ModelError(f"Factory file `{path}` does not exist.{closest(path.name, others)} Check the path.")
    _refuse_shadowed_neighbours(path)
    # The name must be the same in every process, and differ between files with one stem.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"alula_factory_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"Factory file `{path}` cannot be read as Python source.")
    module = importlib.util.module_from_spec(spec)
    # Classes look themselves up here while they are created (dataclasses, TorchScript, torch.export).
    sys.modules[name] = module
    try:
        called(f"Factory file `{path}`", lambda: spec.loader.exec_module(module), near=path.parent)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _refuse_shadowed_neighbours(path: Path) -> None:
    """Refuse a file that would silently get another folder's module instead of its neighbour.

    Python holds one module of a name: after `run1/model.py` imported `run1/layers.py`, the `layers` of
    `run2/model.py` would be that of run1.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # Running the file gives the better error.
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    for name in sorted(names - sys.stdlib_module_names):
        here = [place for place in (path.parent / f"{name}.py", path.parent / name) if place.exists()]
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if here and loaded and not Path(loaded).resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(
                f"Factory file `{path}` imports `{name}`, which is `{here[0]}` beside it, but this process "
                f"holds `{name}` from `{loaded}` already. Rename one, or use two processes."
            )


def _load_module(name: str) -> ModuleType:
    found: ModuleType | None = sys.modules.get(name)
    if found is not None:
        return found

    def load() -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only the named module itself, or a package above it: what it imports is its own error.
            if error.name is not None and (name + ".").startswith(error.name + "."):
                return None
            raise

    module: ModuleType | None = called(f"Importing `{name}`", load)
    if module is None:
        hint = closest(name, ["timm", "torchvision"])
        raise ModelError(
            f"There is no Python module `{name}` to take a model from.{hint} "
            f"Install it, run where it is importable, or name a file: path/to/file.py:NAME."
        )
    return module


def _find(namespace: ModuleType, name: str, where: str) -> Any:
    try:
        return vars(namespace)[name]
    except KeyError:
        pass
    torch = import_torch()
    valid = [
        key
        for key, value in vars(namespace).items()
        if not key.startswith("_") and (callable(value) or isinstance(value, torch.nn.Module))
    ]
    own = [key for key in valid if getattr(vars(namespace)[key], "__module__", None) == namespace.__name__]
    listed = ", ".join(f"`{key}`" for key in (own or valid)[:5])
    names = f" It defines {listed}." if listed else " It defines no function, class or module."
    raise ModelError(f"`{where}` has no `{name}`.{closest(name, valid)}{names}")


def _build(factory: Any, spec: str, near: Path | None) -> torch.nn.Module:
    torch = import_torch()
    if isinstance(factory, torch.nn.Module):
        return called(f"Copying `{spec}`", lambda: copy.deepcopy(factory), near=near)
    if not callable(factory):
        raise ModelError(f"`{spec}` is {_described(factory)}. Expected an nn.Module, or what makes one.")
    needed = _required_arguments(factory)
    if needed:
        name = spec.rpartition(":")[2]
        call = ", ".join(f"{argument}=..." for argument in needed)
        raise ModelError(
            f"`{spec}` needs the arguments {', '.join(f'`{argument}`' for argument in needed)}. "
            f"Expected a factory without required arguments. "
            f"Add one beside it: `def make_{name}(): return {name}({call})`."
        )
    made = called(f"Factory `{spec}`", factory, near=near)
    if not isinstance(made, torch.nn.Module):
        raise ModelError(f"Factory `{spec}` returned {_described(made)}. Expected a torch.nn.Module.")
    return made


def _described(value: object) -> str:
    kind = type(value)
    text = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, dict):
        return f"a {text} (weights are passed with --weights)"
    return f"None ({text})" if value is None else f"a value of type {text}"


def _required_arguments(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # Callables of extension modules have none to show.
        return []
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in positional]


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise EngineUnavailableError(name, install=f"pip install {name}") from error
        raise ModelError(f"`{name}` cannot be imported: {cause_of(error)}. Install what it needs.") from error
    # torchvision built for another torch raises RuntimeError or OSError while it is imported.
    except (ImportError, RuntimeError, OSError) as error:
        raise ModelError(
            f"`{name}` cannot be imported: {cause_of(error)}. "
            f"Install the builds of torch and torchvision that belong together."
        ) from error


def _timm_model(spec: str, name: str, options: dict[str, Option]) -> torch.nn.Module:
    timm = _imported("timm")
    if not timm.is_model(name):
        hint = closest(name.partition(".")[0], timm.list_models())
        raise ModelError(f"timm {timm.__version__} has no model `{name}`.{hint}")
    return called(f"`{spec}`", lambda: timm.create_model(name, pretrained=False, **options))


def _torchvision_model(spec: str, name: str, options: dict[str, Option]) -> torch.nn.Module:
    models = _imported("torchvision").models
    if name not in models.list_models():
        hint = closest(name, models.list_models())
        raise ModelError(f"torchvision has no model `{name}`.{hint}")
    builder = models.get_model_builder(name)
    # Detection and segmentation models would fetch weights for their backbone.
    arguments: dict[str, Any] = {
        key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters
    }
    return called(f"`{spec}`", lambda: builder(**arguments, **options))
