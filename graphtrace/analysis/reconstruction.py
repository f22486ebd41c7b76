"""Reconstruction curves across inputs, and their phases (method.md section 6; paper, section 4).

A trace's curve says how far the trace of each size is from the full prediction. Over many inputs
the mean curve falls in two phases, which are found from its slope:

    slope         what the mean gains per decade of size (the fall of TV and KL, the rise of the
                  others; the other way round in a necessity curve, whose edges are dropped), over
                  the half decade around a size, less at the ends of the curve
    minimal core  the size where the slope is greatest
    construction  the contiguous sizes around it whose slope is at least a quarter of that
    refinement    from the end of the construction to 1

A quarter, because the slope has no natural zero: before and after the construction curves still
creep. Where it is a fraction of its maximum does not change with the measure's unit, and a window
of half a decade bridges the grid's steps (at most 0.3 decades) without hiding a phase of two
decades. Full-size models are published with a construction from 1e-4 to 1e-2 and a minimal core
near 1e-3; small models and short inputs have fewer edges, and their phases lie at larger sizes.
"""

from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.bands import drawn_means, interval_of, means, quantiles
from graphtrace.analysis.curves import (
    POINTS,
    InputCurves,
    check_measure,
    first_curves,
    input_curves,
)
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    groups_of,
    labelled,
    takes_selection,
)
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource

HALF_WINDOW = 0.25
"""Decades on either side of a size over which its slope is taken."""

SHARE = 0.25
"""Share of the greatest slope down to which the construction reaches."""

PHASE_COLUMNS = (
    *("core_size", "core_value", "slope"),
    *("construction_start", "construction_end", "end_value"),
)
_FALLS = ("tv", "kl")
_COLUMNS = (
    *("size", "mean", "q05", "q25", "median", "q75", "q95", "n_inputs", "n_traces", "n_curves"),
    *("measure", *PHASE_COLUMNS),
)


class Reconstruction(NamedTuple):
    """What `reconstruction` returns, see there."""

    curve: pd.DataFrame
    phases: pd.DataFrame


@takes_selection
def reconstruction(
    source: TraceSource,
    measure: str = "tv",
    *,
    curve: str | None = None,
    points: int = POINTS,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> Reconstruction:
    """Curves of a measure over inputs, by size, and the phases of their mean.

    measure: `tv`, `kl` (nats), `p_predicted`, `p_target` or `logit_diff`. curve: a kind of curve,
    `mode:ablation:ablate` as `traces` lists it (of a counterfactual one without its pair); the
    first curves by default. Traces without that curve or measure are left out. Curves are linear
    in log10 size between their points; several curves of one input are averaged first. Intervals
    are 95 % percentile bootstraps over inputs (`draws` draws, `seed`), NaN with one input.

    curve   one row per model, group and size (`points` log-spaced ones, from the smallest that
            half of the inputs reach to 1; fractions of |E|): size, mean, mean_low, mean_high, q05,
            q25, median, q75, q95 over inputs, n_inputs that reach it
    phases  one row per model and group: measure, n_inputs, n_curves, then with their intervals
            (`X`, `X_low`, `X_high`): core_size, core_value (the mean there), slope (gain per
            decade there), construction_start, construction_end (sizes; a start at the smallest
            size of `curve` means that it began before) and end_value (the mean at the end: what
            refinement is left with). NaN where the mean never gains

    Raises OptionError where nothing matches, settings or kinds of first curves are mixed, or no
    curve has the measure.
    """
    check_measure(measure)
    traces = chosen_traces(source, selection, _COLUMNS)
    found = first_curves(source, traces, curve)
    input_of = dict(zip(traces["id"], traces["input"], strict=True))
    curves, phases = [], []
    for labels, own in groups_of(traces):
        part = found.loc[found["trace"].isin(own["id"])]
        table = input_curves(part, input_of, points, measure)
        if table is None:
            continue
        drawn = drawn_means(table.values, draws, seed)
        curves.append(labelled(_band(table, drawn), labels))
        necessity = str(part["kind"].iloc[0]).startswith("necessity:")
        sign = 1.0 if (measure in _FALLS) != necessity else -1.0
        phases.append(labels | {"measure": measure} | _phases(table, drawn, sign))
    if not curves:
        raise OptionError(
            f"no curve has {measure}: none of the inputs had a target"
            f"{'' if measure == 'p_target' else ' and a foil'}; trace them with one"
        )
    return Reconstruction(pd.concat(curves, ignore_index=True), pd.DataFrame(phases))


def _band(table: InputCurves, drawn: np.ndarray) -> pd.DataFrame:
    n = np.isfinite(table.values).sum(0)
    low, high = interval_of(drawn, n)
    q05, q25, median, q75, q95 = quantiles(table.values, [5, 25, 50, 75, 95])
    return pd.DataFrame(
        {
            "size": table.size,
            "mean": means(table.values),
            "mean_low": low,
            "mean_high": high,
            "q05": q05,
            "q25": q25,
            "median": median,
            "q75": q75,
            "q95": q95,
            "n_inputs": n,
        }
    )


def _phases(table: InputCurves, drawn: np.ndarray, sign: float) -> dict[str, Any]:
    value = find_phases(table.size, means(table.values)[None, :], sign)[0]
    low, high = interval_of(find_phases(table.size, drawn, sign), len(table.inputs))
    row: dict[str, Any] = {"n_inputs": len(table.inputs), "n_curves": table.n_curves}
    for i, name in enumerate(PHASE_COLUMNS):
        known = np.isfinite(value[i])
        row[name] = float(value[i])
        row[f"{name}_low"] = float(low[i]) if known else float("nan")
        row[f"{name}_high"] = float(high[i]) if known else float("nan")
    return row


def slopes(size: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """float64 [curves, points]: the fall of each mean curve per decade, over the half decade
    around a size. size: float64 [points], ascending; mean: float64 [curves, points]."""
    x, at = np.log10(size), np.arange(len(size))
    low = np.searchsorted(x, x - HALF_WINDOW - 1e-9)
    high = np.searchsorted(x, x + HALF_WINDOW + 1e-9, side="right") - 1
    low, high = np.minimum(low, np.maximum(at - 1, 0)), np.maximum(high, at + (at < at[-1]))
    return (mean[:, low] - mean[:, high]) / (x[high] - x[low])


def find_phases(size: np.ndarray, mean: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """float64 [curves, 6]: `PHASE_COLUMNS` of mean curves; NaN for one that never gains.

    size: float64 [points], ascending; mean: float64 [curves, points], NaN where there is none;
    sign: 1 for a measure whose fall is the gain, -1 for one whose rise is.
    """
    found = np.full((len(mean), len(PHASE_COLUMNS)), np.nan)
    if size[0] >= size[-1]:
        return found  # nothing keeps an edge before all are kept
    slope = slopes(size, sign * mean)
    slope = np.where(np.isfinite(slope), slope, -np.inf)
    greatest = slope.max(axis=1)
    # Rounding must not choose among equal slopes: the smallest size does.
    core = (slope >= (greatest * (1 - 1e-9))[:, None]).argmax(axis=1)
    at, rows = np.arange(len(size)), np.arange(len(mean))
    outside = slope < (SHARE * greatest)[:, None]
    before = outside & (at < core[:, None])
    after = outside & (at > core[:, None])
    start = np.where(before, at, -1).max(axis=1) + 1
    end = np.where(after, at, len(size)).min(axis=1) - 1
    columns = (size[core], mean[rows, core], greatest, size[start], size[end], mean[rows, end])
    gains = greatest > 1e-12
    found[gains] = np.stack(columns, axis=1)[gains]
    return found
