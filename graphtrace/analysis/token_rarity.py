"""Density by how frequent the top-1 token is, the context length held.

Inputs are put into strata of like context length, and inside each stratum into quartiles of the
frequency of the model's top-1 token. Works on any study. Quartiles are of mid-ranks, so equal
values are never parted; where ties leave a quartile of a stratum empty, the stratum is left out.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import per_input
from graphtrace.analysis.measured_traces import traces_with_measure
from graphtrace.analysis.reading import Selection, groups_of, labelled, takes_selection
from graphtrace.analysis.token_frequency import Frequencies, top1_log_frequency
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource

Frame = Any
"""A DataFrame, whose columns pandas' stubs cannot type."""

QUARTILES = 4
_BY_QUARTILE = (
    *("measure", "quartile", "n_inputs", "log_frequency", "n_tokens"),
    *("mean", "mean_low", "mean_high"),
)
_DIFFERENCE = (
    *("measure", "n_inputs", "n_strata", "n_strata_left_out"),
    *("difference", "difference_low", "difference_high", "n_tokens_difference"),
)
_CELLS = (
    *("measure", "stratum", "n_tokens_from", "n_tokens_to", "quartile"),
    *("log_frequency_from", "log_frequency_to", "n_inputs", "mean", "used"),
)
_INPUTS = ("input", "name", "stratum", "quartile", "n_tokens", "log_frequency")
TAKEN = {*_BY_QUARTILE, *_DIFFERENCE, *_CELLS, *_INPUTS}


class RarityQuartiles(NamedTuple):
    """What `rarity_quartiles` returns, see there."""

    quartiles: pd.DataFrame
    difference: pd.DataFrame
    cells: pd.DataFrame
    inputs: pd.DataFrame


@takes_selection
def rarity_quartiles(
    source: TraceSource,
    *,
    measure: str = "density_normalised",
    edges: Sequence[int] | None = None,
    frequencies: Frequencies | None = None,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> RarityQuartiles:
    """Density by how frequent the top-1 token is, the context length held.

    measure: one of `density.MEASURES`, entropy or loss. edges: context lengths (tokens) at which a
    new stratum begins; by default strata are quartiles. frequencies: see `token_frequency`. Means
    of a quartile weigh strata equally; strata with an empty quartile are left out. Four tables,
    rows begin with model and the keys of `by`:

    quartiles   one row per quartile, 1 the rarest: measure, n_inputs, log_frequency and n_tokens
                (means, as the measure's), mean, mean_low, mean_high
    difference  one row: measure, n_inputs, n_strata, n_strata_left_out, difference (quartile 4 less
                quartile 1), difference_low, difference_high, n_tokens_difference (what is left of
                the length)
    cells       one row per stratum and quartile: measure, stratum (from 1), n_tokens_from,
                n_tokens_to, quartile, log_frequency_from, log_frequency_to, n_inputs, mean, used
    inputs      one row per input: input (id), name, stratum, quartile, n_tokens, log_frequency

    Which cell an input is in depends on its length and its prediction alone, never on the measure;
    an input without a value of it is in no mean and no count. Intervals are 95 % percentile
    bootstraps that draw inputs within strata (`draws`, `seed`); draws that empty a cell are left
    out, and intervals are NaN where a cell has one input. Several traces of one input are averaged
    first. With no usable stratum n_strata is 0 and means are NaN.

    Raises OptionError for an unknown measure, for edges that do not ascend and for frequencies that
    cannot be read, where nothing matches, and where settings or kinds of first curves are mixed.
    """
    if edges is not None and (len(edges) == 0 or any(np.diff(edges) <= 0)):
        raise OptionError(f"edges {list(edges)} must be at least one length, each above the last")
    traces = traces_with_measure(source, selection, measure, TAKEN)
    traces = traces.assign(log_frequency=top1_log_frequency(source, traces, frequencies))
    blocks: list[list[pd.DataFrame]] = []
    for labels, own in groups_of(traces):
        inputs = _in_cells(own, edges)
        tables = _by_quartile(inputs, measure, draws, seed)
        held = inputs.loc[:, list(_INPUTS)]
        blocks.append([labelled(frame, labels) for frame in (*tables, held)])
    return RarityQuartiles(*(pd.concat(x, ignore_index=True) for x in zip(*blocks, strict=True)))


def rarity_design(
    inputs: Frame,
    edges: Sequence[int] | None = None,
    frequencies: Frequencies | None = None,
    selection: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Which inputs are in which cell, as JSON values for `designs.write_design`.

    inputs: of `rarity_quartiles`, made with these edges, frequencies and selection.
    """
    table: Any = None
    if isinstance(frequencies, Mapping):
        table = "given"
    elif frequencies is not None:
        path = Path(frequencies)
        table = {"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}
    keys = list(inputs.columns[: list(inputs.columns).index("input")])
    groups = []
    for values, own in inputs.groupby(keys, sort=False):
        cells = [
            {
                "stratum": int(stratum),
                "quartile": int(quartile),
                "inputs": cell["input"].tolist(),
                "names": cell["name"].tolist(),
            }
            for (stratum, quartile), cell in own.groupby(["stratum", "quartile"])
        ]
        groups.append(
            {**dict(zip(keys, values, strict=True)), "n_inputs": len(own), "cells": cells}
        )
    chosen = {key: value for key, value in (selection or {}).items() if value}
    return {
        "design": "rarity quartiles",
        "parameters": {
            "strata": "quartiles of the context length" if edges is None else list(edges),
            "frequencies": "counted in the study" if table is None else table,
            "selection": chosen,
        },
        "groups": groups,
    }


def _in_cells(traces: Frame, edges: Sequence[int] | None) -> pd.DataFrame:
    """One row per input: `_INPUTS` and value (NaN where no trace of it has the measure)."""
    inputs = traces["input"].tolist()
    columns = ["n_tokens", "log_frequency"]
    # Rounded, since equal values stay equal in means over other numbers of traces.
    facts = np.round(per_input(inputs, traces[columns].to_numpy(np.float64)), 12)
    frame = traces[["input", "name"]].drop_duplicates("input").reset_index(drop=True)
    frame = frame.assign(n_tokens=facts[:, 0], log_frequency=facts[:, 1])
    known = traces[np.isfinite(traces["value"])]
    values = dict(
        zip(
            dict.fromkeys(known["input"]),
            per_input(known["input"].tolist(), known[["value"]].to_numpy(np.float64))[:, 0],
            strict=True,
        )
    )
    length = frame["n_tokens"].to_numpy()
    part = _quarter(length) if edges is None else np.searchsorted(edges, length, side="right")
    # Strata that nothing is in have no number.
    stratum = np.unique(part, return_inverse=True)[1]
    quartile = np.empty(len(frame), np.int64)
    for number in range(int(stratum.max()) + 1):
        own = stratum == number
        quartile[own] = _quarter(frame["log_frequency"].to_numpy()[own])
    return frame.assign(
        stratum=stratum + 1,
        quartile=quartile + 1,
        value=[values.get(x, np.nan) for x in frame["input"]],
    )


def _quarter(values: np.ndarray) -> np.ndarray:
    """int64: 0 ... 3, the quarter of every value's mid-rank. Equal values are in one."""
    from scipy.stats import rankdata

    twice = np.round(2 * rankdata(values)).astype(np.int64)
    return (twice - 1) * QUARTILES // (2 * len(values))


def _by_quartile(
    inputs: Frame, measure: str, draws: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of `quartiles`, `difference` and `cells` of one model and group, without its labels."""
    inputs = inputs[np.isfinite(inputs["value"])]
    names = ["value", "log_frequency", "n_tokens"]
    cells, means, drawn, single = [], [], [], False
    rng = np.random.default_rng(seed)
    strata = [own for _, own in inputs.groupby("stratum", sort=True)]
    for own in strata:
        inside = own["quartile"].to_numpy()[:, None] == np.arange(1, QUARTILES + 1)
        counts = inside.sum(0)
        used = bool(counts.all())
        for quartile in range(1, QUARTILES + 1):
            cells.append(_cell(own, quartile) | {"measure": measure, "used": used})
        if used:
            values = own[names].to_numpy(np.float64)
            means.append(inside.T @ values / counts[:, None])
            drawn.append(_draw(values[:, 0], inside, draws, rng))
            single |= bool((counts == 1).any())
    n_used = sum(cell["n_inputs"] for cell in cells if cell["used"])
    mean = np.mean(means, axis=0) if means else np.full((QUARTILES, len(names)), np.nan)
    table = np.full((1, QUARTILES + 1), np.nan)
    if means and not single:
        over_strata = np.mean(drawn, axis=0)
        table = np.concatenate([over_strata, over_strata[:, 3:] - over_strata[:, :1]], axis=1)
    low, high = np.array([_ends(column) for column in table.T]).T
    per_quartile = np.zeros(QUARTILES, np.int64)
    for cell in cells:
        per_quartile[cell["quartile"] - 1] += cell["n_inputs"] if cell["used"] else 0
    quartiles = {
        "measure": measure,
        "quartile": np.arange(1, QUARTILES + 1),
        "n_inputs": per_quartile,
        "log_frequency": mean[:, 1],
        "n_tokens": mean[:, 2],
        "mean": mean[:, 0],
        "mean_low": low[:-1],
        "mean_high": high[:-1],
    }
    difference = {
        "measure": measure,
        "n_inputs": n_used,
        "n_strata": len(means),
        "n_strata_left_out": len(strata) - len(means),
        "difference": mean[-1, 0] - mean[0, 0],
        "difference_low": low[-1],
        "difference_high": high[-1],
        "n_tokens_difference": mean[-1, 2] - mean[0, 2],
    }
    return (
        pd.DataFrame(quartiles),
        pd.DataFrame([difference]),
        pd.DataFrame(cells, columns=list(_CELLS)),
    )


def _cell(stratum: Frame, quartile: int) -> dict[str, Any]:
    own, nan = stratum[stratum["quartile"] == quartile], float("nan")
    frequency = own["log_frequency"]
    return {
        "stratum": int(stratum["stratum"].iloc[0]),
        "n_tokens_from": float(stratum["n_tokens"].min()),
        "n_tokens_to": float(stratum["n_tokens"].max()),
        "quartile": quartile,
        "log_frequency_from": float(frequency.min()) if len(own) else nan,
        "log_frequency_to": float(frequency.max()) if len(own) else nan,
        "n_inputs": len(own),
        "mean": float(own["value"].mean()) if len(own) else nan,
    }


def _draw(
    values: np.ndarray, inside: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """float64 [draws, quartiles]: means of the quartiles in draws of a stratum's inputs, NaN where
    a draw has none. values: [inputs]; inside: bool [inputs, quartiles]."""
    n, found = len(values), np.empty((draws, QUARTILES))
    at_once = max(1, (1 << 20) // n)  # bounds the [draws, inputs] table
    for start in range(0, draws, at_once):
        stop = min(start + at_once, draws)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=stop - start)
        total = counts @ inside
        summed = counts @ (inside * values[:, None])
        found[start:stop] = np.divide(
            summed, total, out=np.full(total.shape, np.nan), where=total > 0
        )
    return found


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
