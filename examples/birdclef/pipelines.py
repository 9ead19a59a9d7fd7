"""What a `pipeline_*.toml` says, read and checked; and its blend written as plainly as it can be.

`[blend]` and the file named by `post` are what `alula ensemble` takes. Here they are carried out once more,
on the scores of one recording, in a few lines of NumPy: what an ensemble is compared with.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.core import AudioInput
from alula.features import read_description

HERE = Path(__file__).resolve().parent


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network.

    Attributes:
        name: by which it is called, and its bundle.
        model: `file.py:factory`, the file beside the TOML.
        input: TOML file of its input, beside this one.
        activation: what makes probabilities of its outputs.
    """

    name: str
    model: str
    input: str
    activation: Literal["none", "sigmoid"] = "none"

    def description(self) -> AudioInput:
        """Return the input description."""
        found = read_description(HERE / self.input)
        assert isinstance(found, AudioInput)
        return found


class Blend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How members are joined: the mean of their scores or logits, or the power mean of their scores."""

    type: Literal["mean", "power"]
    of: Literal["scores", "logits"] = "scores"
    exponent: float = 1.0


class View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The seconds in the middle of a window that its row is about."""

    keep_s: float


class Smoothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="smoothing"):
    """Weights of a row and its neighbours, the row in the middle."""

    kernel: tuple[float, ...]


class Post(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file of post-processing says, as far as these pipelines need it."""

    view: dict[str, View] = {}
    step: tuple[Smoothing, ...] = ()


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole pipeline.

    Attributes:
        classes: outputs of each member.
        members: in the order of the blend.
        blend: how they are joined.
        post: file of post-processing beside this one, or None.
    """

    classes: int
    members: tuple[Member, ...]
    blend: Blend
    post: str | None = None

    @property
    def processing(self) -> Post:
        """Views of members, and what follows the blend."""
        if self.post is None:
            return Post()
        return msgspec.convert(tomllib.loads((HERE / self.post).read_text("utf-8")), type=Post)

    def lead_s(self, member: Member) -> float:
        """Return the silence before a recording that puts each row in the middle of its window."""
        view = self.processing.view.get(member.name)
        return 0.0 if view is None else (member.description().window_s - view.keep_s) / 2

    def joined(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the probabilities of a recording, float32 of shape (rows, classes).

        Args:
            outputs: of each member by its name, (rows, classes), as its network gives them.
        """
        given = {member: outputs[member.name].astype(np.float64) for member in self.members}
        if self.blend.of == "logits":
            mixed = sigmoid(np.mean(list(given.values()), axis=0))
        else:
            scores = [sigmoid(x) if one.activation == "sigmoid" else x for one, x in given.items()]
            mixed = np.mean([one**self.blend.exponent for one in scores], axis=0) ** (1 / self.blend.exponent)
        for step in self.processing.step:
            mixed = smoothed(mixed, step.kernel)
        return mixed.astype(np.float32)


def read_pipeline(letter: str, only: Collection[str] | None = None) -> Pipeline:
    """Return pipeline `a`, `b`, `c` or `d`.

    Args:
        letter: of the pipeline.
        only: names of the members that take part; None for all.

    Raises:
        SystemExit: there is no member of a name.
        msgspec.ValidationError: its file says something else than `Pipeline`.
    """
    text = (HERE / f"pipeline_{letter}.toml").read_text("utf-8")
    pipeline = msgspec.convert(tomllib.loads(text), type=Pipeline)
    if only is None:
        return pipeline
    names = [member.name for member in pipeline.members]
    if unknown := sorted(set(only) - set(names)):
        raise SystemExit(f"Pipeline {letter} has no member `{unknown[0]}`; there are {', '.join(names)}.")
    members = tuple(member for member in pipeline.members if member.name in only)
    return msgspec.structs.replace(pipeline, members=members)


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of logits."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def smoothed(rows: NDArray[np.float64], kernel: tuple[float, ...]) -> NDArray[np.float64]:
    """Return each row mixed with its neighbours; the weights of those that exist are scaled to sum to 1.

    >>> smoothed(np.array([[0.0], [0.0], [1.0]]), (0.25, 0.5, 0.25)).ravel().round(3).tolist()
    [0.0, 0.25, 0.667]
    """
    reach = len(kernel) // 2
    found = np.empty_like(rows)
    for k in range(len(rows)):
        places = [k + j for j in range(-reach, reach + 1) if 0 <= k + j < len(rows)]
        weights = np.array([kernel[place - k + reach] for place in places])
        found[k] = weights @ rows[places] / weights.sum()
    return found
