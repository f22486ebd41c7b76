"""Means and quantiles over inputs of tables with gaps: an input may have no value in a column.

A table is float64 [inputs, columns], NaN where an input has no value. Bootstraps draw whole rows,
so intervals are over inputs; a draw in which no input has a value counts for nothing.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from graphtrace.analysis.stats import Interval


def input_means(inputs: Sequence[str], values: np.ndarray) -> np.ndarray:
    """float64 [inputs, columns]: the mean over the traces of each input that have a value, in the
    order of first appearance. values: float64 [traces, columns]."""
    codes, unique = pd.factorize(pd.array(list(inputs), dtype="object"))
    if len(codes) == len(unique):
        return values.astype(np.float64)
    known = np.isfinite(values)
    total, n = np.zeros((2, len(unique), values.shape[1]))
    np.add.at(total, codes, np.where(known, values, 0.0))
    np.add.at(n, codes, known)
    return np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)


def means(values: np.ndarray) -> np.ndarray:
    """float64 [columns]: mean over the inputs that have a value, NaN where none has."""
    known = np.isfinite(values)
    n = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, n, out=np.full(values.shape[1], np.nan), where=n > 0)


def drawn_means(values: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """float64 [draws, columns]: the means of bootstrap draws of inputs."""
    n = len(values)
    if n == 0:
        return np.full((draws, values.shape[1]), np.nan)
    known = np.isfinite(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    counts = counts.astype(np.float64)
    total = counts @ np.where(known, values, 0.0)
    weight = np.full_like(total, n) if known.all() else counts @ known.astype(np.float64)
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def interval_of(drawn: np.ndarray, n: np.ndarray | int) -> Interval:
    """95 % percentile interval of drawn values [draws, columns]; n: inputs that have a value, per
    column or for all: fewer than 2 say nothing about their spread, and both ends are NaN."""
    enough = (np.broadcast_to(n, drawn.shape[1:]) >= 2) & np.isfinite(drawn).any(axis=0)
    ends = np.full((2, drawn.shape[1]), np.nan)
    if enough.any():
        ends[:, enough] = np.nanpercentile(drawn[:, enough], [2.5, 97.5], axis=0)
    return Interval(ends[0], ends[1])


def mean_band(values: np.ndarray, draws: int = 1000, seed: int = 0) -> tuple[np.ndarray, Interval]:
    """(means, their 95 % bootstrap interval over inputs), float64 [columns] each."""
    known = np.isfinite(values).sum(0)
    return means(values), interval_of(drawn_means(values, draws, seed), known)


def quantiles(values: np.ndarray, percent: Sequence[float]) -> np.ndarray:
    """float64 [percents, columns]: quantiles over the inputs that have a value."""
    found = np.full((len(percent), values.shape[1]), np.nan)
    known = np.isfinite(values).any(axis=0)
    if known.any():
        found[:, known] = np.nanpercentile(values[:, known], list(percent), axis=0)
    return found
