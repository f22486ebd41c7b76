"""`graphtrace analyze correlates|agreement|controls`: what goes with density, and its controls."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from graphtrace.cli.analyze import analyze
from graphtrace.cli.analyze_options import draw, open_run, output, selection, show
from graphtrace.cli.model_options import takes_options
from graphtrace.cli.output import note

FrequenciesOption = Annotated[
    Path | None,
    typer.Option(
        help="Counts of tokens: .csv or .parquet with columns token and count, or .json "
        "{token: count} [default: the tokens of these inputs are counted]."
    ),
]
EdgesOption = Annotated[
    str | None,
    typer.Option(
        "--edges",
        help="Context lengths in tokens at which a stratum begins, such as 16,32,64 [default: "
        "quartiles of the length].",
    ),
]
DrawsOption = Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")]


class AgreementTable(StrEnum):
    """Tables of `analyze agreement`."""

    pairs = "pairs"
    summary = "summary"


class ControlsTable(StrEnum):
    """Tables of `analyze controls`."""

    lengths = "lengths"
    trend = "trend"
    quartiles = "quartiles"
    difference = "difference"
    cells = "cells"


class DensityMeasure(StrEnum):
    """Measures of one trace."""

    density_normalised = "density_normalised"
    density = "density"
    mass90_share = "mass90_share"
    score_gini = "score_gini"
    mlp_active_share = "mlp_active_share"
    entropy = "entropy"
    loss = "loss"


MeasureOption = Annotated[DensityMeasure, typer.Option(help="What is compared.")]


@analyze.command()
@takes_options(selection, output)
def correlates(
    frequencies: FrequenciesOption = None,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """What goes with density: Spearman's rho with entropy, loss, frequency of the top token and
    context length, each also with the others held constant; 95 % bootstrap intervals over inputs,
    and Benjamini and Hochberg's q over the table."""
    from graphtrace.analysis.correlates import correlates as measure_correlates
    from graphtrace.plots_correlates import plot_correlates

    with open_run(options) as run:
        frame = measure_correlates(
            run.source, frequencies=frequencies, draws=draws, seed=seed, **run.selection
        )
        given = {"frequencies": frequencies.name if frequencies else None}
        run.save("correlates", frame, draws=draws, seed=seed, **given)
    draw(options, plot_correlates, frame)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output)
def agreement(
    measure: MeasureOption = DensityMeasure.density_normalised,
    table: Annotated[
        AgreementTable, typer.Option(help="A row per two models, or mean and range over them.")
    ] = AgreementTable.pairs,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """Do models find the same inputs dense? Spearman's rho between every two models over the inputs
    that both have, also with the context length held constant; 95 % bootstrap intervals."""
    from graphtrace.analysis.agreement import agreement as measure_agreement
    from graphtrace.errors import OptionError
    from graphtrace.plots_correlates import plot_agreement

    with open_run(options) as run:
        found = measure_agreement(
            run.source, measure=measure.value, draws=draws, seed=seed, **run.selection
        )
        if len(found.pairs) == 0:
            raise OptionError(
                "agreement is between models, and these traces are of one model (in each group); "
                "extract the same inputs with another model into the same archive or store"
            )
        frame = getattr(found, table.value)
        given = {"measure": measure.value, "table": table.value, "draws": draws, "seed": seed}
        run.save("agreement", frame, **given)
    draw(options, plot_agreement, found)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output)
def controls(
    measure: MeasureOption = DensityMeasure.density_normalised,
    table: Annotated[
        ControlsTable | None,
        typer.Option(
            help="By context length within matched endings: a row per length, or the trend. By "
            "token frequency within strata of length: a row per quartile, the difference of the "
            "outer ones, or a row per cell [default: trend where inputs have the labels ending and "
            "context, otherwise difference]."
        ),
    ] = None,
    edges: EdgesOption = None,
    frequencies: FrequenciesOption = None,
    design: Annotated[
        Path | None, typer.Option(help="Write which inputs are in which cell: a .json file.")
    ] = None,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """Two controls: density by context length with the ending held (inputs of `design matched`),
    and by how frequent the predicted token is with the context length held (any study)."""
    from graphtrace.analysis.controls import controls as measure_controls
    from graphtrace.analysis.token_rarity import rarity_design
    from graphtrace.designs import check_design_path, write_design
    from graphtrace.errors import OptionError
    from graphtrace.plots_correlates import plot_controls

    if design is not None:
        check_design_path(design)
    strata = parse_edges(edges)
    with open_run(options) as run:
        found = measure_controls(
            run.source,
            measure=measure.value,
            edges=strata,
            frequencies=frequencies,
            draws=draws,
            seed=seed,
            **run.selection,
        )
        matched = len(found.lengths) > 0
        table = table or (ControlsTable.trend if matched else ControlsTable.difference)
        if table in (ControlsTable.lengths, ControlsTable.trend) and not matched:
            raise OptionError(
                f"--table {table.value} needs inputs with the labels ending and context; "
                "`graphtrace design matched` makes such a corpus"
            )
        frame = getattr(found, table.value)
        given = {"measure": measure.value, "table": table.value, "draws": draws, "seed": seed}
        given |= {"edges": edges, "frequencies": frequencies.name if frequencies else None}
        run.save("controls", frame, **given)
    if design is not None:
        held = rarity_design(found.inputs, strata, frequencies, run.selection)
        note(f"design: {write_design(held, design)}")
    draw(options, plot_controls, found)
    show(frame, options["format"])


def parse_edges(edges: str | None) -> list[int] | None:
    """Read `16,32,64`. Raises OptionError."""
    from graphtrace.errors import OptionError

    if edges is None:
        return None
    parts = [part.strip() for part in edges.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise OptionError(f"--edges {edges!r} is not a list of lengths in tokens such as 16,32,64")
    return [int(part) for part in parts]
