"""The page: its head, its sections, and what each of them says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from alula.report.content import ReportContent
from alula.report.layout import NARROW, WIDE
from alula.report.marks import engine_kinds
from alula.report.markup import Element, Node, element, render
from alula.report.numbers import clock_time, count, gibibytes, macs, per_s, shortened, times
from alula.report.scatter import scatter
from alula.report.style import STYLE
from alula.report.tables import (
    all_trials,
    legend,
    problem_list,
    prose,
    recipe_times,
    rounds_table,
    stage_times,
    tried_table,
)
from alula.report.trials import Row, rows
from alula.report.words import (
    accuracy_sentence,
    baseline_name,
    drop_scale,
    drop_words,
    knob_value,
    metric_value,
    metric_words,
    recipe_words,
    settings_words,
    speed_sentence,
)

__all__ = ["render_page"]

_LONGEST_TITLE = 120
_LONGEST_WARNING = 600
# The page needs no script and loads nothing; with this the browser makes sure of it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_page(content: ReportContent) -> str:
    """Return the report as one HTML document, complete in itself.

    It has no scripts and refers to no other file, and is the same for the same content.

    Args:
        content: what it says; every text in it is escaped.
    """
    found = rows(content)
    kinds = engine_kinds([content.baseline.recipe.engine, *(row.recipe.engine for row in found)])
    title = shortened(content.model, _LONGEST_TITLE)
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, f"{title}: {times(content.speedup.median)}, Alula report"),
        element("style", {}, STYLE),
    )
    body = element(
        "body",
        {},
        _header(content, title),
        element(
            "main",
            {},
            *_warnings(content),
            _chart(content, found, kinds),
            _tried(content, found, kinds),
            _last_comparison(content, kinds),
            *_problems(content),
            *_times(content, found),
            _settings(content),
            _method(content),
            _machine(content),
        ),
        element(
            "footer",
            {},
            f"Made by Alula {content.alula_version}. This page is one file, runs nothing and loads nothing.",
        ),
    )
    return "<!DOCTYPE html>\n" + render(element("html", {"lang": "en"}, head, body)) + "\n"


# The head of the page.


def _header(content: ReportContent, title: str) -> Element:
    brand = f"Alula report, {clock_time(content.created)}"
    return element(
        "header",
        {},
        element("p", {"class": "brand"}, brand),
        element("h1", {}, title),
        _verdict(content),
        element("ul", {"class": "tiles"}, *_tiles(content)),
    )


def _verdict(content: ReportContent) -> Element:
    """Return the whole finding in one sentence."""
    speed, than = speed_sentence(content)
    what, size, rest = accuracy_sentence(content.accuracy)
    better = content.speedup.certain and content.speedup.median > 1 and math.isfinite(content.speedup.high)
    verb = "is" if content.speedup.median < 1 or speed.startswith("no ") else "runs"
    return element(
        "p",
        {"class": "verdict" if better else "verdict even"},
        element("code", {}, shortened(content.chosen.recipe.name, _LONGEST_TITLE)),
        f" {verb} ",
        element("strong", {}, speed),
        f" {than}; {what} ",
        element("strong", {}, size),
        f" {rest}.",
    )


def _tile(what: str, figure: list[Node], note: str) -> Element:
    return element(
        "li",
        {},
        element("span", {"class": "what"}, what),
        element("span", {"class": "figure"}, *figure),
        element("span", {"class": "sub"}, note),
    )


def _tiles(content: ReportContent) -> list[Node]:
    accuracy = content.accuracy
    tiles: list[Node] = [
        _tile(
            "Model alone, samples/s",
            [per_s(content.chosen_throughput.per_s)],
            f"{per_s(content.baseline_throughput.per_s)} before",
        ),
        _tile(
            _capital(shortened(metric_words(accuracy.metric), 60)),
            [metric_value(accuracy.metric, accuracy.chosen)],
            f"{metric_value(accuracy.metric, accuracy.baseline)} before",
        ),
    ]
    if content.folder is not None:
        tiles.append(
            _tile(
                "Whole folder, samples/s",
                [per_s(content.folder.samples_per_s)],
                f"with decoding and features, {count(content.folder.files, 'file')}",
            )
        )
    if content.roofline is not None and math.isfinite(content.roofline.share):
        tiles.append(
            _tile(
                f"Of the machine's {shortened(content.roofline.of, 20)} peak".replace("  ", " "),
                [f"{content.roofline.share:.0%}".replace("%", " %")],
                "explained below",
            )
        )
    tiles += [
        _tile(_capital(shortened(name, 60)), [shortened(text, 60)], "")
        for name, text in content.facts.items()
    ]
    return tiles


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _warnings(content: ReportContent) -> list[Node]:
    found = [
        *content.warnings,
        *content.accuracy.warnings,
        *content.chosen_throughput.warnings,
        *(f"baseline: {text}" for text in content.baseline_throughput.warnings),
    ]
    if not found:
        return []
    items = [
        element("li", {}, *prose(shortened(_capital(text), _LONGEST_WARNING)))
        for text in dict.fromkeys(found)
    ]
    return [
        element(
            "aside",
            {"class": "warnings", "aria-labelledby": "warnings"},
            element("h2", {"id": "warnings"}, "Before you rely on these figures"),
            element("ul", {}, *items),
        )
    ]


# Sections.


def _section(name: str, heading: str, *children: Node) -> Element:
    return element(
        "section",
        {"aria-labelledby": name},
        element("h2", {"id": name}, heading),
        *children,
    )


def _note(text: str) -> Element:
    return element("p", {"class": "note"}, *prose(text))


def _chart(content: ReportContent, found: tuple[Row, ...], kinds: Mapping[str, int]) -> Element:
    wide = scatter(content, found, kinds=kinds, frame=WIDE)
    narrow = scatter(content, found, kinds=kinds, frame=NARROW)
    if wide is None or narrow is None:
        return _section(
            "chart",
            "Speed against accuracy",
            _note("There is no speed that could be set against the baseline's."),
        )
    drawn = [row for row in found if row.accuracy is not None]
    text = "Right is faster, up is more accurate; in the tinted area the drop is larger than allowed. "
    if any(row.confirmed for row in drawn):
        text += "Bars with ends are 95 % intervals. "
    if any(row.accuracy is not None and row.accuracy.n < content.accuracy.n for row in drawn):
        text += "Dotted ones rest on a part of the samples or on single rounds. "
    text += "Recipes without a bar along the speed were timed once or twice, while the search screened them. "
    text += "Where a name finds no room, there is its number in the table."
    return _section("chart", "Speed against accuracy", _note(text), wide, narrow, legend(drawn, kinds))


def _tried(content: ReportContent, found: tuple[Row, ...], kinds: Mapping[str, int]) -> Element:
    trials = count(len(content.outcomes), "trial")
    text = (
        f"{count(len(found), 'recipe')} in {trials}, each at the best settings found. Ratios with an "
        "interval come from the last comparison, the others from screening. The drop is how much worse "
        f"{metric_words(content.accuracy.metric)} is than the baseline's."
    )
    children: list[Node] = [_note(text), tried_table(content, found, kinds)]
    if content.outcomes:
        children.append(all_trials(content))
    return _section("tried", "What was tried", *children)


def _last_comparison(content: ReportContent, kinds: Mapping[str, int]) -> Element:
    text = (
        "The best candidates and the baseline took turns, one computing at a time, so that a disturbance "
        "strikes all alike. Each dot is a round, the upright line the median; one logarithmic scale for all."
    )
    return _section("rounds", "The last comparison", _note(text), rounds_table(content, kinds))


def _problems(content: ReportContent) -> list[Node]:
    found = problem_list(content)
    if found is None:
        text = "Nothing failed, and nothing was rejected." if content.outcomes else "No trial was recorded."
        return [_section("problems", "What did not work, and why", element("p", {}, text))]
    return [_section("problems", "What did not work, and why", found)]


def _times(content: ReportContent, found: tuple[Row, ...]) -> list[Node]:
    children: list[Node] = []
    for heading, bars in (("By stage", stage_times(content)), ("By recipe", recipe_times(found))):
        if bars is not None:
            children += [element("h3", {}, heading), bars]
    return [_section("time", "Where the time went", *children)] if children else []


def _settings(content: ReportContent) -> Element:
    chosen = content.chosen
    children: list[Node] = [
        element("p", {}, element("code", {}, shortened(str(chosen), 300))),
        element("p", {}, *prose(recipe_words(chosen.recipe))),
        element("p", {}, settings_words(chosen.settings)),
    ]
    if chosen.settings.knobs:
        children.append(element("h3", {}, "Options of the engine"))
        knobs: list[Node] = []
        for name, value in sorted(chosen.settings.knobs.items()):
            meaning = content.knob_meanings.get(name, "")
            knobs.append(element("dt", {}, element("code", {}, name)))
            knobs.append(element("dd", {}, knob_value(value), *([f": {meaning}"] if meaning else [])))
        children.append(element("dl", {}, *knobs))
    if content.fallbacks:
        children.append(element("h3", {}, "Fallbacks"))
        names = ", ".join(f"`{shortened(name, 90)}`" for name in content.fallbacks)
        text = f"Where this recipe is not right, such as on another CPU, the bundle runs {names}."
        children.append(element("p", {}, *prose(text)))
    if content.notes:
        children.append(element("h3", {}, "Rewritten before export"))
        children.append(
            element("ul", {}, *(element("li", {}, *prose(_capital(note))) for note in content.notes))
        )
    return _section("settings", "The chosen settings", *children)


def _method(content: ReportContent) -> Element:
    accuracy, scale = content.accuracy, drop_scale(content.accuracy)
    rounds = len(content.baseline_throughput.rounds_per_s)
    data = f"The samples: {shortened(content.data, 300)}. " if content.data else ""
    split = f"{count(accuracy.n, 'sample')} gave the verdict"
    if content.calibration_samples is not None:
        split += f"; {content.calibration_samples:,} others were shown to quantizers"
    items = [
        f"{data}{split}.",
        f"The baseline is the model as it was, in {baseline_name(content.baseline)} at its best batch size: "
        f"{content.baseline.settings}. Every candidate had the same budget of "
        f"{count(content.machine.thread_budget, 'thread')}.",
        "Each recipe was built, judged and timed in processes of its own. A crash, a hang or too much memory "
        "is an entry of this page, not the end of the search.",
        f"The speed-up is the median over {count(rounds, 'interleaved round')} of candidate over baseline, "
        "taken round by round, so that drift of the machine cancels; its interval is a 95 % bootstrap.",
        f"The {drop_words(accuracy.metric)} was measured on the same samples for both; its interval is a "
        "95 % paired bootstrap. Accepted means that what was measured is at most "
        f"{scale.limit(accuracy.limit)}, not that the whole interval is.",
        "Speeds are those of the model alone, on batches of real samples"
        + (
            "; the figure for the whole folder includes reading, decoding and features."
            if content.folder is not None
            else "."
        ),
    ]
    children: list[Node] = [element("ol", {}, *(element("li", {}, *prose(item)) for item in items))]
    if content.roofline is not None:
        children.append(element("p", {}, *prose(shortened(content.roofline.explanation, _LONGEST_WARNING))))
    if content.macs_per_sample is not None:
        children.append(
            element("p", {}, f"One sample takes {macs(content.macs_per_sample)}, counted from the graph.")
        )
    if content.commands:
        children.append(element("h3", {}, "Do it again"))
        for purpose, line in content.commands.items():
            shown = element("pre", {}, element("code", {}, line))
            children.append(element("div", {"class": "again"}, _capital(purpose), shown))
    return _section("method", "How it was measured", *children)


def _machine(content: ReportContent) -> Element:
    machine = content.machine
    pairs: list[tuple[str, Node]] = [
        ("CPU", _cpu_name(machine.vendor, machine.model_name)),
        ("Cores", f"{machine.physical_cores:,} physical, {machine.logical_cores:,} logical"),
        ("Threads used", f"{machine.thread_budget:,}"),
        ("Memory", gibibytes(machine.memory_bytes) if machine.memory_bytes else "unknown"),
        ("System", f"{machine.os}, {machine.arch}, Python {machine.python}"),
        ("Instruction sets", _chips(machine.isa)),
    ]
    if content.versions:
        pairs.append(("Versions", _chips(f"{name} {version}" for name, version in content.versions.items())))
    items: list[Node] = []
    for name, value in pairs:
        items += [element("dt", {}, name), element("dd", {}, value)]
    return _section("machine", "The machine", element("dl", {}, *items))


def _chips(texts: Iterable[str]) -> Element:
    return element("ul", {"class": "chips"}, *(element("li", {}, text) for text in texts))


def _cpu_name(vendor: str, model: str) -> str:
    named = vendor.lower() in model.lower()
    return (model if named else f"{vendor} {model}").strip() or "unknown"
