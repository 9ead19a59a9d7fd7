"""Post-processing carried out with NumPy: what `alula.core.Step` and `alula.core.CentralMaximum` describe."""

from alula.postprocess.describe import PostProcessing, parse_postprocessing, read_postprocessing
from alula.postprocess.frames import central_maximum
from alula.postprocess.steps import Track, apply_steps, needs_times

__all__ = [
    "PostProcessing",
    "Track",
    "apply_steps",
    "central_maximum",
    "needs_times",
    "parse_postprocessing",
    "read_postprocessing",
]
