"""Several copies of one trace, from archives that overlap, as the one trace of a store.

The result does not depend on which archive came first:

    edges    of the copy that keeps most; among equals of the one extracted last, then of the
             greater content hash; all other properties are that copy's too
    curves   every kind of every copy whose ranking is the same, the first curve of that copy
             first; of two versions of a kind the one with more points, then the lesser TV

Where the rankings differ (two machines may round scores differently) nothing is mixed: the other
copy is left out, and that is said.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphtrace.curve import densities, pooled_kind
from graphtrace.stores.graph_tables import EDGE_LABELS, GraphTables

SHARED = ("Model", "Input", "Label", "Component")


class MergedTrace(NamedTuple):
    """tables: of one trace. conflict: whether copies contradict each other."""

    tables: GraphTables
    conflict: bool


def merge_copies(copies: Sequence[GraphTables]) -> MergedTrace:
    """One trace of its copies, which must have the same number; the shared nodes are the first
    copy's."""
    ordered = sorted(copies, key=_key, reverse=True)
    base, others = ordered[0], [copy for copy in ordered[1:] if _same_ranking(ordered[0], copy)]
    conflict = len(others) + 1 < len(copies)
    trace = _row(base)
    kinds: dict[str, pa.Table] = {}
    for copy in (base, *others):
        for kind, points in _curves(copy).items():
            there = kinds.get(kind)
            conflict |= there is not None and _contradict(there, points)
            kinds[kind] = points if there is None else min(there, points, key=_curve_key)
    if not set(kinds) <= set(trace["curves"]):
        first, *rest = trace["curves"]
        trace["curves"] = [first, *sorted({*rest, *kinds} - {first})]
    nodes, edges = dict(base.nodes), dict(base.edges)
    points = _counted([kinds[x] for x in trace["curves"]], (base, *others))
    nodes["Checkpoint"], edges["AT"] = _numbered(trace["id"], points)
    first = kinds[trace["curves"][0]]
    trace["curve"] = pooled_kind(trace["curves"][0])
    trace["density"], trace["density_normalised"] = densities(
        first["n_edges"].to_numpy(), first["tv"].to_numpy(), trace["n_edges"]
    )
    shares = [trace["mlp_active_share"], *(_row(copy)["mlp_active_share"] for copy in others)]
    trace["mlp_active_share"] = next((x for x in shares if x is not None), None)
    nodes["Trace"] = pa.Table.from_pylist([trace], schema=base.nodes["Trace"].schema)
    nodes |= {label: copies[0].nodes[label] for label in SHARED}
    edges["LABELLED"] = copies[0].edges["LABELLED"]
    return MergedTrace(GraphTables(nodes, edges, base.n_edges), conflict)


def concatenated(parts: Sequence[GraphTables]) -> GraphTables:
    """One batch of several, in the order of the traces' numbers; shared nodes are there once."""
    parts = sorted(parts, key=lambda part: part.nodes["Trace"]["number"][0].as_py())
    nodes = {x: _joined([part.nodes[x] for part in parts]) for x in parts[0].nodes}
    edges = {x: _joined([part.edges[x] for part in parts]) for x in parts[0].edges}
    for label in SHARED:
        nodes[label] = _first_rows(nodes[label], ["id"])
    edges["LABELLED"] = _first_rows(edges["LABELLED"], ["from", "to"])
    return GraphTables(nodes, edges, sum(part.n_edges for part in parts))


def _joined(tables: list[pa.Table]) -> pa.Table:
    # What a store gives may name the elements of a list otherwise.
    return pa.concat_tables([table.cast(tables[0].schema) for table in tables])


def _first_rows(rows: pa.Table, names: list[str]) -> pa.Table:
    keys = list(zip(*(rows[name].to_pylist() for name in names), strict=True))
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    return rows.take(pa.array(sorted(first.values()), pa.int64()))


def _row(copy: GraphTables) -> dict:
    (row,) = copy.nodes["Trace"].to_pylist()
    return row


def _key(copy: GraphTables) -> tuple:
    row = _row(copy)
    return row["n_kept"], row["created"], row["content"]


def _same_ranking(a: GraphTables, b: GraphTables) -> bool:
    first, second = _row(a), _row(b)
    if first["content"] == second["content"]:
        return True
    k = min(first["n_kept"], second["n_kept"])
    return all(
        np.array_equal(x[:k], y[:k])
        for x, y in zip(_ranked(a).values(), _ranked(b).values(), strict=True)
    )


def _ranked(copy: GraphTables) -> dict[str, np.ndarray]:
    """Columns of all edges in rank order."""
    tables = [copy.edges[label] for label in EDGE_LABELS]
    order = np.argsort(np.concatenate([table["rank"].to_numpy() for table in tables]))
    columns = {
        name: np.concatenate([table[name].to_numpy() for table in tables])
        for name in ("from", "to", "score")
    }
    columns["kind"] = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    columns["head"] = np.concatenate(
        [
            table["head"].to_numpy() if "head" in table.column_names else np.full(len(table), -1)
            for table in tables
        ]
    )
    return {name: column[order] for name, column in columns.items()}


def _curves(copy: GraphTables) -> dict[str, pa.Table]:
    """The points of every curve, by its kind."""
    points = copy.nodes["Checkpoint"]
    number = points["curve"].to_numpy()
    order = np.lexsort([_place(points), number])
    points, number = points.take(order), number[order]
    return {
        kind: points.filter(pa.array(number == i)) for i, kind in enumerate(_row(copy)["curves"])
    }


def _place(points: pa.Table) -> np.ndarray:
    """Where a point stands in its curve; its id says so."""
    return np.array([int(id_.rpartition(":")[2]) for id_ in points["id"].to_pylist()], np.int64)


def _curve_key(points: pa.Table) -> tuple:
    return -points.num_rows, points["tv"].to_pylist(), points["kl"].to_pylist()


def _contradict(a: pa.Table, b: pa.Table) -> bool:
    return a["n_edges"].equals(b["n_edges"]) and not a["tv"].equals(b["tv"])


def _counted(curves: list[pa.Table], copies: Sequence[GraphTables]) -> list[pa.Table]:
    """The curves, the first one with the counts of components: the copies rank alike, so the number
    of edges says them, at whatever curve they were counted."""
    known: dict[int, list[int]] = {}
    for copy in copies:
        points = copy.nodes["Checkpoint"]
        points = points.filter(pc.call_function("is_valid", [points["component_counts"]]))
        pairs = (points[name].to_pylist() for name in ("n_edges", "component_counts"))
        known = dict(zip(*pairs, strict=True)) | known
    parts = []
    for number, points in enumerate(curves):
        at = points.column_names.index("component_counts")
        found = [known.get(k) if number == 0 else None for k in points["n_edges"].to_pylist()]
        type_ = points.schema.field(at).type
        parts.append(points.set_column(at, "component_counts", pa.array(found, type_)))
    return parts


def _numbered(trace: str, curves: list[pa.Table]) -> tuple[pa.Table, pa.Table]:
    """Checkpoint nodes and their links, as `curve_tables.checkpoints` makes them."""
    parts = []
    for number, points in enumerate(curves):
        ids = [f"{trace}:{number}:{point}" for point in range(points.num_rows)]
        points = points.set_column(0, "id", pa.array(ids, pa.string()))
        at = points.column_names.index("curve")
        parts.append(
            points.set_column(at, "curve", pa.array([number] * points.num_rows, pa.int32()))
        )
    nodes = pa.concat_tables(parts).combine_chunks()
    traces = pa.array([trace] * nodes.num_rows, pa.string())
    return nodes, pa.table({"from": traces, "to": nodes["id"]})


def facts_differ(a: GraphTables, b: GraphTables) -> bool:
    """Whether the trace's properties or curves differ; its number and archive do not count."""

    def compared(copy: GraphTables) -> tuple[dict, list[dict]]:
        row = _row(copy) | {"number": 0, "archive": ""}
        points = copy.nodes["Checkpoint"]
        return row, points.take(pc.call_function("sort_indices", [points["id"]])).to_pylist()

    return _text(compared(a)) != _text(compared(b))


def _text(value) -> str:
    return repr(value)  # NaN is like itself here
