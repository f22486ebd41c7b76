"""Slow, plain implementations that the fast ones are compared with."""

import heapq

import numpy as np


def best_first(offsets, source_node, score, output):
    """Greedy best-first order with a heap over edges (paper, Algorithm 1).

    offsets: edges into node v are offsets[v] ... offsets[v+1]-1; source_node: [E] node ids; score:
    [E]. Ties: first come, first served. Returns rank int64 [E].
    """
    rank = np.full(len(score), -1, np.int64)
    visited, heap, arrivals = {output}, [], 0

    def open_node(node):
        nonlocal arrivals
        for edge in range(offsets[node], offsets[node + 1]):
            heapq.heappush(heap, (-float(score[edge]), arrivals, edge))
            arrivals += 1

    open_node(output)
    taken = 0
    while heap:
        _, _, edge = heapq.heappop(heap)
        rank[edge] = taken
        taken += 1
        source = int(source_node[edge])
        if source not in visited:
            visited.add(source)
            open_node(source)
    return rank
