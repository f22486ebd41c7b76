"""Two traces side by side: which edges and components they share, by size.

Their tokens are aligned by text (`difflib.SequenceMatcher`, in order, each token with one other at
most). An edge of A and one of B are the same edge where kind, level and head are equal and both
ends are aligned with each other; the edges of tokens that are not aligned are a trace's own.
"""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import component_columns
from graphtrace.analysis.reading import read_subgraph
from graphtrace.errors import OptionError
from graphtrace.layout import GraphLayout
from graphtrace.schema import ATTENTION, KINDS
from graphtrace.selection import TraceSource, resolve_trace
from graphtrace.sizes import SIZE_GRID, Size, parse_size
from graphtrace.subgraph import SubGraph

_NEVER = np.iinfo(np.int64).max


class Comparison(NamedTuple):
    """What `compare` returns, see there."""

    sizes: pd.DataFrame
    edges: pd.DataFrame
    components: pd.DataFrame
    tokens: pd.DataFrame
    traces: tuple[str, str]


def compare(
    source: TraceSource,
    trace_a: str,
    trace_b: str,
    sizes: Sequence[Size | float | str] | None = None,
) -> Comparison:
    """Compare two traces of a source, of one model or of two of the same shape.

    trace_a, trace_b: ids, unique prefixes, names of inputs, `last` or `model:name`. sizes: by
    default those of the paper's grid, and 1, at which both have an edge and the source keeps all of
    them. Ranks and scores are each trace's own. Four tables, and the two ids as `traces`:

    sizes       one row per size: size (as asked for), n_a, n_b (edges), shared, only_a, only_b,
                jaccard (shared / all different edges; NaN where neither trace has one),
                unaligned_a, unaligned_b (edges that touch a token without a partner: part of only_a
                and only_b), components_a, components_b, shared_components, component_jaccard
    edges       one row per different edge at the largest size: where (`both`, `only-A`, `only-B`),
                kind, layer, head (<NA> unless attention), component, target_level, then
                source_position_a, source_token_a, target_position_a, target_token_a and the same
                of B (<NA> and None where that trace's text has no such token), rank_a, rank_b,
                score_a, score_b (<NA> and NaN where that trace has not the edge); the shared ones
                first, by the better of their ranks
    components  one row per component that either uses at the largest size: component, kind, layer,
                head, where, n_edges_a, n_edges_b, shared (edges), best_rank_a, best_rank_b (<NA>
                where unused); by the better rank
    tokens      one row per token of either text, in order: position_a, token_a, position_b,
                token_b; <NA> and None where it has no partner

    Raises TraceNotFoundError, SizeError, and OptionError where the models differ in shape or no
    size of the grid is held by both.
    """
    traces = source.traces()
    ids = (resolve_trace(traces, trace_a), resolve_trace(traces, trace_b))
    found = traces.set_index("id").loc[list(ids)]
    asked, k = _kept(source, ids, found, sizes)
    largest = k.max(0)
    a, b = (
        read_subgraph(source, trace, parse_size(f"k:{n}")) if n else _none_of(source, trace)
        for trace, n in zip(ids, largest.tolist(), strict=True)
    )
    _check_shapes(a.layout, b.layout)
    to_b = align(a.tokens[: a.layout.n_tokens], b.tokens[: b.layout.n_tokens])
    places = _match(a, b, to_b)
    at = int(np.argmax(k.sum(1)))
    return Comparison(
        _size_rows(asked, k, a, b, to_b, places),
        _edge_rows(a.top(k[at, 0]), b.top(k[at, 1]), to_b),
        _component_rows(a.top(k[at, 0]), b.top(k[at, 1]), to_b),
        _token_rows(a, b, to_b),
        ids,
    )


def align(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """int64 [len(a)]: for every token of a the position of its partner in b, -1 without one.

    Partners are equal texts, and keep their order.
    """
    found = np.full(len(a), -1, np.int64)
    matcher = difflib.SequenceMatcher(None, list(a), list(b), autojunk=False)
    for block in matcher.get_matching_blocks():
        found[block.a : block.a + block.size] = np.arange(block.b, block.b + block.size)
    return found


def _kept(
    source: TraceSource,
    ids: tuple[str, str],
    traces: pd.DataFrame,
    sizes: Sequence[Size | float | str] | None,
) -> tuple[list[Size], np.ndarray]:
    """(sizes, int64 [sizes, 2]: how many edges both traces keep at each)."""
    n_edges = [int(x) for x in traces["n_edges"]]
    n_kept = [int(x) for x in traces["n_kept"]]
    if sizes is not None:
        asked = [parse_size(size) for size in sizes]
        if not asked:
            raise OptionError("no size to compare at; give one, such as 0.001")
        rows = [
            [
                len(read_subgraph(source, trace, size)) if size.rule == "tv" else size.edges(n)
                for trace, n in zip(ids, n_edges, strict=True)
            ]
            for size in asked
        ]
        return asked, np.array(rows, np.int64)
    grid = [parse_size(size) for size in (*SIZE_GRID, 1.0)]
    k = np.array([[size.edges(n) for n in n_edges] for size in grid], np.int64)
    held = np.all((k >= 1) & (k <= np.array(n_kept)), axis=1)
    if not held.any():
        raise OptionError(
            f"at no size of the grid have both traces an edge and all of them kept ({n_kept[0]:,} "
            f"of {n_edges[0]:,} and {n_kept[1]:,} of {n_edges[1]:,} edges are kept); give the "
            "size, such as k:500"
        )
    return [grid[i] for i in np.flatnonzero(held)], k[held]


def _none_of(source: TraceSource, trace: str) -> SubGraph:
    return read_subgraph(source, trace, parse_size("k:1")).top(0)


def _check_shapes(a: GraphLayout, b: GraphLayout) -> None:
    shapes = [(x.n_layers, x.n_heads, x.parallel) for x in (a, b)]
    if shapes[0] != shapes[1]:
        told = [
            f"{n} layers of {h} heads{', parallel blocks' if parallel else ''}"
            for n, h, parallel in shapes
        ]
        raise OptionError(
            f"the models of the two traces differ in shape ({told[0]}; {told[1]}), so no edge of "
            "one is an edge of the other; `analyze contrast --by model` compares parts of the depth"
        )


def _keys(subgraph: SubGraph, place: np.ndarray, n_tokens: int) -> np.ndarray:
    """int64 [edges]: one number per edge of B's graph; -1 where an end is unaligned. place: of
    every position in B's text; n_tokens: of B."""
    edges = subgraph.edges
    source, target = place[edges.source], place[edges.target]
    n_heads = subgraph.layout.n_heads
    which = np.where(edges.kind == ATTENTION, edges.head.astype(np.int64) + 2, edges.kind)
    key = edges.level.astype(np.int64) * (n_heads + 2) + which
    key = (key * n_tokens + source) * n_tokens + target
    return np.where((source >= 0) & (target >= 0), key, -1)


class _Match(NamedTuple):
    """Edges of A and of B that are the same edge: places in the two sub-graphs, of A ascending;
    and whether each edge of A and of B touches an unaligned token."""

    a: np.ndarray
    b: np.ndarray
    alone_a: np.ndarray
    alone_b: np.ndarray


def _match(a: SubGraph, b: SubGraph, to_b: np.ndarray) -> _Match:
    n = b.layout.n_tokens
    own = np.where(np.isin(np.arange(n), to_b), np.arange(n), -1)
    keys = (_keys(a, to_b, n), _keys(b, own, n))
    alone = [x < 0 for x in keys]
    aligned = [np.flatnonzero(~x) for x in alone]
    _, at_a, at_b = np.intersect1d(
        keys[0][aligned[0]], keys[1][aligned[1]], assume_unique=True, return_indices=True
    )
    order = np.argsort(at_a)
    return _Match(aligned[0][at_a[order]], aligned[1][at_b[order]], *alone)


def _size_rows(
    asked: list[Size],
    k: np.ndarray,
    a: SubGraph,
    b: SubGraph,
    to_b: np.ndarray,
    match: _Match,
) -> pd.DataFrame:
    best = [_best_ranks(x) for x in (a, b)]
    rank_a, rank_b = a.rank[match.a], b.rank[match.b]
    rows = []
    for size, (k_a, k_b) in zip(asked, k.tolist(), strict=True):
        shared = int(((rank_a < k_a) & (rank_b < k_b)).sum())
        used_a, used_b = best[0] < k_a, best[1] < k_b
        both = int((used_a & used_b).sum())
        rows.append(
            {
                "size": str(size),
                "n_a": k_a,
                "n_b": k_b,
                "shared": shared,
                "only_a": k_a - shared,
                "only_b": k_b - shared,
                "jaccard": _ratio(shared, k_a + k_b - shared),
                "unaligned_a": int(match.alone_a[: np.searchsorted(a.rank, k_a)].sum()),
                "unaligned_b": int(match.alone_b[: np.searchsorted(b.rank, k_b)].sum()),
                "components_a": int(used_a.sum()),
                "components_b": int(used_b.sum()),
                "shared_components": both,
                "component_jaccard": _ratio(both, int((used_a | used_b).sum())),
            }
        )
    return pd.DataFrame(rows)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _best_ranks(subgraph: SubGraph) -> np.ndarray:
    """int64 [components]: the rank of every component's first edge, `_NEVER` without one."""
    layout = subgraph.layout
    n = len(component_columns(layout.n_layers, layout.n_heads, layout.parallel))
    best = np.full(n, _NEVER)
    np.minimum.at(best, subgraph.component_index, subgraph.rank)
    return best


def _integers(values: np.ndarray, there: np.ndarray) -> Any:
    found = pd.array(np.where(there, values, 0), dtype="Int64")
    found[~there] = pd.NA
    return found


def _edge_rows(a: SubGraph, b: SubGraph, to_b: np.ndarray) -> pd.DataFrame:
    """Rows of `Comparison.edges`."""
    match = _match(a, b, to_b)
    to_a = np.full(b.layout.n_tokens, -1, np.int64)
    to_a[to_b[to_b >= 0]] = np.flatnonzero(to_b >= 0)
    rest_a = np.setdiff1d(np.arange(len(a)), match.a)
    rest_b = np.setdiff1d(np.arange(len(b)), match.b)
    n_both, n_a, n_b = len(match.a), len(rest_a), len(rest_b)
    in_a, in_b = np.ones(n_both + n_a + n_b, bool), np.ones(n_both + n_a + n_b, bool)
    in_a[n_both + n_a :] = False
    in_b[n_both : n_both + n_a] = False
    own_a = a.edges.take(np.concatenate([match.a, rest_a]))
    own_b = b.edges.take(rest_b)
    kind, level, head = (
        np.concatenate([x, y]).astype(np.int64) for x, y in zip(own_a[:3], own_b[:3], strict=True)
    )
    names = np.concatenate(
        [a.component_names[np.concatenate([match.a, rest_a])], b.component_names[rest_b]]
    )
    columns: dict[str, Any] = {
        "where": np.repeat(np.array(["both", "only-A", "only-B"], object), [n_both, n_a, n_b]),
        "kind": np.array(KINDS, dtype=object)[kind],
        "layer": a.layout.layers_of(level),
        "head": _integers(head, kind == ATTENTION),
        "component": names,
        "target_level": level,
    }
    for name, ends_a, ends_b in (
        ("source", own_a.source, own_b.source),
        ("target", own_a.target, own_b.target),
    ):
        place_a = np.concatenate([ends_a, to_a[ends_b]]).astype(np.int64)
        place_b = np.concatenate([to_b[ends_a], ends_b]).astype(np.int64)
        for side, place, tokens in (("a", place_a, a.tokens), ("b", place_b, b.tokens)):
            columns[f"{name}_position_{side}"] = _integers(place, place >= 0)
            columns[f"{name}_token_{side}"] = _texts(tokens, place)
    rank_a, rank_b = np.full(len(in_a), _NEVER), np.full(len(in_a), _NEVER)
    score_a, score_b = np.full(len(in_a), np.nan), np.full(len(in_a), np.nan)
    at_a, at_b = np.concatenate([match.a, rest_a]), np.concatenate([match.b, rest_b])
    rank_a[in_a], rank_b[in_b] = a.rank[at_a], b.rank[at_b]
    score_a[in_a], score_b[in_b] = _scores(a)[at_a], _scores(b)[at_b]
    columns |= {
        "rank_a": _integers(rank_a, in_a),
        "rank_b": _integers(rank_b, in_b),
        "score_a": score_a,
        "score_b": score_b,
    }
    place = np.repeat([0, 1, 2], [n_both, n_a, n_b])
    order = np.lexsort((rank_a, np.minimum(rank_a, rank_b), place))
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)


def _scores(subgraph: SubGraph) -> np.ndarray:
    score = subgraph.edges.score
    return np.full(len(subgraph), np.nan) if score is None else score.astype(np.float64)


def _texts(tokens: list[str], places: np.ndarray) -> pd.Series:
    """Tokens at places, None for -1."""
    found = np.array([*tokens, None], dtype=object)[np.where(places < 0, len(tokens), places)]
    return pd.Series(found, dtype=object)


def _component_rows(a: SubGraph, b: SubGraph, to_b: np.ndarray) -> pd.DataFrame:
    """Rows of `Comparison.components`."""
    layout = a.layout
    frame = component_columns(layout.n_layers, layout.n_heads, layout.parallel)
    n = len(frame)
    match = _match(a, b, to_b)
    best_a, best_b = _best_ranks(a), _best_ranks(b)
    in_a, in_b = best_a < _NEVER, best_b < _NEVER
    frame = frame.assign(
        where=np.select([in_a & in_b, in_a], ["both", "only-A"], "only-B"),
        n_edges_a=np.bincount(a.component_index, minlength=n),
        n_edges_b=np.bincount(b.component_index, minlength=n),
        shared=np.bincount(a.component_index[match.a], minlength=n),
        best_rank_a=_integers(best_a, in_a),
        best_rank_b=_integers(best_b, in_b),
    )
    order = np.argsort(np.minimum(best_a, best_b), kind="stable")
    return frame.iloc[order[(in_a | in_b)[order]]].reset_index(drop=True)


def _token_rows(a: SubGraph, b: SubGraph, to_b: np.ndarray) -> pd.DataFrame:
    """Rows of `Comparison.tokens`: own tokens of A stand before those of B at the same place."""
    rows: list[tuple[int, int]] = []
    next_b, n_b = 0, b.layout.n_tokens
    for position, partner in enumerate(to_b.tolist()):
        if partner >= 0:
            rows += [(-1, x) for x in range(next_b, partner)]
            next_b = partner + 1
        rows.append((position, partner))
    rows += [(-1, x) for x in range(next_b, n_b)]
    at = np.array(rows, np.int64).reshape(-1, 2)
    columns: dict[str, Any] = {}
    for i, (side, tokens) in enumerate((("a", a.tokens), ("b", b.tokens))):
        columns[f"position_{side}"] = _integers(at[:, i], at[:, i] >= 0)
        columns[f"token_{side}"] = _texts(tokens, at[:, i])
    return pd.DataFrame(columns)
