"""Reading an embedded store: traces, sub-graphs, queries."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphtrace.errors import QueryError, StoreError
from graphtrace.schema import ATTENTION
from graphtrace.selection import resolve_trace
from graphtrace.stores.embedded_runs import measured_columns
from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS, MAX_STATES
from graphtrace.stores.ladybug import Engine, to_frame
from graphtrace.stores.trace_reader import TraceReader

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
        params = {"low": low, "high": low + MAX_STATES} | ({} if k is None else {"k": k})
        parts = []
        for kind, text in _EDGES.items():
            table = self.engine.arrow(text.format("" if k is None else " AND r.rank < $k"), params)
            part = {name: table[name].to_numpy() for name in table.column_names}
            for end in ("source", "target"):
                part[end] = part[end] - low
            parts.append((kind, part))
        return parts

    def _read_counts(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        # Hundreds of millions of numbers: never as Python's.
        table = self.engine.arrow(text, params)
        at = table.column_names.index("counts")
        lists = table.column(at).combine_chunks()
        ends = lists.offsets.to_numpy()[1:-1]
        parts = np.split(lists.values.to_numpy(zero_copy_only=False), ends) if len(lists) else []
        counts = np.empty(len(lists), object)
        counts[:] = parts
        return to_frame(table.remove_column(at)).assign(counts=counts)

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
