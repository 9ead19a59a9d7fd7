"""Post-processing as TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from alula.core import CentralMaximum, CutOff, OverlapMean, Smoothing, TopScaling, View
from alula.errors import UsageError
from alula.postprocess import PostProcessing, parse_postprocessing, read_postprocessing

TEXT = """
[view.sed]
keep_s = 5.0
output = "framewise"
frames = { central_s = 5.0, layout = "ct" }

[[step]]
type = "overlap"
segment_s = 5.0

[[step]]
type = "smoothing"
kernel = [0.1, 0.8, 0.1]

[[step]]
type = "top"
k = 3

[[step]]
type = "cutoff"
below = 0.1
"""


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "post.toml").write_text(TEXT)
    assert read_postprocessing(tmp_path / "post.toml") == PostProcessing(
        step=(
            OverlapMean(segment_s=5.0),
            Smoothing(kernel=(0.1, 0.8, 0.1)),
            TopScaling(k=3),
            CutOff(below=0.1, factor=0.5),
        ),
        view={"sed": View(keep_s=5.0, output="framewise", frames=CentralMaximum(central_s=5.0, layout="ct"))},
    )
    assert parse_postprocessing("") == PostProcessing()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[step", "is not TOML"),
        ('[[step]]\ntype = "smooth"', "Invalid value 'smooth' at `step"),
        ('[[step]]\ntype = "smoothing"\nkernel = [1, 2]', "an odd number"),
        ('[[step]]\ntype = "top"\nk = 0', "`int` >= 1 at `step"),
        ('[[steps]]\ntype = "top"', "unknown field `steps`"),
        ("[view.a]\nkeep_s = -1", "> 0.0 at `view"),
        ("[view.a]\nkeep_s = inf", r"<= 86400\.0 at `view"),
        ('[[step]]\ntype = "overlap"\nsegment_s = inf', r"<= 86400\.0 at `step"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_postprocessing(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_postprocessing(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_postprocessing(tmp_path / "bytes.toml")
