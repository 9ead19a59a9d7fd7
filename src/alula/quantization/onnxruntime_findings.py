"""What a calibration found out about activations, kept beside the export for the recipes after it.

Extremes and histograms of a tensor are the same whatever else is quantized, and every scope and variant asks
for some of the same tensors. A file holds what was found with one model, one set of calibration samples and
one release of ONNX Runtime; its name says which, so another one is never taken for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alula.libraries import import_onnxruntime
from alula.quantization.base import Batches

if TYPE_CHECKING:
    import onnx

__all__ = ["BINS", "Findings", "Histogram", "Range", "findings_file", "read_findings", "write_findings"]

Range = tuple[float, float]

BINS = 2048

# Values counted at once: intermediate arrays stay in the cache.
_BLOCK = 1 << 16
_DIGITS = 16


@dataclass
class Histogram:
    """Counts of values in bins of one width.

    Attributes:
        low: lower edge of the first bin.
        high: upper edge of the last bin, above `low`; values outside count in the outer bins.
        counts: values in each bin, int64 (BINS,).
    """

    low: float
    high: float
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values of any shape."""
        flat = values.reshape(-1)
        low, per_bin = np.float32(self.low), np.float32(BINS / (self.high - self.low))
        for start in range(0, len(flat), _BLOCK):
            places = ((flat[start : start + _BLOCK] - low) * per_bin).astype(np.intp)
            self.counts += np.bincount(np.clip(places, 0, BINS - 1, out=places), minlength=BINS)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, float64 (BINS + 1,)."""
        return np.linspace(self.low, self.high, BINS + 1)


@dataclass(frozen=True)
class Findings:
    """What is known of tensors, by their names.

    Attributes:
        extremes: lowest and highest value.
        histograms: between the extremes.
    """

    extremes: dict[str, Range] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)


def findings_file(folder: Path, model: onnx.ModelProto, batches: Batches) -> Path:
    """Return where the findings on a model and its calibration samples are kept.

    Args:
        folder: of the export.
        model: as its activations are computed.
        batches: read once, to tell these samples from others.
    """
    digest = hashlib.sha256(f"1 {BINS} {import_onnxruntime().__version__}".encode())
    digest.update(model.SerializeToString(deterministic=True))
    for batch in batches():
        for array in batch:
            digest.update(f" {array.dtype} {array.shape} ".encode())
            digest.update(array.tobytes())
    return folder / f"calibration-{digest.hexdigest()[:_DIGITS]}.npz"


def read_findings(path: Path) -> Findings:
    """Return what a file holds; nothing where there is none that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            extremes = {
                name: (float(low), float(high))
                for name, (low, high) in zip(stored["names"].tolist(), stored["extremes"], strict=True)
            }
            histograms = {
                name: Histogram(*extremes[name], counts=counts)
                for name, counts in zip(stored["counted"].tolist(), stored["counts"], strict=True)
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return Findings()
    return Findings(extremes, histograms)


def write_findings(path: Path, findings: Findings) -> None:
    """Keep findings for later, whole or not at all; where there is no room for them, they are found anew."""
    draft = path.with_suffix(".part")
    counts = [histogram.counts for histogram in findings.histograms.values()]
    try:
        with draft.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                names=np.array(list(findings.extremes), np.str_),
                extremes=np.array(list(findings.extremes.values()), np.float64).reshape(-1, 2),
                counted=np.array(list(findings.histograms), np.str_),
                counts=np.array(counts, np.int64).reshape(-1, BINS),
            )
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
