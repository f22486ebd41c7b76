"""The chosen traces with one measure of density as a column."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from graphtrace.analysis.density import MEASURES
from graphtrace.analysis.reading import chosen_traces
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
