"""Making the constraints and indexes of a store on a server (`ingest/neo4j/schema.cypher`)."""

import re
import time

from graphtrace.errors import QueryError
from graphtrace.stores.neo4j_connection import Server
from graphtrace.stores.neo4j_statements import ingest_statements

WAIT_SECONDS = 2.0
"""How long an index whose constraint is missing may belong to another process at work."""

_TAKEN = "Neo.ClientError.Schema.IndexWithNameAlreadyExists"


def make_schema(server: Server) -> None:
    """Make what is not there of the schema."""
    for statement in ingest_statements("schema"):
        try:
            _make(server, statement)
        except QueryError as error:
            # search: the first statement begins with the file's comment
            name = re.search(r"CREATE CONSTRAINT (graphtrace_\w+)", statement)
            if name is None or getattr(error.__cause__, "code", "") != _TAKEN:
                raise
            # A server that was stopped while it made the constraint, by a full disk for one, keeps
            # the constraint's index without it.
            time.sleep(WAIT_SECONDS)
            owner = "SHOW INDEXES YIELD name, owningConstraint WHERE name = $name"
            rows = server.read(f"{owner} RETURN owningConstraint", {"name": name[1]})
            if rows == [(None,)]:
                server.run(f"DROP INDEX {name[1]} IF EXISTS")
            _make(server, statement)


def _make(server: Server, statement: str) -> None:
    # Tried again where two processes make the same store at the same time.
    server.write(lambda transaction: transaction.run(statement).consume())
