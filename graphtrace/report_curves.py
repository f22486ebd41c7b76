"""The parts of a report that come from the curves of traces: how well sub-graphs of every size
reproduce the prediction, and what they are made of."""

from typing import Any

from graphtrace.analysis.baselines import baselines
from graphtrace.analysis.nucleus import nucleus
from graphtrace.analysis.reconstruction import reconstruction
from graphtrace.analysis.structure import structure_tables
from graphtrace.errors import OptionError
from graphtrace.plots_curves import (
    plot_baselines,
    plot_composition,
    plot_layers,
    plot_nucleus,
    plot_reconstruction_bands,
)
from graphtrace.report_page import Section, shown_value
from graphtrace.report_parts import Study, keys_of, name_of, percent, with_interval


def reconstruction_section(study: Study) -> Section:
    """How well traces of every size reproduce the prediction."""
    found = study.once(reconstruction)
    keys = keys_of(found.phases, "measure")
    said = [
        f"{name_of(row, keys)}: the curve is steepest at {with_interval(row, 'core_size')} of the "
        f"edges, where the mean error is {with_interval(row, 'core_value')}; construction runs "
        f"from {with_interval(row, 'construction_start')} to "
        f"{with_interval(row, 'construction_end')}, and refinement starts at an error of "
        f"{with_interval(row, 'end_value')} ({row['n_inputs']:,} inputs)."
        for row in found.phases.to_dict("records")
    ]
    return Section(
        "reconstruction",
        "Reconstruction",
        "How well does the trace of each size reproduce the full model's next-token distribution? "
        "The error is the total variation between the two, 0 where they are equal.",
        said,
        plot_reconstruction_bands(found),
        "Mean over inputs with its 95 % bootstrap interval, quartiles and 5 to 95 %.",
        found.phases,
    )


def nucleus_section(study: Study) -> Section:
    """The size at which traces know the most probable tokens."""
    frame = study.once(nucleus)
    keys, said = keys_of(frame, "percent"), []
    groups: Any = frame.groupby(keys, sort=False)
    for _, own in groups:
        rows = {row["percent"]: row for row in own.to_dict("records")}
        listed = "; ".join(
            f"{percent_} % of the probability at {with_interval(rows[percent_], 'median')}"
            for percent_ in (1, 50, 90)
        )
        row = rows[1]
        said.append(
            f"{name_of(row, keys)}: the median trace first has the full model's most probable "
            f"tokens, in their order, that hold {listed} of the edges ({row['n_inputs']:,} inputs)."
        )
    return Section(
        "nucleus",
        "Nucleus",
        "How large must a trace be to know the head of the distribution, and how large its tail?",
        said,
        plot_nucleus(frame),
        "First size whose list of most probable tokens is the full model's: median with its 95 % "
        "bootstrap interval, and quartiles.",
        frame,
    )


def _made_of(study: Study, table: Any, name: str, title: str, question: str, plot) -> Section:
    frame = study.once(structure_tables, **study.passes)[table]
    keys, said = keys_of(frame, "size"), []
    groups: Any = frame.groupby(keys, sort=False)
    for _, own in groups:
        sizes = sorted(set(own["size"]))
        # The smallest size that most inputs have, against the largest below the whole graph.
        enough = own.groupby("size")["n_inputs"].max()
        usable = [s for s in sizes if 2 * enough[s] >= enough.max() and s < 1] or sizes
        for size in dict.fromkeys((usable[0], usable[-1])):
            rows = own[own["size"] == size].to_dict("records")
            shares = ", ".join(
                f"{row['part']} {percent(row['share'])} (whole graph {percent(row['share_whole'])})"
                for row in rows
            )
            said.append(f"{name_of(rows[0], keys)}, size {shown_value(size)}: {shares}.")
    return Section(
        name,
        title,
        question,
        said,
        plot(frame),
        "Mean share of the trace's edges over inputs, by size; dotted: the whole graph.",
        frame,
    )


def composition_section(study: Study) -> Section:
    """Kinds of edges by size."""
    return _made_of(
        study,
        "composition",
        "composition",
        "Make-up by kind",
        "Which share of a trace's edges are residual, MLP and attention edges?",
        plot_composition,
    )


def layers_section(study: Study) -> Section:
    """Quarters of the depth by size."""
    return _made_of(
        study,
        "layers",
        "layers",
        "Make-up by layer",
        "Which quarters of the model's depth do the edges of a trace come from?",
        plot_layers,
    )


def baselines_section(study: Study) -> Section:
    """The trace beside random traces and necessity."""
    others = {key: x for key, x in study.drawn.items() if key != "settings"}
    settings = study.selection["settings"]
    found = baselines(study.source, **others)
    if len(set(zip(found.summary["settings"], found.summary["kind"], strict=True))) < 2:
        raise OptionError(
            "there is one kind of curve; trace some of the inputs with --scorer random, or with "
            "--evaluate necessity:zero, to see it beside others"
        )
    if settings not in set(found.summary["settings"]):
        raise OptionError(f"settings {settings} are not among the lines")
    keys = keys_of(found.summary, "what")
    said = [
        f"{name_of(row, keys)}: {row['what']} has normalised density "
        f"{with_interval(row, 'density_normalised')}"
        + (
            f", {with_interval(row, 'difference')} more than the reference's"
            if row["difference"] == row["difference"] and row["difference"] != 0
            else ""
        )
        + f" ({row['n_inputs']:,} inputs)."
        for row in found.summary.to_dict("records")
    ]
    return Section(
        "baselines",
        "Baselines",
        "Is the ranking better than a random one, and is what it puts first also needed? Sizes are "
        "those of the trace; the table says which share of the edges each evaluation left.",
        said,
        plot_baselines(found),
        "Mean error over the inputs that the reference has too, 95 % bootstrap intervals.",
        found.summary,
    )
