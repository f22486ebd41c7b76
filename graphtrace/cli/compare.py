"""`graphtrace compare`: two traces side by side."""

from enum import StrEnum
from typing import Annotated

import typer

from graphtrace.cli.analyze_options import show
from graphtrace.cli.app import app
from graphtrace.cli.output import Format, FormatOption, note
from graphtrace.cli.source import ArchiveOption, StoreOption, open_source

TRACE_HELP = "Trace: id, unique prefix, input name, `last` or model:name."


class ComparisonTable(StrEnum):
    """Tables of `compare`."""

    sizes = "sizes"
    edges = "edges"
    components = "components"
    tokens = "tokens"


@app.command()
def compare(
    trace_a: Annotated[str, typer.Argument(metavar="TRACE", help=TRACE_HELP)],
    trace_b: Annotated[str, typer.Argument(metavar="TRACE", help=TRACE_HELP)],
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            help="Share of all edges, k:EDGES or tv:QUALITY; repeatable [default: the sizes of the "
            "grid at which both traces have edges and keep them].",
        ),
    ] = None,
    table: Annotated[
        ComparisonTable,
        typer.Option(
            help="A row per size, or per edge or component at the largest size, or how the tokens "
            "are aligned."
        ),
    ] = ComparisonTable.sizes,
    store: StoreOption = None,
    archive: ArchiveOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Compare two traces: the edges and components that they share, by size. Tokens are aligned by
    their texts; edges of tokens without a partner are a trace's own."""
    from graphtrace.analysis.compare import compare as compare_traces

    with open_source(store, archive) as source:
        found = compare_traces(source, trace_a, trace_b, size)
    show(getattr(found, table.value), format)
    tokens = found.tokens
    n_a, n_b = (len(tokens.dropna(subset=[f"position_{x}"])) for x in "ab")
    aligned = len(tokens.dropna(subset=["position_a", "position_b"]))
    note(
        f"A {found.traces[0]}, B {found.traces[1]}: {aligned:,} of {n_a:,} tokens of A and of "
        f"{n_b:,} of B are aligned"
    )
