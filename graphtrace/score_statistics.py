"""How concentrated the scores of all edges are; computed while all edges are at hand."""

import numba
import numpy as np


@numba.njit(cache=True)
def mass_edges(offsets, score_E, share):
    """How many edges hold `share` of every node's score mass: per node the fewest incoming edges
    whose scores sum to at least `share` of the node's total, summed over nodes (method.md 5)."""
    n_edges = 0
    for node in range(len(offsets) - 1):
        scores = np.sort(score_E[offsets[node] : offsets[node + 1]])[::-1]
        goal = share * scores.astype(np.float64).sum()
        held = 0.0
        for score in scores:
            if held >= goal:
                break
            held += score
            n_edges += 1
    return n_edges
