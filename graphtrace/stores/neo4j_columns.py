"""A batch's tables -> what the write statements take: lists per column, one trace at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS, GraphTables

NO_WINDOW = 0
"""Stands in `Model.windows` for a layer without a window: a list on the server has no gaps."""

_STATE_COLUMNS = (
    "id", "name", "level", "layer", "site", "position", "token_id", "token", "special", "experts",
)  # fmt: skip


@dataclass(frozen=True)
class TraceColumns:
    """One trace of a batch. facts: parameters of every statement that makes it a Trace; the states
    and edges are made into lists when they are asked for, by the thread that sends them."""

    id: str
    facts: dict[str, Any]
    states: pa.Table
    edges: dict[str, pa.Table]

    @property
    def n_edges(self) -> int:
        """RESIDUAL, MLP and ATTENTION edges."""
        return sum(table.num_rows for table in self.edges.values())

    def state_lists(self, start: int = 0, stop: int | None = None) -> dict[str, list]:
        """Lists of the states from `start` to `stop`."""
        part = self.states.slice(start, None if stop is None else stop - start)
        return {name: part[name].to_pylist() for name in _STATE_COLUMNS}

    def whole(self) -> dict[str, Any]:
        """Parameters of `trace.cypher`."""
        parts = {label.lower(): self._edge_lists(label) for label in EDGE_LABELS}
        return {"id": self.id, "states": self.state_lists(), **parts, **self.facts}

    def rounds(self, size: int) -> Iterator[list[list["Part"]]]:
        """Every edge once, in two rounds of lists of parts. An edge goes from one level to the
        next, so lists of a round, which lead to different levels of the same parity, share no
        state: they can be written side by side. A part has at most `size` edges."""
        ids, level = self.states["id"].to_numpy(), self.states["level"].to_numpy()
        targets = [table["to"].to_numpy() for table in self.edges.values()]
        leads_to = level[np.searchsorted(ids, np.concatenate(targets))].astype(np.int64)
        order = np.lexsort((leads_to, leads_to % 2))
        ends = np.flatnonzero(np.diff(leads_to[order], append=-1)) + 1
        for parity in (0, 1):
            lists: list[tuple[int, int]] = []
            for start, stop in pairwise([0, *ends.tolist()]):
                if leads_to[order[start]] % 2 != parity:
                    continue
                if lists and stop - lists[-1][0] <= size:  # levels of few edges go together
                    start = lists.pop()[0]
                lists.append((start, stop))
            yield [
                [Part(self, order[i : min(i + size, stop)]) for i in range(start, stop, size)]
                for start, stop in lists
            ]

    def _edge_lists(self, label: str, rows: np.ndarray | None = None) -> dict[str, list]:
        ids, part = self.states["id"].to_numpy(), self.edges[label]
        part = part if rows is None else part.take(pa.array(rows))
        lists = {
            "source": np.searchsorted(ids, part["from"].to_numpy()).tolist(),
            "target": np.searchsorted(ids, part["to"].to_numpy()).tolist(),
        }
        return lists | {name: part[name].to_numpy().tolist() for name in part.column_names[2:]}


@dataclass(frozen=True)
class Part:
    """Some edges of a trace. rows: their places in its tables, one after the other."""

    trace: TraceColumns
    rows: np.ndarray

    def params(self) -> dict[str, Any]:
        """Parameters of `edges.cypher`: the edges, whose ends are places in the list of the states
        whose ids are from `low` to `high`."""
        found, first = {}, 0
        for label, table in self.trace.edges.items():
            mine = self.rows[(self.rows >= first) & (self.rows < first + table.num_rows)]
            found[label.lower()] = self.trace._edge_lists(label, np.sort(mine) - first)
            first += table.num_rows
        low = min(min(lists["source"], default=first) for lists in found.values())
        high = max(max(lists["target"], default=0) for lists in found.values())
        for lists in found.values():
            for end in ("source", "target"):
                lists[end] = [place - low for place in lists[end]]
        ids = self.trace.states["id"]
        return found | {"low": ids[low].as_py(), "high": ids[high].as_py()}


def trace_columns(batch: GraphTables) -> Iterator[TraceColumns]:
    """The traces of a batch, one after the other."""
    traces = batch.nodes["Trace"]
    numbers = traces["number"].to_numpy()
    if (np.diff(numbers) <= 0).any():
        raise ValueError("the numbers of a batch's traces must ascend")
    bounds = np.stack([numbers, numbers + 1])
    states = batch.nodes["State"].combine_chunks()
    state_rows = _rows(states["id"].to_numpy(), bounds)
    edges = {label: batch.edges[label].combine_chunks() for label in EDGE_LABELS}
    edge_rows = {x: _rows(table["from"].to_numpy(), bounds) for x, table in edges.items()}
    by_trace = {name: _groups(batch.edges[name]) for name in ("USES", "AT")}
    checkpoints = {row["id"]: row for row in batch.nodes["Checkpoint"].to_pylist()}
    points = batch.edges["AT"]["to"].to_pylist()
    uses = {name: batch.edges["USES"][name].to_numpy() for name in ("n", "best_rank", "score")}
    components = batch.edges["USES"]["to"].to_pylist()
    output = dict(
        zip(*(batch.edges["OUTPUT"][name].to_pylist() for name in ("from", "to")), strict=True)
    )
    for row, properties in enumerate(traces.to_pylist()):
        id_ = properties["id"]
        mine = states.slice(*_span(state_rows, row))
        rows = sorted(by_trace["USES"].get(id_, ()), key=components.__getitem__)
        facts = {
            "properties": properties,
            "checkpoints": [checkpoints[points[i]] for i in by_trace["AT"].get(id_, ())],
            "output": int(np.searchsorted(mine["id"].to_numpy(), output[id_])),
            "output_id": output[id_],
            "uses": {"component": [components[i] for i in rows]}
            | {name: column[rows].tolist() for name, column in uses.items()},
        }
        yield TraceColumns(
            id=id_,
            facts=facts,
            states=mine,
            edges={x: table.slice(*_span(edge_rows[x], row)) for x, table in edges.items()},
        )


def shared_rows(batch: GraphTables) -> dict[str, list[dict[str, Any]]]:
    """Parameters of `shared.cypher` and `labelled.cypher`, sorted so that locks are taken in one
    order."""
    rows = {}
    for label in ("Model", "Component", "Input", "Label"):
        rows[label] = sorted(batch.nodes[label].to_pylist(), key=lambda row: row["id"])
    for row in rows["Model"]:
        if row["windows"] is not None:
            row["windows"] = [NO_WINDOW if w is None else w for w in row["windows"]]
    labels, links = {row["id"]: row for row in rows["Label"]}, {}
    for row in batch.edges["LABELLED"].to_pylist():
        label = labels[row["to"]]
        link = {"input": row["from"], "label": label["id"], "created": row["created"], **label}
        links[row["from"], label["key"]] = link
    rows["LABELLED"] = [links[key] for key in sorted(links)]
    return rows


def _rows(ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """[2, traces]: first row and end of every trace in a column of ascending state ids' traces."""
    return np.searchsorted(ids >> INDEX_BITS, bounds)


def _span(rows: np.ndarray, row: int) -> tuple[int, int]:
    return int(rows[0, row]), int(rows[1, row] - rows[0, row])


def _groups(links: pa.Table) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, trace in enumerate(links["from"].to_pylist()):
        found.setdefault(trace, []).append(i)
    return found
