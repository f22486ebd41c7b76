"""Greedy best-first search from the output (paper, Algorithm 1), exactly, with no heap of edges.

The available edge with the highest score is taken next; taking an edge whose source was not
visited makes the source's incoming edges available. Ties go to the edge that became available
first. Traces are nested, so one rank per edge serves every size.

How. Call tau(v) the order in which nodes are visited. The priority of an edge is (score, earlier
tau(target), smaller index among its target's edges): "first come, first served". Between two
discoveries of nodes nothing new becomes available, so an edge into v is taken in the interval
q(e) = min{r > tau(v) : priority of the r-th discovery <= priority of e}, and the full order is: by
q ascending, then by priority descending. So: (1) Prim's algorithm over nodes gives tau and the
discoveries; (2) a stable radix sort of the edges, listed by tau(target), gives the priorities;
(3) a binary search on the chain of running minima after tau(v) gives q; (4) a counting sort by q.

Scores enter as keys: integers, not negative, that order as the scores do.
"""

import numba
import numpy as np

from graphtrace.layout import GraphLayout


@numba.njit(nogil=True, cache=True)
def _visit_order(offsets, source, key, output):
    """Prim on nodes: tau of every node (-1: never reached), and the edge that discovers each.

    A heap holds, per undiscovered node, the best available edge out of it (lazily, older entries
    are dropped when popped). Only those can discover a node.
    """
    n_nodes = len(offsets) - 1
    tau = np.full(n_nodes, -1, np.int64)
    discovery = np.full(n_nodes, -1, np.int64)
    best = np.full(n_nodes, -1, np.int64)
    order = np.empty(n_nodes, np.int64)
    heap = [(np.int64(0), np.int64(0), np.int64(0))]
    heap.pop()
    node, n_visited = output, 0
    while True:
        tau[node] = n_visited
        order[n_visited] = node
        n_visited += 1
        for edge in range(offsets[node], offsets[node + 1]):
            u = source[edge]
            # Strictly better only: among equals the earlier-available edge stays.
            if tau[u] < 0 and (best[u] < 0 or key[edge] > key[best[u]]):
                best[u] = edge
                # The edge number alone doesn't order ties between targets: tau(target) does.
                heap_push(heap, (-np.int64(key[edge]), tau[node], edge))
        found = False
        while len(heap) > 0:
            _, _, edge = heap_pop(heap)
            u = source[edge]
            if tau[u] < 0:
                discovery[n_visited] = edge
                node, found = u, True
                break
        if not found:
            return order[:n_visited], discovery[:n_visited]


@numba.njit(nogil=True, cache=True)
def heap_push(heap, item):
    """Add `item` to a list that is a heap, smallest first (compiled code only)."""
    heap.append(item)
    child = len(heap) - 1
    while child > 0:
        parent = (child - 1) >> 1
        if heap[child] < heap[parent]:
            heap[child], heap[parent] = heap[parent], heap[child]
            child = parent
        else:
            break


@numba.njit(nogil=True, cache=True)
def heap_pop(heap):
    """Remove and return the smallest item of a heap (compiled code only)."""
    last = heap.pop()
    if len(heap) == 0:
        return last
    top, heap[0] = heap[0], last
    parent, size = 0, len(heap)
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] < heap[parent]:
            heap[child], heap[parent] = heap[parent], heap[child]
            parent = child
        else:
            break
    return top


@numba.njit(nogil=True, cache=True)
def _edges_by_visit(offsets, order):
    """All edges into visited nodes, listed by tau(target), then by edge number."""
    total = 0
    for node in order:
        total += offsets[node + 1] - offsets[node]
    listed = np.empty(total, np.int64)
    at = 0
    for node in order:
        for edge in range(offsets[node], offsets[node + 1]):
            listed[at] = edge
            at += 1
    return listed


@numba.njit(nogil=True, cache=True)
def sort_descending(listed, key, n_bits):
    """`listed` int64 by descending key, stable: radix sort, 11 bits at a time (compiled code only).

    key: integers, not negative, below 2**n_bits; key[i] belongs to item i, listed or not. The keys
    travel with the items, so that every pass reads from end to end.
    """
    n, n_digits = len(listed), (n_bits + 10) // 11
    largest = np.int64(2**63 - 1) >> (63 - n_bits)
    item, value = listed.copy(), np.empty(n, np.int64)
    count = np.zeros((n_digits, 2049), np.int64)
    for i in range(n):
        value[i] = largest - key[listed[i]]
        for digit in range(n_digits):
            count[digit, ((value[i] >> (11 * digit)) & 2047) + 1] += 1
    other_item, other_value = np.empty(n, np.int64), np.empty(n, np.int64)
    for digit in range(n_digits):
        at, shift = count[digit], 11 * digit
        if n == 0 or at[((value[0] >> shift) & 2047) + 1] == n:
            continue  # all alike in these bits
        for b in range(2048):
            at[b + 1] += at[b]
        for i in range(n):
            b = (value[i] >> shift) & 2047
            other_item[at[b]], other_value[at[b]] = item[i], value[i]
            at[b] += 1
        item, other_item = other_item, item
        value, other_value = other_value, value
    return item


@numba.njit(nogil=True, cache=True)
def _rank(offsets, order, discovery, sorted_edges, n_edges):
    """Rank of every edge from the visit order and the edges by priority."""
    n_visited = len(order)
    place = np.empty(n_edges, np.int64)
    for i in range(len(sorted_edges)):
        place[sorted_edges[i]] = i
    # Chain of the discoveries after tau whose priority is lower than all before it, nearest last.
    chain_r = np.empty(n_visited, np.int64)
    chain_place = np.empty(n_visited, np.int64)
    size = 0
    interval = np.empty(n_edges, np.int64)
    count = np.zeros(n_visited + 2, np.int64)
    for visit in range(n_visited - 1, -1, -1):
        node = order[visit]
        for edge in range(offsets[node], offsets[node + 1]):
            # The first r on the chain with place >= this edge's; places fall towards the end.
            low, high = 0, size
            while low < high:
                middle = (low + high) >> 1
                if chain_place[middle] >= place[edge]:
                    low = middle + 1
                else:
                    high = middle
            q = chain_r[low - 1] if low > 0 else n_visited
            interval[edge] = q
            count[q + 1] += 1
        if visit > 0:
            here = place[discovery[visit]]
            while size > 0 and chain_place[size - 1] <= here:
                size -= 1
            chain_r[size], chain_place[size] = visit, here
            size += 1
    for q in range(n_visited + 1):
        count[q + 1] += count[q]
    rank = np.full(n_edges, -1, np.int64)
    for i in range(len(sorted_edges)):
        edge = sorted_edges[i]
        rank[edge] = count[interval[edge]]
        count[interval[edge]] += 1
    return rank


def best_first_ranks(layout: GraphLayout, score_E: np.ndarray) -> np.ndarray:
    """int64 [E]: the rank of every edge in canonical order.

    score_E: float32 or float64, finite and not negative, in the canonical order of `layout`.
    """
    wide = score_E.dtype == np.float64
    score_E = np.ascontiguousarray(score_E, np.float64 if wide else np.float32)
    assert np.isfinite(score_E).all()
    assert (score_E >= 0).all()
    # Bit patterns of floats that are not negative order as the floats do; -0.0 becomes 0.0 first.
    score_E = score_E + score_E.dtype.type(0)
    return best_first_by_key(layout, score_E.view(np.int64 if wide else np.int32))


def best_first_by_key(layout: GraphLayout, key_E: np.ndarray) -> np.ndarray:
    """`best_first_ranks` by int32 or int64 keys, not negative, whatever they stand for."""
    assert key_E.shape == (layout.n_edges,)
    source = source_nodes(layout)
    order, discovery = _visit_order(layout.offsets, source, key_E, layout.output)
    listed = _edges_by_visit(layout.offsets, order)
    by_priority = sort_descending(listed, key_E, 8 * key_E.itemsize - 1)
    return _rank(layout.offsets, order, discovery, by_priority, layout.n_edges)


def source_nodes(layout: GraphLayout) -> np.ndarray:
    """int64 [E]: node id of every edge's source, in canonical order."""
    node = np.empty(layout.n_edges, np.int64)
    n_tokens = layout.n_tokens
    source, of_level = layout.columns.source, layout.offsets[::n_tokens]
    for level in range(1, layout.n_levels):
        here = slice(of_level[level], of_level[level + 1])
        np.add(source[here], (level - 1) * n_tokens, out=node[here])
    return node


@numba.njit(nogil=True, cache=True)
def _random_walk(offsets, source, is_attention, output, seed):
    """See `random_ranks`. Fisher-Yates inside each node, swap-remove from the frontier."""
    np.random.seed(seed)  # noqa: NPY002  numba's own generator, per thread
    n_edges = len(source)
    pending = np.arange(n_edges)
    taken = np.zeros(len(offsets) - 1, np.int64)
    rank = np.full(n_edges, -1, np.int64)
    visited = np.zeros(len(offsets) - 1, np.bool_)
    frontier = np.empty(len(offsets) - 1, np.int64)
    n_fixed = np.zeros(len(offsets) - 1, np.int64)
    for node in range(len(offsets) - 1):
        at = offsets[node]
        for edge in range(offsets[node], offsets[node + 1]):
            if not is_attention[edge]:
                pending[at], pending[edge] = pending[edge], pending[at]
                at += 1
        n_fixed[node] = at - offsets[node]
    visited[output] = True
    frontier[0] = output
    size, next_rank = 1, 0
    while size > 0:
        where = np.random.randint(0, size)  # noqa: NPY002
        node = frontier[where]
        start, end = offsets[node], offsets[node + 1]
        at = start + taken[node]
        if at >= end:
            size -= 1
            frontier[where] = frontier[size]
            continue
        if taken[node] >= n_fixed[node]:
            pick = np.random.randint(at, end)  # noqa: NPY002
            pending[at], pending[pick] = pending[pick], pending[at]
        edge = pending[at]
        taken[node] += 1
        rank[edge] = next_rank
        next_rank += 1
        if at + 1 == end:
            size -= 1
            frontier[where] = frontier[size]
        u = source[edge]
        if not visited[u]:
            visited[u] = True
            frontier[size] = u
            size += 1
    return rank


def random_ranks(layout: GraphLayout, seed: int) -> np.ndarray:
    """int64 [E]: the paper's random baseline (appendix D.1), a walk and not a weight.

    Repeat: a frontier node (visited, with edges left) uniformly; its residual and mlp edges come
    first, then a random attention edge of it; the edge's source joins the frontier.
    """
    is_attention = layout.columns.head >= 0
    return _random_walk(
        layout.offsets, source_nodes(layout), is_attention, layout.output, seed % 2**32
    )
