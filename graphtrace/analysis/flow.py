"""Path flow: which share of a trace's complete paths runs through an edge or a state.

Walk from the output against the edges, at every state choosing an incoming edge by its weight
(weights.py). The probability of a walk is the product of its weights: the mass of that path.
Only walks that arrive at an embedding are complete paths; a state at a higher level without kept
incoming edges is a dead end, and under a greedy search many states are. We therefore condition on
arriving: mass that would leak at dead ends is shared out over the complete paths in proportion.

    reach(v) = 1 at an embedding, else sum of weight(e) reach(source(e)) over edges e into v
    step(e)  = weight(e) reach(source) / reach(target)
    flow(e)  = step(e) flow(target),   flow(output) = 1,   flow(v) = sum of flow(e) out of v

flow(e) is the mass of the complete paths through e over the mass of all complete paths. It adds up
to exactly 1 over the edges into any one level. Without a complete path every flow is 0.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from graphtrace.subgraph import SubGraph


class PathFlow(NamedTuple):
    """Flow of every edge (float64 [edges], in rank order) and of every state (float64 [states],
    in the order of `SubGraph.node_ids`); `complete`: the mass of all complete paths, 0 ... 1, that
    is the probability that the unconditioned walk does not end in a dead end."""

    edge: np.ndarray
    node: np.ndarray
    complete: float


def path_flow(subgraph: SubGraph, weight: np.ndarray) -> PathFlow:
    """Path flow of a sub-graph under edge weights (float64 [edges], `weights.edge_weights`)."""
    nodes = subgraph.node_ids
    source = np.searchsorted(nodes, subgraph.source_node)
    target = np.searchsorted(nodes, subgraph.target_node)
    order = np.argsort(subgraph.edges.level, kind="stable")  # from the embeddings up
    bounds = np.searchsorted(
        subgraph.edges.level[order], np.arange(1, subgraph.layout.n_levels + 1)
    )
    embedding = nodes < subgraph.layout.n_tokens
    output = int(np.searchsorted(nodes, subgraph.layout.output))
    edge, node, log_mass = _flow(
        order, bounds, source, target, np.asarray(weight, np.float64), embedding, output
    )
    return PathFlow(edge, node, float(np.exp(log_mass)))


@njit(cache=True)
def _flow(order, bounds, source, target, weight, embedding, output):
    reach = np.where(embedding, 1.0, 0.0)
    log_scale = 0.0
    for level in range(len(bounds) - 1):
        edges = order[bounds[level] : bounds[level + 1]]
        largest = 0.0
        for e in edges:
            reach[target[e]] += weight[e] * reach[source[e]]
        for e in edges:
            largest = max(largest, reach[target[e]])
        # Only ratios within one level matter: a common factor keeps deep products from vanishing.
        # Each target is divided once, marked by its negative sign until all edges were seen.
        if largest > 0.0:
            for e in edges:
                if reach[target[e]] > 0.0:
                    reach[target[e]] *= -1.0 / largest
            for e in edges:
                reach[target[e]] = abs(reach[target[e]])
            log_scale += np.log(largest)
    flow = np.zeros(len(reach))
    through = np.zeros(len(weight))
    if reach[output] == 0.0:
        return through, flow, -np.inf
    flow[output] = 1.0
    arriving = np.zeros(len(reach))
    for level in range(len(bounds) - 2, -1, -1):
        edges = order[bounds[level] : bounds[level + 1]]
        for e in edges:
            through[e] = weight[e] * reach[source[e]]
            arriving[target[e]] += through[e]
        # dividing by what arrives, rather than by reach, cancels the level's factor
        for e in edges:
            if through[e] > 0.0:
                through[e] = through[e] / arriving[target[e]] * flow[target[e]]
                flow[source[e]] += through[e]
    return through, flow, np.log(reach[output]) + log_scale
