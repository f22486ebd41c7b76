"""How concentrated the scores of all edges are; computed while all edges are at hand."""

from itertools import pairwise

import numba
import numpy as np

DIGIT_BITS = 11


def mass_edges(offsets: np.ndarray, score_E: np.ndarray, share: float) -> int:
    """How many edges hold `share` of every node's score mass: per node the fewest incoming edges
    whose scores sum to at least `share` of the node's total, summed over nodes (method.md 5).

    offsets: as GraphLayout.offsets; score_E: float32, not negative.
    """
    ordered = score_E.copy()
    bounds = offsets.tolist()
    for start, stop in pairwise(bounds):
        # NumPy sorts short rows several times faster than compiled code of ours would.
        ordered[start:stop].sort()
    return int(_count_held(offsets, ordered, share))


@numba.njit(cache=True, nogil=True)
def _count_held(offsets, ordered, share):
    n_edges = 0
    for node in range(len(offsets) - 1):
        goal = 0.0
        for edge in range(offsets[node], offsets[node + 1]):
            goal += ordered[edge]
        goal, held, edge = share * goal, 0.0, offsets[node + 1] - 1
        while edge >= offsets[node] and held < goal:
            held += ordered[edge]
            edge -= 1
            n_edges += 1
    return n_edges


def gini_of(score_E: np.ndarray) -> float:
    """Gini coefficient of float32 scores that are not negative, as analysis.stats.gini; NaN where
    their sum is 0."""
    # Such floats order as their bits do.
    return float(_gini(np.ascontiguousarray(score_E, np.float32).view(np.uint32)))


@numba.njit(cache=True, nogil=True)
def _gini(bits):
    n, mask = len(bits), (1 << DIGIT_BITS) - 1
    ordered, other = bits.copy(), np.empty_like(bits)
    for shift in range(0, 32, DIGIT_BITS):
        count = np.zeros(mask + 2, np.int64)
        for i in range(n):
            count[((ordered[i] >> shift) & mask) + 1] += 1
        for digit in range(mask + 1):
            count[digit + 1] += count[digit]
        for i in range(n):
            digit = (ordered[i] >> shift) & mask
            other[count[digit]] = ordered[i]
            count[digit] += 1
        ordered, other = other, ordered
    scores = ordered.view(np.float32)
    total, weighted = 0.0, 0.0
    for i in range(n):
        total += scores[i]
        weighted += (2.0 * i + 1.0 - n) * scores[i]
    return weighted / (n * total) if total > 0 else np.nan
