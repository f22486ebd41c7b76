"""The chosen traces with one measure of density as a column."""

from collections.abc import Collection, Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd

from graphtrace.analysis.density import MEASURES
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    groups_of,
    labelled,
    takes_selection,
)
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource, check_curves

FACTS = ("entropy", "loss")
"""What else a trace can be measured by, beside `density.MEASURES`."""


def traces_with_measure(
    source: TraceSource, selection: Mapping[str, Any], measure: str, taken: Collection[str]
) -> pd.DataFrame:
    """`reading.chosen_traces` with a column `value`, float64: the measure, NaN where a trace has
    none. measure: one of `density.MEASURES`, entropy or loss. taken: see `chosen_traces`.

    Raises OptionError for an unknown measure, where nothing matches, and where settings or kinds of
    first curves are mixed.
    """
    known = (*MEASURES, *FACTS)
    if measure not in known:
        raise OptionError(f"measure {measure!r} is none of {', '.join(known)}")
    traces = chosen_traces(source, selection, taken)
    check_curves(traces)
    traces = traces.assign(mass90_share=traces["mass90_edges"] / traces["n_edges"])
    return traces.assign(value=traces[measure].to_numpy(np.float64, na_value=np.nan))


@takes_selection
def values_per_input(
    source: TraceSource, measure: str = "density_normalised", **selection: Unpack[Selection]
) -> pd.DataFrame:
    """The distribution behind a mean: one row per model, group and input: model, the keys of `by`,
    input (id), name, n_traces, value (the measure, averaged over the input's traces that have it).

    measure and errors: see `traces_with_measure`. Inputs without a value are left out.
    """
    traces = traces_with_measure(source, selection, measure, _COLUMNS)
    traces = traces.loc[traces["value"].notna()]
    frames = [pd.DataFrame(columns=["model", *_COLUMNS])]
    for labels, own in groups_of(traces):
        found = own.groupby(["input", "name"], sort=False)["value"].agg(["size", "mean"])
        found = found.reset_index().set_axis(_COLUMNS, axis=1)
        frames.append(labelled(found, labels))
    return pd.concat(frames[1:] or frames, ignore_index=True)


_COLUMNS = ["input", "name", "n_traces", "value"]
