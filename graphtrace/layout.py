"""The graph of one input: which nodes and edges exist, and how they are numbered.

Node (g, t) is the residual stream of token t at level g: g = 0 after the embedding,
g = 2l+1 after the attention of layer l, g = 2l+2 after its MLP; in a parallel block one level
per layer. Edges point with the flow of information, source -> target, and only edges from which
the output node (last level, last token) can be reached exist (paper, section 3).

Numbering. A node's id is `level * n_tokens + position`. Edges are numbered by target node
(level, then position, ascending) and, within a target, by source position ascending; for the own
token the residual edge comes first, then heads 0 ... H-1, then the mlp edge. This canonical order
is also the tie rule of the ranking ("first come, first served" within one target).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from graphtrace.schema import ATTENTION, MLP, RESIDUAL


class EdgeColumns(NamedTuple):
    """Edges as parallel arrays, one entry per edge.

    kind: int8 code of `schema.KINDS`; level: int16, of the target node (the source is one level
    below); head: int16, -1 unless attention; source, target: int32 token positions; score:
    float32, or None.
    """

    kind: np.ndarray
    level: np.ndarray
    head: np.ndarray
    source: np.ndarray
    target: np.ndarray
    score: np.ndarray | None = None

    def take(self, index) -> "EdgeColumns":
        """The edges at `index` (a slice, or an integer or boolean array), in that order."""
        score = None if self.score is None else self.score[index]
        kind, level, head, source, target = (column[index] for column in self[:5])
        return EdgeColumns(kind, level, head, source, target, score)


@dataclass(frozen=True)
class GraphLayout:
    """Shape of one input's graph.

    n_tokens: tokens 0 ... position of the traced prediction. windows: per layer the number of
    keys a query sees (itself included), None where attention is full; None for no window at all.
    """

    n_tokens: int
    n_layers: int
    n_heads: int
    parallel: bool = False
    windows: tuple[int | None, ...] | None = None

    @property
    def n_levels(self) -> int:
        """Number of levels: 2L + 1, or L + 1 with parallel blocks."""
        return (self.n_layers if self.parallel else 2 * self.n_layers) + 1

    @property
    def output(self) -> int:
        """Node id of the output, (last level, last token)."""
        return self.n_levels * self.n_tokens - 1

    @property
    def path_length(self) -> int:
        """Edges on a complete path from an embedding to the output."""
        return self.n_levels - 1

    def window(self, layer: int) -> int:
        """Keys that a query of `layer` sees at most, itself included."""
        width = self.windows[layer] if self.windows else None
        return self.n_tokens if width is None else min(width, self.n_tokens)

    def has_attention(self, level: int) -> bool:
        """Whether attention edges enter `level`."""
        return level > 0 and (self.parallel or level % 2 == 1)

    def has_mlp(self, level: int) -> bool:
        """Whether mlp edges enter `level`."""
        return level > 0 and (self.parallel or level % 2 == 0)

    def layer_of(self, level: int) -> int:
        """The layer whose block makes the edges into `level` (>= 1)."""
        return level - 1 if self.parallel else (level - 1) // 2

    @cached_property
    def first_position(self) -> np.ndarray:
        """int64 [levels]: the first token whose node exists; the nodes of a level run from there
        to the last token, because what a window lets through is a contiguous range."""
        first = np.empty(self.n_levels, np.int64)
        first[-1] = self.n_tokens - 1
        for level in range(self.n_levels - 1, 0, -1):
            reach = self.window(self.layer_of(level)) - 1 if self.has_attention(level) else 0
            first[level - 1] = max(0, first[level] - reach)
        return first

    @cached_property
    def n_nodes(self) -> int:
        """|V|."""
        return int((self.n_tokens - self.first_position).sum())

    @cached_property
    def n_edges(self) -> int:
        """|E|; every size is a fraction of it."""
        return int(self.offsets[-1])

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [levels * n_tokens + 1]: edges into node v are offsets[v] ... offsets[v+1]-1."""
        counts = np.zeros((self.n_levels, self.n_tokens), np.int64)
        for level in range(1, self.n_levels):
            first = int(self.first_position[level])
            position = np.arange(first, self.n_tokens)
            n_in = np.ones(len(position), np.int64)
            if self.has_attention(level):
                keys = np.minimum(position + 1, self.window(self.layer_of(level)))
                n_in += self.n_heads * keys
            if self.has_mlp(level):
                n_in += 1
            counts[level, first:] = n_in
        return np.concatenate([[0], np.cumsum(counts.ravel())])

    @cached_property
    def columns(self) -> EdgeColumns:
        """All edges in canonical order, without scores."""
        dtypes = (np.int8, np.int16, np.int16, np.int32, np.int32)
        columns = EdgeColumns(*(np.empty(self.n_edges, dtype) for dtype in dtypes))
        alike = {}  # most levels have the same edges
        for level in range(1, self.n_levels):
            width = self.window(self.layer_of(level)) if self.has_attention(level) else 0
            form = (width, self.has_mlp(level), int(self.first_position[level]))
            if form not in alike:
                alike[form] = self._edges_into(level)
            kind, head, source, target = alike[form]
            start = int(self.offsets[level * self.n_tokens])
            here = slice(start, start + len(kind))
            columns.kind[here], columns.level[here], columns.head[here] = kind, level, head
            columns.source[here], columns.target[here] = source, target
        return columns

    def _edges_into(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Kind, head, source and target of the edges into one level."""
        heads = np.arange(self.n_heads, dtype=np.int16)
        kinds, head_of, sources, targets = [], [], [], []
        for position in range(int(self.first_position[level]), self.n_tokens):
            kind = [np.full(1, RESIDUAL, np.int8)]
            head = [np.full(1, -1, np.int16)]
            source = [np.full(1, position, np.int32)]
            if self.has_attention(level):
                start = max(0, position + 1 - self.window(self.layer_of(level)))
                before = np.repeat(np.arange(start, position, dtype=np.int32), self.n_heads)
                kind = [np.full(len(before), ATTENTION, np.int8), *kind]
                kind.append(np.full(self.n_heads, ATTENTION, np.int8))
                head = [np.tile(heads, position - start), *head, heads]
                own = np.full(self.n_heads, position, np.int32)
                source = [before, *source, own]
            if self.has_mlp(level):
                kind.append(np.full(1, MLP, np.int8))
                head.append(np.full(1, -1, np.int16))
                source.append(np.full(1, position, np.int32))
            kinds += kind
            head_of += head
            sources += source
            targets.append(np.full(sum(map(len, kind)), position, np.int32))
        kind, head, source, target = map(np.concatenate, (kinds, head_of, sources, targets))
        return kind, head, source, target

    def layers_of(self, level: np.ndarray) -> np.ndarray:
        """`layer_of` for an array of levels >= 1."""
        return level - 1 if self.parallel else (level - 1) // 2
