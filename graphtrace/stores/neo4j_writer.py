"""Writing to a Neo4j server: every trace is there whole, or is no Trace at all.

A trace of up to LONG edges is one statement in one managed transaction (`trace.cypher`). A longer
one comes in parts under a label that no query asks for, and its last transaction makes it a Trace
(`begin`, `states`, `edges`, `complete`). Traces have no states in common, so several are written at
a time; of a long one, parts that have none in common. A transaction that the server undid is run
again by the driver; one whose commit was not answered ends the ingest with an error.
"""

import uuid
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from graphtrace.errors import QueryError, StoreError
from graphtrace.stores.graph_tables import GraphTables
from graphtrace.stores.neo4j_columns import Part, TraceColumns, shared_rows, trace_columns
from graphtrace.stores.neo4j_connection import Server
from graphtrace.stores.neo4j_statements import ingest_statements
from graphtrace.stores.shared_tables import check_same_model

WORKERS = 3
"""Transactions at a time. On two cores shared with the server more do not help."""

MOST_WORKERS = 64
"""Each worker needs a connection of the driver's pool of 100."""

LONG = 40_000
"""Edges that one transaction takes: some 60 MB of the server's heap."""

PART = LONG // 4
"""Edges in one transaction of a longer trace: twice as many kept the server's garbage collector
busier, half as many were no faster."""

STALE = 600_000
"""Milliseconds without a sign of life after which a half-written trace has no writer any more."""

_ATTEMPTS = 5

T = TypeVar("T")

_SHARED = ("Model", "Component", "Input", "Label")

_LEFT = "MATCH (t:GraphtraceLoading) WHERE t.heartbeat < timestamp() - $stale RETURN count(*)"

_MODELS = "UNWIND $Model AS row MATCH (m:Model {id: row.id}) RETURN properties(m), row"

_OURS = "MATCH (t:GraphtraceLoading {id: $id}) WHERE t.owner = $owner RETURN count(*)"

_STALE = """
MATCH (t:GraphtraceLoading)
SET t.id = t.id
WITH t WHERE t.heartbeat < timestamp() - $stale
SET t:GraphtraceDeleted, t.owner = null
REMOVE t:GraphtraceLoading
"""


class _SharedGoneError(Exception):
    """A model, input or component that a trace refers to was deleted meanwhile."""


class _LostError(Exception):
    """A long trace that is being written was taken over by another writer, or swept away."""


class ServerWriter:
    """Adds batches of traces to a server. Safe beside other writers, here and elsewhere."""

    def __init__(self, server: Server, workers: int = WORKERS) -> None:
        self.server, self.workers = server, workers
        self._untidy = False
        self._met: dict[str, set[str]] = {label: set() for label in _SHARED}

    def write(self, batch: GraphTables, replace: bool = False, refresh: bool = False) -> int:
        """Add a batch, each trace whole; how many traces were added.

        A trace that is there is left as it is, or with `replace` exchanged for the new one in the
        transaction that adds it. refresh: see `share`.
        """
        self.share(batch, refresh=refresh)
        self._untidy |= replace

        def add(trace: TraceColumns, pool: Executor) -> int:
            for _ in range(_ATTEMPTS):
                try:
                    return self._add(trace, replace, pool)
                except _SharedGoneError:
                    self.share(batch)
            raise StoreError(
                f"the store {self.server.where} loses what trace {trace.id} refers to: another "
                "process deletes from it; run the same command again when that is done"
            )

        traces = list(trace_columns(batch))
        with ThreadPoolExecutor(self.workers) as pool:
            short = (trace for trace in traces if trace.n_edges <= LONG)
            added = sum(_all_of(pool, [lambda trace=trace: add(trace, pool) for trace in short]))
            # A long one at a time: its parts fill the pool.
            added += sum(add(trace, pool) for trace in traces if trace.n_edges > LONG)
        if self._untidy:
            self.sweep()
        return added

    def share(self, batch: GraphTables, refresh: bool = False) -> None:
        """Add the models, components, inputs and labels that are not there, and put aside what
        was left half-written of the batch's traces. refresh: also put
        right those that are, the first time that this writer meets them."""
        rows = shared_rows(batch)
        new = {
            label: [row for row in rows[label] if row["id"] not in self._met[label]]
            for label in _SHARED
        }

        def work(transaction) -> None:
            self._put_aside(transaction, sorted(batch.nodes["Trace"]["id"].to_pylist()))
            for text in ingest_statements("shared"):
                transaction.run(text, rows).consume()
            for text in ingest_statements("refresh") if refresh else ():
                transaction.run(text, new).consume()
            for model, row in transaction.run(_MODELS, rows).values():
                check_same_model(model, row)
            for text in ingest_statements("labelled"):
                transaction.run(text, rows).consume()

        self.server.write(work)
        for label in _SHARED:
            self._met[label].update(row["id"] for row in rows[label])

    def revise(self, batch: GraphTables) -> int:
        """Give traces that are there the batch's properties and curves, each in a transaction of
        its own; how many there were."""
        self.share(batch)
        n = 0
        for trace in trace_columns(batch):
            params = {"id": trace.id, **trace.facts}
            n += self.server.write(
                lambda transaction, params=params: _count(transaction, "revise", params)
            )
        return n

    def _add(self, trace: TraceColumns, replace: bool, pool: Executor) -> int:
        if trace.n_edges > LONG:
            return self._add_long(trace, replace, pool)
        params = trace.whole()

        def work(transaction) -> int:
            if replace:
                _hide(transaction, [trace.id])
            return _linked(transaction, "trace", params, trace)

        return self.server.write(work)

    def _add_long(self, trace: TraceColumns, replace: bool, pool: Executor) -> int:
        while True:
            try:
                return self._try_long(trace, replace, pool)
            except _LostError:
                pass
            text = "MATCH (t:GraphtraceLoading {id: $id}) RETURN count(*)"
            if self.server.read(text, {"id": trace.id})[0][0]:
                return 0

    def _try_long(self, trace: TraceColumns, replace: bool, pool: Executor) -> int:
        """1 where the trace was added, 0 where it is there. Raises _LostError."""
        who = {"id": trace.id, "owner": uuid.uuid4().hex}

        def begin(transaction) -> bool:
            self._put_aside(transaction, [trace.id])
            if not replace and _exists(transaction, trace.id):
                return False
            return _count(transaction, "begin", who) > 0

        def part(name: str, params: dict[str, Any]) -> None:
            def work(transaction) -> None:
                if not _count(transaction, name, params | who):
                    raise _LostError  # and the transaction is undone

            try:
                self.server.write(work)
            except QueryError as error:  # its states are being swept away
                if self.server.read(_OURS, who)[0][0]:
                    raise
                raise _LostError from error

        def edges(parts: list[Part]) -> None:
            for some in parts:
                part("edges", some.params())

        if not self.server.write(begin):
            return 0
        for start in range(0, trace.states.num_rows, LONG):
            part("states", {"states": trace.state_lists(start, start + LONG)})
        for lists in trace.rounds(PART):
            _all_of(pool, [lambda parts=parts: edges(parts) for parts in lists])

        def complete(transaction) -> int:
            if replace:
                _hide(transaction, [trace.id])
            elif _exists(transaction, trace.id):
                self._put_aside(transaction, [trace.id])
                return 0
            if not _linked(transaction, "complete", trace.facts | who, trace):
                raise _LostError
            return 1

        return self.server.write(complete)

    # ---------------------------------------------------------------------------- removing

    def _put_aside(self, transaction, ids: list[str]) -> None:
        if _count(transaction, "aside", {"ids": ids}):
            self._untidy = True

    def hide(self, traces: Iterable[str], at_a_time: int = 20) -> int:
        """Make traces invisible, some per transaction; how many there were. `sweep` then removes
        them."""
        ids, n = list(traces), 0
        for start in range(0, len(ids), at_a_time):
            some = sorted(ids[start : start + at_a_time])
            n += self.server.write(lambda transaction, some=some: _hide(transaction, some))
        return n

    def sweep(self, stale: int = STALE) -> None:
        """Remove what was hidden, and what writers that are gone left half-written. stale:
        milliseconds without a sign of life that make a writer gone."""
        left, text = self.server.read(_LEFT, {"stale": stale})[0][0], _STALE
        if left:
            self.server.write(lambda transaction: transaction.run(text, stale=stale).consume())
        hidden = self.server.read("MATCH (d:GraphtraceDeleted) RETURN elementId(d), d.n_kept")
        if hidden:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(lambda row: self._remove(*row), hidden))
        self._untidy = False

    def _remove(self, node: str, n_kept: int | None) -> None:
        params = {"node": node, "n": LONG}
        texts = ingest_statements("sweep")

        def at_once(transaction) -> None:
            for text in texts:
                transaction.run(text, params).consume()

        def part(transaction, text: str) -> int:
            record = transaction.run(text, params).single()
            return record[0] if record else 0

        if n_kept is not None and n_kept <= LONG:
            self.server.write(at_once)
            return
        for text in texts:
            while self.server.write(lambda transaction, text=text: part(transaction, text)):
                pass

    def repeat(self, text: str, n: int = LONG) -> None:
        """Run a statement that handles `$n` things and returns how many, until there are none."""
        while self.server.write(lambda transaction: _value(transaction.run(text, {"n": n}))):
            pass

    def tidy(self) -> None:
        """Remove inputs, labels, components and models of ours that no trace has any more."""
        for label, pattern in (
            ("Input", "<-[:OF_INPUT]-()"),
            ("Label", "<-[:LABELLED]-()"),
            ("Model", "<-[:OF_MODEL]-()"),
        ):
            self.repeat(
                f"MATCH (n:{label}:Graphtrace) WHERE NOT EXISTS {{ MATCH (n){pattern} }} "
                f"WITH n LIMIT $n SET n.id = n.id "  # with the lock, look again
                f"WITH n WHERE NOT EXISTS {{ MATCH (n){pattern} }} "
                "DETACH DELETE n RETURN count(*) AS n"
            )
        self.repeat(
            "MATCH (n:Component:Graphtrace) WHERE NOT EXISTS { MATCH (m:Model {id: n.model}) } "
            "WITH n LIMIT $n DETACH DELETE n RETURN count(*) AS n"
        )


def _all_of(pool: Executor, work: Iterable[Callable[[], T]]) -> list[T]:
    """What each returns. Where one fails, those that have not begun are left out."""
    futures = [pool.submit(some) for some in work]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def _hide(transaction, ids: Collection[str]) -> int:
    return _count(transaction, "hide", {"ids": list(ids)})


def _exists(transaction, trace: str) -> bool:
    text = "MATCH (t:Trace {id: $id}) WHERE t.status IS NOT NULL RETURN count(*) AS n"
    return _value(transaction.run(text, {"id": trace})) > 0


def _linked(transaction, name: str, params: dict[str, Any], trace: TraceColumns) -> int:
    """As `_count`, where the trace must be linked to its model, input and components."""
    n, links = _row(transaction, name, params)
    if n and links != 2 + len(trace.facts["uses"]["component"]):
        raise _SharedGoneError
    return int(n)


def _count(transaction, name: str, params: dict[str, Any]) -> int:
    return int(_row(transaction, name, params)[0])


def _row(transaction, name: str, params: dict[str, Any]) -> tuple:
    """The one row of the one statement of a file."""
    (text,) = ingest_statements(name)
    return tuple(transaction.run(text, params).single(strict=True).values())


def _value(result) -> int:
    return int(result.single(strict=True)[0])
