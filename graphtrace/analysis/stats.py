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
