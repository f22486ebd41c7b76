"""Figures of the analyses, as matplotlib Figure objects: no global state, nothing on import.

Colours are Okabe and Ito's, which people with any common colour vision tell apart, and maps are
perceptually uniform (`cividis`). `save_figure` writes SVG, PNG or PDF by the suffix; the same data
give the same file.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphtrace.errors import OptionError
from graphtrace.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphtrace.analysis.circuit import CircuitRecovery
    from graphtrace.analysis.core import CoreStability
    from graphtrace.traces import Curve

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MANY_POINTS = 1000
_OTHERS = {"resid_mid": "#BBBBBB", "mlp": "#D55E00", "resid_post": "#7F7F7F"}
Frame = Any
"""A DataFrame, whose columns pandas' stubs cannot type."""
SUFFIXES = (".svg", ".png", ".pdf")
MEASURES = {
    "path_flow": "path flow (share of complete paths)",
    "strength": "strength (sum of edge weights)",
    "betweenness": "edge betweenness (share of state pairs)",
    "pagerank": "PageRank (at the target, times weight)",
}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "graphtrace",
    "pdf.fonttype": 42,
}


def _styled(draw):
    """Run a drawing function under our style, without touching the caller's."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


CURVE_LABELS = {
    "tv": "reconstruction error (total variation)",
    "kl": "KL divergence from the full model (nats)",
    "p_predicted": "probability of the full model's top token",
    "p_target": "probability of the target",
    "logit_diff": "logit of the target less the foil's",
}
"""Label of each measure of a curve's points."""


def check_figure_path(path: str | Path) -> Path:
    """The path as such; raises OptionError unless it ends in .svg, .png or .pdf."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"figure {str(path)!r} must end in one of {', '.join(SUFFIXES)}")
    return path


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as SVG, PNG or PDF by the suffix, replacing the file at once when it is whole.

    No date and no random ids go in, so the same figure gives the same bytes. Raises OptionError.
    """
    import matplotlib as mpl

    path = check_figure_path(path)
    form = path.suffix.lower().removeprefix(".")
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}.get(
        form, {"CreationDate": None}
    )
    with replacing(path) as file, mpl.rc_context(_STYLE):
        figure.savefig(file, format=form, metadata=metadata, dpi=150)
    return path


@_styled
def plot_reconstruction(curves: "Mapping[str, Sequence[Curve]]", measure: str = "tv") -> "Figure":
    """Reconstruction error by trace size: mean over inputs, quartiles and 5-95 % of each model.

    curves: model name -> one curve per input, all of one kind of evaluation. measure: another than
    TV, of `analysis.curves.BAND_MEASURES`; `p_target` and `logit_diff` need curves that have a
    target (and foil). Raises OptionError.
    """
    from graphtrace.analysis.curves import curve_band

    figure, axes = _figure(1, 1, 5.6, 3.6)
    axis = axes[0][0]
    for colour, (model, found) in zip(_cycle(len(curves)), curves.items(), strict=True):
        band = curve_band(found, measure=measure)
        axis.fill_between(band.size, band.low, band.high, color=colour, alpha=0.12, lw=0)
        axis.fill_between(band.size, band.q25, band.q75, color=colour, alpha=0.25, lw=0)
        axis.plot(band.size, band.mean, color=colour, label=f"{model} ({len(found)} inputs)")
    axis.set_xscale("log")
    if measure in ("tv", "p_predicted", "p_target"):
        axis.set_ylim(0, 1)
    axis.set_xlabel("trace size (share of all edges)")
    axis.set_ylabel(CURVE_LABELS[measure])
    axis.set_title("Mean over inputs; bands: quartiles and 5–95 %", loc="left")
    axis.legend(frameon=False)
    return figure


@_styled
def plot_centrality(frame: pd.DataFrame, measure: str = "path_flow") -> "Figure":
    """A component measure of `centrality(...)`: heads as a layer × head map, mlp and residual
    components as bars with their 95 % intervals; one row of panels per model and group.

    Raises OptionError for an unknown measure, and where there is nothing to draw.
    """
    if measure not in MEASURES:
        raise OptionError(f"measure {measure!r} is none of {', '.join(MEASURES)}")
    if len(frame) == 0:
        raise OptionError("there is no component to draw: no trace has an edge at this size")
    blocks = _blocks(frame, before="component")
    heads, others = frame["kind"] == "attention", frame["kind"] != "attention"
    top = float(frame.loc[heads, measure].max())
    right = float(frame.loc[others, f"{measure}_high"].fillna(frame[measure]).max())
    figure, axes = _component_panels(blocks)
    figure.suptitle(MEASURES[measure] + ": mean over inputs, 95 % intervals")
    for (title, block), (grid, bars) in zip(blocks, axes, strict=True):
        _head_map(figure, grid, block, measure, top if top > 0 else 1)
        _layer_bars(bars, block, measure, right * 1.05 if right > 0 else 1)
        bars.set_xlabel(MEASURES[measure])
        grid.set_title(title, loc="left")
    _legend(axes[0][1])
    return figure


@_styled
def plot_core_stability(result: "CoreStability") -> "Figure":
    """Presence of every component in the cores of the inputs: heads as a layer × head map, mlp and
    residual components as bars with Wilson intervals; titles give Φ with its interval."""
    blocks = _blocks(result.components, before="component")
    figure, axes = _component_panels(blocks)
    figure.suptitle("presence in the cores: share of inputs, 95 % intervals")
    rows = result.summary.to_dict("records")
    for (title, block), row, (grid, bars) in zip(blocks, rows, axes, strict=True):
        _head_map(figure, grid, block, "presence", 1)
        _layer_bars(bars, block, "presence", 1.02)
        bars.set_xlabel("presence (share of inputs)")
        grid.set_title(f"{title}: {row['n_inputs']} inputs", loc="left")
        bars.set_title(
            f"Φ {row['stability']:.2f} [{row['stability_low']:.2f}, {row['stability_high']:.2f}]"
            f"   Jaccard {row['jaccard']:.2f} (chance {row['jaccard_chance']:.2f})",
            loc="left",
        )
    _legend(axes[0][1])
    return figure


@_styled
def plot_modularity(frame: pd.DataFrame) -> "Figure":
    """`modularity(...)`: its distribution over traces, and how the communities align with layers
    and positions beside the same for shuffled communities; one colour per model and group."""
    blocks = _blocks(frame, before="trace")
    if len(set(frame["resolution"])) > 1:
        blocks = [
            (f"{title}, γ = {gamma:g}", block[block["resolution"] == gamma])
            for title, block in blocks
            for gamma in sorted(set(block["resolution"]))
        ]
    figure, axes = _figure(1, 3, 9.5, 1.3 + 0.4 * len(blocks))
    figure.suptitle("points: traces; bars: quartiles and median; ×: mean of shuffled communities")
    panels = (
        ("modularity", None, "modularity Q"),
        ("layer_nmi", "layer_nmi_chance", "alignment with layers (NMI)"),
        ("position_nmi", "position_nmi_chance", "alignment with positions (NMI)"),
    )
    for axis, (column, chance, label) in zip(axes[0], panels, strict=True):
        for place, (colour, (_, block)) in enumerate(zip(_cycle(len(blocks)), blocks, strict=True)):
            _strip(axis, block[column], place, colour)
            if chance is not None:
                axis.plot(block[chance].mean(), place, "x", color="black", ms=6)
        axis.set_ylim(len(blocks) - 0.5, -0.5)
        axis.set_yticks(range(len(blocks)), [title for title, _ in blocks])
        axis.set_xlabel(label)
        axis.set_xlim(0, 1)
        axis.tick_params(axis="y", length=0, labelleft=axis is axes[0][0])
    return figure


@_styled
def plot_circuit(result: "CircuitRecovery") -> "Figure":
    """Recall, precision and AUROC of a known circuit by trace size: one colour per model and group,
    bands its 95 % intervals over inputs; dashed, with the light band, what chance gives."""
    blocks = _blocks(result.summary, before="size")
    figure, axes = _figure(1, 3, 10.5, 3.6 + 0.15 * len(blocks), sharex=True)
    figure.suptitle("mean over inputs, 95 % intervals; dashed: chance and its 95 % range")
    for axis, name in zip(axes[0], ("recall", "precision", "auroc"), strict=True):
        for colour, (title, block) in zip(_cycle(len(blocks)), blocks, strict=True):
            block = block.sort_values("trace_share")
            size = block["trace_share"].to_numpy(float)
            for end, style, alpha in (("", "-", 0.25), ("_chance", "--", 0.1)):
                low, high = (block[f"{name}{end}_{x}"].to_numpy(float) for x in ("low", "high"))
                axis.fill_between(size, low, high, color=colour, alpha=alpha, lw=0)
                values = block[f"{name}{end}"].to_numpy(float)
                marks = "." if len(block) < 3 and not end else ""
                axis.plot(size, values, style + marks, color=colour, lw=1.3 if not end else 0.9)
            n_inputs = int(block["n_inputs"].iloc[0])
            axis.plot([], [], color=colour, label=f"{title} ({n_inputs} inputs)")
        axis.set_xscale("log")
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("trace size (share of all edges)")
        axis.set_ylabel({"auroc": "AUROC"}.get(name, name))
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), frameon=False, loc="outside lower center"
    )
    return figure


def _figure(rows: int, columns: int, width: float, height: float, **kwargs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _blocks(frame: Frame, before: str) -> list[tuple[str, Frame]]:
    """(title, rows) per model and group: the columns in front of `before`."""
    keys = list(frame.columns[: frame.columns.get_loc(before)])
    return [
        (" · ".join(str(value) for value in key), block)
        for key, block in frame.groupby(keys, sort=False)
    ]


def _component_panels(blocks: list[tuple[str, Frame]]):
    heads = max(
        int(block["head"].max() if block["head"].notna().any() else 0) for _, block in blocks
    )
    layers = max(int(block["layer"].max()) for _, block in blocks) + 1
    height = float(np.clip(0.9 + 0.28 * layers, 2.4, 7.0))
    width = float(np.clip(1.8 + 0.28 * (heads + 1), 3.6, 9.0))
    return _figure(
        len(blocks),
        2,
        width + 4.6,
        height * len(blocks),
        gridspec_kw={"width_ratios": [width, 4.6]},
    )


def _head_map(figure: "Figure", axis: "Axes", block: Frame, column: str, top: float) -> None:
    heads = block[block["kind"] == "attention"]
    n_layers = int(block["layer"].max()) + 1
    n_heads = int(heads["head"].max()) + 1 if len(heads) else 1
    table = np.zeros((n_layers, n_heads))
    table[heads["layer"].to_numpy(int), heads["head"].to_numpy(int)] = heads[column]
    image = axis.imshow(
        table,
        origin="lower",
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=top,
        interpolation="nearest",
    )
    _whole_ticks(axis.xaxis)
    _whole_ticks(axis.yaxis)
    axis.set_xlabel("attention head")
    axis.set_ylabel("layer")
    figure.colorbar(image, ax=axis, label=column.replace("_", " "), pad=0.02)


def _layer_bars(axis: "Axes", block: Frame, column: str, right: float) -> None:
    shown = [name for name in _OTHERS if block["component"].str.endswith(name).any()]
    thick = 0.8 / max(len(shown), 1)
    for i, name in enumerate(shown):
        rows = block[block["component"].str.endswith(name)]
        value = rows[column].to_numpy(float)
        low, high = (rows[f"{column}_{end}"].to_numpy(float) for end in ("low", "high"))
        axis.barh(
            rows["layer"].to_numpy() + (i + 0.5) * thick - 0.4,
            value,
            height=thick,
            color=_OTHERS[name],
            xerr=np.nan_to_num(np.clip([value - low, high - value], 0, None)),
            error_kw={"elinewidth": 0.8, "ecolor": "black"},
            label=name,
        )
    _whole_ticks(axis.yaxis)
    axis.set_ylim(-0.6, int(block["layer"].max()) + 0.6)
    axis.set_xlim(0, right)
    axis.set_ylabel("layer")


def _legend(axis: "Axes") -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        axis.legend(handles[::-1], labels[::-1], frameon=False, **place)


def _strip(axis: "Axes", values: Frame, place: float, colour: str) -> None:
    values = values.dropna()
    if len(values) == 0:
        return
    spread = np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
    # Thousands of points are megabytes of outlines; as a picture they look the same.
    many = len(values) > MANY_POINTS
    axis.plot(values, place + spread, ".", color=colour, alpha=0.6, ms=6, mew=0, rasterized=many)
    q25, q50, q75 = np.percentile(values, [25, 50, 75])
    axis.plot([q25, q75], [place, place], color=colour, lw=4, solid_capstyle="butt", alpha=0.9)
    axis.plot(q50, place, "|", color="black", ms=12, mew=1.5)


def _whole_ticks(axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
