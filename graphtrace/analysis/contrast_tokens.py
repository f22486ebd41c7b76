"""Which tokens the edges of traces come from: counts by source position, matched by text."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graphtrace.analysis.passes import Measure, measured
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph

AT_ONCE = 1024
"""Tokens whose dense [traces, tokens] tables are in memory at a time."""


class TokenShare(NamedTuple):
    """Of one trace: tokens and special (text, and whether it is a special token) of every position
    up to the traced one, counts (int64, edges that leave it), n_edges."""

    tokens: list[str]
    special: list[bool]
    counts: np.ndarray
    n_edges: int


class TokenTable(NamedTuple):
    """float64 [traces, tokens]: share of a trace's edges that leave a token, and whether its text
    has it."""

    share: np.ndarray
    in_text: np.ndarray


def _sources_of(subgraph: SubGraph) -> dict[str, np.ndarray]:
    return {"sources": np.bincount(subgraph.edges.source, minlength=subgraph.layout.n_tokens)}


SOURCE_MEASURE = Measure("edges by source position", 1, _sources_of)
"""Edges that leave each position, at any level (int64 [positions])."""


def token_shares(
    source: TraceSource,
    traces: pd.DataFrame,
    size: Size | float | str,
    exclude_special: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> list[TokenShare]:
    """One per row of `traces`. workers, progress: see `passes.measured`."""
    held = source.trace_tokens(traces["id"].tolist())
    rows = zip(held["tokens"], held["special"], strict=True)
    passed = measured(source, traces, size, SOURCE_MEASURE, exclude_special, workers, progress)
    found = []
    for (tokens, special), (_, values) in zip(rows, passed, strict=True):
        counts = values["sources"]
        n = len(counts)
        flags = [bool(x) for x in special[:n]]
        found.append(TokenShare(list(tokens[:n]), flags, counts, int(counts.sum())))
    return found


def token_blocks(
    a: Sequence[TokenShare], b: Sequence[TokenShare]
) -> Iterator[tuple[pd.DataFrame, TokenTable, TokenTable]]:
    """(columns token and special, A's table, B's table) for the tokens that an edge of any trace
    leaves, by text, `AT_ONCE` of them at a time. An ordinary token that reads as a special one is
    another token."""
    sides = [_long(a), _long(b)]
    both = pd.concat(sides)
    used = both.loc[both["counts"] > 0, ["token", "special"]].drop_duplicates()
    used = used.sort_values(["token", "special"], ignore_index=True)
    for start in range(0, max(len(used), 1), AT_ONCE):
        frame = used.iloc[start : start + AT_ONCE].reset_index(drop=True)
        yield frame, _dense(sides[0], frame, len(a)), _dense(sides[1], frame, len(b))


def _long(shares: Sequence[TokenShare]) -> pd.DataFrame:
    """One row per trace and different token: trace (its place), token, special, counts, share."""
    lengths = [len(own.tokens) for own in shares]
    frame = pd.DataFrame(
        {
            "trace": np.repeat(np.arange(len(shares)), lengths),
            "token": np.array([x for own in shares for x in own.tokens], dtype=object),
            "special": np.array([x for own in shares for x in own.special], dtype=bool),
            "counts": np.concatenate([own.counts for own in shares]),
        }
    )
    groups: Any = frame.groupby(["trace", "token", "special"], sort=False)["counts"]
    found = groups.sum().reset_index()
    total = np.maximum([own.n_edges for own in shares], 1)
    return found.assign(share=found["counts"] / total[found["trace"]])


def _dense(side: pd.DataFrame, frame: pd.DataFrame, n_traces: int) -> TokenTable:
    places = frame.assign(place=np.arange(len(frame)))
    own = side.merge(places, on=["token", "special"])
    tables = np.zeros((2, n_traces, len(frame)))
    at = (own["trace"].to_numpy(), own["place"].to_numpy())
    tables[0][at], tables[1][at] = own["share"], 1.0
    return TokenTable(*tables)
