"""Tables read back by pandas; whole or not at all, whatever fails."""

from __future__ import annotations

import csv
import errno
import gc
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from alula.errors import DataError, EngineUnavailableError, JobError, UsageError
from alula.pipeline import (
    CsvSink,
    ErrorReport,
    ParquetPartsSink,
    Row,
    Sink,
    TableOptions,
    atomic,
    sink_for,
    sinks,
)
from alula.pipeline.sinks import _float_lines, _int_lines

LABELS = ["robin", 'the "great" tit, Parus', "blåmes\nCyanistes\rcaeruleus"]
AUDIO = [
    Row("a/one, two.wav", 0.0, 5.0),
    Row("a/one, two.wav", 2.5, 7.5),
    Row('b/"x".ogg', 100_000.25, 100_005.25),
]
SCORES = np.array([[0.5, 1e-9, 1.0], [0.123456789, 0.0, 2e-5], [0.3, 0.2, 0.1]], np.float32)


def table_at(path: Path, format_: str = "csv") -> Sink:
    return sink_for(path, format=format_, labels=LABELS, kind="audio")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> pandas.DataFrame:
    return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_round_trip_of_windows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"scores{suffix}"
    with sink_for(path, format=None, labels=LABELS, kind="audio") as sink:
        sink.write(AUDIO[:2], SCORES[:2])
        sink.write([], SCORES[:0])
        sink.write(AUDIO[2:], SCORES[2:])
    table = read(path)
    assert list(table.columns) == ["path", "start_s", "end_s", *LABELS]
    assert list(table["path"]) == [row.path for row in AUDIO]
    assert list(table["start_s"]) == [0.0, 2.5, 100_000.25]
    assert list(table["end_s"]) == [5.0, 7.5, 100_005.25]
    # Six significant digits in CSV; Parquet is exact.
    rtol = 5e-6 if suffix == ".csv" else 0
    np.testing.assert_allclose(table[LABELS].to_numpy(), SCORES, rtol=rtol)
    assert [path.name] == names_in(path.parent)
    if suffix == ".parquet":
        assert set(table[LABELS].dtypes) == {np.dtype(np.float32)}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["image", "array"])
def test_images_and_arrays_have_no_times(tmp_path: Path, suffix: str, kind: sinks.Kind) -> None:
    path = tmp_path / f"scores{suffix}"
    with sink_for(path, format=None, labels=["x"], kind=kind) as sink:
        sink.write([Row("a.png")], np.array([[0.25]], np.float32))
    table = read(path)
    assert list(table.columns) == ["path", "x"]
    assert table.iloc[0].tolist() == ["a.png", 0.25]


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((2,), ["output_0"]),
        ((2, 3), ["output_0", "output_1", "output_2"]),
        ((2, 2, 2), ["output_0_0", "output_0_1", "output_1_0", "output_1_1"]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_without_labels(
    tmp_path: Path, shape: tuple[int, ...], names: list[str], suffix: str
) -> None:
    scores = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 4
    path = tmp_path / f"scores{suffix}"
    with sink_for(path, format=None, labels=None, kind="array") as sink:
        sink.write([Row("a"), Row("b")], scores)
    table = read(path)
    assert list(table.columns) == ["path", *names]
    np.testing.assert_array_equal(table[names].to_numpy(), scores.reshape(2, -1))


@pytest.mark.parametrize("format_", ["csv", "parquet", "birdclef"])
def test_a_table_without_rows_has_its_header(tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"x.{'parquet' if format_ == 'parquet' else 'csv'}"
    with table_at(path, format_):
        pass
    table = read(path)
    assert len(table) == 0
    assert list(table.columns)[-3:] == LABELS


def test_parquet_writes_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr(sinks, "PARQUET_GROUP_VALUES", 30)
    path = tmp_path / "x.parquet"
    scores = np.random.default_rng(0).random((95, 3), dtype=np.float32)
    with table_at(path, "parquet") as sink:
        for start in range(0, 95, 4):
            rows = [Row(f"{k}.wav", 0.0, 5.0) for k in range(start, min(95, start + 4))]
            sink.write(rows, scores[start : start + 4])
    file = parquet.ParquetFile(path)
    assert max(file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)) <= 10
    table = pandas.read_parquet(path)
    np.testing.assert_array_equal(table[LABELS].to_numpy(), scores)
    assert list(table["path"]) == [f"{k}.wav" for k in range(95)]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_parquet_in_parts_is_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    from pyarrow import parquet

    monkeypatch.setattr(sinks, "PARQUET_PART_VALUES", 60)
    monkeypatch.setattr(sinks, "PARQUET_GROUP_VALUES", 15)
    path = tmp_path / "scores"
    scores = np.random.default_rng(0).random((95, 3), dtype=np.float32)
    with ParquetPartsSink(path, labels=LABELS, kind="audio") as sink:
        for start in range(0, 95, step):
            rows = [Row(f"{k}.wav", 0.0, 5.0) for k in range(start, min(95, start + step))]
            sink.write(rows, scores[start : start + step])
    table = pandas.read_parquet(path)
    np.testing.assert_array_equal(table[LABELS].to_numpy(), scores)
    assert list(table["path"]) == [f"{k}.wav" for k in range(95)]
    sizes = [parquet.ParquetFile(part).metadata.num_rows for part in sorted(path.iterdir())]
    assert max(sizes) <= 20
    assert len(sizes) == -(-95 // (20 // step * step))
    assert names_in(tmp_path) == ["scores"]


def test_parquet_in_parts_replaces_its_own_folder_only(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    for rows in (AUDIO, AUDIO[:1]):
        with ParquetPartsSink(path, labels=LABELS, kind="audio") as sink:
            sink.write(rows, SCORES[: len(rows)])
        assert len(pandas.read_parquet(path)) == len(rows)
    with pytest.raises(KeyboardInterrupt), ParquetPartsSink(path, labels=LABELS, kind="audio") as sink:
        sink.write(AUDIO, SCORES)
        raise KeyboardInterrupt
    assert len(pandas.read_parquet(path)) == 1
    assert names_in(tmp_path) == ["scores"]
    with pytest.raises(UsageError, match=r"holds `notes\.txt`"), table_at(path, "parquet-parts") as sink:
        sink.write(AUDIO, SCORES)
        (path / "notes.txt").touch()  # while it ran
    assert names_in(path) == ["notes.txt", "part-00000.parquet"]
    assert names_in(tmp_path) == ["scores"]
    with pytest.raises(UsageError, match=r"holds `notes\.txt`"):
        table_at(path, "parquet-parts")


def test_parquet_in_parts_without_rows_has_its_columns(tmp_path: Path) -> None:
    with table_at(tmp_path / "scores", "parquet-parts"):
        pass
    table = pandas.read_parquet(tmp_path / "scores")
    assert (len(table), list(table.columns)) == (0, ["path", "start_s", "end_s", *LABELS])


@pytest.mark.parametrize("format_", ["csv", "parquet", "parquet-parts", "birdclef"])
def test_a_table_can_be_kept_elsewhere_until_it_is_whole(tmp_path: Path, format_: str) -> None:
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    path = tmp_path / "out" / "scores"
    options = TableOptions(drafts=drafts)
    with sink_for(path, format=format_, labels=LABELS, kind="audio", options=options) as sink:
        sink.write(AUDIO[:1], SCORES[:1])
        assert len(names_in(drafts)) == 1
        assert atomic.is_draft(next(drafts.iterdir()))
        assert names_in(path.parent) == []
    assert names_in(drafts) == []
    assert path.exists()


def test_a_caller_may_use_its_array_again(tmp_path: Path) -> None:
    scores = SCORES.copy()
    with table_at(tmp_path / "x.parquet", "parquet") as sink:
        sink.write(AUDIO, scores)
        scores[:] = 7
    np.testing.assert_array_equal(read(tmp_path / "x.parquet")[LABELS].to_numpy(), SCORES)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_file_names_that_are_not_utf8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    name = os.fsdecode(b"caf\xe9.wav")
    with sink_for(path, format=None, labels=["x"], kind="array") as sink:
        sink.write([Row(name)], np.zeros((1, 1), np.float32))
    assert read(path)["path"][0] == "caf\\udce9.wav"


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    st_numpy.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(1, 4), st.integers(1, 6)),
        elements={"allow_subnormal": False},
    )
)
def test_floats_keep_six_digits(scores: np.ndarray) -> None:
    for line, row in zip(_float_lines(scores), scores.tolist(), strict=True):
        written = [float(text) for text in line.decode().split(",")]
        # Half a unit of the sixth digit, and the rounding of the float that reads it.
        np.testing.assert_allclose(written, row, rtol=5.000001e-6, atol=0, equal_nan=True)


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_scores_read_the_same_as_with_the_percent_operator(scores: list[float]) -> None:
    (line,) = _float_lines(np.array([scores], np.float32))
    assert [float(text) for text in line.split(b",")] == [float(f"{score:.6g}") for score in scores]


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, np.bool_])
def test_other_types_of_scores(tmp_path: Path, dtype: type) -> None:
    scores = np.array([[0, 1, 1]], dtype)
    with table_at(tmp_path / "x.csv") as sink:
        sink.write(AUDIO[:1], scores)
    np.testing.assert_array_equal(read(tmp_path / "x.csv")[LABELS].to_numpy(), scores)


def test_large_integers_are_exact() -> None:
    assert _int_lines(np.array([[2**62 + 1, -3]])) == [b"4611686018427387905,-3"]


def test_birdclef_rows(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    rows = [Row("s/H02_1.ogg", 0.0, 5.0), Row("s/H02_1.ogg", 5.0, 9.9999), Row("s/H02_2.ogg", 0.0, 5.0)]
    scores = np.array([[1.0000002, 0, 0.5], [0.1, 0.2, 0.3], [0, 0, -1e-7]], np.float32)
    with table_at(path, "birdclef") as sink:
        sink.write(rows[:2], scores[:2])
        sink.write(rows[2:], scores[2:])
    table = pandas.read_csv(path)
    assert list(table.columns) == ["row_id", *LABELS]
    assert list(table["row_id"]) == ["H02_1_5", "H02_1_10", "H02_2_5"]
    np.testing.assert_allclose(table[LABELS].to_numpy(), np.clip(scores, 0, 1), rtol=5e-6)
    assert table[LABELS].to_numpy().min() == 0
    assert table[LABELS].to_numpy().max() == 1


@pytest.mark.parametrize(
    ("rows", "score", "message"),
    [
        (
            [Row("a/x.ogg", 0.0, 5.0), Row("b/x.ogg", 0.0, 5.0)],
            0.5,
            "a/x.ogg and b/x.ogg would have the same",
        ),
        ([Row("x.ogg", 0.0, 5.0), Row("x.ogg", 0.25, 5.25)], 0.5, "row id `x_5`"),
        ([Row("x.ogg", 0.0, 5.0)], -3.25, "`x_5` got -3.25 for `robin`"),
        ([Row("x.png")], 0.5, "x.png has no times"),
    ],
)
def test_birdclef_refuses_what_would_not_score(
    tmp_path: Path, rows: list[Row], score: float, message: str
) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("old")
    with pytest.raises(JobError, match=message) as caught, table_at(path, "birdclef") as sink:
        for row in rows:
            sink.write([row], np.full((1, 3), score, np.float32))
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"


@pytest.mark.parametrize("format_", ["csv", "parquet", "birdclef"])
def test_an_error_leaves_the_old_table_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    monkeypatch.setattr(sinks, "PARQUET_GROUP_ROWS", 1)
    path = tmp_path / "x.out"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), table_at(path, format_) as sink:
        sink.write(AUDIO[:1], SCORES[:1])
        assert len(names_in(tmp_path)) == 2
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["x.out"]
    # Nothing is left that would write when it is collected.
    del sink
    gc.collect()
    with table_at(path, format_) as sink:
        sink.write(AUDIO[:1], SCORES[:1])
        assert path.read_text() == "old"
    assert path.read_bytes() != b"old"
    assert names_in(tmp_path) == ["x.out"]


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(path: Path) -> BinaryIO:
        path.touch()
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(atomic, "_create", create)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("n", [1, 20_000])
@pytest.mark.parametrize("format_", ["csv", "parquet", "birdclef"])
def test_a_full_disk_is_one_plain_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, n: int
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("old")
    full_disk(monkeypatch)
    monkeypatch.setattr(sinks, "PARQUET_GROUP_ROWS", 1000)
    rows = [Row(f"{k}.wav", 0.0, 5.0) for k in range(n)]
    with (
        pytest.raises(JobError, match=r"x\.csv: could not be written: the disk is full\. Free") as caught,
        table_at(path, format_) as sink,
    ):
        sink.write(rows, np.random.default_rng(0).random((n, 3), dtype=np.float32))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["x.csv"]
    # Nothing is left that would write when it is collected.
    del sink
    gc.collect()


@pytest.mark.parametrize("place", [".", "/dev/null"])
def test_only_regular_files_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is not a regular file"):
        table_at(Path(place)).open()


def test_a_folder_that_cannot_be_made_is_found_at_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"file/x\.csv: could not be written: File exists"):
        table_at(tmp_path / "file" / "x.csv").open()


def test_a_table_is_as_readable_as_any_new_file_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "link.csv").symlink_to("table.csv")
    with table_at(tmp_path / "link.csv") as sink:
        sink.write(AUDIO, SCORES)
    assert (tmp_path / "link.csv").is_symlink()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "table.csv")}
    assert len(modes) == 1


@pytest.mark.parametrize("format_", ["csv", "parquet", "birdclef"])
@pytest.mark.parametrize(
    ("n", "shape", "message"),
    [(1, (2, 3), "expected 1 lines"), (2, (2, 4), "each row got 4 scores; expected 3"), (1, (), "got shape")],
)
def test_scores_that_do_not_fit(
    tmp_path: Path, format_: str, n: int, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(JobError, match=message), table_at(tmp_path / "x", format_) as sink:
        sink.write(AUDIO[:n], np.zeros(shape, np.float32))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("format_", ["csv", "parquet", "birdclef"])
def test_a_closed_table_takes_no_rows(tmp_path: Path, format_: str) -> None:
    sink = table_at(tmp_path / "x", format_)
    with pytest.raises(JobError, match="is not open"):
        sink.write(AUDIO, SCORES)
    sink.discard()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sink_for("x.cvs", format=None, labels=None, kind="audio"), "Did you mean `.csv`?"),
        (lambda: sink_for("x", format="parket", labels=None, kind="audio"), "Did you mean `parquet`?"),
        (lambda: sink_for("x", format="csv", labels=None, kind="audoi"), "Did you mean `audio`?"),
        (lambda: sink_for("x", format="birdclef", labels=None, kind="audio"), "without labels"),
        (lambda: sink_for("x", format="birdclef", labels=["a"], kind="image"), "expected `audio`"),
        (lambda: sink_for("x.csv", format=None, labels=["a", "a"], kind="image"), "named `a`"),
        (lambda: sink_for("x.csv", format=None, labels=["path"], kind="image"), "named `path`"),
    ],
)
def test_wrong_usage(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)


def test_suffixes_in_capitals() -> None:
    assert isinstance(sink_for("X.CSV", format=None, labels=None, kind="array"), CsvSink)


def test_parquet_without_pyarrow_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[parquet\]'"):
        table_at(tmp_path / "x.parquet", "parquet").open()
    assert names_in(tmp_path) == []


def test_error_report(tmp_path: Path) -> None:
    path = tmp_path / "errors.csv"
    with ErrorReport(path) as report:
        report.add("a, b.wav", DataError("a, b.wav", "is\nbroken."))
        report.add("c.wav", JobError("c.wav went wrong."))
        assert not path.exists()
        assert report.count == 2
    assert names_in(tmp_path) == ["errors.csv"]
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert lines == [
        {"path": "a, b.wav", "error": "is broken."},
        {"path": "c.wav", "error": "c.wav went wrong."},
    ]


def test_error_report_without_errors_removes_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "errors.csv"
    path.write_text("path,error\na.wav,is broken.\n")
    with ErrorReport(path) as report:
        assert path.exists()
    assert report.count == 0
    assert names_in(tmp_path) == []


def test_error_report_of_a_stopped_run_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "errors.csv"
    path.write_text("path,error\nold")
    with pytest.raises(KeyboardInterrupt), ErrorReport(path) as report:
        report.add("a", DataError("a", "is broken."))
        raise KeyboardInterrupt
    assert path.read_text() == "path,error\nold"
    assert names_in(tmp_path) == ["errors.csv"]


@pytest.mark.parametrize("content", ["", "buy,milk\n", "path,errors\n"])
def test_what_is_no_error_report_is_neither_replaced_nor_removed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "errors.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"inputs that fail are listed there\. Move it"), ErrorReport(path):
        pass
    path.unlink()
    with pytest.raises(UsageError, match="Move it"), ErrorReport(path) as report:
        report.add("a", DataError("a", "is broken."))
        path.write_text(content)
    with ErrorReport(tmp_path / "other.csv") as report:
        (tmp_path / "other.csv").write_text(content)
    assert (path.read_text(), (tmp_path / "other.csv").read_text()) == (content, content)
    assert names_in(tmp_path) == ["errors.csv", "other.csv"]


def test_two_error_reports_in_one_place_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "errors.csv"
    (tmp_path / "drafts").mkdir()
    with ErrorReport(path, drafts=tmp_path / "drafts") as first:
        first.add("a", DataError("a", "is broken."))
        assert names_in(tmp_path) == ["drafts"]
        assert [atomic.is_draft(draft) for draft in (tmp_path / "drafts").iterdir()] == [True]
        with ErrorReport(path) as second:
            second.add("b", DataError("b", "is broken."))
        assert "b,is broken." in path.read_text()
    assert path.read_text() == "path,error\na,is broken.\n"
    assert names_in(tmp_path / "drafts") == []


def test_error_report_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(JobError, match="could not be written"),
        ErrorReport(tmp_path / "file" / "errors.csv") as report,
    ):
        report.add("a", DataError("a", "is broken."))
    with pytest.raises(UsageError, match="is not a regular file"), ErrorReport(tmp_path):
        pass
