"""What a report says, as one frozen value made of core types."""

from __future__ import annotations

import msgspec

from alula.core import Accuracy, Candidate, Outcome, Ratio, Throughput, Work
from alula.core import Roofline as Peaks
from alula.hardware import Fingerprint

__all__ = ["Finalist", "FolderSpeed", "ReportContent", "Roofline", "Stage"]


class Finalist(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate of the last comparison, in rounds interleaved with the baseline's.

    Attributes:
        candidate: what ran.
        throughput: its median and raw rounds there.
        speedup: over the baseline, round by round.
    """

    candidate: Candidate
    throughput: Throughput
    speedup: Ratio


class FolderSpeed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speed of the whole way (decoding, features, model) over files."""

    samples_per_s: float
    samples: int
    files: int


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the search and the wall time that it took."""

    name: str
    seconds: float


class Roofline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what the machine can do was reached.

    Attributes:
        share: of the peak, 1.0 is all of it.
        of: precisions of the products that the peak is of, such as `INT8` or `INT8+FP32`.
        explanation: one sentence that says which peak, and how it was measured.
    """

    share: float
    explanation: str
    of: str = ""


class ReportContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that `render_page` needs.

    Attributes:
        model: its name or where it came from, the title of the page.
        created: when the bundle was made, UTC, ISO 8601.
        alula_version: that made it.
        chosen: the fastest accepted candidate.
        chosen_throughput: its median and raw rounds in the last comparison.
        baseline: the model as it was, and the settings it ran with.
        baseline_throughput: its median and raw rounds in the last comparison.
        speedup: chosen over baseline.
        accuracy: of the chosen candidate against the baseline.
        outcomes: every trial of the search, in the order in which they ended.
        machine: what it was measured on.
        finalists: candidates of the last comparison with their raw rounds; the chosen one may be among them.
        folder: speed over files, None where the data were in memory.
        data: what the samples were, for people.
        calibration_samples: samples that quantizers saw, None if not known.
        fallbacks: recipes that the bundle turns to where the chosen one is not right, by name, in order.
        versions: of the libraries, by name.
        notes: what was rewritten before export.
        warnings: what a reader of the figures should know.
        stages: wall time of the parts of the search.
        roofline: the chosen candidate's share of the machine's peak, None if not known.
        peaks: of the machine, None if not measured; the shares in the tables are of these.
        work: of one sample by precision, by names of recipes; a recipe that is left out has an unknown share.
        macs_per_sample: multiply-accumulates of one sample, counted from the graph; None if not known.
        facts: more that was measured, text by name, such as `p99 latency`: `23 ms at 40 requests/s`.
        knob_meanings: one sentence for a knob of the chosen settings, by the knob's name.
        commands: command lines that repeat this, by what each of them does.
    """

    model: str
    created: str
    alula_version: str
    chosen: Candidate
    chosen_throughput: Throughput
    baseline: Candidate
    baseline_throughput: Throughput
    speedup: Ratio
    accuracy: Accuracy
    outcomes: tuple[Outcome, ...]
    machine: Fingerprint
    finalists: tuple[Finalist, ...] = ()
    folder: FolderSpeed | None = None
    data: str = ""
    calibration_samples: int | None = None
    fallbacks: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    roofline: Roofline | None = None
    peaks: Peaks | None = None
    work: dict[str, Work] = {}
    macs_per_sample: float | None = None
    facts: dict[str, str] = {}
    knob_meanings: dict[str, str] = {}
    commands: dict[str, str] = {}
