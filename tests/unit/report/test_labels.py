"""Label placement: nothing covers anything, and nothing is left out while there is room."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.report.geometry import Box, Segment, text_width
from alula.report.labels import LabelRequest, place_labels

AREA = Box(0, 0, 800, 400)
points = st.lists(
    st.builds(
        LabelRequest,
        x=st.floats(10, 790),
        y=st.floats(10, 390),
        radius=st.just(6.0),
        texts=st.sampled_from([("openvino/int8-nncf-dense", "7"), ("torch/fp32", "12"), ("a" * 200, "3")]),
        important=st.booleans(),
        bold=st.booleans(),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(points)
def test_labels_cover_no_label_no_marker_and_no_obstacle_and_stay_inside(requests):
    obstacle = Box(300, 100, 420, 120)
    placed = place_labels(requests, area=AREA, font_px=13, obstacles=[obstacle], soft=[])
    assert len(placed) == len(requests)
    boxes = [label.box for label in placed if label is not None]
    markers = [Box(one.x - 6, one.y - 6, one.x + 6, one.y + 6) for one in requests]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    for box in boxes:
        assert AREA.contains(box)
        assert not any(box.overlaps(other) for other in (*markers, obstacle))
    for request, label in zip(requests, placed, strict=True):
        if label is None:
            continue
        assert label.text in request.texts
        width = label.box.right - label.box.left
        assert width == pytest.approx(text_width(label.text, 13, bold=request.bold))
        if label.leader is None:
            gap = max(
                label.box.left - request.x,
                request.x - label.box.right,
                label.box.top - request.y,
                request.y - label.box.bottom,
            )
            assert gap < 6 + 9


@pytest.mark.parametrize("seed", range(12))
def test_leaders_cross_no_label_in_a_crowd(seed):
    random = np.random.default_rng(seed)
    requests = [
        LabelRequest(x=x, y=y, radius=6, texts=(f"onnxruntime/fp32-{index}", str(index)))
        for index, (x, y) in enumerate(random.uniform((340, 170), (460, 230), (16, 2)).tolist())
    ]
    placed = [label for label in place_labels(requests, area=AREA, font_px=13) if label is not None]
    leaders = [label for label in placed if label.leader is not None]
    assert leaders
    for label in leaders:
        assert label.leader is not None
        assert not any(label.leader.crosses_box(other.box) for other in placed if other is not label)


def test_a_lonely_label_stands_right_beside_its_point_in_full():
    request = LabelRequest(x=100, y=100, radius=6, texts=("torch/fp32", "1"))
    (label,) = place_labels([request], area=AREA, font_px=10)
    assert label is not None
    assert label.text == "torch/fp32"
    assert label.leader is None
    assert label.anchor == "start"
    assert label.box.left == 110
    assert (label.box.top + label.box.bottom) / 2 == 100


def test_at_the_right_edge_it_stands_on_the_left():
    request = LabelRequest(x=790, y=100, radius=6, texts=("torch/fp32",))
    (label,) = place_labels([request], area=AREA, font_px=10)
    assert label is not None
    assert label.anchor == "end"
    assert label.box.right == 780


def test_what_does_not_fit_is_written_shorter_and_what_fits_nowhere_is_left_out():
    small = Box(0, 0, 60, 40)
    request = LabelRequest(x=10, y=20, radius=6, texts=("a name that is too long", "12"))
    (label,) = place_labels([request], area=small, font_px=10)
    assert label is not None
    assert label.text == "12"
    assert place_labels([request], area=Box(0, 0, 18, 40), font_px=10) == (None,)


def test_a_crowd_gets_numbers_rather_than_nothing():
    row = [
        LabelRequest(x=100 + 14 * k, y=50, radius=6, texts=(f"onnxruntime/fp32-{k}", str(k)))
        for k in range(8)
    ]
    placed = place_labels(row, area=Box(0, 0, 300, 100), font_px=12)
    assert all(label is not None for label in placed)
    assert any(label is not None and label.text.isdigit() for label in placed)


def test_an_important_label_keeps_its_words_in_a_crowd():
    row = [
        LabelRequest(x=100 + 9 * k, y=50, radius=6, texts=(f"onnxruntime/fp32-{k}", str(k)), important=k == 3)
        for k in range(12)
    ]
    placed = place_labels(row, area=Box(0, 0, 300, 100), font_px=12)
    assert placed[3] is not None
    assert placed[3].text == "onnxruntime/fp32-3"


def test_there_is_nothing_to_place_without_points():
    assert place_labels([], area=AREA, font_px=12) == ()


coordinates = st.floats(0, 10)


@given(coordinates, coordinates, coordinates, coordinates)
def test_a_segment_crosses_a_box_where_one_of_its_points_lies_inside(x0, y0, x1, y1):
    box = Box(3, 4, 6, 8)
    along = np.linspace(0, 1, 4001)
    x, y = x0 + along * (x1 - x0), y0 + along * (y1 - y0)
    margin = np.minimum.reduce([x - box.left, box.right - x, y - box.top, box.bottom - y]).max()
    # Sampled points miss corners by less than the distance of two of them.
    if margin > 0.01:
        assert Segment(x0, y0, x1, y1).crosses_box(box)
    elif margin < -0.01:
        assert not Segment(x0, y0, x1, y1).crosses_box(box)


def test_segments_cross_between_their_ends_only():
    assert Segment(0, 0, 4, 4).crosses(Segment(0, 4, 4, 0))
    assert not Segment(0, 0, 1, 1).crosses(Segment(0, 4, 4, 0))
    assert not Segment(0, 0, 4, 0).crosses(Segment(0, 1, 4, 1))
