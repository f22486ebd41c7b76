"""`graphtrace traces`: the list of what was traced."""

from pathlib import Path
from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.ingest import StoreOption
from graphtrace.cli.output import Format, FormatOption, print_frame

# fmt: off
SHOWN = ["id", "name", "model_name", "settings", "n_tokens", "n_edges", "n_kept", "entropy", "loss",
         "predicted", "density", "labels"]
# fmt: on


@app.command()
def traces(
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only KEY=VALUE, a label or a column; repeatable."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Sort by this column, highest first; -COLUMN lowest first.")
    ] = None,
    store: StoreOption = None,
    archive: Annotated[
        Path | None, typer.Option(help="List this archive instead of a store.")
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """List the traces of the store, or of an archive."""
    from graphtrace.archive import open_archive
    from graphtrace.errors import OptionError
    from graphtrace.selection import filter_traces
    from graphtrace.stores.base import open_store

    if archive is not None and store is not None:
        raise OptionError("--archive and --store are both given; the traces of which are meant?")
    with open_store(store) if archive is None else open_archive(archive) as source:
        frame = source.traces()
    frame = filter_traces(frame, where=where)
    if sort is not None:
        column = sort.removeprefix("-")
        if column not in frame.columns:
            known = ", ".join(frame.columns)
            raise OptionError(f"--sort {sort}: no column {column!r}; columns: {known}")
        frame = frame.sort_values(column, ascending=sort.startswith("-"), kind="stable")
    if format is Format.table:
        frame = frame[SHOWN].assign(
            labels=[", ".join(f"{k}={v}" for k, v in x.items()) for x in frame["labels"]]
        )
    print_frame(frame, format)
