"""What every graph store can do, and `open_store`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from graphtrace.errors import StoreError
from graphtrace.selection import TraceSource
from graphtrace.stores.graph_tables import GraphTables

DEFAULT_STORE = "traces/store"
"""The embedded store that commands and functions use where GRAPHTRACE_STORE names no other."""

_SERVER_SCHEMES = ("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc")


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

    def write(self, batch: GraphTables) -> None:
        """Add a batch of traces in one transaction. Raises StoreError, StorageFullError."""
        ...

    def next_number(self) -> int:
        """The number that the next trace gets."""
        ...

    def close(self) -> None:
        """Close it and give back its lock; a second call does nothing."""
        ...


def default_store() -> str:
    """GRAPHTRACE_STORE, or `traces/store`."""
    return os.environ.get("GRAPHTRACE_STORE") or DEFAULT_STORE


def store_folder(url: str | Path | None = None) -> Path:
    """The folder that a store URL means. Raises StoreError for the URL of a server."""
    text = str(default_store() if url is None else url)
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SERVER_SCHEMES:
        raise StoreError(
            f"store {text!r}: this version has the embedded store only; give a folder, such as "
            f"{DEFAULT_STORE}"
        )
    if separator and scheme != "file":
        raise StoreError(f"store {text!r}: unknown scheme {scheme!r}; give a folder")
    if not text:
        raise StoreError(f"the store's name is empty; give a folder, such as {DEFAULT_STORE}")
    return Path(rest if separator else text)


def open_store(url: str | Path | None = None, read_only: bool = True, wait: float = 0.0):
    """Open a graph store; use it as a context manager.

    url: a folder (embedded store); GRAPHTRACE_STORE or `traces/store` by default. read_only: any
    number of processes may read at a time, or one may write. wait: seconds to wait for the lock.

    Raises StoreError where there is no store (a writer makes one), StoreLockedError where it is in
    use, StoreDamagedError where it cannot be read and its archives are not at hand.
    """
    from graphtrace.stores.embedded import EmbeddedStore

    return EmbeddedStore(store_folder(url), read_only=read_only, wait=wait)
