"""Figures of curves across inputs: reconstruction, nucleus, structure, baselines."""

from typing import TYPE_CHECKING

import numpy as np

from graphtrace.plots import COLOURS, CURVE_LABELS, Frame, _blocks, _cycle, _figure, _styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphtrace.analysis.baselines import Baselines
    from graphtrace.analysis.reconstruction import Reconstruction

SIZE_LABEL = "trace size (share of all edges)"
_KIND_COLOURS = {"residual": "#7F7F7F", "mlp": "#D55E00", "attention": "#0072B2"}
_SHARES = ("tv", "p_predicted", "p_target")


@_styled
def plot_reconstruction_bands(result: "Reconstruction") -> "Figure":
    """`reconstruction(...)`: the mean over inputs with its 95 % interval, quartiles and 5-95 %, by
    size. The construction phase is shaded where there is one curve, and a bar in a panel above
    where there are several; a dot at the minimal core."""
    blocks = _blocks(result.curve, before="size")
    phases = result.phases.to_dict("records")
    measure = str(phases[0]["measure"])
    one = len(blocks) == 1
    above = 0.25 + 0.14 * len(blocks)
    figure, axes = _figure(
        *(1 if one else 2, 1, 6.2, 3.8 + 0.12 * len(blocks) + (0 if one else above)),
        sharex=True,
        gridspec_kw=None if one else {"height_ratios": [above, 3.2]},
    )
    axis = axes[-1][0]
    for place, (colour, (title, block), row) in enumerate(
        zip(_cycle(len(blocks)), blocks, phases, strict=True)
    ):
        size = block["size"].to_numpy(float)
        for low, high, alpha in (("q05", "q95", 0.1), ("q25", "q75", 0.2)):
            axis.fill_between(size, block[low], block[high], color=colour, alpha=alpha, lw=0)
        axis.fill_between(
            size, block["mean_low"], block["mean_high"], color=colour, alpha=0.45, lw=0
        )
        named = f"{title} ({row['n_inputs']} inputs)"
        axis.plot(size, block["mean"].to_numpy(float), color=colour, lw=1.4, label=named)
        if np.isfinite(row["core_size"]):
            _mark_phases(axis if one else axes[0][0], row, colour, None if one else place)
    if not one:
        axes[0][0].set_ylim(len(blocks) - 0.4, -0.6)
        axes[0][0].set_yticks([])
        axes[0][0].spines["left"].set_visible(False)
        axes[0][0].set_ylabel("phases")
    axis.set_xscale("log")
    if measure in _SHARES:
        axis.set_ylim(0, 1)
    axis.set_xlabel(SIZE_LABEL)
    axis.set_ylabel(CURVE_LABELS[measure])
    marks = "shaded" if one else "bars"
    axes[0][0].set_title(
        "mean over inputs with its 95 % interval; bands: quartiles, 5–95 %\n"
        f"{marks}: construction phase; dot: minimal core",
        loc="left",
    )
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, loc="outside lower center")
    return figure


def _mark_phases(axis: "Axes", row: dict, colour: str, place: int | None) -> None:
    start, end, core = (row[x] for x in ("construction_start", "construction_end", "core_size"))
    if place is None:
        axis.axvspan(start, end, color="#DDDDDD", alpha=0.5, lw=0, zorder=0)
    else:
        axis.plot([start, end], [place, place], color=colour, lw=3, solid_capstyle="butt")
    height = row["core_value"] if place is None else place
    axis.plot(core, height, "o", color=colour, ms=6, mec="white", mew=0.8)


@_styled
def plot_nucleus(frame: Frame) -> "Figure":
    """`nucleus(...)`: the size at which traces have the full model's nucleus, median with its 95 %
    interval and quartiles over inputs, and the share of inputs that get there at all."""
    blocks = _blocks(frame, before="percent")
    figure, axes = _figure(2, 1, 5.6, 4.6, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    above, below = axes[0][0], axes[1][0]
    for colour, (title, block) in zip(_cycle(len(blocks)), blocks, strict=True):
        percent = block["percent"].to_numpy(float)
        above.fill_between(percent, block["q25"], block["q75"], color=colour, alpha=0.18, lw=0)
        above.fill_between(
            percent, block["median_low"], block["median_high"], color=colour, alpha=0.4, lw=0
        )
        named = f"{title} ({block['n_inputs'].max()} inputs)"
        above.plot(percent, block["median"].to_numpy(float), ".-", color=colour, label=named)
        below.plot(percent, block["share_reached"].to_numpy(float), ".-", color=colour)
    above.set_yscale("log")
    above.set_ylabel("nucleus size (share of all edges)")
    above.set_title("median over inputs with its 95 % interval; light: quartiles", loc="left")
    below.set_ylim(0, 1.05)
    below.set_ylabel("share that\nreach it")
    below.set_xlabel("nucleus (% of the full model's probability)")
    figure.legend(*above.get_legend_handles_labels(), frameon=False, loc="outside lower center")
    return figure


@_styled
def plot_composition(frame: Frame) -> "Figure":
    """`structure(..., "composition")`: share of each kind of edge by size, stacked; one panel per
    model and group, dotted lines where the whole graph divides."""
    return _stacked(frame, _KIND_COLOURS, "kinds of edges")


@_styled
def plot_layers(frame: Frame) -> "Figure":
    """`structure(..., "layers")`: share of each quarter of the depth by size, stacked; one panel
    per model and group, dotted lines where the whole graph divides."""
    import matplotlib as mpl

    parts = list(dict.fromkeys(frame["part"]))
    shades = mpl.colormaps["cividis"](np.linspace(0.08, 0.92, len(parts)))
    return _stacked(frame, dict(zip(parts, shades, strict=True)), "quarters of the depth")


def _stacked(frame: Frame, colours: dict, what: str) -> "Figure":
    blocks = _blocks(frame, before="size")
    columns = min(len(blocks), 3)
    rows = -(-len(blocks) // columns)
    figure, axes = _figure(rows, columns, 1.2 + 3.6 * columns, 0.7 + 2.8 * rows)
    figure.suptitle(f"{what}: mean share over inputs\ndotted: the whole graph", fontsize=10)
    for axis, block in zip(axes.flat, blocks, strict=False):
        title, block = block
        table = block.pivot(index="size", columns="part", values="share")
        size, parts = table.index.to_numpy(float), list(dict.fromkeys(block["part"]))
        values = [table[part].to_numpy(float) for part in parts]
        axis.stackplot(size, values, colors=[colours[p] for p in parts], labels=parts, lw=0)
        whole = block.loc[block["size"] == size[-1]].set_index("part")["share_whole"]
        for edge in np.cumsum([whole[part] for part in parts])[:-1]:
            axis.axhline(edge, color="white", ls=":", lw=1.2)
        axis.set_xscale("log")
        axis.set_xlim(size[0], size[-1] if len(size) > 1 else size[0] * 1.01)
        axis.set_ylim(0, 1)
        axis.set_xlabel(SIZE_LABEL)
        axis.set_ylabel("share of the trace's edges")
        axis.set_title(f"{title} ({block['n_inputs'].max()} inputs)", loc="left")
    for axis in axes.flat[len(blocks) :]:
        axis.set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], frameon=False, loc="outside right center")
    return figure


@_styled
def plot_baselines(result: "Baselines", measure: str = "tv") -> "Figure":
    """`baselines(...)`: one line per settings and kind of curve with its 95 % interval, a panel per
    model and group; dotted, a sufficiency curve at its effective size where that differs."""
    panels: dict[str, list] = {}
    titles = [title for title, _ in _blocks(result.summary, before="what")]
    for title, block in _blocks(result.curve, before="what"):
        panels[title] = _blocks(block.loc[:, "what":], before="settings")
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    names = list(dict.fromkeys(result.summary["what"]))
    colour_of = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    figure, axes = _figure(rows, columns, 0.8 + 4.2 * columns, 0.9 + 3.0 * rows + 0.15 * len(names))
    figure.suptitle(
        "mean over inputs, 95 % intervals\ndotted: at the edges left in the model", fontsize=10
    )
    for axis, title in zip(axes.flat, titles, strict=False):
        n_inputs = []
        for what, block in panels.get(title, []):
            size, mean = (block[x].to_numpy(float) for x in ("size", "mean"))
            colour = colour_of[what]
            axis.fill_between(
                size, block["mean_low"], block["mean_high"], color=colour, alpha=0.25, lw=0
            )
            axis.plot(size, mean, color=colour, lw=1.8 if what == names[0] else 1.2, label=what)
            left = block["effective_size"].to_numpy(float)
            kept = str(block["kind"].iloc[0]).startswith("sufficiency")
            if kept and np.nanmax(np.nan_to_num(left / size, nan=1.0)) > 1.05:
                axis.plot(left, mean, color=colour, lw=1, ls=":")
            n_inputs.append(int(block["n_inputs"].max()))
        axis.set_xscale("log")
        if measure in _SHARES:
            axis.set_ylim(0, 1)
        axis.set_xlabel(SIZE_LABEL)
        axis.set_ylabel(CURVE_LABELS[measure])
        span = sorted(set(n_inputs)) or [0]
        counted = f"{span[0]}" if len(span) == 1 else f"{span[0]}–{span[-1]}"
        axis.set_title(f"{title} ({counted} inputs)", loc="left")
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), frameon=False, loc="outside lower center"
    )
    return figure
