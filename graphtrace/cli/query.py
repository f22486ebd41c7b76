"""`graphtrace query` and `graphtrace queries`: Cypher on the store, and the catalogue."""

from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.ingest import StoreOption
from graphtrace.cli.output import Format, FormatOption, note, print_frame


@app.command()
def query(
    name: Annotated[
        str, typer.Argument(metavar="NAME|CYPHER", help="A catalogue query, or Cypher that reads.")
    ],
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="KEY=VALUE; repeatable.")
    ] = None,
    store: StoreOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Run a catalogue query or a Cypher text; it can only read."""
    from graphtrace.catalogue import find_query, is_name
    from graphtrace.errors import QueryParameterError
    from graphtrace.stores.base import open_store

    if is_name(name):
        find_query(name)  # a wrong name is said before the store is opened
    values = {}
    for text in param or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise QueryParameterError(f"--param {text!r} is not of the form key=value")
        values[key] = value if is_name(name) else _value(value)
    with open_store(store) as opened:
        frame = opened.query(name, **values)
    print_frame(frame, format)
    if format is Format.table:
        note(f"{len(frame):,} rows")


def _value(text: str):
    """A value for free Cypher, whose types are not declared: a number, true, false, or text."""
    import json

    try:
        found = json.loads(text)
    except ValueError:
        return text
    return text if found is None or isinstance(found, dict | list) else found


@app.command()
def queries(
    name: Annotated[str | None, typer.Argument(help="Show this query's text.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """List the catalogue, or show one query with its parameters."""
    import pandas as pd

    from graphtrace.catalogue import catalogue, find_query

    if name is not None:
        print(find_query(name).text.rstrip())
        return
    rows = [
        {"name": q.name, "summary": q.summary, "parameters": ", ".join(map(str, q.params))}
        for q in catalogue().values()
    ]
    print_frame(pd.DataFrame(rows), format)
