"""Density beside other measures of how much a prediction takes: do they agree?

    density             area under TV over log10 of the size: how slowly the trace of growing size
                        comes to reproduce the prediction (method.md section 5)
    density_normalised  the same over the range of sizes covered; short inputs cover less
    mass90_share        edges that hold 90 % of every node's score mass, as a share of all edges
    score_gini          Gini coefficient of all edges' scores
    mlp_active_share    fraction of MLP activations above 5 % of their layer's maximum

The first two ask how the model's output changes, the next two how the scores are shared out, the
last one looks at the activations alone. Longer contexts have more edges, so every agreement comes
with the context length held constant too.
"""

from typing import Any, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import per_input
from graphtrace.analysis.reading import Selection, chosen_traces, groups_of, takes_selection
from graphtrace.analysis.stats import bootstrap_mean, bootstrap_rank_correlation, rank_correlation
from graphtrace.selection import TraceSource, check_curves

MEASURES = (
    "density",
    "density_normalised",
    "mass90_share",
    "score_gini",
    "mlp_active_share",
)


@takes_selection
def density(
    source: TraceSource,
    *,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> pd.DataFrame:
    """Density and its alternatives over the traces of a source, and how far they agree.

    One row per model, group and measure (`MEASURES`): model, the keys of `by`, measure, n (inputs
    that have a value), mean, mean_low, mean_high, sd (with n - 1), rho (Spearman's, between the
    measure and `density_normalised`), rho_low, rho_high, partial_rho (the same with the context
    length held constant), partial_rho_low, partial_rho_high. Intervals are 95 % percentile
    bootstraps over inputs (`draws` draws, `seed`); several traces of one input are averaged first.

    A measure that no trace has (mlp_active_share where the activations cannot be seen, or in
    archives of format 1) has n = 0 and NaN elsewhere. Also NaN: sd and intervals with one input,
    rho with fewer than 3 or of a constant measure, partial_rho with fewer than 4 or where the
    context length alone fixes one of the two measures.

    Raises OptionError where nothing matches, or where settings or kinds of first curves are mixed.
    """
    traces = chosen_traces(source, selection, ("measure", "n", "mean", "sd", "rho"))
    check_curves(traces)
    values = traces.assign(mass90_share=traces["mass90_edges"] / traces["n_edges"])
    rows: list[dict[str, Any]] = []
    for labels, own in groups_of(values):
        for measure in MEASURES:
            summary = _summary(_inputs(own, [measure]), draws, seed)
            agreement = _agreement(_inputs(own, [measure, *_AGAINST]), draws, seed)
            rows.append(labels | {"measure": measure} | summary | agreement)
    return pd.DataFrame(rows)


_AGAINST = ("density_normalised", "n_tokens")


def _inputs(traces: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """float64 [inputs, columns]: the mean over the traces of each input that have every column."""
    table = np.stack([traces[name].to_numpy(np.float64, na_value=np.nan) for name in columns], 1)
    whole = np.isfinite(table).all(axis=1)
    return per_input(traces["input"][whole].tolist(), table[whole])


def _summary(values: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    n, nan = len(values), float("nan")
    interval = bootstrap_mean(values, draws, seed)
    return {
        "n": n,
        "mean": float(values.mean()) if n else nan,
        "mean_low": float(interval.low[0]),
        "mean_high": float(interval.high[0]),
        "sd": float(values.std(ddof=1)) if n > 1 else nan,
    }


def _agreement(values: np.ndarray, draws: int, seed: int) -> dict[str, float]:
    """values: float64 [inputs, 3]: the measure, density_normalised, context length."""
    measure, against, length = values.T
    found = rank_correlation(measure, against, length)
    rho, partial = bootstrap_rank_correlation(measure, against, length, draws, seed)
    return {
        "rho": found.rho,
        "rho_low": float(rho.low),
        "rho_high": float(rho.high),
        "partial_rho": found.partial,
        "partial_rho_low": float(partial.low),
        "partial_rho_high": float(partial.high),
    }
