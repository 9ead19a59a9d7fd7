"""The nouns of Alula as frozen values that check themselves and go to JSON and back."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast, get_args

import msgspec

__all__ = [
    "ARTIFACT_FILES",
    "Accepted",
    "Accuracy",
    "Candidate",
    "ExportFormat",
    "Failed",
    "Outcome",
    "Precision",
    "Ratio",
    "Recipe",
    "Rejected",
    "Scalar",
    "Scenario",
    "Scope",
    "Settings",
    "Signature",
    "TableFormat",
    "TensorSpec",
    "Throughput",
]

Precision = Literal["fp32", "bf16", "int8"]
ExportFormat = Literal["onnx", "exported", "torchscript", "openvino", "module"]
"""What a recipe starts from; `module` is the user's own module, of which no file is made."""

Scenario = Literal["offline", "single-stream", "server"]
"""What is to be fast, in MLPerf's words: samples per second; latency of one sample after the other; the
rate of random arrivals whose p99 latency stays under a limit."""

TableFormat = Literal[
    "csv", "parquet", "parquet-parts", "birdclef", "birdnet", "raven", "audacity", "kaleidoscope"
]
"""What a folder run can write: tables of all scores, submissions, and tables of detections."""

Scope = Literal["all", "dense", "no-depthwise", "no-edges"]
"""Which layers are quantized, by their role in the network, whatever the engine calls them.

`all` leaves the choice to the quantizer; `dense` is dense convolutions and matrix products only;
`no-depthwise` is all but depthwise convolutions; `no-edges` is all but stem, head and squeeze-excite.
"""

ARTIFACT_FILES: dict[ExportFormat, str] = {
    "onnx": "model.onnx",
    "exported": "model.pt2",
    "torchscript": "model.torchscript",
    "openvino": "model.xml",
}
"""Main file of an artifact folder by format: where exporters and quantizers write and engines read."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Scalar = bool | int | float | str


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a model.

    Attributes:
        name: its name in the exported graph.
        dtype: NumPy name, such as `float32`.
        shape: sizes; a string names a dynamic axis (`b` is the batch axis, always first).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}({', '.join(map(str, self.shape))})"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes into a model and what comes out, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """How an artifact is made: engine, precision, and what it does otherwise than the engine's default.

    Attributes:
        engine: what runs the artifact.
        precision: of the products.
        quantizer: one word; belongs to `int8` and to no other precision.
        variant: how the engine or the quantizer does it otherwise, in words joined by dashes.
        scope: which layers are quantized.

    >>> Recipe("openvino", "int8", "nncf", "full-bias", "dense").name
    'openvino/int8-nncf-full-bias-dense'
    >>> Recipe("torch", "fp32").name
    'torch/fp32'
    """

    engine: str
    precision: Precision
    quantizer: str | None = None
    variant: str | None = None
    scope: Scope = "all"

    def __post_init__(self) -> None:
        if (self.precision == "int8") != (self.quantizer is not None):
            raise ValueError(
                f"a quantizer belongs to precision int8 and to no other; got {self.precision} "
                f"with quantizer {self.quantizer}"
            )
        if self.quantizer is None and self.scope != "all":
            raise ValueError(f"a scope belongs to a quantizer; got {self.scope} with {self.precision}")
        if self.quantizer is not None and not re.fullmatch(r"[a-z0-9]+", self.quantizer):
            raise ValueError(f"a quantizer is one word of a-z and 0-9; got {self.quantizer!r}")
        if self.variant is not None and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.variant):
            raise ValueError(f"a variant is words of a-z and 0-9 joined by dashes; got {self.variant!r}")
        if self.variant is not None and _split_scope(self.variant)[1] != "all":
            raise ValueError(f"a variant does not end with a scope; got {self.variant!r}")

    @property
    def name(self) -> str:
        """`engine/precision[-quantizer][-variant][-scope]`."""
        scope = None if self.scope == "all" else self.scope
        parts = (self.precision, self.quantizer, self.variant, scope)
        return f"{self.engine}/{'-'.join(part for part in parts if part)}"

    @property
    def rest_in_bf16(self) -> bool:
        """Whether the engine computes in BF16 what the quantizer leaves in float: the variant's last word.

        >>> Recipe.parse("openvino/int8-nncf-mixed-bf16-dense").rest_in_bf16
        True
        """
        return self.precision == "int8" and (self.variant or "").rpartition("-")[2] == "bf16"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the recipe of a name.

        Raises:
            ValueError: it is no name of a recipe.

        >>> Recipe.parse("onnxruntime/int8-static-percentile-no-depthwise").variant
        'percentile'
        """
        engine, slash, rest = name.partition("/")
        precision, _, rest = rest.partition("-")
        if not slash or not engine or precision not in get_args(Precision):
            raise ValueError(
                f"`{name}` is no recipe; expected engine/precision, such as openvino/int8-nncf, with a "
                f"precision of {', '.join(get_args(Precision))}"
            )
        if precision != "int8":
            return cls(engine, precision, None, rest or None)  # type: ignore[arg-type]
        words, scope = _split_scope(rest)
        quantizer, _, variant = words.partition("-")
        return cls(engine, precision, quantizer or None, variant or None, scope)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.name


def _split_scope(words: str) -> tuple[str, Scope]:
    for scope in get_args(Scope):
        if words == scope or words.endswith(f"-{scope}"):
            return words[: -len(scope)].rstrip("-"), scope
    return words, "all"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an artifact is run.

    Attributes:
        threads: threads that compute one batch.
        instances: batches computed at the same time.
        batch_size: samples per batch.
        knobs: what the engine declares beyond these, by the engine's own names.
    """

    threads: PositiveInt = 1
    instances: PositiveInt = 1
    batch_size: PositiveInt = 1
    knobs: dict[str, Scalar] = {}

    def __hash__(self) -> int:
        # Of the knobs too, which are a dict in JSON.
        return hash((self.threads, self.instances, self.batch_size, tuple(sorted(self.knobs.items()))))

    @property
    def total_threads(self) -> int:
        """Threads busy when every instance computes."""
        return self.threads * self.instances

    def __str__(self) -> str:
        text = f"{self.instances}x{self.threads} threads, batch {self.batch_size}"
        return text + "".join(f", {key}={value}" for key, value in sorted(self.knobs.items()))


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """A recipe with settings: what the search compares."""

    recipe: Recipe
    settings: Settings

    def __str__(self) -> str:
        return f"{self.recipe} ({self.settings})"


if TYPE_CHECKING:
    UpperEnd = float
else:
    # JSON has no infinity: it is written as null, and this lets null be read.
    UpperEnd = float | None


class Ratio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ratio of two speeds with its 95 % interval, which is [0, inf] when there are too few rounds to tell.

    In JSON an infinite `high` is null, both ways.

    >>> Ratio(3.0, 2.9, 3.1).certain
    True
    >>> Ratio(1.01, 0.98, 1.04).certain
    False
    >>> msgspec.json.decode('{"median": 3.0, "low": 0.0, "high": null}', type=Ratio)
    Ratio(median=3.0, low=0.0, high=inf)
    """

    median: float
    low: float
    high: UpperEnd

    def __post_init__(self) -> None:
        if cast(float | None, self.high) is None:
            msgspec.structs.force_setattr(self, "high", math.inf)

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 1.0, so that one side is faster beyond doubt."""
        return self.low > 1.0 or self.high < 1.0

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}]"


class Throughput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Samples per second of a candidate, from the raw times kept beside it.

    Attributes:
        per_s: median over rounds.
        rounds_per_s: each round's samples per second, in the order taken.
        warnings: what disturbed the measurement, in words.
    """

    per_s: float
    rounds_per_s: tuple[float, ...]
    warnings: tuple[str, ...] = ()


class Accuracy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate's accuracy was, against the baseline, on the same validation samples.

    Attributes:
        metric: name of the metric.
        n: validation samples compared.
        baseline: the metric of the baseline.
        chosen: the metric of the candidate.
        drop: how much worse the candidate is; positive is worse, whatever the metric's direction.
        drop_low: lower end of the 95 % interval of the drop (paired bootstrap).
        drop_high: upper end.
        limit: the largest drop that was allowed.
        warnings: such as a number of samples too small to tell.
    """

    metric: str
    n: int
    baseline: float
    chosen: float
    drop: float
    drop_low: float
    drop_high: float
    limit: float
    warnings: tuple[str, ...] = ()

    @property
    def within_limit(self) -> bool:
        """Whether the measured drop is inside the limit."""
        return self.drop <= self.limit

    @property
    def conclusive(self) -> bool:
        """Whether the whole interval lies on one side of the limit."""
        return self.drop_high <= self.limit or self.drop_low > self.limit


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="accepted"):
    """A candidate inside the accuracy limit, with its speed.

    Attributes:
        accuracy: on all validation samples, or on those of a first rough check that it passed.
        relative: speed over the search's anchor, a fixed candidate measured just before and after; what
            candidates looked at in different minutes are compared by.
        seconds: since the outcome before: of making, loading and checking it, where that was due, and of the
            looks at it with the anchor's rounds beside them.
    """

    candidate: Candidate
    accuracy: Accuracy
    throughput: Throughput
    relative: float | None = None
    seconds: float = 0.0


class Rejected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rejected"):
    """A recipe that is not good enough, or that there was no time for, and why.

    Attributes:
        tried: false where the budget ended before anything was known of it, or where it cannot win by what is
            known of others.
        relative: about its speed over the search's anchor, looked at for what it tells of others.
    """

    recipe: Recipe
    reason: str
    accuracy: Accuracy | None = None
    relative: float | None = None
    seconds: float = 0.0
    tried: bool = True


class Failed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="failed"):
    """A recipe or candidate that could not be made or run: one readable line, and how to see it again."""

    recipe: Recipe
    error: str
    reproduce: str
    settings: Settings | None = None
    seconds: float = 0.0


Outcome = Accepted | Rejected | Failed
