"""Nucleus curves: how large a trace must be to know the most probable tokens (method.md section 5).

The nucleus of k % is the shortest list of most probable tokens that holds k % of the probability;
a trace has it where its own list is the same, in the same order. A trace's nucleus size is the
first size of its curve whose trace has the full model's nucleus of k % (or a larger one).
"""

from typing import Any, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.bands import interval_of
from graphtrace.analysis.curves import first_curves
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    groups_of,
    labelled,
    takes_selection,
)
from graphtrace.curve import NUCLEUS_PERCENT
from graphtrace.selection import TraceSource

_COLUMNS = ("percent", "median", "q25", "q75", "share_reached", "n_inputs", "n_traces")
_NEVER = 1e9
"""Stands for the size of an input that never gets there: larger than any size, so that medians and
quartiles need no special case. What exceeds 1 is NaN in the table."""

_AT_ONCE = 1 << 22


@takes_selection
def nucleus(
    source: TraceSource,
    *,
    curve: str | None = None,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> pd.DataFrame:
    """The sizes at which traces come to know the full model's most probable tokens.

    One row per model, group and percent (`curve.NUCLEUS_PERCENT`): percent, median, median_low,
    median_high (95 % percentile bootstrap over inputs, `draws` draws, `seed`), q25, q75 of the
    nucleus size over inputs (fractions of |E|), share_reached (mean over inputs of the share of
    their traces that get there at all), n_inputs, n_traces. An input with several traces counts
    with their median. Inputs that never get there count as larger than any size, so a quantile is
    NaN where so many of them do not; the interval is NaN with one input too.

    curve: a kind of curve, the first ones by default (see `reconstruction`). Raises OptionError
    where nothing matches, settings or kinds of first curves are mixed, or no curve is of the kind.
    """
    traces = chosen_traces(source, selection, _COLUMNS)
    points = first_curves(source, traces, curve)
    sizes = nucleus_sizes(points)
    frames = []
    for labels, own in groups_of(traces):
        part = sizes.loc[sizes.index.get_level_values("trace").isin(own["id"])]
        if len(part) == 0:
            continue
        input_of = dict(zip(own["id"], own["input"], strict=True))
        inputs = [input_of[trace] for trace in part.index.get_level_values("trace")]
        frames.append(labelled(_summary(part, inputs, draws, seed), labels))
    return pd.concat(frames, ignore_index=True)


def nucleus_sizes(points: Any) -> Any:
    """One row per curve (index trace, curve), in the order of `points`, and one column per percent:
    the first size of the curve that has the nucleus, NaN where none has."""
    keys = ["trace", "curve"]
    all_curves = points[keys].drop_duplicates()
    found = {}
    for percent in NUCLEUS_PERCENT:
        good = points.loc[points["nucleus"] >= percent]
        found[percent] = good.groupby(keys, sort=False)["size"].first()
    frame = pd.DataFrame(found, index=pd.MultiIndex.from_frame(all_curves))
    return frame.astype(np.float64)


def _summary(sizes: Any, inputs: list[str], draws: int, seed: int) -> pd.DataFrame:
    reached = sizes.notna().groupby(inputs, sort=False).mean()
    by_input = sizes.fillna(_NEVER).groupby(inputs, sort=False).median().to_numpy()
    n = len(by_input)
    low, high = interval_of(_drawn_medians(by_input, draws, seed), n)
    q25, median, q75 = np.percentile(by_input, [25, 50, 75], axis=0)
    columns = {"median": median, "median_low": low, "median_high": high, "q25": q25, "q75": q75}
    there = {name: np.where(values > 1, np.nan, values) for name, values in columns.items()}
    return pd.DataFrame(
        {
            "percent": NUCLEUS_PERCENT,
            **there,
            "share_reached": reached.mean().to_numpy(),
            "n_inputs": n,
            "n_traces": len(set(sizes.index.get_level_values("trace"))),
        }
    )


def _drawn_medians(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """float64 [draws, columns]: medians of bootstrap draws of the rows."""
    rng, n = np.random.default_rng(seed), len(values)
    found, at_once = [], max(1, _AT_ONCE // n)
    for start in range(0, draws, at_once):  # bounds the [draws, inputs] tables
        drawn = rng.integers(0, n, (min(at_once, draws - start), n))
        found.append(np.stack([np.median(column[drawn], axis=1) for column in values.T], axis=1))
    return np.concatenate(found)
