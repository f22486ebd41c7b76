"""Which components a trace of a size uses, and in which order: from a store's USES relationships
where they say it, from edges otherwise.

Shape suffixes: N components of a model in the order of `schema.components`, S sizes.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from graphtrace import schema
from graphtrace.component_names import Shape
from graphtrace.sizes import ShortTraceWarning, Size

Order = Literal["best-rank", "first-size", "score", "edges"]
"""What puts components in order within a trace of a size: the rank of the first edge, the first of
the sizes that holds one, the sum of the edges' scores, their number."""

ORDERS: tuple[str, ...] = get_args(Order)

NEVER = np.iinfo(np.int64).max
"""Best rank of a component without an edge."""

_FIRST_EDGES = ("best-rank", "first-size")
_AT_ONCE = 200


class ComponentOrder(NamedTuple):
    """Of one trace. best_N: int64, rank of every component's first edge, NEVER without one in
    the trace of the largest size. k_S: int64, edges of the trace of every size. goodness_SN:
    float64, larger is better; components that a size does not hold are tied, below all that it
    holds."""

    best_N: np.ndarray
    k_S: np.ndarray
    goodness_SN: np.ndarray


def component_orders(
    source: Any,
    rows: list[dict[str, Any]],
    shapes: Mapping[str, Shape],
    sizes: list[Size],
    order: str = "best-rank",
    exclude_special: bool = False,
) -> Iterator[ComponentOrder]:
    """What every trace of `rows` (of `traces()`) uses, one after the other.

    shapes: by model id. The first two orders need no edges where the source is a store that keeps
    as many as the largest size needs. exclude_special: without edges that touch special tokens.
    Raises SizeError where the source has too few edges.
    """
    stored = (
        hasattr(source, "component_uses")
        and order in _FIRST_EDGES
        and all(size.rule != "tv" for size in sizes)
        and not exclude_special
    )
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        k_of = {}
        if stored:
            for row in part:
                k_S = np.array([size.edges(row["n_edges"]) for size in sizes], np.int64)
                if k_S.max() <= row["n_kept"]:
                    k_of[row["id"]] = k_S
        by_trace: dict[str, dict[str, int]] = {}
        if k_of:
            uses = source.component_uses(list(k_of))
            for trace, name, rank in uses[["trace", "component", "best_rank"]].itertuples(
                index=False
            ):
                by_trace.setdefault(trace, {})[name] = rank
        for row in part:
            shape = shapes[row["model"]]
            if row["id"] not in k_of:
                yield _from_edges(source, row, shape, sizes, order, exclude_special)
                continue
            names = [name for name, *_ in schema.components(*shape)]
            ranks = by_trace.get(row["id"], {})
            best_N = np.array([ranks.get(name, NEVER) for name in names], np.int64)
            k_S = k_of[row["id"]]
            best_N[best_N >= k_S.max()] = NEVER  # as where only those edges are read
            yield ComponentOrder(best_N, k_S, _by_rank(best_N, k_S, order))


def _by_rank(best_N: np.ndarray, k_S: np.ndarray, order: str) -> np.ndarray:
    inside_SN = best_N < k_S[:, None]
    if order == "best-rank":
        place_N = -best_N.astype(np.float64)
    else:  # how many of the sizes hold it
        place_N = inside_SN.sum(0).astype(np.float64)
    return np.where(inside_SN, place_N, -np.inf)


def _from_edges(
    source: Any,
    row: Mapping[str, Any],
    shape: Shape,
    sizes: list[Size],
    order: str,
    exclude_special: bool,
) -> ComponentOrder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortTraceWarning)
        # A size by quality is known to the source alone; of the others the largest holds all.
        known = [-1 if s.rule == "tv" else s.edges(row["n_edges"]) for s in sizes]
        largest = source.subgraph(row["id"], sizes[int(np.argmax(known))])
        by_quality = {size: source.subgraph(row["id"], size) for size in sizes if size.rule == "tv"}
    largest = max([largest, *by_quality.values()], key=len)
    k_S = np.array(
        [len(by_quality[s]) if s in by_quality else k for s, k in zip(sizes, known, strict=True)],
        np.int64,
    )
    if exclude_special:
        largest = largest.without_special()
    of_E = largest.component_index
    ends_S = np.searchsorted(largest.rank, k_S)
    n_components = len(schema.components(*shape))
    best_N = np.full(n_components, NEVER)
    used, first = np.unique(of_E, return_index=True)
    best_N[used] = largest.rank[first]
    if order in _FIRST_EDGES:
        return ComponentOrder(best_N, k_S, _by_rank(best_N, k_S, order))
    weight_E = None if order == "edges" else np.asarray(largest.edges.score, np.float64)
    total_SN = np.stack(
        [
            np.bincount(of_E[:end], None if weight_E is None else weight_E[:end], n_components)
            for end in ends_S
        ]
    ).astype(np.float64)
    return ComponentOrder(best_N, k_S, np.where(best_N < k_S[:, None], total_SN, -np.inf))
