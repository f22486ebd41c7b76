"""Two controls of what density goes with: the prediction held, or the context length held.

`matched_contexts` follows density along ever longer contexts of the same endings; `token_rarity`
compares rare with frequent predictions of like length. `controls` gives the tables of both.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import pandas as pd

from graphtrace.analysis import matched_contexts as matched
from graphtrace.analysis import token_rarity as rarity
from graphtrace.analysis.reading import Selection, chosen_traces, group_columns, takes_selection
from graphtrace.analysis.token_frequency import Frequencies
from graphtrace.conditions import label_keys
from graphtrace.selection import TraceSource


class Controls(NamedTuple):
    """What `controls` returns: the tables of both controls, see there."""

    lengths: pd.DataFrame
    trend: pd.DataFrame
    quartiles: pd.DataFrame
    difference: pd.DataFrame
    cells: pd.DataFrame
    inputs: pd.DataFrame


@takes_selection
def controls(
    source: TraceSource,
    *,
    measure: str = "density_normalised",
    edges: Sequence[int] | None = None,
    frequencies: Frequencies | None = None,
    draws: int = 1000,
    seed: int = 0,
    **selection: Unpack[Selection],
) -> Controls:
    """Both controls over the traces of a source: the tables of `matched_contexts` (lengths, trend)
    and of `rarity_quartiles` (quartiles, difference, cells, inputs).

    Where no trace has the labels `ending` and `context`, lengths and trend are empty. Arguments and
    errors as there.
    """
    taken = matched.TAKEN | rarity.TAKEN
    traces = chosen_traces(source, selection, taken)
    shared: dict[str, Any] = {"measure": measure, "draws": draws, "seed": seed, **selection}
    if {"ending", "context"} <= set(label_keys(traces)):
        contexts = matched.matched_contexts(source, **shared)
    else:
        labels = ["model", *(key.removeprefix("by:") for key in group_columns(traces))]
        contexts = matched.MatchedContexts(
            pd.DataFrame(columns=[*labels, *matched.LENGTHS]),
            pd.DataFrame(columns=[*labels, *matched.TREND]),
        )
    found = rarity.rarity_quartiles(source, edges=edges, frequencies=frequencies, **shared)
    return Controls(*contexts, *found)
