"""A trace's curve beside baselines on the same inputs: a random trace, and necessity.

A random trace (scorer `random`) keeps as many edges as the trace, chosen by a random walk from the
output; the necessity curve says what is lost when the trace's attention and mlp edges are dropped.
Here several settings and kinds of curves stand side by side, one line each; they are not pooled.

What an evaluation leaves in the model is not always the trace: kinds of edges that are not masked
stay, and necessity keeps every residual edge (the authors' random and necessity runs do). The
effective size says how much: the mean over inputs of the edges left over |E|.
"""

from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.analysis.bands import drawn_means, input_means, interval_of, means, quantiles
from graphtrace.analysis.counts_at_size import model_shapes
from graphtrace.analysis.curves import POINTS, check_measure, input_curves
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    groups_of,
    labelled,
    read_selection,
    takes_selection,
)
from graphtrace.curve import densities, pooled_kind
from graphtrace.errors import OptionError
from graphtrace.selection import SETTINGS_COLUMNS, TraceSource, filter_traces

DEFAULT_KIND = "sufficiency:zero:" + ",".join(schema.KINDS)
_ALL_KINDS = ":" + ",".join(schema.KINDS)
_AT_ONCE = 100
_COLUMNS = (
    *("what", "settings", "kind", "reference", "n_inputs", "n_traces", "density"),
    *("density_normalised", "difference", "size", "mean", "q25", "q75", "effective_size"),
)


Frame = Any
"""A DataFrame, whose columns pandas' stubs cannot type."""


class Baselines(NamedTuple):
    """What `baselines` returns, see there."""

    summary: pd.DataFrame
    curve: pd.DataFrame


class _Line(NamedTuple):
    """Settings and a kind of curve, with its name in tables."""

    settings: str
    kind: str
    what: str
    scorer: str


@takes_selection
def baselines(
    source: TraceSource,
    measure: str = "tv",
    *,
    reference: str | None = None,
    points: int = POINTS,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> Baselines:
    """Curves and densities of every settings and kind of curve that the traces have, side by side.

    reference: what the others are compared with, by its `what`, its settings' id or its kind; by
    default the settings with most traces, with the kind `sufficiency:zero` where they have it. A
    line is over the inputs (and positions) that the reference has too, so each pair of lines is of
    the same inputs. measure, points, draws, seed: see `reconstruction`. `settings` in the selection
    leaves the lines of one settings.

    summary  one row per model, group and line, the reference first: what, settings, kind, n_inputs,
             density, density_normalised (of each curve's TV, mean over inputs, with intervals),
             difference with difference_low and difference_high (of density_normalised to the
             reference's, paired by input: above 0 the curve falls later)
    curve    one row per model, group, line and size (`points` log-spaced ones, the same for all
             lines): what, settings, kind, size, mean, mean_low, mean_high, q25, q75,
             effective_size (edges that the evaluation left in the model, over |E|; NaN where the
             source does not say how many of each kind there are), n_inputs

    Intervals are 95 % percentile bootstraps over inputs, NaN with one. A line without an input of
    the reference's has n_inputs 0, NaN elsewhere, and no rows in `curve`. Raises OptionError where
    nothing matches, or the reference is none or several of the lines.
    """
    check_measure(measure)
    traces = _all_settings(source, selection)
    found: Frame = source.curve_points(traces["id"].tolist())
    kinds = {kind: pooled_kind(kind) for kind in found["kind"].unique()}
    settings = dict(zip(traces["id"], traces["settings"], strict=True))
    found = found.assign(kind=found["kind"].map(kinds), settings=found["trace"].map(settings))
    lines = _lines(traces, found)
    chosen = _reference(lines, reference)
    lines = [chosen, *(line for line in lines if line != chosen)]
    left = _edges_left(source, traces, found)
    summaries, curves = [], []
    for labels, own in groups_of(traces):
        summary, curve = _group(own, found, lines, left, measure, points, draws, seed)
        summaries.append(labelled(summary, labels))
        curves.append(labelled(curve, labels))
    return Baselines(
        pd.concat(summaries, ignore_index=True),
        pd.concat([x for x in curves if len(x)] or curves, ignore_index=True),
    )


def _all_settings(source: TraceSource, selection) -> pd.DataFrame:
    """`chosen_traces` of every settings that the selection leaves."""
    want = read_selection(selection)
    left = filter_traces(source.traces(), want["models"], want["settings"], want["where"])
    if len(left) == 0:
        raise OptionError("there are no traces here yet; run `graphtrace extract` first")
    parts = [
        chosen_traces(source, {**want, "settings": settings}, _COLUMNS)
        for settings in dict.fromkeys(left["settings"])
    ]
    return pd.concat(parts, ignore_index=True)


def _lines(traces: Frame, points: Frame) -> list[_Line]:
    """Every settings with every kind of curve, those with most traces first; of as many, a random
    trace comes behind and plain sufficiency first."""
    first = traces.drop_duplicates("settings").set_index("settings")
    differ = [x for x in SETTINGS_COLUMNS if len(set(map(str, first[x].tolist()))) > 1]
    pairs = points.drop_duplicates(["trace", "kind"]).groupby(["settings", "kind"], sort=True)
    counted = [(settings, kind, len(own)) for (settings, kind), own in pairs]
    counted.sort(
        key=lambda x: (-x[2], first["scorer"][x[0]] == "random", x[1] != DEFAULT_KIND, x[:2])
    )
    lines = []
    for settings, kind, _ in counted:
        row = first.loc[settings]
        more = [
            f"{x} {row[x]}" for x in differ if x not in ("scorer", "search") and not pd.isna(row[x])
        ]
        search = [row["search"]] if "search" in differ and row["scorer"] != "random" else []
        named = ", ".join([row["scorer"], *search, *more])
        what = f"{named} {kind.replace(_ALL_KINDS, '')}"
        lines.append(_Line(settings, kind, what, row["scorer"]))
    return lines


def _reference(lines: list[_Line], name: str | None) -> _Line:
    if name is None:
        most = [line for line in lines if line.settings == lines[0].settings]
        return next((line for line in most if line.kind == DEFAULT_KIND), most[0])
    for match in (
        [line for line in lines if line.what == name],
        [line for line in lines if line.settings == name and line.kind == DEFAULT_KIND],
        [line for line in lines if line.settings == name],
        [line for line in lines if name in (line.kind, line.kind.replace(_ALL_KINDS, ""))],
    ):
        if len(match) == 1:
            return match[0]
    listed = "; ".join(f"{line.what!r} (settings {line.settings})" for line in lines)
    raise OptionError(f"reference {name!r} is not one of the curves here: {listed}")


def _group(own, found, lines, left, measure, n_points, draws, seed):
    """(summary, curve) of the traces of one model and group."""
    places = dict(
        zip(own["id"], zip(own["input"], own["position"].tolist(), strict=True), strict=True)
    )
    n_edges = dict(zip(own["id"], own["n_edges"].tolist(), strict=True))
    input_of = {trace: place[0] for trace, place in places.items()}
    found = found.loc[found["trace"].isin(places)]
    found = found.assign(place=found["trace"].map(places), left=left.loc[found.index])
    parts = [
        found.loc[(found["settings"] == line.settings) & (found["kind"] == line.kind)]
        for line in lines
    ]
    shared = set(parts[0]["place"])
    parts = [part.loc[part["place"].isin(shared)] for part in parts]
    axis = input_curves(parts[0], input_of, n_points, measure) if len(parts[0]) else None
    size = None if axis is None else axis.size
    values = [_densities(part, input_of, n_edges) for part in parts]
    summaries, curves = [], []
    for line, part, own_values in zip(lines, parts, values, strict=True):
        names = {"what": line.what, "settings": line.settings, "kind": line.kind}
        summaries.append(names | _summary(own_values, values[0], draws, seed))
        table = None if size is None else input_curves(part, input_of, n_points, measure, size)
        if table is not None:
            band = _band(table, draws, seed)
            effective = _effective(part, input_of, n_points, size)
            band.insert(len(band.columns) - 1, "effective_size", effective)
            curves.append(labelled(band, names))
    empty = pd.DataFrame(columns=["what", "settings", "kind", "size", "mean"])
    return pd.DataFrame(summaries), pd.concat(curves, ignore_index=True) if curves else empty


def _band(table, draws: int, seed: int) -> pd.DataFrame:
    n = np.isfinite(table.values).sum(0)
    low, high = interval_of(drawn_means(table.values, draws, seed), n)
    q25, q75 = quantiles(table.values, [25, 75])
    return pd.DataFrame(
        {
            "size": table.size,
            "mean": means(table.values),
            "mean_low": low,
            "mean_high": high,
            "q25": q25,
            "q75": q75,
            "n_inputs": n,
        }
    )


def _effective(part: Frame, input_of, n_points: int, size) -> np.ndarray:
    """float64 [points]: the effective size, between a curve's points linear in both logarithms, so
    that it is the size itself where nothing else is left."""
    left = part.assign(tv=np.log10(part["left"].where(part["n_edges"] >= 1)))
    table = input_curves(left, input_of, n_points, "tv", size)
    return np.full(n_points, np.nan) if table is None else means(10**table.values)


def _densities(part: Frame, input_of, n_edges) -> pd.DataFrame:
    """density, density_normalised by input, the mean over its curves."""
    rows, inputs = [], []
    for (trace, _), points in part.groupby(["trace", "curve"], sort=False):
        k, tv = points["n_edges"].to_numpy(), points["tv"].to_numpy()
        rows.append(densities(k, tv, n_edges[trace]))
        inputs.append(input_of[trace])
    values = input_means(inputs, np.array(rows).reshape(-1, 2))
    columns = ["density", "density_normalised"]
    return pd.DataFrame(values, index=list(dict.fromkeys(inputs)), columns=columns)


def _summary(values: pd.DataFrame, reference: pd.DataFrame, draws, seed) -> dict[str, Any]:
    other = reference["density_normalised"].reindex(values.index)
    table = values.assign(difference=values["density_normalised"] - other).to_numpy(np.float64)
    known = np.isfinite(table).all(axis=1)
    table = table[known]
    low, high = interval_of(drawn_means(table, draws, seed), len(table))
    row: dict[str, Any] = {"n_inputs": len(table)}
    for i, name in enumerate(("density", "density_normalised", "difference")):
        row[name] = float(means(table)[i])
        row[f"{name}_low"], row[f"{name}_high"] = float(low[i]), float(high[i])
    return row


# ------------------------------------------------------------------------------ effective size


def _edges_left(source: TraceSource, traces: pd.DataFrame, points: Frame) -> pd.Series:
    """float64 per row of `points`: edges that the evaluation left in the model over |E|
    (`Trace.edges_left`); NaN where the source has not counted the kinds at that size."""
    by_kind = _kinds(source, traces, points)
    total = points["trace"].map(dict(zip(traces["id"], traces["n_edges"], strict=True)))
    total = total.to_numpy(np.float64)
    everything = by_kind.loc[by_kind["n_edges"] == by_kind["whole"]].set_index("trace")
    names = list(schema.KINDS)
    inside = points[["trace", "n_edges"]].merge(by_kind, on=["trace", "n_edges"], how="left")
    inside = inside[names].to_numpy(np.float64)
    whole = everything.reindex(points["trace"])[names].to_numpy(np.float64)
    left = np.full(len(points), np.nan)
    for kind in points["kind"].unique():
        rows = (points["kind"] == kind).to_numpy()
        mode, _, ablate = kind.split(":")[:3]
        masked = [names.index(x) for x in ablate.split(",")]
        if mode == "necessity":
            masked = [i for i in masked if i != schema.RESIDUAL]
            left[rows] = total[rows] - inside[rows][:, masked].sum(1)
        elif len(masked) == len(names):
            left[rows] = points["n_edges"].to_numpy()[rows]
        else:
            outside = whole[rows][:, masked].sum(1)
            left[rows] = total[rows] - outside + inside[rows][:, masked].sum(1)
    return pd.Series(left / total, index=points.index)


def _kinds(source: TraceSource, traces: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """trace, n_edges, whole (|E|) and the edges of each kind among the first n_edges, from what
    the source has counted, of the traces whose evaluations leave other edges than the trace's."""
    plain = points["kind"].str.match(r"sufficiency:[^:]+:residual,mlp,attention(:|$)")
    needed = traces.loc[traces["id"].isin(points.loc[~plain, "trace"])]
    parts = []
    for model, shape in model_shapes(source, needed).items() if len(needed) else ():
        own = needed.loc[needed["model"] == model]
        into = np.eye(len(schema.KINDS))[[kind for _, kind, _, _ in schema.components(*shape)]]
        for start in range(0, len(own), _AT_ONCE):
            some = own.iloc[start : start + _AT_ONCE]
            parts.append(_kinds_of(source, some, into))
    names = ["trace", "n_edges", "whole", *schema.KINDS]
    empty = pd.DataFrame({name: np.zeros(0) for name in names[1:]})
    empty.insert(0, "trace", np.zeros(0, object))
    return pd.concat([part for part in parts if len(part)] or [empty], ignore_index=True)


def _kinds_of(source: TraceSource, some: pd.DataFrame, into: np.ndarray) -> pd.DataFrame:
    known: Frame = source.component_counts(some["id"].tolist())
    if len(known) == 0:
        return known
    by_kind = np.stack(known["counts"].tolist()).astype(np.float64) @ into
    whole = known["trace"].map(dict(zip(some["id"], some["n_edges"], strict=True)))
    found = known[["trace", "n_edges"]].assign(
        whole=whole, **{name: by_kind[:, i] for i, name in enumerate(schema.KINDS)}
    )
    return found.drop_duplicates(["trace", "n_edges"])
