"""`graphtrace analyze`: measures over many traces, as tables and figures."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from graphtrace.cli.analyze_options import (
    SizeOption,
    draw,
    open_run,
    output,
    passes,
    selection,
    show,
)
from graphtrace.cli.app import app
from graphtrace.cli.model_options import takes_options

analyze = typer.Typer(
    name="analyze",
    help="Measure many traces: density, centrality, modularity, core stability, a known circuit.",
)
app.add_typer(analyze)


class Level(StrEnum):
    """What a row of `analyze centrality` is."""

    component = "component"
    node = "node"


class Measure(StrEnum):
    """What the figure of `analyze centrality` shows."""

    path_flow = "path_flow"
    strength = "strength"
    betweenness = "betweenness"
    pagerank = "pagerank"


class ModularityTable(StrEnum):
    """Tables of `analyze modularity`."""

    traces = "traces"
    summary = "summary"


class CoreTable(StrEnum):
    """Tables of `analyze core-stability`."""

    summary = "summary"
    components = "components"
    lorenz = "lorenz"


class ComponentOrder(StrEnum):
    """What puts components in order within a trace, in `analyze circuit`."""

    best_rank = "best-rank"
    first_size = "first-size"
    score = "score"
    edges = "edges"


class Chance(StrEnum):
    """What random circuits share with the reference, in `analyze circuit`."""

    kind = "kind"
    layer = "layer"


class CircuitTable(StrEnum):
    """Tables of `analyze circuit`."""

    summary = "summary"
    roles = "roles"
    components = "components"


@analyze.command()
@takes_options(selection, output, passes)
def centrality(
    size: SizeOption = "0.001",
    level: Annotated[
        Level, typer.Option(help="A row per component, or per state of each trace.")
    ] = Level.component,
    measure: Annotated[
        Measure | None,
        typer.Option(help="Order components by it, and draw it [default: path_flow]."),
    ] = None,
    **options: Any,
) -> None:
    """How much of a trace runs through each component (or state): path flow, strength,
    betweenness, PageRank; means over inputs with 95 % bootstrap intervals."""
    from graphtrace.analysis.centrality import centrality as measure_centrality
    from graphtrace.errors import OptionError
    from graphtrace.plots import plot_centrality

    if level is Level.node and (options["plot"] is not None or measure is not None):
        raise OptionError("--plot and --measure are about components; leave --level node away")
    with open_run(options) as run:
        frame = measure_centrality(
            run.source, size, level=level.value, **run.passes, **run.selection
        )
        if measure is not None:
            groups = list(frame.columns[: frame.columns.get_loc("component")])
            ascending = [*[True] * len(groups), False]
            frame = frame.sort_values(
                by=[*groups, measure.value], ascending=ascending, ignore_index=True
            )
        run.save("centrality", frame, size, level=level.value)
    draw(options, plot_centrality, frame, (measure or Measure.path_flow).value)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output, passes)
def modularity(
    size: SizeOption = "0.001",
    resolution: Annotated[
        list[float] | None,
        typer.Option(help="Larger values give more communities; repeatable [default: 1]."),
    ] = None,
    table: Annotated[
        ModularityTable, typer.Option(help="A row per trace, or per model with intervals.")
    ] = ModularityTable.traces,
    **options: Any,
) -> None:
    """Leiden communities of every trace: how modular it is, and whether its communities follow
    layers or token positions (beside the same for shuffled communities)."""
    from graphtrace.analysis.modularity import modularity_summary, modularity_with_members
    from graphtrace.plots import plot_modularity

    with open_run(options) as run:
        resolutions = resolution or [1.0]
        frame, members = modularity_with_members(
            run.source, size, resolutions=resolutions, **run.passes, **run.selection
        )
        run.save("modularity", frame, size, members, resolutions=resolutions)
        shown = frame
        if table is ModularityTable.summary:
            shown = modularity_summary(frame, run.source.traces())
    draw(options, plot_modularity, frame)
    show(shown, options["format"])


@analyze.command("core-stability")
@takes_options(selection, output, passes)
def core_stability(
    size: SizeOption = "0.001",
    table: Annotated[
        CoreTable, typer.Option(help="A row per model, per component, or the Lorenz curve.")
    ] = CoreTable.summary,
    **options: Any,
) -> None:
    """Whether different inputs run through the same components: Jaccard overlap beside chance,
    Nogueira's stability with its 95 % interval, presence of every component."""
    from graphtrace.analysis.core import core_stability as measure_stability
    from graphtrace.plots import plot_core_stability

    with open_run(options) as run:
        found = measure_stability(run.source, size, **run.passes, **run.selection)
        frame = getattr(found, table.value)
        run.save("core-stability", frame, size, table=table.value)
    draw(options, plot_core_stability, found)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output)
def circuit(
    reference: Annotated[
        Path,
        typer.Option(
            "--reference",
            help='JSON: the components that do the task, ["9.9", "L10H0", "mlp3"], or a list per '
            "task, or a list per task and role; the first --by names the tasks.",
        ),
    ],
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            help="Share of all edges, k:EDGES or tv:QUALITY; repeatable [default: the grid, as far "
            "as every trace has edges and keeps them].",
        ),
    ] = None,
    order: Annotated[
        ComponentOrder,
        typer.Option(help="What puts components in order within a trace, for AUROC."),
    ] = ComponentOrder.best_rank,
    chance: Annotated[
        Chance,
        typer.Option(
            help="What random circuits share with the reference: the number of components of every "
            "kind, or of every kind in every layer."
        ),
    ] = Chance.kind,
    table: Annotated[
        CircuitTable, typer.Option(help="A row per size, per role and size, or per component.")
    ] = CircuitTable.summary,
    **options: Any,
) -> None:
    """Compare traces with a known circuit: recall, precision and AUROC of its components by size,
    means over inputs with 95 % bootstrap intervals, beside what chance gives."""
    from graphtrace.analysis.circuit import circuit as measure_circuit
    from graphtrace.analysis.reference import read_reference
    from graphtrace.plots import check_figure_path, plot_circuit

    if options["plot"] is not None:
        check_figure_path(options["plot"])
    known = read_reference(reference)
    with open_run(options) as run:
        found = measure_circuit(
            run.source,
            known,
            size,
            order=order.value,
            chance=chance.value,
            progress=True,
            **run.selection,
        )
        frame = getattr(found, table.value)
        sizes = ", ".join(size) if size else None
        more = {"table": table.value, "order": order.value, "chance": chance.value}
        run.save("circuit", frame, sizes, **more, **_named(reference))
    draw(options, plot_circuit, found)
    show(frame, options["format"])


@analyze.command()
@takes_options(selection, output)
def density(**options: Any) -> None:
    """Density beside other measures of how much a prediction takes (spread of the scores, active
    MLP neurons): means, and rank correlations with the normalised density, also with the context
    length held constant; 95 % bootstrap intervals over inputs. A measure that no trace has: n 0."""
    from graphtrace.analysis.density import density as measure_density
    from graphtrace.analysis.measured_traces import values_per_input
    from graphtrace.plots_correlates import plot_density

    with open_run(options) as run:
        frame = measure_density(run.source, **run.selection)
        drawn = options["plot"] is not None
        values = values_per_input(run.source, **run.selection) if drawn else None
        run.save("density", frame)
    draw(options, plot_density, frame, values)
    show(frame, options["format"])


def _named(reference: Path) -> dict[str, str]:
    """What a saved run says of the reference that it compares with."""
    from hashlib import sha256

    return {
        "reference": reference.name,
        "reference_sha256": sha256(reference.read_bytes()).hexdigest(),
    }
