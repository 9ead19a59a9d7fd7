"""Post-processing as TOML: `[view.NAME]` tables for models, `[[step]]` tables for what follows the blend.

.. code-block:: toml

    [view.sed]
    keep_s = 5.0
    output = "framewise"
    frames = { central_s = 5.0 }

    [[step]]
    type = "smoothing"
    kernel = [0.1, 0.8, 0.1]
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from alula.core import Step, View
from alula.errors import UsageError
from alula.toml import parse_toml, read_toml_text

__all__ = ["PostProcessing", "parse_postprocessing", "read_postprocessing"]


class PostProcessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file of post-processing says.

    Attributes:
        step: applied to each file in this order, after the blend.
        view: by the name of a member, how it looks at a recording.
    """

    step: tuple[Step, ...] = ()
    view: dict[str, View] = {}


def read_postprocessing(path: Path) -> PostProcessing:
    """Return what a TOML file says.

    Raises:
        UsageError: it cannot be read, is no TOML, or a name or value in it is wrong: the message says where.
    """
    return parse_postprocessing(read_toml_text(path, what="The post-processing"), name=str(path))


def parse_postprocessing(text: str, *, name: str = "post-processing") -> PostProcessing:
    """Return what a TOML text says.

    Args:
        text: TOML, as in this module's docstring.
        name: what the text is called in errors.

    Raises:
        UsageError: the text is no TOML, or a name or value in it is wrong: the message says where.

    >>> parse_postprocessing('[[step]]\\ntype = "top"\\nk = 2').step
    (TopScaling(k=2),)
    """
    document = parse_toml(text, name=name)
    try:
        return msgspec.convert(document, type=PostProcessing)
    except msgspec.ValidationError as error:
        readable = re.sub(r"`\$\.?", "`", str(error)).replace(" - at ", " at ")
        raise UsageError(f"{name} is no valid post-processing: {readable}.") from error
