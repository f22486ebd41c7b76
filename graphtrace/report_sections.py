"""The parts of a report: what each asks, the figure that answers it, and what its numbers say.

A part raises OptionError or SizeError where these traces cannot answer it; the report then says so.
Sentences are made of the numbers of the tables, never of what they are expected to be.
"""

from collections.abc import Callable
from typing import Any

from graphtrace.analysis.agreement import agreement
from graphtrace.analysis.centrality import centrality
from graphtrace.analysis.controls import controls
from graphtrace.analysis.core import ALL_MODELS, core_stability
from graphtrace.analysis.correlates import correlates
from graphtrace.analysis.density import density
from graphtrace.analysis.modularity import modularity, modularity_summary
from graphtrace.errors import OptionError
from graphtrace.plots import plot_centrality, plot_core_stability, plot_modularity
from graphtrace.plots_correlates import (
    plot_agreement,
    plot_controls,
    plot_correlates,
    plot_density,
)
from graphtrace.report_claims import claims_section
from graphtrace.report_curves import (
    baselines_section,
    composition_section,
    layers_section,
    nucleus_section,
    reconstruction_section,
)
from graphtrace.report_page import Section, shown_value
from graphtrace.report_parts import Study, keys_of, name_of, percent, with_interval


def core_section(study: Study) -> Section:
    """Whether inputs share their components."""
    found = core_stability(study.source, study.size, **study.passes, **study.drawn)
    keys = keys_of(found.summary, "n_inputs")
    said = []
    for row in found.summary.to_dict("records"):
        named = "All models together" if row["model"] == ALL_MODELS else name_of(row, keys)
        said.append(
            f"{named}: two inputs share {percent(row['jaccard'])} of the components that either "
            f"uses (random cores of the same sizes: {percent(row['jaccard_chance'])}); stability "
            f"Φ is {with_interval(row, 'stability')}, and the top tenth of the "
            f"{row['n_components']} components holds {percent(row['top10_share'])} of the edges "
            f"({row['n_inputs']:,} inputs, {row['trace_edges']:,.0f} edges on average); the "
            f"innermost k-core has k = {with_interval(row, 'k_core')}."
            if row["n_inputs"] > 1
            else f"{named}: one input, so nothing can be said about what inputs share."
        )
    return Section(
        "core-stability",
        "Core stability",
        "Do different inputs run through the same components? Φ is 1 where all cores are equal and "
        "0 where they overlap as random ones would.",
        said,
        plot_core_stability(found),
        f"Share of inputs whose trace of size {study.size} has at least one edge of a component; "
        "bars with 95 % Wilson intervals.",
        found.components,
        [*keys_of(found.components, "component"), "component", "presence", "presence_low",
         "presence_high", "edge_share"],
    )  # fmt: skip


def centrality_section(study: Study) -> Section:
    """Which components traces run through."""
    frame = centrality(study.source, study.size, **study.passes, **study.drawn)
    keys, said = keys_of(frame, "component"), []
    groups: Any = frame.groupby(keys, sort=False)
    for _, own in groups:
        heads = own[own["kind"] == "attention"].head(3).to_dict("records")
        listed = ", ".join(f"{r['component']} {with_interval(r, 'path_flow')}" for r in heads)
        row = own.iloc[0].to_dict()
        said.append(
            f"{name_of(row, keys)}: the attention heads that most of the complete paths' mass runs "
            f"through are {listed or 'none'} ({row['n_inputs']:,} inputs)."
        )
    return Section(
        "centrality",
        "Centrality",
        "Which components do complete paths from the embeddings to the output run through?",
        said,
        plot_centrality(frame),
        f"Path flow of every component at size {study.size}, mean over inputs (0 where absent), "
        "with 95 % bootstrap intervals.",
        frame,
        [*keys, "component", "presence", "path_flow", "path_flow_low", "path_flow_high", "n_edges"],
    )


def modularity_section(study: Study) -> Section:
    """Whether traces fall apart into communities."""
    frame = modularity(study.source, study.size, **study.passes, **study.selection)
    summary = modularity_summary(frame, study.traces, study.draws, study.seed)
    keys = keys_of(summary, "resolution")
    said = [
        f"{name_of(row, keys)}: traces have {with_interval(row, 'n_communities')} communities at "
        f"modularity {with_interval(row, 'modularity')} on average; they follow token positions "
        f"with NMI {with_interval(row, 'position_nmi')} (shuffled "
        f"{with_interval(row, 'position_nmi_chance')}) and layers with "
        f"{with_interval(row, 'layer_nmi')} (shuffled {with_interval(row, 'layer_nmi_chance')}); "
        f"{row['n_inputs']:,} inputs."
        for row in summary.to_dict("records")
    ]
    return Section(
        "modularity",
        "Modularity",
        "Does a trace fall apart into communities, and do they follow layers or tokens?",
        said,
        plot_modularity(frame),
        f"Leiden communities of every trace of size {study.size}; each point is a trace.",
        summary,
    )


def density_section(study: Study) -> Section:
    """Density, and whether other measures agree with it."""
    frame = density(study.source, **study.drawn)
    keys, said = keys_of(frame, "measure"), []
    others = {
        "mass90_share": "edges that hold 90 % of the score mass",
        "score_gini": "inequality of the scores",
        "mlp_active_share": "active MLP neurons",
    }
    groups: Any = frame.groupby(keys, sort=False)
    for _, own in groups:
        rows = {row["measure"]: row for row in own.to_dict("records")}
        main = rows["density_normalised"]
        agree = "; ".join(
            f"{words} ρ = {with_interval(rows[name], 'rho')}, with the context length held "
            f"constant {with_interval(rows[name], 'partial_rho')}"
            for name, words in others.items()
            if rows[name]["n"]
        )
        said.append(
            f"{name_of(main, keys)}: normalised density is {with_interval(main, 'mean')} on "
            f"average over {main['n']:,} inputs. Rank correlation with the alternatives: "
            f"{agree or 'none'}."
        )
    return Section(
        "density",
        "Density and its alternatives",
        "How much of the model does a prediction take, and do measures made in other ways agree? "
        "Normalised density is the mean total variation over the sizes covered.",
        said,
        plot_density(frame),
        "Rank correlations with normalised density, 95 % bootstrap intervals over inputs.",
        frame,
        [*keys, "measure", "n", "mean", "mean_low", "mean_high", "rho", "rho_low", "rho_high",
         "partial_rho", "partial_rho_low", "partial_rho_high"],
    )  # fmt: skip


def correlates_section(study: Study) -> Section:
    """What goes with density."""
    frame = study.once(correlates)
    keys, said = keys_of(frame, "measure"), []
    words = {
        "entropy": "entropy",
        "loss": "loss",
        "top1_log_frequency": "frequency of the predicted token",
        "n_tokens": "context length",
    }
    groups: Any = frame[frame["measure"] == "density_normalised"].groupby(keys, sort=False)
    for _, own in groups:
        rows = own.to_dict("records")
        parts = [
            f"{words[row['correlate']]} {with_interval(row, 'rho')} (others held constant: "
            f"{with_interval(row, 'partial_rho')})"
            for row in rows
            if row["n_inputs"] >= 3
        ]
        said.append(
            f"{name_of(rows[0], keys)}: Spearman's ρ of normalised density with "
            f"{'; '.join(parts) or 'nothing: too few inputs'}."
        )
    return Section(
        "correlates",
        "What goes with density",
        "Is a prediction dense where the model is uncertain, the token rare, or the context long?",
        said,
        plot_correlates(frame),
        "Spearman's ρ, 95 % bootstrap intervals over inputs; partial: the others held constant.",
        frame,
        [*keys, "measure", "correlate", "n_inputs", "rho", "rho_low", "rho_high", "q",
         "partial_rho", "partial_rho_low", "partial_rho_high"],
    )  # fmt: skip


def agreement_section(study: Study) -> Section:
    """Whether models find the same inputs dense."""
    if len(set(study.traces["model"])) < 2:
        raise OptionError("there is one model; agreement needs the same inputs in two")
    found = study.once(agreement)
    keys, said = keys_of(found.summary, "measure"), []
    for row in found.summary.to_dict("records"):
        group = "".join(f"{key} {row[key] or 'none'}: " for key in keys)
        said.append(
            f"{group}Spearman's ρ of normalised density between two models is "
            f"{shown_value(row['rho_mean'])} on average over {row['n_pairs']} pair(s), from "
            f"{shown_value(row['rho_min'])} to {shown_value(row['rho_max'])} (with the context "
            f"length held constant {shown_value(row['partial_rho_mean'])}); at least "
            f"{row['n_inputs_min']:,} inputs each."
        )
    return Section(
        "agreement",
        "Agreement between models",
        "Do different models find the same inputs dense?",
        said,
        plot_agreement(found),
        "Spearman's ρ of normalised density between models on the same inputs.",
        found.pairs,
    )


def rarity_section(study: Study) -> Section:
    """Density by rarity of the predicted token with the length held, and by length with the
    prediction held where the inputs are of that design."""
    found = controls(study.source, **study.drawn)
    keys, said = keys_of(found.difference, "measure"), []
    for row in found.difference.to_dict("records"):
        said.append(
            f"{name_of(row, keys)}: among contexts of like length, predictions of the most "
            f"frequent quarter of tokens differ from those of the rarest by "
            f"{with_interval(row, 'difference')} in normalised density."
        )
    for row in found.trend.to_dict("records"):
        keys = keys_of(found.trend, "measure")
        said.append(
            f"{name_of(row, keys)}: with the last words held, a context twice as long changes "
            f"normalised density by {with_interval(row, 'slope')}."
        )
    return Section(
        "controls",
        "Controls: rarity with length held, length with the ending held",
        "Is it the token or the length of the context? Quartiles of rarity within strata of like "
        "length; contexts of growing length in front of the same words.",
        said,
        plot_controls(found),
        "Means with 95 % bootstrap intervals over inputs; strata count the same.",
        found.quartiles,
    )


SECTIONS: dict[str, Callable[[Study], Section]] = {
    "The paper's claims": claims_section,
    "Reconstruction": reconstruction_section,
    "Nucleus": nucleus_section,
    "Make-up by layer": layers_section,
    "Make-up by kind": composition_section,
    "Core stability": core_section,
    "Centrality": centrality_section,
    "Modularity": modularity_section,
    "Density and its alternatives": density_section,
    "What goes with density": correlates_section,
    "Controls": rarity_section,
    "Agreement between models": agreement_section,
    "Baselines": baselines_section,
}
"""Title -> what makes the part, in the order of the page."""
