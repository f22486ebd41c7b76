"""Reconstruction curves of many inputs brought onto one axis of sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graphtrace.analysis.bands import input_means
from graphtrace.curve import Curve, pooled_kind
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource, check_curves, check_kinds

POINTS = 150
BAND_MEASURES = ("tv", "kl", "p_predicted", "p_target", "logit_diff")
"""Measures of a curve's points that are averaged over inputs."""


class CurveBand(NamedTuple):
    """TV, or another measure, over inputs at log-spaced sizes; float64 [points] each.

    size: fractions of |E|; mean; low, high: 5 and 95 %; q25, q75: quartiles; n: int64, how many
    curves reach so small a size. NaN where fewer than half of them do.
    """

    size: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    q25: np.ndarray
    q75: np.ndarray
    high: np.ndarray
    n: np.ndarray


class InputCurves(NamedTuple):
    """Curves on one axis. size: float64 [points], fractions of |E|; values: float64 [inputs,
    points], NaN where an input's curve does not reach; inputs: ids; n_curves: of all inputs."""

    size: np.ndarray
    values: np.ndarray
    inputs: list[str]
    n_curves: int


def check_measure(measure: str) -> str:
    """The measure as such; raises OptionError unless it is one of `BAND_MEASURES`."""
    if measure not in BAND_MEASURES:
        raise OptionError(f"measure {measure!r} is none of {', '.join(BAND_MEASURES)}")
    return measure


def interpolate(curve: Curve, size: np.ndarray, measure: str = "tv") -> np.ndarray:
    """float64 [points]: a measure of the curve (see `BAND_MEASURES`) at the given sizes, linear in
    log10 size between its points.

    NaN below the first point that keeps an edge and above the last. Of several points with the
    same edges the first counts. Raises OptionError where the curve has no such measure.
    """
    values = getattr(curve, check_measure(measure))
    if values is None:
        raise OptionError(
            f"a curve has no {measure}: its input had no "
            f"{'target' if measure == 'p_target' else 'target and foil'}; trace it with one"
        )
    k, first = np.unique(curve.k, return_index=True)
    first = first[k >= 1]
    return _between(np.log10(curve.size[first]), values[first], np.log10(size))


def _between(x: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values at `wanted` between points at x (log10 sizes, ascending); NaN outside of them."""
    if len(x) == 0:
        return np.full(len(wanted), np.nan)
    inside = (wanted >= x[0] - 1e-12) & (wanted <= x[-1] + 1e-12)
    return np.where(inside, np.interp(wanted, x, values), np.nan)


def curve_band(curves: Sequence[Curve], points: int = POINTS, measure: str = "tv") -> CurveBand:
    """Mean and quantiles of a measure over curves, from the smallest size that half of them reach
    to 1.

    Short inputs have no small sizes, so the left end holds fewer of them: `n` says how many.
    Raises OptionError where the curves are of several kinds, or one has no such measure.
    """
    check_kinds(curve.kind for curve in curves)
    size = _axis(np.array([float(c.size[c.k >= 1].min(initial=1.0)) for c in curves]), points)
    table = np.stack([interpolate(curve, size, measure) for curve in curves])
    n = np.isfinite(table).sum(0)
    enough = 2 * n >= len(curves)
    mean, quantiles = np.full(points, np.nan), np.full((4, points), np.nan)
    mean[enough] = np.nanmean(table[:, enough], axis=0)
    quantiles[:, enough] = np.nanpercentile(table[:, enough], [5, 25, 75, 95], axis=0)
    low, q25, q75, high = quantiles
    return CurveBand(size, mean, low, q25, q75, high, n)


def _axis(starts: np.ndarray, points: int) -> np.ndarray:
    """Log-spaced sizes from the smallest that half of the curves reach to 1."""
    return np.geomspace(np.sort(starts)[len(starts) // 2], 1.0, points)


# ------------------------------------------------------------------------- curves of a source


def first_curves(source: TraceSource, traces: pd.DataFrame, kind: str | None = None) -> Any:
    """Points (`curve.POINT_COLUMNS`) of one curve of every trace: of the first ones, or of those
    of a kind (`mode:ablation:ablate`, without the pair of a counterfactual one); traces without it
    are left out, and a trace with several pairs has several.

    Raises OptionError where the first curves are of several kinds, or none is of that kind.
    """
    if kind is None:
        check_curves(traces)
    points: Any = source.curve_points(traces["id"].tolist())
    if kind is None:
        return points.loc[points["curve"] == 0]
    wanted = pooled_kind(kind)
    names = {name: pooled_kind(name) for name in points["kind"].unique()}
    found = points.loc[points["kind"].map(names) == wanted]
    if len(found) == 0:
        known = "; ".join(sorted(set(names.values()))) or "none"
        raise OptionError(f"no trace has a curve of kind {kind!r}; kinds here: {known}")
    return found


def by_curve(points: pd.DataFrame, measure: str) -> dict[tuple[str, int], tuple]:
    """(log10 size, values) of the points that keep an edge and have the measure, ascending, by
    (trace, curve); of several points with the same edges the first counts."""
    usable = (points["n_edges"] >= 1) & np.isfinite(points[measure].astype(np.float64))
    frame = points.loc[usable, ["trace", "curve", "n_edges", "size", measure]]
    frame = frame.drop_duplicates(["trace", "curve", "n_edges"])
    trace, names = pd.factorize(frame["trace"])
    curve, k = frame["curve"].to_numpy(), frame["n_edges"].to_numpy()
    order = np.lexsort([k, curve, trace])
    trace, curve = trace[order], curve[order]
    x = np.log10(frame["size"].to_numpy()[order])
    values = frame[measure].to_numpy(np.float64)[order]
    new = np.flatnonzero((np.diff(trace) != 0) | (np.diff(curve) != 0)) + 1
    starts, ends = [0, *new.tolist()], [*new.tolist(), len(x)]
    return {
        (str(names[trace[a]]), int(curve[a])): (x[a:b], values[a:b])
        for a, b in zip(starts, ends, strict=True)
        if b > a
    }


def input_curves(
    points: pd.DataFrame,
    input_of: dict[str, str],
    n_points: int = POINTS,
    measure: str = "tv",
    size: np.ndarray | None = None,
) -> InputCurves | None:
    """Curves of many traces on one axis, those of one input averaged; None where no curve has the
    measure.

    points: of `first_curves`. input_of: the input's id, by trace. size: the axis; by default
    n_points log-spaced sizes from the smallest that half of the inputs reach to 1.
    """
    if n_points < 2:
        raise OptionError(f"{n_points} points are no curve; take at least 2")
    curves = by_curve(points, check_measure(measure))
    if not curves:
        return None
    inputs = [input_of[trace] for trace, _ in curves]
    if size is None:
        starts: dict[str, float] = {}
        for input_, (x, _) in zip(inputs, curves.values(), strict=True):
            starts[input_] = min(starts.get(input_, 1.0), 10 ** x[0])
        size = _axis(np.array(list(starts.values())), n_points)
    wanted = np.log10(size)
    table = np.stack([_between(x, values, wanted) for x, values in curves.values()])
    return InputCurves(size, input_means(inputs, table), list(dict.fromkeys(inputs)), len(inputs))
