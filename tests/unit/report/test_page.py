"""The page: complete, well-formed, escaped, closed to the network, whatever the search went through."""

from __future__ import annotations

import html
import itertools
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alula.core import (
    Accepted,
    Accuracy,
    Candidate,
    Failed,
    Ratio,
    Recipe,
    Rejected,
    Settings,
    Throughput,
    Work,
)
from alula.core import Roofline as Peaks
from alula.hardware import Fingerprint
from alula.report import Finalist, FolderSpeed, ReportContent, Roofline, Stage, render_page

VOID = {"meta", "br", "link"}
NUMERIC = {
    "x",
    "y",
    "x1",
    "x2",
    "y1",
    "y2",
    "cx",
    "cy",
    "r",
    "rx",
    "width",
    "height",
    "viewbox",
    "d",
    "points",
}
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        """Elements of a tag below this one, in order."""
        found = [self] if self.tag == tag else []
        return found + [one for child in self.children if isinstance(child, Node) for one in child.all(tag)]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Reader(HTMLParser):
    """Builds the tree, and fails where a tag is not closed by its own end tag."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("#", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/> is not HTML")

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(page: str) -> Node:
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    reader = Reader()
    reader.feed(page.partition("\n")[2])
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def check(page: str) -> Node:
    """Return the tree of a page that keeps every promise that holds for all pages."""
    page.encode("utf-8")
    root = read(page)
    nodes = list(every(root))

    # Nothing to run, nothing to load.
    tags = {node.tag for node in nodes}
    assert not tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "link",
        "form",
        "base",
        "use",
        "image",
        "a",
    }
    for node in nodes:
        assert not {"href", "src", "srcset", "style", "xlink:href", "data", "action"} & set(node.attributes)
        assert not any(name.startswith("on") for name in node.attributes)
    (style,) = root.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    policy = next(n.attributes["content"] for n in root.all("meta") if "http-equiv" in n.attributes)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")

    # Readable by machines that read to people.
    assert root.all("title")[0].text.strip()
    identifiers = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(identifiers) == len(set(identifiers))
    for node in nodes:
        for name in node.attributes.get("aria-labelledby", "").split():
            assert name in identifiers
    levels = [int(node.tag[1]) for node in nodes if re.fullmatch(r"h[1-6]", node.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(node.attributes.get("scope") in ("col", "row") for node in root.all("th"))
    for table in root.all("table"):
        widths = {sum(cell.tag in ("td", "th") for cell in row.children) for row in table.all("tr")}
        assert len(widths) == 1
    for svg in root.all("svg"):
        if svg.attributes.get("role") == "img":
            assert svg.all("title") or svg.attributes["aria-label"]
        else:
            assert svg.attributes["aria-hidden"] == "true"

    # Coordinates are numbers, all of them finite.
    for svg in root.all("svg"):
        for node in every(svg):
            for name in NUMERIC & set(node.attributes):
                value = node.attributes[name]
                assert not re.search("nan|inf", value, re.IGNORECASE), f"{name}={value!r}"
                assert all(math.isfinite(float(number)) for number in NUMBER.findall(value))
                if name not in ("d", "points", "viewbox"):
                    assert NUMBER.fullmatch(value.removesuffix("%")), f"{name}={value!r}"
    return root


def every(node: Node):
    for child in node.children:
        if isinstance(child, Node):
            yield child
            yield from every(child)


def words(node: Node) -> str:
    """The text of a page, with all spaces alike."""
    return " ".join(node.text.split())


def test_the_sample_is_complete_and_keeps_every_promise(sample):
    page = render_page(sample)
    root = check(page)
    text = words(root.all("body")[0])
    assert words(root.all("h1")[0]) == "resnet20.py:build, CIFAR-10"
    verdict = next(words(p) for p in root.all("p") if p.attributes.get("class", "").startswith("verdict"))
    assert verdict == (
        "openvino/int8-nncf runs 6.94 times as fast as eager PyTorch [6.38, 8.19]; top-1 accuracy drops by "
        "0.09 points [−0.30, +0.47] on 4,700 samples; a drop of 0.5 points is allowed."
    )
    for expected in (
        "21 November 2026, 04:11 UTC",
        "The hypervisor took 3 % of the CPU time",
        "4,713",
        "61 %",
        "41.2 MMAC",
        "2 instances compute at the same time with 1 thread each",
        "on: threads stay on the CPU they started on",
        "Folded computed weights of 1 convolutions",
        "4,700 samples gave the verdict; 300 others were shown to quantizers",
        "alula bench resnet20.alula",
        "AMD EPYC",
        "avx512_vnni",
        "openvino 2026.4.1",
        "2 min 28 s",
    ):
        assert expected in text
    for secret in ("http://", "https://", "//"):
        assert secret not in page.replace("</", "").replace("<!DOCTYPE html>", "")


def test_every_outcome_and_every_reason_is_on_the_page(sample):
    root = check(render_page(sample))
    text = words(root)
    (trials,) = (node for node in root.all("details"))
    rows = [words(row) for row in trials.all("tr")[1:]]
    assert len(rows) == len(sample.outcomes)
    for outcome, row in zip(sample.outcomes, rows, strict=True):
        if isinstance(outcome, Accepted):
            assert row.startswith(outcome.candidate.recipe.name + str(outcome.candidate.settings))
            assert row.endswith("accepted")
        else:
            assert row.startswith(outcome.recipe.name)
            reason = outcome.error if isinstance(outcome, Failed) else outcome.reason.partition(": ")[2]
            assert words(Node("", {}, [reason.replace("`", "").rstrip(".")]))[1:] in text
            if isinstance(outcome, Failed):
                assert outcome.reproduce in text


def test_the_table_has_a_row_for_each_recipe_sorted_by_what_became_of_it(sample):
    root = check(render_page(sample))
    table = root.all("table")[0]
    body = [[words(cell) for cell in row.children] for row in table.all("tbody")[0].all("tr")]
    numbers = [row[0] for row in body if row[0]]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    order = ("chosen", "accepted", "baseline", "rejected", "failed", "not tried")
    found = [next(verdict for verdict in order if row[6].startswith(verdict)) for row in body]
    assert found[0] == "chosen"
    assert found.count("baseline") == 1
    assert [order.index(one) for one in found if one != "baseline"] == sorted(
        order.index(one) for one in found if one != "baseline"
    )
    ratios = [float(row[4].partition("×")[0]) for row in body if "accepted" in row[6] or row[6] == "baseline"]
    assert ratios == sorted(ratios, reverse=True)
    assert body[0][1:6] == [
        "openvino/int8-nncf",
        "2x1 threads, batch 32, pin=True",
        "14,669",
        "6.94×6.38 to 8.19",
        "+0.09−0.30 to +0.47",
    ]
    names = {recipe.name for recipe in recipes_of(sample)}
    assert names <= {row[1] for row in body}


def recipes_of(content: ReportContent) -> set[Recipe]:
    return {
        outcome.candidate.recipe if isinstance(outcome, Accepted) else outcome.recipe
        for outcome in content.outcomes
    }


def test_speeds_in_the_table_state_their_share_of_the_peak(sample):
    """The baseline's is worked out by hand; a recipe whose work is not known has no number."""
    before = sample.baseline.recipe.name
    assert sample.chosen.recipe.name != before
    peaks = Peaks(fp32_gmacs_per_s=100.0, int8_gmacs_per_s=400.0, threads=2, method="by hand")
    work = {before: Work(fp32=round(0.25 * 100e9 / sample.baseline_throughput.per_s))}
    page = render_page(msgspec.structs.replace(sample, peaks=peaks, work=work))
    cells = [cell.text for cell in check(page).all("td") if cell.attributes.get("data-name") == "Samples/s"]
    assert sum("25 % of FP32 peak" in text for text in cells) >= 1
    assert any("share of peak unknown" in text for text in cells)
    assert "of FP32 peak" not in render_page(sample)


def test_a_recipe_wears_the_marker_of_its_engine(sample):
    root = check(render_page(sample))
    table = root.all("table")[0]
    worn = {
        words(row.all("th")[0]).partition("/")[0]: row.all("path")[0].attributes["class"].split()[1]
        for row in table.all("tbody")[0].all("tr")
    }
    del worn["eager PyTorchthe model as it was"]
    assert worn == {
        "openvino": "k4",
        "onnxruntime": "k3",
        "inductor": "k2",
        "torchscript": "k1",
        "torch": "k0",
    }


def test_warnings_of_every_source_stand_above_the_figures_and_once(sample):
    def speed(*texts):
        return msgspec.structs.replace(sample.chosen_throughput, warnings=texts)

    root = check(
        render_page(
            msgspec.structs.replace(
                sample,
                warnings=("the `clock` changed", "too few samples"),
                accuracy=msgspec.structs.replace(sample.accuracy, warnings=("too few samples",)),
                chosen_throughput=speed("unstable"),
                baseline_throughput=speed("unstable"),
            )
        )
    )
    (box,) = root.all("aside")
    assert [words(item) for item in box.all("li")] == [
        "The clock changed",
        "Too few samples",
        "Unstable",
        "Baseline: unstable",
    ]


def test_the_same_content_gives_the_same_page(sample):
    assert render_page(sample) == render_page(msgspec.structs.replace(sample))


EVIL = "</style></svg></title><script>alert('x')</script><b onload=\"x()\">&amp;&quot;`"


def test_every_text_is_escaped(sample):
    recipe = Recipe(EVIL, "fp32")
    bad = Settings(knobs={EVIL: EVIL})
    accuracy = msgspec.structs.replace(sample.accuracy, metric=EVIL, warnings=(EVIL,))
    speed = msgspec.structs.replace(sample.chosen_throughput, warnings=(EVIL,))
    content = ReportContent(
        model=EVIL,
        created=EVIL,
        alula_version=EVIL,
        chosen=Candidate(recipe, bad),
        chosen_throughput=speed,
        baseline=Candidate(recipe, bad),
        baseline_throughput=speed,
        speedup=sample.speedup,
        accuracy=accuracy,
        outcomes=(
            Accepted(candidate=Candidate(recipe, bad), accuracy=accuracy, throughput=speed),
            Rejected(recipe=Recipe(EVIL + "2", "fp32"), reason=EVIL, accuracy=accuracy),
            Rejected(recipe=Recipe(EVIL + "3", "fp32"), reason=EVIL, tried=False),
            Failed(recipe=Recipe(EVIL + "4", "fp32"), error=EVIL, reproduce=EVIL, settings=bad),
        ),
        machine=Fingerprint(
            arch=EVIL,
            vendor=EVIL,
            model_name=EVIL,
            isa=(EVIL,),
            physical_cores=1,
            logical_cores=1,
            thread_budget=1,
            memory_bytes=1,
            os=EVIL,
            python=EVIL,
        ),
        finalists=(Finalist(candidate=Candidate(recipe, bad), throughput=speed, speedup=sample.speedup),),
        folder=FolderSpeed(samples_per_s=1.0, samples=1, files=1),
        data=EVIL,
        fallbacks=(EVIL,),
        versions={EVIL: EVIL},
        notes=(EVIL,),
        warnings=(EVIL,),
        stages=(Stage(name=EVIL, seconds=1.0),),
        roofline=Roofline(share=0.5, explanation=EVIL),
        facts={EVIL: EVIL},
        knob_meanings={EVIL: EVIL},
        commands={EVIL: EVIL},
    )
    page = render_page(content)
    root = check(page)
    assert "<script" not in page
    # The command line is there to be copied: nothing of it may be lost.
    assert [code.text for code in root.all("code")].count(EVIL) >= 1


def test_control_characters_and_lone_surrogates_do_not_reach_the_page(sample):
    error = "\x1b[31mred\x1b[0m \x00 \ud800 \u202eback"
    failed = Failed(recipe=Recipe("torch", "fp32"), error=error, reproduce="")
    page = render_page(msgspec.structs.replace(sample, outcomes=(failed,)))
    check(page)
    assert "red \ufffd \ufffd back" in page


def two_hundred_accepted(content):
    return tuple(
        Accepted(
            candidate=Candidate(
                Recipe("onnxruntime", "int8", "static", f"percentile-{index}", "no-depthwise"),
                Settings(threads=1, instances=2, batch_size=1 + index, knobs={"spin": False}),
            ),
            accuracy=msgspec.structs.replace(content.accuracy, drop=index * 1e-5),
            throughput=Throughput(per_s=1000.0 + 10 * index, rounds_per_s=(1000.0 + 10 * index,)),
            seconds=1.5,
        )
        for index in range(200)
    )


def two_hundred_failed(content):
    long = " ".join(["a reason that goes on and on"] * 40)
    return tuple(
        Failed(
            recipe=Recipe("torch", "int8", "fx", f"v{index}"),
            error=f"{index}: {long}",
            reproduce=long,
            seconds=2.0,
        )
        for index in range(200)
    )


@pytest.mark.parametrize("outcomes", [two_hundred_accepted, two_hundred_failed])
def test_two_hundred_outcomes_stay_below_300_kb(sample, outcomes):
    page = render_page(msgspec.structs.replace(sample, outcomes=outcomes(sample)))
    root = check(page)
    assert len(page.encode()) < 300_000
    assert len(root.all("details")[0].all("tr")) == 201


def test_a_search_that_recorded_nothing_still_reports_what_was_chosen(sample):
    bare = msgspec.structs.replace(
        sample,
        outcomes=(),
        finalists=(),
        folder=None,
        data="",
        calibration_samples=None,
        fallbacks=(),
        versions={},
        notes=(),
        warnings=(),
        stages=(),
        roofline=None,
        macs_per_sample=None,
        knob_meanings={},
        commands={},
    )
    text = words(check(render_page(bare)))
    assert "openvino/int8-nncf runs 6.94 times as fast" in text
    assert "No trial was recorded." in text
    assert "Where the time went" not in text
    assert "Before you rely on these figures" not in text


@pytest.mark.parametrize(
    ("speedup", "expected"),
    [
        (Ratio(1.01, 0.97, 1.05), "is no faster or slower beyond doubt than eager PyTorch: 1.01 times"),
        (Ratio(0.8, 0.7, 0.9), "is slower than eager PyTorch: 0.80 times as fast [0.70, 0.90]"),
        (Ratio(3.0, 0.0, math.inf), "runs about 3.00 times as fast as eager PyTorch, in too few rounds"),
    ],
)
def test_the_verdict_says_when_there_is_little_to_say(sample, speedup, expected):
    text = words(check(render_page(msgspec.structs.replace(sample, speedup=speedup))))
    assert expected in text


finite = st.floats(allow_nan=False, allow_infinity=False)
any_float = st.floats()
names = st.one_of(
    st.sampled_from(["torch", "openvino", "onnxruntime", "fake"]),
    st.text(min_size=1, max_size=12),
    st.sampled_from(["a" * 5000, "<b>" * 300, "漢" * 200]),
)
recipes = st.one_of(
    st.builds(Recipe, names, st.sampled_from(["fp32", "bf16"])),
    st.builds(
        Recipe,
        names,
        st.just("int8"),
        st.sampled_from(["nncf", "static"]),
        st.none() | st.just("x" * 40),
        st.sampled_from(["all", "dense"]),
    ),
)
odd_settings = st.builds(
    Settings,
    threads=st.integers(1, 256),
    instances=st.integers(1, 9),
    batch_size=st.integers(1, 10**6),
    knobs=st.dictionaries(
        st.text(max_size=8), st.booleans() | st.integers() | st.text(max_size=8), max_size=2
    ),
)
accuracies = st.builds(
    Accuracy,
    metric=st.sampled_from(["top1", "mse", "macro_auc", "score.py:fn"]),
    n=st.integers(1, 10**7),
    baseline=any_float,
    chosen=any_float,
    drop=st.one_of(st.floats(-1, 1), any_float),
    drop_low=st.one_of(st.floats(-1, 1), any_float),
    drop_high=st.one_of(st.floats(-1, 1), any_float),
    limit=st.one_of(st.just(0.0), st.floats(0, 1), st.floats(min_value=0)),
    warnings=st.just(()),
)
throughputs = st.builds(
    Throughput,
    per_s=st.one_of(st.just(100.0), st.floats(0, 1e9), any_float),
    rounds_per_s=st.lists(st.one_of(st.just(100.0), any_float), max_size=4).map(tuple),
)
ratios = st.builds(Ratio, any_float, any_float, any_float) | st.just(Ratio(1.0, 1.0, 1.0))
candidates = st.builds(Candidate, recipes, odd_settings)
outcomes = st.one_of(
    st.builds(
        Accepted,
        candidate=candidates,
        accuracy=accuracies,
        throughput=throughputs,
        relative=st.none() | any_float,
        seconds=any_float,
    ),
    st.builds(
        Rejected, recipe=recipes, reason=st.text(max_size=30), accuracy=st.none() | accuracies, seconds=finite
    ),
    st.builds(
        Failed,
        recipe=recipes,
        error=st.text(max_size=30),
        reproduce=st.text(max_size=30),
        settings=st.none() | odd_settings,
        seconds=finite,
    ),
)
odd_content = st.builds(
    ReportContent,
    model=st.text(max_size=20) | st.just("m" * 3000),
    created=st.text(max_size=30) | st.just("0001-01-01T00:00:00+23:59"),
    alula_version=st.just("1"),
    chosen=candidates,
    chosen_throughput=throughputs,
    baseline=candidates,
    baseline_throughput=throughputs,
    speedup=ratios,
    accuracy=accuracies,
    outcomes=st.lists(outcomes, max_size=8).map(tuple),
    machine=st.just(
        Fingerprint(
            arch="",
            vendor="",
            model_name="",
            isa=(),
            physical_cores=0,
            logical_cores=0,
            thread_budget=1,
            memory_bytes=0,
            os="",
            python="",
        )
    ),
    finalists=st.lists(
        st.builds(Finalist, candidate=candidates, throughput=throughputs, speedup=ratios), max_size=3
    ).map(tuple),
    stages=st.lists(st.builds(Stage, name=st.text(max_size=5), seconds=any_float), max_size=3).map(tuple),
    roofline=st.none() | st.builds(Roofline, share=any_float, explanation=st.text(max_size=9)),
    macs_per_sample=st.none() | any_float,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(odd_content)
def test_whatever_the_search_went_through_there_is_a_sound_page(content):
    root = check(render_page(content))
    text = html.unescape(root.text)
    for recipe in recipes_of(content):
        clean = "".join(char for char in recipe.name[:20] if char.isascii() and char.isalnum())
        found = "".join(char for char in text if char.isascii() and char.isalnum())
        assert clean in found
