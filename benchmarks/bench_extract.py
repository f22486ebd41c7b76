"""Extraction: the parts of tracing as `graphtrace bench` has them, and the ranking by itself."""

import statistics

import numpy as np
import pandas as pd

from benchmarks.timing import seconds
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.measuring import measure_parts
from graphtrace.ranking import best_first_ranks


def ranking(rounds: int = 5) -> pd.DataFrame:
    """Full exact ranking of random scores: ns per edge."""
    rows = []
    for n_tokens, n_layers, n_heads in [(24, 6, 8), (50, 32, 32), (128, 16, 16)]:
        layout = GraphLayout(n_tokens, n_layers, n_heads)
        score = np.random.default_rng(0).gamma(0.3, size=layout.n_edges).astype(np.float32)
        best_first_ranks(layout, score)
        times = [seconds(lambda a=layout, b=score: best_first_ranks(a, b)) for _ in range(rounds)]
        rows.append(
            {
                "graph": f"L = {n_layers}, H = {n_heads}, n = {n_tokens}",
                "n_edges": layout.n_edges,
                "ms": 1e3 * statistics.median(times),
                "ns_per_edge": 1e9 * statistics.median(times) / layout.n_edges,
            }
        )
    return pd.DataFrame(rows)


def tables() -> dict[str, pd.DataFrame]:
    """Title -> table."""
    return {
        "Extraction, demo model": measure_parts(load_model("demo"), [24, 48], rounds=11),
        "Exact ranking of all edges": ranking(),
    }
