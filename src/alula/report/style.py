"""The style sheet of the page: two colour schemes, cards instead of tables on a phone, paper."""

from __future__ import annotations

from collections.abc import Mapping

from alula.report.layout import NARROW, WIDE

__all__ = ["STYLE"]

_LIGHT = {
    "page": "#f4f6f4",
    "surface": "#ffffff",
    "soft": "#eef2ef",
    "line": "#dbe2dd",
    "text": "#18211c",
    "muted": "#54615a",
    "good": "#0a6a49",
    "good-soft": "#e0f2e9",
    "warn": "#7d4a00",
    "warn-soft": "#fdf2df",
    "bad": "#a2262c",
    "bad-soft": "#fbeae9",
    "beyond": "#a2262c",
    # One colour for each engine, each at 4.5:1 or more on the surface, after Okabe and Ito 2008.
    "k0": "#b93a12",
    "k1": "#8a5a00",
    "k2": "#7a3fc0",
    "k3": "#1b5fb8",
    "k4": "#0a7a55",
    "k5": "#ad2f78",
    "k6": "#4b6b0a",
    "k7": "#55616e",
}
_DARK = {
    "page": "#0f1412",
    "surface": "#171d1a",
    "soft": "#1f2723",
    "line": "#2e3833",
    "text": "#e7ede9",
    "muted": "#a5b2ab",
    "good": "#63d7a7",
    "good-soft": "#14352a",
    "warn": "#f1bf72",
    "warn-soft": "#352810",
    "bad": "#ff9d96",
    "bad-soft": "#3b1d1c",
    "beyond": "#ff7b72",
    "k0": "#ff8c69",
    "k1": "#e2b34f",
    "k2": "#bca0ff",
    "k3": "#82b5ff",
    "k4": "#53d3a3",
    "k5": "#ff90c8",
    "k6": "#a9d85f",
    "k7": "#adb9c4",
}


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(_LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;text-size-adjust:100%}}
body{{margin:0;background:var(--page);color:var(--text);
  font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  overflow-wrap:break-word}}
main,header,footer{{max-width:66rem;margin:0 auto;padding:0 1rem}}
header{{padding-top:2rem}}
footer{{padding-top:1rem;padding-bottom:3rem;color:var(--muted);font-size:.875rem}}
h1,h2,h3{{line-height:1.25;text-wrap:balance}}
h1{{margin:.1rem 0 0;font-size:1.25rem;font-weight:600}}
h2{{margin:0 0 .35rem;font-size:1.2rem}}
h3{{margin:1.4rem 0 .4rem;font-size:1rem}}
p{{margin:.4rem 0 .9rem}}
ul,ol{{margin:.4rem 0 .9rem;padding-left:1.3rem}}
li{{margin:.3rem 0}}
code,pre,.sub,dd,li{{overflow-wrap:anywhere}}
code,pre{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em}}
pre{{margin:.35rem 0 0;padding:.6rem .75rem;background:var(--soft);border-radius:.5rem;white-space:pre-wrap}}
.brand,.note{{color:var(--muted);font-size:.875rem;margin:0}}
.note{{margin:.2rem 0 .8rem}}
.verdict{{margin:1rem 0 0;font-size:clamp(1.3rem,1rem + 1.6vw,1.85rem);line-height:1.3;letter-spacing:-.01em;
  max-width:46rem;text-wrap:pretty}}
.verdict strong{{color:var(--good)}}
.verdict.even strong{{color:var(--warn)}}
.verdict .range{{color:var(--muted);font-size:.78em;letter-spacing:0}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.5rem 0 0;
  padding:0;list-style:none}}
.tiles li{{margin:0;padding:.8rem .95rem .85rem;background:var(--surface);border:1px solid var(--line);
  border-radius:.75rem}}
.tiles .what{{display:block;color:var(--muted);font-size:.8125rem}}
.tiles .figure{{display:block;margin:.1rem 0;font-size:1.5rem;font-weight:650;line-height:1.2;
  font-variant-numeric:tabular-nums}}
.tiles .figure small{{font-size:.6em;font-weight:500}}
section,.warnings{{margin:1rem 0 0;padding:1.25rem 1.25rem 1.1rem;background:var(--surface);
  border:1px solid var(--line);border-radius:.9rem}}
main{{padding-top:.25rem}}
.warnings{{background:var(--warn-soft);border-color:transparent}}
.warnings h2{{color:var(--warn);font-size:1rem}}
.warnings ul{{margin-bottom:0}}
table{{width:100%;border-collapse:collapse;font-size:.9375rem}}
th,td{{padding:.55rem .6rem;text-align:left;vertical-align:top;border-top:1px solid var(--line)}}
thead th{{border-top:0;color:var(--muted);font-size:.8125rem;font-weight:500;vertical-align:bottom}}
tbody th{{font-weight:500}}
.num{{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}
.sub{{display:block;color:var(--muted);font-size:.8125rem;font-weight:400}}
td .sub,th .sub{{overflow-wrap:break-word}}
td:last-child .sub{{min-width:9rem}}
tbody th{{min-width:12.5rem}}
td.wide-cell{{min-width:10.5rem}}
tr.chosen>*{{background:var(--good-soft)}}
tr.baseline>*{{background:var(--soft)}}
tr.chosen .sub,tr.chosen .what{{color:var(--text)}}
.pill{{display:inline-block;padding:.05rem .55rem;border-radius:1rem;background:var(--soft);color:var(--text);
  font-size:.8125rem;white-space:nowrap}}
.pill.chosen{{background:var(--good);color:var(--surface);font-weight:600}}
.pill.accepted{{background:var(--good-soft);color:var(--good)}}
.pill.rejected{{background:var(--warn-soft);color:var(--warn)}}
.pill.failed{{background:var(--bad-soft);color:var(--bad)}}
.icon{{width:16px;height:16px;margin-right:.45em;vertical-align:-.15em}}
.scroll,.fit{{overflow-x:auto}}
.scroll:focus-visible,.fit:focus-visible{{outline:2px solid var(--good);outline-offset:2px}}
.scroll table{{min-width:38rem}}
.scroll code{{white-space:nowrap}}
summary{{cursor:pointer;padding:.5rem 0;font-weight:500}}
details{{margin-top:.6rem}}
.legend{{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:.6rem 0 0;padding:0;list-style:none;
  font-size:.875rem}}
.legend li{{margin:0}}
.bars{{margin:0;padding:0;list-style:none;display:grid;grid-template-columns:fit-content(18rem) 1fr auto;
  gap:.35rem .9rem;font-size:.9375rem}}
.bars li{{display:grid;grid-column:1/-1;grid-template-columns:subgrid;align-items:center;margin:0}}
.bars svg{{display:block;width:100%;height:.8rem;background:var(--soft);border-radius:3px}}
.bars rect{{fill:var(--k4)}}
.bars .value{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
.strip{{display:block;width:100%;height:1.6rem;overflow:visible}}
.strip .axis{{stroke:var(--line);stroke-width:1}}
.strip circle{{fill:currentColor;fill-opacity:.45}}
.strip .middle{{stroke:var(--text);stroke-width:2}}
td.rounds{{width:46%;min-width:9rem}}
.again{{margin-top:.7rem}}
.problems{{margin:0;padding:0;list-style:none}}
.problems li{{margin:0;padding:.8rem 0;border-top:1px solid var(--line)}}
.problems li:first-child{{border-top:0;padding-top:.2rem}}
.problems p{{margin:.3rem 0 0}}
dl{{display:grid;grid-template-columns:fit-content(14rem) 1fr;gap:.45rem 1.2rem;margin:.4rem 0 0}}
dt{{color:var(--muted)}}
dd{{margin:0}}
.chips{{display:flex;flex-wrap:wrap;gap:.35rem;margin:0;padding:0;list-style:none}}
.chips li{{margin:0;padding:.02rem .5rem;border-radius:.4rem;background:var(--soft);font-size:.875rem}}
.chart{{display:block;width:100%;height:auto;margin:.6rem 0 0}}
.chart text{{fill:var(--text);font-family:inherit}}
.chart.wide text{{font-size:{WIDE.font_px:g}px}}
.chart.narrow text{{font-size:{NARROW.font_px:g}px}}
.chart .plot{{fill:none;stroke:var(--line)}}
.chart .grid,.chart .tick-mark{{stroke:var(--line);stroke-width:1;fill:none}}
.chart .tick,.chart .axis-title{{fill:var(--muted)}}
.chart .tick{{font-variant-numeric:tabular-nums}}
.chart .gutter{{stroke:var(--line);stroke-width:3;fill:none}}
.chart .beyond{{fill:var(--beyond);fill-opacity:.06}}
.chart .limit{{stroke:var(--beyond);stroke-width:1.5;stroke-dasharray:6 4;fill:none}}
.chart .limit-text{{fill:var(--bad)}}
.chart .base-line{{stroke:var(--muted);stroke-width:1;stroke-dasharray:2 3;fill:none}}
.chart .base{{fill:var(--surface);stroke:var(--text);stroke-width:2}}
.chart .base-dot{{fill:var(--text)}}
.chart .ring{{fill:none;stroke:var(--good);stroke-width:2}}
.chart .bar{{stroke:currentColor;stroke-width:1.5;stroke-opacity:.75;fill:none}}
.chart .rough{{stroke-dasharray:1 3;stroke-opacity:.6}}
.chart .leader{{stroke:var(--muted);stroke-width:1;stroke-opacity:.8;fill:none}}
.chart .label,.chart .limit-text{{paint-order:stroke;stroke:var(--surface);stroke-width:3px;
  stroke-linejoin:round}}
.chart .strong{{font-weight:700}}
.mark{{fill:var(--surface);stroke:currentColor;stroke-width:2;stroke-linejoin:round}}
.mark.int8{{fill:currentColor}}
.mark.bf16{{fill:currentColor;fill-opacity:.4}}
.strike{{stroke:var(--text);stroke-width:1.75;fill:none}}
.narrow{{display:none}}
{"".join(f".k{kind}{{color:var(--k{kind})}}" for kind in range(8))}
@media screen and (max-width:959px){{
  .fit{{overflow:visible}}
  .cards,.cards tbody,.cards td,.cards th{{display:block;width:auto;min-width:0;text-align:left}}
  .cards thead{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}}
  .cards tr{{display:grid;grid-template-columns:repeat(4,1fr);gap:.3rem .9rem;padding:.8rem 0;
    border-top:1px solid var(--line)}}
  .cards tr.chosen,.cards tr.baseline{{margin:0 -1.25rem;padding-inline:1.25rem}}
  .cards tr.chosen{{background:var(--good-soft)}}
  .cards tr.baseline{{background:var(--soft)}}
  .cards td,.cards th{{padding:0;border:0}}
  .cards tbody th,.cards td.wide-cell,.cards td.rounds{{grid-column:1/-1}}
  .cards tbody th{{font-weight:600}}
  .cards th[data-number]::before{{content:attr(data-number);float:right;color:var(--muted);font-weight:400}}
  .cards td[data-name]::before{{content:attr(data-name);display:block;color:var(--muted);font-size:.75rem}}
  .cards tr.chosen>*::before{{color:var(--text)}}
  .cards td.empty{{display:none}}
}}
@media screen and (max-width:719px){{
  section,.warnings{{padding:1rem .9rem}}
  .cards tr{{grid-template-columns:1fr 1fr}}
  .cards tr.chosen,.cards tr.baseline{{margin:0 -.9rem;padding-inline:.9rem}}
  .wide{{display:none}}
  .narrow{{display:block;max-width:30rem;margin-inline:auto}}
  .bars{{grid-template-columns:1fr auto}}
  .bars li{{row-gap:.1rem;margin-bottom:.35rem}}
  .bars svg{{grid-row:2;grid-column:1/-1}}
  dl{{grid-template-columns:1fr;gap:0}}
  dd{{margin-bottom:.6rem}}
}}
@media print{{
  :root{{{_variables(_LIGHT)}font-size:11px}}
  body{{background:#fff}}
  main,header,footer{{max-width:none;padding-inline:0}}
  section,.warnings{{border:0;padding:.4rem 0;margin-top:.8rem;background:none}}
  .wide{{display:block}}
  .narrow{{display:none}}
  tr,.tiles li,.chart,.problems li{{break-inside:avoid}}
  h2,h3{{break-after:avoid}}
  .scroll,.fit{{overflow:visible}}
  .scroll table{{min-width:0}}
  .scroll code{{white-space:normal}}
  svg,.pill,tr{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
}}
"""
