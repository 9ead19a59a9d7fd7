"""TOML files of the user's: what is wrong with one is said in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from alula.errors import UsageError
from alula.toml import read_toml


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.toml"
    file.write_text('"Zönchen" = [2, 1]\n', "utf-8")
    assert read_toml(file, what="--class-weights") == {"Zönchen": [2, 1]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"--ladder .*rungs\.toml cannot be read: No such file or directory\."),
        (b"\xff\xfe", r"--ladder .*rungs\.toml is not UTF-8 text, so it is not TOML\."),
        (b"a = \n", r"--ladder .*rungs\.toml is not TOML: .*line 1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "rungs.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=says) as error:
        read_toml(file, what="--ladder")
    assert "\n" not in str(error.value)
