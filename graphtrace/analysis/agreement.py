"""Do models find the same inputs dense? Spearman's rho of a measure between every two models.

Inputs are matched by their id. Published for ten models of one corpus: rho 0.26 ... 0.71, mean 0.52
over 45 pairs (arXiv 2605.27033; method.md section 6).
"""

from itertools import combinations
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import per_input
from graphtrace.analysis.measured_traces import traces_with_measure
from graphtrace.analysis.reading import (
    Selection,
    groups_of,
    read_selection,
    takes_selection,
)
from graphtrace.analysis.stats import (
    Pair,
    bootstrap_rank_correlations,
    false_discovery_q,
    rank_correlation_p,
    rank_correlations,
)
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource

_ENDS = ("", "_low", "_high")
_PAIRS = (
    *("other_model", "measure", "n_inputs"),
    *(f"rho{end}" for end in _ENDS),
    *("p", "q"),
    *(f"partial_rho{end}" for end in _ENDS),
)
_SUMMARY = (
    *("measure", "n_models", "n_pairs", "n_inputs_min"),
    *(f"{name}_{of}" for name in ("rho", "partial_rho") for of in ("mean", "min", "max")),
)


class Agreement(NamedTuple):
    """What `agreement` returns, see there."""

    pairs: pd.DataFrame
    summary: pd.DataFrame


@takes_selection
def agreement(
    source: TraceSource,
    *,
    measure: str = "density_normalised",
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> Agreement:
    """Rank correlation of a measure between every two models, over the inputs that both have.

    measure: one of `density.MEASURES`, entropy or loss. Two tables, rows begin with the keys of
    `by`:

    pairs    one row per two models and group: model, other_model (ids), measure, n_inputs (that
             both models have a value for), rho (Spearman's) with rho_low, rho_high; p (two-sided;
             all orders up to 8 inputs, Student's t above) and q (Benjamini and Hochberg's, over
             the table); partial_rho with partial_rho_low, partial_rho_high, the context length in
             either model's tokens held constant
    summary  one row per group: measure, n_models, n_pairs (with a rho), n_inputs_min (the fewest
             inputs of such a pair), rho_mean, rho_min, rho_max, partial_rho_mean, _min, _max

    Intervals are 95 % percentile bootstraps over inputs (`draws`, `seed`); several traces of one
    input are averaged first. rho is NaN with fewer than 3 inputs or where one is constant,
    partial_rho with fewer than 5 or where the lengths fix one of the two. With one model `pairs` is
    empty and the summary says so with n_pairs 0.

    Raises OptionError for an unknown measure, for `by` model, where nothing matches, and where
    settings or kinds of first curves are mixed.
    """
    by = read_selection(selection)["by"] or []
    if any(key.removeprefix("trace.") in ("model", "model_name") for key in by):
        raise OptionError("agreement is between models, so groups cannot be models; leave it away")
    taken = ("model", *_PAIRS, *_SUMMARY)
    traces = traces_with_measure(source, selection, measure, taken)
    groups: dict[tuple, dict[str, pd.DataFrame]] = {}
    keys: list[str] = []
    for labels, own in groups_of(traces):
        model = labels.pop("model")
        keys = list(labels)
        groups.setdefault(tuple(labels.values()), {})[model] = _per_input(own)
    pairs, summary = [], []
    for values, models in groups.items():
        labels = dict(zip(keys, values, strict=True))
        rows = [
            {**labels, "model": one, "other_model": other, "measure": measure} | found
            for (one, other), found in _agree(models, draws, seed).items()
        ]
        pairs += rows
        summary.append({**labels, "measure": measure, "n_models": len(models)} | _summary(rows))
    frame = pd.DataFrame(pairs, columns=[*keys, "model", *(x for x in _PAIRS if x != "q")])
    q = false_discovery_q(frame["p"].to_numpy(np.float64))
    frame.insert(int(frame.columns.get_indexer(["p"])[0]) + 1, "q", q)
    return Agreement(frame, pd.DataFrame(summary))


def _per_input(traces: pd.DataFrame) -> pd.DataFrame:
    """Mean of the measure and of the context length, indexed by the input's id."""
    columns = ["value", "n_tokens"]
    table = np.stack([traces[x].to_numpy(np.float64, na_value=np.nan) for x in columns], 1)
    whole = np.isfinite(table).all(axis=1)
    inputs = traces["input"][whole].tolist()
    return pd.DataFrame(
        per_input(inputs, table[whole]),
        index=list(dict.fromkeys(inputs)),
        columns=["value", "length"],
    )


def _agree(
    models: dict[str, pd.DataFrame], draws: int, seed: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """What a row of `pairs` says of every two models."""
    # Pairs over the same inputs, as a rule all of them, share their ranks and one bootstrap.
    inputs: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one, other in combinations(models, 2):
        both = models[one].index[models[one].index.isin(models[other].index)]
        inputs.setdefault(tuple(sorted(both)), []).append((one, other))
        rows[one, other] = {"n_inputs": len(both)}
    for both, asked in inputs.items():
        place = {model: 2 * i for i, model in enumerate(dict.fromkeys(sum(asked, ())))}
        values = np.concatenate(
            [models[x].loc[[*both], ["value", "length"]].to_numpy(np.float64).T for x in place]
        )
        wanted = [
            Pair(place[one], place[other], controls)
            for one, other in asked
            for controls in ((), (place[one] + 1, place[other] + 1))
        ]
        found = rank_correlations(values, wanted)
        low, high = bootstrap_rank_correlations(values, wanted, draws, seed)
        for i, pair in enumerate(asked):
            for name, at in (("rho", 2 * i), ("partial_rho", 2 * i + 1)):
                ends = zip(_ENDS, (found[at], low[at], high[at]), strict=True)
                rows[pair] |= {f"{name}{end}": float(value) for end, value in ends}
            rows[pair]["p"] = rank_correlation_p(*values[[place[pair[0]], place[pair[1]]]])
    return rows


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    known = [row for row in rows if np.isfinite(row["rho"])]
    found: dict[str, Any] = {
        "n_pairs": len(known),
        "n_inputs_min": min((row["n_inputs"] for row in known), default=0),
    }
    for name in ("rho", "partial_rho"):
        values = [row[name] for row in known if np.isfinite(row[name])]
        for of, take in (("mean", np.mean), ("min", min), ("max", max)):
            found[f"{name}_{of}"] = float(take(values)) if values else float("nan")
    return found
