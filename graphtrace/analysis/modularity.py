"""Modularity: whether a trace falls apart into communities, and what they follow.

Communities are Leiden's (Traag, Waltman and van Eck 2019) for Newman's modularity of the
*undirected* links (weights.py): the best of several seeds, each run until nothing improves. We
leave the direction out on purpose: igraph 1.0 can optimise the directed quality, but both on small
graphs, where every partition can be tried, and on traces its partitions had a lower modularity,
even the directed one, than those of the undirected run.

Alignment with the layers and with the token positions is normalised mutual information. It is not
corrected for chance, so each comes beside its mean over shuffled communities.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import per_input
from graphtrace.analysis.measure_cache import Values
from graphtrace.analysis.passes import N_EDGES, Measure, measured
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    group_columns,
    read_selection,
    takes_selection,
)
from graphtrace.analysis.stats import bootstrap_mean, mutual_information
from graphtrace.analysis.weights import Links, edge_weights, link_graph, merge_parallel
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph

SEEDS = 5
SHUFFLES = 20
_COLUMNS = ("trace", "input", "n_nodes", "n_edges", "resolution", "n_communities", "modularity")


class Partition(NamedTuple):
    """community: int64 [V], numbered by first member in the order of `SubGraph.node_ids`;
    modularity: of that partition, NaN where no link has weight."""

    community: np.ndarray
    modularity: float


def leiden(links: Links, resolution: float = 1.0, seeds: int = SEEDS) -> Partition:
    """The best of `seeds` Leiden runs (seeds 0, 1, ...; the first of equals).

    resolution: gamma in Q = sum over pairs in one community of (A_ij - gamma k_i k_j / 2m) / 2m;
    larger values give more communities. Links of weight 0 bind nothing.
    """
    import igraph

    if not links.weight.sum() > 0:
        return Partition(np.arange(len(links.nodes)), float("nan"))
    graph = link_graph(links, directed=False)
    weight = links.weight.tolist()
    best = Partition(np.zeros(0, np.int64), -np.inf)
    try:
        for seed in range(seeds):
            igraph.set_random_number_generator(random.Random(seed))
            found = graph.community_leiden(
                objective_function="modularity",
                weights=weight,
                resolution=resolution,
                n_iterations=-1,
            )
            quality = graph.modularity(
                found.membership,
                weights=weight,
                resolution=resolution,  # pyright: ignore[reportArgumentType]
            )
            if quality > best.modularity:
                best = Partition(np.array(found.membership, np.int64), quality)
    finally:
        igraph.set_random_number_generator(random)
    _, first, inverse = np.unique(best.community, return_index=True, return_inverse=True)
    return Partition(np.argsort(np.argsort(first))[inverse], best.modularity)


def communities(subgraph: SubGraph, resolution: float = 1.0, seeds: int = SEEDS) -> pd.DataFrame:
    """One row per state by (level, position): the columns of `SubGraph.node_frame`, then
    `community` (0, 1, ... by first member)."""
    _check(resolution, seeds)
    links = merge_parallel(subgraph, edge_weights(subgraph))
    return subgraph.node_frame().assign(community=leiden(links, resolution, seeds).community)


@takes_selection
def modularity(
    source: TraceSource,
    size: Size | float | str = 0.001,
    *,
    resolutions: Sequence[float] = (1.0,),
    seeds: int = SEEDS,
    workers: int = 1,
    progress: bool = False,
    **selection: Unpack[Selection],
) -> pd.DataFrame:
    """One row per trace and resolution: model, the keys of `by`, trace (id), input (name),
    n_nodes and n_edges of the trace at this size, resolution, n_communities, modularity,
    layer_nmi and position_nmi (alignment of the communities with the layer of a state, the
    embedding being a layer of its own, and with its token position; NaN where there is nothing to
    align), and layer_nmi_chance and position_nmi_chance, the same for shuffled communities.

    Parallel edges are merged first. workers, progress: see `passes.measured`. Warns
    ShortTraceWarning once; raises OptionError, SizeError.
    """
    run = _run(source, size, resolutions, seeds, selection, False)
    return _table(run, measured(*run.reading, workers, progress))


def modularity_summary(
    table: pd.DataFrame, traces: pd.DataFrame, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """What `modularity` found, over inputs: one row per model, group and resolution.

    table: of `modularity`; traces: rows of the source's `traces()`, which say whose input is whose.
    Columns: model, the keys of `by`, resolution, n_inputs, n_traces, then the mean over inputs of
    n_communities, modularity, layer_nmi, layer_nmi_chance, position_nmi and position_nmi_chance,
    each with X_low and X_high (95 % percentile bootstrap over inputs, `draws` draws with `seed`).
    Several traces of one input are averaged first; traces without a value are left out of it. NaN
    without a value, and intervals with one input.
    """
    keys = [str(name) for name in table.columns[: table.columns.get_loc("trace")]]
    input_of = dict(zip(traces["id"], traces["input"], strict=True))
    table = table.assign(input=[input_of[trace] for trace in table["trace"]])
    rows = []
    groups: Any = table.groupby([*keys, "resolution"], sort=False)
    for labels, own in groups:
        row = dict(zip([*keys, "resolution"], labels, strict=True))
        row |= {"n_inputs": own["input"].nunique(), "n_traces": len(own)}
        for name in ("n_communities", *_VALUES):
            there = own.loc[own[name].notna()]
            values = there[name].to_numpy(np.float64)[:, None]
            means = per_input(there["input"].tolist(), values)
            low, high = bootstrap_mean(means, draws, seed)
            row[name] = float(means.mean()) if len(means) else float("nan")
            row |= {f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}
        rows.append(row)
    columns = [*keys, "resolution", "n_inputs", "n_traces"]
    columns += [f"{x}{end}" for x in ("n_communities", *_VALUES) for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)


class Communities(NamedTuple):
    """table: what `modularity` returns. members: one row per state, trace and resolution: trace
    (id), resolution, level, position, community (0, 1, ... by first member)."""

    table: pd.DataFrame
    members: pd.DataFrame


def modularity_with_members(
    source: TraceSource,
    size: Size | float | str = 0.001,
    *,
    resolutions: Sequence[float] = (1.0,),
    seeds: int = SEEDS,
    workers: int = 1,
    progress: bool = False,
    **selection: Unpack[Selection],
) -> Communities:
    """`modularity`, and which community every state is in; arguments and errors as there."""
    run = _run(source, size, resolutions, seeds, selection, True)
    found = list(measured(*run.reading, workers, progress))
    members = []
    for row, values in found:
        n_nodes = len(values["level"])
        members += [
            pd.DataFrame(
                {
                    "trace": row["id"],
                    "resolution": resolution,
                    "level": values["level"],
                    "position": values["position"],
                    "community": values["community"][i * n_nodes : (i + 1) * n_nodes],
                }
            )
            for i, resolution in enumerate(run.resolutions)
        ]
    return Communities(_table(run, iter(found)), pd.concat(members, ignore_index=True))


class _Run(NamedTuple):
    """reading: the arguments of `measured` in front of workers; keys: columns `by:KEY`."""

    reading: tuple[TraceSource, pd.DataFrame, Size | float | str, Measure, bool]
    resolutions: list[float]
    keys: list[str]


def _run(source, size, resolutions, seeds, selection, members: bool) -> _Run:
    for resolution in resolutions:
        _check(resolution, seeds)
    traces = chosen_traces(source, selection, _COLUMNS)
    numbers = [float(x) for x in resolutions]
    params = {"resolutions": numbers, "seeds": seeds, "members": members}
    measure = Measure("modularity", 1, _partitions_of, params)
    special = read_selection(selection)["exclude_special"]
    return _Run((source, traces, size, measure, special), numbers, group_columns(traces))


def _table(run: _Run, found: Iterator[tuple[dict[str, Any], Values]]) -> pd.DataFrame:
    rows = [
        {
            "model": row["model"],
            **{key.removeprefix("by:"): row[key] for key in run.keys},
            "trace": row["id"],
            "input": row["name"],
            "n_nodes": int(values["n_nodes"][0]),
            "n_edges": int(values[N_EDGES][0]),
            "resolution": resolution,
            "n_communities": int(values["n_communities"][i]),
            **{name: float(values[name][i]) for name in _VALUES},
        }
        for row, values in found
        for i, resolution in enumerate(run.resolutions)
    ]
    return pd.DataFrame(rows)


_VALUES = ("modularity", "layer_nmi", "layer_nmi_chance", "position_nmi", "position_nmi_chance")


def _partitions_of(
    subgraph: SubGraph, resolutions: Sequence[float], seeds: int, members: bool
) -> Values:
    """n_nodes: int64 [1]; then one value for each resolution; with `members` also level, position:
    int64 [V], and community: int64 [resolutions * V]."""
    links = merge_parallel(subgraph, edge_weights(subgraph))
    level, position = np.divmod(links.nodes, subgraph.layout.n_tokens)
    layer = np.where(level > 0, subgraph.layout.layers_of(np.maximum(level, 1)) + 1, 0)
    partitions = [leiden(links, resolution, seeds) for resolution in resolutions]
    values = [
        {
            "modularity": found.modularity,
            **_alignment("layer", found.community, layer),
            **_alignment("position", found.community, position),
        }
        for found in partitions
    ]
    found = {
        "n_nodes": np.array([len(links.nodes)], np.int64),
        "n_communities": np.array([x.community.max() + 1 for x in partitions], np.int64),
        **{name: np.array([value[name] for value in values]) for name in _VALUES},
    }
    if members:
        community = np.concatenate([x.community for x in partitions])
        found |= {"level": level, "position": position, "community": community}
    return found


def _alignment(name: str, community: np.ndarray, label: np.ndarray) -> dict[str, float]:
    label = np.unique(label, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    shuffled = [mutual_information(rng.permutation(community), label) for _ in range(SHUFFLES)]
    return {
        f"{name}_nmi": mutual_information(community, label),
        f"{name}_nmi_chance": float(np.mean(shuffled)),
    }


def _check(resolution: float, seeds: int) -> None:
    if not 0 < resolution < float("inf"):
        raise OptionError(f"resolution {resolution} is not a positive number")
    if seeds < 1:
        raise OptionError(f"{seeds} seeds are none; take at least 1")
