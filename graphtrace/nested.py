"""Nested best-first traces without a full ranking: which trace of a grid is the first to hold each
edge, and the first k edges in order. Exactly what ranking.py gives, ties included.

An edge into a node is in a trace iff its priority is at least one threshold per node and trace
(intervals.py, trace_ends.py); where that is known only within a range, the edges in the range are
the trace's candidates, and the best of them are selected.

Shape suffixes as in intervals.py; P grid points, C candidates, K edges kept.
"""

import numba
import numpy as np

from graphtrace.intervals import (
    NEVER,
    bits_of,
    block_of,
    count_intervals,
    empty_chain,
    graph_of,
    grow_chain,
    index_in_node,
    intervals_one_by_one,
    load,
    n_reached,
    thresholds_of,
    visit_nodes,
)
from graphtrace.layout import GraphLayout
from graphtrace.scoring import Scores
from graphtrace.trace_ends import cuts_of, find_ends, follow_chain

NO_BUCKET = 255
"""Where there is no edge."""
EDGE_BITS = 32
"""Bits of an edge's number in a record, below the 31 of its score."""
EDGE_MASK = (1 << EDGE_BITS) - 1


def nested_buckets(layout: GraphLayout, scores: Scores, k_P) -> Scores:
    """The first grid point whose trace holds each edge, for best-first search.

    scores: float32, finite and not negative wherever there is an edge. k_P: ascending integers,
    how many edges each trace holds; fewer than 255, duplicates allowed.

    Returns uint8 tensors of the shapes of `scores`: p where the edge is among the first k_P[p]
    edges and not among the first k_P[p-1], len(k_P) where it is in no trace, 255 where there is no
    edge. Compiled code runs without the interpreter's lock.
    """
    k_P = np.asarray(k_P, np.int64)
    assert len(k_P) < NO_BUCKET
    assert (np.diff(k_P) >= 0).all()
    graph, bits = graph_of(layout), bits_of(layout, scores)
    visits = visit_nodes(graph, bits)
    before = count_intervals(graph, bits, visits)
    ends = find_ends(graph, bits, visits, before, k_P)

    fields = (scores.residual_GT, scores.mlp_LT, scores.attention_LHTS)
    starts = np.cumsum([0, *(field.size for field in fields)])
    flat = np.full(starts[-1], NO_BUCKET, np.uint8)
    own = ends.n_candidates[np.flatnonzero(np.diff(ends.stop, prepend=-1))]
    total = int(own.sum())
    bits_C, priority_C, place_C = np.empty(total, np.int32), *np.empty((2, total), np.int64)
    start_P = _fill_buckets(graph, bits, visits, ends, flat, starts, bits_C, priority_C, place_C)
    for p in np.flatnonzero(np.diff(ends.stop, prepend=-1)):
        group = slice(start_P[p], start_P[p] + ends.n_candidates[p])
        bucket = np.full(ends.n_candidates[p], p, np.uint8)
        for need in ends.need[p : ends.stop[p]]:
            bucket += ~best_of(bits_C[group], priority_C[group], need)
        flat[place_C[group]] = bucket
    residual, mlp, attention = (
        flat[start:stop].reshape(field.shape)
        for start, stop, field in zip(starts, starts[1:], fields, strict=False)
    )
    return Scores(residual_GT=residual, mlp_LT=mlp, attention_LHTS=attention)


def top_edges(layout: GraphLayout, scores: Scores, k: int) -> np.ndarray:
    """int64 [K]: the canonical numbers of the first k edges of best-first search, in order.

    scores: as in `nested_buckets`. k: from 0 to all edges, which is the full ranking.
    """
    assert 0 <= k <= layout.n_edges < EDGE_MASK
    graph, bits = graph_of(layout), bits_of(layout, scores)
    visits = visit_nodes(graph, bits)
    before = count_intervals(graph, bits, visits)
    ends = find_ends(graph, bits, visits, before, np.array([k]))
    # A record per edge, interval by interval; of the interval where the trace ends, those of the
    # edges that are in or candidates.
    q = int(ends.q[0])
    in_last = k - before[min(q, graph.n_nodes + 1)] - ends.need[0] + ends.n_candidates[0]
    starts = np.append(before[: q + 1], before[min(q, graph.n_nodes + 1)] + in_last)
    records = np.empty(starts[-1], np.int64)
    _collect(graph, bits, visits, ends, starts[1:].copy(), records)
    sort_records(records, starts)
    edges = records[:k]
    edges &= EDGE_MASK
    return edges


def best_of(bits_C: np.ndarray, priority_C: np.ndarray, need: int) -> np.ndarray:
    """bool [C]: the `need` candidates with the highest bits; among equals the lower priority_C."""
    if need >= len(bits_C):
        return np.ones(len(bits_C), np.bool_)
    if need <= 0:
        return np.zeros(len(bits_C), np.bool_)
    bar = np.partition(bits_C, len(bits_C) - need)[len(bits_C) - need]
    best = bits_C > bar
    need -= int(np.count_nonzero(best))
    equal = np.flatnonzero(bits_C == bar)
    order = priority_C[equal]
    best[equal[order <= np.partition(order, need - 1)[need - 1]]] = True
    return best


@numba.njit(nogil=True, cache=True)
def _fill_buckets(graph, bits, visits, ends, flat, starts, bits_C, priority_C, place_C):
    """Buckets of all edges but the candidates; those are listed, trace by trace.

    priority_C: ascends with tau(target), then with the index among the target's edges. place_C:
    index in flat. Returns int64 [P]: where the candidates of each trace start.
    """
    last, n_points = len(visits.order), len(ends.q)
    chain, size = empty_chain(visits), 0
    chain_end_P = np.zeros(n_points, np.int64)
    threshold = np.empty(last + 1, np.int32)
    x = np.empty(graph.most_incoming, np.int32)
    interval = np.empty(graph.most_incoming, np.int64)
    room = (graph.most_incoming + 7) // 8 * 8
    bucket, is_candidate = np.zeros(room, np.uint8), np.zeros(room, np.uint8)
    words = is_candidate.view(np.uint64)
    cut, weight = np.empty(n_points + 4, np.int32), np.empty(n_points + 4, np.uint8)
    low, high = np.empty(n_points, np.int32), np.empty(n_points, np.int32)
    of_trace = np.empty(n_points, np.int64)
    start_P = np.zeros(n_points, np.int64)
    at_P, p, total = np.zeros(n_points, np.int64), 0, 0
    while p < n_points:
        start_P[p : ends.stop[p]], at_P[p] = total, total
        total += ends.n_candidates[p]
        p = ends.stop[p]
    for visit in range(last - 1, -1, -1):
        node = visits.order[visit]
        if node >= graph.n_tokens:
            n = load(graph, bits, node, x)
            thresholds_of(visit, chain, size, threshold)
            is_candidate[: (n + 7) // 8 * 8] = 0
            if visits.slow[visit]:
                intervals_one_by_one(graph, visits, visit, chain, size, threshold, x, n, interval)
                for i in range(n):
                    p = np.searchsorted(ends.q, interval[i])
                    while p < n_points and ends.q[p] == interval[i] and x[i] < ends.low[p]:
                        p += 1
                    bucket[i] = p
                    if p < n_points and ends.q[p] == interval[i] and x[i] < ends.high[p]:
                        at = at_P[p]
                        at_P[p] += 1
                        bits_C[at] = x[i]
                        index, place_C[at] = _locate(graph, starts, node, i)
                        priority_C[at] = visit * graph.most_incoming + index
            else:
                ncuts_of, n_ranges, n_without, p = 0, 0, 0, 0
                highest = _highest(x[:n])
                while p < n_points:
                    low_p, high_p = cuts_of(ends, chain, threshold, last, p, chain_end_P[p])
                    if low_p > highest:
                        n_without += ends.stop[p] - p
                        p = ends.stop[p]
                        continue
                    if ncuts_of == 0 or cut[ncuts_of - 1] != low_p:
                        cut[ncuts_of], weight[ncuts_of] = low_p, 0
                        ncuts_of += 1
                    weight[ncuts_of - 1] += ends.stop[p] - p
                    if low_p < high_p:
                        low[n_ranges], high[n_ranges], of_trace[n_ranges] = low_p, high_p, p
                        n_ranges += 1
                    p = ends.stop[p]
                cut[ncuts_of : ncuts_of + 4], weight[ncuts_of : ncuts_of + 4] = 0, 0
                _add_weights(x[:n], cut, weight, ncuts_of, n_without, bucket[:n])
                for r in range(n_ranges):
                    _mark(x[:n], low[r], high[r], is_candidate[:n])
                for word in range((n + 7) // 8 if n_ranges > 0 else 0):
                    if words[word] == 0:
                        continue
                    for i in range(8 * word, min(8 * word + 8, n)):
                        if is_candidate[i]:
                            r = 0
                            while x[i] < low[r]:
                                r += 1
                            at = at_P[of_trace[r]]
                            at_P[of_trace[r]] += 1
                            bits_C[at] = x[i]
                            index, place_C[at] = _locate(graph, starts, node, i)
                            priority_C[at] = visit * graph.most_incoming + index
            _store(graph, starts, node, bucket, flat)
        size = grow_chain(visits, visit, chain, size)
        follow_chain(ends.q, visit, size, chain_end_P)
    return start_P


@numba.njit(nogil=True, cache=True)
def _highest(values):
    highest = np.int32(0)
    for i in range(len(values)):
        highest = max(highest, values[i])
    return highest


@numba.njit(nogil=True, cache=True)
def _add_weights(values, cut, weight, ncuts_of, start, bucket):
    """bucket[i] = start + the sum of the weights of the cuts above values[i]."""
    bucket[:] = start
    zero = np.uint8(0)
    for j in range(0, ncuts_of, 4):
        c0, c1, c2, c3 = cut[j], cut[j + 1], cut[j + 2], cut[j + 3]
        w0, w1, w2, w3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        for i in range(len(values)):
            value = values[i]
            first = (w0 if value < c0 else zero) + (w1 if value < c1 else zero)
            second = (w2 if value < c2 else zero) + (w3 if value < c3 else zero)
            bucket[i] = np.uint8(bucket[i] + np.uint8(first) + np.uint8(second))


@numba.njit(nogil=True, cache=True)
def _mark(values, low, high, marks):
    """marks[i] = 1 where low <= values[i] < high."""
    for i in range(len(values)):
        marks[i] |= np.uint8(values[i] >= low) & np.uint8(values[i] < high)


@numba.njit(nogil=True, cache=True)
def _locate(graph, starts, node, i):
    """Of the i-th edge that `load` copies: its index among the target's edges, and where it lies
    in residual, mlp and attention, end to end."""
    level, token, layer, first, n_sources, has_attention, _ = block_of(graph, node)
    n_attention = graph.n_heads * n_sources if has_attention else 0
    if i < n_attention:
        head = i // n_sources
        source = i - head * n_sources
        row = (layer * graph.n_heads + head) * graph.n_tokens + token
        index = source * graph.n_heads + head + (1 if source == n_sources - 1 else 0)
        return index, starts[2] + row * graph.n_tokens + first + source
    index = index_in_node(graph, node, i)
    if i == n_attention:
        return index, starts[0] + (level - 1) * graph.n_tokens + token
    return index, starts[1] + layer * graph.n_tokens + token


@numba.njit(nogil=True, cache=True)
def _store(graph, starts, node, bucket, flat):
    """The inverse of `load`, to residual, mlp and attention end to end."""
    _, _, _, _, n_sources, has_attention, has_mlp = block_of(graph, node)
    at = 0
    if has_attention:
        place = _locate(graph, starts, node, 0)[1]
        for _ in range(graph.n_heads):
            row, part = flat[place : place + n_sources], bucket[at : at + n_sources]
            for s in range(len(row)):
                row[s] = part[s]
            place += graph.n_tokens * graph.n_tokens
            at += n_sources
    flat[_locate(graph, starts, node, at)[1]] = bucket[at]
    if has_mlp:
        flat[_locate(graph, starts, node, at + 1)[1]] = bucket[at + 1]


@numba.njit(nogil=True, cache=True)
def _collect(graph, bits, visits, ends, stop_Q, records):
    """Records of the edges that the only trace of `ends` holds, and of its candidates.

    A record is what the edge's bits lack to the largest int32, then its number. Those of interval q
    are written from stop_Q[q] down: by tau(target), then index, since both fall here.
    """
    last = len(visits.order)
    end_q, end_low = ends.q[0], ends.low[0]
    chain, size = empty_chain(visits), 0
    chain_end_P = np.zeros(1, np.int64)
    threshold = np.empty(last + 1, np.int32)
    x, listed = np.empty(graph.most_incoming, np.int32), np.empty(graph.most_incoming, np.int64)
    interval = np.empty(graph.most_incoming, np.int64)
    for visit in range(last - 1, -1, -1):
        node = visits.order[visit]
        if node >= graph.n_tokens and visit < end_q:
            n = load(graph, bits, node, x)
            thresholds_of(visit, chain, size, threshold)
            slow = visits.slow[visit]
            if slow:
                intervals_one_by_one(graph, visits, visit, chain, size, threshold, x, n, interval)
            low = np.int32(0)
            if not slow:
                low = cuts_of(ends, chain, threshold, last, 0, chain_end_P[0])[0]
            if _highest(x[:n]) >= low:
                n_listed = _list_backwards(graph, node, x, low, listed)
                first = graph.offsets[node]
                for at in range(n_listed):
                    i = listed[at]
                    if slow:
                        q = interval[i]
                        if q > end_q or (q == end_q and x[i] < end_low):
                            continue
                    else:
                        reached = n_reached(chain, size, threshold, x[i])
                        q = chain.r[reached - 1] if reached > 0 else last
                    stop_Q[q] -= 1
                    edge = first + index_in_node(graph, node, i)
                    records[stop_Q[q]] = (np.int64(NEVER - x[i]) << EDGE_BITS) | edge
        size = grow_chain(visits, visit, chain, size)
        follow_chain(ends.q, visit, size, chain_end_P)


@numba.njit(nogil=True, cache=True)
def _list_backwards(graph, node, x, low, listed):
    """Which of x are at least `low`, by falling index among the target's edges; their number."""
    _, _, _, _, n_sources, has_attention, has_mlp = block_of(graph, node)
    n_attention = graph.n_heads * n_sources if has_attention else 0
    n_listed = 0
    if has_mlp:
        listed[n_listed] = n_attention + 1
        n_listed += np.int64(x[n_attention + 1] >= low)
    if n_attention:
        for s in range(n_sources - 1, -1, -1):
            for i in range(n_attention - n_sources + s, -1, -n_sources):
                listed[n_listed] = i
                n_listed += np.int64(x[i] >= low)
            if s == n_sources - 1:
                listed[n_listed] = n_attention
                n_listed += np.int64(x[n_attention] >= low)
    else:
        listed[n_listed] = 0
        n_listed += np.int64(x[0] >= low)
    return n_listed


@numba.njit(nogil=True, cache=True)
def sort_records(records, starts):
    """Sort each part records[starts[i] : starts[i+1]] by the bits above EDGE_BITS, stable: by
    insertion or by radix."""
    longest = 0
    for part in range(len(starts) - 1):
        longest = max(longest, starts[part + 1] - starts[part])
    other = np.empty(longest, np.int64)
    for part in range(len(starts) - 1):
        values = records[starts[part] : starts[part + 1]]
        if len(values) <= 64:
            for i in range(1, len(values)):
                value = values[i]
                at = i
                while at > 0 and values[at - 1] >> EDGE_BITS > value >> EDGE_BITS:
                    values[at] = values[at - 1]
                    at -= 1
                values[at] = value
        else:
            _radix_sort(values, other[: len(values)], 8 if len(values) < 1 << 14 else 11)


@numba.njit(nogil=True, cache=True)
def _radix_sort(values, other, digit_bits):
    mask = (1 << digit_bits) - 1
    source, target, swapped = values, other, False
    for shift in range(EDGE_BITS, 64, digit_bits):
        count = np.zeros(mask + 2, np.int64)
        for i in range(len(source)):
            count[((source[i] >> shift) & mask) + 1] += 1
        if count[((source[0] >> shift) & mask) + 1] == len(source):
            continue  # all alike in these bits
        for digit in range(mask):
            count[digit + 1] += count[digit]
        for i in range(len(source)):
            digit = (source[i] >> shift) & mask
            target[count[digit]] = source[i]
            count[digit] += 1
        source, target, swapped = target, source, not swapped
    if swapped:
        values[:] = source
