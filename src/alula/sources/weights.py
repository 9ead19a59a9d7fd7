"""Puts a weights file into a module, without running anything from the file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.errors import EngineUnavailableError, ModelError, closest
from alula.libraries import import_torch
from alula.sources.content import detect_content
from alula.sources.foreign import READ_ERRORS, cause_of, said
from alula.sources.pickles import PickleScan, scan_checkpoint

if TYPE_CHECKING:
    import torch

__all__ = ["PREFIXES", "WRAPPERS", "is_state_dict_file", "load_weights"]

State = dict[str, "torch.Tensor"]

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
)
"""Keys under which checkpoints keep the weights; earlier ones win where several fit equally well, so
the trained weights come before their moving averages."""

PREFIXES = ("module.", "model.", "_orig_mod.")
"""Prefixes that data parallelism, training frameworks and `torch.compile` put before the names."""

_NAMES_SHOWN = 3
_NESTING = 3


def load_weights(module: torch.nn.Module, path: Path, *, has_options: bool = False) -> None:
    """Put the weights of `path` into `module`, or raise and say why not.

    The file is a safetensors file, or a checkpoint of `torch.save`, read with `weights_only=True`. The
    state dict is the file itself or lies under one of `WRAPPERS`; `PREFIXES` are taken off its names
    where that makes more of them fit. Every weight of the module must be in the file in the same shape,
    and the file must hold no others; only BatchNorm's `num_batches_tracked`, which inference does not
    read, may be missing.

    Args:
        module: changed in place.
        path: the file.
        has_options: the module has options such as `num_classes`, which the error can then name.

    Raises:
        ModelError: the file is missing, damaged, needs more than tensors, or does not fit.
    """
    value = _read(path)
    states = list(_states(value))
    if not states:
        keys = ", ".join(f"`{key}`" for key in list(value)[:5]) if isinstance(value, Mapping) else ""
        held = f"a dictionary with {keys}" if keys else f"a value of type {type(value).__qualname__}"
        raise ModelError(
            f"Weights file `{path}` holds no state dict: it is {held}. "
            f"Expected tensors by name, at the top or under one of {', '.join(WRAPPERS[:3])}, ... "
            f"Save `model.state_dict()`."
        )
    own = {name: _shape(tensor) for name, tensor in module.state_dict().items()}
    best = max((variant for state in states for variant in _variants(state)), key=lambda s: _fit(own, s))
    try:
        result = module.load_state_dict(best, strict=False)
    except READ_ERRORS as error:  # Also what the module's own loading hooks raise.
        raise ModelError(_misfit(path, own, best, error=error, has_options=has_options)) from error
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise ModelError(
            _misfit(
                path, own, best, missing=missing, unexpected=result.unexpected_keys, has_options=has_options
            )
        )


def is_state_dict_file(path: Path) -> bool:
    """Return whether a checkpoint of `torch.save` holds weights, whatever else it needs to be read.

    Raises:
        ModelError: the file is damaged.
    """
    with path.open("rb") as file:
        scan = scan_checkpoint(file)
    if scan.hostile or scan.whole:
        return False
    if scan.needs:
        # It cannot be read whole; the names of weights among its strings tell.
        return any(text.endswith((".weight", ".bias")) for text in scan.texts)
    return any(True for _ in _states(_read(path)))


def _read(path: Path) -> Any:
    content = detect_content(path)
    if content == "safetensors":
        return _read_safetensors(path)
    if content == "pickle":
        return _read_checkpoint(path)
    raise ModelError(
        f"Weights file `{path}` is a whole model ({content}). Pass it as MODEL, without --weights."
    )


def _read_safetensors(path: Path) -> State:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise EngineUnavailableError("safetensors", install="pip install 'alula[torch]'") from error
    try:
        state: State = safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, *READ_ERRORS) as error:
        raise ModelError(_damaged(path, error)) from error
    return state


def _read_checkpoint(path: Path) -> Any:
    torch = import_torch()
    with path.open("rb") as file:
        scan = scan_checkpoint(file)
    if scan.needs:
        raise ModelError(_refusal(path, scan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About the age of the file's format.
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except READ_ERRORS as error:
            raise ModelError(_damaged(path, error)) from error


def _damaged(path: Path, error: BaseException) -> str:
    reason = said(error)
    if "weights_only" in str(error):
        # torch goes on to advise `weights_only=False`, which would run whatever is in the file.
        detail = re.search(r"WeightsUnpickler error:\s*([^\n]+)|(Trying to load [^\n]+)\.", str(error))
        reason = (detail.group(1) or detail.group(2)) if detail else "torch refuses it as unsafe"
    return (
        f"Weights file `{path}` cannot be read: {reason}. Expected safetensors, or tensors saved by "
        f"`torch.save`. The file may be cut off or damaged: copy or save it again."
    )


def _refusal(path: Path, scan: PickleScan) -> str:
    key = next((wrapper for wrapper in WRAPPERS if wrapper in scan.texts), None)
    saved = f"checkpoint[{key!r}]" if key else "checkpoint"
    convert = (
        f"`checkpoint = torch.load({path.name!r}, weights_only=False); "
        f"torch.save({saved}, 'weights.pth')`, then pass weights.pth"
    )
    needs = ", ".join(f"`{name}`" for name in scan.needs[:5]) + (", ..." if len(scan.needs) > 5 else "")
    if scan.hostile:
        return (
            f"Weights file `{path}` would call {needs} when it is read. It was not read. "
            f"Weights need no such function and attacks do: do not open this file, get the weights elsewhere."
        )
    if scan.whole:
        return (
            f"Weights file `{path}` is a pickled object of class `{scan.whole}`, not a state dict. "
            f"It was not read, because that runs code from the file. If you trust it, write "
            f"where its code is: "
            f"`model = torch.load({path.name!r}, weights_only=False); "
            f"torch.save(model.state_dict(), 'weights.pth')`, then pass weights.pth."
        )
    if not scan.classes:
        return (
            f"Weights file `{path}` holds {needs} beside its tensors: harmless values, but reading them "
            f"means unpickling, which can run code. It was not read. If you trust it, write once: {convert}."
        )
    return (
        f"Weights file `{path}` needs {needs} to be read, and would run their code. It was not read. "
        f"If you trust whoever made it, write once, where that code is installed: {convert}."
    )


def _states(value: Any, *, depth: int = 0) -> Iterator[State]:
    """Yield the state dicts in a checkpoint, the outermost first, then in the order of `WRAPPERS`."""
    torch = import_torch()
    if not isinstance(value, Mapping) or depth > _NESTING:
        return
    tensors = {name: t for name, t in value.items() if isinstance(name, str) and isinstance(t, torch.Tensor)}
    if tensors:
        yield tensors
    for wrapper in WRAPPERS:
        if wrapper in value:
            yield from _states(value[wrapper], depth=depth + 1)


def _variants(state: State) -> list[State]:
    """Return the state dict as it is and with prefixes taken off; names without the prefix fall away.

    Those belong to something beside the model, such as the loss of a training framework's module.
    """
    variants = [state]
    compiled = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    if compiled.keys() != state.keys():
        variants.append(compiled)
    for variant in variants:  # Grows while it is walked: prefixes are nested.
        for prefix in PREFIXES:
            inner = {n.removeprefix(prefix): t for n, t in variant.items() if n.startswith(prefix)}
            if inner:
                variants.append(inner)
    return variants


def _fit(own: Mapping[str, tuple[int, ...] | None], state: State) -> tuple[int, int, int]:
    """Return how well names and shapes agree, as something to sort by."""
    named = [name for name in state if name in own]
    shaped = sum(own[name] in (None, tuple(state[name].shape)) for name in named)
    return shaped, len(named), -len(state)


def _shape(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the shape of a weight, or None where the module takes it from its first input or weights."""
    torch = import_torch()
    return None if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _misfit(
    path: Path,
    own: Mapping[str, tuple[int, ...] | None],
    state: State,
    *,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    error: BaseException | None = None,
    has_options: bool,
) -> str:
    """Return the message that says how file and module differ, and what would make them agree."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = [name for name in shapes if name in own and own[name] not in (None, shapes[name])]
    if error is not None:
        missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
        unexpected = [name for name in state if name not in own]
    findings = []
    if missing:
        findings.append(
            f"{len(missing)} of the model's {len(own)} weights are not in the file ({_first(missing)})"
        )
    if unexpected:
        findings.append(
            f"{len(unexpected)} of the file's {len(state)} are not in the model ({_first(unexpected)})"
        )
    if differing:
        examples = "; ".join(
            f"`{name}` has shape {shapes[name]} in the file and {own[name]} in the model"
            for name in differing[:_NAMES_SHOWN]
        )
        findings.append(f"{len(differing)} differ in shape ({examples})")
    if error is not None and not differing:
        findings.append(f"loading raised {cause_of(error)}")
    advice = "Check that the file belongs to this architecture."
    if differing:
        advice = _shape_advice(own, shapes, differing, has_options=has_options) or advice
    elif missing and unexpected:
        alike = closest(missing[0], [name for name in unexpected if shapes[name] == own[missing[0]]])
        if alike:
            advice = f"Is `{missing[0]}` what the file calls{alike.removeprefix(' Did you mean')} {advice}"
    return f"Weights file `{path}` does not fit the model: {', and '.join(findings)}. {advice}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:_NAMES_SHOWN]) + (
        ", ..." if len(names) > _NAMES_SHOWN else ""
    )


def _shape_advice(
    own: Mapping[str, tuple[int, ...] | None],
    shapes: Mapping[str, tuple[int, ...]],
    differing: Sequence[str],
    *,
    has_options: bool,
) -> str | None:
    """Return what to build the model with, where classes or input channels explain the shapes."""
    advice = []
    for name in differing:
        want, got = own[name], shapes[name]
        if want is None or len(want) != len(got):
            return None
        if got[1:] == want[1:]:
            advice.append(f"num_classes={got[0]}")
        elif len(got) >= 3 and got[0] == want[0] and got[2:] == want[2:]:
            advice.append(f"in_chans={got[1]}")
        else:
            return None
    options = list(dict.fromkeys(advice))
    if len(options) > 2:
        return None
    if has_options:
        return f"Pass {' and '.join(options)}: `NAME?{'&'.join(options)}`."
    words = {"num_classes": "outputs", "in_chans": "input channels"}
    parts = [f"{value} {words[key]}" for key, _, value in (option.partition("=") for option in options)]
    return f"Build the model with {' and '.join(parts)}."
