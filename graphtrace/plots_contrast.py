"""The figure of a contrast: what one side does more (orange) and what the other does (purple).

The scale is symmetric about 0, and its two colours are told apart with any common colour vision.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from graphtrace.errors import OptionError
from graphtrace.plots import _OTHERS, COLOURS, Frame, _figure, _styled, _whole_ticks
from graphtrace.schema import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from graphtrace.analysis.contrast import Contrast

MEASURES = ("presence", "share")
FOUND = 0.05
"""Rows with a smaller q are marked."""

TOKENS = 30
"""So many tokens are shown, those that differ most."""

_KINDS = {"residual": "#7F7F7F", "mlp": "#D55E00", "attention": "#0072B2", "all": "#000000"}
_MAP = "PuOr_r"


@_styled
def plot_contrast(found: "Contrast", measure: str = "presence") -> "Figure":
    """The difference A - B of `contrast(...)`, one row of panels per model.

    measure: of components, `presence`, or `share` (of the edges), whose difference is not tested
    there. Components are a layer x head map of the heads (grey: in no trace) beside bars of mlp and
    residual ones; parts of the depth, layers and tokens are bars, the last two of their share. Bars
    have their 95 % intervals; stars mark q < 0.05. Raises OptionError for an unknown measure.
    """
    if measure not in MEASURES:
        raise OptionError(f"measure {measure!r} is none of {', '.join(MEASURES)}")
    has_presence = "difference" in found.rows.columns
    column = "difference" if has_presence and measure == "presence" else "share_difference"
    tested = not has_presence or measure == "presence"
    rows = found.rows.assign(marked=tested & (found.rows["q"] < FOUND))
    blocks = [
        (row, rows.loc[rows["model"] == row["model"]]) for row in found.summary.to_dict("records")
    ]
    if "component" in rows.columns:
        figure, axes = _component_panels(blocks)
        limit = _limit(rows.loc[rows["kind"] == "attention"], column)
        reach = _reach(rows.loc[rows["kind"] != "attention"], column)
        for (row, block), (grid, bars) in zip(blocks, axes, strict=True):
            _head_map(figure, grid, block, column, limit)
            shown = block.loc[block["kind"] != "attention"]
            others = [(name, _OTHERS[name], _ending(shown, name)) for name in _OTHERS]
            _bars(bars, [x for x in others if len(x[2])], "layer", column, reach)
            bars.set_ylim(-0.6, int(block["layer"].max()) + 0.6)
            bars.set_ylabel("layer")
            _whole_ticks(bars.yaxis)
            grid.set_title(_title(row), loc="left")
    else:
        own = [_named(block) for _, block in blocks]
        heights = [1.2 + 0.22 * len(names) for names, _ in own]
        figure, axes = _figure(
            *(len(blocks), 1, 6.6, max(2.4, sum(heights))), gridspec_kw={"height_ratios": heights}
        )
        for (row, _), (names, parts), (axis,) in zip(blocks, own, axes, strict=True):
            _bars(axis, parts, "place", column, _reach(rows, column))
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.set_ylabel(
                {"layer": "layer", "token": "source token"}.get(row["matched"], "depth")
            )
            axis.set_title(_title(row), loc="left")
    what = "presence (share of inputs)" if column == "difference" else "share of edges"
    for line in axes:
        line[-1].set_xlabel(f"difference of {what}, A − B")
        line[-1].axvline(0, color="black", lw=0.8)
        _legend(line[-1], upward="component" in rows.columns)
    marks = f"; marked: q < {FOUND:g}" if tested else ""
    figure.suptitle(f"difference of {what}, A − B; 95 % intervals{marks}")
    return figure


def _title(row: dict[str, Any]) -> str:
    names = f"A {row['a']} − B {row['b']}"
    if row["model"] != row["a"]:
        names = f"{row['model']}: {names}"
    n = (
        f"{row['n_inputs_a']} and {row['n_inputs_b']} inputs"
        if pd.isna(row["n_pairs"])
        else f"{row['n_pairs']} pairs"
    )
    return f"{names} ({n})"


def _limit(rows: Frame, column: str) -> float:
    top = float(rows[column].abs().max()) if len(rows) else 0.0
    return top if top > 0 else 1.0


def _reach(rows: Frame, column: str) -> float:
    """How far the bars and their intervals go."""
    ends = rows[[column, f"{column}_low", f"{column}_high"]].abs().max().max()
    return float(ends) * 1.05 if ends > 0 else 1.0


def _ending(block: Frame, name: str) -> Frame:
    return block.loc[block["component"].str.endswith(name)]


def _component_panels(blocks: list[tuple[dict[str, Any], Frame]]):
    heads = max(int(x["head"].max()) if x["head"].notna().any() else 0 for _, x in blocks)
    layers = max(int(block["layer"].max()) for _, block in blocks) + 1
    height = float(np.clip(0.9 + 0.28 * layers, 2.6, 7.0))
    width = float(np.clip(1.8 + 0.28 * (heads + 1), 3.8, 9.0))
    ratios = {"width_ratios": [width, 4.6]}
    return _figure(len(blocks), 2, width + 4.8, 0.4 + height * len(blocks), gridspec_kw=ratios)


def _head_map(figure: "Figure", axis: "Axes", block: Frame, column: str, limit: float) -> None:
    """Differences by layer and head; grey where no trace uses the head."""
    import matplotlib as mpl

    heads = block.loc[block["kind"] == "attention"]
    n_layers = int(block["layer"].max()) + 1
    n_heads = int(heads["head"].max()) + 1 if len(heads) else 1
    table = np.full((n_layers, n_heads), np.nan)
    places = (heads["layer"].to_numpy(int), heads["head"].to_numpy(int))
    table[places] = heads[column]
    image = axis.imshow(
        np.ma.masked_invalid(table),
        origin="lower",
        aspect="auto",
        cmap=mpl.colormaps[_MAP].with_extremes(bad="#DDDDDD"),
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    marked = heads["marked"].to_numpy(bool)
    axis.plot(places[1][marked], places[0][marked], "*", color="black", ms=7, mec="white", mew=0.6)
    _whole_ticks(axis.xaxis)
    _whole_ticks(axis.yaxis)
    axis.set_xlabel("attention head")
    axis.set_ylabel("layer")
    figure.colorbar(image, ax=axis, label="A − B", pad=0.02)


def _named(block: Frame) -> tuple[list[str], list[tuple[str, str, Frame]]]:
    """(names of the places, bars by kind) of a table of layers, parts of the depth or tokens."""
    if "token" in block.columns:
        order = block["share_difference"].abs().sort_values(ascending=False, kind="stable")
        block = block.loc[order.index[:TOKENS]].sort_values("share_difference", ascending=False)
        names = [
            f"{visible(row.token)}{' (special)' if row.special else ''}"
            for row in block.itertuples()
        ]
        return names, [("", COLOURS[0], block.assign(place=np.arange(len(block))))]
    of = "layer" if "layer" in block.columns else "part"
    names = list(dict.fromkeys(block.sort_index()[of])) if of == "layer" else sorted(set(block[of]))
    places = {name: place for place, name in enumerate(names)}
    block = block.assign(place=[places[x] for x in block[of]])
    kinds = [kind for kind in _KINDS if (block["kind"] == kind).any()]
    parts = [(kind, _KINDS[kind], block.loc[block["kind"] == kind]) for kind in kinds]
    return [str(name).removeprefix("depth ") for name in names], parts


def _bars(
    axis: "Axes",
    parts: list[tuple[str, str, Frame]],
    place: str,
    column: str,
    reach: float,
) -> None:
    thick = 0.8 / max(len(parts), 1)
    for i, (name, colour, rows) in enumerate(parts):
        at = rows[place].to_numpy(float) + (i + 0.5) * thick - 0.4
        value = rows[column].to_numpy(float)
        low, high = (rows[f"{column}_{end}"].to_numpy(float) for end in ("low", "high"))
        axis.barh(
            at,
            value,
            height=thick,
            color=colour,
            xerr=np.nan_to_num(np.clip([value - low, high - value], 0, None)),
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            label=name or None,
        )
        marked = rows["marked"].to_numpy(bool)
        side = np.full(int(marked.sum()), 0.97 * reach)
        axis.plot(side, at[marked], "*", color="black", ms=6, mew=0)
    axis.set_xlim(-reach, reach)


def _legend(axis: "Axes", upward: bool) -> None:
    """Beside the panel, in the order of the bars."""
    handles, labels = axis.get_legend_handles_labels()
    if upward:
        handles, labels = handles[::-1], labels[::-1]
    if handles:
        axis.legend(handles, labels, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
