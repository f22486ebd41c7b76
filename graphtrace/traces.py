"""The trace of one prediction: what was asked, what the model answered, and the ranked edges.

The same class whether it comes from a model or from an archive; needs no torch. `to_row` and
`from_row` are the archive's format (docs/format.md).
"""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.curve import Curve, curve_from_row, curve_row
from graphtrace.errors import SizeError
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.sizes import Size, parse_size, warn_if_short
from graphtrace.subgraph import SubGraph


def short_hash(value: Any, prefix: str, n_hex: int = 12) -> str:
    """`prefix` + the first hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return prefix + hashlib.sha256(text.encode()).hexdigest()[:n_hex]


@dataclass(frozen=True)
class ModelInfo:
    """Which model was traced. id: hub name@revision, or a weights fingerprint; never a path."""

    id: str
    name: str
    revision: str
    family: str
    n_layers: int
    n_heads: int
    d_model: int
    n_params: int
    dtype: str
    parallel: bool = False
    windows: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Input:
    """One line of a corpus. name: the line's own id; meta: its other columns (JSON values);
    labels: the columns people group by, as strings."""

    name: str
    text: str
    corpus: str = ""
    continuation: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """'i' + 12 hex of name and text, so that equal texts under two names stay two inputs; of a
        chat's messages too, since other messages can have the same contents."""
        messages = self.meta.get("messages")
        chat = [messages] if isinstance(messages, list) else []
        return short_hash([self.name, self.text, *chat], "i")


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a ranking (how it is evaluated is separate).

    seed: None unless the scorer draws. Rules: `last`, an integer or `all` for the position;
    `top`, `given` or `column` for the target. method: version of the method that made the numbers.
    """

    scorer: str = "l1"
    search: str = "best-first"
    dtype: str = "float32"
    seed: int | None = None
    position_rule: str = "last"
    target_rule: str = "top"
    method: int = schema.METHOD

    @property
    def id(self) -> str:
        """'s' + 8 hex of all fields."""
        return short_hash(list(vars(self).values()), "s", 8)


@dataclass(frozen=True)
class Trace:
    """The ranked edges of one prediction and how well every prefix of them reproduces it.

    ranked: the kept edges in rank order, all |E| of them in memory, the first n_kept from an
    archive. entropy (nats) of the full distribution; loss (nats) of the true next token, None
    where it is not known; mass90_edges: how many edges hold 90 % of every node's score mass;
    score_gini: Gini coefficient of all scores; component_counts: int64 [points, components], at the
    k of the first curve. experts: int16 [L, T, k], T = len(token_ids): the experts that each
    mixture-of-experts block chose, -1 in layers without experts, None for models without.
    mlp_active_share: fraction of MLP activations above 5 % of their layer's maximum (method.md 5),
    None where they cannot be seen. Raises ValueError where `experts` has another shape.
    """

    model: ModelInfo
    input: Input
    settings: Settings
    token_ids: np.ndarray
    tokens: list[str]
    special: np.ndarray
    position: int
    ranked: EdgeColumns
    curves: tuple[Curve, ...]
    entropy: float
    predicted_id: int
    predicted: str
    top_ids: np.ndarray
    top_tokens: list[str]
    top_probs: np.ndarray
    mass90_edges: int
    score_gini: float
    component_counts: np.ndarray
    loss: float | None = None
    target_id: int | None = None
    target: str | None = None
    foil_id: int | None = None
    foil: str | None = None
    experts: np.ndarray | None = None
    mlp_active_share: float | None = None
    version: str = ""
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        shape = (self.model.n_layers, len(self.token_ids))
        if self.experts is not None and (self.experts.ndim, *self.experts.shape[:2]) != (3, *shape):
            raise ValueError(
                f"experts of shape {self.experts.shape} are not of {shape[0]} layers and "
                f"{shape[1]} tokens: [layers, tokens, chosen]"
            )

    @cached_property
    def id(self) -> str:
        """'t' + 12 hex of (model, input, token ids, position, target, settings)."""
        return trace_id(
            self.model.id,
            self.input.id,
            self.token_ids,
            self.position,
            (self.target_id, self.foil_id),
            self.settings.id,
        )

    @property
    def name(self) -> str:
        """The input's name."""
        return self.input.name

    @cached_property
    def layout(self) -> GraphLayout:
        """The whole graph's shape."""
        model = self.model
        return GraphLayout(
            self.position + 1, model.n_layers, model.n_heads, model.parallel, model.windows
        )

    @property
    def n_nodes(self) -> int:
        """|V| of the whole reachable graph."""
        return self.layout.n_nodes

    @property
    def n_edges(self) -> int:
        """|E| of the whole reachable graph; every size is a fraction of it."""
        return self.layout.n_edges

    @property
    def n_kept(self) -> int:
        """How many edges, from rank 0, are at hand."""
        return len(self.ranked.kind)

    @property
    def curve(self) -> Curve:
        """The first curve."""
        return self.curves[0]

    @property
    def density(self) -> float:
        """Density of the first curve (0 ... about 5 on a full-size model)."""
        return self.curve.density

    def n_edges_at(self, size: Size | float | str) -> int:
        """Edges that a SIZE means for this trace. Raises SizeError if more than are kept."""
        size = parse_size(size)
        k = size.edges(self.n_edges, self.curve.k, self.curve.tv)
        if k > self.n_kept:
            raise SizeError(
                f"size {size} of trace {self.id} is {k:,} edges, and {self.n_kept:,} are kept "
                f"({self.n_kept / self.n_edges:.3g} of all); extract again with a larger --keep"
            )
        return k

    def subgraph(self, size: Size | float | str = 1.0) -> SubGraph:
        """The trace of the given size. Raises SizeError; warns below one complete path."""
        k = self.n_edges_at(size)
        warn_if_short(k, self.layout.path_length)
        return SubGraph(
            trace=self.id,
            model=self.model.id,
            layout=self.layout,
            token_ids=self.token_ids,
            tokens=self.tokens,
            special=self.special,
            edges=self.ranked.take(slice(0, k)),
            rank=np.arange(k),
        )

    def edges(self, size: Size | float | str = 1.0) -> pd.DataFrame:
        """Kept edges in rank order, see `SubGraph.edge_frame`."""
        return self.subgraph(size).edge_frame()

    def nodes(self, size: Size | float | str = 1.0) -> pd.DataFrame:
        """States of the trace, see `SubGraph.node_frame`."""
        return self.subgraph(size).node_frame()

    def components(self, size: Size | float | str = 1.0) -> pd.DataFrame:
        """Components of the trace, best rank first, see `SubGraph.component_frame`."""
        return self.subgraph(size).component_frame()

    def to_igraph(self, size: Size | float | str = 1.0):
        """See `SubGraph.to_igraph`."""
        return self.subgraph(size).to_igraph()

    def to_networkx(self, size: Size | float | str = 1.0):
        """See `SubGraph.to_networkx`."""
        return self.subgraph(size).to_networkx()

    def to_row(self, n_kept: int | None = None) -> dict[str, Any]:
        """The archive's row, with the first `n_kept` edges."""
        edges = self.ranked.take(slice(0, self.n_kept if n_kept is None else n_kept))
        row: dict[str, Any] = {
            "id": self.id,
            "format": schema.FORMAT,
            "version": self.version,
            "created": self.created,
            **{f"model_{key}": value for key, value in vars(self.model).items()},
            "input_id": self.input.id,
            **{
                f"input_{key}": value
                for key, value in vars(self.input).items()
                if key not in ("labels", "meta")
            },
            "input_meta": json.dumps(self.input.meta, ensure_ascii=False, sort_keys=True),
            "labels": sorted(self.input.labels.items()),
            "settings": self.settings.id,
            **{key: value for key, value in vars(self.settings).items() if key != "dtype"},
            "n_kept": len(edges.kind),
            "content": content_hash(edges),
            "curves": [curve_row(curve) for curve in self.curves],
            "component_counts": self.component_counts.ravel(),
            "experts": None if self.experts is None else self.experts.astype(np.int16).ravel(),
        }
        row |= {f"edge_{key}": getattr(edges, key) for key in EdgeColumns._fields}
        for key in schema.TRACE.names:
            if key not in row:
                row[key] = getattr(self, key)
        row["density_normalised"] = self.curve.density_normalised
        return {key: row[key] for key in schema.TRACE.names}

    @property
    def density_normalised(self) -> float:
        """Normalised density of the first curve: the mean TV over the range covered."""
        return self.curve.density_normalised

    def edges_left(self, curve: Curve | None = None) -> np.ndarray:
        """float64 [P]: how many edges an evaluation left in the model at every point of a curve
        (the first by default), its effective size: kinds that were not masked stay, and so does
        every residual edge in `necessity`. NaN where the archive knows too few edges to say.
        """
        curve = curve or self.curve
        kinds = [schema.KINDS.index(kind) for kind in curve.ablate.split(",")]
        if curve.mode == "necessity":
            kinds = [kind for kind in kinds if kind != schema.RESIDUAL]
        inside = np.array([self._kinds_in_first(int(k))[kinds].sum() for k in curve.k])
        if curve.mode == "necessity":
            return self.n_edges - inside
        masked = np.bincount(self.layout.columns.kind, minlength=len(schema.KINDS))[kinds].sum()
        return self.n_edges - masked + inside

    def _kinds_in_first(self, k: int) -> np.ndarray:
        """float64 [kinds]: edges by kind among the first k."""
        if k <= self.n_kept:
            return np.bincount(self.ranked.kind[:k], minlength=len(schema.KINDS)).astype(float)
        (point,) = np.nonzero(self.curve.k == k)
        if not len(point):
            return np.full(len(schema.KINDS), np.nan)
        layout = self.layout
        components = schema.components(layout.n_layers, layout.n_heads, layout.parallel)
        kinds = [kind for _, kind, _, _ in components]
        counts = self.component_counts[point[0]]
        return np.bincount(kinds, counts, minlength=len(schema.KINDS))

    @staticmethod
    def from_row(row: dict[str, Any]) -> "Trace":
        """The trace of an archive row (lists may be numpy arrays or Python lists)."""
        model = {key: row[f"model_{key}"] for key in ModelInfo.__dataclass_fields__}
        if model["windows"] is not None:
            model["windows"] = tuple(model["windows"])
        input_ = {key: row[f"input_{key}"] for key in ("name", "text", "corpus", "continuation")}
        dtypes = (np.int8, np.int16, np.int16, np.int32, np.int32, np.float32)
        curves = tuple(curve_from_row(curve, row["n_edges"]) for curve in row["curves"])
        experts = row["experts"]
        if experts is not None:
            shape = (model["n_layers"], len(row["token_ids"]), -1)
            experts = np.asarray(experts, np.int16).reshape(shape)
        plain = (
            "position tokens entropy predicted_id predicted top_tokens mass90_edges score_gini "
            "loss target_id target foil_id foil mlp_active_share version created"
        )
        return Trace(
            model=ModelInfo(**model),
            input=Input(**input_, meta=json.loads(row["input_meta"]), labels=dict(row["labels"])),
            settings=Settings(
                dtype=row["model_dtype"],
                **{key: row[key] for key in Settings.__dataclass_fields__ if key != "dtype"},
            ),
            token_ids=np.asarray(row["token_ids"], np.int32),
            special=np.asarray(row["special"], bool),
            ranked=EdgeColumns(
                *(
                    np.asarray(row[f"edge_{key}"], dtype)
                    for key, dtype in zip(EdgeColumns._fields, dtypes, strict=True)
                )
            ),
            curves=curves,
            top_ids=np.asarray(row["top_ids"], np.int32),
            top_probs=np.asarray(row["top_probs"], np.float32),
            component_counts=np.asarray(row["component_counts"], np.int64).reshape(
                len(curves[0].k), -1
            ),
            experts=experts,
            **{key: row[key] for key in plain.split()},
        )


def trace_id(model: str, input_: str, token_ids, position: int, target, settings: str) -> str:
    """A trace's id, known before it is traced: 't' + 12 hex of everything that decides it.

    target: (target id, foil id), each None where absent.
    """
    ids = [int(token) for token in token_ids]
    return short_hash([model, input_, ids, int(position), list(target), settings], "t")


def content_hash(edges: EdgeColumns) -> str:
    """16 hex of the SHA-256 over the edge columns in rank order, little-endian, unpadded: what
    `verify` compares between an archive and a store."""
    digest = hashlib.sha256()
    for column, dtype in zip(edges, ("i1", "<i2", "<i2", "<i4", "<i4", "<f4"), strict=True):
        digest.update(np.ascontiguousarray(column, dtype=dtype).tobytes())
    return digest.hexdigest()[:16]
