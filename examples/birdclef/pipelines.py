"""What a `pipeline_*.toml` says, read and checked; and its blend written as plainly as it can be.

The blend is a few lines of NumPy on the scores of one recording. It is what an ensemble is compared with.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.core import AudioInput
from alula.features import read_description

HERE = Path(__file__).resolve().parent

# Probabilities are kept this far from 0 and 1 before their logits are taken.
EDGE = 1e-6


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network.

    Attributes:
        name: by which it is called.
        model: `file.py:factory`, the file beside the TOML.
        input: TOML file of its input, beside this one.
        output: what its outputs are.
        lead_s: silence put before a recording, so that the middle of each window is its row.
        weight: its part of the blend, relative to the others.
    """

    name: str
    model: str
    input: str
    output: Literal["probabilities", "logits"]
    lead_s: float = 0.0
    weight: float = 1.0

    def source(self, folder: Path = HERE) -> str:
        """Return the model for `alula optimize` and `alula.optimize`."""
        return str(folder / self.model)

    def description(self, folder: Path = HERE) -> AudioInput:
        """Return the input description."""
        found = read_description(folder / self.input)
        assert isinstance(found, AudioInput)
        return found


class Blend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How members are joined: the weighted mean of probabilities or logits, or the root mean square."""

    mean: Literal["probabilities", "logits", "square"]


class After(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done with the blended probabilities of a recording.

    Attributes:
        smoothing: weights of a row and its neighbours, the row in the middle. Missing neighbours count as the
            nearest row there is.
    """

    smoothing: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.smoothing) % 2 == 0:
            raise ValueError(f"`smoothing` needs an odd number of weights; got {len(self.smoothing)}")


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole pipeline.

    Attributes:
        classes: outputs of each member.
        step_s: seconds between rows.
        members: in the order of the blend.
        blend: how they are joined.
        after: what follows.
    """

    classes: int
    step_s: float
    members: tuple[Member, ...]
    blend: Blend
    after: After = After()

    def joined(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the probabilities of a recording, float32 of shape (rows, classes).

        Args:
            outputs: of each member by its name, (rows, classes), as it gives them.
        """
        weights = np.array([member.weight for member in self.members], np.float64)
        weights /= weights.sum()
        stacked = np.stack([self._terms(member, outputs[member.name]) for member in self.members])
        mixed = np.tensordot(weights, stacked, axes=1)
        if self.blend.mean == "square":
            mixed = np.sqrt(mixed)
        elif self.blend.mean == "logits":
            mixed = sigmoid(mixed)
        return smoothed(mixed, self.after.smoothing).astype(np.float32)

    def _terms(self, member: Member, output: NDArray[np.float32]) -> NDArray[np.float64]:
        given = output.astype(np.float64)
        if self.blend.mean == "logits":
            return given if member.output == "logits" else logit(given)
        probabilities = sigmoid(given) if member.output == "logits" else given
        return probabilities**2 if self.blend.mean == "square" else probabilities


def read_pipeline(path: Path) -> Pipeline:
    """Return what a TOML file says.

    Raises:
        msgspec.ValidationError: it says something else than `Pipeline`.
    """
    return msgspec.convert(tomllib.loads(path.read_text("utf-8")), type=Pipeline)


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities of logits."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits of probabilities."""
    inside = np.clip(p, EDGE, 1.0 - EDGE)
    return np.log(inside / (1.0 - inside))


def smoothed(rows: NDArray[np.float64], weights: tuple[float, ...]) -> NDArray[np.float64]:
    """Return each row mixed with its neighbours.

    >>> smoothed(np.array([[0.0], [0.0], [1.0]]), (0.25, 0.5, 0.25)).ravel().tolist()
    [0.0, 0.25, 0.75]
    """
    reach = len(weights) // 2
    padded = np.pad(rows, ((reach, reach), (0, 0)), mode="edge")
    return np.sum([weight * padded[k : k + len(rows)] for k, weight in enumerate(weights)], axis=0)
