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
from graphtrace.errors import StoreError
from graphtrace.schema import ATTENTION, KINDS, MLP
from graphtrace.stores.curve_tables import checkpoints, curve_kinds

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
        "Model": _models(traces),
        "Input": _inputs(traces),
        "Label": _labels(traces)[0],
        "Trace": _traces(traces, batch.number, archive),
        "State": _states(traces, batch),
        "Component": _components(traces),
    }
    nodes["Checkpoint"], at = checkpoints(traces)
    edges = {
        "OF_MODEL": _links(traces["id"], traces["model_id"]),
        "OF_INPUT": _links(traces["id"], traces["input_id"]),
        "LABELLED": _labels(traces)[1],
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
        columns |= {"score": batch.score[rows], "rank": batch.rank[rows], "first": first[rows]}
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


def _model_rows(traces: pa.Table) -> list[dict]:
    fields = [name for name in traces.column_names if name.startswith("model_")]
    _, first = np.unique(_numpy(traces["model_id"]), return_index=True)
    return traces.select(fields).take(pa.array(np.sort(first))).to_pylist()


def _component_ids(traces: pa.Table) -> pa.Array:
    """Ids of all components of every trace of the batch, end to end."""
    ids = {
        row["model_id"]: [f"{row['model_id']}:{name}" for name, *_ in _model_components(row)]
        for row in _model_rows(traces)
    }
    return pa.array([c for model in traces["model_id"].to_pylist() for c in ids[model]])


def _model_components(row: dict) -> list[tuple[str, int, int, int]]:
    return schema.components(row["model_n_layers"], row["model_n_heads"], row["model_parallel"])


def _components(traces: pa.Table) -> pa.Table:
    rows = [
        {
            "id": f"{row['model_id']}:{name}",
            "name": name,
            "hook": schema.component_hook(kind, level, head, row["model_parallel"]),
            "model": row["model_id"],
            "kind": KINDS[kind],
            "layer": level - 1 if row["model_parallel"] else (level - 1) // 2,
            "head": head if kind == ATTENTION else None,
        }
        for row in _model_rows(traces)
        for name, kind, level, head in _model_components(row)
    ]
    text = dict.fromkeys(("id", "name", "hook", "model", "kind"), pa.string())
    return _from_rows(rows, text | {"layer": pa.int32(), "head": pa.int32()})


def _models(traces: pa.Table) -> pa.Table:
    names = "id name revision family n_layers n_heads d_model n_params dtype parallel windows"
    _, first = np.unique(_numpy(traces["model_id"]), return_index=True)
    fields = [f"model_{name}" for name in names.split()]
    return traces.select(fields).take(pa.array(np.sort(first))).rename_columns(names.split())


def _inputs(traces: pa.Table) -> pa.Table:
    _, first = np.unique(_numpy(traces["input_id"]), return_index=True)
    rows = traces.take(pa.array(np.sort(first)))
    columns = {name: rows[f"input_{name}"] for name in ("id", "name", "text", "corpus")}
    columns["n_tokens"] = pa.array((_int(rows, "position") + 1).astype(np.int32))
    columns |= {name: rows[f"input_{name}"] for name in ("continuation", "meta")}
    return pa.table(columns)


def _labels(traces: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Label nodes, and (Input)-[:LABELLED]->(Label)."""
    labels, links = {}, {}
    ids = traces["input_id"].to_pylist()
    for input_, pairs in zip(ids, traces["labels"].to_pylist(), strict=True):
        for key, value in pairs:
            label = f"{key}={value}"
            labels[label] = {"id": label, "key": key, "value": value}
            links[input_, label] = {"from": input_, "to": label}
    text = pa.string()
    return (
        _from_rows(list(labels.values()), {"id": text, "key": text, "value": text}),
        _from_rows(list(links.values()), {"from": text, "to": text}),
    )


def _traces(traces: pa.Table, number: np.ndarray, archive: str) -> pa.Table:
    count, curves = len(number), curve_kinds(traces)
    created = pc.call_function(
        "strftime",
        [traces["created"]],
        pc.StrftimeOptions(format="%Y-%m-%dT%H:%M:%SZ", locale="C"),
    )
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
        "created": created,
        "n_tokens": pa.array((_int(traces, "position") + 1).astype(np.int32)),
        **{name: traces[name] for name in _TRACE_FIELDS[2]},
        "curve": [kinds[0] for kinds in curves],
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


def _from_rows(rows: list[dict], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def _int(traces: pa.Table, name: str) -> np.ndarray:
    return _numpy(traces[name]).astype(np.int64)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def _flat(column: pa.ListArray) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False)


def _join(left: pa.Array, right: pa.Array, between: str) -> pa.Array:
    """Element-wise `left + between + right` of string arrays."""
    return pc.call_function("binary_join_element_wise", [left, right, pa.scalar(between)])
