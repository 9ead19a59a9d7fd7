"""Recipes, settings, metrics and verdicts in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alula.core import Accuracy, Candidate, Recipe, Scalar, Settings
from alula.report.content import ReportContent
from alula.report.numbers import MINUS, UNKNOWN, count, shortened, signed, times, times_interval

__all__ = [
    "DropScale",
    "accuracy_sentence",
    "baseline_name",
    "drop_scale",
    "drop_words",
    "engine_words",
    "knob_value",
    "metric_value",
    "metric_words",
    "recipe_words",
    "settings_text",
    "settings_words",
    "speed_sentence",
]

_ENGINES = {
    "torch": "eager PyTorch",
    "torchscript": "TorchScript",
    "inductor": "TorchInductor",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
_PRECISIONS = {
    "fp32": "32-bit floating point (FP32)",
    "bf16": "16-bit floating point (BF16)",
    "int8": "8-bit integers (INT8)",
}
_SCOPES = {
    "all": "Which layers are quantized is left to the quantizer.",
    "dense": "Only dense convolutions and matrix products are quantized, the rest stays in floating point.",
    "no-depthwise": "All layers are quantized but depthwise convolutions.",
    "no-edges": "All layers are quantized but stem, head and squeeze-excite.",
}
_METRICS = {
    "top1": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "padded_cmap": "padded cMAP",
    "mse": "mean squared error",
    "agreement": "agreement with the original",
    "cosine": "cosine similarity with the original",
}
_SHARES = frozenset({"top1", "balanced_accuracy", "agreement"})
_LOWER_IS_BETTER = frozenset({"mse"})
_MOST_DECIMALS = 8
_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class DropScale:
    """How the drop of a metric is written.

    Attributes:
        factor: from the metric's own scale to the unit.
        unit: such as `points`, or nothing for a metric without one.
        decimals: digits after the point.
    """

    factor: float
    unit: str
    decimals: int

    def text(self, drop: float, *, unit: bool = True) -> str:
        """Return a drop with its sign.

        >>> DropScale(factor=100, unit="points", decimals=2).text(0.0009)
        '+0.09 points'
        """
        text = signed(drop * self.factor, self.decimals)
        return f"{text} {self.unit}" if unit and self.unit else text

    def interval(self, low: float, high: float, *, between: str = " to ") -> str:
        """Return an interval of drops without its unit.

        >>> DropScale(factor=100, unit="points", decimals=2).interval(-0.003, 0.0047)
        '−0.30 to +0.47'
        """
        return f"{self.text(low, unit=False)}{between}{self.text(high, unit=False)}"

    def size(self, drop: float) -> str:
        """Return how large a drop is, without its sign.

        >>> DropScale(factor=100, unit="points", decimals=2).size(-0.0021)
        '0.21 points'
        """
        text = signed(abs(drop) * self.factor, self.decimals).lstrip("+")
        return f"{text} {self.unit}".rstrip()

    def limit(self, limit: float) -> str:
        """Return a limit in as many digits as it needs.

        >>> DropScale(factor=100, unit="points", decimals=2).limit(0.005)
        '0.5 points'
        """
        if not math.isfinite(limit):
            return "no limit"
        text = signed(limit * self.factor, self.decimals).lstrip("+")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return f"{text} {self.unit}".rstrip()


def drop_scale(accuracy: Accuracy) -> DropScale:
    """Return how drops of this metric are written: shares in points, errors in percent, others as they are.

    There are enough decimals to tell the limit from zero.
    """
    if accuracy.metric in _SHARES:
        factor, unit, decimals = 100.0, "points", 2
    elif accuracy.metric in _LOWER_IS_BETTER:
        factor, unit, decimals = 100.0, "%", 2
    else:
        factor, unit, decimals = 1.0, "", 4
    limit = abs(accuracy.limit) * factor
    if math.isfinite(limit) and limit > 0:
        decimals = min(_MOST_DECIMALS, max(decimals, 1 - math.floor(math.log10(limit))))
    return DropScale(factor=factor, unit=unit, decimals=decimals)


def metric_words(metric: str) -> str:
    """Return the name of a metric as in a sentence.

    >>> metric_words("top1"), metric_words("score.py:f2")
    ('top-1 accuracy', 'score.py:f2')
    """
    return _METRICS.get(metric, metric)


def drop_words(metric: str) -> str:
    """Return what it is that the limit limits.

    >>> drop_words("top1"), drop_words("mse")
    ('drop of top-1 accuracy', 'rise of mean squared error')
    """
    return f"{'rise' if metric in _LOWER_IS_BETTER else 'drop'} of {metric_words(metric)}"


def metric_value(metric: str, value: float) -> str:
    """Return a value of a metric.

    >>> metric_value("top1", 0.8106), metric_value("macro_auc", 0.98765), metric_value("mse", 0.00123)
    ('81.06 %', '0.9877', '0.00123')
    """
    if not math.isfinite(value):
        return UNKNOWN
    if metric in _SHARES:
        return f"{100 * value:.2f} %"
    text = f"{value:.4f}" if 0.1 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def engine_words(engine: str) -> str:
    """Return the name of an engine as its makers write it."""
    return _ENGINES.get(engine, engine)


def baseline_name(baseline: Candidate) -> str:
    """Return what the model as it was is called.

    >>> baseline_name(Candidate(Recipe("torch", "fp32"), Settings()))
    'eager PyTorch'
    """
    words = engine_words(baseline.recipe.engine)
    return words if baseline.recipe.precision == "fp32" else f"{words} in {baseline.recipe.precision}"


def recipe_words(recipe: Recipe) -> str:
    """Return what a recipe is, in one or more sentences.

    >>> recipe_words(Recipe("openvino", "fp32"))
    'OpenVINO runs the network with products in 32-bit floating point (FP32).'
    """
    engine = engine_words(recipe.engine)
    sentences = [
        f"{engine[:1].upper()}{engine[1:]} runs the network with products in {_PRECISIONS[recipe.precision]}."
    ]
    if recipe.quantizer is not None:
        sentences.append(f"It was quantized by `{recipe.quantizer}` after training, on calibration samples.")
        sentences.append(_SCOPES[recipe.scope])
    if recipe.variant is not None:
        sentences.append(f"Otherwise than by default: `{recipe.variant}`.")
    return " ".join(sentences)


def settings_text(settings: Settings) -> str:
    """Return settings in short, in such a way that lines break between them only."""
    return str(settings).replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")


def settings_words(settings: Settings) -> str:
    """Return how an artifact is run, in one sentence, without the engine's knobs.

    >>> settings_words(Settings(threads=1, instances=2, batch_size=32))
    '2 instances compute at the same time with 1 thread each, 2 threads in all; a batch holds 32 samples.'
    >>> settings_words(Settings(threads=2, batch_size=1))
    'One instance computes with 2 threads; a batch holds 1 sample.'
    """
    threads = count(settings.threads, "thread")
    batch = f"a batch holds {count(settings.batch_size, 'sample')}."
    if settings.instances == 1:
        return f"One instance computes with {threads}; {batch}"
    return (
        f"{settings.instances:,} instances compute at the same time with {threads} each, "
        f"{count(settings.total_threads, 'thread')} in all; {batch}"
    )


def knob_value(value: Scalar) -> str:
    """Return a knob's value.

    >>> knob_value(True), knob_value(0.5)
    ('on', '0.5')
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def speed_sentence(content: ReportContent) -> tuple[str, str]:
    """Return the finding about speed: its emphasised beginning, and the rest with the interval."""
    speedup, name = content.speedup, shortened(baseline_name(content.baseline), _LONGEST_NAME)
    ratio = times(speedup.median).removesuffix("×")
    interval = f"[{times_interval(speedup, between=', ')}]"
    if not (math.isfinite(speedup.low) and math.isfinite(speedup.high)):
        return f"about {ratio} times as fast", f"as {name}, in too few rounds for an interval"
    if not speedup.certain:
        return "no faster or slower beyond doubt", f"than {name}: {ratio} times as fast {interval}"
    if speedup.median < 1:
        return "slower", f"than {name}: {ratio} times as fast {interval}"
    return f"{ratio} times as fast", f"as {name} {interval}"


def accuracy_sentence(accuracy: Accuracy) -> tuple[str, str, str]:
    """Return the finding about accuracy: what, its emphasised middle, and the rest with the interval.

    The interval is turned round with the sentence: of the rise where the metric rose.
    """
    scale = drop_scale(accuracy)
    lower_is_better = accuracy.metric in _LOWER_IS_BETTER
    low, high = accuracy.drop_low, accuracy.drop_high
    if accuracy.drop == 0:
        verb, size = "does", "not change"
    else:
        worse = accuracy.drop > 0
        verb = "drops by" if worse != lower_is_better else "rises by"
        size = scale.size(accuracy.drop)
        if not size.strip("0.,%points "):
            size = f"less than {10.0**-scale.decimals:.{scale.decimals}f} {scale.unit}".rstrip()
        if not worse:
            low, high = -high, -low
    interval = f"[{scale.interval(low, high, between=', ')}]"
    allowed = "rise" if lower_is_better else "drop"
    limit = scale.limit(accuracy.limit)
    rest = f"{interval} on {count(accuracy.n, 'sample')}; a {allowed} of {limit} is allowed"
    return f"{shortened(metric_words(accuracy.metric), _LONGEST_NAME)} {verb}", size, rest
