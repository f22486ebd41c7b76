"""`graphtrace analyze reconstruction|nucleus|structure|baselines`: curves across inputs."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from graphtrace.cli.analyze import analyze
from graphtrace.cli.analyze_options import draw, open_run, output, passes, selection, show
from graphtrace.cli.model_options import takes_options

CurveOption = Annotated[
    str | None,
    typer.Option(
        "--curve",
        help="Another kind of curve than the first: mode:ablation:ablate, as `traces` lists it.",
    ),
]
DrawsOption = Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")]


class CurveMeasure(StrEnum):
    """Measures of a curve's points."""

    tv = "tv"
    kl = "kl"
    p_predicted = "p_predicted"
    p_target = "p_target"
    logit_diff = "logit_diff"


class ReconstructionTable(StrEnum):
    """Tables of `analyze reconstruction`."""

    phases = "phases"
    curve = "curve"


class StructureTable(StrEnum):
    """Tables of `analyze structure`."""

    composition = "composition"
    layers = "layers"


class BaselinesTable(StrEnum):
    """Tables of `analyze baselines`."""

    summary = "summary"
    curve = "curve"


MeasureOption = Annotated[
    CurveMeasure, typer.Option("--measure", help="Which measure of the curve's points.")
]


@analyze.command()
@takes_options(selection, output)
def reconstruction(
    measure: MeasureOption = CurveMeasure.tv,
    curve: CurveOption = None,
    table: Annotated[
        ReconstructionTable, typer.Option(help="The phases of the mean curve, or a row per size.")
    ] = ReconstructionTable.phases,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """How close traces of growing size come to the full prediction, over inputs: mean and quantiles
    by size; the minimal core (where the mean curve is steepest), the construction phase around it
    and what is left for refinement, with 95 % bootstrap intervals over inputs."""
    from graphtrace.analysis.reconstruction import reconstruction as measure_curves
    from graphtrace.plots_curves import plot_reconstruction_bands

    with open_run(options) as run:
        found = measure_curves(
            run.source, measure.value, curve=curve, draws=draws, seed=seed, **run.selection
        )
        frame = getattr(found, table.value)
        more = {"curve": curve, "draws": draws, "seed": seed}
        run.save("reconstruction", frame, measure=measure.value, table=table.value, **more)
    draw(options, plot_reconstruction_bands, found)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output)
def nucleus(
    curve: CurveOption = None,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """How large a trace must be to have the full model's most probable tokens, by share of the
    probability that these hold: median with its 95 % bootstrap interval and quartiles over inputs,
    and the share of inputs that get there."""
    from graphtrace.analysis.nucleus import nucleus as measure_nucleus
    from graphtrace.plots_curves import plot_nucleus

    with open_run(options) as run:
        frame = measure_nucleus(run.source, curve=curve, draws=draws, seed=seed, **run.selection)
        run.save("nucleus", frame, curve=curve, draws=draws, seed=seed)
    draw(options, plot_nucleus, frame)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output, passes)
def structure(
    table: Annotated[
        StructureTable, typer.Option(help="Kinds of edges, or quarters of the depth.")
    ] = StructureTable.composition,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """What traces of growing size are made of: the share of each kind of edge, or of each quarter
    of the depth, beside that of the whole graph; means with 95 % bootstrap intervals over inputs.
    With --exclude-special the sub-graphs are read, at the sizes that are kept."""
    from graphtrace.analysis.structure import structure as measure_structure
    from graphtrace.plots_curves import plot_composition, plot_layers

    with open_run(options) as run:
        frame = measure_structure(
            run.source, table.value, draws=draws, seed=seed, **run.passes, **run.selection
        )
        run.save("structure", frame, table=table.value, draws=draws, seed=seed)
    layers = table is StructureTable.layers
    draw(options, plot_layers if layers else plot_composition, frame)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output)
def baselines(
    measure: MeasureOption = CurveMeasure.tv,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="What the others are compared with: a row's `what`, a settings id or a kind of "
            "curve [default: the settings with most traces, sufficiency with zeros].",
        ),
    ] = None,
    table: Annotated[
        BaselinesTable, typer.Option(help="A row per curve, or per curve and size.")
    ] = BaselinesTable.summary,
    draws: DrawsOption = 1000,
    seed: SeedOption = 0,
    **options: Any,
) -> None:
    """The trace's curve beside a random trace and the necessity curve, on the same inputs: every
    settings and kind of curve is a line of its own, with its density and the paired difference to
    the reference; 95 % bootstrap intervals over inputs."""
    from graphtrace.analysis.baselines import baselines as measure_baselines
    from graphtrace.analysis.reading import chosen_traces
    from graphtrace.plots_curves import plot_baselines

    with open_run(options) as run:
        if options["save"]:
            chosen_traces(run.source, run.selection)  # a saved run is of one settings
        found = measure_baselines(
            run.source,
            measure.value,
            reference=reference,
            draws=draws,
            seed=seed,
            **run.selection,
        )
        frame = getattr(found, table.value)
        more = {"reference": reference, "draws": draws, "seed": seed}
        run.save("baselines", frame, measure=measure.value, table=table.value, **more)
    draw(options, plot_baselines, found, measure.value)
    show(frame, options["format"])
