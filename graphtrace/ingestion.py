"""Archive -> store: `ingest`.

The archive's traces that the store has not yet are added in batches, each batch in one
transaction: killed at any moment, the store holds whole traces, and the same call goes on from
there. Ingesting the same archive twice changes nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from graphtrace.archive import Archive, open_archive
from graphtrace.errors import OptionError
from graphtrace.progress import progress
from graphtrace.read_ahead import read_ahead
from graphtrace.stores.base import open_store
from graphtrace.stores.graph_tables import GraphTables, graph_tables
from graphtrace.stores.overlap import differing, update_present

BATCH_TRACES = 1000
"""At most so many traces in one transaction."""

BATCH_EDGES = 3_000_000
"""At most about so many edges in one transaction (some 300 MB of memory); one trace at least."""


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did. n_new: traces added; n_present: were there already; n_deleted: left out
    because they had been deleted from the store; n_changed: of those present, how many got more
    edges, other curves or other properties; n_conflicts: of those looked at for it, how many are
    contradicted by another archive, so that one of the two was left out; n_edges: edges added."""

    archive: str
    store: str
    n_new: int
    n_present: int
    n_deleted: int
    n_changed: int
    n_conflicts: int
    n_edges: int
    seconds: float


def ingest(
    archive: str | Path | Archive,
    store: str | Path | None = None,
    restore: bool = False,
    wait: float = 0.0,
    show_progress: bool = False,
    workers: int | None = None,
) -> IngestResult:
    """Add an archive's traces to a store.

    A trace that is there takes over what the archive has more of it: edges, kinds of curves,
    labels. Where two archives contradict each other, the same one counts in whatever order they
    come (`stores.merging`, `stores.shared_tables`), so two archives that overlap make the same
    graph in either order.

    archive: a folder, or an open archive. store: a store URL, GRAPHTRACE_STORE or `traces/store`
    by default; made if it is not there. restore: also add traces that were deleted from the store,
    which are left out otherwise. wait: seconds to wait while another process uses the store.
    workers: how many traces a server is given at a time, 3 by default.

    Raises ArchiveError, StoreError, StoreLockedError, StorageFullError, OptionError; what was
    committed before stays.
    """
    if not isinstance(archive, Archive):
        with open_archive(archive) as opened:
            return ingest(opened, store, restore, wait, show_progress, workers)
    started = time.perf_counter()
    folder = str(Path(archive.folder).resolve())
    frame = archive.traces()
    with open_store(store, read_only=False, wait=wait, workers=workers) as target:
        known = target.traces()
        present = set(known["id"])
        deleted = set(target.deleted)
        if restore:
            target.remember(restored=deleted & set(frame["id"]))
            deleted -= set(frame["id"])
        if folder not in target.archives:
            # Before the first trace, so that every trace's archive is known whatever happens.
            target.remember(archives=[folder])
        pairs = list(zip(frame["id"].tolist(), frame["n_kept"].tolist(), strict=True))
        fresh = [(trace, n) for trace, n in pairs if trace not in present]
        new = [(trace, n) for trace, n in fresh if trace not in deleted]
        n_new = n_edges = 0
        if new:
            number = target.reserve(len(new))
            n_new, n_edges = add_traces(
                archive, new, target.write, number, show_progress, target.batch_edges
            )
        uncounted = target.uncounted()
        changed = set(differing(frame, known)) | {x for x in present if x in uncounted}
        ids = [trace for trace in frame["id"] if trace in changed]
        changes = update_present(target, archive, folder, ids)
        return IngestResult(
            archive=folder,
            store=target.url,
            n_new=n_new,
            n_present=len(pairs) - len(fresh) + len(new) - n_new,
            n_deleted=len(fresh) - len(new),
            n_changed=changes.n_changed,
            n_conflicts=changes.n_conflicts,
            n_edges=n_edges,
            seconds=time.perf_counter() - started,
        )


def add_traces(
    archive: Archive,
    traces: list[tuple[str, int]],
    write: Callable[[GraphTables], int],
    number: int,
    show_progress: bool = False,
    batch_edges: int = BATCH_EDGES,
) -> tuple[int, int]:
    """Write some traces of an archive, batch by batch.

    traces: ids and their kept edges. number: the number that the first of them gets. batch_edges:
    about how many edges a batch may have. Returns how many traces and edges were written.
    """
    folder = str(Path(archive.folder).resolve())

    def made() -> Iterator[GraphTables]:
        first = number
        for ids in batches(traces, max_edges=batch_edges):
            for table in archive.tables(ids, batch=len(ids)):
                yield graph_tables(table, first, folder)
                first += table.num_rows

    n_new = n_edges = 0
    with (
        progress("ingest", len(traces), "traces", show_progress and len(traces) > 0) as advance,
        closing(read_ahead(made())) as coming,  # also where writing fails, wait for the thread
    ):
        for batch in coming:
            added = write(batch)
            n_new += added
            n_edges += batch.n_edges if added else 0
            advance(batch.nodes["Trace"].num_rows)
    return n_new, n_edges


def batches(
    traces: list[tuple[str, int]], max_traces: int = BATCH_TRACES, max_edges: int = BATCH_EDGES
) -> Iterator[list[str]]:
    """Ids of the traces of one transaction after the other. traces: ids and kept edges."""
    if max_traces < 1:
        raise OptionError(f"a batch of {max_traces} traces is none; it must be at least 1")
    ids, edges = [], 0
    for trace, n_kept in traces:
        if ids and (len(ids) == max_traces or edges + n_kept > max_edges):
            yield ids
            ids, edges = [], 0
        ids.append(trace)
        edges += n_kept
    if ids:
        yield ids
