"""The embedded store: a Ladybug database in a folder.

    FOLDER/store.json      which database file is current, the archives, what was deleted
    FOLDER/graph-1.lbug    the database (and graph-1.lbug.wal, its log)
    FOLDER/lock            see lock.py

It is a projection of the archive, never the only copy: what cannot be read is rebuilt from there.
"""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path

from graphtrace.errors import QueryError, StoreDamagedError, StoreError
from graphtrace.stores.embedded_writer import EngineStore, EngineWriter
from graphtrace.stores.graph_tables import GraphTables
from graphtrace.stores.ladybug import Engine
from graphtrace.stores.lock import StoreLock
from graphtrace.stores.merging import concatenated
from graphtrace.stores.saved_runs import carry_over, contents, read_runs
from graphtrace.stores.store_file import (
    LOCK_FILE,
    STORE_FILE,
    STORE_FORMAT,
    StoreFile,
    database_files,
    read_store_file,
    sweep,
    write_store_file,
)
from graphtrace.stores.store_tables import read_shared, read_tables

_COPY_EDGES = 1_000_000
"""Edges that `replace` holds in memory at a time, about."""


class EmbeddedStore(EngineStore):
    """See `stores.base.GraphStore` and `open_store`. folder: made on opening it for writing."""

    batch_edges = 3_000_000
    """Edges of one transaction, some 300 MB of memory."""

    def __init__(self, folder: str | Path, read_only: bool = True, wait: float = 0.0) -> None:
        self.folder, self.read_only = Path(folder), read_only
        self._engine: Engine | None = None
        self._lock: StoreLock | None = None
        if read_only:
            require_store(self.folder)
        else:
            _prepare_folder(self.folder)
        try:
            self._lock = StoreLock(self.folder / LOCK_FILE, not read_only, wait)
            self._open(wait)
        except BaseException:
            self.close()
            raise

    def _open(self, wait: float) -> None:
        file = read_store_file(self.folder)
        if file is None:
            if self.read_only:
                raise _no_store(self.folder)
            file = _create(self.folder)
        if file.format < STORE_FORMAT:
            raise StoreError(
                f"the store {self.folder} has format {file.format} and this version has format "
                f"{STORE_FORMAT}; `graphtrace store rebuild --store {self.folder}` makes it anew "
                "from its archives"
            )
        self.file = file
        if not self.read_only:
            sweep(self.folder, file)
        try:
            self._engine = self._open_engine()
        except StoreDamagedError:
            from graphtrace.stores.recovery import recover

            self.close()
            recover(self.folder, wait)
            self._lock = StoreLock(self.folder / LOCK_FILE, not self.read_only, wait)
            self.file = require_store(self.folder)
            self._engine = self._open_engine()

    def _open_engine(self) -> Engine:
        path = self.file.path(self.folder)
        if not path.is_file():
            raise StoreDamagedError(f"{path} is missing")
        engine = Engine(path, self.read_only)
        try:
            engine.arrow("MATCH (t:Trace) RETURN count(*)")
            if not self.read_only and not engine.is_current:
                engine.upgrade_schema()
        except QueryError as error:
            engine.close()
            raise StoreDamagedError(f"{path} cannot be read: {error}") from error
        return engine

    def close_database(self) -> None:
        """Close the database and keep the lock."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def close(self) -> None:
        """Close the database and give back the lock; a second call does nothing."""
        try:
            self.close_database()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    def __enter__(self) -> "EmbeddedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- writing

    @cached_property
    def _writer(self) -> EngineWriter:
        self._require_writable()
        return EngineWriter(self.engine)

    def replace(
        self, traces: Collection[tuple[str, int]], make: Callable[[str, int], GraphTables]
    ) -> int:
        """Exchange traces that are there, all in one step: a database with the new ones takes the
        place of the old one, as in a rebuild. What was measured of them goes.

        traces: ids and kept edges; make: a trace, by its id and the number that it gets.
        """
        from graphtrace.ingestion import batches

        self._require_writable()
        gone = dict(traces)
        frame = self.cypher("MATCH (t:Trace) RETURN t.id AS id, t.n_kept AS n ORDER BY t.number")
        kept = [
            (x, n) for x, n in zip(frame["id"], frame["n"].tolist(), strict=True) if x not in gone
        ]
        before, runs = contents(self), read_runs(self)
        sweep(self.folder, self.file)
        new = self.file.change(database=self.file.database + 1)
        target = EngineStore(build_database(new.path(self.folder)), self.folder, self.archives)
        number = 0
        try:
            for ids in batches(kept, max_edges=_COPY_EDGES):
                target.write(read_tables(self, ids, number))
                number += len(ids)
            for ids in batches(list(gone.items()), max_edges=_COPY_EDGES):
                parts = [make(trace, number + i) for i, trace in enumerate(ids)]
                target.write(concatenated(parts))
                target.share(read_shared(self, ids))  # what other archives said of them
                number += len(ids)
            carry_over(runs, before, target)
        finally:
            target.engine.close()
        self.close_database()
        write_store_file(self.folder, new)
        self.file = new
        sweep(self.folder, new)
        for name in ("_traces", "_writer", "has_runs", "has_counts"):
            vars(self).pop(name, None)
        self._engine = self._open_engine()
        return len(gone)

    def _require_writable(self) -> None:
        if self.read_only:
            raise StoreError(f"the store {self.folder} was opened for reading only")

    @property
    def archives(self) -> tuple[str, ...]:
        """Paths of the archives that traces came from, in the order in which they came."""
        return self.file.archives

    @property
    def deleted(self) -> tuple[str, ...]:
        """Ids of traces that an ingest must not bring back by itself."""
        return self.file.deleted

    def remember(
        self,
        archives: Collection[str] = (),
        deleted: Collection[str] = (),
        restored: Collection[str] = (),
    ) -> None:
        """Note archives that traces came from, traces that were deleted, and traces that may come
        back."""
        self._require_writable()
        self.file = self.file.change(
            archives=tuple(dict.fromkeys((*self.file.archives, *archives))),
            deleted=tuple(sorted({*self.file.deleted, *deleted} - set(restored))),
        )
        write_store_file(self.folder, self.file)


def require_store(folder: Path) -> StoreFile:
    """The folder's store file. Raises StoreError where there is no store."""
    file = read_store_file(folder)
    if file is None:
        raise _no_store(folder)
    return file


def _no_store(folder: Path) -> StoreError:
    return StoreError(
        f"there is no store in {folder}; `graphtrace ingest --store {folder}` makes one from an "
        "archive"
    )


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in folder.iterdir()} - {LOCK_FILE, f"{STORE_FILE}.new"}
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be made: {error.strerror}") from error
    others -= {path.name for path in database_files(folder)}
    if others and STORE_FILE not in others:
        raise StoreError(
            f"{folder} holds other files ({', '.join(sorted(others)[:3])}) and is no store; give "
            "another folder"
        )


def _create(folder: Path) -> StoreFile:
    sweep(folder, None)
    file = StoreFile()
    build_database(file.path(folder)).close()
    # Written last: a store whose making was interrupted is made anew.
    write_store_file(folder, file)
    return file


def build_database(path: Path) -> Engine:
    """A new database with the schema and nothing in it."""
    engine = Engine(path, read_only=False)
    engine.create_schema()
    return engine
