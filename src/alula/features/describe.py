"""Input descriptions by name and as TOML.

A file holds a description at its top level, or in a table `[input]`:

.. code-block:: toml

    preset = "mel-128x313"     # optional: where to start from
    window_s = 10.0            # keys override the preset; tables are merged

    [mel]
    n_mels = 64
    top_db = "none"            # TOML has no null: "none" stands for it
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import msgspec

from alula.core import (
    ArrayInput,
    AudioInput,
    ImageInput,
    InputDescription,
    LogMel,
    MinMax,
    ZScore,
)
from alula.errors import UsageError, closest
from alula.toml import parse_toml, read_toml_text

__all__ = ["PRESETS", "parse_description", "read_description", "to_toml"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _birdclef_mel(n_mels: int) -> AudioInput:
    """Return the log-mel of the first place of BirdCLEF 2023 (V. Sydorskyi), with so many bands.

    That solution also scales the power by the window's energy, a constant number of dB, which the
    z-score removes.
    """
    return AudioInput(
        sample_rate_hz=32_000,
        window_s=5.0,
        peak_normalize=True,
        mel=LogMel(
            n_fft=2048,
            hop=512,
            n_mels=n_mels,
            f_min_hz=20.0,
            f_max_hz=16_000.0,
            top_db=80.0,
            normalize=(ZScore(), MinMax()),
        ),
    )


PRESETS: dict[str, InputDescription] = {
    "array": ArrayInput(),
    "birdnet-wave": AudioInput(sample_rate_hz=48_000, window_s=3.0),
    "cifar10": ImageInput(height=32, width=32, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "imagenet": ImageInput(height=224, width=224, resize=256, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "mel-128x313": _birdclef_mel(128),
    "mel-64x313": _birdclef_mel(64),
    "wave-5s-32k": AudioInput(sample_rate_hz=32_000, window_s=5.0),
}

_NONE = "none"


def read_description(spec: str | Path) -> InputDescription:
    """Return the description of a preset's name or of a TOML file.

    Args:
        spec: a name of `PRESETS`, or the path of a file (a `Path`, or text that ends in `.toml` or
            names an existing file).

    Raises:
        UsageError: there is no such preset or file, or the file is wrong: the message says where.

    >>> read_description("cifar10").height
    32
    """
    if isinstance(spec, str) and spec in PRESETS:
        return PRESETS[spec]
    path = Path(spec)
    if isinstance(spec, str) and path.suffix.lower() != ".toml" and not path.is_file():
        raise UsageError(
            f"There is no input description named `{spec}`.{closest(spec, PRESETS)} "
            f"Expected one of {', '.join(sorted(PRESETS))}, or the path of a TOML file."
        )
    return parse_description(read_toml_text(path, what="The input description"), name=str(path))


def parse_description(text: str, *, name: str = "input description") -> InputDescription:
    """Return the description that a TOML text holds.

    Args:
        text: TOML, as in this module's docstring.
        name: what the text is called in errors.

    Raises:
        UsageError: the text is no TOML, or a name or value in it is wrong: the message says where.

    >>> parse_description('preset = "imagenet"\\nheight = 192\\nwidth = 192').width
    192
    """
    document: Any = parse_toml(text, name=name)
    place = ""
    if "input" in document:
        place, document = "input", document["input"]
        if not isinstance(document, dict):
            raise UsageError(f"`input` in {name} is a {type(document).__name__}; expected a table.")
    table = _with_preset(document, name)
    checked = _checked_table(table, get_args(InputDescription), place, name)
    try:
        description: InputDescription = msgspec.convert(checked, type=InputDescription)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name} is not a valid input description: {_readable(error, place)}.") from error
    return description


def to_toml(description: InputDescription) -> str:
    """Return a description as TOML that `parse_description` reads back to an equal one.

    Every field is written, so that the text means the same when a default changes.

    >>> print(to_toml(ArrayInput(shape=(2, 3))), end="")
    type = "array"
    shape = [2, 3]
    dtype = "float32"
    """
    table = msgspec.to_builtins(description)
    # What was not asked for is left out there, and is written here.
    unset = (name for name in description.__struct_fields__ if getattr(description, name) is msgspec.UNSET)
    table.update(dict.fromkeys(unset, False))
    plain = [f"{key} = {_toml_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            plain += ["", f"[{key}]", *(f"{inner} = {_toml_value(item)}" for inner, item in value.items())]
    return "\n".join(plain) + "\n"


def _with_preset(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the table on top of the preset that it names, if it names one."""
    if "preset" not in table:
        return dict(table)
    preset = table["preset"]
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(
            f"`preset` in {name} is `{preset}`.{closest(str(preset), PRESETS)} "
            f"Expected one of {', '.join(sorted(PRESETS))}."
        )
    base = msgspec.to_builtins(PRESETS[preset])
    overrides = {key: value for key, value in table.items() if key != "preset"}
    if overrides.get("type", base["type"]) != base["type"]:
        raise UsageError(
            f"`type` in {name} is `{overrides['type']}`, but its preset `{preset}` is of type "
            f"`{base['type']}`. Remove one of the two."
        )
    return _merged(base, overrides)


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


def _checked_table(
    table: Mapping[str, Any], structs: tuple[type[msgspec.Struct], ...], place: str, name: str
) -> dict[str, Any]:
    """Return the table with `none` as None, after each of its names was looked up in the struct it is for."""
    struct = structs[0]
    tags = {str(config.tag): each for each in structs if (config := each.__struct_config__).tag}
    allowed = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    if tags:
        tag = table.get("type")
        where = f"`{_joined(place, 'type')}` in {name}"
        if tag is None:
            raise UsageError(f"{where} is missing; expected one of {', '.join(sorted(tags))}.")
        if tag not in tags:
            raise UsageError(
                f"{where} is `{tag}`.{closest(str(tag), tags)} Expected one of {', '.join(sorted(tags))}."
            )
        struct = tags[tag]
        allowed = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        allowed["type"] = str
    for key in table:
        if key not in allowed:
            raise UsageError(
                f"`{_joined(place, key)}` in {name} is no field of an input description."
                f"{closest(key, allowed)} Expected one of {', '.join(sorted(allowed))}."
            )
    return {
        key: _checked_value(value, allowed[key], _joined(place, key), name) for key, value in table.items()
    }


def _checked_value(value: Any, annotation: Any, place: str, name: str) -> Any:
    types = tuple(_leaves(annotation))
    if value == _NONE and NoneType in types:
        return None
    structs = tuple(each for each in types if isinstance(each, type) and issubclass(each, msgspec.Struct))
    if structs and isinstance(value, dict):
        return _checked_table(value, structs, place, name)
    if structs and isinstance(value, list):
        return [
            _checked_table(item, structs, f"{place}[{index}]", name) if isinstance(item, dict) else item
            for index, item in enumerate(value)
        ]
    words = [each for each in types if isinstance(each, str)]
    if words and isinstance(value, str) and value not in words:
        expected = [*words, *([_NONE] if NoneType in types else [])]
        raise UsageError(
            f"`{place}` in {name} is `{value}`.{closest(value, expected)} "
            f"Expected one of {', '.join(expected)}."
        )
    return value


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types and literal values that an annotation is made of."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif arguments := get_args(annotation):
        for argument in arguments:
            yield from _leaves(argument)
    else:
        yield annotation


def _joined(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _readable(error: msgspec.ValidationError, place: str) -> str:
    """Return msgspec's message with its `$.mel.hop` as `mel.hop`."""
    root = f"{place}." if place else ""
    text = re.sub(r"`\$\.", f"`{root}", str(error)).replace("`$`", f"`{place}`" if place else "the top level")
    return text.replace(" - at ", " at ")


def _toml_value(value: Any) -> str:
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's too; DEL alone must be escaped only in TOML.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
