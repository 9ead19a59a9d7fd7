"""A survey over tiny models: what each row says, what one bad name costs, and what is written when."""

from __future__ import annotations

import csv
import functools
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, FEATURES, write_factory, write_onnx
from torch import nn

from alula.cli import cli
from alula.core import ArrayInput, Roofline, Throughput
from alula.engines.fake import SCRIPT_VARIABLE
from alula.errors import AlulaError, DataError, JobError, ModelError, UsageError
from alula.report.pareto import ParetoPoint, pareto_front, pareto_svg
from alula.sources import Source, parse_source
from alula.tuning import SearchPlan
from alula.workflows import SurveyReport, SurveyRow, survey, surveying
from alula.workflows.random_weights import REQUEST, PreparationRequest, prepare, settle_statistics

SVG = "{http://www.w3.org/2000/svg}"
ROOF = Roofline(
    fp32_gmacs_per_s=100.0, int8_gmacs_per_s=400.0, bandwidth_gb_per_s=20.0, threads=1, method="by hand"
)


@pytest.fixture(autouse=True)
def short_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are good for nothing but that there are some."""
    monkeypatch.setattr(surveying, "SearchPlan", functools.partial(SearchPlan))
    monkeypatch.setattr(surveying, "ROUND_S", 0.02)


def small(names: list[str], **options: Any) -> SurveyReport:
    """Survey with one engine, a budget of nothing, and one thread."""
    return survey(
        names,
        **{"input": f"{FEATURES}", "engines": ["fake"], "threads": 1, "budget_per_model": 1e-3, **options},
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Rows.


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A survey of a convolutional network, an ONNX file and a name that leads nowhere."""
    folder = tmp_path_factory.mktemp("survey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surveying, "ROUND_S", 0.02)
        patch.setattr(surveying, "measure_roofline", lambda *, threads, report: ROOF)
        patch.setattr(surveying, "cache_folder", lambda: None)
        (folder / "scores.csv").write_text("model,score,note\nabsent.py:net,0.5,\nother,0.9,not asked for\n")
        names = [f"{write_factory(folder)}:tiny", "absent.py:net"]
        report = survey(
            names,
            input="3x16x16",
            engines=["onnxruntime"],
            precisions=["fp32"],
            threads=1,
            budget_per_model="100ms",
            roofline=True,
            scores_csv=folder / "scores.csv",
            output=folder / "survey.csv",
            plot=folder / "survey.svg",
        )
    yield SimpleNamespace(report=report, names=names, folder=folder)


def test_a_row_says_how_large_and_how_fast(surveyed: SimpleNamespace) -> None:
    row = surveyed.report.rows[0]
    assert row.model == surveyed.names[0]
    assert row.error is None
    convolution, head = 8 * 3 * 9, 8 * CLASSES
    assert row.parameters == convolution + 8 + head + CLASSES
    assert row.macs == 8 * 8 * convolution + head
    assert row.recipe == "onnxruntime/fp32"
    assert row.settings.total_threads == 1
    assert row.throughput.per_s > 0
    assert len(row.throughput.rounds_per_s) == surveying.FINAL_ROUNDS
    assert row.baseline_per_s > 0
    assert row.speedup.low <= row.speedup.median <= row.speedup.high
    assert (row.recipes_measured, row.recipes_offered) == (1, 1)
    assert row.of_peak.share == pytest.approx(row.throughput.per_s * row.macs / 100e9)
    assert row.of_peak.of == ("fp32",)
    assert row.seconds > 0


def test_a_bad_name_costs_its_own_row(surveyed: SimpleNamespace) -> None:
    row = surveyed.report.rows[1]
    assert row.throughput is None
    assert "absent.py` does not exist" in row.error
    assert "\n" not in row.error
    assert row.score == 0.5  # of the table, whatever becomes of the model


def test_the_whole_of_a_survey(surveyed: SimpleNamespace) -> None:
    report = surveyed.report
    assert report.shape == (3, 16, 16)
    assert report.against == "macs"  # nothing that was measured has a score
    assert report.front == (surveyed.names[0],)
    assert (report.threads, report.budget_per_model_s, report.interrupted) == (1, 0.1, False)
    assert report.roofline == ROOF
    assert msgspec.json.decode(msgspec.json.encode(report), type=SurveyReport) == report


def test_the_table_has_a_line_for_each_model(surveyed: SimpleNamespace) -> None:
    first, second = table(surveyed.folder / "survey.csv")
    row = surveyed.report.rows[0]
    assert first["model"] == row.model
    assert float(first["samples_per_s"]) == row.throughput.per_s
    assert int(first["macs"]) == row.macs
    assert first["recipe"] == "onnxruntime/fp32"
    assert float(first["share_of_roofline"]) == row.of_peak.share
    assert (first["roofline_of"], second["roofline_of"]) == ("FP32", "")
    assert (first["on_front"], first["error"], first["score"]) == ("True", "", "")
    assert second["samples_per_s"] == second["macs"] == second["on_front"] == ""
    assert (second["error"], second["score"]) == (surveyed.report.rows[1].error, "0.5")


def test_the_plot_is_written(surveyed: SimpleNamespace) -> None:
    root = ET.parse(surveyed.folder / "survey.svg").getroot()
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert "Speed against work per sample" in texts
    assert any(text.startswith("Samples of 3x16x16, 1 threads of ") for text in texts)
    assert not list(surveyed.folder.glob("*.tmp"))


def test_an_onnx_file(tmp_path: Path) -> None:
    """What is known of it stands in its graph alone."""
    (row,) = small([str(write_onnx(tmp_path / "m.onnx", batch=8))]).rows
    assert row.error is None
    assert (row.recipe, row.parameters, row.macs) == ("fake/fp32", FEATURES * CLASSES, FEATURES * CLASSES)
    assert row.of_peak.of == ("fp32",)


def test_a_model_that_no_recipe_runs_says_why_and_how_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCRIPT_VARIABLE, '{"fake/fp32": {"fault": "error", "fault_at": "build"}}')
    (row,) = small([str(write_onnx(tmp_path / "m.onnx", batch=8))]).rows
    assert row.error is not None
    assert row.error.startswith("No recipe could be measured. fake/fp32: The fake engine failed")
    assert row.macs == FEATURES * CLASSES
    assert row.throughput is None


def test_a_model_that_does_not_take_the_shape(tmp_path: Path) -> None:
    (row,) = small([f"{write_factory(tmp_path)}:tiny"], input="5x16x16").rows
    assert row.error is not None
    assert row.error.startswith("`tiny` on samples of 5x16x16 raised RuntimeError")
    assert (row.parameters, row.throughput) == (None, None)


def test_a_model_whose_process_ends(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import os\ndef net():\n    print('so long')\n    os._exit(7)\n")
    (row,) = small([f"{tmp_path / 'net.py'}:net"]).rows
    assert row.error == "The process that builds the model ended with exit code 7: so long."


def test_an_error_that_nobody_expected_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def parameters(self, recurse=True):\n"
        "        raise RuntimeError('no parameters today')\n"
        "def net():\n"
        "    return Net(2, 2)\n"
    )
    (row,) = small([f"{tmp_path / 'net.py'}:net"]).rows
    assert row.error == (
        "The process that builds the model ended with exit code 1: RuntimeError: no parameters today."
    )


def test_a_model_that_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "TIMEOUT_S", 0.01)
    (tmp_path / "net.py").write_text("import threading\ndef net():\n    threading.Event().wait()\n")
    (row,) = small([f"{tmp_path / 'net.py'}:net"]).rows
    assert row.error == "Stopped: the model was not ready within 0 s."


# Names and inputs.


def test_models_of_timm_get_the_channels_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet50").mkdir()
    for given_name, expected in {
        "resnet18": "timm:resnet18?in_chans=1",
        "resnet18.a1_in1k": "timm:resnet18.a1_in1k?in_chans=1",
        "timm:resnet18": "timm:resnet18?in_chans=1",
        "resnet18?num_classes=5": "timm:resnet18?num_classes=5&in_chans=1",
        "resnet18?in_chans=2": "timm:resnet18?in_chans=2",
        "torchvision:resnet18": "torchvision:resnet18",
        "net.onnx": "net.onnx",
        "package.module:net": "package.module:net",
        "resnet50": "resnet50",  # there is a file or folder of that name
    }.items():
        assert surveying._model(given_name, (1, 128, 313)) == expected
    assert surveying._model("resnet18", (3, 224, 224)) == "timm:resnet18"
    assert surveying._model("resnet18", (16_000,)) == "timm:resnet18"


def test_without_names_the_seeds_are_surveyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying._Run, "row", lambda self, name: SurveyRow(model=name))
    assert [row.model for row in small([]).rows] == list(surveying.SEEDS)
    assert len(surveying.SEEDS) == len(set(surveying.SEEDS)) == 12


def test_a_name_given_twice_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying._Run, "row", lambda self, name: SurveyRow(model=name))
    assert [row.model for row in small(["b", "a", "b"]).rows] == ["b", "a"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"input": "1x0x3"}, UsageError, "sizes from 1"),
        ({"input": ()}, UsageError, "sizes from 1"),
        ({"input": "array"}, UsageError, "leaves the shape open"),
        ({"input": ArrayInput()}, UsageError, "leaves the shape open"),
        ({"input": "imagenett"}, UsageError, "Did you mean `imagenet`"),
        ({"engines": ["onnxruntim"]}, UsageError, "Did you mean `onnxruntime`"),
        ({"budget_per_model": "soon"}, UsageError, "no duration"),
        ({"threads": 0}, UsageError, "thread"),
        ({"against": "weight"}, UsageError, "score, macs, parameters"),
        ({"against": "score"}, UsageError, "a table of scores is needed"),
        ({"scores_csv": "absent.csv"}, DataError, "cannot be read"),
        ({"output": "/proc/no/survey.csv"}, JobError, "survey.csv"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[AlulaError], says: str
) -> None:
    monkeypatch.setattr(surveying._Run, "row", lambda self, name: pytest.fail("a model was measured"))
    with pytest.raises(error, match=says):
        small(["a"], **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,score\na,1\n", "columns name, score"),
        ("", "expected model and score"),
        ("model,score\na,good\n", r"score of `a` \(line 2\) is `good`"),
        ("model,score\na,1\nb,nan\n", "line 3"),
        ("model,score\na,inf\n", "expected a number"),
        ("model,score\na\n", "score of `a`"),
        ("model,score\na,1\na,2\n", "two scores"),
        ("model,score\n\udcff,1\n", "cannot be read"),
    ],
)
def test_a_wrong_table_of_scores(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "scores.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=says):
        small(["a"], scores_csv=tmp_path / "scores.csv")


# Scores, sizes and the front.


def measured(name: str, per_s: float, **known: Any) -> SurveyRow:
    return SurveyRow(model=name, throughput=Throughput(per_s=per_s, rounds_per_s=(per_s,)), **known)


ROWS = {
    "large": measured("large", 10.0, macs=4_000_000_000, parameters=9_000_000),
    "small": measured("small", 90.0, macs=300_000_000, parameters=2_000_000),
    "slow": measured("slow", 5.0, macs=1_000_000_000, parameters=20_000_000),
    "broken": SurveyRow(model="broken", error="no"),
}


@pytest.fixture
def known_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying._Run, "row", lambda self, name: ROWS[name])


def test_the_front_is_against_work_unless_something_else_is_asked_for(known_rows: None) -> None:
    report = small([*ROWS])
    assert (report.against, report.front) == ("macs", ("large", "small"))
    report = small([*ROWS], against="parameters")
    assert (report.against, report.front) == ("parameters", ("slow", "large", "small"))


def test_scores_are_joined_and_weighed_against(known_rows: None, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("\ufeffmodel,score\nlarge,0.7\nslow,0.8\n", encoding="utf-8")
    report = small([*ROWS], scores_csv=tmp_path / "scores.csv", plot=tmp_path / "p.svg")
    assert [row.score for row in report.rows] == [0.7, None, 0.8, None]
    assert (report.against, report.front) == ("score", ("slow", "large"))
    assert report.warnings == ("compared by speed alone, because score is not known: small",)
    texts = [text.text for text in ET.parse(tmp_path / "p.svg").getroot().iter(f"{SVG}text")]
    assert {"large", "slow", "score →"} <= set(texts)
    assert "small" not in texts


def test_scores_of_other_models_are_a_warning(known_rows: None, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("model,score\nLarge,0.7\n")
    report = small(["large"], scores_csv=tmp_path / "scores.csv")
    assert report.warnings == ("none of the 1 scores is of a model that was asked for",)
    assert report.against == "macs"


def test_without_anything_measured_there_is_no_plot(known_rows: None, tmp_path: Path) -> None:
    report = small(["broken"], output=tmp_path / "s.csv", plot=tmp_path / "s.svg")
    assert (report.front, [path.name for path in tmp_path.iterdir()]) == ((), ["s.csv"])


# Interrupts.


def test_an_interrupt_between_measurements_keeps_the_rows_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search answers an interrupt with its best so far, and the survey ends after that row."""

    def row(self: object, name: str) -> SurveyRow:
        if name == "small":  # a search that goes on to its result
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        return ROWS[name]

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(surveying._Run, "row", row)
    report = small(["large", "small", "slow"], output=tmp_path / "s.csv")
    assert [one.model for one in report.rows] == ["large", "small"]
    assert report.interrupted
    assert [line["model"] for line in table(tmp_path / "s.csv")] == ["large", "small"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_of_a_model_with_nothing_to_show_keeps_the_rows_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def row(self: object, name: str) -> SurveyRow:
        if name == "small":
            raise KeyboardInterrupt
        return ROWS[name]

    monkeypatch.setattr(surveying._Run, "row", row)
    report = small(["large", "small", "slow"])
    assert ([one.model for one in report.rows], report.interrupted) == (["large"], True)
    with pytest.raises(KeyboardInterrupt):
        small(["small", "large"])


def test_an_interrupt_while_a_row_is_written_loses_nothing(
    known_rows: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, calls = surveying._write, []

    def write(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(path, text)

    monkeypatch.setattr(surveying, "_write", write)
    report = small(["large", "small", "slow"], output=tmp_path / "s.csv")
    assert [one.model for one in report.rows] == ["large", "small"]
    assert [line["model"] for line in table(tmp_path / "s.csv")] == ["large", "small"]


def test_each_row_is_written_when_it_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output, seen = tmp_path / "s.csv", []

    def row(self: object, name: str) -> SurveyRow:
        seen.append(len(table(output)) if output.exists() else 0)
        return ROWS[name]

    monkeypatch.setattr(surveying._Run, "row", row)
    small([*ROWS], output=output)
    assert seen == [0, 1, 2, 3]


# The command line.


@pytest.mark.parametrize(
    ("names", "code"), [(["large", "small"], 0), (["large", "broken"], 3), (["broken"], 1)]
)
def test_the_exit_code_says_whether_all_were_measured(
    known_rows: None, capfd: pytest.CaptureFixture[str], names: list[str], code: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli(args=["survey", *names, "--input", "3x8x8", "--json", "-q"], prog_name="alula")
    out, err = capfd.readouterr()
    assert (ended.value.code or 0, err) == (code, "")
    assert [row.model for row in msgspec.json.decode(out, type=SurveyReport).rows] == names


def test_the_table_on_screen(known_rows: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = ["--csv", str(tmp_path / "s.csv"), "--plot", str(tmp_path / "s.svg")]
    with pytest.raises(SystemExit):
        cli(args=["survey", *ROWS, "--input", "3x8x8", *files], prog_name="alula")
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["model", "M", "parameters", "GMAC", "samples/s"]
    assert [line.split()[0] for line in lines[1:4]] == ["small", "large", "slow"]
    assert lines[1].split()[1:5] == ["2", "0.3", "90.0", "yes"]
    assert "failed: broken: no" in lines
    assert "1 of 4: large; about 4 min left" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.svg"]


# Random weights.


class Normed(nn.Module):
    """Two convolutions whose last BatchNorm starts at zero, as in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
        nn.init.zeros_(self.second[1].weight)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.second(self.first(x)))


def test_activations_get_unit_scale() -> None:
    module = Normed().eval()
    assert settle_statistics(module, (2, 32, 32))
    x = torch.randn(64, 2, 32, 32)
    with torch.no_grad():
        out = module(x)
    assert not any(child.training for child in module.modules())
    assert module.first[1].momentum == 0.1
    np.testing.assert_allclose(out.mean((0, 2, 3)), 0, atol=0.1)
    np.testing.assert_allclose(out.std((0, 2, 3)), 1, atol=0.1)


def test_statistics_of_training_are_left_alone() -> None:
    module = Normed()
    for norm in (module.first[1], module.second[1]):
        norm.running_mean += 0.5
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert not settle_statistics(module.eval(), (2, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_are_written_for_other_processes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))\n"
    )
    source = Source(kind="factory", spec=f"{tmp_path / 'net.py'}:net")
    answer = prepare(
        PreparationRequest(source=source, shape=(2, 9, 9), threads=torch.get_num_threads()), tmp_path
    )
    assert answer.parameters == 3 * 2 * 9 + 3 + 2 * 3
    assert answer.weights is not None
    state = torch.load(answer.weights, weights_only=True)
    assert state["1.running_var"].ne(1).all()
    with pytest.raises(ModelError, match="`net` on samples of 7x9x9 raised RuntimeError"):
        prepare(PreparationRequest(source=source, shape=(7, 9, 9), threads=torch.get_num_threads()), tmp_path)


# The front and its picture.

coordinates = st.floats(-5, 5) | st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(coordinates, coordinates), max_size=30))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    """Against comparing every point with every other one."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] >= other[0] and one[1] >= other[1] and one != other

    expected = {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}
    found = pareto_front(points)
    assert set(found) == expected
    assert len(found) == len(expected)
    firsts = [points[index][0] for index in found]
    assert firsts == sorted(firsts, reverse=True)


def test_a_point_that_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="not a number"):
        pareto_front([(1.0, 2.0), (float("nan"), 1.0)])


positive = st.floats(1e-3, 1e12)
points_to_draw = st.lists(
    st.builds(ParetoPoint, name=st.text(max_size=60), across=positive, per_s=st.floats(1e-4, 1e9)),
    min_size=1,
    max_size=14,
)


@given(points_to_draw, st.sampled_from(["score", "macs", "parameters"]), st.text(max_size=200))
def test_a_picture_is_whole_whatever_is_in_it(points: list[ParetoPoint], across: Any, caption: str) -> None:
    """Well-formed, inside its frame, a mark for each point, and the front filled."""
    root = ET.fromstring(pareto_svg(points, across=across, caption=caption))
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    filled = [circle for circle in circles if circle.attrib["class"] == "point member"]
    unit = {"score": 1.0, "macs": 1e9, "parameters": 1e6}[across]
    assert len(filled) == len(pareto_front([(point.across / unit, point.per_s) for point in points]))


def test_the_members_are_named_and_further_right_is_more() -> None:
    points = [
        ParetoPoint(name="big", across=0.9, per_s=10.0),
        ParetoPoint(name="quick", across=0.5, per_s=200.0),
        ParetoPoint(name="neither", across=0.4, per_s=20.0),
    ]
    root = ET.fromstring(pareto_svg(points, across="score", caption="here"))
    bold = {text.text for text in root.iter(f"{SVG}text") if text.attrib["class"] == "label strong"}
    assert bold == {"big", "quick"}
    assert "on the front" in (root.findtext(f"{SVG}desc") or "")
    filled = [circle for circle in root.iter(f"{SVG}circle") if circle.attrib["class"] == "point member"]
    (quick, big) = sorted(filled, key=lambda circle: float(circle.attrib["cx"]))
    assert float(quick.attrib["cy"]) < float(big.attrib["cy"])  # faster is further up


@pytest.mark.parametrize(
    "points",
    [
        [],
        [ParetoPoint(name="a", across=0.0, per_s=1.0)],
        [ParetoPoint(name="a", across=1.0, per_s=0.0)],
        [ParetoPoint(name="a", across=float("inf"), per_s=1.0)],
    ],
    ids=["none", "no work", "no speed", "endless work"],
)
def test_what_cannot_be_drawn_is_refused(points: list[ParetoPoint]) -> None:
    with pytest.raises(ValueError, match=r"expected at least one|positive and finite"):
        pareto_svg(points, across="macs", caption="")


def test_what_builds_a_model_ends_with_who_asked(tmp_path: Path) -> None:
    """A killed survey cannot end its child, whose model may hang for ever."""
    here = tmp_path / "here"
    (tmp_path / "net.py").write_text(
        f"import pathlib, time\ndef build():\n    pathlib.Path({str(here)!r}).touch()\n    time.sleep(600)\n"
    )
    request = PreparationRequest(
        source=parse_source(f"{tmp_path / 'net.py'}:build"), shape=(3, 8, 8), threads=1
    )
    (tmp_path / REQUEST).write_bytes(msgspec.json.encode(request))
    with subprocess.Popen(
        [sys.executable, "-c", "from alula.workflows.random_weights import main; main()", str(tmp_path)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        assert child.stdin is not None
        while not here.exists() and child.poll() is None:
            time.sleep(0.05)
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(30) == -signal.SIGKILL
