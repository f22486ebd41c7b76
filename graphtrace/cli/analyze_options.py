"""Options that the analyses share, and what the commands do with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from graphtrace.cli.output import Format, FormatOption, note, print_frame
from graphtrace.cli.source import ArchiveOption, SaveOption, StoreOption, open_source

SHOWN_ROWS = 40
WHERE_HELP = (
    "Only traces with KEY=VALUE, a label of the input or a column of `traces` (also != < <= > >=); "
    "repeatable, all must hold."
)
SizeOption = Annotated[
    str, typer.Option("--size", help="Share of all edges (0.001), k:EDGES or tv:QUALITY.")
]


def selection(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model (id or name); repeatable.")
    ] = None,
    settings: Annotated[
        str | None, typer.Option("--settings", help="Only these settings; two are never pooled.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option("--where", help=WHERE_HELP)] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="One group per value of this label or column; repeatable."),
    ] = None,
    exclude_special: Annotated[
        bool,
        typer.Option(
            "--exclude-special",
            help="Leave out what BOS and template tokens do: traces of their positions, edges that "
            "touch them, and their share of the context length.",
        ),
    ] = False,
) -> None:
    """Which traces are read, and how they are grouped."""


def output(
    store: StoreOption = None,
    archive: ArchiveOption = None,
    format: FormatOption = Format.table,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw a figure: .svg, .png or .pdf.")
    ] = None,
    save: SaveOption = False,
) -> None:
    """Where traces come from, and where the results go."""


def passes(
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", help="Processes that measure [default: the processors there are]."
        ),
    ] = None,
) -> None:
    """How single traces are measured."""


class Run(NamedTuple):
    """An analysis that a command is about to run: the open source, and keywords for the library."""

    source: Any
    selection: dict[str, Any]
    options: dict[str, Any]

    @property
    def passes(self) -> dict[str, Any]:
        """Keywords of an analysis that measures single traces."""
        from graphtrace.analysis.passes import available_workers

        return {"workers": self.options["workers"] or available_workers(), "progress": True}

    def save(self, name: str, frame: Any, size: Any = None, members=None, **parameters) -> None:
        """With --save, save the rows in the store they came from, and say what was saved."""
        if not self.options["save"]:
            return
        from graphtrace.stores.saved_runs import save_analysis

        run = save_analysis(
            self.source,
            name,
            frame,
            size,
            members=members,
            parameters=parameters,
            **self.selection,
        )
        n_rows, n_left = run.properties["n_rows"], len(frame) - run.properties["n_rows"]
        n = run.communities.num_rows
        note(
            f"saved as {run.id} in {self.source.url}: {n_rows:,} rows"
            + (f", {n:,} communities" if n else "")
            + (f"; {n_left:,} rows of all models together are about no node" if n_left else "")
        )


@contextmanager
def open_run(options: dict[str, Any]) -> Iterator[Run]:
    """Open what a command's options name; the figure's path is checked before anything is read.

    Raises OptionError, StoreError, ArchiveError.
    """
    if options.get("plot") is not None:
        from graphtrace.plots import check_figure_path

        check_figure_path(options["plot"])
    chosen = {key: options[key] for key in ("settings", "where", "by", "exclude_special")}
    chosen["models"] = options["model"]
    with open_source(options["store"], options["archive"], options.get("save", False)) as source:
        yield Run(source, chosen, options)


def draw(options: dict[str, Any], plot: Any, *args: Any) -> None:
    """With --plot, draw `plot(*args)` and say where the figure is."""
    if options["plot"] is not None:
        from graphtrace.plots import save_figure

        note(f"figure: {save_figure(plot(*args), options['plot'])}")


def show(frame: Any, format: Format) -> None:
    """Print a table; as text only its first rows, saying so."""
    if format is Format.table and len(frame) > SHOWN_ROWS:
        print_frame(frame.head(SHOWN_ROWS), format)
        note(
            f"the first {SHOWN_ROWS} of {len(frame):,} rows; --format csv, json or parquet has all"
        )
    else:
        print_frame(frame, format)
