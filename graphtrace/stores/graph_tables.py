"""Archive rows -> the nodes and relationships of a store, as Arrow tables.

Everything is computed over a whole batch of traces at once with numpy; nothing loops over edges.

Local numbering. The possible states of the batch's traces are laid end to end: state `index` of
the b-th trace, index = level * n_tokens + position, is local state `state_start[b] + index`. The
same holds for components, in the canonical order of `schema.components`.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphtrace import schema
from graphtrace.curve import pooled_kind
from graphtrace.errors import StoreError
from graphtrace.schema import ATTENTION, KINDS, MLP
from graphtrace.stores.curve_tables import checkpoints, curve_kinds
from graphtrace.stores.shared_tables import (
    components,
    created_text,
    inputs,
    labels,
    model_components,
    model_rows,
    models,
)

INDEX_BITS = 20
"""State id = trace number << INDEX_BITS | (level * n_tokens + position)."""

MAX_STATES = 1 << INDEX_BITS
MAX_NUMBER = 1 << (63 - INDEX_BITS)

EDGE_LABELS = tuple(kind.upper() for kind in KINDS)
"""Relationship types of the edges; the position is the kind's code."""


class GraphTables(NamedTuple):
    """What one batch adds to a store.

    nodes: label -> table with the node's properties, `id` first. edges: relationship type ->
    table whose first columns `from` and `to` are node ids. A node that several traces share
    (Model, Input, Label, Component) is there once; n_edges counts RESIDUAL, MLP and ATTENTION.
    """

    nodes: dict[str, pa.Table]
    edges: dict[str, pa.Table]
    n_edges: int


def graph_tables(traces: pa.Table, number: int | np.ndarray, archive: str = "") -> GraphTables:
    """The nodes and relationships of a batch.

    traces: `schema.TRACE` rows. number: the store's number of the first of them, the others
    follow, or one number each. archive: what `Trace.archive` shall say.

    Raises StoreError where a trace is too large for the state ids.
    """
    traces = traces.combine_chunks()
    batch = _Batch(traces, number)
    nodes = {
        "Model": models(traces),
        "Input": inputs(traces),
        "Label": labels(traces)[0],
        "Trace": _traces(traces, batch.number, archive),
        "State": _states(traces, batch),
        "Component": components(traces),
    }
    nodes["Checkpoint"], at = checkpoints(traces)
    edges = {
        "OF_MODEL": _links(traces["id"], traces["model_id"]),
        "OF_INPUT": _links(traces["id"], traces["input_id"]),
        "LABELLED": labels(traces)[1],
        "OUTPUT": _links(traces["id"], pa.array(batch.state_id(batch.output))),
        "IN_TRACE": _links(nodes["State"]["id"], nodes["State"]["trace"]),
        "AT": at,
        "USES": _uses(traces, batch),
        **_edges(batch),
    }
    return GraphTables(nodes, edges, len(batch.kind))


class _Batch:
    """The batch's edges as flat arrays [edges], their ends as local states."""

    def __init__(self, traces: pa.Table, number: int | np.ndarray) -> None:
        n = _int(traces, "position") + 1
        layers, parallel = _int(traces, "model_n_layers"), _numpy(traces["model_parallel"])
        self.heads = _int(traces, "model_n_heads")
        self.levels = np.where(parallel, layers, 2 * layers) + 1
        self.n_tokens, self.parallel = n, parallel
        self.number = np.asarray(number) + (np.arange(len(n)) if np.ndim(number) == 0 else 0)
        states = n * self.levels
        for row in np.flatnonzero(states > MAX_STATES)[:1]:
            raise StoreError(
                f"trace {traces['id'][row]} has {self.levels[row]:,} levels of {n[row]:,} tokens; "
                f"a store takes at most {MAX_STATES:,} states a trace: trace a shorter text"
            )
        if self.number.max(initial=0) >= MAX_NUMBER:
            raise StoreError(
                f"this store has numbered {MAX_NUMBER:,} traces, all it can; `graphtrace store "
                "rebuild` numbers them anew"
            )
        self.state_start = np.concatenate([[0], np.cumsum(states)])
        self.output = self.state_start[1:] - 1
        lists = {name: traces[name].combine_chunks() for name in schema.EDGE_FIELDS}
        lengths = lists["edge_kind"].value_lengths().to_numpy(zero_copy_only=False)
        self.edge_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = {name: _flat(column) for name, column in lists.items()}
        self.kind, self.head, self.score = (flat[f"edge_{x}"] for x in ("kind", "head", "score"))
        self.level = flat["edge_level"].astype(np.int64)
        self.trace = np.repeat(np.arange(len(n)), lengths)
        self.rank = np.arange(len(self.kind)) - self.edge_start[self.trace]
        base = self.state_start[self.trace] + self.level * n[self.trace]
        self.target = base + flat["edge_target"]
        self.source = base - n[self.trace] + flat["edge_source"]

    def state_id(self, local: np.ndarray) -> np.ndarray:
        """INT64 ids of local states."""
        trace = np.searchsorted(self.state_start, local, side="right") - 1
        return (self.number[trace] << INDEX_BITS) + local - self.state_start[trace]


def _first_of(group: np.ndarray, n_groups: int) -> np.ndarray:
    """int64 [n_groups]: where each group occurs first, -1 where it does not occur."""
    first = np.full(n_groups, -1)
    first[group[::-1]] = np.arange(len(group))[::-1]  # of repeated indices the last written stays
    return first


def marked(first: np.ndarray) -> pa.Array:
    """`first` of edges: true, or null where it is not so. A server stores no null, and without a
    fourth property nearly every ATTENTION relationship fits into one of its property records."""
    return pa.array(first, mask=~first)


def _edges(batch: _Batch) -> dict[str, pa.Table]:
    first = np.zeros(len(batch.kind), bool)
    at = _first_of(batch.source, int(batch.state_start[-1]))
    first[at[at >= 0]] = True
    shift = (batch.number << INDEX_BITS) - batch.state_start[:-1]
    found = {}
    for kind, label in enumerate(EDGE_LABELS):
        rows = np.flatnonzero(batch.kind == kind)
        offset = shift[batch.trace[rows]]
        columns = {"from": batch.source[rows] + offset, "to": batch.target[rows] + offset}
        if kind == ATTENTION:
            columns["head"] = batch.head[rows].astype(np.int32)
        columns |= {"score": batch.score[rows], "rank": batch.rank[rows]}
        columns["first"] = marked(first[rows])
        found[label] = pa.table(columns)
    return found


def _states(traces: pa.Table, batch: _Batch) -> pa.Table:
    seen = np.zeros(int(batch.state_start[-1]), bool)
    for ends in (batch.source, batch.target, batch.output):
        seen[ends] = True
    local = np.flatnonzero(seen)
    trace = np.searchsorted(batch.state_start, local, side="right") - 1
    level, position = np.divmod(local - batch.state_start[trace], batch.n_tokens[trace])
    parallel = batch.parallel[trace]
    layer = np.where(parallel, level - 1, (level - 1) // 2)
    place = np.where(level == 0, 0, np.where(parallel, 3, np.where(level % 2, 1, 2)))
    lists = {name: traces[name].combine_chunks() for name in ("tokens", "token_ids", "special")}
    lengths = lists["tokens"].value_lengths().to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    at = pa.array((starts[trace] + position).astype(np.int64))
    token, token_id, special = (column.flatten().take(at) for column in lists.values())
    # A name is made of the token as tables show it, so the few distinct tokens are changed once.
    codes = token.dictionary_encode()
    shown = pa.array([schema.visible(t.strip(" ")) for t in codes.dictionary.to_pylist()])
    deepest = int(level.max(initial=0)) + 1
    places = [[schema.level_name(g, p) for g in range(deepest)] for p in (False, True)]
    where = np.array(places, dtype=object)[parallel.astype(int), level]
    return pa.table(
        {
            "id": (batch.number[trace] << INDEX_BITS) + local - batch.state_start[trace],
            "name": _join(
                _join(
                    shown.cast(pa.string()).take(codes.indices),
                    pa.array(position).cast(pa.string()),
                    "@",
                ),
                pa.array(where, pa.string()),
                " ",
            ),
            "trace": traces["id"].combine_chunks().take(pa.array(trace)),
            "level": level.astype(np.int32),
            "layer": pa.array(layer.astype(np.int32), mask=level == 0),
            "site": pa.array(np.array(schema.SITES, dtype=object)[place], pa.string()),
            "position": position.astype(np.int32),
            "token_id": token_id,
            "token": token,
            "special": special,
            "experts": _experts(traces, trace, layer, position, place >= 2),
        }
    )


def _experts(
    traces: pa.Table, trace: np.ndarray, layer: np.ndarray, position: np.ndarray, behind: np.ndarray
) -> pa.Array:
    """Per state the experts that the block before it chose, such as `3,17`; null where it has none.

    trace (ascending), layer, position: of the states; behind: whether an MLP or block is before it.
    """
    found: list[str | None] = [None] * len(trace)
    lists = traces["experts"].combine_chunks()
    layers, tokens = _int(traces, "model_n_layers"), traces["tokens"].combine_chunks()
    for row in np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False)).tolist():
        shape = (layers[row], len(tokens[row]), -1)
        experts = lists[row].values.to_numpy().reshape(shape)
        start, stop = np.searchsorted(trace, [row, row + 1])
        here = start + np.flatnonzero(behind[start:stop])
        for state, chosen in zip(here, experts[layer[here], position[here]].tolist(), strict=True):
            found[state] = ",".join(str(expert) for expert in chosen if expert >= 0) or None
    return pa.array(found, pa.string())


def _uses(traces: pa.Table, batch: _Batch) -> pa.Table:
    """(Trace)-[:USES {n, best_rank, score}]->(Component), over the kept edges."""
    width = batch.heads + np.where(batch.parallel, 2, 3)
    layers = _int(traces, "model_n_layers")
    start = np.concatenate([[0], np.cumsum(width * layers)])
    trace, parallel = batch.trace, batch.parallel[batch.trace]
    layer = np.where(parallel, batch.level - 1, (batch.level - 1) // 2)
    mid = ~parallel & (batch.level % 2 == 1)
    after = np.where(parallel, 1, np.where(mid, 0, 2))  # residual, by where it ends
    after = np.where(batch.kind == MLP, np.where(parallel, 0, 1), after)
    heads = batch.heads[trace]
    within = np.where(batch.kind == ATTENTION, batch.head, heads + after)
    group = start[trace] + layer * width[trace] + within
    first = _first_of(group, int(start[-1]))
    used = np.flatnonzero(first >= 0)
    of = np.searchsorted(start, used, side="right") - 1
    return pa.table(
        {
            "from": traces["id"].combine_chunks().take(pa.array(of)),
            "to": _component_ids(traces).take(pa.array(used)),
            "n": np.bincount(group, minlength=int(start[-1]))[used],
            "best_rank": batch.rank[first[used]],
            "score": np.bincount(group, batch.score, minlength=int(start[-1]))[used],
        }
    )


def _component_ids(traces: pa.Table) -> pa.Array:
    """Ids of all components of every trace of the batch, end to end."""
    ids = {
        row["model_id"]: [f"{row['model_id']}:{name}" for name, *_ in model_components(row)]
        for row in model_rows(traces)
    }
    return pa.array([c for model in traces["model_id"].to_pylist() for c in ids[model]])


def _traces(traces: pa.Table, number: np.ndarray, archive: str) -> pa.Table:
    count, curves = len(number), curve_kinds(traces)
    columns = {
        "id": traces["id"],
        "number": number,
        "name": traces["input_name"],
        "status": ["complete"] * count,
        "archive": [archive] * count,
        "model": traces["model_id"],
        "input": traces["input_id"],
        **{name: traces[name] for name in _TRACE_FIELDS[0]},
        "dtype": traces["model_dtype"],
        **{name: traces[name] for name in _TRACE_FIELDS[1]},
        "created": created_text(traces),
        "n_tokens": pa.array((_int(traces, "position") + 1).astype(np.int32)),
        **{name: traces[name] for name in _TRACE_FIELDS[2]},
        "curve": [pooled_kind(kinds[0]) for kinds in curves],
        "curves": pa.array(curves, pa.list_(pa.string())),
    }
    return pa.table(columns)


# fmt: off
_TRACE_FIELDS = (
    ("settings", "scorer", "search", "seed", "position_rule", "position", "target_rule",
     "target_id", "target", "foil_id", "foil"),
    ("version", "format", "method"),
    ("n_nodes", "n_edges", "n_kept", "entropy", "loss", "predicted_id", "predicted", "density",
     "density_normalised", "mass90_edges", "score_gini", "mlp_active_share", "content",
     "token_ids", "tokens", "special"),
)
# fmt: on


def _links(source, target) -> pa.Table:
    return pa.table({"from": source, "to": target})


def _int(traces: pa.Table, name: str) -> np.ndarray:
    return _numpy(traces[name]).astype(np.int64)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def _flat(column: pa.ListArray) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False)


def _join(left: pa.Array, right: pa.Array, between: str) -> pa.Array:
    """Element-wise `left + between + right` of string arrays."""
    return pc.call_function("binary_join_element_wise", [left, right, pa.scalar(between)])
