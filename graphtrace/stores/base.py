"""What every graph store can do, and `open_store`."""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from graphtrace.errors import OptionError, StoreError
from graphtrace.selection import TraceSource
from graphtrace.stores.graph_tables import GraphTables

if TYPE_CHECKING:
    from graphtrace.stores.saved_runs import SavedRun

DEFAULT_STORE = "traces/store"
"""The embedded store that commands and functions use where GRAPHTRACE_STORE names no other."""

SERVER_SCHEMES = ("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc")
"""URL schemes of a Neo4j server; `+s` and `+ssc` are TLS."""


class GraphStore(TraceSource, Protocol):
    """A store of traces as one graph; a context manager. Shared nodes (Model, Input, Label,
    Component) connect the traces."""

    @property
    def url(self) -> str:
        """How `open_store` finds it."""
        ...

    @property
    def kind(self) -> str:
        """Which dialect of Cypher it speaks: `embedded` or `neo4j`."""
        ...

    def resolve(self, name: str) -> str:
        """Id of the trace that TRACE means. Raises TraceNotFoundError."""
        ...

    def query(self, name_or_cypher: str, /, **params: Any) -> pd.DataFrame:
        """Run a catalogue query or read-only Cypher. Raises QueryError and its kinds."""
        ...

    def cypher(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Run Cypher as it is, without the checks of `query`; `ReadOnlyError` still holds for a
        store opened for reading."""
        ...

    @property
    def batch_edges(self) -> int:
        """About how many edges an ingest hands to `write` at a time."""
        ...

    @property
    def archives(self) -> tuple[str, ...]:
        """Paths of the archives that traces came from, in the order in which they came."""
        ...

    @property
    def deleted(self) -> tuple[str, ...]:
        """Ids of traces that an ingest must not bring back by itself."""
        ...

    def remember(
        self,
        archives: Collection[str] = (),
        deleted: Collection[str] = (),
        restored: Collection[str] = (),
    ) -> None:
        """Note archives that traces came from, traces that were deleted, and traces that may come
        back."""
        ...

    def reserve(self, n: int) -> int:
        """The first of `n` numbers that no other trace gets."""
        ...

    def write(self, batch: GraphTables) -> int:
        """Add a batch of traces, each whole or not at all; how many were added. Raises StoreError,
        StorageFullError."""
        ...

    def share(self, batch: GraphTables) -> None:
        """Add what traces share (models, components, inputs, labels), or what it changes."""
        ...

    def revise(self, batch: GraphTables) -> int:
        """Give traces that are there the batch's properties and curves; their edges stay."""
        ...

    def replace(
        self, traces: Collection[tuple[str, int]], make: Callable[[str, int], GraphTables]
    ) -> int:
        """Exchange traces that are there, each whole; what was measured of them goes. traces: ids
        and kept edges; make: a trace, by its id and the number that it gets."""
        ...

    def uncounted(self) -> set[str]:
        """Ids of traces of which it does not say how many edges each component has."""
        ...

    @property
    def has_runs(self) -> bool:
        """Whether it can hold saved runs; an embedded store of an earlier version cannot yet."""
        ...

    def measured_columns(self, run: str) -> list[str]:
        """Properties of the MEASURED relationships of a saved run."""
        ...

    def save_run(self, run: "SavedRun") -> None:
        """Write the results of an analysis in place of the run of the same id, all or nothing.
        Raises StoreError."""
        ...

    def delete_runs(self, ids: Collection[str]) -> None:
        """Remove saved runs."""
        ...

    def close(self) -> None:
        """Close it and give back its lock; a second call does nothing."""
        ...


def default_store() -> str:
    """GRAPHTRACE_STORE, or `traces/store`."""
    return os.environ.get("GRAPHTRACE_STORE") or DEFAULT_STORE


def is_server(url: str | Path | None = None) -> bool:
    """Whether a store URL means a server rather than a folder."""
    scheme, separator, _ = str(default_store() if url is None else url).partition("://")
    return bool(separator) and scheme in SERVER_SCHEMES


def store_kind(url: str | Path | None = None) -> str:
    """Which dialect of Cypher a store URL's store speaks: `embedded` or `neo4j`."""
    return "neo4j" if is_server(url) else "embedded"


def store_url(url: str | Path | None = None) -> str:
    """A store's URL as messages show it: the folder, or the server's address."""
    text = str(default_store() if url is None else url)
    if is_server(text):
        from graphtrace.stores.neo4j_connection import server_url

        return server_url(text)
    return str(store_folder(text))


def store_folder(url: str | Path | None = None) -> Path:
    """The folder that a store URL means. Raises StoreError for the URL of a server."""
    text = str(default_store() if url is None else url)
    scheme, separator, rest = text.partition("://")
    if is_server(text):
        raise StoreError(f"store {text!r} is a server; give a folder, such as {DEFAULT_STORE}")
    if separator and scheme != "file":
        raise StoreError(
            f"store {text!r}: unknown scheme {scheme!r}; give a folder, or a server as "
            "neo4j://HOST:PORT"
        )
    if not text:
        raise StoreError(f"the store's name is empty; give a folder, such as {DEFAULT_STORE}")
    return Path(rest if separator else text)


def open_store(
    url: str | Path | None = None,
    read_only: bool = True,
    wait: float = 0.0,
    workers: int | None = None,
):
    """Open a graph store; use it as a context manager.

    url: a folder (embedded store) or a Neo4j server, as `neo4j://HOST:PORT` (also bolt://, and
    +s or +ssc for TLS), whose user, password and database are in NEO4J_USERNAME, NEO4J_PASSWORD and
    NEO4J_DATABASE; `neo4j://` alone is the server that NEO4J_URI names. GRAPHTRACE_STORE or
    `traces/store` by default. read_only: of an embedded store, any number of processes may read at
    a time, or one may write; on a server any number may do both. wait: seconds to wait for an
    embedded store's lock. workers: how many traces a server is given at a time, 3 by default.

    Raises StoreError where there is no store (a writer makes one), StoreLockedError where it is in
    use, StoreDamagedError where it cannot be read and its archives are not at hand, OptionError for
    a number of workers that no store has.
    """
    if is_server(url):
        from graphtrace.stores.neo4j import Neo4jStore

        return Neo4jStore(str(default_store() if url is None else url), read_only, workers)
    if workers is not None:
        raise OptionError(
            f"--workers {workers}: an embedded store is written by one; leave the option out"
        )
    from graphtrace.stores.embedded import EmbeddedStore

    return EmbeddedStore(store_folder(url), read_only=read_only, wait=wait)
