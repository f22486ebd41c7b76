"""An in-memory `TraceSource` over made-up traces, and small sub-graphs of any shape."""

import json

import numpy as np
import pandas as pd
from builders import model_info, synthetic_trace

from graphtrace.curve import curve_row, points_frame
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.schema import TRACES_COLUMNS
from graphtrace.subgraph import SubGraph
from graphtrace.traces import Trace


class MemorySource:
    """What an archive or a store offers to analyses, over a list of traces."""

    def __init__(self, traces: list[Trace]):
        self.held = {trace.id: trace for trace in traces}

    def traces(self) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "id": t.id,
                    "name": t.name,
                    "model": t.model.id,
                    "model_name": t.model.name,
                    "input": t.input.id,
                    "text": t.input.text,
                    "corpus": t.input.corpus,
                    "n_tokens": len(t.tokens),
                    "position": t.position,
                    "target": t.target,
                    "foil": t.foil,
                    "settings": t.settings.id,
                    "scorer": t.settings.scorer,
                    "search": t.settings.search,
                    "dtype": t.settings.dtype,
                    "seed": t.settings.seed,
                    "position_rule": t.settings.position_rule,
                    "target_rule": t.settings.target_rule,
                    "method": t.settings.method,
                    "n_nodes": t.n_nodes,
                    "n_edges": t.n_edges,
                    "n_kept": t.n_kept,
                    "entropy": t.entropy,
                    "loss": t.loss,
                    "predicted": t.predicted,
                    "density": t.density,
                    "density_normalised": t.density_normalised,
                    "labels": t.input.labels,
                    "meta": json.dumps(t.input.meta),
                    "created": t.created,
                    "mlp_active_share": t.mlp_active_share,
                    "mass90_edges": t.mass90_edges,
                    "score_gini": t.score_gini,
                    "curve": t.curve.kind,
                    "curves": [curve.kind for curve in t.curves],
                }
                for t in self.held.values()
            ],
            columns=list(TRACES_COLUMNS),
        )

    def subgraph(self, trace: str, size=1.0) -> SubGraph:
        return self.held[trace].subgraph(size)

    def curve_points(self, traces) -> pd.DataFrame:
        held = [self.held[trace] for trace in traces]
        return points_frame((t.id, t.n_edges, map(curve_row, t.curves)) for t in held)

    def trace_tokens(self, traces) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "trace": trace,
                    "token_ids": self.held[trace].token_ids.tolist(),
                    "tokens": self.held[trace].tokens,
                    "special": self.held[trace].special.tolist(),
                    "predicted_id": self.held[trace].predicted_id,
                }
                for trace in traces
            ]
        )

    def component_counts(self, traces) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {"trace": t.id, "n_edges": int(k), "counts": counts}
                for t in (self.held[trace] for trace in traces)
                for k, counts in zip(t.curve.k, t.component_counts, strict=True)
            ],
            columns=["trace", "n_edges", "counts"],
        )


def study(n_inputs=6, models=("toy",), groups=("clean", "corrupt"), parallel=False, n=5):
    """A source of `n_inputs` texts seen by every model, labelled in turn by `groups`."""
    return MemorySource(
        [
            synthetic_trace(
                100 * m + i,
                n=n + i % 2,
                model=model_info(name=name, parallel=parallel),
                name=f"line-{i}",
                text=f"text {i}",
                labels={"group": groups[i % len(groups)]} if groups else {},
            )
            for m, name in enumerate(models)
            for i in range(n_inputs)
        ]
    )


def random_subgraph(seed: int, n=4, n_layers=2, n_heads=2, k=None, parallel=False, ties=False):
    """Any k edges of a layout in any order, not only what a search would reach: dead ends,
    unreachable parts, zero scores. ties: scores from {0, 0.5, 1}."""
    rng = np.random.default_rng(seed)
    layout = GraphLayout(n, n_layers, n_heads, parallel)
    k = int(rng.integers(0, layout.n_edges + 1)) if k is None else min(k, layout.n_edges)
    score = rng.choice([0.0, 0.5, 1.0], k) if ties else rng.gamma(0.3, size=k)
    columns = layout.columns.take(rng.permutation(layout.n_edges)[:k])
    return SubGraph(
        trace=f"t{seed:012x}",
        model="toy@0",
        layout=layout,
        token_ids=np.arange(n, dtype=np.int32),
        tokens=["<s>", *[f" w{i}" for i in range(1, n)]],
        special=np.arange(n) == 0,
        edges=EdgeColumns(*columns[:5], score.astype(np.float32)),
        rank=np.arange(k),
    )
