"""The few statistics that several analyses share. Pure functions over NumPy arrays."""

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


def rank_correlation(a: np.ndarray, b: np.ndarray, control: np.ndarray) -> RankCorrelation:
    """Spearman's rho of a and b, and the partial rho given `control`: the correlation of what is
    left of the ranks of a and b after regressing them on the ranks of `control`.

    a, b, control: float64 [inputs], finite. A constant control changes nothing.
    """
    rows = np.stack([a, b, control])[:, None, :]
    rho, partial = _rank_correlations(rows)
    return RankCorrelation(float(rho[0]), float(partial[0]))


def bootstrap_rank_correlation(
    a: np.ndarray, b: np.ndarray, control: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[Interval, Interval]:
    """95 % percentile bootstrap intervals over inputs of rho and of the partial rho.

    Draws whose value is NaN (a constant measure) are left out; an interval is NaN where the
    value itself is.
    """
    n, found = len(a), []
    rng = np.random.default_rng(seed)
    values, at_once = np.stack([a, b, control]), max(1, (1 << 20) // max(n, 1))
    for start in range(0, draws, at_once):  # bounds the [draws, inputs] tables
        drawn = rng.integers(0, max(n, 1), (min(at_once, draws - start), n))
        found.append(np.stack(_rank_correlations(values[:, drawn])))
    rho, partial = np.concatenate(found, axis=1)
    whole = rank_correlation(a, b, control)
    return _percentiles(rho, whole.rho), _percentiles(partial, whole.partial)


def _percentiles(drawn: np.ndarray, value: float) -> Interval:
    drawn = drawn[np.isfinite(drawn)]
    if np.isnan(value) or len(drawn) == 0:
        return Interval(np.array(np.nan), np.array(np.nan))
    return Interval(*np.percentile(drawn, [2.5, 97.5]))


def _rank_correlations(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rho, partial rho), float64 [rows] each. values: float64 [3, rows, inputs]."""
    from scipy.stats import rankdata

    n = values.shape[2]
    # The mean rank is (n + 1) / 2 whatever the ties: exact, so a constant measure is exactly 0.
    ranks = rankdata(values, axis=2) - (n + 1) / 2 if n else values
    spread = (ranks**2).sum(2)

    def correlation(i: int, j: int) -> np.ndarray:
        scale = np.sqrt(spread[i] * spread[j])
        product = (ranks[i] * ranks[j]).sum(1)
        return np.divide(product, scale, out=np.full(len(scale), np.nan), where=scale > 0)

    nothing = np.full(values.shape[1], np.nan)
    rho = np.clip(correlation(0, 1), -1, 1) if n >= 3 else nothing
    # With a constant control there is nothing to hold constant.
    with_a, with_b = (np.where(spread[2] > 0, correlation(i, 2), 0.0) for i in (0, 1))
    left = (1 - with_a**2) * (1 - with_b**2)
    usable = np.isfinite(rho) & (left > 0) & (n >= 4)  # equal ranks correlate as exactly 1
    left = np.where(usable, left, 1.0)
    partial = np.where(usable, np.clip((rho - with_a * with_b) / np.sqrt(left), -1, 1), np.nan)
    return rho, partial


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
