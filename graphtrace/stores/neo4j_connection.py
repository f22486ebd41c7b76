"""The one module that speaks to the Neo4j driver: connect, read, write, turn errors into ours.

    NEO4J_URI        the address that `neo4j://`, without a host, stands for
    NEO4J_USERNAME   neo4j by default
    NEO4J_PASSWORD   asked for on a terminal where it is not set; empty for a server without users
    NEO4J_DATABASE   the user's home database by default

Passwords are never part of a URL or of a message.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pandas as pd

from graphtrace.errors import (
    MissingPackageError,
    QueryError,
    ReadOnlyError,
    StorageFullError,
    StoreError,
)
from graphtrace.stores.base import SERVER_SCHEMES

OLDEST = (5, 26)
"""The oldest server that graphtrace writes to; both long-term releases since are tested."""

CONNECT_SECONDS = 15.0
RETRY_SECONDS = 30.0
"""How long a transaction is tried again after deadlocks or while the server is away."""

_STOPPED = ("could not append transaction", "needs to be restarted")
_DISK_FULL = ("no space left", "disk is full", "disk full", "not enough space", "quota exceeded")

T = TypeVar("T")


def server_url(url: str) -> str:
    """`scheme://host:port` of a store's URL. Raises StoreError where it names a user, a password,
    a database or nothing at all."""
    scheme, _, rest = url.partition("://")
    if "@" in rest:
        raise StoreError(
            f"a store's URL holds neither user nor password: give {scheme}://HOST:PORT, and set "
            "NEO4J_USERNAME and NEO4J_PASSWORD in the environment"
        )
    if not rest.strip("/"):
        named = os.environ.get("NEO4J_URI", "")
        if not named:
            raise StoreError(
                f"store {url!r} names no server; give {scheme}://HOST or set NEO4J_URI"
            )
        if named.partition("://")[0] not in SERVER_SCHEMES:
            raise StoreError(f"NEO4J_URI has none of the schemes {', '.join(SERVER_SCHEMES)}")
        if not named.partition("://")[2].strip("/"):
            raise StoreError(f"NEO4J_URI {named!r} names no server; give neo4j://HOST:PORT")
        return server_url(named)
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.fragment:
        raise StoreError(
            f"store {url!r}: the address ends with host and port; NEO4J_DATABASE names the database"
        )
    try:
        port = parts.port
    except ValueError as error:
        raise StoreError(f"store {url!r}: {error}") from error
    if not parts.hostname:
        raise StoreError(f"store {url!r} names no host; give {scheme}://HOST:PORT")
    return (
        url.rstrip("/")
        if port is not None
        else url.rstrip("/").replace(parts.netloc, f"{parts.netloc.rstrip(':')}:7687")
    )


class Server:
    """A connected server, with which database of it is meant. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        neo4j = driver_package()
        self.url = server_url(url)
        self.database = os.environ.get("NEO4J_DATABASE") or None
        user, password = _credentials(self.url)
        self._driver: Any = None
        with self._errors():
            self._driver = neo4j.GraphDatabase.driver(
                self.url,
                auth=(user, password) if password else None,
                connection_timeout=CONNECT_SECONDS,
                max_transaction_retry_time=RETRY_SECONDS,
                notifications_min_severity="OFF",
            )
        self._bookmarks = neo4j.GraphDatabase.bookmark_manager()
        self._modes = {"read": neo4j.READ_ACCESS, "write": neo4j.WRITE_ACCESS}
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        with self._errors():
            info = self._driver.get_server_info()
        check_version(info.agent, self.url)
        self.version = info.agent
        self.read("RETURN 1")

    @property
    def where(self) -> str:
        """The server and database, for messages."""
        return self.url + (f" (database {self.database})" if self.database else "")

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()

    @contextmanager
    def _session(self, mode: str) -> Iterator[Any]:
        if self._driver is None:
            raise StoreError(f"the store {self.url} is closed; open it again")
        with self._errors():
            session = self._driver.session(
                database=self.database,
                default_access_mode=self._modes[mode],
                bookmark_manager=self._bookmarks,
                fetch_size=1000,
            )
            with session:
                yield session

    def read(self, text: str, params: Mapping[str, Any] | None = None) -> list[tuple]:
        """Rows of one statement in a read transaction, in which the server refuses to write."""
        return self.columns(text, params)[1]

    def columns(
        self, text: str, params: Mapping[str, Any] | None = None
    ) -> tuple[list[str], list[tuple]]:
        """As `read`, with the columns' names first."""

        def work(transaction):
            result = transaction.run(text, dict(params or {}))
            return list(result.keys()), [tuple(record.values()) for record in result]

        with self._session("read") as session:
            return session.execute_read(work)

    def frame(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """As `read`, as a DataFrame: integers with gaps as Int64, text as object."""
        return to_frame(*self.columns(text, params))

    def write(self, work: Callable[[Any], T]) -> T:
        """Run `work(transaction)` in a write transaction; it is tried again after a deadlock, a
        change of leader or a lost connection, so it must mean the same when run twice."""
        with self._session("write") as session:
            return session.execute_write(work)

    def run(self, text: str, params: Mapping[str, Any] | None = None) -> None:
        """Run one statement in a transaction of its own: schema commands."""
        with self._session("write") as session:
            session.run(text, dict(params or {})).consume()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from neo4j.exceptions import DriverError, Neo4jError

        try:
            yield
        except (DriverError, Neo4jError) as error:
            raise translated(error, self.where) from error


def driver_package() -> Any:
    """The module `neo4j`. Raises MissingPackageError where it is not installed."""
    # The driver logs every retry; without a handler of the application's, that is not for stderr.
    logging.getLogger("neo4j").addHandler(logging.NullHandler())
    try:
        import neo4j
    except ModuleNotFoundError as error:
        if error.name != "neo4j":
            raise
        raise MissingPackageError(
            "a Neo4j store needs the package neo4j, which is not installed; "
            'pip install "graphtrace-llm[neo4j]"'
        ) from error
    return neo4j


def _credentials(url: str) -> tuple[str, str]:
    user = os.environ.get("NEO4J_USERNAME") or "neo4j"
    password = os.environ.get("NEO4J_PASSWORD")
    if password is None:
        if not sys.stdin.isatty():
            raise StoreError(
                f"no password for the server {url}: set NEO4J_PASSWORD in the environment (and "
                "NEO4J_USERNAME, neo4j by default)"
            )
        from getpass import getpass

        password = getpass(f"password of {user} at {url}: ")
    return user, password


def check_version(agent: str, url: str) -> None:
    """Raise StoreError for a server that is no Neo4j, or too old a one. agent: `Neo4j/5.26.30`."""
    found = re.match(r"Neo4j/v?(\d+)\.(\d+)", agent)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise StoreError(
            f"the server {url} is {agent.replace('/', ' ')}, and graphtrace needs Neo4j "
            f"{OLDEST[0]}.{OLDEST[1]} or newer; upgrade the server, or use an embedded store"
        )


def translated(error: Exception, where: str) -> Exception:
    """One of our errors for one of the driver's. where: server and database."""
    from neo4j import exceptions

    code = getattr(error, "code", None) or ""
    text = " ".join(str(getattr(error, "message", None) or error).split())
    lower = text.lower()
    if any(words in lower for words in _DISK_FULL):
        return StorageFullError(
            f"no room left on the disk of the server {where}; everything committed before is kept: "
            "free some space and run the same command again"
        )
    if isinstance(error, exceptions.AuthError):
        return StoreError(
            f"the server {where} refuses this user and password ({code.rpartition('.')[2]}); set "
            "NEO4J_USERNAME and NEO4J_PASSWORD"
        )
    if code.endswith("DatabaseNotFound"):
        return StoreError(
            f"the server {where} has no such database; set NEO4J_DATABASE to one that SHOW "
            "DATABASES lists, or leave it out"
        )
    if code.endswith(("AccessMode", "ReadOnlyDatabase", "WriteOnReadOnlyAccessDatabase")):
        if "access mode" in lower:
            return ReadOnlyError("queries only read: this one would change the store")
        return StoreError(f"the server {where} takes no changes now: {text}")
    if any(words in lower for words in _STOPPED):
        return StoreError(
            f"the database of the server {where} stopped after an error of its own, such as a full "
            f"disk or quota ({_shortened(text)}); see the server's logs, make room, restart it and "
            "run the same command again: everything committed before is kept"
        )
    if "MemoryPoolOutOfMemory" in code or "TransactionOutOfMemory" in code:
        return QueryError(
            f"the query needs more memory than the server {where} gives a transaction; ask for "
            f"less of it, or raise dbms.memory.transaction.total.max ({text})"
        )
    if "Deadlock" in code or "LockAcquisition" in code or "Terminated" in code:
        return StoreError(
            f"the server {where} is too busy with other changes ({code.rpartition('.')[2]}); run "
            "the same command again: everything committed before is kept"
        )
    if isinstance(error, exceptions.DriverError) or code.startswith("Neo.TransientError"):
        if isinstance(error, exceptions.ConfigurationError):
            return StoreError(f"store {where}: {text}")
        return StoreError(
            f"the server {where} does not answer ({_shortened(text)}); see that it runs and that "
            "host, port and scheme are right, then run the same command again: everything "
            "committed before is kept"
        )
    if code.startswith(
        ("Neo.ClientError.Security", "Neo.DatabaseError", "Neo.ClientError.General")
    ):
        return StoreError(f"the server {where} refused: {text}")
    return QueryError(text)


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}..."


def to_frame(names: list[str], rows: list[tuple]) -> pd.DataFrame:
    """A DataFrame of rows: whole numbers stay whole where some are missing; nodes, relationships,
    paths and points become dicts, dates and times those of Python, durations ISO 8601 text."""
    columns = {}
    for name, values in zip(
        names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True
    ):
        kinds = {type(value) for value in values}
        if kinds == {int, type(None)}:
            columns[name] = pd.array(list(values), dtype="Int64")
        elif kinds in ({int}, {bool}, {float}, {float, type(None)}):
            columns[name] = pd.Series(list(values))
        else:
            columns[name] = pd.Series([_plain(value) for value in values], dtype=object)
    return pd.DataFrame(columns, columns=pd.Index(names))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    from neo4j.graph import Node, Path, Relationship
    from neo4j.spatial import Point
    from neo4j.time import Date, DateTime, Duration, Time

    if isinstance(value, Node):
        return {"_labels": sorted(value.labels), **_plain(dict(value))}
    if isinstance(value, Relationship):
        return {"_type": value.type, **_plain(dict(value))}
    if isinstance(value, Path):
        return {
            "nodes": [_plain(node) for node in value.nodes],
            "relationships": [_plain(edge) for edge in value.relationships],
        }
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Point):
        return {"srid": value.srid, **dict(zip("xyz", value, strict=False))}
    if isinstance(value, Date | DateTime | Time):
        return value.to_native()
    if isinstance(value, Duration):
        return value.iso_format()
    return value
