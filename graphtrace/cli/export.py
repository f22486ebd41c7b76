"""`graphtrace export`: one trace as a file for a graph program."""

from pathlib import Path
from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.output import note
from graphtrace.cli.source import ArchiveOption, StoreOption, open_source

export = typer.Typer(name="export", help="Write one trace for Gephi or another graph program.")
app.add_typer(export)

TraceArgument = Annotated[
    str, typer.Argument(help="Trace: id, unique prefix, input name, `last` or model:name.")
]
SizeOption = Annotated[
    str, typer.Option("--size", help="Share of all edges (0.001), k:EDGES or tv:QUALITY.")
]


@export.command()
def gephi(
    trace: TraceArgument,
    out: Annotated[Path, typer.Option(help="File to write, such as trace.gexf.")],
    size: SizeOption = "0.001",
    collapse: Annotated[
        bool, typer.Option("--collapse", help="Merge the parallel edges between two states.")
    ] = False,
    store: StoreOption = None,
    archive: ArchiveOption = None,
) -> None:
    """Write GEXF 1.3; Gephi's timeline then scrubs the size of the trace."""
    from graphtrace.export import export_gephi

    subgraph = _read(trace, size, store, archive)
    export_gephi(subgraph, out, collapse)
    note(f"{out}: {len(subgraph):,} edges of trace {subgraph.trace}")


@export.command()
def graphml(
    trace: TraceArgument,
    out: Annotated[Path, typer.Option(help="File to write, such as trace.graphml.")],
    size: SizeOption = "0.001",
    store: StoreOption = None,
    archive: ArchiveOption = None,
) -> None:
    """Write GraphML, for yEd, Cytoscape, igraph or networkx."""
    from graphtrace.export import export_graphml

    subgraph = _read(trace, size, store, archive)
    export_graphml(subgraph, out)
    note(f"{out}: {len(subgraph):,} edges of trace {subgraph.trace}")


def _read(trace: str, size: str, store: str | None, archive: Path | None):
    from graphtrace.selection import resolve_trace
    from graphtrace.sizes import parse_size

    wanted = parse_size(size)
    with open_source(store, archive) as source:
        return source.subgraph(resolve_trace(source.traces(), trace), wanted)
