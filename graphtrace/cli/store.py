"""`graphtrace store`: look after the store."""

from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.ingest import StoreOption
from graphtrace.cli.output import Format, FormatOption, note, print_frame

store_app = typer.Typer(help="Look after the store: info, verify, rebuild, copy, delete.")
app.add_typer(store_app, name="store", no_args_is_help=True)


@store_app.command()
def info(store: StoreOption = None, format: FormatOption = Format.table) -> None:
    """What the store holds."""
    import pandas as pd

    from graphtrace.stores.base import open_store
    from graphtrace.stores.maintenance import store_info

    with open_store(store) as opened:
        found = store_info(opened)
    rows = [
        {"what": what, "name": name, "count": count}
        for what in ("nodes", "relationships", "models", "settings", "archives")
        for name, count in found[what].items()
    ]
    rows += [
        {"what": what, "name": "", "count": found[what]}
        for what in ("deleted", "bytes")
        if found[what] is not None
    ]
    print_frame(pd.DataFrame(rows), format, title=found["url"])
    if len(found["settings"]) > 1:
        note("`graphtrace traces --settings-list` says what the settings are")


@store_app.command()
def verify(store: StoreOption = None, format: FormatOption = Format.table) -> None:
    """Compare every trace with its archive; exit code 1 where something differs."""
    from graphtrace.stores.base import open_store
    from graphtrace.stores.verify import verify_store

    with open_store(store) as opened:
        problems = verify_store(opened, opened.archives, opened.deleted, True)
        count, url = len(opened.traces()), opened.url
    if len(problems) == 0 and format is Format.table:
        note(f"{url}: all {count:,} traces are what their archives say")
        return
    print_frame(problems, format)
    if len(problems):
        note(f"{url}: {len(problems):,} problems; `graphtrace store rebuild` makes it anew")
        raise typer.Exit(1)


@store_app.command()
def analyses(store: StoreOption = None, format: FormatOption = Format.table) -> None:
    """The results that `analyze --save` wrote into the store, a row per run."""
    from graphtrace.stores.base import open_store
    from graphtrace.stores.saved_runs import list_runs

    with open_store(store) as opened:
        frame, url = list_runs(opened), opened.url
    if format is Format.table:
        frame = frame.drop(columns=["version", "name"])
    print_frame(frame, format, title=url)


@store_app.command()
def rebuild(store: StoreOption = None) -> None:
    """Make the store anew from its archives; the old one stays until the new one is ready."""
    from graphtrace.stores.maintenance import rebuild_store

    result = rebuild_store(store, show_progress=True)
    note(
        f"rebuilt: {result.n_traces:,} traces ({result.n_added:,} new, {result.n_removed:,} gone), "
        f"{result.n_edges:,} edges"
    )


@store_app.command()
def delete(
    store: StoreOption = None,
    trace: Annotated[list[str] | None, typer.Option(help="Only this trace; repeatable.")] = None,
    settings: Annotated[str | None, typer.Option(help="Only traces of these settings.")] = None,
    model: Annotated[str | None, typer.Option(help="Only traces of this model.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only traces with KEY=VALUE, a label or a column; repeatable."),
    ] = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(help="Only this saved run (an id of `store analyses`); repeatable."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before the whole store is deleted.")
    ] = False,
) -> None:
    """Delete the whole store, or those of its traces that all of --settings, --model and --where
    mean, and each --trace, or saved runs; archives are not touched, and `ingest --restore` brings
    traces back. Asks only before the whole store."""
    from graphtrace.errors import OptionError
    from graphtrace.stores.base import store_url
    from graphtrace.stores.maintenance import delete_analyses, delete_store, delete_traces

    url = store_url(store)
    if analysis:
        if trace or settings is not None or model is not None or where:
            raise OptionError("--analysis deletes saved runs only; delete traces with another call")
        note(f"deleted {', '.join(delete_analyses(url, analysis))} from {url}")
        return
    if trace or settings is not None or model is not None or where:
        result = delete_traces(
            url, trace or [], settings, model, show_progress=True, where=where or []
        )
        note(f"{result.n_removed:,} traces deleted from {url}, {result.n_traces:,} remain")
        return
    if not yes:
        try:
            typer.confirm(f"Delete the whole store {url}?", abort=True, err=True)
        except typer.Abort:
            typer.echo(err=True)  # the message on a line of its own
            raise OptionError(
                f"{url} is not deleted: that was not confirmed; --yes deletes without asking"
            ) from None
    delete_store(url)
    note(f"deleted {url}")


@store_app.command()
def copy(
    target: Annotated[str, typer.Argument(help="Store to add to: a folder, or neo4j://HOST:PORT.")],
    store: StoreOption = None,
) -> None:
    """Add the traces of the store to another one, of either kind; no archive is needed."""
    from graphtrace.stores.base import store_url
    from graphtrace.stores.copying import copy_store

    result = copy_store(store_url(store), target, show_progress=True)
    note(
        f"{target}: {result.n_new:,} traces added ({result.n_edges:,} edges), "
        f"{result.n_present:,} were there"
        + (f", {result.n_runs:,} saved runs" if result.n_runs else "")
    )
