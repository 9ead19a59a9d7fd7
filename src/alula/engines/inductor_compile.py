"""TorchInductor ahead of time: exported programs to libraries, and a store of libraries on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from alula.core import ARTIFACT_FILES, Recipe, Scalar
from alula.engines.inductor_library import EXTERN_NAME, LIBRARY_NAME
from alula.engines.torch_eager import first_line, load_exported
from alula.engines.torch_graphs import bf16
from alula.errors import EngineError, EngineUnavailableError
from alula.hardware import read_cpu

if TYPE_CHECKING:
    import torch
    from torch import fx

__all__ = ["MAX_AUTOTUNE", "compile_for_any_batch", "compiled_for_batch", "require_compiler"]

MAX_AUTOTUNE = "max-autotune"
"""The variant whose matrix products are timed against generated ones, and the faster taken."""

STORE_BYTES = 4 * 2**30  # libraries hold the weights; what was not used for longest goes first

_DYNAMIC_BATCH = 2  # what the example has; 0 and 1 would be taken for constants

# Options by the names of `torch._inductor.config`.
_OPTIONS: dict[str, Scalar] = {
    # Weights become constants, folded into each other and packed for the CPU.
    "freezing": True,
    # One library for every number of threads: as many as the calling thread has set.
    "cpp.dynamic_threads": True,
}
_VARIANT_OPTIONS: dict[str | None, dict[str, Scalar]] = {
    MAX_AUTOTUNE: {"max_autotune": True, "autotune_num_choices_displayed": 0},
}
_compiling = threading.Lock()  # PyTorch's compiler keeps its options and much else in globals
_log = logging.getLogger(__name__)


def require_compiler() -> None:
    """Check that the C++ compiler that PyTorch would call is there.

    Raises:
        EngineUnavailableError: it is not.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise EngineUnavailableError(
            f"inductor (no C++ compiler `{compiler}` found)", install="apt-get install g++"
        )


def compiled_for_batch(artifact: Path, *, recipe: Recipe, batch_size: int) -> Path:
    """Return a folder with the library of an artifact for batches of one size.

    It is compiled when this machine has not done so before, which takes from five seconds to minutes;
    the number of threads makes no other library. A warning is logged that says how long it took. Libraries
    are kept in TorchInductor's own folder for such things (`TORCHINDUCTOR_CACHE_DIR`, else in the system's
    folder for temporary files).

    Args:
        artifact: folder of an exported program.
        recipe: of the artifact.
        batch_size: where the program leaves it open.

    Raises:
        EngineUnavailableError: it must be compiled, and there is no C++ compiler.
        EngineError: the program cannot be read or compiled, or the folder cannot be used.
    """
    path = artifact / ARTIFACT_FILES["exported"]
    options = {**_machine_options(), **_VARIANT_OPTIONS.get(recipe.variant, {})}
    try:
        store = _store()
        store.mkdir(parents=True, exist_ok=True)
        _check_own(store)
        folder = store / _key(path, recipe, batch_size, options)
        if not (folder / LIBRARY_NAME).exists():
            require_compiler()
            started = time.perf_counter()
            with _compiling, tempfile.TemporaryDirectory(dir=store) as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                module = _read(path, recipe)
                example = _example(module, batch_size)
                _compile(_for_batch(module, example, recipe), example, made, options)
                # Another process may have been faster.
                with contextlib.suppress(OSError):
                    made.rename(folder)
            _log.warning(
                "%s was compiled for batches of %d on this machine in %.0f s; it is kept in %s.",
                recipe,
                batch_size,
                time.perf_counter() - started,
                store,
            )
            _forget_oldest(store, folder)
        os.utime(folder)
    except OSError as error:
        raise EngineError(f"The library of {path} cannot be made or found: {error}.") from error
    return folder


def compile_for_any_batch(export: Path, folder: Path, *, recipe: Recipe) -> None:
    """Write the library of an exported program for batches of any size.

    Without a size weights are not packed beforehand, which costs a few per cent, and more for a batch of one.

    Args:
        export: folder of the exported program, with an open batch axis.
        folder: existing.
        recipe: to make.

    Raises:
        EngineError: the program cannot be read or compiled.
    """
    options = _machine_options()
    if read_cpu().arch == "x86_64":
        # Only what the vector kernels are written for, so that the CPU's recorded instruction sets say
        # all that the library needs; as fast as with everything that the CPU has.
        options["cpp.march"] = ""
    with _compiling:
        module = _read(export / ARTIFACT_FILES["exported"], recipe)
        _compile(module, _example(module, _DYNAMIC_BATCH), folder, options)


def _store() -> Path:
    from torch._inductor.codecache import cache_dir

    return Path(cache_dir()) / "alula"


def _check_own(store: Path) -> None:
    """Check that nobody else can have put a library there; what is found in it is run.

    Raises:
        EngineError: the folder or the one above is another user's.
    """
    for folder in (store.parent, store):
        if folder.stat().st_uid != os.getuid():
            raise EngineError(
                f"{folder} belongs to another user, whose libraries would be run. "
                "Set TORCHINDUCTOR_CACHE_DIR to a folder of yours."
            )


def _machine_options() -> dict[str, Scalar]:
    # Loops are cut into pieces enough for all threads that there may be.
    return {**_OPTIONS, "cpp.threads": os.cpu_count() or 1}


def _key(path: Path, recipe: Recipe, batch_size: int, options: dict[str, Scalar]) -> str:
    """Return the name of a library: the same for the same program, use, PyTorch and CPU."""
    import torch

    cpu = read_cpu()
    made_with = (
        recipe.precision,
        batch_size,
        options,
        str(torch.__version__),
        cpu.arch,
        cpu.model_name,
        cpu.isa,
    )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(msgspec.json.encode(made_with))
    return digest.hexdigest()[:32]


def _read(path: Path, recipe: Recipe) -> fx.GraphModule:
    if recipe.precision == "int8":
        try:
            # Defines the operators that quantize and dequantize.
            import torch.ao.quantization.fx._decomposed  # noqa: F401
        except ImportError as error:
            raise EngineError(
                f"This PyTorch lacks the operators of quantized programs: {error}. Use another recipe."
            ) from error
    return load_exported(path)


def _example(module: fx.GraphModule, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Return zeros as inputs; open axes have the batch size."""
    import torch

    values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    return tuple(
        torch.zeros(
            [size if isinstance(size, int) else batch_size for size in value.shape], dtype=value.dtype
        )
        for value in values
    )


def _for_batch(module: fx.GraphModule, example: tuple[torch.Tensor, ...], recipe: Recipe) -> fx.GraphModule:
    """Return a module with all sizes fixed, so that weights can be packed for them."""
    import torch
    from torch.utils import _pytree as pytree

    call = bf16(module, module) if recipe.precision == "bf16" else module

    class Called(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(pytree.tree_leaves(call(*inputs)))

    with _one_line_failures(), torch.no_grad():
        return torch.export.export(Called(), example, strict=False).module()


def _compile(
    module: fx.GraphModule,
    example: tuple[torch.Tensor, ...],
    folder: Path,
    options: dict[str, Scalar],
) -> None:
    import torch

    with tempfile.TemporaryDirectory(dir=folder) as scratch, _one_line_failures(), torch.no_grad():
        library = Path(
            torch._inductor.aot_compile(
                module, example, options={**options, "aot_inductor.output_path": scratch}
            )
        )
        library.rename(folder / LIBRARY_NAME)
        extern = library.with_suffix(".json")
        if extern.exists():
            extern.rename(folder / EXTERN_NAME)


@contextlib.contextmanager
def _one_line_failures() -> Iterator[None]:
    """Turn what the compiler raises into one line; keep its advice to its developers off the screen."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        AssertionError,
        ArithmeticError,
        OSError,
    ) as error:
        raise EngineError(f"Inductor could not compile the model: {_cause(error)}") from error
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """Return the C++ compiler's first error, where it was the C++ compiler, or the first line."""
    _, said, output = str(error).partition("\nOutput:\n")
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    text = errors[0] if said and errors else first_line(error)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _forget_oldest(store: Path, kept: Path) -> None:
    """Remove libraries until the rest is small enough; never the one that was just made."""
    used, sizes = {}, {}
    for folder in store.iterdir():
        # Another process may remove it at the same time.
        with contextlib.suppress(OSError):
            sizes[folder] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            used[folder] = folder.stat().st_mtime
    total = sum(sizes.values())
    for folder in sorted(used, key=lambda folder: used[folder]):
        if total <= STORE_BYTES:
            return
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
