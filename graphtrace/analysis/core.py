"""Core stability: whether different inputs run through the same components.

The core of a trace is the set of components with at least one kept edge; a study is a binary
matrix [traces, components]. Over it:

    presence   share of the inputs whose core holds a component, with its Wilson interval
    jaccard    mean Jaccard overlap of the cores of two different inputs, beside its chance value:
               the expectation for random cores of the same sizes (closed form, hypergeometric)
    stability  Phi of Nogueira, Sechidis and Brown, "On the Stability of Feature Selection
               Algorithms", JMLR 18 (2018): 1 for equal cores, 0 for random ones of those sizes
    gini       inequality of the components' shares of the edges, every trace counting the same
    k-core     the innermost part of a trace: the largest k such that some of its states have links
               with at least k others of them each, and which share of the states are in it

Rows need not be independent: one input may have several traces (positions, or models). Then the
inputs are the unit: Phi's variance adds up influence within an input before squaring (with one
trace per input that is the authors' formula), and Wilson intervals count inputs.
"""

from typing import NamedTuple, Unpack

import numpy as np
import pandas as pd
from scipy.special import gammaln

from graphtrace import schema
from graphtrace.analysis.centrality import component_columns, per_input
from graphtrace.analysis.passes import Measure, measured
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    group_columns,
    group_order,
    labelled,
    read_selection,
    takes_selection,
)
from graphtrace.analysis.stats import Z95, bootstrap_mean, gini, lorenz, wilson
from graphtrace.analysis.weights import core_numbers, edge_weights, merge_parallel
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph

ALL_MODELS = "all models"
_COLUMNS = (
    *("n_inputs", "n_traces", "trace_edges", "n_components", "core_size", "jaccard", "stability"),
    *(
        "gini",
        "k_core",
        "k_core_share",
        "component",
        "components",
        "kind",
        "layer",
        "head",
        "presence",
        "edge_share",
        "share",
    ),
)


class CoreStability(NamedTuple):
    """What `core_stability` returns, see there."""

    summary: pd.DataFrame
    components: pd.DataFrame
    lorenz: pd.DataFrame


class Stability(NamedTuple):
    """Nogueira's Phi, its standard error, and the ends of its 95 % interval (at most 1)."""

    phi: float
    error: float
    low: float
    high: float


class Overlap(NamedTuple):
    """Mean Jaccard overlap of two cores of different inputs, its chance value, and the mean
    overlap of two cores of the same input (other position or model; NaN where there is none)."""

    between: float
    chance: float
    within: float


def stability(present: np.ndarray, inputs: np.ndarray | None = None) -> Stability:
    """Nogueira-Sechidis-Brown stability of feature sets, with its asymptotic interval.

    present: bool [sets, features]. inputs: int64 [sets], sets of one input depend on each other;
    None for independent sets. Definition 4, theorem 7 and corollary 8 of the paper. NaN below two
    sets (or inputs, for the interval), and where every set is empty or full.
    """
    m, d = present.shape
    z = present.astype(np.float64)
    nan = float("nan")
    if m < 2:
        return Stability(nan, nan, nan, nan)
    p, k = z.mean(0), z.sum(1)
    mean = k.mean() / d
    spread = mean * (1 - mean)
    if spread <= 0:
        return Stability(nan, nan, nan, nan)
    phi = 1 - m / (m - 1) * (p * (1 - p)).mean() / spread
    share = k / d
    influence = (
        z @ p / d - share * mean + phi / 2 * (2 * share * mean - share - mean + 1)
    ) / spread
    influence -= influence.mean()
    codes = np.arange(m) if inputs is None else np.unique(inputs, return_inverse=True)[1]
    per_cluster = np.bincount(codes, influence)
    if len(per_cluster) < 2:
        return Stability(float(phi), nan, nan, nan)
    error = float(np.sqrt(4 / m**2 * (per_cluster**2).sum()))
    return Stability(float(phi), error, float(phi - Z95 * error), min(float(phi + Z95 * error), 1))


def expected_jaccard(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Expected Jaccard overlap of random subsets of sizes a and b (int64, any one shape) of n
    things: the mean of x / (a + b - x), x hypergeometric. NaN where both are empty."""
    a, b = np.broadcast_arrays(np.asarray(a, np.int64), np.asarray(b, np.int64))
    x = np.arange(int(a.max(initial=0)) + 1).reshape(-1, *[1] * a.ndim)
    possible = (x <= np.minimum(a, b)) & (x >= a + b - n)

    def log_choose(top, part):
        return gammaln(top + 1.0) - gammaln(part + 1.0) - gammaln(top - part + 1.0)

    y = np.where(possible, x, np.maximum(a + b - n, 0))
    weight = np.exp(log_choose(a, y) + log_choose(n - a, b - y) - log_choose(n, b))
    union = a + b - y
    ratio = np.divide(y, union, out=np.full(union.shape, np.nan), where=union > 0)
    return np.where(a + b > 0, np.where(possible, weight * np.nan_to_num(ratio), 0).sum(0), np.nan)


def overlap(present: np.ndarray, inputs: np.ndarray) -> Overlap:
    """Mean pairwise Jaccard of the rows of `present` (bool [sets, features]).

    inputs: int64 [sets]. Pairs of two empty sets are left out; a mean over no pair is NaN.
    """
    n = present.shape[1]
    z = present.astype(np.float32)
    k = present.sum(1)
    sizes, size_of = np.unique(k, return_inverse=True)
    chance = np.stack([expected_jaccard(n, np.full(len(sizes), s), sizes) for s in sizes])
    sums, counts = np.zeros(3), np.zeros(2)
    for start in range(0, len(z), 512):  # bounds the [rows, sets] table
        rows = slice(start, start + 512)
        shared = z[rows] @ z.T
        union = k[rows, None] + k[None, :] - shared
        later = np.arange(len(z))[None, :] > np.arange(len(z))[rows, None]
        counted = later & (union > 0)
        same = inputs[rows, None] == inputs[None, :]
        ratio = shared / np.maximum(union, 1)
        by_chance = chance[size_of[rows, None], size_of[None, :]]
        for place, chosen in enumerate((counted & ~same, counted & same)):
            sums[2 * place] += ratio[chosen].sum(dtype=np.float64)
            counts[place] += chosen.sum()
            if place == 0:
                sums[1] += by_chance[chosen].sum()
    total = np.array([counts[0], counts[0], counts[1]])
    return Overlap(*np.divide(sums, total, out=np.full(3, np.nan), where=total > 0).tolist())


@takes_selection
def core_stability(
    source: TraceSource,
    size: Size | float | str = 0.001,
    *,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
    **selection: Unpack[Selection],
) -> CoreStability:
    """Core stability over the traces of a source, at one size.

    Where at least two models of the same shape (layers, heads, kind of block) are there, a further
    model `all models` takes their traces together, components matched by (kind, layer, head). Three
    tables, one block of rows per model and group (columns model and the keys of `by`):

    summary     one row: n_inputs, n_traces, trace_edges (mean number of edges at this size),
                n_components (of the model), core_size (mean number of components in a core),
                jaccard, jaccard_chance, jaccard_same_input (of two traces of one input), stability
                with stability_error, stability_low, stability_high, gini, top10_share (share of
                the edges held by the top tenth of the components), k_core (largest core number of
                a state) and k_core_share (share of the states that have it), means over inputs
                with k_core_low, ... (bootstrap, `draws` draws with `seed`; NaN with one input)
    components  one row per component of the model, most present first: component, kind, layer,
                head, presence (mean over inputs), presence_low, presence_high (Wilson, n_inputs),
                edge_share (mean share of a trace's edges)
    lorenz      components, share: what the best so many components (as a share of all) hold of
                the edges

    workers, progress: see `passes.measured`. Warns ShortTraceWarning once; raises OptionError,
    SizeError.
    """
    traces = chosen_traces(source, selection, _COLUMNS)
    special = read_selection(selection)["exclude_special"]
    keys = group_columns(traces)
    rows = []
    for row, found in measured(source, traces, size, CORE_MEASURE, special, workers, progress):
        rows.append(
            {
                "group": tuple(row[key] for key in keys),
                "model": row["model"],
                "input": row["input"],
                "shape": tuple(found["shape"].tolist()),
                "counts": found["counts"],
                "innermost": found["innermost"],
            }
        )
    table = pd.DataFrame(rows)
    names = ["model", *(key.removeprefix("by:") for key in keys)]
    tables = []
    for group in sorted(set(table["group"]), key=group_order):
        part = table.loc[table["group"] == group]
        blocks = [(model, block) for model, block in part.groupby("model", sort=True)]
        if len(blocks) > 1 and len(set(part["shape"])) == 1:
            blocks.append((ALL_MODELS, part))
        for model, block in blocks:
            labels = dict(zip(names, (model, *group), strict=False))
            labels["model"] = model  # a key of `by` may be the model itself
            tables.append([labelled(frame, labels) for frame in _block(block, draws, seed)])
    return CoreStability(
        *(pd.concat(frames, ignore_index=True) for frames in zip(*tables, strict=True))
    )


def _counts_of(subgraph: SubGraph) -> dict[str, np.ndarray]:
    layout = subgraph.layout
    n_components = len(schema.components(layout.n_layers, layout.n_heads, layout.parallel))
    core = core_numbers(merge_parallel(subgraph, edge_weights(subgraph)))
    return {
        "counts": np.bincount(subgraph.component_index, minlength=n_components),
        "innermost": np.array([core.max(), (core == core.max()).mean()]),
        "shape": np.array([layout.n_layers, layout.n_heads, layout.parallel], np.int64),
    }


CORE_MEASURE = Measure("component counts", 2, _counts_of)
"""Edges of every component (int64 [components]); the largest core number and its share of the
states (float64 [2]); the model's shape: layers, heads, parallel."""


def _block(
    block: pd.DataFrame, draws: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    counts = np.stack(block["counts"].tolist())
    present = counts > 0
    inputs = pd.factorize(block["input"])[0]
    n_inputs, n_components = int(inputs.max()) + 1, counts.shape[1]
    n_edges = counts.sum(1)
    share = (counts / np.maximum(n_edges, 1)[:, None]).mean(0)
    held = lorenz(share)
    found, pairs = stability(present, inputs), overlap(present, inputs)
    summary = {
        "n_inputs": n_inputs,
        "n_traces": len(block),
        "trace_edges": float(n_edges.mean()),
        "n_components": n_components,
        "core_size": float(present.sum(1).mean()),
        "jaccard": pairs.between,
        "jaccard_chance": pairs.chance,
        "jaccard_same_input": pairs.within,
        "stability": found.phi,
        "stability_error": found.error,
        "stability_low": found.low,
        "stability_high": found.high,
        "gini": gini(share),
        "top10_share": held[int(np.ceil(n_components / 10))],
    }
    innermost = per_input(block["input"].tolist(), np.stack(block["innermost"].tolist()))
    ends = bootstrap_mean(innermost, draws, seed)
    for i, name in enumerate(("k_core", "k_core_share")):
        summary |= {name: innermost[:, i].mean(), f"{name}_low": ends.low[i]}
        summary[f"{name}_high"] = ends.high[i]
    presence = per_input(block["input"].tolist(), present).mean(0)
    low, high = wilson(presence, n_inputs)
    components = component_columns(*block["shape"].iloc[0]).assign(
        presence=presence, presence_low=low, presence_high=high, edge_share=share
    )
    components = components.sort_values(
        by=["presence", "edge_share"], ascending=False, kind="stable", ignore_index=True
    )
    curve = {"components": np.arange(n_components + 1) / n_components, "share": held}
    return pd.DataFrame([summary]), components, pd.DataFrame(curve)
