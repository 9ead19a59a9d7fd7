"""The chart, read back from its SVG: what is drawn where, against its own ticks."""

from __future__ import annotations

import math
import re

import msgspec
import numpy as np
import pytest

from alula.core import Accepted, Accuracy, Candidate, Ratio, Recipe, Rejected, Settings, Throughput
from alula.report.layout import NARROW, WIDE
from alula.report.marks import KINDS, engine_kinds, marker
from alula.report.markup import Element
from alula.report.scatter import scatter
from alula.report.trials import rows


def elements(node):
    for child in node.children:
        if isinstance(child, Element):
            yield child
            yield from elements(child)


def by_class(svg, name):
    return [one for one in elements(svg) if name in str(one.attributes.get("class", "")).split()]


def text_of(node):
    return "".join(child if isinstance(child, str) else text_of(child) for child in node.children)


def draw(content, frame=WIDE):
    found = rows(content)
    kinds = engine_kinds([row.recipe.engine for row in found])
    return scatter(content, found, kinds=kinds, frame=frame)


def accuracy(drop, n=4700, low=None, high=None, limit=0.005):
    return Accuracy(
        metric="top1",
        n=n,
        baseline=0.8,
        chosen=0.8 - drop,
        drop=drop,
        drop_low=drop - 0.002 if low is None else low,
        drop_high=drop + 0.002 if high is None else high,
        limit=limit,
    )


def accepted(engine, ratio, drop, n=4700):
    return Accepted(
        candidate=Candidate(Recipe(engine, "fp32"), Settings()),
        accuracy=accuracy(drop, n),
        throughput=Throughput(per_s=100.0 * ratio, rounds_per_s=(100.0 * ratio,)),
    )


@pytest.fixture
def content(sample):
    """A search that chose `torch/fp32` at four times the baseline, with no other outcome yet."""
    return msgspec.structs.replace(
        sample,
        chosen=Candidate(Recipe("torch", "fp32"), Settings()),
        chosen_throughput=Throughput(per_s=400.0, rounds_per_s=(400.0,)),
        baseline_throughput=Throughput(per_s=100.0, rounds_per_s=(100.0,)),
        speedup=Ratio(4.0, 3.0, 5.0),
        accuracy=accuracy(0.001),
        outcomes=(),
        finalists=(),
    )


def read_axis(svg, *, along):
    """Fit value against coordinate to the grid and the numbers beside it; logarithms along x."""
    direction = "V" if along else "H"
    grid = [re.match(rf"M([\d.]+) ([\d.]+){direction}", one.attributes["d"]) for one in by_class(svg, "grid")]
    at = [float(line[1 if along else 2]) for line in grid if line is not None]
    ticks = [one for one in by_class(svg, "tick") if (one.attributes["text-anchor"] == "middle") == along]
    # Numbers of the second scale above the plot come after those of the grid.
    values = [float(text_of(one).removesuffix("×").replace("−", "-")) for one in ticks[: len(at)]]
    slope, start = np.polyfit([math.log(value) if along else value for value in values], at, 1)
    return lambda value: start + slope * (math.log(value) if along else value)


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_marks_bars_and_the_limit_lie_where_the_axes_say(content, frame):
    content = msgspec.structs.replace(content, outcomes=(accepted("openvino", 2.0, -0.001),))
    svg = draw(content, frame)
    x, y = read_axis(svg, along=True), read_axis(svg, along=False)
    (ring,) = by_class(svg, "ring")
    assert ring.attributes["cx"] == pytest.approx(x(4.0), abs=0.5)
    assert ring.attributes["cy"] == pytest.approx(y(0.1), abs=0.5)
    (base,) = by_class(svg, "base")
    assert base.attributes["cx"] == pytest.approx(x(1.0), abs=0.5)
    assert base.attributes["cy"] == pytest.approx(y(0.0), abs=0.5)
    (limit,) = by_class(svg, "limit")
    height = float(re.search(r"M[\d.]+ ([\d.]+)H", limit.attributes["d"])[1])
    assert height == pytest.approx(y(0.5), abs=0.5)
    along = next(one.attributes["d"] for one in by_class(svg, "bar") if "H" in one.attributes["d"])
    left, right = re.search(r"M([\d.]+) [\d.]+H([\d.]+)", along).groups()
    assert float(left) == pytest.approx(x(3.0), abs=0.5)
    assert float(right) == pytest.approx(x(5.0), abs=0.5)
    other = next(one for one in by_class(svg, "mark") if "k4" in one.attributes["class"])
    tip_x, tip_y = re.search(r"M([\d.]+) ([\d.]+)L", other.attributes["d"]).groups()
    assert float(tip_x) == pytest.approx(x(2.0), abs=0.5)
    assert float(tip_y) == pytest.approx(y(-0.1) - 1.1 * 6, abs=0.5)
    # Up is more accurate, right is faster.
    assert y(-0.1) < y(0.1) < y(0.5)
    assert x(1.0) < x(2.0) < x(4.0)


def test_a_rejected_recipe_far_beyond_the_limit_is_at_the_edge_with_its_figure(content):
    lost = Rejected(recipe=Recipe("onnxruntime", "int8", "static"), reason="", accuracy=accuracy(0.4))
    near = Rejected(recipe=Recipe("inductor", "fp32"), reason="", accuracy=accuracy(0.006))
    svg = draw(msgspec.structs.replace(content, outcomes=(lost, near)))
    labels = [text_of(one) for one in by_class(svg, "label")]
    assert "onnxruntime/int8-static (+40.00)" in labels
    assert "inductor/fp32" in labels
    assert len(by_class(svg, "strike")) == 2
    assert "not timed" in [text_of(one) for one in by_class(svg, "tick")]
    y = read_axis(svg, along=False)
    bottom = max(float(one.attributes["y"]) for one in by_class(svg, "beyond")) + max(
        float(one.attributes["height"]) for one in by_class(svg, "beyond")
    )
    assert y(0.1) < y(0.6) < bottom < y(40.0)


def test_recipes_without_a_speed_stand_side_by_side(content):
    lost = tuple(
        Rejected(recipe=Recipe("onnxruntime", "int8", f"q{index}"), reason="", accuracy=accuracy(0.4))
        for index in range(3)
    )
    svg = draw(msgspec.structs.replace(content, outcomes=lost))
    starts = {re.match(r"M[\d.]+ [\d.]+", one.attributes["d"])[0] for one in by_class(svg, "strike")}
    assert len(starts) == 3


def test_a_limit_far_away_does_not_flatten_the_chart(content):
    far = msgspec.structs.replace(content, accuracy=accuracy(0.001, limit=1.0))
    svg = draw(far)
    assert not by_class(svg, "limit")
    assert [text_of(one) for one in by_class(svg, "limit-text")] == ["limit 100 points, far below"]


def test_a_rough_check_does_not_stretch_the_chart_and_is_dotted(content):
    wide = accepted("openvino", 2.0, 0.0, n=100)
    wide = msgspec.structs.replace(wide, accuracy=accuracy(0.0, n=100, low=-0.5, high=0.5))
    svg = draw(msgspec.structs.replace(content, outcomes=(wide,)))
    values = [text_of(one) for one in by_class(svg, "tick") if one.attributes["text-anchor"] == "end"]
    assert max(abs(float(value.replace("−", "-"))) for value in values) <= 1.0
    dotted = next(one for one in by_class(svg, "rough") if "k4" in one.attributes["class"])
    (plot,) = by_class(svg, "plot")
    top, height = plot.attributes["y"], plot.attributes["height"]
    first, last = map(float, re.search(r" ([-\d.]+)V([-\d.]+)", dotted.attributes["d"]).groups())
    assert (first, last) == pytest.approx((top, top + height), abs=0.1)


def test_every_recipe_of_the_sample_is_labelled_by_name_or_number(sample):
    judged = [row for row in rows(sample) if row.accuracy is not None]
    for frame in (WIDE, NARROW):
        svg = draw(sample, frame)
        labels = [text_of(one) for one in by_class(svg, "label")]
        assert len(labels) == len(judged) + 1
        assert labels[0] == "openvino/int8-nncf, chosen"
        assert labels[1] == "baseline: eager PyTorch"


def test_all_equally_fast_and_equally_accurate_is_still_a_chart(content):
    same = msgspec.structs.replace(
        content,
        speedup=Ratio(1.0, 1.0, 1.0),
        accuracy=accuracy(0.0, low=0.0, high=0.0, limit=0.0),
        outcomes=tuple(accepted(engine, 1.0, 0.0) for engine in ("openvino", "inductor", "onnxruntime")),
    )
    svg = draw(same)
    ticks = [text_of(one) for one in by_class(svg, "tick")]
    assert "1×" in ticks
    assert "0" in ticks


def test_there_is_no_chart_without_a_ratio(content):
    assert draw(msgspec.structs.replace(content, speedup=Ratio(math.nan, math.nan, math.nan))) is None


def test_the_description_says_what_the_picture_shows(sample):
    svg = draw(sample)
    (title,) = [one for one in elements(svg) if one.tag == "title"]
    (desc,) = [one for one in elements(svg) if one.tag == "desc"]
    assert svg.attributes["aria-labelledby"] == f"{title.attributes['id']} {desc.attributes['id']}"
    assert "15 recipes by speed, as a multiple of eager PyTorch" in text_of(desc)
    assert "openvino/int8-nncf is at 6.94 times with a drop of +0.09 points" in text_of(desc)
    assert "2 more were rejected before they were timed" in text_of(desc)


def test_engines_differ_in_shape():
    shapes = {marker(kind, "fp32", 10, 10, 6).attributes["d"] for kind in range(KINDS)}
    assert len(shapes) == KINDS
    many = engine_kinds(["torch", "openvino", *(f"engine{index}" for index in range(12))])
    assert many["torch"] == 0
    assert many["openvino"] == 4
    assert len(set(many.values())) == KINDS
    assert [kind for name, kind in many.items() if kind in (0, 4)] == [0, 4]
