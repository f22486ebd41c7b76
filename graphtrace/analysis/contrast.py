"""Contrast: what traces of two groups of inputs, two models or two settings do differently.

Of two sides A and B at one size, inputs that belong together are compared as pairs: the same input
under two models or settings, or two inputs that a label joins (clean and corrupt text number 7).
The unit is a pair, or an input where the sides are independent; several traces of one input, and
then several inputs of one pair, are averaged first.

    presence   share of a trace's inputs that hold a component: at least one kept edge. p: McNemar's
               exact test over pairs (the sign test, where several traces of an input make presences
               between 0 and 1), else Fisher's exact test of the inputs that hold it in at least
               half of their traces
    share      of a trace's edges: those of a component, a layer, or from a token. p: the sign test
               over pairs, else Mann and Whitney's
    q          Benjamini and Hochberg's over all rows of the table

Differences are A less B, their intervals bootstraps over pairs, or over the inputs of each side.
Models of one shape are compared component by component; models of other shapes by relative depth,
heads of a part of the depth taken together (`matched` says which). Two sides are never pooled.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, get_args

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.analysis.centrality import component_columns
from graphtrace.analysis.contrast_sides import (
    Block,
    Sides,
    SideSelection,
    read_sides,
    takes_side_selection,
)
from graphtrace.analysis.contrast_tokens import TokenShare, token_blocks, token_shares
from graphtrace.analysis.counts_at_size import Counts, component_groups, counts_at_size
from graphtrace.analysis.paired_tests import (
    bootstrap_difference,
    fisher,
    paired_difference,
    rank_sum,
    sign_test,
)
from graphtrace.analysis.stats import Interval, false_discovery_q
from graphtrace.component_names import Shape
from graphtrace.errors import OptionError
from graphtrace.selection import TraceSource, check_curves, natural
from graphtrace.sizes import Size, parse_size

Level = Literal["component", "layer", "token"]
"""What a row of a contrast is about."""

DEPTHS = 8
"""Into so many parts the depth is cut at most where models differ in shape."""

KINDS = ("all", *schema.KINDS)


class Contrast(NamedTuple):
    """What `contrast` returns, see there."""

    rows: pd.DataFrame
    summary: pd.DataFrame


class _Compared(NamedTuple):
    """Two sides' values of some columns: means, and the interval of A - B."""

    a: np.ndarray
    b: np.ndarray
    interval: Interval

    def columns(self, name: str, difference: str) -> dict[str, np.ndarray]:
        low, high = self.interval
        return {
            f"{name}_a": self.a,
            f"{name}_b": self.b,
            difference: self.a - self.b,
            f"{difference}_low": low + 0.0,  # no -0
            f"{difference}_high": high + 0.0,
        }


class _Draw(NamedTuple):
    """How differences are drawn: pairs or groups, draws, seed, and each side's random numbers,
    which go by the value so that swapping the sides mirrors the table."""

    paired: bool
    draws: int
    seed: int
    streams: tuple[int, int]

    def compare(self, a: np.ndarray, b: np.ndarray) -> _Compared:
        if self.paired:
            interval = paired_difference(a, b, self.draws, self.seed)
        else:
            interval = bootstrap_difference(a, b, self.draws, self.seed, self.streams)
        return _Compared(a.mean(0), b.mean(0), interval)

    def p(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return sign_test(a - b) if self.paired else rank_sum(a, b)

    def p_presence(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if self.paired:
            return sign_test(a - b)
        return fisher((a >= 0.5).sum(0), len(a), (b >= 0.5).sum(0), len(b))


@takes_side_selection
def contrast(
    source: TraceSource,
    size: Size | float | str = 0.001,
    *,
    by: str,
    between: Sequence[str] | None = None,
    pair: str | None = None,
    level: Level = "component",
    core: float = 0.5,
    draws: int = 1000,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
    **selection: Unpack[SideSelection],
) -> Contrast:
    """Compare the traces of two groups of inputs, of two models, or of two settings, at one size.

    by: one label or column with two values here, such as `group`, `model` or `settings`; between:
    the two to take, the first is A, where there are more (models by id or name) [default: in
    order]. pair: a label whose value joins inputs of A with those of B. Without it inputs that are
    on both sides are their own partners, always so with `model` and `settings`; otherwise the
    sides are independent. Inputs without a partner are left out, with a warning. Several models
    are compared one by one (unless `by` is the model). Two tables:

    rows     one block per model, each row beginning with model (with by="model" A's), a, b (the
             values), what the row is about, matched, n_inputs_a, n_inputs_b, n_pairs (<NA> for
             independent sides), then

             level="component": component, kind, layer, head; presence_a, presence_b, difference,
             difference_low, difference_high, p, q, where (`both`, `only-A`, `only-B`: the sides
             whose presence is at least `core`, else `neither`), share_a, share_b (mean share of a
             trace's edges), share_difference, share_difference_low, share_difference_high.
             Components that no trace uses are left out; the largest difference comes first.
             Models of other shapes: part, kind, depth_from, depth_to (share of the depth) in place
             of the component, and present means any component of the part

             level="layer": layer, kind (`all` and each one); the share columns, p, q. Models of
             other shapes: part, kind, depth_from, depth_to

             level="token": token, special, in_text_a, in_text_b (share of inputs whose text has
             it); the share columns, p, q. The edges are counted by the text of their source
    summary  one row per block: model, a, b, compared (the level), matched, test (`mcnemar`,
             `fisher`, `sign`, `rank-sum`), n_inputs_a, n_inputs_b, n_pairs, unpaired_a,
             unpaired_b (inputs left out), n_traces_a, n_traces_b, trace_edges_a, trace_edges_b
             (mean number of edges),
             settings_a, settings_b, n_rows, n_found (rows with q < 0.05), n_both, n_only_a,
             n_only_b (rows by `where`, <NA> without)

    Intervals are 95 % percentile bootstraps (`draws`, `seed`), NaN with fewer than two pairs or
    inputs. workers, progress: see `passes.measured`. Warns ContrastWarning, ShortTraceWarning;
    raises OptionError, SizeError.
    """
    if level not in get_args(Level):
        raise OptionError(f"level {level!r} is none of {', '.join(get_args(Level))}")
    if not 0 < core <= 1:
        raise OptionError(f"core {core} is no share of inputs; take one in (0, 1], such as 0.5")
    size = parse_size(size)
    sides = read_sides(source, by, between, pair, selection)
    traces = sides.traces
    if size.rule == "tv":
        check_curves(traces)
    special = selection.get("exclude_special", False)
    streams = (0, 1) if natural(sides.values[0]) <= natural(sides.values[1]) else (1, 0)
    reading = (source, traces, size, special, workers, progress)
    draw_of = partial(_Draw, draws=draws, seed=seed, streams=streams)
    if level == "token":
        found = _by_tokens(sides, token_shares(*reading), draw_of)
    else:
        found = _by_counts(sides, counts_at_size(*reading), draw_of, level, core)
    tables, summaries = [], []
    for block, (frame, matched, edges) in zip(sides.blocks, found, strict=True):
        tables.append(_headed(block, frame, matched))
        summaries.append(_summary(block, level, matched, edges))
    rows = pd.concat(tables, ignore_index=True)
    rows["q"] = false_discovery_q(rows["p"].to_numpy())
    return Contrast(rows, _counted(pd.DataFrame(summaries), rows, sides))


def _headed(block: Block, found: pd.DataFrame, matched: str) -> pd.DataFrame:
    """The rows with what every row says of its block."""
    n = len(found)
    head = pd.DataFrame(
        {
            "model": [block.model] * n,
            "a": [block.a.value] * n,
            "b": [block.b.value] * n,
        }
    )
    counts = pd.DataFrame(
        {
            "matched": [matched] * n,
            "n_inputs_a": np.full(n, block.a.n_inputs),
            "n_inputs_b": np.full(n, block.b.n_inputs),
            "n_pairs": pd.array([block.n_pairs] * n, dtype="Int64"),
        }
    )
    found = found.reset_index(drop=True)
    names = list(found.columns)
    about = names[: next(i for i, name in enumerate(names) if name.endswith("_a"))]
    return pd.concat([head, found[about], counts, found.drop(columns=about)], axis=1)


def _summary(block: Block, level: str, matched: str, edges: list[Any]) -> dict[str, Any]:
    tests = {
        ("component", True): "mcnemar",
        ("component", False): "fisher",
    }
    return {
        "model": block.model,
        "a": block.a.value,
        "b": block.b.value,
        "compared": level,
        "matched": matched,
        "test": tests.get((level, block.paired), "sign" if block.paired else "rank-sum"),
        "n_inputs_a": block.a.n_inputs,
        "n_inputs_b": block.b.n_inputs,
        "n_pairs": block.n_pairs,
        "unpaired_a": block.a.n_alone,
        "unpaired_b": block.b.n_alone,
        "n_traces_a": len(block.a.traces),
        "n_traces_b": len(block.b.traces),
        "trace_edges_a": float(np.mean(edges[0])),
        "trace_edges_b": float(np.mean(edges[1])),
        "settings_a": block.a.traces["settings"].iloc[0],
        "settings_b": block.b.traces["settings"].iloc[0],
    }


def _counted(summary: pd.DataFrame, rows: pd.DataFrame, sides: Sides) -> pd.DataFrame:
    """The summary with how many rows there are of each sort."""
    owns = [rows.loc[rows["model"] == block.model] for block in sides.blocks]
    counts: dict[str, Any] = {
        "n_rows": [len(own) for own in owns],
        "n_found": [int((own["q"] < 0.05).sum()) for own in owns],
    }
    for name, where in (("n_both", "both"), ("n_only_a", "only-A"), ("n_only_b", "only-B")):
        there = "where" in rows.columns
        n = [int((own["where"] == where).sum()) if there else None for own in owns]
        counts[name] = pd.array(n, dtype="Int64")
    return summary.astype({"n_pairs": "Int64"}).assign(**counts)


Found = tuple[pd.DataFrame, str, list[np.ndarray]]
"""Of one block: its rows, what was matched, and every trace's number of edges on each side."""


def _by_counts(
    sides: Sides, counted: Counts, draw_of: Callable[..., _Draw], level: str, core: float
) -> Iterator[Found]:
    start = 0
    for block in sides.blocks:
        counts, shapes = [], []
        for side in (block.a, block.b):
            end = start + len(side.traces)
            counts.append(np.stack(counted.counts[start:end]))
            shapes.append(counted.shapes[side.traces["model"].iloc[0]])
            start = end
        draw = draw_of(block.paired)
        both = (shapes[0], shapes[1])
        frame = _count_rows(block, (counts[0], counts[1]), both, level, draw, core)
        matched = level if shapes[0] == shapes[1] else "depth"
        yield frame, matched, [own.sum(1) for own in counts]


def _by_tokens(
    sides: Sides, shares: list[TokenShare], draw_of: Callable[..., _Draw]
) -> Iterator[Found]:
    start = 0
    for block in sides.blocks:
        middle = start + len(block.a.traces)
        end = middle + len(block.b.traces)
        a, b = shares[start:middle], shares[middle:end]
        edges = [np.array([own.n_edges for own in own_side]) for own_side in (a, b)]
        yield _token_rows(block, a, b, draw_of(block.paired)), "token", edges
        start = end


def _count_rows(
    block: Block,
    both: tuple[np.ndarray, np.ndarray],
    shapes: tuple[Shape, Shape],
    level: str,
    draw: _Draw,
    core: float,
) -> pd.DataFrame:
    """Rows of components, layers or parts of the depth. both: each side's counts, int64 [traces,
    components]."""
    if shapes[0] == shapes[1] and level == "component":
        frame, members = component_columns(*shapes[0]), None
    else:
        frame, members = _groups(shapes, level)
    presence, share = [], []
    for place, (side, counts) in enumerate(zip((block.a, block.b), both, strict=True)):
        total = np.maximum(counts.sum(1), 1)[:, None]
        own = counts if members is None else counts @ members[place]
        presence.append(side.means(own > 0))
        share.append(side.means(own / total))
    shares = draw.compare(*share).columns("share", "share_difference")
    if level == "layer":
        return frame.assign(**shares, p=draw.p(*share), q=np.nan)
    present = draw.compare(*presence)
    frame = frame.assign(
        **present.columns("presence", "difference"),
        p=draw.p_presence(*presence),
        q=np.nan,
        where=_where(present.a >= core, present.b >= core),
        **shares,
    )
    used = frame.loc[(present.a > 0) | (present.b > 0)]
    order = np.lexsort((-used["share_difference"].abs(), -used["difference"].abs()))
    return used.iloc[order]


def _where(in_a: np.ndarray, in_b: np.ndarray) -> np.ndarray:
    return np.select([in_a & in_b, in_a, in_b], ["both", "only-A", "only-B"], "neither")


def _groups(
    shapes: tuple[Shape, Shape], level: str
) -> tuple[pd.DataFrame, tuple[np.ndarray, np.ndarray]]:
    """(columns that name the groups, for each side which components are theirs): layers of one
    shape, else parts of the depth."""
    alike = shapes[0] == shapes[1]
    layers = [shape.n_layers for shape in shapes]
    n = layers[0] if alike else min(DEPTHS, *layers)
    kinds = KINDS if level == "layer" else schema.KINDS
    keys = [(part, kind) for part in range(n) for kind in kinds]
    first, second = (component_groups(shape, keys, n) for shape in shapes)
    if alike:
        names: dict[str, Any] = {"layer": [part for part, _ in keys]}
    else:
        names = {"part": [f"depth {part + 1}/{n}" for part, _ in keys]}
    names["kind"] = [kind for _, kind in keys]
    if not alike:
        names["depth_from"] = [part / n for part, _ in keys]
        names["depth_to"] = [(part + 1) / n for part, _ in keys]
    return pd.DataFrame(names), (first, second)


def _token_rows(
    block: Block, a: list[TokenShare], b: list[TokenShare], draw: _Draw
) -> pd.DataFrame:
    """Rows of the source tokens that an edge of either side leaves."""
    parts = []
    for frame, own_a, own_b in token_blocks(a, b):
        share = (block.a.means(own_a.share), block.b.means(own_b.share))
        parts.append(
            frame.assign(
                in_text_a=block.a.means(own_a.in_text).mean(0),
                in_text_b=block.b.means(own_b.in_text).mean(0),
                **draw.compare(*share).columns("share", "share_difference"),
                p=draw.p(*share),
                q=np.nan,
            )
        )
    found = pd.concat(parts, ignore_index=True)
    return found.iloc[np.argsort(-found["share_difference"].abs(), kind="stable")]
