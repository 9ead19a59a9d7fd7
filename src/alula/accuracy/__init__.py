"""How good a candidate is beside the baseline: metrics, the paired bootstrap of the drop, the verdict.

Pure NumPy. Outputs and targets come in as arrays; nothing here runs a model.
"""

from alula.accuracy.comparison import Fidelity, accept, compare, fidelity
from alula.accuracy.metrics import (
    Agreement,
    BalancedAccuracy,
    Cosine,
    MacroAuc,
    MeanSquaredError,
    Metric,
    PaddedCmap,
    Top1,
    UserMetric,
)
from alula.accuracy.naming import METRIC_NAMES, default_metric, metric_named

__all__ = [
    "METRIC_NAMES",
    "Agreement",
    "BalancedAccuracy",
    "Cosine",
    "Fidelity",
    "MacroAuc",
    "MeanSquaredError",
    "Metric",
    "PaddedCmap",
    "Top1",
    "UserMetric",
    "accept",
    "compare",
    "default_metric",
    "fidelity",
    "metric_named",
]
