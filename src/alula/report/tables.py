"""The tables and lists of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alula.core import (
    Accepted,
    Accuracy,
    Candidate,
    Failed,
    Outcome,
    Ratio,
    Recipe,
    Throughput,
    share_of_peak,
)
from alula.report.content import ReportContent
from alula.report.marks import marker
from alula.report.markup import Element, Node, element
from alula.report.numbers import UNKNOWN, count, duration, per_s, shortened, times, times_interval
from alula.report.scales import LogScale
from alula.report.trials import Problem, Row, Verdict, problems, recipe_of, screened_ratio, verdict_of
from alula.report.words import baseline_name, drop_scale, settings_text

__all__ = [
    "all_trials",
    "legend",
    "problem_list",
    "prose",
    "recipe_times",
    "rounds_table",
    "stage_times",
    "tried_table",
]

# Errors are meant to be a line each; tracebacks that got through must not fill the page.
_LONGEST_TEXT = 500
_SHORTEST_TEXT = 120
_ALL_TEXTS = 50_000
_MOST_BARS = 24
_LONGEST_NAME = 90
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class _Column:
    name: str
    numeric: bool = False


def prose(text: str) -> list[Node]:
    """Return text with what stands in backticks as code."""
    parts = _CODE.split(text)
    return [element("code", {}, part) if index % 2 else part for index, part in enumerate(parts) if part]


def tried_table(content: ReportContent, rows: Sequence[Row], kinds: Mapping[str, int]) -> Element:
    """Return a row per recipe with its best settings, and the baseline among them by speed."""
    scale = drop_scale(content.accuracy)
    drop = f"Drop, {scale.unit}" if scale.unit else "Drop"
    columns = [
        _Column("#", True),
        _Column("Recipe"),
        _Column("Best settings"),
        _Column("Samples/s", True),
        _Column("× baseline", True),
        _Column(drop, True),
        _Column("Verdict"),
    ]
    body = [_tried_row(row, columns, content, kinds) for row in rows]
    faster = sum(
        row.verdict in ("chosen", "accepted") and row.ratio is not None and row.ratio.median >= 1
        for row in rows
    )
    body.insert(faster, _baseline_row(columns, content, kinds))
    return _cards("Recipes", columns, body)


def _tried_row(
    row: Row, columns: Sequence[_Column], content: ReportContent, kinds: Mapping[str, int]
) -> Element:
    cells = [
        _cell(columns[0], [str(row.number)], empty=True),
        _name_cell(row, kinds),
        _cell(columns[2], _settings(row), wide=True),
        _cell(columns[3], [] if row.per_s is None else _speed(row.per_s, row.recipe, content)),
        _cell(columns[4], _ratio(row.ratio)),
        _cell(columns[5], _drop(row.accuracy, content)),
        _cell(columns[6], _verdict(row, content)),
    ]
    return element("tr", {"class": row.verdict.replace(" ", "-"), "role": "row"}, *cells)


def _baseline_row(columns: Sequence[_Column], content: ReportContent, kinds: Mapping[str, int]) -> Element:
    recipe = content.baseline.recipe
    name = element(
        "th",
        {"scope": "row", "role": "rowheader"},
        _icon(recipe, kinds),
        shortened(baseline_name(content.baseline), _LONGEST_NAME),
        element("span", {"class": "sub"}, "the model as it was"),
    )
    cells = [
        _cell(columns[0], [], empty=True),
        name,
        _cell(columns[2], [settings_text(content.baseline.settings)], wide=True),
        _cell(columns[3], _speed(content.baseline_throughput.per_s, recipe, content)),
        _cell(columns[4], ["1×"]),
        _cell(columns[5], [], empty=True),
        _cell(columns[6], [_pill("baseline", "baseline")]),
    ]
    return element("tr", {"class": "baseline", "role": "row"}, *cells)


def _speed(samples_per_s: float, recipe: Recipe, content: ReportContent) -> list[Node]:
    """Return a speed and, where peaks were measured, which share of them it is."""
    nodes: list[Node] = [per_s(samples_per_s)]
    if content.peaks is not None and math.isfinite(samples_per_s):
        share = share_of_peak(samples_per_s, content.work.get(recipe.name), content.peaks)
        text = "share of peak unknown" if share.share is None else str(share)
        nodes.append(element("span", {"class": "sub"}, text))
    return nodes


def _settings(row: Row) -> list[Node]:
    return [] if row.settings is None else [settings_text(row.settings)]


def _ratio(ratio: Ratio | None) -> list[Node]:
    if ratio is None or not math.isfinite(ratio.median):
        return []
    if not math.isfinite(ratio.high):
        return [times(ratio.median)]
    return [times(ratio.median), element("span", {"class": "sub"}, f"{times_interval(ratio)}")]


def _drop(accuracy: Accuracy | None, content: ReportContent) -> list[Node]:
    if accuracy is None:
        return []
    scale = drop_scale(accuracy)
    other = "" if accuracy.metric == content.accuracy.metric else f", {accuracy.metric}"
    return [
        scale.text(accuracy.drop, unit=False),
        element("span", {"class": "sub"}, scale.interval(accuracy.drop_low, accuracy.drop_high) + other),
    ]


def _verdict(row: Row, content: ReportContent) -> list[Node]:
    nodes: list[Node] = [_pill(row.verdict, row.verdict)]
    if row.verdict in ("chosen", "accepted"):
        doubts = "; ".join(_doubts(row, content))
        if doubts:
            nodes.append(element("span", {"class": "sub"}, doubts))
    elif row.accuracy is not None and row.accuracy.drop > row.accuracy.limit:
        nodes.append(element("span", {"class": "sub"}, "the drop is above the limit"))
    elif row.reason and row.verdict != "not tried":
        nodes.append(element("span", {"class": "sub"}, *prose(shortened(row.reason, 80))))
    return nodes


def _doubts(row: Row, content: ReportContent) -> list[str]:
    """Return what a reader should know about an accepted recipe, in a few words each."""
    found = []
    if row.ratio is not None and row.ratio.median < 1:
        found.append("slower than the baseline")
    if row.accuracy is not None and row.accuracy.n < content.accuracy.n:
        found.append(f"checked on {count(row.accuracy.n, 'sample')} only")
    elif row.accuracy is not None and row.accuracy.drop_high > row.accuracy.limit:
        found.append("the interval reaches past the limit")
    return found


def _pill(verdict: Verdict | str, text: str) -> Element:
    return element("span", {"class": f"pill {verdict.replace(' ', '-')}"}, text)


def _name_cell(row: Row, kinds: Mapping[str, int]) -> Element:
    # Cards have no column of numbers: there the style sheet writes this one before the name.
    attributes = {"scope": "row", "role": "rowheader", "data-number": f"{row.number}"}
    return element("th", attributes, _icon(row.recipe, kinds), _name(row.recipe))


def _name(recipe: Recipe) -> Element:
    return element("code", {}, shortened(recipe.name, _LONGEST_NAME))


def _icon(recipe: Recipe, kinds: Mapping[str, int]) -> Element:
    kind = kinds.get(recipe.engine, 0)
    return element(
        "svg",
        {"class": "icon", "aria-hidden": "true"},
        marker(kind, recipe.precision, 8, 8, 6),
    )


def _cell(column: _Column, nodes: Sequence[Node], *, empty: bool = False, wide: bool = False) -> Element:
    """Return a cell; on a phone, `empty` ones are left out and `wide` ones fill a line of a card."""
    names = {"num": column.numeric, "empty": empty or not nodes, "wide-cell": wide}
    name = " ".join(name for name, holds in names.items() if holds)
    attributes: dict[str, str | float] = {"role": "cell"}
    if name:
        attributes["class"] = name
    if not nodes:
        return element("td", attributes, UNKNOWN if not empty else "")
    if not (empty or wide):
        attributes["data-name"] = column.name
    return element("td", attributes, *nodes)


def _cards(label: str, columns: Sequence[_Column], body: Sequence[Element]) -> Element:
    """Return a table whose rows turn into cards on a phone; roles say that it stays a table."""
    head = [
        element(
            "th",
            {"scope": "col", "role": "columnheader", **({"class": "num"} if column.numeric else {})},
            column.name,
        )
        for column in columns
    ]
    table = element(
        "table",
        {"class": "cards", "role": "table", "aria-label": label},
        element("thead", {"role": "rowgroup"}, element("tr", {"role": "row"}, *head)),
        element("tbody", {"role": "rowgroup"}, *body),
    )
    return element("div", {"class": "fit", "tabindex": "0", "role": "region", "aria-label": label}, table)


def legend(rows: Sequence[Row], kinds: Mapping[str, int]) -> Element:
    """Return what markers mean: an entry for each engine, and one for each filling and stroke in use."""
    engines = list(dict.fromkeys(row.recipe.engine for row in rows))
    items = [
        element("li", {}, _icon(Recipe(engine, "fp32"), kinds), shortened(engine, 40)) for engine in engines
    ]
    used = {row.recipe.precision for row in rows}
    fillings = {"fp32": "hollow: FP32", "bf16": "half filled: BF16", "int8": "filled: INT8"}
    items += [element("li", {}, text) for precision, text in fillings.items() if precision in used]
    if any(row.verdict in ("rejected", "failed") and row.accuracy is not None for row in rows):
        items.append(element("li", {}, "struck through: rejected"))
    items.append(element("li", {}, "ringed: chosen"))
    return element("ul", {"class": "legend", "aria-label": "Legend"}, *items)


# The last comparison.


def rounds_table(content: ReportContent, kinds: Mapping[str, int]) -> Element:
    """Return a row per candidate of the last comparison, with a dot for each of its rounds."""
    contenders: list[tuple[Candidate, Throughput, Ratio | None]] = [
        (one.candidate, one.throughput, one.speedup) for one in content.finalists
    ]
    if content.chosen not in [candidate for candidate, _, _ in contenders]:
        contenders.append((content.chosen, content.chosen_throughput, content.speedup))
    contenders.sort(key=lambda one: -one[1].per_s)
    contenders.append((content.baseline, content.baseline_throughput, None))
    rates = [rate for _, throughput, _ in contenders for rate in _rates(throughput)]
    columns = [
        _Column("Candidate"),
        _Column("Rounds"),
        _Column("Median, samples/s", True),
        _Column("× baseline", True),
    ]
    low, high = (min(rates), max(rates)) if rates else (1.0, 1.0)
    # Three percent at each end, so that the outermost dots are whole.
    scale = LogScale(low=low / 1.05, high=high * 1.05, start=3, end=97)
    body = [
        _rounds_row(candidate, throughput, ratio, columns=columns, scale=scale, kinds=kinds, content=content)
        for candidate, throughput, ratio in contenders
    ]
    return _cards("Candidates of the last comparison", columns, body)


def _rounds_row(
    candidate: Candidate,
    throughput: Throughput,
    ratio: Ratio | None,
    *,
    columns: Sequence[_Column],
    scale: LogScale,
    kinds: Mapping[str, int],
    content: ReportContent,
) -> Element:
    is_baseline = ratio is None
    settings = element("span", {"class": "sub"}, settings_text(candidate.settings))
    shown: Node = (
        shortened(f"baseline: {baseline_name(candidate)}", _LONGEST_NAME)
        if is_baseline
        else _name(candidate.recipe)
    )
    name = element(
        "th", {"scope": "row", "role": "rowheader"}, _icon(candidate.recipe, kinds), shown, settings
    )
    cells = [
        name,
        element(
            "td",
            {"class": "rounds", "role": "cell"},
            _strip(throughput, scale, kinds[candidate.recipe.engine]),
        ),
        _cell(columns[2], [per_s(throughput.per_s)]),
        _cell(columns[3], ["1×"] if is_baseline else _ratio(ratio)),
    ]
    chosen = not is_baseline and candidate == content.chosen
    verdict = "baseline" if is_baseline else "chosen" if chosen else "other"
    return element("tr", {"class": verdict, "role": "row"}, *cells)


def _rates(throughput: Throughput) -> list[float]:
    return [rate for rate in (*throughput.rounds_per_s, throughput.per_s) if 0 < rate < math.inf]


def _strip(throughput: Throughput, scale: LogScale, kind: int) -> Element:
    rounds = [rate for rate in throughput.rounds_per_s if 0 < rate < math.inf]
    text = (
        f"{count(len(rounds), 'round')} from {per_s(min(rounds))} to {per_s(max(rounds))} samples/s"
        if rounds
        else "no rounds known"
    )
    nodes: list[Node] = [
        element("line", {"class": "axis", "x1": "0", "x2": "100%", "y1": "50%", "y2": "50%"})
    ]
    nodes += [
        element("circle", {"cx": f"{scale.position(rate):.1f}%", "cy": "50%", "r": 4}) for rate in rounds
    ]
    if 0 < throughput.per_s < math.inf:
        at = f"{scale.position(throughput.per_s):.1f}%"
        nodes.append(element("line", {"class": "middle", "x1": at, "x2": at, "y1": "12%", "y2": "88%"}))
    return element("svg", {"class": f"strip k{kind}", "role": "img", "aria-label": text}, *nodes)


# Trials and problems.


def all_trials(content: ReportContent) -> Element:
    """Return a folded table with a row for every outcome, in the order in which they ended."""
    columns = ("Recipe", "Settings", "Samples/s", "× baseline", "Time", "Result")
    head = [
        element("th", {"scope": "col", **({"class": "num"} if 2 <= index <= 4 else {})}, name)
        for index, name in enumerate(columns)
    ]
    body = [_trial(outcome, content) for outcome in content.outcomes]
    table = element("table", {}, element("thead", {}, element("tr", {}, *head)), element("tbody", {}, *body))
    label = f"All {len(content.outcomes)} trials" if len(content.outcomes) > 1 else "The one trial"
    return element(
        "details",
        {},
        element("summary", {}, label),
        element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}, table),
    )


def _trial(outcome: Outcome, content: ReportContent) -> Element:
    settings, speed, ratio = "", "", None
    if isinstance(outcome, Accepted):
        settings, speed = str(outcome.candidate.settings), per_s(outcome.throughput.per_s)
        ratio = screened_ratio(outcome, content)
    elif isinstance(outcome, Failed) and outcome.settings is not None:
        settings = str(outcome.settings)
    return element(
        "tr",
        {},
        element("td", {}, _name(recipe_of(outcome))),
        element("td", {}, settings),
        element("td", {"class": "num"}, speed),
        element("td", {"class": "num"}, "" if ratio is None else times(ratio)),
        element("td", {"class": "num"}, duration(outcome.seconds) if outcome.seconds else ""),
        element("td", {}, verdict_of(outcome)),
    )


def problem_list(content: ReportContent) -> Element | None:
    """Return what was rejected, failed or left over, with reasons; None if there is nothing of the kind."""
    found = problems(content.outcomes)
    if not found:
        return None
    order = ("failed", "rejected", "not tried")
    tried = sorted(
        (one for one in found if one.verdict != "not tried"), key=lambda one: order.index(one.verdict)
    )
    longest = max(_SHORTEST_TEXT, min(_LONGEST_TEXT, _ALL_TEXTS // (2 * len(found))))
    items = [_problem(one, longest) for one in tried] + _left_over(
        [one for one in found if one.verdict == "not tried"]
    )
    return element("ul", {"class": "problems"}, *items)


def _problem(problem: Problem, longest: int) -> Element:
    nodes: list[Node] = [
        _pill(problem.verdict, problem.verdict),
        " ",
        _name(problem.recipe),
        element("p", {}, *prose(shortened(problem.text, longest) or "No reason was given.")),
    ]
    if problem.settings:
        shown = "; ".join(map(str, problem.settings[:8]))
        more = f" and {len(problem.settings) - 8} more" if len(problem.settings) > 8 else ""
        nodes.append(element("p", {"class": "note"}, f"At {shortened(shown, _LONGEST_TEXT)}{more}."))
    if problem.reproduce:
        nodes.append(
            element(
                "pre",
                {"aria-label": "Command that shows it again"},
                element("code", {}, shortened(problem.reproduce, longest)),
            )
        )
    return element("li", {}, *nodes)


def _left_over(found: Sequence[Problem]) -> list[Element]:
    """Return one entry for all recipes that were left over in the same words."""
    texts: dict[str, list[Problem]] = {}
    for one in found:
        texts.setdefault(one.text, []).append(one)
    items = []
    for text, group in texts.items():
        names: list[Node] = []
        for one in group:
            names += [", " if names else " ", _name(one.recipe)]
        sentence = f"{text[:1].upper()}{text[1:]}." if text else ""
        items.append(
            element(
                "li",
                {},
                _pill("not tried", "not tried"),
                *names,
                element("p", {}, *prose(shortened(sentence, _LONGEST_TEXT))),
            )
        )
    return items


# Time.


def stage_times(content: ReportContent) -> Element | None:
    """Return a bar for each stage of the search, None if none is known."""
    return _bars([(stage.name, stage.seconds) for stage in content.stages])


def recipe_times(rows: Sequence[Row]) -> Element | None:
    """Return a bar for each recipe, None if no time is known."""
    ordered = sorted((row for row in rows if row.seconds > 0), key=lambda row: -row.seconds)
    items = [(row.recipe.name, row.seconds) for row in ordered[:_MOST_BARS]]
    if rest := ordered[_MOST_BARS:]:
        items.append((f"{len(rest)} others", sum(row.seconds for row in rest)))
    return _bars(items)


def _bars(items: Sequence[tuple[str, float]]) -> Element | None:
    known = [(name, seconds) for name, seconds in items if math.isfinite(seconds) and seconds >= 0]
    longest = max((seconds for _, seconds in known), default=0.0)
    if longest <= 0:
        return None
    lines = []
    for name, seconds in known:
        bar = element(
            "svg",
            {"aria-hidden": "true"},
            element("rect", {"width": f"{100 * (seconds / longest):.1f}%", "height": "100%", "rx": 3}),
        )
        lines.append(
            element(
                "li",
                {},
                element("span", {}, shortened(name, _LONGEST_NAME)),
                bar,
                element("span", {"class": "value"}, duration(seconds)),
            )
        )
    return element("ul", {"class": "bars"}, *lines)
