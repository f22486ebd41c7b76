"""Where nested best-first traces end, by how many edges they hold.

The trace of the k first edges ends inside one interval q (intervals.py): it holds all edges of the
intervals before and so many of the best of q. So an edge into v is in it iff its priority is at
least one threshold theta(v, k), the lower of two: the running minimum of m between tau(v) and q,
and, where v has edges in q, the priority of the last edge taken there. That one is among few edges,
the candidates: those of q that share their leading 15 bits with it, found by a histogram, or all of
q where that is small.

Shape suffixes: P traces; B intervals with a histogram.
"""

from typing import NamedTuple

import numba
import numpy as np

from graphtrace.intervals import (
    BIN_BITS,
    NEVER,
    Bits,
    Graph,
    Visits,
    empty_chain,
    grow_chain,
    intervals_one_by_one,
    load,
    thresholds_of,
)

N_BINS = 1 << (31 - BIN_BITS)
"""Of the histogram of an interval."""
SMALL = 64
"""An interval with less than 1/SMALL of all edges gets no histogram."""


class Ends(NamedTuple):
    """Where each trace ends. Edges of its interval q whose score bits are below `low` are out,
    those of at least `high` are in; between them lie its candidates, `need` of them are in.

    Traces with the same q and low share their candidates; `stop` is the first trace after them.
    """

    q: np.ndarray
    low: np.ndarray
    high: np.ndarray
    need: np.ndarray
    n_candidates: np.ndarray
    stop: np.ndarray


def find_ends(
    graph: Graph, bits: Bits, visits: Visits, before: np.ndarray, k_P: np.ndarray
) -> Ends:
    """The ends of the traces of the first k_P edges, ascending; before: from `count_intervals`."""
    last, n_edges = graph.n_nodes, int(before[-1])
    q_P = np.searchsorted(before, k_P, side="right") - 1  # the last with before[q] <= k
    q_P = np.where(k_P >= n_edges, last + 1, np.maximum(q_P, 0))
    inside_P = np.where(k_P >= n_edges, 0, np.maximum(k_P - before[q_P], 0))
    n_inside = np.diff(before, append=n_edges)
    low_P = np.where(inside_P > 0, 0, NEVER).astype(np.int32)
    high_P = np.full(len(k_P), NEVER, np.int32)
    need_P = inside_P
    n_candidates = np.where(inside_P > 0, n_inside[q_P], 0)

    big = np.unique(q_P[(n_candidates * SMALL > n_edges)])
    if len(big):
        histogram = _histograms(graph, bits, visits, big)
        at_least = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]  # edges in this bin or above
        for p in np.flatnonzero(np.isin(q_P, big) & (inside_P > 0)):
            row = at_least[np.searchsorted(big, q_P[p])]
            bin_ = int(np.searchsorted(-row, -inside_P[p], side="right")) - 1
            low_P[p], high_P[p] = bin_ << BIN_BITS, (bin_ + 1) << BIN_BITS
            need_P[p] = inside_P[p] - row[bin_ + 1]
            n_candidates[p] = row[bin_] - row[bin_ + 1]
    # Traces end in ascending q and descending bins, so equal ones are side by side.
    alone = n_candidates == 0
    is_new = np.ones(len(k_P) + 1, np.bool_)
    is_new[1:-1] = alone[1:] | alone[:-1] | (np.diff(q_P) != 0) | (np.diff(low_P) != 0)
    starts = np.flatnonzero(is_new)
    stop_P = np.repeat(starts[1:], np.diff(starts))
    return Ends(q_P, low_P, high_P, need_P, n_candidates, stop_P)


@numba.njit(nogil=True, cache=True)
def _histograms(graph, bits, visits, big):
    """int64 [B, bins + 1]: how many edges of the intervals `big` there are by leading bits."""
    histogram = np.zeros((len(big), N_BINS + 1), np.int64)
    last = len(visits.order)
    chain, size = empty_chain(visits), 0
    threshold = np.empty(last + 1, np.int32)
    x = np.empty(graph.most_incoming, np.int32)
    interval = np.empty(graph.most_incoming, np.int64)
    place = np.zeros(last, np.int64)  # on the chain, of what is on it
    for visit in range(last - 1, -1, -1):
        node = visits.order[visit]
        n = 0
        for row in range(len(big)):
            q = big[row]
            j = -1 if q == last else place[q]
            if node < graph.n_tokens or (q < last and not (j < size and chain.r[j] == q)):
                continue
            if n == 0:
                n = load(graph, bits, node, x)
                thresholds_of(visit, chain, size, threshold)
                if visits.slow[visit]:
                    intervals_one_by_one(
                        graph, visits, visit, chain, size, threshold, x, n, interval
                    )
            if visits.slow[visit]:
                for i in range(n):
                    if interval[i] == q:
                        histogram[row, x[i] >> BIN_BITS] += 1
            else:
                low = threshold[j] if j >= 0 else np.int32(0)
                _add_histogram(x[:n], low, threshold[j + 1], histogram[row])
        size = grow_chain(visits, visit, chain, size)
        place[visit] = size - 1
    return histogram


@numba.njit(nogil=True, cache=True)
def _add_histogram(values, low, high, histogram):
    # Without a branch, which would be guessed wrong too often; the last bin takes the others.
    for i in range(len(values)):
        inside = (values[i] >= low) & (values[i] < high)
        histogram[values[i] >> BIN_BITS if inside else N_BINS] += 1
    histogram[N_BINS] = 0


@numba.njit(nogil=True, cache=True)
def cuts_of(ends, chain, threshold, last, p, j):
    """(low, high): which bits of edges into a node make them candidates of trace p; those above
    are in it and those below aren't. j: how many of the node's chain are at or after its end."""
    q = ends.q[p]
    minimum = threshold[j]  # of m between tau and q; `NEVER` where there is none
    if q > last:  # all edges
        return np.int32(0), np.int32(0)
    if j > 0 and chain.r[j - 1] == q:
        bottom = threshold[j - 1]
    elif j == 0 and q == last:
        bottom = np.int32(0)
    else:  # the node has no edges in q
        return minimum, minimum
    high = max(min(minimum, ends.high[p]), bottom)
    return min(high, max(bottom, ends.low[p])), high


@numba.njit(nogil=True, cache=True)
def follow_chain(q_P, visit, size, chain_end_P):
    """Keep, after `grow_chain`, how many on the chain are at or after each q."""
    for p in range(len(q_P)):
        # A chain that grew lost what was on top; the new one is before q.
        chain_end_P[p] = size if visit >= q_P[p] else min(chain_end_P[p], size - 1)
