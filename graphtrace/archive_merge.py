"""Two copies of one trace into one: all of its edges, and every kind of its curves once."""

from typing import Any

import numpy as np

from graphtrace import schema
from graphtrace.curve import KIND_FIELDS, curve_from_row, curve_kind

_LATER = ("experts", "mlp_active_share")
"""Fields that a copy of an earlier format lacks."""


def merge_copies(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """What the archive holds once `new` is written where `old` is; None: `old` stays as it is.

    old, new: archive rows (`Trace.to_row`) of one trace id. Where the edges that both have are the
    same, the result has all edges of the longer copy, and the curves of `old`, then those of new
    kinds; a kind that both have is taken from `new`. All else is the longer copy's, the old one's
    among equals. Where the edges differ the rankings do, and nothing is mixed: the longer copy
    counts, the new one among equals.
    """
    shared = min(old["n_kept"], new["n_kept"])
    if not all(np.array_equal(old[x][:shared], new[x][:shared]) for x in schema.EDGE_FIELDS):
        return new if new["n_kept"] >= old["n_kept"] else None
    base, other = (old, new) if old["n_kept"] >= new["n_kept"] else (new, old)
    row = dict(base)
    row |= {name: other[name] for name in _LATER if base[name] is None}
    row |= _curves(old, new)
    first = curve_from_row(row["curves"][0], row["n_edges"])
    return row | {"density": first.density, "density_normalised": first.density_normalised}


def _curves(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The fields `curves` and `component_counts`, which follow the first curve."""
    found = {_kind(curve): curve for curve in old["curves"]}
    first = _kind(old["curves"][0])
    found |= {_kind(curve): curve for curve in new["curves"]}
    for source in (new, old):
        if np.array_equal(source["curves"][0]["k"], found[first]["k"]):
            return {
                "curves": list(found.values()),
                "component_counts": source["component_counts"],
            }
    # Its components were counted at another grid, so the first curve stays the old one.
    found[first] = old["curves"][0]
    return {"curves": list(found.values()), "component_counts": old["component_counts"]}


def _kind(curve: dict[str, Any]) -> str:
    return curve_kind(*(curve[name] for name in KIND_FIELDS))
