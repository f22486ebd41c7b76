"""Reading an embedded store: traces, sub-graphs, queries."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.errors import (
    ArchiveError,
    SizeError,
    StoreDamagedError,
    StoreError,
    TraceNotFoundError,
)
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.schema import ATTENTION
from graphtrace.selection import resolve_trace
from graphtrace.sizes import Size, parse_size, warn_if_short
from graphtrace.stores.graph_tables import EDGE_LABELS, INDEX_BITS, MAX_STATES
from graphtrace.stores.ladybug import Engine
from graphtrace.subgraph import SubGraph

_TRACE = """
MATCH (t:Trace {id: $id})-[:OF_MODEL]->(m:Model)
WHERE t.status = 'complete'
RETURN t.number AS number, t.n_tokens AS n_tokens, t.n_edges AS n_edges, t.n_kept AS n_kept,
       t.archive AS archive, t.token_ids AS token_ids, t.tokens AS tokens, t.special AS special,
       m.id AS model, m.n_layers AS n_layers, m.n_heads AS n_heads, m.parallel AS parallel,
       m.windows AS windows
"""

_TRACES = """
MATCH (t:Trace)-[:OF_INPUT]->(i:Input), (t)-[:OF_MODEL]->(m:Model)
WHERE t.status = 'complete'
RETURN t.id AS id, t.name AS name, t.model AS model, m.name AS model_name, t.input AS input,
       i.text AS text, i.corpus AS corpus, t.n_tokens AS n_tokens, t.position AS position,
       t.target AS target, t.settings AS settings, t.scorer AS scorer, t.search AS search,
       t.dtype AS dtype, t.seed AS seed, t.n_nodes AS n_nodes, t.n_edges AS n_edges,
       t.n_kept AS n_kept, t.entropy AS entropy, t.loss AS loss, t.predicted AS predicted,
       t.density AS density, t.density_normalised AS density_normalised, i.meta AS meta,
       t.created AS created, t.mlp_active_share AS mlp_active_share,
       t.mass90_edges AS mass90_edges, t.score_gini AS score_gini, t.curve AS curve,
       t.curves AS curves, t.number AS number
ORDER BY number
"""

_LABELS = """
MATCH (i:Input)-[:LABELLED]->(l:Label)
RETURN i.id AS input, l.key AS key, l.value AS value ORDER BY input, key
"""

_CURVE = """
MATCH (t:Trace {id: $id})-[:AT]->(c:Checkpoint)
WHERE c.curve = 0
RETURN c.n_edges AS k, c.tv AS tv ORDER BY k
"""

# One statement per kind: a statement over all three at once takes twice as long.
_EDGES = {
    kind: f"""
MATCH (s:State)-[r:{label}]->(t:State)
WHERE s.id >= $low AND s.id < $high{{}}
RETURN s.id AS source, t.id AS target, {"r.head AS head, " if kind == ATTENTION else ""}
       r.score AS score, r.rank AS rank
"""
    for kind, label in enumerate(EDGE_LABELS)
}


class EngineReader:
    """Reads traces from an open database. folder: the store's, for messages."""

    kind = "embedded"

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine: Engine | None = engine
        self.folder = folder

    @property
    def engine(self) -> Engine:
        """The open database. Raises StoreError after `close`."""
        if self._engine is None:
            raise StoreError(f"the store {self.folder} is closed; open it again")
        return self._engine

    def traces(self) -> pd.DataFrame:
        """One row per complete trace in the order in which they came, columns
        `schema.TRACES_COLUMNS`."""
        return self._traces.copy()

    @cached_property
    def _traces(self) -> pd.DataFrame:
        # Kept while the store is open: nobody else can write, and `write` forgets it.
        frame = self.engine.frame(_TRACES)
        labels = {input_: {} for input_ in frame["input"]}
        for input_, key, value in self.engine.frame(_LABELS).itertuples(index=False):
            labels.setdefault(input_, {})[key] = value
        frame["labels"] = pd.Series([dict(labels[i]) for i in frame["input"]], dtype=object)
        frame["created"] = pd.to_datetime(frame["created"], utc=True, format="ISO8601").astype(
            "datetime64[ms, UTC]"
        )
        frame["seed"] = frame["seed"].astype("Int64")
        return frame.reindex(columns=list(schema.TRACES_COLUMNS))

    def resolve(self, name: str) -> str:
        """Id of the trace that TRACE means (id, prefix, input's name, `last`, `model:name`).
        Raises TraceNotFoundError."""
        return resolve_trace(self._traces, name)

    def subgraph(self, trace: str, size: Size | float | str = 1.0) -> SubGraph:
        """The trace of the given size.

        trace: an id, or whatever else TRACE may be. Where the size is more than the store keeps,
        the archive that the trace came from is asked. Raises TraceNotFoundError, SizeError.
        """
        size = parse_size(size)
        found = self.engine.arrow(_TRACE, {"id": trace})
        if found.num_rows == 0:
            trace = self.resolve(trace)
            found = self.engine.arrow(_TRACE, {"id": trace})
        row = {name: found[name][0] for name in found.column_names}
        n_edges, n_kept = row["n_edges"].as_py(), row["n_kept"].as_py()
        curve = (None, None)
        if size.rule == "tv":
            points = self.engine.frame(_CURVE, {"id": trace})
            curve = (points["k"], points["tv"]) if len(points) else curve
        k = size.edges(n_edges, *curve)
        if k > n_kept:
            return self._from_archive(trace, size, k, n_kept, n_edges)
        windows = row["windows"].as_py()
        layout = GraphLayout(
            row["n_tokens"].as_py(),
            row["n_layers"].as_py(),
            row["n_heads"].as_py(),
            row["parallel"].as_py(),
            None if windows is None else tuple(windows),
        )
        warn_if_short(k, layout.path_length)
        return SubGraph(
            trace=trace,
            model=row["model"].as_py(),
            layout=layout,
            token_ids=row["token_ids"].values.to_numpy(),
            tokens=row["tokens"].as_py(),
            special=row["special"].values.to_numpy(zero_copy_only=False),
            edges=self._edges(trace, row["number"].as_py(), layout.n_tokens, k, n_kept),
            rank=np.arange(k),
        )

    def _edges(self, trace: str, number: int, n_tokens: int, k: int, n_kept: int) -> EdgeColumns:
        low = number << INDEX_BITS
        ends = {"low": low, "high": low + MAX_STATES}
        # A filter costs as much again as reading the edges, so it is for small parts only.
        few = 4 * k < n_kept
        parts, kinds = [], []
        for kind, text in _EDGES.items():
            text = text.format(" AND r.rank < $k" if few else "")
            part = self.engine.arrow(text, ends | ({"k": k} if few else {}))
            parts.append({name: _numpy(part, name) for name in part.column_names})
            kinds.append(np.full(part.num_rows, kind, np.int8))
            if kind != ATTENTION:
                parts[-1]["head"] = np.full(part.num_rows, -1)
        rank = np.concatenate([part["rank"] for part in parts])
        at = np.full(max(n_kept, k), -1)
        inside = (rank >= 0) & (rank < len(at))
        at[rank[inside]] = np.flatnonzero(inside)
        at = at[:k]
        if (at < 0).any() or len(rank) != (k if few else n_kept):
            raise StoreDamagedError(
                f"the store {self.folder} has not the {n_kept:,} edges of trace {trace} that it "
                "should have; `graphtrace store rebuild` makes it anew from its archives"
            )
        columns = {
            name: np.concatenate([part[name] for part in parts])[at]
            for name in ("source", "target", "head", "score")
        }
        level, target = np.divmod(columns["target"] - low, n_tokens)
        return EdgeColumns(
            kind=np.concatenate(kinds)[at],
            level=level.astype(np.int16),
            head=columns["head"].astype(np.int16),
            source=((columns["source"] - low) % n_tokens).astype(np.int32),
            target=target.astype(np.int32),
            score=columns["score"].astype(np.float32, copy=False),
        )

    def _from_archive(self, trace: str, size: Size, k: int, n_kept: int, n_edges: int) -> SubGraph:
        from graphtrace.archive import open_archive

        place = self.engine.arrow("MATCH (t:Trace {id: $id}) RETURN t.archive", {"id": trace})
        archive = place[0][0].as_py()
        try:
            with open_archive(archive) as opened:
                return opened.subgraph(trace, size)
        except (ArchiveError, SizeError, TraceNotFoundError) as error:
            raise SizeError(
                f"size {size} of trace {trace} is {k:,} edges; the store keeps {n_kept:,} "
                f"({n_kept / n_edges:.3g} of all) and the archive {archive or 'is unknown'} does "
                f"not help ({error})"
            ) from error

    def query(self, name_or_cypher: str, /, **params: Any) -> pd.DataFrame:
        """A catalogue query by name, or Cypher that only reads; values of `$name` by keyword."""
        from graphtrace.catalogue import run

        return run(self, name_or_cypher, params)

    def cypher(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Run one statement as it is."""
        return self.engine.frame(text, params)


def _numpy(table, name: str) -> np.ndarray:
    return table[name].to_numpy()
