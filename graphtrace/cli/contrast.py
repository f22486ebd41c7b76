"""`graphtrace analyze contrast`: two groups of inputs, two models or two settings side by side."""

import inspect
from enum import StrEnum
from typing import Annotated, Any

import typer

from graphtrace.cli.analyze import analyze
from graphtrace.cli.analyze_options import (
    Run,
    SizeOption,
    draw,
    open_run,
    output,
    passes,
    selection,
    show,
)
from graphtrace.cli.model_options import takes_options
from graphtrace.cli.output import note


class ContrastLevel(StrEnum):
    """What a row of `analyze contrast` is about."""

    component = "component"
    layer = "layer"
    token = "token"


class ContrastMeasure(StrEnum):
    """What the figure of components shows."""

    presence = "presence"
    share = "share"


class ContrastTable(StrEnum):
    """Tables of `analyze contrast`."""

    rows = "rows"
    summary = "summary"


def sides() -> None:
    """Which traces are read for both sides: `selection` without its groups."""


_own = inspect.signature(selection)
vars(sides)["__signature__"] = _own.replace(
    parameters=[p for name, p in _own.parameters.items() if name != "by"]
)


@analyze.command()
@takes_options(sides, output, passes)
def contrast(
    by: Annotated[
        str,
        typer.Option(
            help="What has the two values: a label of the inputs (group), model, settings, or "
            "another column of `traces`."
        ),
    ],
    between: Annotated[
        str | None,
        typer.Option(
            help="The two values, A,B, where there are more, or to turn them round [default: in "
            "order]."
        ),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(
            help="The label whose value joins an input of A with one of B [default: inputs that "
            "are on both sides are their own partners]."
        ),
    ] = None,
    size: SizeOption = "0.001",
    level: Annotated[
        ContrastLevel,
        typer.Option(help="A row per component, per layer and kind, or per source token."),
    ] = ContrastLevel.component,
    core: Annotated[
        float,
        typer.Option(help="A component is of a side that has it in this share of its inputs."),
    ] = 0.5,
    measure: Annotated[
        ContrastMeasure, typer.Option(help="What the figure of components shows.")
    ] = ContrastMeasure.presence,
    table: Annotated[
        ContrastTable, typer.Option(help="What differs, row by row, or a row per model.")
    ] = ContrastTable.rows,
    **options: Any,
) -> None:
    """Compare two groups of inputs, two models or two settings: which components are in the one's
    traces and not in the other's, and where their edges are; with 95 % bootstrap intervals, exact
    tests over pairs and false discovery rates."""
    from graphtrace.analysis.contrast import contrast as measure_contrast
    from graphtrace.plots_contrast import plot_contrast

    with open_run({**options, "by": None}) as run:
        given = {
            "by": by,
            "between": None if between is None else tuple(between.split(",")),
            "pair": pair,
        }
        chosen = {key: value for key, value in run.selection.items() if key != "by"}
        found = measure_contrast(
            *(run.source, size), **given, level=level.value, core=core, **run.passes, **chosen
        )
        frame = getattr(found, table.value)
        if options["save"]:
            parameters = {"level": level.value, "core": core, "table": table.value}
            _save(run, frame, size, {**given, **chosen}, parameters)
    draw(options, plot_contrast, found, measure.value)
    show(frame, options["format"])
    if table is ContrastTable.rows:
        for row in found.summary.to_dict("records"):
            note(_said(row))


def _save(run: Run, frame: Any, size: str, given: dict[str, Any], parameters: Any) -> None:
    from graphtrace.analysis.contrast_runs import save_contrast

    saved = save_contrast(run.source, frame, size, parameters=parameters, **given)
    note(f"saved as {saved.id} in {run.source.url}: {saved.properties['n_rows']:,} rows")


def _said(row: dict[str, Any]) -> str:
    """What a block compares, in one line."""
    import pandas as pd

    sides = [
        f"{name} {row[x]}: {row[f'n_inputs_{x}']:,} inputs, {row[f'trace_edges_{x}']:.4g} edges"
        for name, x in (("A", "a"), ("B", "b"))
    ]
    return (
        f"{row['model']}: {'; '.join(sides)}; "
        + ("independent groups" if pd.isna(row["n_pairs"]) else f"{row['n_pairs']:,} pairs")
        + f"; matched by {row['matched']}; test {row['test']}; q < 0.05 in {row['n_found']:,} of "
        f"{row['n_rows']:,} rows"
    )
