"""A report as one HTML file that needs nothing else: headings, sentences, figures, tables.

Figures are SVG images inside the page, so their parts cannot meet those of another; every text is
escaped. The page has no script and loads nothing.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from graphtrace.schema import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_ROWS = 15


class Section(NamedTuple):
    """One part of a report.

    name: what a file of the figure is called; title; question: what the part answers, a sentence;
    findings: what the numbers say, sentences; figure and caption: None where nothing can be drawn;
    table: the rows behind it, of which the page shows the first `rows`; columns: those it shows.
    """

    name: str
    title: str
    question: str
    findings: Sequence[str]
    figure: "Figure | None" = None
    caption: str = ""
    table: pd.DataFrame | None = None
    columns: Sequence[str] = ()
    rows: int = SHOWN_ROWS


_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --link: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); } a { color: var(--link); }
nav ol { columns: 2; padding-left: 1.3rem; } figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .84rem; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
@media print { nav { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def render(title: str, lead: Sequence[str], facts: pd.DataFrame, sections: list[Section]) -> str:
    """The page. lead: sentences under the title; facts: a table of what the report is over."""
    links = "".join(f'<li><a href="#{escape(s.name)}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{_sentences(lead, 'soft')}{table_html(facts)}</header>"
        f"<nav><ol>{links}</ol></nav><main>{body}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>']
    parts.append(f'<p class="soft">{escape(section.question)}</p>')
    parts.append(_sentences(section.findings))
    if section.figure is not None:
        data = base64.b64encode(svg_of(section.figure)).decode()
        source = f"data:image/svg+xml;base64,{data}"
        parts.append(
            f'<figure><img alt="{escape(section.title)}" src="{source}">'
            f"<figcaption>{escape(section.caption)}</figcaption></figure>"
        )
    if section.table is not None and len(section.table):
        shown = section.table.reindex(columns=list(section.columns or section.table.columns))
        parts.append(table_html(shown.head(section.rows)))
        if len(shown) > section.rows:
            parts.append(f'<p class="soft">The first {section.rows} of {len(shown):,} rows.</p>')
    parts.append("</section>")
    return "".join(parts)


def _sentences(sentences: Sequence[str], kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{escape(text)}</p>" for text in sentences)


def svg_of(figure: "Figure") -> bytes:
    """The figure as SVG with its text as outlines, so that it looks the same everywhere; the same
    figure gives the same bytes."""
    import matplotlib as mpl

    sink = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "graphtrace"}):
        # The resolution is that of parts that are pictures.
        figure.savefig(sink, format="svg", metadata={"Date": None}, dpi=200)
    return sink.getvalue()


def table_html(frame: pd.DataFrame) -> str:
    """A table; `x`, `x_low`, `x_high` become one cell, `x [low, high]`."""
    names: list[Any] = list(frame.columns)
    whole = {n for n in names if {f"{n}_low", f"{n}_high"} <= set(names)}
    ends = {f"{n}_{end}" for n in whole for end in ("low", "high")}
    shown = [n for n in names if n not in ends]
    number = {n: frame[n].dtype.kind in "iuf" for n in shown}

    def cell(tag: str, name: Any, text: str) -> str:
        return f"<{tag}{' class=n' if number[name] else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", name, str(name).replace("_", " ")) for name in shown)
    rows = []
    for row in frame.to_dict("records"):
        cells = []
        for name in shown:
            text = shown_value(row[name])
            if name in whole and text:
                low, high = (shown_value(row[f"{name}_{end}"]) for end in ("low", "high"))
                text += f" [{low}, {high}]" if low and high else ""
            cells.append(cell("td", name, text))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def shown_value(value: Any) -> str:
    """A value as a report prints it: three significant digits, nothing for what is missing."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) or hasattr(value, "dtype"):
        value = float(value)
        if math.isnan(value):
            return ""
        return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.3g}"
    text = str(value)
    return visible(text) if text != text.strip() else text
