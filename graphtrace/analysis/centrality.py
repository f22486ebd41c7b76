"""Centrality: which states and which components a trace runs through.

Of a state (weights and links as in weights.py):

    pagerank      PageRank on the reversed graph, restarting at the output (damping 0.85): how
                  often a walk from the output against the edges is here. With the flow it would
                  measure something else (the two correlate negatively).
    betweenness   share of the ordered pairs of states whose shortest path (links, unweighted)
                  runs through the state: divided by (V-1)(V-2)
    in_strength   sum of the weights of its incoming edges: 1, or 0 where none is kept
    out_strength  sum of the weights of its outgoing edges
    path_flow     share of the complete paths' mass that runs through it (flow.py)
    core_number   the largest k whose k-core has the state (links, unweighted and undirected)

Components are edges, not states, so a component's value is taken over its edges:

    path_flow     sum: the probability that a complete path runs through the component, since all
                  its edges enter one level; adds up to 1 over the components of a level
    strength      sum of the weights
    betweenness   mean edge betweenness of its edges' links, divided by V(V-1)
    pagerank      sum of PageRank(target) times weight

Over many inputs a component counts as 0 where it is absent, and intervals are bootstrapped over
inputs, never over edges: the edges of one input are not independent.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.analysis.flow import path_flow
from graphtrace.analysis.passes import N_EDGES, Measure, measured
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    groups_of,
    labelled,
    read_selection,
    subgraphs,
    takes_selection,
)
from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.analysis.weights import (
    Links,
    core_numbers,
    edge_weights,
    link_graph,
    merge_parallel,
)
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph

DAMPING = 0.85
NODE_MEASURES = (
    *("pagerank", "betweenness", "in_strength", "out_strength", "path_flow", "core_number"),
)
COMPONENT_MEASURES = ("path_flow", "strength", "betweenness", "pagerank")
_COMPONENT_COLUMNS = (
    *("component", "kind", "layer", "head", "n_inputs", "n_traces", "trace_edges", "n_edges"),
    *("presence", *COMPONENT_MEASURES),
)
_NODE_COLUMNS = (
    *("trace", "input", "name", "level", "layer", "site", "position", "token_id", "token"),
    *("special", "rank", *NODE_MEASURES),
)


def pagerank(links: Links, output: int) -> np.ndarray:
    """float64 [V]: PageRank on the reversed links, restarting at vertex `output`, also from dead
    ends. Adds up to 1."""
    import igraph

    keep = links.weight > 0  # a walk never takes a link of weight 0
    ends = zip(links.target[keep].tolist(), links.source[keep].tolist(), strict=True)
    graph = igraph.Graph(n=len(links.nodes), edges=ends, directed=True)
    reset = np.zeros(len(links.nodes))
    reset[output] = 1
    return np.array(
        graph.personalized_pagerank(
            damping=DAMPING, reset=reset.tolist(), weights=links.weight[keep].tolist()
        )
    )


def node_centrality(subgraph: SubGraph) -> pd.DataFrame:
    """One row per state by (level, position): the columns of `SubGraph.node_frame`, then the
    measures `NODE_MEASURES` (float64, core_number int64; see the module's text)."""
    weight = edge_weights(subgraph)
    links = merge_parallel(subgraph, weight)
    n = len(links.nodes)
    pairs = (n - 1) * (n - 2)
    between = np.array(link_graph(links).betweenness(directed=True))
    return subgraph.node_frame().assign(
        pagerank=pagerank(links, n - 1),
        betweenness=between / pairs if pairs > 0 else np.zeros(n),
        in_strength=np.bincount(links.target, links.weight, minlength=n),
        out_strength=np.bincount(links.source, links.weight, minlength=n),
        path_flow=path_flow(subgraph, weight).node,
        core_number=core_numbers(links),
    )


class ComponentValues(NamedTuple):
    """Values of all components of a model in canonical order: float64 [components] each, the
    number of edges int64."""

    n_edges: np.ndarray
    path_flow: np.ndarray
    strength: np.ndarray
    betweenness: np.ndarray
    pagerank: np.ndarray


def component_values(subgraph: SubGraph) -> ComponentValues:
    """The component measures of one trace; 0 where a component has no edge."""
    layout = subgraph.layout
    n_components = len(schema.components(layout.n_layers, layout.n_heads, layout.parallel))
    weight = edge_weights(subgraph)
    links = merge_parallel(subgraph, weight)
    n = len(links.nodes)
    between = np.array(link_graph(links).edge_betweenness(directed=True), np.float64)
    rank_of = pagerank(links, n - 1)
    of = subgraph.component_index

    def total(values=None):
        return np.bincount(of, values, minlength=n_components)

    n_edges = total()
    return ComponentValues(
        n_edges=n_edges,
        path_flow=total(path_flow(subgraph, weight).edge),
        strength=total(weight),
        betweenness=total(between[links.link] / (n * (n - 1) or 1)) / np.maximum(n_edges, 1),
        pagerank=total(rank_of[links.target[links.link]] * weight),
    )


def component_centrality(subgraph: SubGraph) -> pd.DataFrame:
    """One row per component in use, in canonical order: component, kind, layer, head (<NA> unless
    attention), n_edges, then `COMPONENT_MEASURES` (float64)."""
    values = component_values(subgraph)
    layout = subgraph.layout
    frame = component_columns(layout.n_layers, layout.n_heads, layout.parallel)
    frame = frame.assign(**values._asdict())
    return frame.loc[frame["n_edges"] > 0].reset_index(drop=True)


def component_columns(n_layers: int, n_heads: int, parallel: bool) -> pd.DataFrame:
    """All components of a model in canonical order: component, kind, layer, head (<NA> unless
    attention)."""
    table = schema.components(n_layers, n_heads, parallel)
    head = pd.array([head for *_, head in table], dtype="Int16")
    head[[kind != schema.ATTENTION for _, kind, *_ in table]] = pd.NA
    layer = [level - 1 if parallel else (level - 1) // 2 for _, _, level, _ in table]
    return pd.DataFrame(
        {
            "component": [name for name, *_ in table],
            "kind": [schema.KINDS[kind] for _, kind, *_ in table],
            "layer": np.array(layer, np.int64),
            "head": head,
        }
    )


@takes_selection
def centrality(
    source: TraceSource,
    size: Size | float | str = 0.001,
    *,
    level: Literal["component", "node"] = "component",
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
    **selection: Unpack[Selection],
) -> pd.DataFrame:
    """Centrality over the traces of a source, at one size.

    level="component": one row per model, group and component that at least one trace uses, best
    path flow first: model, the keys of `by`, component, kind, layer, head, n_inputs, n_traces,
    trace_edges (mean number of edges of the traces at this size), n_edges (mean over inputs),
    presence (share of inputs), then for every measure its mean over inputs (absent = 0) and
    MEASURE_low, MEASURE_high: a 95 % percentile bootstrap over inputs (`draws` draws, `seed`;
    NaN with one input). Several traces of one input are averaged first.

    level="node": one row per state of each trace: model, the keys of `by`, trace (its id), input
    (the input's name), then the columns of `node_centrality`. Nothing is averaged, since states
    of different texts do not correspond.

    workers, progress: see `passes.measured`. Warns ShortTraceWarning once where traces are too
    small for one path. Raises OptionError, SizeError.
    """
    if level not in ("component", "node"):
        raise OptionError(f"level {level!r} is neither 'component' nor 'node'")
    taken = _NODE_COLUMNS if level == "node" else _COMPONENT_COLUMNS
    traces = chosen_traces(source, selection, taken)
    special = read_selection(selection)["exclude_special"]
    if level == "node":
        return _node_rows(source, traces, size, progress, special)
    passed = measured(source, traces, size, COMPONENT_MEASURE, special, workers, progress)
    values = {row["id"]: found for row, found in passed}
    frames = []
    for labels, own in groups_of(traces):
        frame = _table(own, [values[trace] for trace in own["id"]], draws, seed)
        frames.append(labelled(frame, labels))
    return pd.concat(frames, ignore_index=True)


def _values_of(subgraph: SubGraph) -> dict[str, np.ndarray]:
    layout = subgraph.layout
    shape = np.array([layout.n_layers, layout.n_heads, layout.parallel], np.int64)
    return {**component_values(subgraph)._asdict(), "shape": shape}


COMPONENT_MEASURE = Measure("component centrality", 1, _values_of)
"""`component_values`, and the model's shape: layers, heads, parallel."""


def _table(
    traces: pd.DataFrame, values: list[dict[str, np.ndarray]], draws: int, seed: int
) -> pd.DataFrame:
    inputs = traces["input"].tolist()
    n_edges = per_input(inputs, np.stack([v["n_edges"] for v in values]))
    present = per_input(inputs, np.stack([v["n_edges"] > 0 for v in values]))
    columns: dict[str, Any] = {
        "n_inputs": len(n_edges),
        "n_traces": len(inputs),
        "trace_edges": float(np.mean([v[N_EDGES][0] for v in values])),
        "n_edges": n_edges.mean(0),
        "presence": present.mean(0),
    }
    for name in COMPONENT_MEASURES:
        of_inputs = per_input(inputs, np.stack([v[name] for v in values]))
        interval = bootstrap_mean(of_inputs, draws, seed)
        columns[name] = of_inputs.mean(0)
        columns[f"{name}_low"], columns[f"{name}_high"] = interval
    n_layers, n_heads, parallel = (int(x) for x in values[0]["shape"])
    frame = component_columns(n_layers, n_heads, bool(parallel)).assign(**columns)
    used = frame.loc[frame["presence"] > 0]
    return used.sort_values(by="path_flow", ascending=False, kind="stable", ignore_index=True)


def per_input(inputs: Sequence[str], values: np.ndarray) -> np.ndarray:
    """float64 [inputs, columns]: the rows of `values` averaged over the traces of each input, in
    the order of first appearance."""
    codes, unique = pd.factorize(pd.array(list(inputs), dtype="object"))
    total = np.zeros((len(unique), values.shape[1]))
    np.add.at(total, codes, values)
    return total / np.bincount(codes)[:, None]


def _node_rows(source, traces, size, progress, exclude_special) -> pd.DataFrame:
    labels = {row["id"]: own for own, rows in groups_of(traces) for row in rows.to_dict("records")}
    frames = []
    for row, subgraph in subgraphs(source, traces, size, progress, exclude_special):
        about = labels[row["id"]] | {"trace": row["id"], "input": row["name"]}
        frames.append(labelled(node_centrality(subgraph), about))
    return pd.concat(frames, ignore_index=True)
