"""Contrasts as a store keeps them: a saved run over the traces of both sides."""

import warnings
from collections.abc import Sequence
from typing import Any, Unpack

import pandas as pd

from graphtrace.analysis.contrast_sides import ContrastWarning, SideSelection, read_sides
from graphtrace.stores.saved_runs import SavedRun, make_run


def save_contrast(
    store: Any,
    table: pd.DataFrame,
    size: object,
    *,
    by: str,
    between: Sequence[str] | None = None,
    pair: str | None = None,
    parameters: dict[str, Any] | None = None,
    **selection: Unpack[SideSelection],
) -> SavedRun:
    """Write a table that `contrast` returned into the store that it was computed from.

    store: open for writing. by, between, pair, selection: as they were given to `contrast`;
    parameters: what else was, by name (JSON values). The run is over the traces that were
    compared; where they are of two settings, the run names both. Rows about components are
    attached to them (to A's, where two models are compared), all others to their model. Raises
    OptionError, StoreError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContrastWarning)  # said when the sides were compared
        sides = read_sides(store, by, between, pair, selection)
    traces = sides.traces
    shown: dict[str, Any] = {
        "size": str(size),
        "by": [by],
        "between": list(sides.values),
        "pair": pair,
        "exclude_special": selection.get("exclude_special") or None,
        **(parameters or {}),
    }
    shown = {key: value for key, value in shown.items() if value is not None}
    narrowed = {key: selection.get(key) for key in ("models", "settings", "where")}
    narrowed = {key: value for key, value in narrowed.items() if value}
    run = make_run("contrast", table, traces, shown, narrowed)
    settings = ", ".join(dict.fromkeys(traces["settings"]))
    run = run._replace(properties=run.properties | {"settings": settings})
    store.save_run(run)
    return run
