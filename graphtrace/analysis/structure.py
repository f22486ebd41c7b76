"""What traces of growing size are made of: kinds of edges, and quarters of the depth.

Sources know how many edges every component has at each size of a trace's first curve, counted
while all edges were there. Without special tokens, or where a source does not know them (a store of
an earlier version), the sub-graphs are read, as far as they are kept.
"""

from typing import Literal, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.analysis.bands import input_means, mean_band, means
from graphtrace.analysis.counts_at_size import component_groups, model_shapes
from graphtrace.analysis.passes import Measure, measured
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    groups_of,
    labelled,
    read_selection,
    takes_selection,
)
from graphtrace.component_names import Shape
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph

QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")
_KEYS = [(quarter, kind) for quarter in range(len(QUARTERS)) for kind in schema.KINDS]
_COLUMNS = ("size", "part", "share", "share_whole", "n_inputs", "n_traces")

AT_ONCE = 100
"""Traces whose counts are read at a time: a quarter of a megabyte each of a large model."""


class _Edges(NamedTuple):
    """Edges by (size, `_KEYS`) of some traces: counts float64 [traces, sizes, keys], NaN where a
    trace has no such size; whole: float64 [traces, keys], of the whole graph."""

    counts: np.ndarray
    whole: np.ndarray


@takes_selection
def structure(
    source: TraceSource,
    table: Literal["composition", "layers"] = "composition",
    *,
    workers: int = 1,
    progress: bool = False,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> pd.DataFrame:
    """Which share of a trace's edges each kind of edge, or each quarter of the depth, has, by size.

    table: `composition` (parts `residual`, `mlp`, `attention`) or `layers` (parts `QUARTERS`: a
    layer is in the quarter that its middle is in, so with fewer than four layers some are empty).

    One row per model, group, size and part: size (a point of the grid of the first curves, a
    fraction of |E|), part, share with share_low and share_high (mean over inputs, 95 % percentile
    bootstrap; NaN with one input), share_whole (that of the whole graph, the mean over the same
    inputs: what edges taken at random would have), n_inputs. Inputs whose trace keeps no edge at a
    size are left out there, and sizes that no input has. Several traces of one input are averaged
    first. With exclude_special only edges between other tokens count, in the whole graph too.

    workers, progress: of reading sub-graphs, see `passes.measured`; only traces without counts, or
    exclude_special, need them, and then sizes beyond what every trace keeps are left out. Raises
    OptionError where nothing matches, settings are mixed, or no trace keeps a size of the grid.
    """
    if table not in TABLES:
        raise OptionError(f"table {table!r} is neither composition nor layers")
    return structure_tables(
        source, workers=workers, progress=progress, draws=draws, seed=seed, **selection
    )[table]


TABLES = ("composition", "layers")


def structure_tables(
    source: TraceSource,
    *,
    workers: int = 1,
    progress: bool = False,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> dict[str, pd.DataFrame]:
    """Both tables of `structure`, by name, from one reading."""
    traces = chosen_traces(source, selection, _COLUMNS)
    special = read_selection(selection)["exclude_special"]
    points = source.curve_points(traces["id"].tolist())
    points = points.loc[points["curve"] == 0]
    grid = np.unique(points["grid"].to_numpy())
    edges = _read(source, traces, points, grid, special, workers, progress)
    return {table: _table(table, traces, edges, grid, draws, seed) for table in TABLES}


def _table(table: str, traces, edges: _Edges, grid, draws: int, seed: int) -> pd.DataFrame:
    parts = schema.KINDS if table == "composition" else QUARTERS
    place = [parts.index(kind if table == "composition" else QUARTERS[q]) for q, kind in _KEYS]
    into = np.eye(len(parts))[place]
    frames = []
    for labels, own in groups_of(traces):
        at = own.index.to_numpy()
        shares = _shares(edges.counts[at] @ into)
        whole = _shares(edges.whole[at] @ into)
        frame = _summary(own["input"].tolist(), shares, whole, grid, parts, draws, seed)
        frames.append(labelled(frame, labels))
    return pd.concat(frames, ignore_index=True)


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def _summary(inputs, shares, whole, grid, parts, draws, seed) -> pd.DataFrame:
    by_input = input_means(inputs, shares.reshape(len(inputs), -1))
    share, interval = mean_band(by_input, draws, seed)
    n = np.isfinite(by_input).sum(0)
    whole_by_input = np.tile(input_means(inputs, whole), len(grid))
    reference = means(np.where(np.isfinite(by_input), whole_by_input, np.nan))
    frame = pd.DataFrame(
        {
            "size": np.repeat(grid, len(parts)),
            "part": np.tile(np.array(parts, object), len(grid)),
            "share": share,
            "share_low": interval.low,
            "share_high": interval.high,
            "share_whole": reference,
            "n_inputs": n,
        }
    )
    return frame.loc[n > 0]


def _read(source, traces, points, grid, special, workers, progress) -> _Edges:
    """Edges of every row of `traces`, in its order."""
    counts = np.full((len(traces), len(grid), len(_KEYS)), np.nan)
    edges = _Edges(counts, np.full((len(traces), len(_KEYS)), np.nan))
    left = np.ones(len(traces), bool)
    if not special:
        for model, shape in model_shapes(source, traces).items():
            rows = np.flatnonzero((traces["model"] == model).to_numpy())
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                left[some] = ~_counted(source, traces, points, grid, shape, some, edges)
    if left.any():
        rows = np.flatnonzero(left)
        _from_subgraphs(source, traces, grid, special, workers, progress, rows, edges)
    return edges


def _counted(source, traces, points, grid, shape: Shape, rows, edges: _Edges) -> np.ndarray:
    """Fill in what the source has counted; bool [rows]: of which traces it has."""
    ids = traces["id"].to_numpy()[rows]
    known = source.component_counts(ids.tolist())
    if len(known) == 0:
        return np.zeros(len(rows), bool)
    groups = component_groups(shape, _KEYS, len(QUARTERS)).astype(np.float64)
    by_key = np.stack(known["counts"].tolist()).astype(np.float64) @ groups
    known = known[["trace", "n_edges"]].assign(row=np.arange(len(known)))
    known = known.drop_duplicates(["trace", "n_edges"])
    own = points.loc[points["trace"].isin(ids), ["trace", "n_edges", "grid"]]
    found = own.merge(known, on=["trace", "n_edges"])
    place = dict(zip(ids, rows, strict=True))
    at = np.array([place[trace] for trace in found["trace"]], np.int64)
    edges.counts[at, np.searchsorted(grid, found["grid"])] = by_key[found["row"]]
    n_edges = traces["n_edges"].to_numpy()[at]
    whole = (found["n_edges"] == n_edges).to_numpy()
    edges.whole[at[whole]] = by_key[found["row"]][whole]
    return np.isin(rows, at)


def _from_subgraphs(source, traces, grid, special, workers, progress, rows, edges: _Edges) -> None:
    own = traces.iloc[rows]
    kept = [
        size
        for size in grid.tolist()
        if (np.floor(size * own["n_edges"].to_numpy()) <= own["n_kept"].to_numpy()).all()
    ]
    if not kept:
        raise OptionError(
            f"no size of the grid ({grid[0]:g} to {grid[-1]:g}) is kept by all {len(own):,} traces "
            "whose sub-graphs are needed; extract with --keep, or choose fewer with --where"
        )
    measure = STRUCTURE_MEASURE._replace(params={"grid": kept, "exclude_special": special})
    passed = measured(source, own, kept[-1], measure, special, workers, progress)
    for row, (_, found) in zip(rows, passed, strict=True):
        edges.counts[row, : len(kept)] = found["counts"].reshape(len(kept), len(_KEYS))
        edges.whole[row] = found["whole"]


def _edges_of(
    subgraph: SubGraph, grid: list[float], exclude_special: bool
) -> dict[str, np.ndarray]:
    layout = subgraph.layout
    shape = Shape(layout.n_layers, layout.n_heads, layout.parallel)
    key_of = component_groups(shape, _KEYS, len(QUARTERS)).argmax(1)
    k = np.array([Size("fraction", size).edges(layout.n_edges) for size in grid])
    n = len(_KEYS)
    first = np.searchsorted(k, subgraph.rank, side="right")  # the first size that has the edge
    by_size = np.bincount(
        first * n + key_of[subgraph.component_index], minlength=(len(grid) + 1) * n
    )
    columns = layout.columns
    keep = np.ones(layout.n_edges, bool)
    if exclude_special:
        special = np.asarray(subgraph.special, bool)
        keep = ~(special[columns.source] | special[columns.target])
    quarter = _quarter_of_level(shape)[columns.level[keep]]
    whole = np.bincount(quarter * len(schema.KINDS) + columns.kind[keep], minlength=n)
    return {
        "counts": by_size.reshape(-1, n)[: len(grid)].cumsum(0).ravel(),
        "whole": whole.astype(np.int64),
    }


def _quarter_of_level(shape: Shape) -> np.ndarray:
    """int64 [levels]: the quarter of the layer whose block makes the edges into a level."""
    quarter = component_groups(shape, [(q, "all") for q in range(4)], len(QUARTERS)).argmax(1)
    levels = np.array([level for _, _, level, _ in schema.components(*shape)])
    found = np.zeros(levels.max() + 1, np.int64)
    found[levels] = quarter
    return found


STRUCTURE_MEASURE = Measure("structure", 1, _edges_of)
"""Edges by quarter of the depth and kind, at the sizes `grid` and in the whole graph."""
