"""The few statistics that several analyses share. Pure functions over NumPy arrays."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054
"""97.5 % point of the standard normal distribution."""


class Interval(NamedTuple):
    """Lower and upper ends of a 95 % interval, arrays or numbers."""

    low: np.ndarray
    high: np.ndarray


def bootstrap_mean(values: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
    """95 % percentile bootstrap interval of the mean over rows.

    values: float64 [inputs, columns]; whole rows are drawn, so the interval is over inputs. One
    input says nothing about its spread: both ends are NaN.
    """
    n, width = values.shape
    if n < 2:
        return Interval(np.full(width, np.nan), np.full(width, np.nan))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    low, high = np.empty(width), np.empty(width)
    for start in range(0, width, 1024):  # bounds the [draws, columns] table
        part = slice(start, start + 1024)
        means = counts @ values[:, part] / n
        low[part], high[part] = np.percentile(means, [2.5, 97.5], axis=0)
    return Interval(low, high)


class RankCorrelation(NamedTuple):
    """Spearman's rho of two measures, `partial` that with a third one held constant; floats.

    rho is NaN with fewer than 3 inputs or where a measure is constant; partial with fewer than 4,
    or where the third one alone fixes the ranks of one of the two.
    """

    rho: float
    partial: float


class Pair(NamedTuple):
    """Two rows of a table of measures that are correlated, and the rows that are held constant."""

    a: int
    b: int
    controls: tuple[int, ...] = ()


FIXED = 1e-10
"""Share of a measure's rank variance below which the controls are said to fix its ranks."""


def rank_correlation(a: np.ndarray, b: np.ndarray, control: np.ndarray) -> RankCorrelation:
    """Spearman's rho of a and b, and the partial rho given `control`: the correlation of what is
    left of the ranks of a and b after regressing them on the ranks of `control`.

    a, b, control: float64 [inputs], finite. A constant control changes nothing.
    """
    rho, partial = rank_correlations(np.stack([a, b, control]), _WITH_ONE_CONTROL)
    return RankCorrelation(float(rho), float(partial))


def bootstrap_rank_correlation(
    a: np.ndarray, b: np.ndarray, control: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[Interval, Interval]:
    """95 % percentile bootstrap intervals over inputs of rho and of the partial rho.

    Draws whose value is NaN (a constant measure) are left out; an interval is NaN where the
    value itself is.
    """
    values = np.stack([a, b, control])
    low, high = bootstrap_rank_correlations(values, _WITH_ONE_CONTROL, draws, seed)
    return Interval(low[0], high[0]), Interval(low[1], high[1])


_WITH_ONE_CONTROL = (Pair(0, 1), Pair(0, 1, (2,)))


def rank_correlations(values: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """float64 [pairs]: Spearman's rho of every pair of measures, with its controls held constant:
    the correlation of what least squares of their ranks on the ranks of the controls leaves.

    values: float64 [measures, inputs], finite. Constant controls, and those that others fix, change
    nothing. NaN with fewer inputs than 3 and one per control, where a measure is constant, and
    where the controls fix the ranks of one of the two (all but `FIXED` of their variance).
    """
    n = values.shape[1]
    return _correlations(_spreads(values, np.ones((1, n), np.int64)), pairs, n)[0]


def bootstrap_rank_correlations(
    values: np.ndarray, pairs: Sequence[Pair], draws: int = 1000, seed: int = 0
) -> Interval:
    """95 % percentile bootstrap intervals over inputs of `rank_correlations`, float64 [pairs] each.

    Every draw ranks its inputs anew. Draws whose value is NaN are left out; an interval is NaN
    where the value itself is. Time grows with draws x inputs x measures, memory does not.
    """
    n = values.shape[1]
    whole = rank_correlations(values, pairs)
    ends = np.full((2, len(pairs)), np.nan)
    if not np.isfinite(whole).any():
        return Interval(*ends)
    rng, found = np.random.default_rng(seed), []
    at_once = max(1, (1 << 19) // n)  # bounds the [draws, inputs] tables
    for start in range(0, draws, at_once):
        drawn = rng.integers(0, n, (min(at_once, draws - start), n))
        drawn += n * np.arange(len(drawn))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        for part in np.array_split(counts, -(-counts.size * len(values) // (1 << 22))):
            found.append(_correlations(_spreads(values, part), pairs, n))
    table = np.concatenate(found)
    for i in np.flatnonzero(np.isfinite(whole)):
        usable = table[np.isfinite(table[:, i]), i]
        if len(usable):
            ends[:, i] = np.percentile(usable, [2.5, 97.5])
    return Interval(*ends)


def _spreads(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [draws, measures, measures]: products of the centred mid-ranks, summed over inputs.

    values: [measures, inputs]. counts: int64 [draws, inputs], how often a draw has each input. Sums
    of half-integers are exact, so a constant measure has exactly 0, and equal ranks equal sums.
    """
    n, ranks = values.shape[1], np.empty((len(counts), *values.shape))
    for i, column in enumerate(values):
        distinct, code = np.unique(column, return_inverse=True)
        order = np.argsort(code, kind="stable")
        starts = np.searchsorted(code[order], np.arange(len(distinct)))
        ties = np.add.reduceat(counts[:, order], starts, axis=1) if n else counts
        # Mid-ranks less their mean, (n + 1) / 2 whatever the ties.
        ranks[:, i] = (np.cumsum(ties, axis=1) - (ties + n) / 2)[:, code]
    return (ranks * counts[:, None, :]) @ ranks.transpose(0, 2, 1)


def _correlations(spreads: np.ndarray, pairs: Sequence[Pair], n: int) -> np.ndarray:
    """float64 [draws, pairs]. spreads: see `_spreads`."""
    spread = np.diagonal(spreads, axis1=1, axis2=2)
    scale = np.sqrt(spread[:, :, None] * spread[:, None, :])
    # With a constant measure there is nothing to hold constant: its row is 0, its variance too.
    whole = np.divide(spreads, scale, out=np.zeros_like(spreads), where=scale > 0)
    left_by: dict[tuple[int, ...], np.ndarray] = {(): whole}
    found = np.full((len(spreads), len(pairs)), np.nan)
    for place, (a, b, controls) in enumerate(pairs):
        if n < 3 + len(controls):
            continue
        for i in range(1, len(controls) + 1):
            if controls[:i] not in left_by:
                left_by[controls[:i]] = _without(left_by[controls[: i - 1]], controls[i - 1])
        left = left_by[controls]
        usable = (left[:, a, a] > FIXED) & (left[:, b, b] > FIXED)
        scale = np.sqrt(np.where(usable, left[:, a, a] * left[:, b, b], 1.0))
        found[usable, place] = np.clip(left[:, a, b] / scale, -1, 1)[usable]
    return found


def _without(left: np.ndarray, control: int) -> np.ndarray:
    """What least squares on one more control leaves of the products (a Gauss-Jordan step)."""
    own = left[:, control, control]
    usable = own > FIXED
    column = left[:, :, control] * usable[:, None]
    product = column[:, :, None] * column[:, None, :]
    return left - product / np.where(usable, own, 1.0)[:, None, None]


EXACT_UP_TO = 8
"""So many inputs have few enough orders that all are tried (8! = 40,320)."""


def rank_correlation_p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of Spearman's rho of a and b (float64 [inputs], finite) under independence.

    Up to `EXACT_UP_TO` inputs the share of all orders of b whose |rho| is as large, ties as they
    are; above, Student's t with n - 2 degrees of freedom. NaN where rho is.
    """
    from scipy.stats import rankdata, t

    rho, n = float(rank_correlations(np.stack([a, b]), [Pair(0, 1)])[0]), len(a)
    if np.isnan(rho):
        return float("nan")
    if n <= EXACT_UP_TO:
        # Doubled mid-ranks are integers, so equal products are equal.
        ranks = [np.round(2 * rankdata(x)).astype(np.int64) - (n + 1) for x in (a, b)]
        products = np.abs(ranks[1][np.array(list(permutations(range(n))))] @ ranks[0])
        return float((products >= abs(int(ranks[0] @ ranks[1]))).mean())
    left = 1 - rho**2
    return float(2 * t.sf(abs(rho) * np.sqrt((n - 2) / left), n - 2)) if left > 0 else 0.0


def false_discovery_q(p: np.ndarray) -> np.ndarray:
    """float64 [tests]: Benjamini and Hochberg's q of every p (1995), the smallest rate of false
    discoveries at which the test would count as one. NaN is no test."""
    p = np.asarray(p, np.float64)
    q, tested = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    m = len(order)
    scaled = p[order] * m / np.arange(1, m + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q


def wilson(share: np.ndarray, n: int) -> Interval:
    """95 % Wilson score interval of a share seen in `n` independent inputs (Wilson 1927)."""
    share = np.asarray(share, np.float64)
    if n == 0:
        return Interval(np.full_like(share, np.nan), np.full_like(share, np.nan))
    z2 = Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return Interval(np.maximum(centre - half, 0), np.minimum(centre + half, 1))


def lorenz(shares: np.ndarray) -> np.ndarray:
    """float64 [n + 1]: what the 0, 1, ... n largest values hold of the whole (NaN if it is 0)."""
    ordered = np.sort(np.asarray(shares, np.float64))[::-1]
    total = ordered.sum()
    if not total > 0:
        return np.full(len(ordered) + 1, np.nan)
    return np.concatenate([[0.0], np.cumsum(ordered) / total])


def gini(shares: np.ndarray) -> float:
    """Gini coefficient, (mean absolute difference) / (2 mean): 0 all equal, 1 - 1/n one holds
    all; NaN where the sum is 0."""
    ordered = np.sort(np.asarray(shares, np.float64))
    n, total = len(ordered), ordered.sum()
    if n == 0 or not total > 0:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised mutual information 2 I(a, b) / (H(a) + H(b)) of two labellings.

    a, b: int64 [n], labels 0 ... Between 0 and 1; NaN where both have a single label (there is
    nothing to agree on). Not corrected for chance: many small groups raise it, so compare with
    shuffled labels.
    """
    if len(a) == 0:
        return float("nan")
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1 / len(a))
    rows, columns = table.sum(1), table.sum(0)
    entropy = -sum(float(p[p > 0] @ np.log(p[p > 0])) for p in (rows, columns))
    if entropy <= 1e-15:
        return float("nan")
    i, j = np.nonzero(table)
    shared = float(table[i, j] @ np.log(table[i, j] / (rows[i] * columns[j])))
    return max(2 * shared / entropy, 0.0)
