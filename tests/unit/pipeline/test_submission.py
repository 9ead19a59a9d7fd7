"""Submissions that a competition takes: its columns, its rows, no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from alula.errors import DataError, JobError, UsageError
from alula.pipeline import BirdclefSink, Row, TableOptions, read_sample_submission, sink_for

LABELS = ["abethr1", "abhori1", "not asked for", "abythr1"]
COLUMNS = ["abythr1", "abethr1", "abhori1"]
ROWS = [Row("in/s_1.ogg", 0.0, 5.0), Row("in/s_1.ogg", 5.0, 10.0), Row("in/s_2.ogg", 0.0, 5.0)]
SCORES = np.array([[0.1, 0.2, 0.9, 0.3], [0.4, 0.5, 0.9, 0.6], [0.7, 0.8, 0.9, 0.25]], np.float32)


def write_sample(folder: Path, *row_ids: str, columns: list[str] = COLUMNS) -> Path:
    path = folder / "sample_submission.csv"
    table = pandas.DataFrame({"row_id": list(row_ids), **dict.fromkeys(columns, 0.0)})
    table.to_csv(path, index=False)
    return path


def submit(
    folder: Path, sample: Path, rows: list[Row] = ROWS, scores: np.ndarray = SCORES
) -> tuple[pandas.DataFrame, tuple[str, ...]]:
    options = TableOptions(sample=read_sample_submission(sample))
    path = folder / "submission.csv"
    with sink_for(path, format="birdclef", labels=LABELS, kind="audio", options=options) as sink:
        sink.write(rows[:1], scores[:1])
        sink.write(rows[1:], scores[1:])
    return pandas.read_csv(path), sink.notes


def test_columns_come_in_the_order_of_the_sample(tmp_path: Path) -> None:
    table, notes = submit(tmp_path, write_sample(tmp_path, "s_1_5", "s_1_10", "s_2_5"))
    assert list(table.columns) == ["row_id", *COLUMNS]
    assert list(table["row_id"]) == ["s_1_5", "s_1_10", "s_2_5"]
    np.testing.assert_allclose(table[COLUMNS].to_numpy(), SCORES[:, [3, 0, 1]], rtol=1e-6)
    assert notes == ()


def test_rows_that_nothing_gave_are_filled_and_told(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "s_0_5", "s_1_5", "s_1_10", "s_2_5", "s_9_5")
    table, notes = submit(tmp_path, sample)
    assert sorted(table["row_id"]) == ["s_0_5", "s_1_10", "s_1_5", "s_2_5", "s_9_5"]
    filled = table[table["row_id"].isin(["s_0_5", "s_9_5"])]
    np.testing.assert_allclose(filled[COLUMNS].to_numpy(), 1 / 3, rtol=1e-5)
    assert not table.isna().any().any()
    assert len(notes) == 1
    assert notes[0].startswith(f"2 rows of {sample}, such as `s_0_5`, had no prediction")


def test_a_dry_run_over_other_recordings_takes_the_columns_alone(tmp_path: Path) -> None:
    table, notes = submit(tmp_path, write_sample(tmp_path, "hidden_1_5", "hidden_1_10"))
    assert list(table["row_id"]) == ["s_1_5", "s_1_10", "s_2_5"]
    assert notes[0].startswith("None of the 2 rows")


def test_when_no_recording_could_be_read_all_rows_are_filled(tmp_path: Path) -> None:
    table, notes = submit(tmp_path, write_sample(tmp_path, "s_1_5", "s_1_10"), [], SCORES[:0])
    assert list(table["row_id"]) == ["s_1_5", "s_1_10"]
    assert len(notes) == 1


def test_a_sample_of_nothing_but_a_header(tmp_path: Path) -> None:
    table, notes = submit(tmp_path, write_sample(tmp_path))
    assert list(table["row_id"]) == ["s_1_5", "s_1_10", "s_2_5"]
    assert notes == ()


@pytest.mark.parametrize("known", [("s_1_5", "s_2_5"), ("s_1_10", "s_2_5"), ("s_1_5", "s_1_10")])
def test_rows_that_the_competition_does_not_know_are_refused(tmp_path: Path, known: tuple[str, ...]) -> None:
    with pytest.raises(JobError, match="other rows of these recordings"):
        submit(tmp_path, write_sample(tmp_path, *known))
    assert not (tmp_path / "submission.csv").exists()


def test_a_score_of_a_label_that_is_left_out_may_be_anything(tmp_path: Path) -> None:
    scores = SCORES.copy()
    scores[:, 2] = np.nan
    table, _ = submit(tmp_path, write_sample(tmp_path), ROWS, scores)
    assert not table.isna().any().any()
    scores[1, 3] = 7.0
    with pytest.raises(JobError, match=r"`s_1_10` got 7.0 for `abythr1`; expected a score from 0 to 1"):
        submit(tmp_path, write_sample(tmp_path), ROWS, scores)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_do_not_cost_the_submission(tmp_path: Path, odd: float) -> None:
    scores = SCORES.copy()
    scores[1, 3] = odd
    expected, _ = submit(tmp_path, write_sample(tmp_path), ROWS, SCORES)
    table, notes = submit(tmp_path, write_sample(tmp_path), ROWS, scores)
    even = 1 / (len(table.columns) - 1)
    assert table.loc[1, "abythr1"] == pytest.approx(even, abs=1e-6)
    expected.loc[1, "abythr1"] = table.loc[1, "abythr1"]
    assert table.equals(expected)
    (note,) = notes
    assert note.startswith(
        "1 rows, such as `s_1_10`, had scores that are no numbers; these are filled with 0.333"
    )


def test_recordings_of_one_name_are_refused_before_the_work(tmp_path: Path) -> None:
    sink = sink_for(tmp_path / "submission.csv", format="birdclef", labels=LABELS, kind="audio")
    sink.expect(["a/x.ogg", "a/y.ogg"])
    with pytest.raises(JobError, match=r"a/x\.ogg and b/x\.ogg would have the same row ids"):
        sink.expect(["a/x.ogg", "b/x.ogg"])


def test_columns_for_which_there_is_no_label(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, columns=["abethr1", "abhory1", "zebra"])
    with pytest.raises(UsageError, match=r"2 of 3 columns .*`abhory1`, `zebra`.* Did you mean `abhori1`\?"):
        submit(tmp_path, sample)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with nothing; expected `row_id`"),
        ("row_id\n", "expected `row_id` and a column per label"),
        ("id,a\n", "begins with `id`, `a`"),
        ("row_id,a,b,a\n", "two columns `a`"),
        ("row_id,a\nx_5,0\nx_5,0\n", "two rows `x_5`"),
        ("row_id,a\n\xff", "is no table"),
    ],
)
def test_what_is_no_sample(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sample.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=says):
        read_sample_submission(path)


def test_a_sample_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_sample_submission(tmp_path / "absent.csv")


def test_a_byte_order_mark_and_empty_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    path.write_text("\ufeffrow_id,a\r\nx_5,0\r\n\r\n", encoding="utf-8")
    sample = read_sample_submission(path)
    assert (sample.columns, sample.row_ids) == (("a",), ("x_5",))


def test_a_sample_is_for_submissions_only(tmp_path: Path) -> None:
    options = TableOptions(sample=read_sample_submission(write_sample(tmp_path)))
    with pytest.raises(UsageError, match="--format birdclef"):
        sink_for(tmp_path / "s.csv", format=None, labels=LABELS, kind="audio", options=options)


def test_a_sink_can_be_used_again(tmp_path: Path) -> None:
    sample = read_sample_submission(write_sample(tmp_path, "s_1_5", "s_1_10", "s_2_5"))
    sink = BirdclefSink(tmp_path / "submission.csv", labels=LABELS, kind="audio", sample=sample)
    for _ in range(2):
        with sink:
            sink.write(ROWS, SCORES)
        assert sink.notes == ()


PARTS = [(ROWS[:2], SCORES[:2], {"s_1"}), (ROWS[2:], SCORES[2:], {"s_2"})]


def submit_parts(folder: Path, sample: Path) -> list[str]:
    asked = read_sample_submission(sample)
    ids: list[str] = []
    for index, (rows, scores, stems) in enumerate(PARTS):
        part = asked.part(stems, others={"s_1", "s_2"} - stems, last=index == 1)
        path = folder / f"{index}.csv"
        sink = BirdclefSink(path, labels=LABELS, kind="audio", sample=part)
        with sink:
            sink.write(rows, scores)
        ids += pandas.read_csv(path)["row_id"].tolist()
    return ids


def test_parts_of_a_submission_have_each_row_once(tmp_path: Path) -> None:
    rows = ["s_0_5", "s_1_5", "s_1_10", "s_1_15", "s_2_5", "s_2_10", "odd"]
    assert sorted(submit_parts(tmp_path, write_sample(tmp_path, *rows))) == sorted(rows)


def test_parts_of_a_dry_run_take_the_columns_alone(tmp_path: Path) -> None:
    assert submit_parts(tmp_path, write_sample(tmp_path, "hidden_1_5")) == ["s_1_5", "s_1_10", "s_2_5"]


def test_a_part_refuses_rows_where_those_of_another_part_count(tmp_path: Path) -> None:
    for known in (["s_1_5", "s_1_10"], ["s_2_5"], ["s_1_5", "s_1_10", "s_2_10"]):
        with pytest.raises(JobError, match="other rows of these recordings"):
            submit_parts(tmp_path, write_sample(tmp_path, *known))
