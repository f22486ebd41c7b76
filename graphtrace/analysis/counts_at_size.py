"""How many edges every component has in many traces, at one size.

Sources know these numbers at the sizes of a trace's first curve, counted while all edges were
there; for any other size, and without special tokens, the sub-graphs are read.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.analysis.core import CORE_MEASURE
from graphtrace.analysis.passes import measured
from graphtrace.analysis.reading import read_subgraph, warn_of_short
from graphtrace.component_names import Shape
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size, parse_size

AT_ONCE = 100
"""Traces whose counts are read at a time: those of all sizes are in memory together, and a store
reads more than so many traces by reading all it has."""


class Counts(NamedTuple):
    """counts: int64 [components] per trace, in the order of the traces asked for; shapes: of every
    model, by id."""

    counts: list[np.ndarray]
    shapes: dict[str, Shape]


def model_shapes(source: TraceSource, traces: pd.DataFrame) -> dict[str, Shape]:
    """Layers, heads and kind of block of every model of `traces`, by id."""
    found = {}
    for model, trace in traces.groupby("model")["id"].first().items():
        layout = read_subgraph(source, str(trace), parse_size("k:1")).layout
        found[str(model)] = Shape(layout.n_layers, layout.n_heads, layout.parallel)
    return found


def counts_at_size(
    source: TraceSource,
    traces: pd.DataFrame,
    size: Size | float | str,
    exclude_special: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> Counts:
    """The edges of every component in the trace of this size, per row of `traces`.

    A size of the first curves' grid is read from what the source counted, however few edges it
    keeps; another is counted in the sub-graphs (workers, progress: see `passes.measured`). Warns
    ShortTraceWarning once; raises SizeError, OptionError.
    """
    size = parse_size(size)
    shapes = model_shapes(source, traces)
    if not exclude_special and size.rule != "tv":
        known = _known(source, traces, size, shapes)
        if known is not None:
            return Counts(known, shapes)
    passed = measured(source, traces, size, CORE_MEASURE, exclude_special, workers, progress)
    return Counts([found["counts"] for _, found in passed], shapes)


def _known(
    source: TraceSource, traces: pd.DataFrame, size: Size, shapes: dict[str, Shape]
) -> list[np.ndarray] | None:
    """The counts that the source has at this size; None unless it has all of them."""
    k = [size.edges(n_edges) for n_edges in traces["n_edges"].tolist()]
    ids, counts = traces["id"].tolist(), []
    for start in range(0, len(ids), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        frame = source.component_counts(ids[part])
        keys = zip(frame["trace"], frame["n_edges"], strict=True)
        at = dict(zip(keys, frame["counts"], strict=True))
        found = [at.get(key) for key in zip(ids[part], k[part], strict=True)]
        if any(own is None for own in found):
            return None
        counts += [np.array(own, np.int64) for own in found]
    path = {model: shape.n_layers * (1 if shape.parallel else 2) for model, shape in shapes.items()}
    short = sum(n < path[model] for n, model in zip(k, traces["model"], strict=True))
    warn_of_short(short, len(ids), size)
    return counts


def component_groups(shape: Shape, keys: list[tuple[int, str]], n_parts: int) -> np.ndarray:
    """bool [components, groups]: which components belong to which (part of the depth, kind).

    keys: parts from 0 with a kind of `schema.KINDS`, or `all`. A layer is in the part of
    `n_parts` equal ones that its middle is in; with one part per layer that is the layer.
    """
    table = schema.components(*shape)
    layer = np.array(
        [level - 1 if shape.parallel else (level - 1) // 2 for _, _, level, _ in table]
    )
    part = ((2 * layer + 1) * n_parts) // (2 * shape.n_layers)
    kind = np.array([schema.KINDS[kind] for _, kind, *_ in table])
    return np.stack([(part == p) & ((kind == x) | (x == "all")) for p, x in keys], axis=1)
