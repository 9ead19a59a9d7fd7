"""What a pickle would import, found by reading its opcodes and never by running them."""

from __future__ import annotations

import pickletools
import re
import zipfile
from dataclasses import dataclass
from typing import IO

from alula.sources.foreign import READ_ERRORS

__all__ = ["PickleScan", "scan_checkpoint"]

# A checkpoint of torch's format before 1.6 is five pickles in a row, then raw storages.
_LEGACY_PICKLES = 5

_BENIGN = {
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
}
_BENIGN_PATTERN = re.compile(
    r"torch\.(\w*Storage|u?int\d+|q?u?int\d+(x\d)?|float\w+|bfloat16|complex\d+|double|half|long|bool)"
    r"|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_\w+"
)

_PLAIN_VALUES = {"argparse.Namespace", "types.SimpleNamespace", "numpy.dtype", "numpy.ndarray"}
_PLAIN_PATTERN = re.compile(
    r"numpy\.(_?core)\.(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)"
    r"|numpy\.dtypes\.\w+"
    r"|pathlib\.\w*Path"
    r"|datetime\.\w+"
)

_HOSTILE_MODULES = {
    "__builtin__",
    "builtins",
    "ctypes",
    "importlib",
    "marshal",
    "nt",
    "os",
    "posix",
    "pty",
    "runpy",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "webbrowser",
}
# Classes of builtins that honest checkpoints hold.
_HONEST_BUILTINS = {"bytearray", "complex", "frozenset", "list", "object", "range", "set", "slice", "tuple"}


@dataclass(frozen=True)
class PickleScan:
    """What a checkpoint would import if it were unpickled, sorted by what that means.

    Attributes:
        hostile: functions that an attack calls and an honest checkpoint does not.
        classes: other classes and functions, whose code would run.
        plain: harmless holders of values (`argparse.Namespace`, NumPy scalars), still not loaded.
        whole: the class of the top-level object, where that is not a dictionary or a tensor.
        texts: strings inside, among them the keys of dictionaries.
    """

    hostile: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    whole: str | None = None
    texts: frozenset[str] = frozenset()

    @property
    def needs(self) -> tuple[str, ...]:
        """Everything beyond tensors and plain containers."""
        return self.hostile + self.classes + self.plain


def scan_checkpoint(file: IO[bytes]) -> PickleScan:
    """Return what a file written by `torch.save` or `pickle.dump` would import if it were read.

    A file that holds no readable pickle gives an empty scan.

    >>> import argparse, io, pickle
    >>> scan_checkpoint(io.BytesIO(pickle.dumps({"args": argparse.Namespace(lr=0.1)}))).plain
    ('argparse.Namespace',)
    >>> scan_checkpoint(io.BytesIO(pickle.dumps({"run": eval}))).hostile
    ('builtins.eval',)
    """
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return _sorted(*_imports(file))
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == "data.pkl":
                    with archive.open(name) as member:
                        return _sorted(*_imports(member))
    except READ_ERRORS:
        pass  # Whoever reads the file itself says what is wrong with it.
    return PickleScan()


def _sorted(found: list[str], texts: set[str], whole: str | None) -> PickleScan:
    hostile, classes, plain = [], [], []
    for name in dict.fromkeys(found):
        module, _, attribute = name.rpartition(".")
        top = module.partition(".")[0]
        if name in _BENIGN or _BENIGN_PATTERN.fullmatch(name):
            continue
        if top in {"builtins", "__builtin__"} and attribute in _HONEST_BUILTINS:
            continue
        if top in _HOSTILE_MODULES:
            hostile.append(name)
        elif name in _PLAIN_VALUES or _PLAIN_PATTERN.fullmatch(name):
            plain.append(name)
        elif name not in {"copyreg._reconstructor", "copy_reg._reconstructor", "_codecs.encode"}:
            classes.append(name)
    whole = whole if whole in classes else None
    return PickleScan(tuple(hostile), tuple(classes), tuple(plain), whole, frozenset(texts))


def _imports(file: IO[bytes]) -> tuple[list[str], set[str], str | None]:
    """Return the names that the pickles import, their strings, and the class of the top-level object."""
    found: list[str] = []
    texts: set[str] = set()
    whole: str | None = None
    try:
        for _ in range(_LEGACY_PICKLES):
            whole = _one_pickle(file, found, texts) or whole
    except READ_ERRORS:
        pass  # Raw storages or a damaged end: what was found until here counts.
    return found, texts, whole


def _one_pickle(file: IO[bytes], found: list[str], texts: set[str]) -> str | None:
    """Add one pickle's imports to `found` and its strings to `texts`; return the class it starts with."""
    memo: dict[int, str | None] = {}
    # The two newest values, where they are strings pushed one after the other: what STACK_GLOBAL takes.
    # Any other opcode between could have taken them off, so the name then counts as unknown.
    last: list[str | None] = [None, None]
    top: str | None = None  # the newest value, where it is a string
    leading, first = True, None
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        imported: str | None = None
        if name in {"PROTO", "FRAME", "MARK"}:
            continue
        if name in {"GLOBAL", "INST"}:
            imported = str(argument).replace(" ", ".", 1)
        elif name == "STACK_GLOBAL":
            imported = f"{last[0]}.{last[1]}"
        elif (isinstance(argument, str) and "UNICODE" in name) or name in {"STRING", "BINSTRING"}:
            top = str(argument)
            texts.add(top)
            last = [last[1], top]
            continue
        elif name == "MEMOIZE":
            memo[len(memo)] = top
            continue
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo[int(str(argument))] = top
            continue
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            top = memo.get(int(str(argument)))
            last = [last[1], top]
            continue
        top, last = None, [None, None]
        if imported is not None:
            found.append(imported)
            if leading and not imported.endswith("._reconstructor"):
                first, leading = imported, False
        else:
            leading = False
    return first
