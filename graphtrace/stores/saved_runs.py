"""Results of analyses as a store holds them: `save_analysis`, and what a saved run is.

    (:Analysis)-[:OVER]->(:Trace)                    which traces a run is over
    (:Analysis)-[:MEASURED {row, subset, ...}]->(:Component | :State | :Trace | :Model)
                                                     one per row of the printed table
    (:Analysis)-[:FOUND]->(:Community)-[:OF_TRACE]->(:Trace)
    (:State)-[:IN_COMMUNITY]->(:Community)

The same measure with the same parameters over the same traces is the same run: saved again, it
takes its own place. A run names states by trace, level and position, so that it can be read from
one database and written to another; what is not there any more is then left out.
"""

import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from graphtrace.errors import OptionError, StoreError
from graphtrace.stores.base import open_store
from graphtrace.stores.measured_tables import (
    COMMUNITY,
    MEMBER,
    STATE_KEY,
    TARGETS,
    TEXT,
    community_tables,
    measured_rows,
    value_array,
)
from graphtrace.traces import short_hash


class SavedRun(NamedTuple):
    """One run.

    properties: of its Analysis node. traces: ids, ascending. measured: by label of what the rows
    are about, a table with `to` (an id; of states `STATE_KEY`), `row` (int64, place in the printed
    table), `subset` (`group=clean`, null without groups) and the values: numbers as float64, texts,
    booleans. communities: properties of the Community nodes; members: community, and `STATE_KEY`.
    """

    properties: dict[str, Any]
    traces: list[str]
    measured: dict[str, pa.Table]
    communities: pa.Table
    members: pa.Table

    @property
    def id(self) -> str:
        """'a' + 12 hex."""
        return self.properties["id"]

    def of_traces(self, ids: Collection[str]) -> "SavedRun":
        """The run without what it says of all other traces and their states."""
        measured = {
            label: _of(rows, "trace" if label == "State" else "to", ids)
            if label in ("State", "Trace")
            else rows
            for label, rows in self.measured.items()
        }
        communities, members = (_of(x, "trace", ids) for x in (self.communities, self.members))
        traces = [trace for trace in self.traces if trace in ids]
        return SavedRun(self.properties, traces, measured, communities, members)


def _of(rows: pa.Table, name: str, ids: Collection[str]) -> pa.Table:
    return rows.filter(pa.array([trace in ids for trace in rows[name].to_pylist()], pa.bool_()))


def save_analysis(
    store: Any,
    measure: str,
    table: pd.DataFrame,
    size: object = None,
    *,
    members: pd.DataFrame | None = None,
    parameters: dict[str, Any] | None = None,
    wait: float = 0.0,
    **selection: Any,
) -> SavedRun:
    """Write what an analysis of a store's traces returned into that store, as one run.

    store: a URL, or a store that is open for writing. measure: the analysis' name, such as
    `centrality`. table: its DataFrame. size, selection (models, settings, where, by,
    exclude_special): as they were given to the analysis; parameters: what else was, by name (JSON
    values). members: of `modularity`, the second table of `modularity_with_members`.

    Every row is attached to its component, state, trace or model, by what the table's columns
    name; its numbers, texts and booleans become properties. Rows of `all models` are about none
    and are left out. A run of the same measure, size, by, parameters and traces is replaced.
    Raises OptionError where a row is about a trace that was not asked for, StoreError,
    StoreLockedError.
    """
    from graphtrace.analysis.reading import chosen_traces, read_selection

    if isinstance(store, str | Path):
        with open_store(store, read_only=False, wait=wait) as opened:
            return save_analysis(
                opened, measure, table, size, members=members, parameters=parameters, **selection
            )
    want = read_selection(selection)
    chosen = chosen_traces(store, want)
    shown: dict[str, Any] = {"size": None if size is None else str(size), "by": want["by"] or None}
    shown |= {"exclude_special": want["exclude_special"] or None} | (parameters or {})
    shown = {key: value for key, value in shown.items() if value is not None}
    narrowed = {key: want[key] for key in ("models", "settings", "where") if want[key]}
    run = make_run(measure, table, chosen, shown, narrowed, members)
    store.save_run(run)
    return run


def make_run(
    measure: str,
    table: pd.DataFrame,
    traces: pd.DataFrame,
    parameters: dict[str, Any],
    selection: dict[str, Any],
    members: pd.DataFrame | None = None,
) -> SavedRun:
    """The run of a table. traces: rows of `traces()` that it is over; parameters and selection:
    JSON values, of which the first decide the run's id."""
    from graphtrace import __version__

    ids = sorted(traces["id"])
    names = dict(zip(traces["id"], traces["name"], strict=True))
    run_id = short_hash([measure, parameters, ids], "a")
    if "trace" in table.columns and not set(table["trace"]) <= set(names):
        other = min(set(table["trace"]) - set(names))
        raise OptionError(
            f"the table has rows of trace {other}, which the given models, settings and "
            "conditions leave out; give those that the analysis was given"
        )
    measured = measured_rows(table, parameters.get("by") or [])
    communities, links = community_tables(run_id, names, members)
    size = parameters.get("size")
    properties = {
        "id": run_id,
        "name": f"{measure} {size}" if size else measure,
        "measure": measure,
        "parameters": json.dumps(parameters | selection, sort_keys=True, ensure_ascii=False),
        "settings": str(traces["settings"].iloc[0]),
        "size": size,
        "n_traces": len(ids),
        "n_rows": sum(rows.num_rows for rows in measured.values()),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "version": __version__,
    }
    return SavedRun(properties, ids, measured, communities, links)


# ------------------------------------------------------------------------------- reading them

_RUNS = """
MATCH (a:Analysis)
OPTIONAL MATCH (a)-[:OVER]->(t:Trace)
RETURN a.id AS id, a.measure AS measure, a.size AS size, a.settings AS settings,
       a.n_traces AS n_traces, count(t) AS n_left, a.n_rows AS n_rows,
       a.parameters AS parameters, a.created AS created, a.version AS version, a.name AS name
ORDER BY created, id
"""

_COUNTED = "MATCH (a:Analysis)-[:FOUND]->(c:Community) RETURN a.id AS id, count(c) AS n"

COLUMNS = (
    "id", "measure", "size", "settings", "n_traces", "n_left", "n_rows", "n_communities",
    "parameters", "created", "version", "name",
)  # fmt: skip
"""Columns of `list_runs`. n_traces: traces that the run is over; n_left: how many of them are still
in the store as they were."""


def list_runs(store: Any) -> pd.DataFrame:
    """The saved runs of a store, the oldest first: one row each, columns `COLUMNS`; none where the
    store is older than saved runs."""
    if not store.has_runs:
        return pd.DataFrame(columns=pd.Index(COLUMNS))
    frame = store.cypher(_RUNS)
    counted = store.cypher(_COUNTED)
    found = dict(zip(counted["id"], counted["n"], strict=True))
    frame["n_communities"] = [int(found.get(id_, 0)) for id_ in frame["id"]]
    return frame.reindex(columns=list(COLUMNS))


def resolve_runs(store: Any, names: Iterable[str]) -> list[str]:
    """Ids of the runs that ids or unique beginnings of them mean. Raises OptionError."""
    ids, found = list_runs(store)["id"].tolist(), []
    for name in names:
        matches = [id_ for id_ in ids if id_.startswith(name) and name]
        if len(matches) != 1:
            what = "several saved runs" if matches else "no saved run"
            listed = ", ".join(matches or ids) or "there are none"
            raise OptionError(f"{name!r} means {what} ({listed}); `graphtrace store analyses`")
        found += matches
    return list(dict.fromkeys(found))


def read_run(store: Any, run_id: str) -> SavedRun:
    """A run as it can be written to another store. Raises StoreError where it is not there."""
    given = {"id": run_id}
    names = ("id", "name", "measure", "parameters", "settings", "size", "n_traces", "n_rows",
             "created", "version")  # fmt: skip
    columns = ", ".join(f"a.{name} AS {name}" for name in names)
    frame = store.cypher(f"MATCH (a:Analysis {{id: $id}}) RETURN {columns}", given)
    if len(frame) == 0:
        raise StoreError(f"there is no saved run {run_id} in the store {store.url}")
    properties = {name: _plain(value) for name, value in frame.iloc[0].to_dict().items()}
    over = store.cypher(
        "MATCH (a:Analysis {id: $id})-[:OVER]->(t:Trace) RETURN t.id AS id ORDER BY id", given
    )
    values = [name for name in store.measured_columns(run_id) if name not in ("row", "subset")]
    measured = {}
    for label in TARGETS:
        ends = STATE_KEY if label == "State" else ("id",)
        parts = [f"x.{name} AS {'to' if name == 'id' else f'end_{name}'}" for name in ends]
        parts += ["m.row AS `row`", "m.subset AS subset"]
        parts += [f"m.`{name}` AS `{name}`" for name in values]
        rows = store.cypher(
            f"MATCH (a:Analysis {{id: $id}})-[m:MEASURED]->(x:{label}) "
            f"RETURN {', '.join(parts)} ORDER BY `row`",
            given,
        )
        if len(rows):
            measured[label] = _table(rows.rename(columns=lambda name: name.removeprefix("end_")))
    return SavedRun(
        properties,
        over["id"].tolist(),
        measured,
        _read_communities(store, given),
        _read_members(store, given),
    )


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or value != value else value


def read_runs(store: Any) -> list[SavedRun]:
    """All saved runs of a store."""
    return [read_run(store, run_id) for run_id in list_runs(store)["id"]]


def contents(store: Any) -> dict[str, str]:
    """The content hash of every trace of a store, by id."""
    frame = store.cypher("MATCH (t:Trace) RETURN t.id AS id, t.content AS content")
    return dict(zip(frame["id"], frame["content"], strict=True))


def carry_over(runs: Iterable[SavedRun], before: dict[str, str], store: Any) -> int:
    """Write runs into a store; how many. before: the content hashes of the traces that they were
    over; of a trace whose edges are others now, what was found goes."""
    same = {trace for trace, content in contents(store).items() if before.get(trace) == content}
    n = 0
    for run in runs:
        store.save_run(run.of_traces(same))
        n += 1
    return n


def _table(rows: pd.DataFrame) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in rows.columns:
        if name in ("level", "position", "row"):
            columns[name] = pa.array(rows[name].tolist(), pa.int64())
        elif name in ("to", "trace", "subset"):
            columns[name] = pa.array(rows[name].tolist(), TEXT, from_pandas=True)
        else:
            values = value_array(rows[name].tolist())
            if values.null_count < len(values):
                columns[name] = values
    return pa.table(columns)


def _read_communities(store: Any, given: dict[str, str]) -> pa.Table:
    columns = ", ".join(f"c.{name} AS {name}" for name in COMMUNITY.names)
    text = f"MATCH (a:Analysis {{id: $id}})-[:FOUND]->(c:Community) RETURN {columns} ORDER BY id"
    frame = store.cypher(text, given)
    return pa.table({f.name: pa.array(frame[f.name].tolist(), f.type) for f in COMMUNITY})


def _read_members(store: Any, given: dict[str, str]) -> pa.Table:
    frame = store.cypher(
        "MATCH (a:Analysis {id: $id})-[:FOUND]->(c:Community)<-[:IN_COMMUNITY]-(s:State) "
        "RETURN c.id AS community, s.trace AS trace, s.level AS level, s.position AS position "
        "ORDER BY community, level, position",
        given,
    )
    return pa.table({f.name: pa.array(frame[f.name].tolist(), f.type) for f in MEMBER})
