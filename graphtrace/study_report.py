"""`report`: every analysis of a study on one page, each figure with what its numbers say.

The figures are those of the paper's results (arXiv 2605.27033: reconstruction, nucleus, make-up by
layer and kind, core stability, correlates, agreement of models, baselines), drawn from the traces
of a store or an archive, with the alternatives and graph measures of method.md section 6 behind
them. A part that these traces cannot show says why.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    read_selection,
    takes_selection,
)
from graphtrace.errors import OptionError, SizeError
from graphtrace.files import replacing
from graphtrace.plots import save_figure
from graphtrace.progress import progress as show_progress
from graphtrace.report_page import Section, render
from graphtrace.report_parts import Study
from graphtrace.report_sections import SECTIONS
from graphtrace.selection import TraceSource, check_curves
from graphtrace.sizes import Size, parse_size


class Report(NamedTuple):
    """path: the page; figures: the files of its figures where they were asked for; left_out: title
    of every part that could not be drawn -> why."""

    path: Path
    figures: list[Path]
    left_out: dict[str, str]


@takes_selection
def report(
    source: TraceSource,
    out: str | Path,
    *,
    size: Size | float | str = 0.01,
    figures: str | Path | None = None,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
    **selection: Unpack[Selection],
) -> Report:
    """Write a report of the traces of a source as one self-contained HTML file.

    out: the page; it is replaced when the new one is whole. size: of the traces whose graphs are
    measured (core stability, centrality, modularity). figures: a folder that also gets every figure
    as SVG. draws, seed: of the bootstraps. workers, progress: see `passes.measured`; what was
    measured of single traces is kept, so a report that was stopped goes on.

    Raises OptionError where nothing matches, or where settings or kinds of first curves are mixed
    (the random baseline and other kinds of curves are drawn beside the chosen ones), SizeError.
    """
    size = parse_size(size)
    traces = chosen_traces(source, selection)
    check_curves(traces)
    want = read_selection(selection)
    if want["settings"] is None:
        want["settings"] = str(traces["settings"].iloc[0])
    study = Study(source, traces, want, size, draws, seed, workers, progress)
    left_out: dict[str, str] = {}
    # Opened first, so that a page that cannot be written is known before hours of work.
    with replacing(out) as file:
        made = _sections(study, left_out)
        lead, facts = _about(traces, want, size)
        if left_out:
            listed = "; ".join(f"{title} ({why})" for title, why in left_out.items())
            lead.append(f"Not drawn: {listed}.")
        file.write(render("What these traces say", lead, facts, made).encode())
    paths = []
    if figures is not None:  # after the page: drawn again, a layout moves by a hair
        named = {s.name: s.figure for s in made if s.figure is not None}
        paths = [
            save_figure(figure, Path(figures) / f"{name}.svg") for name, figure in named.items()
        ]
    return Report(Path(out), paths, left_out)


def _sections(study: Study, left_out: dict[str, str]) -> list[Section]:
    made = []
    with show_progress("report", len(SECTIONS), "parts", shown=study.progress) as advance:
        for title, make in SECTIONS.items():
            section = _made(make, study, title, left_out)
            if section is not None:
                made.append(section)
            advance()
    return made


def _made(
    make: Callable[[Study], Section], study: Study, title: str, left_out: dict[str, str]
) -> Section | None:
    try:
        return make(study)
    except (OptionError, SizeError) as error:
        left_out[title] = str(error)
        return None


def _about(
    traces: pd.DataFrame, want: Mapping[str, Any], size: Size
) -> tuple[list[str], pd.DataFrame]:
    """What the report is over: sentences, and a table with a row per model."""
    first = traces.to_dict("records")[0]
    rows = []
    for name in sorted(set(traces["model_name"])):
        own = traces.loc[traces["model_name"] == name]
        tokens, edges, kept = (own[x].to_numpy(np.int64) for x in ("n_tokens", "n_edges", "n_kept"))
        rows.append(
            {
                "model": name,
                "inputs": len(set(own["input"])),
                "traces": len(own),
                "tokens": f"{tokens.min()} to {tokens.max()}",
                "edges (median)": int(np.median(edges)),
                "edges kept (median)": int(np.median(kept)),
            }
        )
    narrowed = [*(want["models"] or []), *(want["where"] or [])]
    lead = [
        f"{len(traces):,} traces of {len(set(traces['input'])):,} inputs and "
        f"{len(rows)} model(s). Settings {first['settings']}: scorer "
        f"{first['scorer']}, search {first['search']}, computed in {first['dtype']}; curves: "
        f"{first['curve']}. Graph measures are of traces of size {size}. Values in brackets are "
        "95 % intervals over inputs."
    ]
    if narrowed:
        lead.append(f"Only traces with: {', '.join(narrowed)}.")
    if want["exclude_special"]:
        lead.append("Without what BOS and template tokens do.")
    return lead, pd.DataFrame(rows)
