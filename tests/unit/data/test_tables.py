"""Tables of scores: what is read back is what was written, and rows find each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alula.data import RowKey, places_of, read_scores
from alula.errors import DataError
from alula.pipeline import Row, sink_for

ROWS = [Row("x/a.ogg", 0.0, 5.0), Row("x/a.ogg", 5.0, 10.0), Row("y, z/b.ogg", 0.0, 5.0)]
KEYS = [RowKey(row.path, row.start_s, row.end_s) for row in ROWS]


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_what_predict_writes_is_read(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    scores = rng.random((3, 4)).astype(np.float32)
    with sink_for(tmp_path / name, format=None, labels=list("abcd"), kind="audio") as sink:
        sink.write(ROWS, scores)
    table = read_scores(tmp_path / name)
    assert list(table.keys) == KEYS
    assert table.classes == ("a", "b", "c", "d")
    np.testing.assert_allclose(table.values, scores, rtol=1e-5)


def test_more_rows_than_a_block(tmp_path: Path) -> None:
    lines = [f"{k}.npy,{k},{-k}" for k in range(1200)]
    (tmp_path / "t.csv").write_text("\n".join(["path,a,b", *lines]))
    table = read_scores(tmp_path / "t.csv")
    assert table.values[:, 0].tolist() == list(range(1200))
    assert table.keys[1199] == RowKey("1199.npy")


def test_columns_of_text_are_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,member,label,a\nf,m,x;y,1\nf,n,,2\n")
    table = read_scores(path, texts=["label", "absent"], told_apart_by="member")
    assert table.classes == ("a",)
    assert table.texts == {"label": ("x;y", ""), "member": ("m", "n")}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no column `path` or `row_id`"),
        ("file,a\nf,1\n", "no column `path` or `row_id`; its columns are `file`, `a`"),
        ("path,a\n", "It has no rows"),
        ("path,a\nf,1\nf,2\n", "Two rows are about `f`"),
        ("path,a\nf,high\n", "A cell holds `high`"),
        ("path,a\nf,nan\n", "1 cells hold NaN"),
        ("path,a\nf,1,2\n", "has 3 cells for 2 columns"),
        ("path,a,a\nf,1,2\n", "`a` is there more than once"),
        ("path,start_s,end_s,a\nf,soon,5,1\n", "A time is `soon`"),
        ("row_id,a\nnothing,1\n", "`nothing` is no file stem"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_scores(tmp_path / "t.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "absent.csv")


def test_rows_are_found_by_path_or_by_stem_and_end() -> None:
    found = [RowKey("/far/b.ogg", 0, 5), RowKey("/far/a.ogg", 5, 10.0000001), RowKey("/far/a.ogg", 0, 5)]
    assert places_of(KEYS, found, source="s", reference="r").tolist() == [2, 1, 0]
    ids = [RowKey("b", None, 5.0), RowKey("a", None, 10.0), RowKey("a", None, 5.0)]
    assert places_of(KEYS, ids, source="s", reference="r").tolist() == [2, 1, 0]
    assert places_of(ids, KEYS, source="s", reference="r").tolist() == [2, 1, 0]


def test_rows_that_are_missing_or_doubtful() -> None:
    with pytest.raises(DataError, match=r"no row for `x/a.ogg` from 5 to 10 s and 1 others of the 3 of r"):
        places_of(KEYS, KEYS[:1], source="s", reference="r")
    twins = [RowKey("one/a.ogg", 0, 5), RowKey("two/a.ogg", 0, 5)]
    with pytest.raises(DataError, match=r"Several of its rows could be `x/a.ogg` from 0 to 5 s"):
        places_of(KEYS[:1], twins, source="s", reference="r")
