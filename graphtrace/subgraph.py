"""One trace's kept edges in memory, and the forms people analyse: DataFrames, igraph, networkx.

`SubGraph` is what archive and stores hand to every analysis and export. Needs no torch.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.schema import ATTENTION, KINDS


@dataclass(frozen=True)
class SubGraph:
    """The first edges of one trace's ranking.

    edges: columns with scores, in rank order. rank: int64, ascending. tokens: decoded strings
    with their spaces, one per position; special: bool, marks BOS and template tokens. n_edges of
    the whole graph is `layout.n_edges`.
    """

    trace: str
    model: str
    layout: GraphLayout
    token_ids: np.ndarray
    tokens: list[str]
    special: np.ndarray
    edges: EdgeColumns
    rank: np.ndarray

    def __len__(self) -> int:
        return len(self.rank)

    def top(self, k: int) -> "SubGraph":
        """The sub-graph of the edges with rank < k."""
        keep = slice(0, int(np.searchsorted(self.rank, k)))
        return replace(self, edges=self.edges.take(keep), rank=self.rank[keep])

    def without_special(self) -> "SubGraph":
        """The sub-graph without the edges that touch a special token (BOS, template tokens); ranks
        stay what they are."""
        special = np.asarray(self.special, bool)
        if not special.any():
            return self
        keep = np.flatnonzero(~(special[self.edges.source] | special[self.edges.target]))
        return replace(self, edges=self.edges.take(keep), rank=self.rank[keep])

    @cached_property
    def source_node(self) -> np.ndarray:
        """int64 node id (level * n_tokens + position) of every edge's source."""
        return (self.edges.level.astype(np.int64) - 1) * self.layout.n_tokens + self.edges.source

    @cached_property
    def target_node(self) -> np.ndarray:
        """int64 node id of every edge's target."""
        return self.edges.level.astype(np.int64) * self.layout.n_tokens + self.edges.target

    @cached_property
    def node_ids(self) -> np.ndarray:
        """int64, ascending: the nodes that an edge touches, and the output."""
        return np.unique(np.concatenate([self.source_node, self.target_node, [self.layout.output]]))

    @cached_property
    def component_index(self) -> np.ndarray:
        """int64 [edges]: index into `schema.components(...)` of every edge's component."""
        return component_index(self.layout, self.edges)

    @cached_property
    def component_names(self) -> np.ndarray:
        """Component name of every edge (object array of str)."""
        return component_table(self.layout)[self.component_index]

    def edge_frame(self) -> pd.DataFrame:
        """One row per edge in rank order: kind, layer, head (<NA> unless attention), component,
        source_level, source_position, source_token, target_level, target_position, target_token,
        score, rank."""
        edges, tokens = self.edges, np.array(self.tokens, dtype=object)
        head = pd.array(edges.head, dtype="Int16")
        head[edges.kind != ATTENTION] = pd.NA
        return pd.DataFrame(
            {
                "kind": np.array(KINDS, dtype=object)[edges.kind],
                "layer": self.layout.layers_of(edges.level),
                "head": head,
                "component": self.component_names,
                "source_level": edges.level - 1,
                "source_position": edges.source,
                "source_token": tokens[edges.source],
                "target_level": edges.level,
                "target_position": edges.target,
                "target_token": tokens[edges.target],
                "score": edges.score,
                "rank": self.rank,
            }
        )

    def node_frame(self) -> pd.DataFrame:
        """One row per state by (level, position): name, level, layer (<NA> at the embedding), site,
        position, token_id, token, special, rank (of the first edge that touches it)."""
        nodes, layout = self.node_ids, self.layout
        level, position = np.divmod(nodes, layout.n_tokens)
        first = np.full(len(nodes), np.iinfo(np.int64).max)
        for ends in (self.source_node, self.target_node):
            np.minimum.at(first, np.searchsorted(nodes, ends), self.rank)
        untouched = first == np.iinfo(np.int64).max
        rank = pd.array(np.where(untouched, 0, first), dtype="Int64")
        rank[untouched] = pd.NA
        layer = pd.array(layout.layers_of(np.maximum(level, 1)), dtype="Int16")
        layer[level == 0] = pd.NA
        tokens = [self.tokens[p] for p in position]
        return pd.DataFrame(
            {
                "name": [
                    schema.state_name(token, p, g, layout.parallel)
                    for token, p, g in zip(tokens, position, level, strict=True)
                ],
                "level": level,
                "layer": layer,
                "site": [schema.site_of(g, layout.parallel) for g in level],
                "position": position,
                "token_id": self.token_ids[position],
                "token": tokens,
                "special": self.special[position],
                "rank": rank,
            }
        )

    def component_frame(self) -> pd.DataFrame:
        """One row per component in use, best rank first: component, kind, layer, head, n_edges,
        best_rank, score (sum over its edges)."""
        table = schema.components(self.layout.n_layers, self.layout.n_heads, self.layout.parallel)
        used, first, inverse = np.unique(
            self.component_index, return_index=True, return_inverse=True
        )
        frame = pd.DataFrame(
            {
                "component": [table[c][0] for c in used],
                "kind": [KINDS[table[c][1]] for c in used],
                "layer": self.layout.layers_of(np.array([table[c][2] for c in used], np.int64)),
                "head": pd.array([table[c][3] for c in used], dtype="Int16"),
                "n_edges": np.bincount(inverse, minlength=len(used)),
                "best_rank": self.rank[first],
                "score": np.bincount(inverse, self.edges.score, minlength=len(used)),
            }
        )
        frame.loc[frame["kind"] != "attention", "head"] = pd.NA
        return frame.sort_values("best_rank", ignore_index=True)

    def to_igraph(self):
        """A directed igraph.Graph: vertices by (level, position), edges in rank order with their
        kind, layer, head (-1 unless attention), component, score and rank."""
        import igraph

        nodes = self.node_frame()
        source, target = (
            np.searchsorted(self.node_ids, ends).tolist()
            for ends in (self.source_node, self.target_node)
        )
        edges = self.edges
        assert edges.score is not None
        vertices = {c: nodes[c].tolist() for c in ("name", "level", "site", "position", "token")}
        vertices["layer"] = [None if pd.isna(x) else int(x) for x in nodes["layer"]]
        vertices["special"] = nodes["special"].tolist()
        return igraph.Graph(
            n=len(nodes),
            edges=zip(source, target, strict=True),  # igraph takes twice as long over an array
            directed=True,
            graph_attrs={"trace": self.trace, "model": self.model},
            vertex_attrs=vertices,
            edge_attrs={
                "kind": np.array(KINDS, dtype=object)[edges.kind].tolist(),
                "layer": self.layout.layers_of(edges.level).tolist(),
                "head": edges.head.tolist(),
                "component": self.component_names.tolist(),
                "score": edges.score.tolist(),
                "rank": self.rank.tolist(),
            },
        )

    def to_networkx(self):
        """A networkx.MultiDiGraph with the same names and attributes as `to_igraph`; vertices are
        named `(level, position)`."""
        import networkx

        graph = networkx.MultiDiGraph(trace=self.trace, model=self.model)
        for row in self.node_frame().to_dict("records"):
            row["layer"] = None if pd.isna(row["layer"]) else int(row["layer"])
            graph.add_node((row["level"], row["position"]), **row)
        for row in self.edge_frame().to_dict("records"):
            graph.add_edge(
                (row.pop("source_level"), row.pop("source_position")),
                (row.pop("target_level"), row.pop("target_position")),
                kind=row["kind"],
                layer=row["layer"],
                head=-1 if pd.isna(row["head"]) else int(row["head"]),
                component=row["component"],
                score=row["score"],
                rank=row["rank"],
            )
        return graph


def component_table(layout: GraphLayout) -> np.ndarray:
    """Names of all components in canonical order (object array of str)."""
    found = schema.components(layout.n_layers, layout.n_heads, layout.parallel)
    return np.array([name for name, *_ in found], dtype=object)


def component_index(layout: GraphLayout, edges: EdgeColumns) -> np.ndarray:
    """int64 [edges]: the index into `schema.components(...)` of every edge's component."""
    n_heads, layer = layout.n_heads, layout.layers_of(edges.level.astype(np.int64))
    if layout.parallel:
        other = np.where(edges.kind == schema.MLP, 0, 1)
    else:
        other = np.where(edges.kind == schema.MLP, 1, np.where(edges.level % 2 == 1, 0, 2))
    within = np.where(edges.kind == ATTENTION, edges.head, n_heads + other)
    return layer * (n_heads + (2 if layout.parallel else 3)) + within
