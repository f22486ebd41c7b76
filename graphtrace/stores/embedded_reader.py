"""Reading an embedded store: traces, sub-graphs, queries."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from graphtrace.errors import QueryError, StoreError
from graphtrace.schema import ATTENTION
from graphtrace.selection import resolve_trace
from graphtrace.sizes import Size, parse_size
from graphtrace.stores.embedded_runs import measured_columns
from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS, MAX_STATES
from graphtrace.stores.ladybug import Engine, to_frame
from graphtrace.stores.trace_reader import TRACE_ROWS, TraceReader, layout_of
from graphtrace.subgraph import SubGraph

# One statement per kind: a statement over all three at once takes twice as long.
_EDGES = {
    kind: f"""
MATCH (s:State)-[r:{label}]->(t:State)
WHERE s.id >= $low AND s.id < $high{{}}
RETURN s.id AS source, t.id AS target, {"r.head AS head, " if kind == ATTENTION else ""}
       r.score AS score, r.rank AS rank
"""
    for kind, label in enumerate(EDGE_LABELS)
}


_LOOSE = {
    "communities of no saved run": "(c:Community) WHERE NOT EXISTS { "
    "MATCH (c)<-[:FOUND]-(:Analysis) }",
    "communities of no trace": "(c:Community) WHERE NOT EXISTS { MATCH (c)-[:OF_TRACE]->(:Trace) }",
}


TOGETHER = 32
"""Traces whose edges are read by one statement, where their numbers follow one another."""

AT_MOST = 1_000_000
"""Edges that are read by one statement, unless one trace has more."""


def _runs(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows by number in runs of consecutive ones that keep at most `AT_MOST` edges together."""
    run: list[dict[str, Any]] = []
    for row in rows:
        edges = sum(int(x["n_kept"]) for x in run) + int(row["n_kept"])
        if run and (row["number"] != run[-1]["number"] + 1 or edges > AT_MOST):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


class EngineReader(TraceReader):
    """Reads traces from an open database. folder: the store's, for messages."""

    kind = "embedded"

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine: Engine | None = engine
        self.folder = folder

    @property
    def engine(self) -> Engine:
        """The open database. Raises StoreError after `close`."""
        if self._engine is None:
            raise StoreError(f"the store {self.folder} is closed; open it again")
        return self._engine

    def traces(self) -> pd.DataFrame:
        """One row per complete trace in the order in which they came, columns
        `schema.TRACES_COLUMNS`."""
        return self._traces.copy()

    @cached_property
    def _traces(self) -> pd.DataFrame:
        # Kept while the store is open: nobody else can write, and `write` forgets it.
        return super().traces()

    def resolve(self, name: str) -> str:
        """Id of the trace that TRACE means (id, prefix, input's name, `last`, `model:name`).
        Raises TraceNotFoundError."""
        return resolve_trace(self._traces, name)

    def _edge_parts(self, number: int, n_states: int, n_kept: int, k: int | None):
        low = number << INDEX_BITS
        parts = self._between(low, low + MAX_STATES, k)
        for _, part in parts:
            for end in ("source", "target"):
                part[end] = part[end] - low
        return parts

    def _between(self, low: int, high: int, k: int | None):
        """(kind, columns) of the edges between the states with low <= id < high, by source."""
        params = {"low": low, "high": high} | ({} if k is None else {"k": k})
        parts = []
        for kind, text in _EDGES.items():
            table = self.engine.arrow(text.format("" if k is None else " AND r.rank < $k"), params)
            part = {name: table[name].to_numpy() for name in table.column_names}
            order = np.argsort(part["source"], kind="stable")
            parts.append((kind, {name: values[order] for name, values in part.items()}))
        return parts

    def _read_counts(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        # Hundreds of millions of numbers: never as Python's. A list of ids has every trace's
        # numbers looked through, a single id only its own.
        if params is None or not params["traces"]:
            table = self.engine.arrow(text, params)
        else:
            one = text.replace("(t:Trace)", "(t:Trace {id: $id})").replace(
                " AND t.id IN $traces", ""
            )
            tables = [self.engine.arrow(one, {"id": trace}) for trace in params["traces"]]
            table = pa.concat_tables(tables)
        at = table.column_names.index("counts")
        lists = table.column(at).combine_chunks()
        ends = lists.offsets.to_numpy()[1:-1]
        parts = np.split(lists.values.to_numpy(zero_copy_only=False), ends) if len(lists) else []
        counts = np.empty(len(lists), object)
        counts[:] = parts
        return to_frame(table.remove_column(at)).assign(counts=counts)

    def subgraphs(
        self, traces: Sequence[str], size: Size | float | str = 1.0
    ) -> Iterator[SubGraph]:
        """The traces (ids) of the given size, one after the other; as `subgraph`.

        A statement over the states of one trace looks through those of all: neighbours are read
        together.
        """
        size = parse_size(size)
        for start in range(0, len(traces), TOGETHER):
            ids = list(traces[start : start + TOGETHER])
            rows = {
                row["id"]: row for row in self.cypher(TRACE_ROWS, {"ids": ids}).to_dict("records")
            }
            sizes: dict[str, int] = {}
            if size.rule != "tv":
                sizes = {trace: size.edges(int(row["n_edges"])) for trace, row in rows.items()}
            easy = {trace: k for trace, k in sizes.items() if k <= int(rows[trace]["n_kept"])}
            found = self._edges_together([rows[trace] for trace in easy], easy)
            for trace in ids:
                if trace in found:
                    row = rows[trace]
                    yield self._made(row, layout_of(row), sizes[trace], *found.pop(trace))
                else:  # not kept here, or of a size that only its curve knows
                    yield self.subgraph(trace, size)

    def _edges_together(
        self, rows: list[dict[str, Any]], k_of: Mapping[str, int]
    ) -> dict[str, tuple[list[tuple[int, dict[str, np.ndarray]]], int | None]]:
        """Of every trace its edges as `_edge_parts` gives them, and which ranks they are below."""
        found = {}
        for run in _runs(sorted(rows, key=lambda row: row["number"])):
            low = int(run[0]["number"]) << INDEX_BITS
            high = (int(run[-1]["number"]) << INDEX_BITS) + MAX_STATES
            largest = max(k_of[row["id"]] for row in run)
            few = 4 * largest < min(int(row["n_kept"]) for row in run)
            limit = largest if few else None
            parts = self._between(low, high, limit)
            for row in run:
                first = int(row["number"]) << INDEX_BITS
                own = []
                for kind, part in parts:
                    start, end = np.searchsorted(part["source"], [first, first + MAX_STATES])
                    mine = {name: values[start:end] for name, values in part.items()}
                    for name in ("source", "target"):
                        mine[name] = mine[name] - first
                    own.append((kind, mine))
                found[row["id"]] = (own, limit)
        return found

    @cached_property
    def has_runs(self) -> bool:
        """Whether the database can hold saved runs; one of an earlier version cannot until it is
        next opened for writing."""
        return self.engine.has_runs

    @cached_property
    def has_counts(self) -> bool:
        """Whether the database can say how many edges each component has; one of an earlier
        version cannot until it is next opened for writing."""
        return self.engine.has_counts

    def measured_columns(self, run: str) -> list[str]:
        """Properties of the MEASURED relationships of a saved run."""
        return measured_columns(self.engine)

    def loose_ends(self) -> list[str]:
        """What belongs to no complete trace, a line each."""
        if not self.has_runs:
            return []
        return [
            f"{n:,} {what}"
            for what, text in _LOOSE.items()
            if (n := self.engine.arrow(f"MATCH {text} RETURN count(*)")[0][0].as_py())
        ]

    def cypher(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Run one statement as it is."""
        try:
            return self.engine.frame(text, params)
        except QueryError as error:
            missing = any(words in str(error) for words in ("does not exist", "Cannot find"))
            if missing and type(error) is QueryError and not self.engine.is_current:
                raise QueryError(
                    f"{error}; the store {self.folder} was made by an earlier version, and the "
                    "next `graphtrace ingest` into it adds what it lacks"
                ) from error
            raise

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.folder)
