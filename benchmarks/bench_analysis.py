"""How long each graph measure takes on one trace of about 13,000 edges.

The trace is made up (random scores, true best-first ranks) with the shape of a full-size model:
32 layers, 32 heads, 50 tokens, 1,271,053 edges. 12,710 edges are 1 % of it.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.timing import seconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from graphtrace import schema
from graphtrace.analysis import centrality, core, flow, modularity, weights
from graphtrace.export import export_gephi, export_graphml
from graphtrace.layout import GraphLayout
from graphtrace.subgraph import SubGraph


def made_up_trace(n_edges: int) -> SubGraph:
    """The best-first trace of n_edges edges over random scores, residuals strongest."""
    from oracles import best_first

    layout = GraphLayout(50, 32, 32)
    columns, n = layout.columns, layout.n_tokens
    rng = np.random.default_rng(0)
    weight = rng.gamma(0.3, size=layout.n_edges)
    weight[columns.kind == schema.RESIDUAL] *= 200
    target = columns.level.astype(np.int64) * n + columns.target
    total = np.bincount(target, weight, minlength=layout.n_levels * n)
    score = (weight / total[target]).astype(np.float32)
    source = (columns.level.astype(np.int64) - 1) * n + columns.source
    rank = best_first(layout.offsets, source, score, layout.output)
    return SubGraph(
        trace="t0",
        model="made-up@0",
        layout=layout,
        token_ids=np.arange(n, dtype=np.int32),
        tokens=[f" w{i}" for i in range(n)],
        special=np.zeros(n, bool),
        edges=columns._replace(score=score).take(np.argsort(rank)[:n_edges]),
        rank=np.arange(n_edges),
    )


def measures(subgraph: SubGraph, folder: Path):
    """(name, function without arguments) of everything that is timed."""
    weight = weights.edge_weights(subgraph)
    links = weights.merge_parallel(subgraph, weight)
    last = len(links.nodes) - 1
    cores = np.random.default_rng(0).random((1000, 1120)) < 0.3
    return [
        ("edge weights", lambda: weights.edge_weights(subgraph)),
        ("merge parallel edges", lambda: weights.merge_parallel(subgraph, weight)),
        ("path flow", lambda: flow.path_flow(subgraph, weight)),
        ("PageRank", lambda: centrality.pagerank(links, last)),
        ("betweenness", lambda: weights.link_graph(links).betweenness()),
        ("edge betweenness", lambda: weights.link_graph(links).edge_betweenness()),
        ("component centrality, all measures", lambda: centrality.component_values(subgraph)),
        ("node centrality, all measures", lambda: centrality.node_centrality(subgraph)),
        ("Leiden, one seed", lambda: modularity.leiden(links, seeds=1)),
        ("Leiden, best of 5", lambda: modularity.leiden(links)),
        ("GEXF", lambda: export_gephi(subgraph, folder / "g.gexf")),
        ("GEXF, collapsed", lambda: export_gephi(subgraph, folder / "c.gexf", collapse=True)),
        ("GraphML", lambda: export_graphml(subgraph, folder / "g.graphml")),
        ("1,000 cores: pairwise Jaccard", lambda: core.overlap(cores, np.arange(1000))),
        ("1,000 cores: stability", lambda: core.stability(cores)),
    ]


def tables(n_edges: int = 12_710, rounds: int = 5) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    subgraph, rows = made_up_trace(n_edges), []
    with tempfile.TemporaryDirectory() as folder:
        for name, call in measures(subgraph, Path(folder)):
            call()  # compiles and warms up
            times = [seconds(call) for _ in range(rounds)]
            rows.append({"measure": name, "median_ms": 1000 * statistics.median(times)})
    return {f"Analysis of one trace of {n_edges:,} edges": pd.DataFrame(rows)}
