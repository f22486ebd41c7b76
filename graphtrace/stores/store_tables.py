"""What a store holds of some traces -> the tables that would add them to another store."""

import re
import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa

from graphtrace.cypher_files import cypher_folder, statements
from graphtrace.schema import ATTENTION
from graphtrace.sizes import ShortTraceWarning
from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS, GraphTables, marked

_TYPES = {
    "STRING": pa.string(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "DOUBLE": pa.float64(),
    "FLOAT": pa.float32(),
    "BOOLEAN": pa.bool_(),
}

_NODES = {
    "Model": "MATCH (t:Trace)-[:OF_MODEL]->(x:Model)",
    "Input": "MATCH (t:Trace)-[:OF_INPUT]->(x:Input)",
    "Label": "MATCH (t:Trace)-[:OF_INPUT]->(:Input)-[:LABELLED]->(x:Label)",
    "Trace": "MATCH (x:Trace) WITH x AS t, x",
    "State": "MATCH (t:Trace)<-[:IN_TRACE]-(x:State)",
    "Component": "MATCH (t:Trace)-[:OF_MODEL]->(m:Model) MATCH (x:Component {model: m.id})",
    "Checkpoint": "MATCH (t:Trace)-[:AT]->(x:Checkpoint)",
}

_LINKS = {
    "OF_MODEL": "MATCH (t:Trace)-[r:OF_MODEL]->(b:Model)",
    "OF_INPUT": "MATCH (t:Trace)-[r:OF_INPUT]->(b:Input)",
    "LABELLED": "MATCH (t:Trace)-[:OF_INPUT]->(a:Input)-[r:LABELLED]->(b:Label)",
    "OUTPUT": "MATCH (t:Trace)-[r:OUTPUT]->(b:State)",
    "AT": "MATCH (t:Trace)-[r:AT]->(b:Checkpoint)",
    "USES": "MATCH (t:Trace)-[r:USES]->(b:Component)",
}
_PROPERTIES = {
    "LABELLED": {"created": pa.string()},
    "USES": {"n": pa.int64(), "best_rank": pa.int64(), "score": pa.float64()},
}


def read_facts(store, trace: str) -> GraphTables:
    """What a store says of one trace itself: the nodes Trace and Checkpoint, and no edges."""
    nodes = {label: _nodes(store, label, [trace]) for label in ("Trace", "Checkpoint")}
    return GraphTables(nodes, {}, 0)


def read_shared(store, ids: list[str]) -> GraphTables:
    """The nodes that some traces share with others, and the inputs' labels."""
    nodes = {label: _nodes(store, label, ids) for label in ("Model", "Input", "Label", "Component")}
    return GraphTables(nodes, {"LABELLED": _links(store, "LABELLED", ids)}, 0)


def read_tables(store, ids: list[str], number: int) -> GraphTables:
    """What a store holds of some traces, as if they were to be added now.

    store: open. number: what the first of them gets in another store, the others follow.
    """
    nodes = {label: _nodes(store, label, ids) for label in _NODES}
    order = {trace: i for i, trace in enumerate(ids)}
    places = [order[trace] for trace in nodes["Trace"]["id"].to_pylist()]
    nodes["Trace"] = nodes["Trace"].take(np.argsort(places))
    old = nodes["Trace"]["number"].to_numpy()
    new = number + np.arange(len(old))
    shift = dict(zip(old.tolist(), new.tolist(), strict=True))
    edges = {kind: _links(store, kind, ids) for kind in _LINKS}
    edges["OUTPUT"] = _replace(edges["OUTPUT"], "to", _renumbered(edges["OUTPUT"]["to"], shift))
    state_ids = _renumbered(nodes["State"]["id"], shift)
    states = _replace(nodes["State"], "id", state_ids)
    nodes["State"] = states.take(np.argsort(state_ids, kind="stable"))
    edges["IN_TRACE"] = pa.table({"from": nodes["State"]["id"], "to": nodes["State"]["trace"]})
    nodes["Trace"] = _replace(nodes["Trace"], "number", new)
    kept = _edges(store, nodes["Trace"], old)
    return GraphTables(nodes, edges | kept, sum(table.num_rows for table in kept.values()))


def _edges(store, traces: pa.Table, old: np.ndarray) -> dict[str, pa.Table]:
    parts: dict[str, list[pa.Table]] = {label: [] for label in EDGE_LABELS}
    new = traces["number"].to_numpy()
    for row, trace in enumerate(traces["id"].to_pylist()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortTraceWarning)  # it is as long as it is
            found = store.subgraph(trace, f"k:{traces['n_kept'][row].as_py()}")
        base = int(new[row]) << INDEX_BITS
        source, target = found.source_node, found.target_node
        first = np.zeros(len(found), bool)
        first[np.unique(source, return_index=True)[1]] = True  # edges are in rank order
        for kind, label in enumerate(EDGE_LABELS):
            at = np.flatnonzero(found.edges.kind == kind)
            columns = {"from": base + source[at], "to": base + target[at]}
            if kind == ATTENTION:
                columns["head"] = found.edges.head[at].astype(np.int32)
            columns |= {"score": found.edges.score[at], "rank": found.rank[at]}
            columns["first"] = marked(first[at])
            parts[label].append(pa.table(columns))
    return {label: pa.concat_tables(tables) for label, tables in parts.items()}


def _nodes(store, label: str, ids: list[str]) -> pa.Table:
    types = node_types()[label]
    columns = ", ".join(f"x.{name} AS {name}" for name in types)
    text = f"{_NODES[label]} WHERE t.id IN $ids RETURN DISTINCT {columns}"
    frame = store.cypher(text, {"ids": ids})
    if label == "Model":  # a list on a server has no gaps
        frame["windows"] = pd.Series(
            [w if w is None else [size or None for size in w] for w in frame["windows"]],
            dtype=object,
        )
    return pa.table({name: _array(frame[name], type_) for name, type_ in types.items()})


def _links(store, kind: str, ids: list[str]) -> pa.Table:
    owner = "a" if kind == "LABELLED" else "t"
    extra = _PROPERTIES.get(kind, {})
    columns = "".join(f", r.{name} AS {name}" for name in extra)
    frame = store.cypher(
        f"{_LINKS[kind]} WHERE t.id IN $ids "
        f"RETURN DISTINCT {owner}.id AS source, b.id AS target{columns}",
        {"ids": ids},
    )
    to = pa.int64() if kind == "OUTPUT" else pa.string()
    found = {"from": _array(frame["source"], pa.string()), "to": _array(frame["target"], to)}
    return pa.table(found | {name: _array(frame[name], type_) for name, type_ in extra.items()})


def _array(column: pd.Series, type_: pa.DataType) -> pa.Array:
    return pa.array(column.tolist(), type_, from_pandas=True)


def _renumbered(ids: pa.ChunkedArray, shift: dict[int, int]) -> np.ndarray:
    ids_ = ids.to_numpy()
    numbers, inverse = np.unique(ids_ >> INDEX_BITS, return_inverse=True)
    new = np.array([shift[number] for number in numbers.tolist()], np.int64)
    return (new[inverse] << INDEX_BITS) + (ids_ & ((1 << INDEX_BITS) - 1))


def _replace(table: pa.Table, name: str, values: np.ndarray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@cache
def node_types() -> dict[str, dict[str, pa.DataType]]:
    """Label -> property -> Arrow type, as `ingest/embedded/schema.cypher` declares them."""
    path = cypher_folder("ingest") / "embedded" / "schema.cypher"
    return dict(_declared(path.read_text(encoding="utf-8")))


def _declared(text: str) -> Iterator[tuple[str, dict[str, pa.DataType]]]:
    for statement in statements(text):
        match = re.search(r"CREATE NODE TABLE (\w+) \((.*)\)", statement, re.DOTALL)
        if match is not None:
            found = {}
            for column in match[2].split(","):
                name, type_, *_ = column.split()
                plain = _TYPES[type_.removesuffix("[]")]
                found[name] = pa.list_(plain) if type_.endswith("[]") else plain
            yield match[1], found
