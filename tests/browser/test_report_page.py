"""The report in a real browser: on a phone and on a desk, in light and in dark, and on paper."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from alula.core import Accepted, Candidate, Ratio, Recipe, Rejected, Roofline, Settings, Throughput, Work
from alula.report import ReportContent, render_page

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "unit" / "report" / "sample.json"
LOOK = (HERE / "look.js").read_text()
SIZES = ((360, 800), (1280, 900))
BETWEEN = (320, 480, 719, 720, 959, 960, 1100, 1920)


def sample() -> ReportContent:
    """The sample, with shares of peaks in its table: the longest text that there can be, and unknown ones."""
    content = msgspec.json.decode(SAMPLE.read_bytes(), type=ReportContent)
    return msgspec.structs.replace(
        content,
        peaks=Roofline(fp32_gmacs_per_s=255.0, int8_gmacs_per_s=1002.0, threads=2, method="by hand"),
        work={content.chosen.recipe.name: Work(int8=35_000_000, fp32=6_000_000)},
    )


def crowded() -> ReportContent:
    """Forty recipes of nine engines, most of them in one corner, with long names; as many were rejected."""
    content = sample()
    engines = ("torch", "inductor", "openvino", "onnxruntime", "torchscript", "tvm", "glow", "xla", "mine")
    outcomes: list[Accepted | Rejected] = []
    for index in range(40):
        recipe = Recipe(engines[index % 9], "int8", "static", f"percentile-entropy-{index}", "no-depthwise")
        accuracy = msgspec.structs.replace(content.accuracy, drop=0.0002 * (index % 7))
        per_s = 2100.0 * (1 + 0.2 * (index % 5)) + index
        outcomes.append(
            Accepted(
                candidate=Candidate(recipe, Settings(threads=64, instances=128, batch_size=1024)),
                accuracy=accuracy,
                throughput=Throughput(per_s=per_s, rounds_per_s=(per_s, 1.3 * per_s)),
                seconds=1.0 + index,
            )
        )
        worse = msgspec.structs.replace(content.accuracy, drop=0.01 * index)
        lost = Recipe("onnxruntime", "int8", f"q{index}")
        outcomes.append(Rejected(recipe=lost, reason="worse", accuracy=worse))
    return msgspec.structs.replace(content, outcomes=tuple(outcomes), finalists=())


def unruly() -> ReportContent:
    """Words without a place to break them, scripts, figures of no use."""
    content = sample()
    long = "x" * 400
    recipe = Recipe(f"<script>alert('{long}')</script>", "fp32")
    settings = Settings(knobs={long: long, "<b>": "</pre>"})
    chosen = Candidate(recipe, settings)
    return msgspec.structs.replace(
        content,
        model=long,
        chosen=chosen,
        baseline=chosen,
        speedup=Ratio(1e-7, 0.0, 1e9),
        accuracy=msgspec.structs.replace(content.accuracy, metric=long, drop=1e9, drop_high=1e11, n=10**12),
        chosen_throughput=Throughput(per_s=1e11, rounds_per_s=(1e11, 1e-9)),
        outcomes=(
            *(Rejected(recipe=Recipe(f"{long}{index}", "fp32"), reason=long) for index in range(3)),
            Accepted(
                candidate=chosen,
                accuracy=content.accuracy,
                throughput=Throughput(per_s=1.0, rounds_per_s=(1.0,)),
            ),
        ),
        finalists=(),
        data=long,
        notes=(long,),
        warnings=(long,),
        versions={long: long},
        fallbacks=(long,),
        facts={long: long},
        commands={long: f"alula {long} {long}"},
        stages=(),
    )


def bare() -> ReportContent:
    """A search that recorded nothing."""
    return msgspec.structs.replace(
        sample(), outcomes=(), finalists=(), stages=(), folder=None, roofline=None, warnings=()
    )


CONTENTS = {"sample": sample, "crowded": crowded, "unruly": unruly, "bare": bare}


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in CONTENTS}
    for name, path in paths.items():
        path.write_text(render_page(CONTENTS[name]()), encoding="utf-8")
    return paths


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["phone", "desk"])
@pytest.mark.parametrize("name", CONTENTS)
def test_it_is_laid_out_soundly_and_keeps_to_itself(browser, pages, name, size, dark):
    with browser.open(pages[name], width=size[0], height=size[1], dark=dark) as page:
        for unfold in ("", "document.querySelectorAll('details').forEach(node => { node.open = true }); "):
            found = page.run(unfold + LOOK)
            assert found["wide"] == []
            assert found["faint"] == []
            assert found["outside"] == []
            assert found["covered"] == []
            assert found["small"] == []
            ((width, height),) = found["charts"]
            assert width > 0.75 * min(size[0], 900)
            assert height > 250
            assert found["luminance"] < 0.05 if dark else found["luminance"] > 0.8
        assert page.requests == [pages[name].as_uri()]
        assert page.complaints == []


@pytest.mark.parametrize("name", ["sample", "unruly"])
def test_it_fits_between_a_phone_and_a_desk_too(browser, pages, name):
    for width in BETWEEN:
        with browser.open(pages[name], width=width, height=800, dark=False) as page:
            found = page.run(LOOK)
            assert (width, found["wide"], found["covered"]) == (width, [], [])


def test_on_paper_it_is_light_and_fits(browser, pages):
    with browser.open(pages["sample"], width=718, height=1000, dark=True, media="print") as page:
        found = page.run(LOOK)
        assert found["luminance"] == 1.0
        assert (found["wide"], found["faint"], found["covered"]) == ([], [], [])
        assert len(found["charts"]) == 1


def test_a_script_that_slipped_through_would_not_run(browser, pages, tmp_path):
    path = tmp_path / "slipped.html"
    page_text = pages["bare"].read_text(encoding="utf-8")
    path.write_text(page_text.replace("<main>", "<main><script>document.title = 'ran'</script>"))
    with browser.open(path, width=360, height=800, dark=False) as page:
        assert page.run("document.title") != "ran"
        assert any("Content Security Policy" in text for text in page.complaints)


BAD = """<!DOCTYPE html><html lang="en"><body style="background:#fff">
<p style="color:#999">too faint</p><div style="width:2000px">too wide</div>
<svg class="chart" viewBox="0 0 400 300" width="400" height="300">
<text x="20" y="50">one label</text><text x="30" y="54">another label</text>
<text x="350" y="200">sticking out of it</text><text x="20" y="250" font-size="6">small</text></svg>
<script>console.log("hello"); fetch("other.json")</script></body></html>"""


def test_what_is_wrong_is_seen(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(BAD)
    with browser.open(path, width=360, height=800, dark=False) as page:
        found = page.run(LOOK)
        assert [text.partition(": ")[2] for text in found["faint"]] == ["too faint"]
        assert "DIV.null" in found["wide"]
        assert found["covered"] == ["one label and another label"]
        assert found["outside"] == ["sticking out of it"]
        assert [text.partition(":")[0] for text in found["small"]] == ["small"]
        assert any("hello" in text for text in page.complaints)
        assert len(page.requests) == 2
