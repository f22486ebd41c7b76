"""Tests of two groups of inputs, many columns at once: exact where counts are compared.

McNemar (Psychometrika 12, 1947) for a share of pairs, Fisher's exact test for two independent
shares, the sign test and Mann and Whitney's for other values, all two-sided. Nothing here knows
what the columns are.
"""

import numpy as np

from graphtrace.analysis.stats import Interval, bootstrap_mean


def mcnemar(only_a: np.ndarray, only_b: np.ndarray) -> np.ndarray:
    """float64 [columns]: McNemar's exact p values, two-sided.

    only_a, only_b: int64 [columns], in how many pairs only the one and only the other side has
    it. Under no difference either is Binomial(only_a + only_b, 1/2); 1 where both are 0.
    """
    from scipy.stats import binom

    only_a, only_b = np.asarray(only_a, np.int64), np.asarray(only_b, np.int64)
    tail = binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5)
    return np.minimum(2 * tail, 1.0)


def sign_test(differences: np.ndarray) -> np.ndarray:
    """float64 [columns]: exact two-sided p values of the sign test; zeros say nothing.

    differences: float64 [pairs, columns]. Of differences of presences, 0 or 1 on either side, it
    is McNemar's exact test.
    """
    return mcnemar((differences > 0).sum(0), (differences < 0).sum(0))


def fisher(has_a: np.ndarray, n_a: int, has_b: np.ndarray, n_b: int) -> np.ndarray:
    """float64 [columns]: p values of Fisher's exact test, two-sided, of has_a of n_a inputs
    against has_b of n_b others (int64 [columns]). NaN where a group is empty."""
    from scipy.stats import fisher_exact

    has_a, has_b = np.asarray(has_a, np.int64), np.asarray(has_b, np.int64)
    if n_a < 1 or n_b < 1:
        return np.full(len(has_a), np.nan)
    tables, of = np.unique(np.stack([has_a, has_b], 1), axis=0, return_inverse=True)
    p = [fisher_exact([[a, n_a - a], [b, n_b - b]])[1] for a, b in tables.tolist()]
    return np.minimum(np.array(p, np.float64), 1.0)[of.reshape(-1)]


def rank_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [columns]: p values of Mann and Whitney's test, two-sided, by the normal
    approximation with ties and continuity corrected.

    a, b: float64 [inputs, columns]. 1 where all values of a column are equal, NaN where a group is
    empty.
    """
    from scipy.stats import mannwhitneyu

    if len(a) < 1 or len(b) < 1:
        return np.full(a.shape[1], np.nan)
    both = np.concatenate([a, b])
    varies = (both != both[0]).any(0)
    p = np.ones(a.shape[1])
    if varies.any():
        found = mannwhitneyu(a[:, varies], b[:, varies], axis=0, method="asymptotic")
        p[varies] = np.minimum(found.pvalue, 1.0)
    return p


def bootstrap_difference(
    a: np.ndarray,
    b: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
    streams: tuple[int, int] = (0, 1),
) -> Interval:
    """95 % percentile bootstrap interval of mean(a) - mean(b) of two independent groups.

    a, b: float64 [inputs, columns]; inputs of each group are drawn by themselves, each from its
    own stream of random numbers, so swapping groups and streams mirrors the interval. NaN where a
    group has fewer than two inputs. Pairs want `paired_difference`.
    """
    width = a.shape[1]
    if len(a) < 2 or len(b) < 2:
        return Interval(np.full(width, np.nan), np.full(width, np.nan))
    counts = [
        np.random.default_rng([seed, stream]).multinomial(n, np.full(n, 1 / n), size=draws) / n
        for stream, n in zip(streams, (len(a), len(b)), strict=True)
    ]
    low, high = np.empty(width), np.empty(width)
    for start in range(0, width, 1024):  # bounds the [draws, columns] table
        part = slice(start, start + 1024)
        drawn = counts[0] @ a[:, part] - counts[1] @ b[:, part]
        low[part], high[part] = np.percentile(drawn, [2.5, 97.5], axis=0)
    return Interval(low, high)


def paired_difference(a: np.ndarray, b: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
    """95 % percentile bootstrap interval of mean(a - b) over pairs, drawn whole.

    a, b: float64 [pairs, columns], row i of both is one pair. NaN with fewer than two pairs.
    """
    return bootstrap_mean(a - b, draws, seed)
