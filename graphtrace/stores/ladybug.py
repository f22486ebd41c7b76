"""The one module that speaks to the Ladybug engine: open, run, turn errors into ours."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from graphtrace.cypher_files import cypher_folder, statements
from graphtrace.errors import (
    QueryError,
    ReadOnlyError,
    StorageFullError,
    StoreDamagedError,
    StoreError,
)

MAX_DATABASE = 1 << 38
"""Address space that a database may take, bytes: 256 GiB, some 7 billion edges. The engine's own
default of 8 TiB cannot be reserved everywhere."""

_LONGEST_PATH = 512


class Engine:
    """One open database with one connection.

    path: the database file, made if it is not there (not with read_only). keep_damaged_log: raise
    StoreDamagedError where its write-ahead log cannot be replayed, else replay what can be.
    """

    def __init__(self, path: Path, read_only: bool, keep_damaged_log: bool = True) -> None:
        import ladybug

        try:
            self._database = ladybug.Database(
                path,
                read_only=read_only,
                buffer_pool_size=_buffer_pool(),
                max_db_size=MAX_DATABASE,
                throw_on_wal_replay_failure=keep_damaged_log,
            )
        except RuntimeError as error:
            raise StoreDamagedError(f"{path} cannot be opened: {_one_line(error)}") from error
        self._connection = ladybug.Connection(self._database)
        # The chain from an embedding to the output is as long as the model is deep.
        self._connection.execute(f"CALL var_length_extend_max_depth={_LONGEST_PATH}")

    def close(self) -> None:
        """Close connection and database; the log is folded into the database file."""
        self._connection.close()
        self._database.close()

    def arrow(self, text: str, params: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one statement; its rows as an Arrow table. Raises QueryError and its kinds."""
        try:
            result = self._connection.execute(text, dict(params or {}))
        except RuntimeError as error:
            raise _translated(error) from error
        if isinstance(result, list):
            result = result[-1]
        try:
            return result.get_as_arrow(chunk_size=-1)
        finally:
            result.close()

    def frame(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """As `arrow`, as a DataFrame: integers with gaps as Int64, text as object."""
        return to_frame(self.arrow(text, params))

    def run(self, text: str, params: Mapping[str, Any] | None = None) -> None:
        """Run one statement whose rows do not matter."""
        try:
            result = self._connection.execute(text, dict(params or {}))
        except RuntimeError as error:
            raise _translated(error) from error
        for part in result if isinstance(result, list) else [result]:
            part.close()

    def copy(self, table: str, rows: pa.Table, ends: tuple[str, str] | None = None) -> None:
        """Add rows to a table whose columns have the same order. ends: labels of source and target,
        for a relationship that has several."""
        if rows.num_rows:
            pair = f" (from='{ends[0]}', to='{ends[1]}')" if ends else ""
            self.run(f"COPY {table} FROM $rows{pair}", {"rows": rows})

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes or none of them. Raises StoreError where the engine refuses
        one."""
        self.run("BEGIN TRANSACTION")
        try:
            yield
            self.run("COMMIT")
        except BaseException as error:
            with suppress(QueryError):  # most failures have rolled back already
                self.run("ROLLBACK")
            if isinstance(error, QueryError):
                raise StoreError(f"the store could not be written: {error}") from error
            raise

    def create_schema(self) -> None:
        """Make the tables and macros of a new database."""
        self._run_files("schema", "analyses", "macros")

    def upgrade_schema(self) -> None:
        """Add the tables and columns that a database of an earlier version lacks."""
        self._run_files("upgrade", "analyses")

    @property
    def is_current(self) -> bool:
        """Whether the database has all tables and columns of this version."""
        return self.has_runs and self.has_counts

    @property
    def has_runs(self) -> bool:
        """Whether it has the tables of saved runs."""
        return "MEASURED" in self.arrow("CALL show_tables() RETURN name")[0].to_pylist()

    @property
    def has_counts(self) -> bool:
        """Whether points of curves can say how many edges each component has."""
        names = self.arrow("CALL table_info('Checkpoint') RETURN name")[0].to_pylist()
        return "component_counts" in names

    def add_column(self, table: str, name: str, type_: str) -> None:
        """Add a column to a table, unless it has one of that name."""
        self.run(f"ALTER TABLE {table} ADD IF NOT EXISTS {name} {type_}")

    def _run_files(self, *names: str) -> None:
        for name in names:
            path = cypher_folder("ingest") / "embedded" / f"{name}.cypher"
            for statement in statements(path.read_text(encoding="utf-8")):
                self.run(statement)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A DataFrame of an Arrow table: whole numbers stay whole where some are missing."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if column.null_count and pa.types.is_integer(column.type):
            columns[name] = pd.array(column.to_pylist(), dtype="Int64")
        elif pa.types.is_string(column.type) or pa.types.is_nested(column.type):
            columns[name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_pandas()
    return pd.DataFrame(columns)


def _buffer_pool() -> int:
    """A quarter of the memory, 512 MiB at least and 4 GiB at most."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // 4, 1 << 29), 1 << 32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _translated(error: RuntimeError) -> Exception:
    text = _one_line(error)
    lower = text.lower()
    if "read-only" in lower or ("cannot write to file" in lower and "bad file" in lower):
        return ReadOnlyError("queries only read: this one would change the store")
    if "no space left" in lower:
        return StorageFullError(
            "no room left on the disk for the store; everything committed before is kept: free "
            "some space and run the same command again"
        )
    if "buffer pool is full" in lower:
        return QueryError("the query needs more memory than the store may use; ask for less of it")
    return QueryError(text)
