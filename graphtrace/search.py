"""Searches: from one score per edge to one rank per edge (method.md 3).

best-first  the available edge with the highest score (paper, Algorithm 1); see ranking.py
flow        best-first by flow(e) = s(e) imp(target): what share of the mass of all paths runs
            through e; imp(output) = 1, imp(node) = the sum of flow over its outgoing edges
path        path by path, by the best product of scores over an embedding -> output path

Two edges that would tie in exact arithmetic shall tie here, and a product over a hundred levels
shall not vanish, so neither search keeps its values as plain floats. `flow` carries a float64 and
an exponent per node: one node may hold less than the smallest float64 beside another that holds
everything, so no common factor per level would do. `path` adds logarithms as integers on a fixed
grid: sums are exact, so a path has one value whichever edge it is looked at from.

Nodes and edges are numbered as in layout.py: a target's edges lie side by side, and a source's
number is smaller than its target's. E edges.
"""

import math

import numba
import numpy as np

from graphtrace.errors import OptionError
from graphtrace.layout import GraphLayout
from graphtrace.ranking import (
    best_first_by_key,
    best_first_ranks,
    heap_pop,
    heap_push,
    sort_descending,
    source_nodes,
)

SEARCHES = ("best-first", "flow", "path")

# Logarithms of path values: integers below 2**60 in size, NEVER for the logarithm of 0. What a sum
# with NEVER in it comes to lies at or below FLOOR.
NEVER = -(1 << 61)
FLOOR = -(1 << 60)
FLOAT32_LOG2_MAX = 150  # |log2| of any positive float32 is less


def rank_edges(layout: GraphLayout, score_E: np.ndarray, search: str = "best-first") -> np.ndarray:
    """int64 [E]: the rank of every edge, 0 first; a permutation of 0 ... E-1.

    score_E: float32, finite and not negative, in the canonical order of `layout`. search: one of
    `SEARCHES`. Equal values are taken first come, first served: the edge into the target that was
    reached first, then the smaller number. Edges that nothing but a score of 0 leads through come
    last. With `path`, a tie between ways down from one node goes to the best way on, then to the
    smaller number. Every prefix of `path` is a union of complete paths and at most one unfinished
    path that hangs from the output; every prefix of the others is connected to the output.

    Raises OptionError.
    """
    if search not in SEARCHES:
        raise OptionError(f"search {search!r} is none of {', '.join(SEARCHES)}")
    if search == "best-first":
        return best_first_ranks(layout, score_E)
    score_E = np.ascontiguousarray(score_E, np.float32)
    assert score_E.shape == (layout.n_edges,)
    assert np.isfinite(score_E).all()
    assert (score_E >= 0).all()
    if search == "flow":
        return best_first_by_key(layout, flow_keys(layout, score_E))
    return _path_ranks(layout, score_E)


def flow_keys(layout: GraphLayout, score_E: np.ndarray) -> np.ndarray:
    """int64 [E]: integers, not negative, that order as flow(e) does; 0 for no flow.

    A key is the flow's exponent followed by the leading bits of its float64 significand, as many
    as the exponents leave room for: of 52 bits, 48 at 64 levels and 46 at 256. Flows that differ
    by less are ties.
    """
    exponent_bits = _exponent_bits(layout)
    flow_E, exponent_V = _flow(layout.offsets, source_nodes(layout), score_E, layout.output)
    key_E = flow_E.view(np.int64)
    _to_keys(layout.offsets, exponent_V, key_E, exponent_bits, _lowest_exponent(layout))
    return key_E


def _lowest_exponent(layout: GraphLayout) -> int:
    """Below the base 2 exponent of any positive flow: float32 scores times each other."""
    return -FLOAT32_LOG2_MAX * layout.path_length


def _exponent_bits(layout: GraphLayout) -> int:
    """Bits that hold every exponent of a flow, counted from the lowest."""
    outgoing = layout.n_heads * layout.n_tokens + 2  # of one node, at most
    growth = FLOAT32_LOG2_MAX + outgoing.bit_length()
    return (layout.path_length * growth - _lowest_exponent(layout) + 1).bit_length()


@numba.njit(nogil=True, cache=True)
def _flow(offsets, source, score, output):
    """flow(e) = result[e] * 2**exponent[target(e)], from the output down."""
    n_nodes = len(offsets) - 1
    flow = np.zeros(len(source))
    importance = np.zeros(n_nodes)
    exponent = np.zeros(n_nodes, np.int64)
    importance[output] = 1.0
    for node in range(output, -1, -1):
        if importance[node] == 0:
            continue
        fraction, power = math.frexp(importance[node])
        exponent[node] += power
        here = exponent[node]
        for edge in range(offsets[node], offsets[node + 1]):
            if score[edge] == 0:
                continue
            # 2**-150 <= part < 2**128, so what ldexp rounds away below is nothing to the sum.
            part = fraction * np.float64(score[edge])
            flow[edge] = part
            u = source[edge]
            if importance[u] == 0:
                importance[u], exponent[u] = part, here
            elif exponent[u] == here:
                importance[u] += part
            elif exponent[u] > here:
                importance[u] += math.ldexp(part, here - exponent[u])
            else:
                importance[u] = math.ldexp(importance[u], exponent[u] - here) + part
                exponent[u] = here
    return flow, exponent


@numba.njit(nogil=True, cache=True)
def _to_keys(offsets, exponent, bits, exponent_bits, lowest):
    """Turn the bit patterns of `_flow` into keys, in place."""
    dropped = max(0, 52 - (63 - exponent_bits))
    for node in range(len(offsets) - 1):
        for edge in range(offsets[node], offsets[node + 1]):
            if bits[edge] != 0:
                power = (bits[edge] >> 52) - 1022 + exponent[node] - lowest
                significand = bits[edge] & ((1 << 52) - 1)
                bits[edge] = (power << (52 - dropped)) | (significand >> dropped)


def _path_ranks(layout: GraphLayout, score_E: np.ndarray) -> np.ndarray:
    source_E = source_nodes(layout)
    target_E = np.repeat(np.arange(layout.output + 1), np.diff(layout.offsets))
    fraction_bits = 60 - (FLOAT32_LOG2_MAX * layout.path_length).bit_length()
    log_E = _fixed_log2(score_E, fraction_bits)
    value_E, best_into_V = _path_values(layout.offsets, source_E, log_E, layout.output)
    listed = sort_descending(np.arange(layout.n_edges), value_E - NEVER, 62)
    listed = _by_target(layout.offsets, target_E, listed)
    return _walk_paths(layout.offsets, source_E, value_E, best_into_V, listed, layout.output)


@numba.njit(nogil=True, cache=True)
def _fixed_log2(score, fraction_bits):
    """log2 as integers, in units of 2**-fraction_bits; NEVER for 0.

    The significand's logarithm is rounded alone, so that scores whose ratio is a power of two
    differ by exactly that.
    """
    log = np.empty(len(score), np.int64)
    unit = 2.0**fraction_bits
    for edge in range(len(score)):
        if score[edge] > 0:
            significand, power = math.frexp(np.float64(score[edge]))
            log[edge] = (np.int64(power) << fraction_bits) + np.int64(
                np.rint(math.log2(significand) * unit)
            )
        else:
            log[edge] = NEVER
    return log


@numba.njit(nogil=True, cache=True)
def _add(a, b):
    total = a + b
    return total if total > FLOOR else NEVER


@numba.njit(nogil=True, cache=True)
def _path_values(offsets, source, log, output):
    """The value of the best complete path through every edge, and every node's best incoming edge.

    Among equal incoming edges the one with the smaller number; -1 for embeddings.
    """
    n_nodes = len(offsets) - 1
    value = np.empty(len(source), np.int64)
    up = np.zeros(n_nodes, np.int64)  # of the best path from an embedding
    best_into = np.full(n_nodes, -1, np.int64)
    for node in range(n_nodes):
        for edge in range(offsets[node], offsets[node + 1]):
            so_far = _add(up[source[edge]], log[edge])
            value[edge] = so_far
            if best_into[node] < 0 or so_far > up[node]:
                best_into[node], up[node] = edge, so_far
    down = np.full(n_nodes, NEVER, np.int64)  # of the best path to the output
    down[output] = 0
    for node in range(output, -1, -1):
        for edge in range(offsets[node], offsets[node + 1]):
            u = source[edge]
            down[u] = max(down[u], _add(log[edge], down[node]))
            value[edge] = _add(value[edge], down[node])
    return value, best_into


@numba.njit(nogil=True, cache=True)
def _by_target(offsets, target, listed):
    """`listed` with every target's edges side by side, where `offsets` has them; stable."""
    at = offsets[:-1].copy()
    grouped = np.empty_like(listed)
    for edge in listed:
        grouped[at[target[edge]]] = edge
        at[target[edge]] += 1
    return grouped


@numba.njit(nogil=True, cache=True)
def _walk_paths(offsets, source, value, best_into, listed, output):
    """Ranks, path by path. `listed`: every target's edges by descending value, side by side.

    The heap holds one edge per visited node, its best untaken one. From the source of the edge
    that leaves the heap the walk goes down along best incoming edges to an embedding or to a
    visited node. A visited node but the output has its own best incoming edge taken at once, so by
    induction a taken path leads from it to an embedding: what is taken after each walk is complete
    paths, whatever the values are.
    """
    n_nodes, n_edges = len(offsets) - 1, len(source)
    rank = np.full(n_edges, -1, np.int64)
    at = offsets[:-1].copy()
    order = np.empty(n_nodes, np.int64)  # visited nodes; tau is the place in it
    visited = np.zeros(n_nodes, np.bool_)
    heap = [(-value[listed[0]], np.int64(0), listed[0])]
    heap.pop()
    order[0], visited[output] = output, True
    _offer(heap, offsets, at, listed, rank, value, output, 0)
    n_visited, n_taken = 1, 0
    while len(heap) > 0:
        _, tau, edge = heap_pop(heap)
        rank[edge] = n_taken
        n_taken += 1
        _offer(heap, offsets, at, listed, rank, value, order[tau], tau)
        node = source[edge]
        while not visited[node] and best_into[node] >= 0:
            order[n_visited], visited[node] = node, True
            edge = best_into[node]
            rank[edge] = n_taken
            n_taken += 1
            _offer(heap, offsets, at, listed, rank, value, node, n_visited)
            n_visited += 1
            node = source[edge]
    return rank


@numba.njit(nogil=True, cache=True)
def _offer(heap, offsets, at, listed, rank, value, node, tau):
    """Put the best untaken edge into `node` on the heap, if there is one."""
    while at[node] < offsets[node + 1]:
        edge = listed[at[node]]
        at[node] += 1
        if rank[edge] < 0:
            heap_push(heap, (-value[edge], np.int64(tau), edge))
            return
