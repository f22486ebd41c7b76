"""Reading a Neo4j server: traces, sub-graphs, queries."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from graphtrace.schema import ATTENTION
from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS
from graphtrace.stores.neo4j_connection import Server
from graphtrace.stores.neo4j_runs import measured_columns
from graphtrace.stores.trace_reader import TraceReader

PART = 250_000
"""About so many edges come in one record: what the server holds in memory at a time."""

READERS = 3
"""Parts read at a time: the server looks for the next ones while one is on its way."""

_NAMES = ("source", "target", "score", "rank")

# One record of column lists costs a tenth of one record per edge. The states of a trace are a range
# of ids, which the constraint's index finds.
_EDGES = {
    kind: f"""
MATCH (s:State)-[r:{label}]->(t:State)
WHERE s.id >= $low AND s.id < $high{{}}
RETURN collect(s.id - $first) AS source, collect(t.id - $first) AS target,
       collect(r.score) AS score, collect(r.rank) AS rank
       {", collect(r.head) AS head" if kind == ATTENTION else ""}
"""
    for kind, label in enumerate(EDGE_LABELS)
}


_LOOSE = {
    "half-written traces": "(t:GraphtraceLoading)",
    "traces that are being removed": "(t:GraphtraceDeleted)",
    "traces without a status": "(t:Trace) WHERE t.status IS NULL OR t.status <> 'complete'",
    "states of no trace": "(s:State:Graphtrace) WHERE NOT EXISTS { (s)-[:IN_TRACE]->(:Trace) }",
    "points of curves of no trace": "(c:Checkpoint:Graphtrace) "
    "WHERE NOT EXISTS { (c)<-[:AT]-(:Trace) }",
    "runs that are half-saved": "(a:GraphtraceRun)",
    "runs that are being removed": "(a:GraphtraceOldRun)",
    "communities of no saved run": "(c:Community:Graphtrace) "
    "WHERE NOT EXISTS { (c)<-[:FOUND]-(:Analysis) }",
    "communities of no trace": "(c:Community:Graphtrace) "
    "WHERE NOT EXISTS { (c)-[:OF_TRACE]->(:Trace) }",
}


class ServerReader(TraceReader):
    """Reads traces from a connected server."""

    kind = "neo4j"

    def __init__(self, server: Server) -> None:
        self.server = server

    @property
    def url(self) -> str:
        """The server's address."""
        return self.server.url

    def cypher(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Run one statement as it is, in a transaction in which the server refuses to write."""
        return self.server.frame(text, params)

    def measured_columns(self, run: str) -> list[str]:
        """Properties of the MEASURED relationships of a saved run."""
        return measured_columns(self.server, run)

    def loose_ends(self) -> list[str]:
        """What belongs to no complete trace, a line each."""
        return [
            f"{n:,} {what}"
            for what, text in _LOOSE.items()
            if (n := self.server.read(f"MATCH {text} RETURN count(*)")[0][0])
        ]

    def _edge_parts(self, number: int, n_states: int, n_kept: int, k: int | None):
        first, n_parts = number << INDEX_BITS, max(1, -(-n_kept // PART))
        bounds = [first + n_states * i // n_parts for i in range(n_parts + 1)]
        condition = "" if k is None else " AND r.rank < $k"

        def part(kind: int, low: int, high: int) -> tuple[int, dict[str, np.ndarray]]:
            names = (*_NAMES, "head") if kind == ATTENTION else _NAMES
            params = {"first": first, "low": low, "high": high} | ({} if k is None else {"k": k})
            (row,) = self.server.read(_EDGES[kind].format(condition), params)
            types = {name: np.float32 if name == "score" else np.int64 for name in names}
            return kind, {
                name: np.array(values, types[name]) for name, values in zip(names, row, strict=True)
            }

        with ThreadPoolExecutor(READERS) as pool:
            kinds = sorted(_EDGES, reverse=True)  # the largest first
            parts = [(kind, *bound) for kind in kinds for bound in pairwise(bounds)]
            return list(pool.map(lambda some: part(*some), parts))
