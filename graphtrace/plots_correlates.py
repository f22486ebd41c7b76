"""Figures of density, what goes with it, how far models agree on it, and its controls."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphtrace.errors import OptionError
from graphtrace.plots import Frame, _blocks, _cycle, _figure, _styled, _whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphtrace.analysis.agreement import Agreement
    from graphtrace.analysis.controls import Controls

MEASURE_LABELS = {
    "density": "density (TV over log10 size)",
    "density_normalised": "normalised density (mean TV)",
    "mass90_share": "edges with 90 % of the score mass (share)",
    "score_gini": "Gini coefficient of the scores",
    "mlp_active_share": "active MLP neurons (share)",
    "entropy": "entropy (nats)",
    "loss": "loss of the next token (nats)",
    "top1_log_frequency": "ln frequency of the top token",
    "n_tokens": "context length (tokens)",
}
"""A measure or correlate as an axis names it, with its unit."""

_RHO = "Spearman's ρ"


@_styled
def plot_density(frame: pd.DataFrame, values: pd.DataFrame | None = None) -> "Figure":
    """`density(...)`: how normalised density is spread over inputs, and how far the other measures
    agree with it; filled points rho, open ones with the context length held constant.

    values: of `measured_traces.values_per_input` over the same traces, for the histogram; without
    it the means stand there. One colour per model and group.
    """
    blocks = _blocks(frame, before="measure")
    shown = [x for x in dict.fromkeys(frame["measure"]) if x != "density_normalised"]
    figure, axes = _figure(1, 2, 10.5, 2.4 + 0.16 * len(blocks) * len(shown))
    spread, rho = axes[0]
    if values is None:
        _mean_rows(spread, blocks)
        spread.set_ylabel("model and group")
    else:
        _histograms(spread, _blocks(values, before="input"))
        spread.set_ylabel("inputs")
    spread.set_xlabel(MEASURE_LABELS["density_normalised"])
    rows = [(title, block.set_index("measure")) for title, block in blocks]
    _rho_rows(rho, rows, shown, f"{_RHO} with normalised density")
    rho.set_ylabel("other measure")
    counts = [f"{title} ({_n(block, 'n')} inputs)" for title, block in blocks]
    _colours_below(figure, counts)
    _key(rho, "context length held")
    figure.suptitle("bars: 95 % intervals over inputs")
    return figure


@_styled
def plot_correlates(frame: pd.DataFrame) -> "Figure":
    """`correlates(...)`: rho of both measures of density with each correlate; filled points rho,
    open ones with the other correlates held constant, bars 95 % intervals over inputs. One colour
    per model and group."""
    measures, shown = dict.fromkeys(frame["measure"]), [*dict.fromkeys(frame["correlate"])]
    blocks = _blocks(frame, before="measure")
    height = 1.6 + len(shown) * (0.25 + 0.13 * len(blocks)) + 0.15 * len(blocks)
    figure, axes = _figure(1, len(measures), 5.2 * len(measures) + 1, height, sharey=True)
    for axis, measure in zip(axes[0], measures, strict=True):
        rows = [
            (title, block[block["measure"] == measure].set_index("correlate"))
            for title, block in blocks
        ]
        _rho_rows(axis, rows, shown, f"{_RHO} with {MEASURE_LABELS[measure]}")
        axis.set_ylabel("goes with")
    _key(axes[0][-1], "others held constant")
    _colours_below(figure, [f"{title} ({_n(block, 'n_inputs')} inputs)" for title, block in blocks])
    figure.suptitle("bars: 95 % intervals over inputs")
    return figure


@_styled
def plot_agreement(result: "Agreement") -> "Figure":
    """`agreement(...)`: rho between every two models as a matrix, one per group; above the diagonal
    its interval and inputs, in the title the mean, the range and the fewest inputs of a pair.

    Raises OptionError where there is one model."""
    pairs: Frame = result.pairs
    if len(pairs) == 0:
        raise OptionError("there is one model, and agreement is between models")
    keys = list(pairs.columns[: pairs.columns.get_loc("model")])
    summaries = result.summary.to_dict("records")
    largest = max((int(row["n_models"]) for row in summaries), default=1)
    side = float(np.clip(1.0 + 0.75 * largest, 3.8, 9.0))
    figure, axes = _figure(1, len(summaries), (side + 1.2) * len(summaries), side)
    image: Any = None
    for axis, row in zip(axes[0], summaries, strict=True):
        own = pairs
        for key in keys:
            own = own[own[key] == row[key]]
        image = _matrix(axis, own)
        title = " · ".join(str(row[key]) for key in keys)
        axis.set_title(f"{title}\n{_summary(row)}" if title else _summary(row), loc="left")
    measure = summaries[0]["measure"] if summaries else "density_normalised"
    if image is not None:
        figure.colorbar(image, ax=list(axes[0]), label=f"{_RHO} of\n{MEASURE_LABELS[measure]}")
    return figure


@_styled
def plot_controls(result: "Controls") -> "Figure":
    """`controls(...)`: the measure by context length within matched endings (where there are any),
    and by quartile of token frequency within strata of length; bars 95 % intervals."""
    matched = len(result.lengths) > 0
    figure, axes = _figure(1, 2 if matched else 1, 9.5 if matched else 5.2, 3.9)
    label = MEASURE_LABELS[result.quartiles["measure"].iloc[0]]
    if matched:
        axis = axes[0][0]
        trends = _blocks(result.trend, before="measure")
        blocks = _blocks(result.lengths, before="measure")
        for colour, (title, block), (_, trend) in zip(
            _cycle(len(blocks)), blocks, trends, strict=True
        ):
            row = trend.iloc[0]
            text = f"{title}: {row['n_endings']} endings, {_interval(row, 'slope')} per doubling"
            text += f", p {row['p']:.2g}" if row["p"] == row["p"] else ""
            _line(axis, block["context"], block, colour, text)
        axis.set_xscale("log", base=2)
        lengths = sorted(set(result.lengths["context"]))
        axis.set_xticks(lengths, [f"{x:g}" for x in lengths])
        axis.set_xlabel("true context (words, ending included)")
        axis.set_ylabel(f"{label},\nmean over endings")
        axis.set_title("the same endings, longer contexts", loc="left")
        _legend_under(axis)
    over = "over endings (left) and over inputs" if matched else "over inputs"
    figure.suptitle(f"bars: 95 % intervals {over}")
    axis = axes[0][-1]
    differences = _blocks(result.difference, before="measure")
    blocks = _blocks(result.quartiles, before="measure")
    for i, (colour, (title, block), (_, found)) in enumerate(
        zip(_cycle(len(blocks)), blocks, differences, strict=True)
    ):
        row = found.iloc[0]
        text = f"{title}: {row['n_inputs']} inputs, {row['n_strata']} strata, "
        text += f"Q4 − Q1 {_interval(row, 'difference')}"
        place = block["quartile"] + 0.06 * (i - (len(blocks) - 1) / 2)
        _line(axis, place, block, colour, text)
    axis.set_xticks(range(1, 5))
    axis.set_xlim(0.7, 4.3)
    axis.set_xlabel("quartile of the top token's frequency (1: rarest)")
    axis.set_ylabel(f"{label},\nmean over strata")
    axis.set_title("the same context lengths, other frequencies", loc="left")
    _legend_under(axis)
    return figure


def _rho_rows(axis: "Axes", blocks: list[tuple[str, Frame]], names: list[str], label: str) -> None:
    """Points with intervals, a row per name; blocks are tables indexed by these names."""
    step = 0.8 / max(2 * len(blocks), 1)
    for i, (colour, (_, block)) in enumerate(zip(_cycle(len(blocks)), blocks, strict=True)):
        for j, (column, fill) in enumerate((("rho", colour), ("partial_rho", "white"))):
            place = np.arange(len(names)) - 0.4 + (2 * i + j + 0.5) * step
            own = block.reindex(names)
            _points(axis, own, column, place, colour, fill)
    axis.axvline(0, color="#999999", lw=0.8, zorder=0)
    axis.set_xlim(-1.05, 1.05)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [MEASURE_LABELS[name] for name in names])
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(label)


def _points(
    axis: "Axes", rows: Frame, column: str, place: np.ndarray, colour: str, fill: str
) -> None:
    value, low, high = (rows[f"{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    axis.hlines(place, low, high, color=colour, lw=1.2)
    axis.plot(value, place, "o", color=colour, mfc=fill, ms=4.5, mew=1.1)


def _histograms(axis: "Axes", blocks: list[tuple[str, Frame]]) -> None:
    values = [block["value"].to_numpy(float) for _, block in blocks]
    every = np.concatenate(values) if values else np.empty(0)
    if len(every) == 0:
        return
    # Bins of all inputs, so that the models' bars can be compared.
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-6), 31)
    for colour, own in zip(_cycle(len(values)), values, strict=True):
        axis.hist(own, bins=edges.tolist(), histtype="stepfilled", color=colour, alpha=0.25)
        axis.hist(own, bins=edges.tolist(), histtype="step", color=colour, lw=1.2)
    _whole_ticks(axis.yaxis)


def _mean_rows(axis: "Axes", blocks: list[tuple[str, Frame]]) -> None:
    for place, (colour, (_, block)) in enumerate(zip(_cycle(len(blocks)), blocks, strict=True)):
        own = block[block["measure"] == "density_normalised"]
        _points(axis, own, "mean", np.full(len(own), place), colour, colour)
    axis.set_ylim(len(blocks) - 0.5, -0.5)
    axis.set_yticks(range(len(blocks)), [title for title, _ in blocks])


def _matrix(axis: "Axes", pairs: Frame) -> Any:
    models = [*dict.fromkeys([*pairs["model"], *pairs["other_model"]])]
    names = [model.partition("@")[0] for model in models]
    if len(set(names)) < len(names):
        names = models
    table = np.full((len(models), len(models)), np.nan)
    place = {model: i for i, model in enumerate(models)}
    for row in pairs.to_dict("records"):
        i, j = place[row["model"]], place[row["other_model"]]
        table[i, j] = table[j, i] = row["rho"]
        if row["rho"] == row["rho"]:
            colour = "white" if abs(row["rho"]) > 0.65 else "black"
            # Below the diagonal the value, above it the interval and how many inputs it is over.
            axis.text(i, j, f"{row['rho']:.2f}", ha="center", va="center", color=colour)
            text = f"{row['rho_low']:.2f}\n{row['rho_high']:.2f}\nn {row['n_inputs']:,}"
            axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=6)
    image = axis.imshow(table, cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks(range(len(models)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(models)), names)
    axis.tick_params(length=0)
    axis.set_xlabel("model")
    axis.set_ylabel("model")
    return image


def _summary(row: dict[Any, Any]) -> str:
    if not row["n_pairs"]:
        return "no pair of models has 3 inputs"
    return (
        f"mean ρ {row['rho_mean']:.2f} ({row['rho_min']:.2f} … {row['rho_max']:.2f})\n"
        f"{row['n_pairs']} pairs, n ≥ {row['n_inputs_min']:,}\nabove: 95 % intervals"
    )


def _line(axis: "Axes", place: Frame, block: Frame, colour: str, label: str) -> None:
    mean, low, high = (block[f"mean{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    axis.vlines(place, low, high, color=colour, lw=1.2)
    axis.plot(place, mean, "o-", color=colour, ms=4.5, lw=1.2, label=label)


def _interval(row: Any, name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value != value:
        return "–"
    return f"{value:+.3g}" + (f" [{low:.3g}, {high:.3g}]" if low == low else "")


def _n(block: Frame, column: str) -> str:
    return f"{int(block[column].max()):,}"


def _legend_under(axis: "Axes") -> None:
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    axis.legend(frameon=False, fontsize=7, **place)


def _colours_below(figure: "Figure", titles: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=x, lw=2) for x in _cycle(len(titles))]
    figure.legend(handles, titles, frameon=False, loc="outside lower center")


def _key(axis: "Axes", held: str) -> None:
    """What filled and open points are, in the panel's upper corner."""
    axis.plot([], [], "o", color="black", ms=4.5, label="ρ")
    axis.plot([], [], "o", color="black", mfc="white", ms=4.5, mew=1.1, label=f"ρ, {held}")
    axis.legend(
        frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0
    )
