"""What a model file is, told by its bytes; suffixes only where bytes cannot tell."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from alula.errors import ModelError

__all__ = ["Content", "detect_content"]

Content = Literal["exported", "torchscript", "onnx", "pickle", "safetensors"]

_EXPECTED = "Expected a .pt2, TorchScript or .onnx file, or a factory such as `model.py:build`."


def detect_content(path: Path) -> Content:
    """Return what the file at `path` holds.

    Raises:
        ModelError: it is missing, a folder, empty, damaged, or nothing that can be a model or weights.
    """
    if path.is_dir():
        hint = "It is a bundle already. " if (path / "bundle.json").is_file() else ""
        raise ModelError(f"`{path}` is a folder. {hint}{_EXPECTED}")
    if not path.is_file():
        raise ModelError(f"`{path}` does not exist. Check the path.")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise ModelError(f"`{path}` is empty (0 bytes). Copy or save it again.")
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if zipfile.is_zipfile(path):
        return _zip_content(path)
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04":
        raise ModelError(
            f"`{path}` is cut off: it starts like a zip archive and has no end ({size_bytes} bytes). "
            f"Copy or save it again."
        )
    # A safetensors file is the length of its JSON header in eight bytes, then the header.
    if path.suffix.lower() == ".safetensors" or (
        head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size_bytes
    ):
        return "safetensors"
    # Pickles of protocol 2 and newer, which torch and pickle write, start with 0x80 and the protocol.
    if head[:1] == b"\x80" and head[1] <= 5:
        return "pickle"
    raise ModelError(f"`{path}` is in no known model format. {_EXPECTED}")


def _zip_content(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"`{path}` is a damaged zip archive: {error}. Copy or save it again.") from error
    # torch puts everything below one folder named after the file; exports of torch before 2.8 do not.
    inner = {name.partition("/")[2] or name for name in names}
    if "serialized_exported_program.json" in names or any(
        name.startswith("models/") and name.endswith(".json") for name in inner
    ):
        return "exported"
    if any(name.startswith("data/aotinductor/") for name in inner):
        raise ModelError(
            f"`{path}` holds a library compiled for one machine, not a model. "
            f"Pass the ExportedProgram that it was compiled from (`torch.export.save`)."
        )
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "pickle"
    if names and all(name.endswith(".npy") for name in names):
        raise ModelError(f"`{path}` is an archive of NumPy arrays, not a model. {_EXPECTED}")
    raise ModelError(f"`{path}` is a zip archive without a model in it. {_EXPECTED}")
