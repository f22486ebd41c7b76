"""Extraction: scoring, ranking and evaluation against a plain forward pass of the same input.

Ratios within one run, medians of interleaved rounds.
"""

import statistics

import numpy as np
import pandas as pd
import torch

from benchmarks.timing import seconds
from graphtrace.edges import flatten_edges
from graphtrace.evaluation import kept_edges, masked_logits
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.ranking import best_first_ranks
from graphtrace.scoring import score_edges
from graphtrace.sizes import SIZE_GRID
from graphtrace.tracing import trace


def extraction(model_name: str = "demo", n_tokens: int = 24, rounds: int = 11) -> pd.DataFrame:
    """One row per part: median ms, and its ratio to a plain forward pass (sdpa, last logits)."""
    model = load_model(model_name)
    rng = np.random.default_rng(0)
    ids = torch.as_tensor(rng.integers(10, model.config.vocab_size, n_tokens))
    layout = GraphLayout(n_tokens, model.n_layers, model.n_heads, windows=model.windows)
    score = flatten_edges(layout, score_edges(model, ids).scores)
    rank = best_first_ranks(layout, score)
    k = kept_edges(np.array(SIZE_GRID), layout.n_edges)

    def forward():
        with torch.no_grad():
            model.causal_lm(input_ids=ids[None], use_cache=False, logits_to_keep=1)

    parts = {
        "forward": forward,
        "scoring": lambda: score_edges(model, ids),
        "ranking": lambda: best_first_ranks(layout, score),
        "evaluation of 26 sizes": lambda: masked_logits(model, ids, layout, rank, k),
        "whole trace": lambda: trace(model, ids.tolist()),
    }
    times = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            times[name].append(seconds(work))
    plain = statistics.median(times["forward"])
    return pd.DataFrame(
        {
            "part": list(parts),
            "ms": [1e3 * statistics.median(t) for t in times.values()],
            "per_forward": [statistics.median(t) / plain for t in times.values()],
            "n_edges": layout.n_edges,
        }
    )


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
        "Extraction, demo model, 24 tokens": extraction(),
        "Exact ranking of all edges": ranking(),
    }
