"""Writing an embedded store: whole batches of traces, each in one transaction."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from graphtrace.stores.embedded_reader import EngineReader
from graphtrace.stores.embedded_runs import remove_runs, write_run
from graphtrace.stores.embedded_shared import SHARED, SharedNodes, SharedPlan, setting
from graphtrace.stores.graph_tables import GraphTables
from graphtrace.stores.ladybug import Engine
from graphtrace.stores.saved_runs import SavedRun

_POINTS = "MATCH (t:Trace {id: $id})-[:AT]->(c:Checkpoint) DETACH DELETE c"
_LINK_POINTS = (
    "MATCH (t:Trace {id: $id}), (c:Checkpoint) WHERE c.id STARTS WITH $start CREATE (t)-[:AT]->(c)"
)


class EngineWriter:
    """Adds batches of traces to a database opened for writing, and changes those that are there."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def next_number(self) -> int:
        """One more than the highest number of a trace."""
        highest = self.engine.arrow("MATCH (t:Trace) RETURN max(t.number)")[0][0].as_py()
        return 0 if highest is None else highest + 1

    def write(self, batch: GraphTables) -> int:
        """Add a batch in one transaction: all of its traces are there afterwards, or none; how many
        there are. What it changes of shared nodes follows in another one."""
        with self._planned(batch) as plan:
            with self.engine.transaction():
                for label, rows in plan.new.items():
                    if label != "LABELLED":
                        self.engine.copy(label, rows)
                for label, rows in batch.nodes.items():
                    if label not in SHARED:
                        self.engine.copy(label, rows)
                self.engine.copy("LABELLED", plan.new["LABELLED"])
                for label, rows in batch.edges.items():
                    if label != "LABELLED":
                        self.engine.copy(label, rows)
            self._change(plan.changes)
        return batch.nodes["Trace"].num_rows

    def revise(self, batch: GraphTables) -> int:
        """Give traces that are there the batch's properties and curves, in one transaction; their
        states and edges stay."""
        self.share(batch)
        points = batch.nodes["Checkpoint"]
        columns = ", ".join(f"{name}: {name}" for name in points.column_names)
        with self.engine.transaction():
            for row in batch.nodes["Trace"].to_pylist():
                self.engine.run(_POINTS, {"id": row["id"]})
                self.engine.run(*setting("Trace", row))
            # No COPY beside statements, see `SharedPlan`.
            self.engine.run(f"LOAD FROM $rows CREATE (:Checkpoint {{{columns}}})", {"rows": points})
            for trace in batch.nodes["Trace"]["id"].to_pylist():
                self.engine.run(_LINK_POINTS, {"id": trace, "start": f"{trace}:"})
        return batch.nodes["Trace"].num_rows

    def share(self, batch: GraphTables) -> None:
        """Add the batch's models, components, inputs and labels, or what they change, alone."""
        with self._planned(batch) as plan:
            if any(rows.num_rows for rows in plan.new.values()):
                with self.engine.transaction():
                    for label, rows in plan.new.items():
                        self.engine.copy(label, rows)
            self._change(plan.changes)

    def _change(self, changes: list[tuple[str, dict[str, Any]]]) -> None:
        if changes:
            with self.engine.transaction():
                for text, params in changes:
                    self.engine.run(text, params)

    @contextmanager
    def _planned(self, batch: GraphTables) -> Iterator[SharedPlan]:
        try:
            yield self._shared.plan(batch)
        except BaseException:
            vars(self).pop("_shared", None)  # it knows what was not written
            raise

    @cached_property
    def _shared(self) -> SharedNodes:
        return SharedNodes(self.engine)


class EngineStore(EngineReader):
    """A database opened for writing, read and changed alike. folder: the store's, for messages;
    archives: the store's."""

    def __init__(self, engine: Engine, folder: Path, archives: tuple[str, ...] = ()) -> None:
        super().__init__(engine, folder)
        self._archives = archives

    @property
    def archives(self) -> tuple[str, ...]:
        """Paths of the archives that traces came from, in the order in which they came."""
        return self._archives

    @cached_property
    def _writer(self) -> EngineWriter:
        return EngineWriter(self.engine)

    def _changed(self) -> None:
        vars(self).pop("_traces", None)

    def reserve(self, n: int) -> int:
        """The first of `n` numbers that no other trace gets."""
        return self._writer.next_number()

    def write(self, batch: GraphTables) -> int:
        """Add a batch in one transaction: all of its traces are there afterwards, or none."""
        self._changed()
        return self._writer.write(batch)

    def share(self, batch: GraphTables) -> None:
        """Add what traces share (models, components, inputs, labels), or what it changes."""
        self._changed()
        self._writer.share(batch)

    def revise(self, batch: GraphTables) -> int:
        """Give traces that are there the batch's properties and curves; their edges stay."""
        self._changed()
        return self._writer.revise(batch)

    def save_run(self, run: SavedRun) -> None:
        """Write the results of an analysis in place of the run of the same id, all or nothing."""
        self._require_writable()
        write_run(self.engine, run)

    def delete_runs(self, ids: Collection[str]) -> None:
        """Remove saved runs."""
        self._require_writable()
        remove_runs(self.engine, list(ids))

    def _require_writable(self) -> None:
        """Raise StoreError where the store was opened for reading."""
