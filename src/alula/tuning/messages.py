"""What the search and its child processes say to each other: one JSON line a message."""

from __future__ import annotations

import msgspec

from alula.core import ExportFormat, Recipe, Roofline, Settings, Signature
from alula.graphs import Products
from alula.measure import Latency, ServerRound
from alula.sources import Source
from alula.tuning.roofline import Workload

__all__ = [
    "BuildRequest",
    "Built",
    "CountRequest",
    "Counted",
    "DescribeRequest",
    "Described",
    "DiskFull",
    "ExportRequest",
    "LoadModelRequest",
    "LoadRequest",
    "Loaded",
    "MeasureRequest",
    "Measured",
    "PeaksMeasured",
    "PeaksRequest",
    "PredictRequest",
    "Predicted",
    "Problem",
    "Reply",
    "Request",
    "ServeRequest",
    "Served",
    "StreamRequest",
    "Streamed",
]


class DescribeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Load the model and answer with its signature on samples (`.npy` files, one per input)."""

    source: Source
    samples: tuple[str, ...]


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Export the model into a folder."""

    source: Source
    samples: tuple[str, ...]
    target: ExportFormat
    folder: str


class CountRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Count the multiply-accumulates of an export's main file, on inputs shaped as samples (`.npy`) are."""

    target: ExportFormat
    path: str
    samples: tuple[str, ...]


class PeaksRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Measure the machine's peaks of products."""

    threads: int
    workload: Workload
    rounds: int
    seconds: float


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Make the artifact of a recipe from an export, or the model itself, with calibration data for INT8."""

    recipe: Recipe
    source: Source
    export: str
    artifact: str
    calibration: tuple[str, ...]
    signature: Signature
    saturating: bool


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Load an artifact; it replaces what was loaded before."""

    recipe: Recipe
    artifact: str
    signature: Signature
    settings: Settings


class LoadModelRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Load the user's own module as the baseline runs it: eager, inference mode."""

    source: Source
    signature: Signature
    settings: Settings


class PredictRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Run what is loaded over `.npy` inputs; write one `.npy` per wanted output."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    limit: int | None = None


class MeasureRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Time what is loaded on real inputs, warmed up first if it is new."""

    inputs: tuple[str, ...]
    seconds: float


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Run what is loaded on one sample after the other, warmed up first if it is new."""

    inputs: tuple[str, ...]
    seconds: float
    max_s: float
    min_queries: int


class ServeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Serve random arrivals with what is loaded, warmed up first if it is new."""

    inputs: tuple[str, ...]
    rate_per_s: float
    seconds: float
    limit_s: float
    seed: int


class Described(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The model's signature, and what was rewritten in it, in words."""

    signature: Signature
    notes: tuple[str, ...] = ()


class Counted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The work of one sample."""

    products: tuple[Products, ...]


class PeaksMeasured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What the machine can multiply at most."""

    roofline: Roofline


class Built(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A file was made, in so many seconds."""

    seconds: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ready to run, after so many seconds."""

    seconds: float


class Predicted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """All inputs went through; `samples_per_s` includes nothing but the runs."""

    n: int
    samples_per_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """One round of so many instances; see `alula.measure.Round`."""

    samples: int
    wall_s: float
    calls_s: tuple[float, ...]
    instances: int
    cpu_s: float
    stolen: float


class Streamed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """How long single samples took."""

    latency: Latency


class Served(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """How the arrivals were served."""

    found: ServerRound


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request failed; the child stays usable."""

    error: str


class DiskFull(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request failed because there was no space left at `path`; the child stays usable."""

    path: str
    free_bytes: int


Request = (
    DescribeRequest
    | ExportRequest
    | CountRequest
    | PeaksRequest
    | BuildRequest
    | LoadRequest
    | LoadModelRequest
    | PredictRequest
    | MeasureRequest
    | StreamRequest
    | ServeRequest
)
Reply = (
    Described
    | Counted
    | PeaksMeasured
    | Built
    | Loaded
    | Predicted
    | Measured
    | Streamed
    | Served
    | Problem
    | DiskFull
)
