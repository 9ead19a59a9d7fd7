"""Tables of detections, read back by pandas and by parsers that know nothing but the format."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from crowsetta.formats.bbox import Raven
from crowsetta.formats.seq import AudSeq
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from alula.errors import DataError, JobError, UsageError
from alula.pipeline import (
    Recordings,
    Row,
    Selection,
    Shard,
    TableOptions,
    read_thresholds,
    sink_for,
)
from alula.pipeline.detections import DEFAULT_CONFIDENCE, species_of

LABELS = ["Turdus merula_Eurasian Blackbird", "noise", "Parus\tmajor\n"]
ROWS = [
    Row("in/a/one, two.wav", 0.0, 5.0),
    Row("in/a/one, two.wav", 5.0, 10.0),
    Row("in/b.flac", 0.0, 5.0),
    Row('in/"c".ogg', 0.0, 5.0),
    Row('in/"c".ogg', 2.5, 7.5),
]
SCORES = np.array(
    [[0.9, 0.95, 0.1], [0.1, 0.3, 0.05], [0.1, 0.2, 0.24], [0.2, 0.0, 1.0], [0.25, 0.25, 0.5]], np.float32
)
DURATIONS = {"in/a/one, two.wav": 8.5, "in/b.flac": 4.25}  # of the third nobody knows
# Row and label of what scores at least 0.25, the highest of a window first.
FOUND = [(0, 1), (0, 0), (1, 1), (3, 2), (4, 2), (4, 0), (4, 1)]


def options_in(folder: Path, selection: Selection | None = None, shard: Shard | None = None) -> TableOptions:
    return TableOptions(
        selection=selection,
        shard=shard,
        recordings=Recordings(root=folder / "in", low_hz=20.0, high_hz=16_000.0, duration_s=DURATIONS.get),
    )


def write(
    folder: Path,
    name: str,
    format_: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    step: int = 2,
    **selection: object,
) -> Path:
    """Write `ROWS` a few at a time, so that recordings are split between calls; return the table."""
    monkeypatch.chdir(folder)
    path = folder / name
    options = options_in(folder, Selection(**selection) if selection else None)  # type: ignore[arg-type]
    with sink_for(path, format=format_, labels=LABELS, kind="audio", options=options) as sink:
        for first in range(0, len(ROWS), step):
            sink.write(ROWS[first : first + step], SCORES[first : first + step])
    return path


def times(number: int) -> tuple[float, float]:
    """Return the window of a row, cut at the end of its recording."""
    row = ROWS[number]
    assert row.start_s is not None
    assert row.end_s is not None
    return row.start_s, min(row.end_s, DURATIONS.get(row.path, 1e9))


@pytest.mark.parametrize("step", [1, 2, 5])
def test_raven_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    table = pandas.read_csv(write(tmp_path, "all.txt", "raven", monkeypatch, step=step), sep="\t")
    assert list(table.columns) == [
        "Selection", "Begin Time (s)", "End Time (s)", "Common Name", "Scientific Name", "Species Code",
        "Confidence", "View", "Channel", "File Offset (s)", "Low Freq (Hz)", "High Freq (Hz)", "Begin Path",
    ]  # fmt: skip
    assert list(table["Selection"]) == [1, 2, 3, 4, 5, 6, 7]
    before_s = {"in/a/one, two.wav": 0.0, "in/b.flac": 8.5, 'in/"c".ogg': 8.5 + 4.25}
    expected = [(before_s[ROWS[i].path], *times(i)) for i, _ in FOUND]
    assert list(table["Begin Time (s)"]) == [before + start for before, start, _ in expected]
    assert list(table["End Time (s)"]) == [before + end for before, _, end in expected]
    assert list(table["File Offset (s)"]) == [start for _, start, _ in expected]
    assert [Path(path) for path in table["Begin Path"]] == [tmp_path / ROWS[i].path for i, _ in FOUND]
    assert table["Common Name"][1] == "Eurasian Blackbird"
    assert table["Scientific Name"][1] == "Turdus merula"
    assert table["Common Name"][3] == "Parus major "
    np.testing.assert_allclose(table["Confidence"], [SCORES[place] for place in FOUND], atol=5e-5)
    assert set(table["Low Freq (Hz)"]) == {20}
    assert set(table["High Freq (Hz)"]) == {16_000}


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, by the reader
def test_raven_as_another_reader_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "all.txt", "raven", monkeypatch)
    boxes = Raven.from_file(path, annot_col="Species Code").to_bbox()
    before_s = {"in/a/one, two.wav": 0.0, "in/b.flac": 8.5, 'in/"c".ogg': 8.5 + 4.25}
    expected = [
        (before_s[ROWS[i].path] + times(i)[0], before_s[ROWS[i].path] + times(i)[1], 20.0, 16_000.0)
        for i, _ in FOUND
    ]
    assert [(box.onset, box.offset, box.low_freq, box.high_freq) for box in boxes] == expected
    plain = ["Turdus merula_Eurasian Blackbird", "noise", "Parus major "]
    assert [box.label for box in boxes] == [plain[label] for _, label in FOUND]


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize(("format_", "suffix"), [("raven", "selections"), ("audacity", "labels")])
def test_a_table_per_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, format_: str, suffix: str
) -> None:
    folder = write(tmp_path, "tables", format_, monkeypatch, step=step)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {f"{name}.{suffix}.txt" for name in ("a/one, two.wav", "b.flac", '"c".ogg')}
    one = (folder / f"a/one, two.wav.{suffix}.txt").read_text().splitlines()
    none = (folder / f"b.flac.{suffix}.txt").read_text().splitlines()
    last = (folder / f'"c".ogg.{suffix}.txt').read_text().splitlines()
    header = int(format_ == "raven")
    assert [len(lines) - header for lines in (one, none, last)] == [3, 0, 4]
    # Times and numbers begin anew in each table.
    begin = last[header].split("\t")
    assert begin[1 if header else 0] == "0.0"
    assert begin[0] == ("1" if header else "0.0")


def test_audacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = write(tmp_path, "all.txt", "audacity", monkeypatch).read_text().splitlines()
    parsed = [line.split("\t") for line in lines]
    assert [len(fields) for fields in parsed] == [4] * len(FOUND)
    assert [fields[2] for fields in parsed[:2]] == ["noise", LABELS[0]]
    assert [float(fields[0]) for fields in parsed] == [0, 0, 5, 12.75, 15.25, 15.25, 15.25]
    assert [float(fields[1]) for fields in parsed] == [5, 5, 8.5, 17.75, 20.25, 20.25, 20.25]
    assert parsed[0][3] == "0.9500"
    # Three columns are all that Audacity knows, and this reader.
    plain = tmp_path / "plain.txt"
    plain.write_text("".join("\t".join(fields[:3]) + "\n" for fields in parsed))
    track = AudSeq.from_file(plain)
    assert list(track.start_times) == [float(fields[0]) for fields in parsed]
    assert list(track.labels) == [fields[2] for fields in parsed]


def test_kaleidoscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pandas.read_csv(write(tmp_path, "k.csv", "kaleidoscope", monkeypatch), keep_default_na=False)
    assert list(table.columns) == [
        "INDIR", "FOLDER", "IN FILE", "OFFSET", "DURATION", "TOP1MATCH", "confidence"
    ]  # fmt: skip
    paths = [Path(row["INDIR"]) / row["FOLDER"] / row["IN FILE"] for _, row in table.iterrows()]
    assert paths == [tmp_path / ROWS[i].path for i, _ in FOUND]
    assert list(table["TOP1MATCH"]) == [LABELS[k] for _, k in FOUND]
    assert list(table["OFFSET"]) == [times(i)[0] for i, _ in FOUND]
    assert list(table["DURATION"]) == [times(i)[1] - times(i)[0] for i, _ in FOUND]


def test_birdnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with write(tmp_path, "b.csv", "birdnet", monkeypatch).open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"]
    assert [line[5] for line in lines] == [ROWS[i].path for i, _ in FOUND]
    assert lines[1][2:4] == ["Turdus merula", "Eurasian Blackbird"]
    assert lines[0][2:4] == ["noise", "noise"]
    assert lines[2][:2] == ["5", "8.5"]


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        ({"threshold": 0.3}, [(0, 1), (0, 0), (1, 1), (3, 2), (4, 2)]),
        ({"threshold": {"noise": 0.95}}, None),
        ({"threshold": {"noise": 0.95}, "min_confidence": 0.5}, [(0, 1), (0, 0), (3, 2), (4, 2)]),
        ({"top_k": 1}, [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)]),
        ({"top_k": 2, "min_confidence": 0.25}, [(0, 1), (0, 0), (1, 1), (3, 2), (4, 2), (4, 0)]),
        ({"top_k": 9, "threshold": 2.0}, []),
    ],
)
def test_selections(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    selection: dict[str, object],
    found: list[tuple[int, int]] | None,
) -> None:
    lines = write(tmp_path, "x.txt", "audacity", monkeypatch, **selection).read_text().splitlines()
    if found is None:  # no limit for two of the labels
        assert len(lines) == 11
        return
    expected = [(" ".join(LABELS[k].split()), f"{SCORES[i, k]:.4f}") for i, k in found]
    assert [(" ".join(line.split("\t")[2].split()), line.split("\t")[3]) for line in lines] == expected


@hypothesis_settings(deadline=None, max_examples=150)
@given(
    scores=st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(0, 5), st.integers(1, 6)),
        elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, float("nan")]) | st.floats(0, 1, width=32),
    ),
    threshold=st.none() | st.sampled_from([0.0, 0.1, 0.25, 0.9]),
    least=st.none() | st.sampled_from([0.1, 0.5]),
    top_k=st.none() | st.integers(1, 7),
)
def test_places_are_those_of_a_plain_loop(
    scores: np.ndarray, threshold: float | None, least: float | None, top_k: int | None
) -> None:
    selection = Selection(threshold=threshold, min_confidence=least, top_k=top_k)
    labels = [f"l{k}" for k in range(scores.shape[1])]
    rows, columns = selection.places(scores, selection.limits(labels))
    nothing_said = threshold is None and least is None and top_k is None
    limits = [DEFAULT_CONFIDENCE] if nothing_said else [one for one in (threshold, least) if one is not None]
    expected = []
    for i, line in enumerate(scores):
        hits = [k for k, score in enumerate(line) if all(score >= np.float32(one) for one in limits)]
        hits = [k for k in hits if not np.isnan(line[k])]
        hits.sort(key=lambda k: -line[k])
        expected += [(i, k) for k in hits[:top_k]]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_a_threshold_that_is_a_score_holds_it() -> None:
    """0.1 as float32 is a little more than as a double, 0.7 a little less."""
    scores = np.array([[0.1, 0.7]], np.float32)
    for limit, count in ((0.1, 2), (0.7, 1)):
        selection = Selection(threshold=limit)
        assert len(selection.places(scores, selection.limits(["a", "b"]))[0]) == count


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Turdus merula_Amsel", ("Turdus merula", "Amsel")),
        ("Larus fuscus graellsii_Gull_x", ("Larus fuscus graellsii", "Gull_x")),
        ("abethr1", ("abethr1", "abethr1")),
        ("Human vocal_", ("Human vocal_", "Human vocal_")),
        ("call_type a", ("call_type a", "call_type a")),
        ("Engine_Engine", ("Engine_Engine", "Engine_Engine")),
    ],
)
def test_names_in_labels(label: str, expected: tuple[str, str]) -> None:
    assert species_of(label) == expected


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Selection(top_k=0), "`top_k` got 0"),
        (lambda: Selection(threshold=float("nan")), "A threshold got nan"),
        (lambda: Selection(threshold={"a": float("inf")}), "A threshold got inf"),
        (lambda: Selection(threshold={"abc": 0.5}).limits(["abd", "x"]), "Did you mean `abd`"),
    ],
)
def test_selections_that_make_no_sense(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        call()


def test_thresholds_of_labels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.csv"
    path.write_text('label,threshold\n"a, b",0.5\nc,1e-1\n\n')
    assert read_thresholds(path) == {"a, b": 0.5, "c": 0.1}
    for text, says in (
        ("", "expected the columns"),
        ("label,threshold\na,0.5\na,0.6\n", "has `a` twice; expected a threshold"),
        ("label,threshold\na,high\n", "high"),
        ("label,threshold\na\n", "is no table of `label,threshold`"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=says):
            read_thresholds(path)
    with pytest.raises(DataError, match="Give a number or a CSV file"):
        read_thresholds(tmp_path / "0,5")


@pytest.mark.parametrize("format_", ["birdnet", "raven", "audacity", "kaleidoscope"])
def test_detections_need_labels_and_windows(tmp_path: Path, format_: str) -> None:
    options = options_in(tmp_path)
    for labels, kind, says in ((None, "audio", "without labels"), (LABELS, "image", "expected `audio`")):
        with pytest.raises(UsageError, match=says):
            sink_for(tmp_path / "x", format=format_, labels=labels, kind=kind, options=options)  # type: ignore[arg-type]
    sink = sink_for(tmp_path / "x", format=format_, labels=LABELS, kind="audio", options=options)
    with pytest.raises(JobError, match="open"):
        sink.write(ROWS, SCORES)
    with pytest.raises(JobError, match="each row got 2 scores"), sink:
        sink.write([Row(str(tmp_path / "in" / "a.wav"), 0.0, 5.0)], SCORES[:1, :2])
    assert list(tmp_path.iterdir()) == []


def test_every_score_or_some(tmp_path: Path) -> None:
    options = TableOptions(selection=Selection(threshold=0.5))
    for format_ in ("csv", "parquet", "parquet-parts", "birdclef"):
        with pytest.raises(UsageError, match=f"Format `{format_}` holds every score"):
            sink_for(tmp_path / "x", format=format_, labels=LABELS, kind="audio", options=options)


@pytest.mark.parametrize("format_", ["raven", "audacity"])
def test_an_error_leaves_old_tables_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    folder = write(tmp_path, "tables", format_, monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sink = sink_for(folder, format=format_, labels=LABELS, kind="audio", options=options_in(tmp_path))
    with pytest.raises(KeyboardInterrupt), sink:
        sink.write(ROWS[2:3], SCORES[2:3])
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with sink:
        sink.write(ROWS[2:3], SCORES[2:3])
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1


def test_a_folder_with_anything_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name, says in (("mine", r"holds `thesis\.tex`"), ("file", "is a file; expected a folder")):
        with pytest.raises(UsageError, match=says):
            sink_for(
                tmp_path / name, format="raven", labels=LABELS, kind="audio", options=options_in(tmp_path)
            )
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_recording_outside_of_all_inputs(tmp_path: Path) -> None:
    sink = sink_for(tmp_path / "t", format="raven", labels=LABELS, kind="audio", options=options_in(tmp_path))
    with pytest.raises(JobError, match="is not below"), sink:
        sink.write([Row(str(tmp_path / "elsewhere.wav"), 0.0, 5.0)], SCORES[:1])


def test_a_table_that_runs_on_from_recording_to_recording_has_no_parts(tmp_path: Path) -> None:
    def made(name: str, format_: str, shard: Shard) -> None:
        sink_for(
            tmp_path / name,
            format=format_,
            labels=LABELS,
            kind="audio",
            options=options_in(tmp_path, None, shard),
        )

    for format_ in ("raven", "audacity"):
        with pytest.raises(UsageError, match=f"`{format_}` got shard 2/3; .* Name a folder"):
            made("all.txt", format_, Shard(2, 3))
        made("all.txt", format_, Shard(1, 1))
        made("tables", format_, Shard(2, 3))
    for format_ in ("kaleidoscope", "birdnet"):
        made("all.csv", format_, Shard(2, 3))
