"""Best-first search on nodes instead of edges, straight from the per-layer tensors of scores.

ranking.py says why this is the same: call tau(v) the order in which nodes are visited and m_r the
priority of the edge that discovers the r-th node. An edge e into v is taken in the interval
q(e) = min{r > tau(v) : m_r <= priority of e}, or in the last one, where there is no such r; within
an interval the order is by descending priority. Here only the best edge between two nodes enters
the search for tau and m, so that runs on a graph n_heads times smaller, and the intervals of all
edges of a node are found by comparing its scores with a few thresholds: the running minima of m
after tau(v), the "chain" of v. Most edges lie below all of it, in the last interval.

A priority is (score, earlier tau(target), smaller index among the target's edges). For the edges of
one v that is a threshold on the score alone, at or just above the score of the m_r, unless m_r is
itself the score of several edges into v; such nodes are "slow" and looked at edge by edge.

Scores enter as the bits of float32, which order as the scores do. All edges into a node are copied
side by side into a small buffer: the attention edges head by head, each by source, then the
residual edge, then the mlp edge. The loops over it compare with one number at a time, in 32 bits,
because compilers turn that into vector instructions. Compiled code holds no interpreter lock.

Shape suffixes: G levels above the embedding, L layers, H heads, T target and S source tokens.
"""

from typing import NamedTuple

import numba
import numpy as np

from graphtrace.layout import GraphLayout
from graphtrace.ranking import heap_pop, heap_push
from graphtrace.scoring import Scores

INFINITE = 0x7F800000
"""Bits of the float32 infinity; those of a NaN are larger, or negative."""
BIN_BITS = 16
"""What leading bits, of which there are 15, leave open."""
NEVER = np.int32(0x7FFFFFFF)
"""A threshold that no score reaches."""


class Graph(NamedTuple):
    """What compiled code needs of a `GraphLayout`."""

    offsets: np.ndarray
    first_position: np.ndarray
    windows: np.ndarray
    parallel: bool
    n_tokens: int
    n_heads: int
    n_nodes: int
    most_incoming: int


class Bits(NamedTuple):
    """`Scores` as int32: the bits of each float."""

    residual_GT: np.ndarray
    mlp_LT: np.ndarray
    attention_LHTS: np.ndarray


class Visits(NamedTuple):
    """order: int64, node ids as visited. bits, into: int32, of the edge that discovered the r-th of
    them, its score and tau of its target. slow: bool, nodes whose edges are looked at one by one,
    filled by `count_intervals`."""

    order: np.ndarray
    bits: np.ndarray
    into: np.ndarray
    slow: np.ndarray


class Chain(NamedTuple):
    """r: the running minima of m after some visit, the last one first; their priorities rise.
    bits, into: as in `Visits`. below[b], up to the leading bits of the last: how many have leading
    bits below b."""

    r: np.ndarray
    bits: np.ndarray
    into: np.ndarray
    below: np.ndarray


def graph_of(layout: GraphLayout) -> Graph:
    """The arrays of a layout."""
    return Graph(
        offsets=layout.offsets,
        first_position=layout.first_position,
        windows=np.array([layout.window(i) for i in range(layout.n_layers)], np.int64),
        parallel=layout.parallel,
        n_tokens=layout.n_tokens,
        n_heads=layout.n_heads,
        n_nodes=layout.n_nodes,
        most_incoming=int(np.diff(layout.offsets).max()),
    )


def bits_of(layout: GraphLayout, scores: Scores) -> Bits:
    """The bits of the scores; a view where they are float32 and lie side by side."""
    n_layers, n_heads, n_tokens = layout.n_layers, layout.n_heads, layout.n_tokens
    # The compiled loops check no bounds.
    assert scores.residual_GT.shape == (layout.n_levels - 1, n_tokens)
    assert scores.mlp_LT.shape == (n_layers, n_tokens)
    assert scores.attention_LHTS.shape == (n_layers, n_heads, n_tokens, n_tokens)
    fields = (scores.residual_GT, scores.mlp_LT, scores.attention_LHTS)
    return Bits(*(np.ascontiguousarray(field, np.float32).view(np.int32) for field in fields))


def visit_nodes(graph: Graph, bits: Bits) -> Visits:
    """All nodes in the order of best-first search. Scores must be finite and not negative."""
    order, disc_bits, disc_into, low, high = _visit_nodes(graph, bits)
    assert low >= 0, "negative scores, or NaN"
    assert high < INFINITE, "scores that are infinite, or NaN"
    return Visits(order, disc_bits, disc_into, np.zeros(graph.n_nodes, np.bool_))


@numba.njit(nogil=True, cache=True)
def block_of(graph, node):
    """(level, token, layer, first source, number of sources, attention edges?, mlp edge?) of what
    enters a node above the embedding."""
    level, token = node // graph.n_tokens, node % graph.n_tokens
    layer = level - 1 if graph.parallel else (level - 1) // 2
    has_attention = graph.parallel or level % 2 == 1
    has_mlp = graph.parallel or level % 2 == 0
    first = max(0, token + 1 - graph.windows[layer]) if has_attention else token
    return level, token, layer, first, token + 1 - first, has_attention, has_mlp


@numba.njit(nogil=True, cache=True)
def load(graph, bits, node, x):
    """Copy the scores of the edges into `node` to x; how many they are. -0.0 becomes 0.0."""
    level, token, layer, first, n_sources, has_attention, has_mlp = block_of(graph, node)
    at = 0
    if has_attention:
        for head in range(graph.n_heads):
            row = bits.attention_LHTS[layer, head, token, first : token + 1]
            part = x[at : at + n_sources]
            for s in range(len(row)):
                part[s] = max(row[s], np.int32(0))
            at += n_sources
    x[at] = max(bits.residual_GT[level - 1, token], np.int32(0))
    if has_mlp:
        at += 1
        x[at] = max(bits.mlp_LT[layer, token], np.int32(0))
    return at + 1


@numba.njit(nogil=True, cache=True)
def index_in_node(graph, node, i):
    """The canonical index, among the edges into `node`, of the i-th that `load` copies."""
    _, _, _, _, n_sources, has_attention, _ = block_of(graph, node)
    n_attention = graph.n_heads * n_sources if has_attention else 0
    if i < n_attention:
        source = i % n_sources
        return source * graph.n_heads + i // n_sources + (1 if source == n_sources - 1 else 0)
    if i == n_attention:
        return max(0, n_attention - graph.n_heads)
    return i


@numba.njit(nogil=True, cache=True)
def _best_by_source(graph, bits, node, best):
    """best[s]: the highest score of the edges from the s-th source, for all of them; returns the
    smallest bits of any of them but those of -0.0."""
    level, token, layer, first, n_sources, has_attention, has_mlp = block_of(graph, node)
    minus_zero = np.int32(-(2**31))
    row_best = best[:n_sources]
    row_best[:] = 0
    low = np.int32(0)
    if has_attention:
        for head in range(graph.n_heads):
            row = bits.attention_LHTS[layer, head, token, first : token + 1]
            for s in range(len(row)):
                value = row[s] if row[s] != minus_zero else np.int32(0)
                row_best[s] = max(row_best[s], value)
                low = min(low, value)
    own = bits.residual_GT[level - 1, token]
    own = own if own != minus_zero else np.int32(0)
    low, row_best[n_sources - 1] = min(low, own), max(row_best[n_sources - 1], own)
    if has_mlp:
        own = bits.mlp_LT[layer, token]
        own = own if own != minus_zero else np.int32(0)
        low, row_best[n_sources - 1] = min(low, own), max(row_best[n_sources - 1], own)
    return low


@numba.njit(nogil=True, cache=True)
def _visit_nodes(graph, bits):
    """Prim on nodes. See `Visits`; and the smallest and largest bits of all scores.

    The heap holds, per undiscovered node, the best available edge from it; older entries are
    dropped when they come up. Equal scores: the earlier target, then the smaller source.
    """
    n_tokens = graph.n_tokens
    n_ids = len(graph.offsets) - 1
    tau = np.full(n_ids, -1, np.int64)
    best = np.full(n_ids, -1, np.int64)
    order = np.empty(graph.n_nodes, np.int64)
    disc_bits = np.zeros(graph.n_nodes, np.int32)
    disc_into = np.zeros(graph.n_nodes, np.int32)
    from_source = np.empty(n_tokens, np.int32)
    heap = [(np.int64(0), np.int64(0))]
    heap.pop()
    low, high = np.int32(0), np.int32(0)
    node, n_visited = np.int64(n_ids - 1), np.int64(0)
    while True:
        tau[node] = n_visited
        order[n_visited] = node
        if node >= n_tokens:
            low = min(low, _best_by_source(graph, bits, node, from_source))
            n_sources = block_of(graph, node)[4]
            first_source = node - n_tokens - (n_sources - 1)
            for s in range(n_sources):
                high = max(high, from_source[s])
                u = first_source + s
                if tau[u] < 0:
                    # Among equals the target that was visited earlier wins.
                    key = (np.int64(from_source[s]) << 32) | (0xFFFFFFFF - n_visited)
                    if key > best[u]:
                        best[u] = key
                        heap_push(heap, (-key, u))
        n_visited += 1
        found = False
        while len(heap) > 0 and not found:
            negative_key, u = heap_pop(heap)
            if tau[u] < 0:
                disc_bits[n_visited] = -negative_key >> 32
                disc_into[n_visited] = 0xFFFFFFFF - (-negative_key & 0xFFFFFFFF)
                node, found = u, True
        if not found:
            return order[:n_visited], disc_bits, disc_into, low, high


@numba.njit(nogil=True, cache=True)
def empty_chain(visits):
    """The chain of the node that is visited last, with room for that of any."""
    n = len(visits.order)
    below = np.empty((1 << (31 - BIN_BITS)) + 1, np.int32)
    return Chain(np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32), below)


@numba.njit(nogil=True, cache=True)
def grow_chain(visits, visit, chain, size):
    """Make the chain of the node visited before from that of the node `visit`; its new size."""
    if visit == 0:
        return size
    bits, into = visits.bits[visit], visits.into[visit]
    while size > 0:
        # Of two discoveries into one target by equal scores the later has the larger index.
        above = chain.bits[size - 1] > bits
        if not above and not (chain.bits[size - 1] == bits and chain.into[size - 1] < into):
            break
        size -= 1
    chain.r[size], chain.bits[size], chain.into[size] = visit, bits, into
    first = (chain.bits[size - 1] >> BIN_BITS) + 1 if size > 0 else 0
    chain.below[first : (bits >> BIN_BITS) + 1] = size
    return size + 1


@numba.njit(nogil=True, cache=True)
def thresholds_of(visit, chain, size, threshold):
    """threshold[j] for j < size: an edge into the node of `visit` has at least the priority of
    m_chain.r[j] iff its bits are at least that, slow nodes aside. threshold[size] = NEVER."""
    bits, into, own = chain.bits[:size], chain.into[:size], np.int32(visit)
    part = threshold[:size]
    for j in range(len(part)):
        part[j] = bits[j] + np.int32(own > into[j])
    threshold[size] = NEVER


@numba.njit(nogil=True, cache=True)
def n_reached(chain, size, threshold, value):
    """How many of the ascending threshold[:size] are not above value."""
    if size == 0:
        return 0
    leading, highest = value >> BIN_BITS, chain.bits[size - 1] >> BIN_BITS
    if leading > highest:
        return size
    low = chain.below[leading]
    high = chain.below[leading + 1] if leading < highest else size
    while low < high:
        middle = (low + high) >> 1
        if threshold[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True)
def _is_slow(visit, chain, size, values):
    """Whether a discovery on the chain shares its target and its score with another edge."""
    for j in range(size):
        if chain.into[j] == visit:
            bits, n_equal = chain.bits[j], np.int32(0)
            for i in range(len(values)):
                n_equal = np.int32(n_equal + np.int32(values[i] == bits))
            if n_equal > 1:
                return True
    return False


@numba.njit(nogil=True, cache=True)
def intervals_one_by_one(graph, visits, visit, chain, size, threshold, x, n, interval):
    """interval[i] = q of the i-th edge into the node of `visit`, ties included."""
    node = visits.order[visit]
    for i in range(n):
        reached = n_reached(chain, size, threshold, x[i])
        while reached > 0:
            j = reached - 1
            if chain.into[j] != visit or chain.bits[j] != x[i]:
                break
            # As high as a discovery into this very node: reached only up to its index.
            index = _index_of_discovery(graph, visits, node, chain.r[j], x)
            if index_in_node(graph, node, i) <= index:
                break
            reached -= 1
        interval[i] = chain.r[reached - 1] if reached > 0 else len(visits.order)


@numba.njit(nogil=True, cache=True)
def _index_of_discovery(graph, visits, node, r, x):
    """The index of the edge into `node` that discovered the r-th node: the smallest of those from
    it with that score."""
    _, _, _, first, n_sources, has_attention, _ = block_of(graph, node)
    s = visits.order[r] % graph.n_tokens - first
    n_attention = graph.n_heads * n_sources if has_attention else 0
    if s == n_sources - 1 and x[n_attention] == visits.bits[r]:
        return index_in_node(graph, node, n_attention)
    for i in range(s, n_attention, n_sources):
        if x[i] == visits.bits[r]:
            return index_in_node(graph, node, i)
    return n_attention + 1


@numba.njit(nogil=True, cache=True)
def count_intervals(graph, bits, visits):
    """int64 [n_nodes + 2]: how many edges are taken before interval q, for q = 0 ... n_nodes + 1.

    Interval n_nodes is the last. Fills `visits.slow`.
    """
    last = len(visits.order)
    count = np.zeros(last + 2, np.int64)
    chain, size = empty_chain(visits), 0
    threshold = np.empty(last + 1, np.int32)
    x, high = np.empty(graph.most_incoming, np.int32), np.empty(graph.most_incoming, np.int32)
    interval = np.empty(graph.most_incoming, np.int64)
    for visit in range(last - 1, -1, -1):
        node = visits.order[visit]
        if node >= graph.n_tokens:
            n = load(graph, bits, node, x)
            thresholds_of(visit, chain, size, threshold)
            visits.slow[visit] = _is_slow(visit, chain, size, x[:n])
            if visits.slow[visit]:
                intervals_one_by_one(graph, visits, visit, chain, size, threshold, x, n, interval)
                for i in range(n):
                    count[interval[i] + 1] += 1
            else:
                # Most edges are taken in the last interval.
                n_high, bottom = 0, threshold[0]
                for i in range(n):
                    high[n_high] = x[i]
                    n_high += np.int64(x[i] >= bottom)
                count[last + 1] += n - n_high
                for i in range(n_high):
                    count[chain.r[n_reached(chain, size, threshold, high[i]) - 1] + 1] += 1
        size = grow_chain(visits, visit, chain, size)
    for q in range(last + 1):
        count[q + 1] += count[q]
    return count
