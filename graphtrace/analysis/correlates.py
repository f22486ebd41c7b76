"""What goes with density: entropy, loss, how frequent the top-1 token is, context length.

Spearman's rho of a measure of density with each of the four over the inputs of a model, and the
partial rho with the others held constant: least squares of the ranks on the others' ranks, then
the correlation of what is left (method.md section 6). Published for ten models: with entropy
positive, with frequency negative in every one (arXiv 2605.27033).
"""

from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import per_input
from graphtrace.analysis.reading import Selection, chosen_traces, groups_of, takes_selection
from graphtrace.analysis.stats import (
    Pair,
    bootstrap_rank_correlations,
    false_discovery_q,
    rank_correlation_p,
    rank_correlations,
)
from graphtrace.analysis.token_frequency import Frequencies, top1_log_frequency
from graphtrace.selection import TraceSource, check_curves

Measure = Literal["density_normalised", "density"]
MEASURES: tuple[Measure, ...] = ("density_normalised", "density")
CORRELATES = ("entropy", "loss", "top1_log_frequency", "n_tokens")
_ENDS = ("", "_low", "_high")
_COLUMNS = (
    *("measure", "correlate", "n_inputs", "n_traces"),
    *(f"rho{end}" for end in _ENDS),
    *("p", "q", "n_partial"),
    *(f"partial_rho{end}" for end in _ENDS),
    "controls",
)


@takes_selection
def correlates(
    source: TraceSource,
    *,
    frequencies: Frequencies | None = None,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> pd.DataFrame:
    """Rank correlations of density with what is known of the input and the prediction.

    frequencies: counts of tokens, a dict or a file; by default the tokens of the study's own
    inputs are counted (`token_frequency`). One row per model, group, measure (`MEASURES`) and
    correlate (`CORRELATES`):

    measure      density_normalised, which short inputs do not lower, or density
    correlate    entropy (nats), loss (of the true next token, nats), top1_log_frequency (natural
                 logarithm), n_tokens (context length)
    n_inputs     inputs that have both; n_traces: their traces
    rho          Spearman's, with rho_low, rho_high
    p, q         two-sided p of rho (all orders up to 8 inputs, Student's t above), and Benjamini
                 and Hochberg's q over the whole table
    n_partial    inputs that have the measure, the correlate and every control
    partial_rho  rho with the controls held constant, with partial_rho_low, partial_rho_high
    controls     the other correlates, as text; without those that no input has a value of

    Intervals are 95 % percentile bootstraps over inputs (`draws`, `seed`); several traces of one
    input are averaged first. rho is NaN with fewer than 3 inputs or where one of the two is
    constant; partial_rho with fewer than 3 and one per control, or where the controls fix one of
    the two. A correlate that nothing has (loss without continuations) has n_inputs 0 and NaN.

    Raises OptionError where nothing matches, where settings or kinds of first curves are mixed, and
    for frequencies that cannot be read.
    """
    traces = chosen_traces(source, selection, _COLUMNS)
    check_curves(traces)
    traces = traces.assign(top1_log_frequency=top1_log_frequency(source, traces, frequencies))
    rows: list[dict[str, Any]] = []
    for labels, own in groups_of(traces):
        rows += [labels | row for row in _group(own, draws, seed)]
    frame = pd.DataFrame(rows)
    q = false_discovery_q(frame["p"].to_numpy(np.float64))
    frame.insert(int(frame.columns.get_indexer(["p"])[0]) + 1, "q", q)
    return frame


_ALL = (*MEASURES, *CORRELATES)


def _group(traces: pd.DataFrame, draws: int, seed: int) -> list[dict[str, Any]]:
    values = np.stack([traces[x].to_numpy(np.float64, na_value=np.nan) for x in _ALL], 1)
    finite = np.isfinite(values)
    inputs = traces["input"].tolist()
    rows: list[dict[str, Any]] = []
    # Pairs over the same traces share their draws, and one bootstrap.
    wanted: dict[bytes, list[tuple[dict[str, Any], str, Pair]]] = {}
    for measure in MEASURES:
        for correlate in CORRELATES:
            a, b = _ALL.index(measure), _ALL.index(correlate)
            controls = tuple(
                _ALL.index(x)
                for x in CORRELATES
                if x != correlate and finite[:, _ALL.index(x)].any()
            )
            row: dict[str, Any] = dict.fromkeys(_COLUMNS)
            del row["q"]
            row |= {
                "measure": measure,
                "correlate": correlate,
                "controls": ", ".join(_ALL[i] for i in controls),
            }
            for name, pair in (("rho", Pair(a, b)), ("partial_rho", Pair(a, b, controls))):
                whole = np.asarray(finite[:, [pair.a, pair.b, *pair.controls]].all(axis=1))
                n = len({x for x, keep in zip(inputs, whole, strict=True) if keep})
                if name == "rho":
                    row["n_inputs"], row["n_traces"] = n, int(whole.sum())
                else:
                    row["n_partial"] = n
                wanted.setdefault(whole.tobytes(), []).append((row, name, pair))
            rows.append(row)
    for mask, asked in wanted.items():
        whole = np.frombuffer(mask, bool)
        kept = [x for x, keep in zip(inputs, whole, strict=True) if keep]
        held = per_input(kept, values[whole]).T
        _fill(held, asked, draws, seed)
    return rows


def _fill(
    values: np.ndarray, asked: list[tuple[dict[str, Any], str, Pair]], draws: int, seed: int
) -> None:
    """Write values, intervals and p of pairs over the same inputs into their rows.

    values: float64 [measures, inputs], finite in the measures that are asked for."""
    used = sorted({i for _, _, (a, b, controls) in asked for i in (a, b, *controls)})
    place = {old: new for new, old in enumerate(used)}
    values = values[used]
    pairs = [Pair(place[a], place[b], tuple(place[i] for i in c)) for _, _, (a, b, c) in asked]
    found = rank_correlations(values, pairs)
    low, high = bootstrap_rank_correlations(values, pairs, draws, seed)
    for i, (row, name, _) in enumerate(asked):
        ends = dict(zip(_ENDS, (found[i], low[i], high[i]), strict=True))
        row |= {f"{name}{end}": float(value) for end, value in ends.items()}
        if name == "rho":
            row["p"] = rank_correlation_p(values[pairs[i].a], values[pairs[i].b])
