"""Edge weights and collapsed edges: what every graph measure of a trace starts from.

Definitions, the same in every analysis. An edge points source -> target. Its weight is its score
divided by the sum of the scores of the *kept* edges into the same target (0 where that sum is
0), so the weights into a state add up to 1. Parallel edges (residual, heads and mlp between the
same two states) are summed where a measure is about states; we call the result a link.
"""

from typing import NamedTuple

import numpy as np

from graphtrace.subgraph import SubGraph


class Links(NamedTuple):
    """A sub-graph with parallel edges merged; V states, P links, E edges.

    nodes: int64 [V], node ids ascending, that is by (level, position). source, target: int64 [P],
    indices into `nodes`. weight: float64 [P], summed. link: int64 [E], the link of every edge.
    Links are in the order of their best edge's rank, so that a seeded algorithm always sees the
    same graph.
    """

    nodes: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    link: np.ndarray


def edge_weights(subgraph: SubGraph) -> np.ndarray:
    """float64 [edges]: score over the sum of scores of the kept edges into the same target."""
    score = np.asarray(subgraph.edges.score, np.float64)
    nodes, target = np.unique(subgraph.target_node, return_inverse=True)
    total = np.bincount(target, score, minlength=len(nodes))[target]
    return np.divide(score, total, out=np.zeros_like(score), where=total > 0)


def merge_parallel(subgraph: SubGraph, weight: np.ndarray) -> Links:
    """Sum `weight` (float64 [edges]) over the edges between the same two states."""
    nodes = subgraph.node_ids
    source = np.searchsorted(nodes, subgraph.source_node)
    target = np.searchsorted(nodes, subgraph.target_node)
    key, first, inverse = np.unique(
        source * len(nodes) + target, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    link = place[inverse]
    return Links(
        nodes,
        *np.divmod(key[order], len(nodes)),
        np.bincount(link, weight, minlength=len(key)),
        link,
    )


def core_numbers(links: Links) -> np.ndarray:
    """int64 [V]: the largest k such that a state is in the k-core: the largest part of the trace in
    which every state has links with at least k others. Links without direction or weight."""
    return np.array(link_graph(links, directed=False).coreness(), np.int64)


def link_graph(links: Links, directed: bool = True):
    """The links as a bare igraph.Graph: vertices by (level, position), edges by rank."""
    import igraph

    ends = zip(links.source.tolist(), links.target.tolist(), strict=True)
    return igraph.Graph(n=len(links.nodes), edges=ends, directed=directed)
