"""`store verify`: is every trace in the store what its archive says?

Each trace's rows are computed anew from its archives and compared with what is read back, text
columns too; the edges by `traces.content_hash` as well.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from graphtrace.archive import Archive, open_archive
from graphtrace.errors import ArchiveError, GraphtraceError
from graphtrace.progress import Advance, progress
from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS, MAX_STATES
from graphtrace.stores.merging import merge_copies
from graphtrace.stores.overlap import copies_of, one_trace, other_archives
from graphtrace.stores.trace_reader import TraceReader
from graphtrace.traces import content_hash

COLUMNS = ("trace", "name", "problem")

_READ = {
    "State": """
MATCH (s:State) WHERE s.id >= $low AND s.id < $high
RETURN s.id AS id, s.name AS name, s.trace AS trace, s.level AS level, s.layer AS layer,
       s.site AS site, s.position AS position, s.token_id AS token_id, s.token AS token,
       s.special AS special, s.experts AS experts ORDER BY id""",
    "Trace": "MATCH (t:Trace {id: $id}) RETURN {columns}",
    "Checkpoint": "MATCH (t:Trace {id: $id})-[:AT]->(x:Checkpoint) RETURN {columns}",
    "Input": "MATCH (t:Trace {id: $id})-[:OF_INPUT]->(x:Input) RETURN x.id AS id, x.name AS name, "
    "x.text AS text",
    "IN_TRACE": "MATCH (s:State)-[:IN_TRACE]->(t:Trace {id: $id}) RETURN count(*) AS n",
    "OUTPUT": "MATCH (t:Trace {id: $id})-[:OUTPUT]->(s:State) RETURN t.id AS `from`, s.id AS `to`",
    "OF_MODEL": "MATCH (t:Trace {id: $id})-[:OF_MODEL]->(m:Model) "
    "RETURN t.id AS `from`, m.id AS `to`",
    "USES": "MATCH (t:Trace {id: $id})-[u:USES]->(c:Component) RETURN t.id AS `from`, "
    "c.id AS `to`, u.n AS n, u.best_rank AS best_rank, u.score AS score ORDER BY best_rank",
}


def verify_store(store: TraceReader, archives, deleted=(), show_progress=False) -> pd.DataFrame:
    """Compare a store with its archives.

    store: open. archives: paths, in the order of ingestion. deleted: ids that need not be there.

    Returns a DataFrame with the columns trace, name, problem: no rows where all is well. An
    archive that is not at hand is a problem, not an error.
    """
    present = _names(store.traces())
    with progress("verify", len(present), "traces", show_progress) as advance:
        problems = list(_problems(store, present, archives, set(deleted), advance))
    return pd.DataFrame(problems, columns=list(COLUMNS), dtype=object)


def _problems(
    store: TraceReader, present: dict[str, str], archives, deleted: set[str], advance: Advance
) -> Iterator[tuple[str | None, str | None, str]]:
    checked: set[str] = set()
    for path in archives:
        try:
            with open_archive(path) as archive, other_archives(archives, path) as (others, _):
                names = _names(archive.traces())
                fresh = [trace for trace in names if trace not in checked]
                checked |= set(fresh)
                for trace in fresh:
                    if trace not in present and trace not in deleted:
                        yield trace, names[trace], f"not in the store, but in the archive {path}"
                both = [trace for trace in fresh if trace in present]
                for table in archive.tables(both, batch=50) if both else ():
                    for row in range(table.num_rows):
                        one = table.slice(row, 1)
                        trace = one["id"][0].as_py()
                        advance()
                        for problem in _differences(store, one, path, others):
                            yield trace, present[trace], problem
        except ArchiveError as error:
            yield None, None, f"the archive {path} cannot be read: {error}"
    for trace, name in present.items():
        if trace not in checked:
            yield trace, name, "in the store, but in none of its archives"
    for problem in store.loose_ends():
        yield None, None, problem


def _names(traces: pd.DataFrame) -> dict[str, str]:
    return dict(zip(traces["id"], traces["name"], strict=True))


def _differences(
    store: TraceReader, row: pa.Table, path: str, others: dict[str, Archive]
) -> Iterator[str]:
    """What differs between the store's copy of a trace and what its archives say of it: the one
    row of an archive, and those that others have."""
    trace = row["id"][0].as_py()
    found = store.cypher(
        "MATCH (t:Trace {id: $id}) RETURN t.number AS number, t.n_kept AS n_kept, "
        "t.archive AS archive",
        {"id": trace},
    ).iloc[0]
    number = int(found["number"])
    # Which archive the store names is its own affair: several may hold the copy that counts.
    copies = [one_trace(row, number, found["archive"])]
    copies += copies_of(trace, others, number, found["archive"])
    expected = copies[0] if len(copies) == 1 else merge_copies(copies).tables
    values = expected.nodes["Trace"].to_pylist()[0]
    if found["n_kept"] != values["n_kept"]:
        yield f"{found['n_kept']:,} edges in the store, {values['n_kept']:,} in the archive"
        return
    try:
        edges = store.subgraph(trace, f"k:{values['n_kept']}").edges
        content = content_hash(edges)
    except GraphtraceError as error:
        yield str(error)
        return
    if content != values["content"]:
        yield f"content {content} in the store, {values['content']} in the archive"
    low = number << INDEX_BITS
    params = {"id": trace, "low": low, "high": low + MAX_STATES}
    for label in ("State", "Trace", "Checkpoint"):
        table = expected.nodes[label]
        yield from _compare(store, label, table, params)
    want = expected.nodes["Input"].select(["id", "name", "text"])
    yield from _compare(store, "Input", want, params)
    for label in ("OUTPUT", "OF_MODEL", "USES"):
        yield from _compare(store, label, expected.edges[label], params)
    n_states = _read(store, "IN_TRACE", [], params)["n"].iloc[0]
    if n_states != expected.nodes["State"].num_rows:
        yield f"IN_TRACE: {n_states:,} in the store, {expected.nodes['State'].num_rows:,} expected"
    edges = [expected.edges[label] for label in EDGE_LABELS]
    first = np.concatenate([table["rank"].filter(table["first"]).to_numpy() for table in edges])
    marked = store.cypher(
        f"MATCH (s:State)-[r:{'|'.join(EDGE_LABELS)}]->(t:State) WHERE s.id >= $low "
        "AND s.id < $high AND r.first RETURN r.rank AS rank ORDER BY rank",
        {"low": low, "high": low + MAX_STATES},
    )["rank"].to_numpy()
    if not np.array_equal(np.sort(first), marked):
        yield "other edges are marked as the first of their source"


def _compare(store: TraceReader, label: str, want: pa.Table, params: dict) -> Iterator[str]:
    have = _read(store, label, want.column_names, params)
    key = next(name for name in ("best_rank", "id", "to") if name in want.column_names)
    wanted = want.to_pandas().sort_values(key, ignore_index=True)
    have = have.sort_values(key, ignore_index=True)
    if len(have) != len(wanted):
        yield f"{label}: {len(have):,} in the store, {len(wanted):,} expected"
        return
    for name in want.column_names:
        a, b = have[name].tolist(), wanted[name].tolist()
        if not all(map(_same, a, b)):
            at = next(i for i, pair in enumerate(zip(a, b, strict=True)) if not _same(*pair))
            yield f"{label}.{name}: {a[at]!r} in the store, {b[at]!r} expected"


def _read(store: TraceReader, label: str, columns: list[str], params: dict) -> pd.DataFrame:
    text = _READ[label]
    owner = "t" if label == "Trace" else "x"
    text = text.replace("{columns}", ", ".join(f"{owner}.{name} AS {name}" for name in columns))
    return store.cypher(text, {key: x for key, x in params.items() if f"${key}" in text})


def _same(a, b) -> bool:
    if isinstance(a, list | np.ndarray) and isinstance(b, list | np.ndarray):
        return list(a) == list(b)
    if isinstance(a, list | np.ndarray) or isinstance(b, list | np.ndarray):
        return False
    missing = pd.isna(a), pd.isna(b)
    return all(missing) or (not any(missing) and a == b)
