"""What reading a store's traces means on every store: the statements both engines run, and what
becomes of their rows. A store adds how a statement is run and how edges are fetched."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.curve import KIND_FIELDS, POINT_COLUMNS, POINT_MEASURES, curve_kind
from graphtrace.errors import ArchiveError, SizeError, StoreDamagedError, TraceNotFoundError
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.schema import ATTENTION
from graphtrace.selection import resolve_trace
from graphtrace.sizes import Size, parse_size, warn_if_short
from graphtrace.subgraph import SubGraph

TRACE_ROWS = """
MATCH (t:Trace)-[:OF_MODEL]->(m:Model)
WHERE t.id IN $ids AND t.status = 'complete'
RETURN t.id AS id, t.number AS number, t.n_tokens AS n_tokens, t.n_edges AS n_edges,
       t.n_kept AS n_kept,
       t.archive AS archive, t.token_ids AS token_ids, t.tokens AS tokens, t.special AS special,
       m.id AS model, m.n_layers AS n_layers, m.n_heads AS n_heads, m.parallel AS parallel,
       m.windows AS windows
"""

_TRACES = """
MATCH (t:Trace)-[:OF_INPUT]->(i:Input), (t)-[:OF_MODEL]->(m:Model)
WHERE t.status = 'complete'
RETURN t.id AS id, t.name AS name, t.model AS model, m.name AS model_name, t.input AS input,
       i.text AS text, i.corpus AS corpus, t.n_tokens AS n_tokens, t.position AS position,
       t.target AS target, t.foil AS foil, t.settings AS settings, t.scorer AS scorer,
       t.search AS search, t.dtype AS dtype, t.seed AS seed, t.position_rule AS position_rule,
       t.target_rule AS target_rule, t.method AS method, t.n_nodes AS n_nodes, t.n_edges AS n_edges,
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

_USES = """
MATCH (t:Trace)-[u:USES]->(c:Component)
WHERE t.id IN $traces AND t.status = 'complete'
RETURN t.id AS trace, c.name AS component, u.n AS n_edges, u.best_rank AS best_rank,
       u.score AS score
ORDER BY trace, best_rank
"""

_CURVE = """
MATCH (t:Trace {id: $id})-[:AT]->(c:Checkpoint)
WHERE c.curve = 0
RETURN c.n_edges AS k, c.tv AS tv ORDER BY k
"""


_POINTS = """
MATCH (t:Trace)-[:AT]->(c:Checkpoint)
WHERE t.status = 'complete' {}
RETURN t.id AS trace, c.curve AS curve, c.mode AS mode, c.ablation AS ablation, c.ablate AS ablate,
       c.reference AS reference, c.eval_dtype AS eval_dtype, c.grid AS grid, c.size AS size,
       c.n_edges AS n_edges, c.tv AS tv, c.kl AS kl, c.top1 AS top1, c.nucleus AS nucleus,
       c.p_predicted AS p_predicted, c.p_target AS p_target, c.logit_diff AS logit_diff
"""

_TOKENS = """
MATCH (t:Trace)
WHERE t.status = 'complete' {}
RETURN t.id AS trace, t.token_ids AS token_ids, t.tokens AS tokens, t.special AS special,
       t.predicted_id AS predicted_id
"""

_COUNTS = """
MATCH (t:Trace)-[:AT]->(c:Checkpoint)
WHERE t.status = 'complete' AND c.component_counts IS NOT NULL {}
RETURN t.id AS trace, c.n_edges AS n_edges, c.component_counts AS counts, c.grid AS grid
"""

_UNCOUNTED = """
MATCH (t:Trace)-[:AT]->(c:Checkpoint)
WHERE c.curve = 0 AND c.component_counts IS NULL
RETURN DISTINCT t.id AS trace
"""

_FEW = 100


def layout_of(row: Mapping[str, Any]) -> GraphLayout:
    """The whole graph's shape, from a row of `TRACE_ROWS`."""
    windows = row["windows"]
    return GraphLayout(
        int(row["n_tokens"]),
        int(row["n_layers"]),
        int(row["n_heads"]),
        bool(row["parallel"]),
        None if windows is None else tuple(window or None for window in windows),
    )


class TraceReader(ABC):
    """Reads traces by Cypher. A store gives the abstract ones."""

    @property
    @abstractmethod
    def url(self) -> str:
        """How `open_store` finds the store."""

    @abstractmethod
    def cypher(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Run one statement as it is."""

    @abstractmethod
    def _edge_parts(
        self, number: int, n_states: int, n_kept: int, k: int | None
    ) -> list[tuple[int, dict[str, np.ndarray]]]:
        """(kind, columns source, target, score, rank, with ATTENTION also head) of the edges of the
        trace of that number, in any order and any number of parts; source and target count from
        the trace's first state. k: only those with rank < k."""

    def traces(self) -> pd.DataFrame:
        """One row per complete trace in the order in which they came, columns
        `schema.TRACES_COLUMNS`."""
        frame = self.cypher(_TRACES)
        labels = {input_: {} for input_ in frame["input"]}
        for input_, key, value in self.cypher(_LABELS).itertuples(index=False):
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
        return resolve_trace(self.traces(), name)

    def component_uses(self, traces: list[str]) -> pd.DataFrame:
        """One row per trace (of these ids) and component that it uses, best rank first: trace,
        component, n_edges, best_rank, score (sum), over all edges that the store keeps."""
        return self.cypher(_USES, {"traces": traces})

    def curve_points(self, traces: Collection[str]) -> pd.DataFrame:
        """See `selection.TraceSource`."""
        frame = self._of_traces(_POINTS, traces, ["curve", "n_edges", "grid"])
        kinds = frame[list(KIND_FIELDS)].astype(object)
        kinds = kinds.where(kinds.notna(), None)
        found = [curve_kind(*row) for row in kinds.itertuples(index=False)]
        frame = frame.assign(kind=pd.Series(found, dtype=object, index=frame.index))
        frame = frame.astype({name: np.float64 for name in POINT_MEASURES if name != "top1"})
        types = {"curve": np.int64, "n_edges": np.int64, "nucleus": np.int64, "top1": bool}
        return frame.reindex(columns=list(POINT_COLUMNS)).astype(types)

    def trace_tokens(self, traces: Collection[str]) -> pd.DataFrame:
        """See `selection.TraceSource`."""
        return self._of_traces(_TOKENS, traces, []).astype({"predicted_id": np.int64})

    def component_counts(self, traces: Collection[str]) -> pd.DataFrame:
        """See `selection.TraceSource`."""
        if not self.has_counts:
            empty = pd.DataFrame({"trace": [], "n_edges": [], "counts": []}, dtype=object)
            return empty.astype({"n_edges": np.int64})
        frame = self._of_traces(_COUNTS, traces, ["n_edges", "grid"], self._read_counts)
        frame = frame.drop(columns="grid")
        counts = [np.asarray(x, np.int64) for x in frame["counts"]]
        found = pd.Series(counts, dtype=object, index=frame.index)
        return frame.assign(counts=found).astype({"n_edges": np.int64})

    def uncounted(self) -> set[str]:
        """Ids of traces of which the store does not say how many edges each component has: those
        that an earlier version wrote."""
        return set(self.cypher(_UNCOUNTED)["trace"])

    def _read_counts(self, text: str, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """As `cypher`, for rows with a long list `counts`."""
        return self.cypher(text, params)

    def _of_traces(
        self, text: str, traces: Collection[str], by: list[str], read: Callable | None = None
    ) -> pd.DataFrame:
        """Rows of a statement for these traces, in their order and then `by`. A list of thousands
        is slower to look up than all rows are to read. read: what runs it in place of `cypher`."""
        place = {trace: i for i, trace in enumerate(traces)}
        few = len(place) <= _FEW
        frame = (read or self.cypher)(
            text.format("AND t.id IN $traces" if few else ""),
            {"traces": list(place)} if few else None,
        )
        places = [place.get(trace, -1) for trace in frame["trace"]]
        frame = frame.assign(place=places).query("place >= 0")
        frame = frame.sort_values(["place", *by], kind="stable", ignore_index=True)
        return frame.drop(columns="place")

    def subgraph(self, trace: str, size: Size | float | str = 1.0) -> SubGraph:
        """The trace of the given size.

        trace: an id, or whatever else TRACE may be. Where the size is more than the store keeps,
        the archive that the trace came from is asked. Raises TraceNotFoundError, SizeError.
        """
        size = parse_size(size)
        found = self.cypher(TRACE_ROWS, {"ids": [trace]})
        if len(found) == 0:
            trace = self.resolve(trace)
            found = self.cypher(TRACE_ROWS, {"ids": [trace]})
        row = found.to_dict("records")[0]
        n_edges, n_kept = int(row["n_edges"]), int(row["n_kept"])
        curve = (None, None)
        if size.rule == "tv":
            points = self.cypher(_CURVE, {"id": trace})
            curve = (points["k"], points["tv"]) if len(points) else curve
        k = size.edges(n_edges, *curve)
        if k > n_kept:
            return self._from_archive(trace, size, k, n_kept, n_edges)
        # A filter costs as much again as reading the edges, so it is for small parts only.
        limit = k if 4 * k < n_kept else None
        layout = layout_of(row)
        n_states = layout.n_levels * layout.n_tokens
        found = self._edge_parts(int(row["number"]), n_states, n_kept, limit)
        return self._made(row, layout, k, found, limit)

    def subgraphs(
        self, traces: Sequence[str], size: Size | float | str = 1.0
    ) -> Iterator[SubGraph]:
        """The traces (ids) of the given size, one after the other; as `subgraph`."""
        for trace in traces:
            yield self.subgraph(trace, size)

    def _made(
        self,
        row: Mapping[str, Any],
        layout: GraphLayout,
        k: int,
        found: list[tuple[int, dict[str, np.ndarray]]],
        limit: int | None,
    ) -> SubGraph:
        """The sub-graph of a row of `TRACE_ROWS`. found: its edges of rank < limit (None: all)."""
        warn_if_short(k, layout.path_length)
        return SubGraph(
            trace=row["id"],
            model=row["model"],
            layout=layout,
            token_ids=np.array(row["token_ids"], np.int32),
            tokens=list(row["tokens"]),
            special=np.array(row["special"], bool),
            edges=self._edges(row["id"], found, layout, k, int(row["n_kept"]), limit),
            rank=np.arange(k),
        )

    def _edges(
        self,
        trace: str,
        found: list[tuple[int, dict[str, np.ndarray]]],
        layout: GraphLayout,
        k: int,
        n_kept: int,
        limit: int | None,
    ) -> EdgeColumns:
        kinds = [np.full(len(part["rank"]), kind, np.int8) for kind, part in found]
        for kind, part in found:
            if kind != ATTENTION:
                part["head"] = np.full(len(part["rank"]), -1)
        rank = np.concatenate([part["rank"] for _, part in found])
        at = np.full(max(n_kept, k), -1)
        inside = (rank >= 0) & (rank < len(at))
        at[rank[inside]] = np.flatnonzero(inside)
        at = at[:k]
        if (at < 0).any() or len(rank) != (n_kept if limit is None else min(limit, n_kept)):
            raise StoreDamagedError(
                f"the store {self.url} has not the {n_kept:,} edges of trace {trace} that it "
                "should have; `graphtrace store rebuild` makes it anew from its archives"
            )
        columns = {
            name: np.concatenate([part[name] for _, part in found])[at]
            for name in ("source", "target", "head", "score")
        }
        level, target = np.divmod(columns["target"], layout.n_tokens)
        return EdgeColumns(
            kind=np.concatenate(kinds)[at],
            level=level.astype(np.int16),
            head=columns["head"].astype(np.int16),
            source=(columns["source"] % layout.n_tokens).astype(np.int32),
            target=target.astype(np.int32),
            score=columns["score"].astype(np.float32, copy=False),
        )

    def _from_archive(self, trace: str, size: Size, k: int, n_kept: int, n_edges: int) -> SubGraph:
        from graphtrace.archive import open_archive

        place = self.cypher("MATCH (t:Trace {id: $id}) RETURN t.archive AS archive", {"id": trace})
        archive = place["archive"].iloc[0]
        try:
            with open_archive(archive) as opened:
                return opened.subgraph(trace, size)
        except (ArchiveError, SizeError, TraceNotFoundError) as error:
            raise SizeError(
                f"size {size} of trace {trace} is {k:,} edges; the store keeps {n_kept:,} "
                f"({n_kept / n_edges:.3g} of all) and the archive {archive or 'is unknown'} does "
                f"not help ({error})"
            ) from error

    has_runs = True
    """Whether the store can hold saved runs."""

    has_counts = True
    """Whether it can hold how many edges each component has."""

    @abstractmethod
    def measured_columns(self, run: str) -> list[str]:
        """Properties of the MEASURED relationships of a saved run."""

    def loose_ends(self) -> list[str]:
        """What belongs to no complete trace, a line each."""
        return []

    def query(self, name_or_cypher: str, /, **params: Any) -> pd.DataFrame:
        """A catalogue query by name, or Cypher that only reads; values of `$name` by keyword."""
        from graphtrace.catalogue import run

        return run(self, name_or_cypher, params)
