"""Density by the length of the context, the prediction held: matched continuations.

Texts that end in the same words before the same continuation, with more and more true context
(`designs.matched_continuations`). Within endings, does density change with the length?
"""

from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.measured_traces import traces_with_measure
from graphtrace.analysis.reading import Selection, groups_of, labelled, takes_selection
from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.conditions import values_of
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource

Frame = Any
"""A DataFrame, whose columns pandas' stubs cannot type."""

LENGTHS = (
    *("measure", "context", "n_endings", "n_tokens"),
    *("mean", "mean_low", "mean_high"),
)
"""Columns of the table `lengths`, behind those of the group."""

_SLOPE = ("slope", "slope_low", "slope_high")
TREND = ("measure", "n_endings", "n_left_out", "n_contexts", *_SLOPE, "page_l", "p")
"""Columns of the table `trend`, behind those of the group."""

TAKEN = {*LENGTHS, *TREND}


class MatchedContexts(NamedTuple):
    """What `matched_contexts` returns, see there."""

    lengths: pd.DataFrame
    trend: pd.DataFrame


@takes_selection
def matched_contexts(
    source: TraceSource,
    *,
    measure: str = "density_normalised",
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> MatchedContexts:
    """Density by the length of the context, within endings.

    The inputs have the labels `ending` (which one) and `context` (its length in words). measure:
    one of `density.MEASURES`, entropy or loss. Only endings with a value at every length of their
    model and group count, so that lengths are compared over the same endings. Two tables, rows
    begin with model and the keys of `by`:

    lengths  one row per length: measure, context (words), n_endings, n_tokens (mean context length
             in tokens), mean, mean_low, mean_high
    trend    one row: measure, n_endings, n_left_out (endings without every length), n_contexts,
             slope (per doubling of the context: least squares on log2 of the words within each
             ending, mean over endings), slope_low, slope_high; page_l (Page's L, lengths
             ascending) and p (of Page's trend test, two-sided: twice the smaller of rising and
             falling, at most 1)

    Intervals are 95 % percentile bootstraps over endings (`draws`, `seed`), NaN with one ending;
    the test needs 2 endings and 3 lengths, the slope 2 lengths. Raises OptionError where no trace
    has the labels, for a context that is no number above 0 and an unknown measure, and where
    settings or kinds of first curves are mixed.
    """
    traces = traces_with_measure(source, selection, measure, TAKEN)
    ending, context = (values_of(traces, key) for key in ("ending", "context"))
    traces = traces.assign(
        ending=ending, context=[_length(x, y) for x, y in zip(context, traces["name"], strict=True)]
    )
    both = np.array([x is not None for x in ending]) & traces["context"].notna().to_numpy()
    if not both.any():
        raise OptionError(
            "no trace has both labels, ending and context; `graphtrace design matched` makes such "
            "a corpus"
        )
    traces = traces.loc[both]
    lengths, trend = [], []
    for labels, own in groups_of(traces):
        found, row = _within_endings(own, measure, draws, seed)
        lengths.append(labelled(found, labels))
        trend.append(labels | row)
    return MatchedContexts(pd.concat(lengths, ignore_index=True), pd.DataFrame(trend))


def _length(context: Any, name: str) -> float:
    if context is None:
        return float("nan")
    try:
        length = float(context)
    except ValueError:
        length = 0.0
    if not 0 < length < np.inf:
        raise OptionError(
            f"the label context of input {name!r} is {context!r}, not a number of words above 0"
        )
    return length


def _within_endings(
    traces: Frame, measure: str, draws: int, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of `lengths` and of `trend` of one model and group, without its labels."""
    from scipy.stats import page_trend_test

    cells = traces.groupby(["ending", "context", "input"], sort=True)[["value", "n_tokens"]].mean()
    cells = cells.groupby(["ending", "context"], sort=True).mean()
    value = cells["value"].unstack("context")
    whole = np.isfinite(value.to_numpy(np.float64)).all(axis=1)
    table = value.to_numpy(np.float64)[whole]
    tokens = cells["n_tokens"].unstack("context").to_numpy(np.float64)[whole]
    contexts, n = value.columns.to_numpy(np.float64), len(table)
    nothing, interval = np.full(len(contexts), np.nan), bootstrap_mean(table, draws, seed)
    lengths = pd.DataFrame(
        {
            "measure": measure,
            "context": [int(x) if x == int(x) else x for x in contexts],
            "n_endings": n,
            "n_tokens": tokens.mean(0) if n else nothing,
            "mean": table.mean(0) if n else nothing,
            "mean_low": interval.low,
            "mean_high": interval.high,
        }
    )
    trend: dict[str, Any] = dict.fromkeys(TREND, float("nan"))
    trend |= {
        "measure": measure,
        "n_endings": n,
        "n_left_out": len(value) - n,
        "n_contexts": len(contexts),
    }
    if n and len(contexts) > 1:
        doublings = np.log2(contexts) - np.log2(contexts).mean()
        slopes = table @ doublings / (doublings @ doublings)
        ends = bootstrap_mean(slopes[:, None], draws, seed)
        found = (slopes.mean(), ends.low[0], ends.high[0])
        trend |= dict(zip(_SLOPE, map(float, found), strict=True))
    if n > 1 and len(contexts) > 2:
        rising, falling = page_trend_test(table), page_trend_test(table[:, ::-1])
        trend["page_l"] = float(rising.statistic)
        trend["p"] = min(2 * float(min(rising.pvalue, falling.pvalue)), 1.0)
    return lengths, trend
