"""What is done with scores after a model: values only, carried out by `alula.postprocess`.

A `View` belongs to one model of an ensemble and works on each row by itself; steps work on all rows of a file
after the blend. In the formulas `x[k]` is the score of one class in row k of a file of n rows, counted from
0, and `y` is what comes out.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from alula.core.inputs import Seconds

__all__ = ["CentralMaximum", "CutOff", "OverlapMean", "Smoothing", "Step", "TopScaling", "View"]

NonNegative = Annotated[float, msgspec.Meta(ge=0)]


class CentralMaximum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scores per frame become one per window: the maximum over the frames in its central part.

    With T frames in a window of W seconds, frame t is about the time from t W/T to (t+1) W/T. It counts if
    its middle lies in `[(W - central_s) / 2, (W + central_s) / 2)`: `y = max(x[t] for those t)`.

    Source: sound event detection as the second place of BirdCLEF 2023 used it, 10 s of context and the
    maximum over the central 5 s.

    Attributes:
        central_s: length of the central part.
        layout: order of the axes of the model's output after the batch: `tc` is frames, classes; `ct` is
            classes, frames.
    """

    central_s: Seconds
    layout: Literal["tc", "ct"] = "tc"


class View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model of an ensemble looks at a recording, and which of its numbers are its scores.

    Attributes:
        rows: rows that the model gives of each window: its output has an axis for them after the batch. They
            lie hop_s / rows apart, and each sees what is left of the window without the hops between them: a
            window of 65 s every 60 s gives 12 rows, one every 5 s, each of which sees 10 s. For `keep_s`,
            window and hop are those of a row. With more than 1 there is neither `hop_s` nor `frames`.
        keep_s: length of the central part of a window that its row is about. Row k is about the seconds from
            k * hop_s to k * hop_s + keep_s, and the window reaches (window_s - keep_s) / 2 further on both
            sides; before the beginning and behind the end of the recording there is silence. With window_s =
            10, hop_s = 5 and keep_s = 5 each 5 s are seen in 10 s of context. None: rows are about whole
            windows.
        hop_s: seconds between the windows; None takes that of the bundle. Where it is shorter than `keep_s`,
            rows overlap, and a step `overlap` makes one of them for each segment.
        output: name of the model's output that holds the scores; None takes the first.
        frames: how scores per frame become one per window; None where there are no frames.
    """

    rows: Annotated[int, msgspec.Meta(ge=1)] = 1
    keep_s: Seconds | None = None
    hop_s: Seconds | None = None
    output: str | None = None
    frames: CentralMaximum | None = None


class Smoothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="smoothing"):
    """Weighted mean of neighbouring rows.

    `y[k] = sum(kernel[r + j] * x[k + j]) / sum(kernel[r + j])` over j from -r to r for which row k + j
    exists, with r = len(kernel) // 2. At the ends the kernel is cut off and weighs what is left.

    Source: first place of BirdCLEF 2025, kernel 0.1, 0.2, 0.4, 0.2, 0.1; fifth place, 0.1, 0.8, 0.1.

    Attributes:
        kernel: an odd number of weights from 0 up, the middle one above 0.
    """

    kernel: tuple[NonNegative, ...]

    def __post_init__(self) -> None:
        if len(self.kernel) % 2 == 0 or not all(map(math.isfinite, self.kernel)):
            raise ValueError(f"`kernel` must be an odd number of finite weights; got {list(self.kernel)}")
        if not self.kernel[len(self.kernel) // 2] > 0:
            raise ValueError(f"the middle of `kernel` must be above 0; got {list(self.kernel)}")


class OverlapMean(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="overlap"):
    """Rows about segments of one length, each the mean of the rows that overlap it.

    Segment j is about the seconds from j * segment_s to (j + 1) * segment_s. With o[j, k] the seconds that it
    shares with row k: `y[j] = sum(o[j, k] * x[k]) / sum(o[j, k])`. Windows of 5 s every 2.5 s so give 5 s
    segments by the weights 0.25, 0.5, 0.25.

    Source: averaging of windows that overlap by half, second place of BirdCLEF 2025.

    Attributes:
        segment_s: length of a segment.
    """

    segment_s: Seconds


class TopScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="top"):
    """Scores times how sure the file is of the class.

    `y[k] = x[k] * mean(the highest k values of x in the file)`; of all n where the file has fewer.

    Source: second place of BirdCLEF 2025.

    Attributes:
        k: how many of the file's highest scores count.
    """

    k: Annotated[int, msgspec.Meta(ge=1)] = 1


class CutOff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cutoff"):
    """Scores of a class that is nowhere likely in the file are scaled down.

    `y[k] = factor * x[k]` where `max(x) < below` in the file, and `x[k]` elsewhere.

    Source: practice in BirdCLEF: halve a class that is never above 0.1 in a file.

    Attributes:
        below: the class's highest score in the file must be lower than this.
        factor: 0 removes the class.
    """

    below: float
    factor: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


Step = Smoothing | OverlapMean | TopScaling | CutOff
