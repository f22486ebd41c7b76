"""How every analysis reads its traces: selected, grouped, one sub-graph at a time.

Numbers of two settings or of two kinds of curve are never pooled, and traces too small to hold one
complete path are counted and reported once rather than once per trace.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from graphtrace.conditions import group_text, values_of
from graphtrace.errors import OptionError
from graphtrace.keywords import check_keywords, shows_keywords
from graphtrace.progress import progress as show_progress
from graphtrace.selection import TraceSource, check_curves, natural, select_traces
from graphtrace.sizes import ShortTraceWarning, Size, parse_size
from graphtrace.subgraph import SubGraph


class Selection(TypedDict, total=False):
    """Which traces are read, and how they are grouped.

    models: ids or names, all by default. settings: the id of one settings; needed where there are
    several, which are never pooled. where: conditions on labels of the inputs and columns of
    `traces` that must all hold, such as `group=clean` or `n_tokens>=20`. by: labels or columns;
    every combination of their values is a group of its own, with a column per key; a trace without
    the label is in the group ''. exclude_special: leave out what BOS and template tokens do: traces
    of their positions, edges that touch them, and their share of the context length.
    """

    models: list[str] | None
    settings: str | None
    where: list[str] | None
    by: list[str] | None
    exclude_special: bool


SELECTION: Selection = {
    "models": None,
    "settings": None,
    "where": None,
    "by": None,
    "exclude_special": False,
}
"""Every keyword of `Selection` with its default."""

takes_selection = shows_keywords(Selection, SELECTION)
"""Show `Selection` in the signature and docstring of a function that takes it."""


def read_selection(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a Selection, defaults where one is absent. Raises OptionError for a keyword
    that there is not."""
    check_keywords(given, SELECTION)
    return {**SELECTION, **given}


def chosen_traces(
    source: TraceSource, selection: Mapping[str, Any], taken: Collection[str] = ()
) -> pd.DataFrame:
    """The traces that a Selection chooses, with one column `by:KEY` for every key to group by, in
    an order that no source decides: by model, then the input's name (`line-2` before `line-10`),
    then id. Seeded draws over inputs therefore give the same numbers from an archive and a store.

    taken: columns of the caller's table; a key of that name is the column `by.KEY` there. With
    `exclude_special` n_tokens counts the other tokens only, and traces of special positions are
    left out. Raises OptionError where nothing matches, settings are mixed, or a key is unknown.
    """
    want = read_selection(selection)
    traces = select_traces(source.traces(), want["models"], want["settings"], want["where"])
    if len(traces) == 0:
        raise OptionError("there are no traces here yet; run `graphtrace extract` first")
    groups = {}
    for key in want["by"] or []:
        name = key.removeprefix("trace.")
        name = f"by.{name}" if name in taken else name
        groups[f"by:{name}"] = list(map(group_text, values_of(traces, key)))
    traces = traces.assign(**groups)
    if want["exclude_special"]:
        traces = _without_special(source, traces)
    order = sorted(
        range(len(traces)),
        key=lambda i: (
            traces["model"].iloc[i],
            natural(traces["name"].iloc[i]),
            traces["id"].iloc[i],
        ),
    )
    return traces.iloc[order].reset_index(drop=True)


def _without_special(source: TraceSource, traces: pd.DataFrame) -> pd.DataFrame:
    """Traces of other than special positions, n_tokens without special tokens."""
    special = source.trace_tokens(traces["id"].tolist())["special"]
    ends = [np.asarray(x, bool)[: p + 1] for x, p in zip(special, traces["position"], strict=True)]
    n_tokens = [int((~x).sum()) for x in ends]
    keep = [not x[-1] for x in ends]
    if not any(keep):
        raise OptionError(
            "every trace is of a special token's position; leave --exclude-special away"
        )
    return traces.assign(n_tokens=n_tokens).loc[keep]


def group_columns(traces: pd.DataFrame) -> list[str]:
    """The columns `by:KEY` of `chosen_traces`."""
    return [column for column in traces.columns if column.startswith("by:")]


def group_order(key: tuple) -> list:
    """Sorts groups by their values, digits as numbers: position 9 before position 10."""
    return [natural(str(value)) for value in key]


def groups_of(traces: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """(labels, rows) of every model and group of `chosen_traces`, in order: labels are the columns
    that a table's rows begin with, `model` and the keys of `by`."""
    keys = ["model", *group_columns(traces)]
    names = [key.removeprefix("by:") for key in keys]
    groups: Any = traces.groupby(keys, sort=False)
    for values, own in sorted(groups, key=lambda part: group_order(part[0])):
        # A key of `by` may be the model itself: its column is there already.
        labels = dict(zip(names, values, strict=True)) | {"model": values[0]}
        yield labels, own


def labelled(frame: pd.DataFrame, labels: dict[str, Any]) -> pd.DataFrame:
    """The table with its group's labels as first columns."""
    columns = {key: [value] * len(frame) for key, value in labels.items()}
    return pd.concat([pd.DataFrame(columns, index=frame.index), frame], axis=1)


def subgraphs(
    source: TraceSource,
    traces: pd.DataFrame,
    size: Size | float | str,
    progress: bool = False,
    exclude_special: bool = False,
) -> Iterator[tuple[Any, SubGraph]]:
    """(row of `traces`, its sub-graph) one after the other, in the order of `traces`.

    Warns once, at the end, with the number of traces that keep fewer edges than one complete
    path. progress: show on stderr how far it is. exclude_special: without edges that touch special
    tokens. Raises SizeError where a trace does not hold the size, OptionError where a `tv:` size
    would be of several kinds of curves.
    """
    size = parse_size(size)
    if size.rule == "tv":
        check_curves(traces)
    rows = list(traces.to_dict("records"))
    short = 0
    with show_progress(f"traces at {size}", len(rows), "traces", shown=progress) as advance:
        found = read_subgraphs(source, [row["id"] for row in rows], size)
        for row, subgraph in zip(rows, found, strict=True):
            short += len(subgraph) < subgraph.layout.path_length
            yield row, subgraph.without_special() if exclude_special else subgraph
            advance()
    warn_of_short(short, len(rows), size)


def read_subgraph(source: TraceSource, trace: str, size: Size) -> SubGraph:
    """One sub-graph, without a warning where it is short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortTraceWarning)
        return source.subgraph(trace, size)


def read_subgraphs(source: TraceSource, traces: Sequence[str], size: Size) -> Iterator[SubGraph]:
    """Sub-graphs one after the other, without warnings; several at a time where the source can."""
    together = getattr(source, "subgraphs", None)
    if together is None:
        yield from (read_subgraph(source, trace, size) for trace in traces)
        return
    found = together(traces, size)
    for _ in traces:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortTraceWarning)
            subgraph = next(found)
        yield subgraph


def warn_of_short(short: int, n: int, size: Size) -> None:
    """Warn that `short` of `n` traces keep fewer edges than one complete path."""
    if short:
        warnings.warn(
            f"at size {size}, {short:,} of {n:,} traces keep fewer edges than one complete "
            "path from an embedding to the output; take a larger size",
            ShortTraceWarning,
            stacklevel=3,
        )
