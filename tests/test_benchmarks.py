"""The benchmarks: the baseline is right, the tables hold what they say, the comparison judges."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import naive
from graphtrace import schema
from graphtrace.edges import flatten_edges
from graphtrace.evaluation import masked_logits
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.scoring import Scores, score_edges
from graphtrace.search import rank_edges
from graphtrace.tracing import trace

IDS = torch.tensor([3, 17, 5, 5, 29, 11, 8])
SIZES = (0.004, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def per_edge(scores: Scores) -> naive.PerEdge:
    return naive.PerEdge(
        *map(torch.as_tensor, (scores.residual_GT, scores.mlp_LT, scores.attention_LHTS))
    )


def canonical(layout: GraphLayout, edges: list[naive.Edge]) -> np.ndarray:
    """Numbers of the baseline's edges in the canonical order of all edges."""
    columns = layout.columns
    head = np.where(columns.kind == schema.MLP, naive.MLP, columns.head)
    fields = (columns.level, columns.target, columns.source, head)
    keys = zip(*(x.tolist() for x in fields), strict=True)
    number = {key: i for i, key in enumerate(keys)}
    assert len(number) == layout.n_edges
    return np.array([number[tuple(edge)] for edge in edges])


def ranks(order: np.ndarray) -> np.ndarray:
    rank = np.full(len(order), -1)
    rank[order] = np.arange(len(order))
    return rank


@pytest.fixture(scope="module", params=["llama", "llama-tied-odd-head"])
def hf(request):
    return tiny_model(request.param)


def test_the_baseline_runs_the_model(hf):
    with torch.no_grad():
        own = hf(input_ids=IDS[None]).logits[0, -1]
    torch.testing.assert_close(naive.forward(hf, IDS), own, rtol=1e-5, atol=1e-5)


def test_the_baseline_scores_as_graphtrace_does(hf):
    layers = []
    naive.forward(hf, IDS, seen=layers)
    found = naive.score(hf, layers)
    expected = score_edges(load_model(hf), IDS).scores
    layout = GraphLayout(len(IDS), 3, 4)
    found = Scores(*(x.numpy() for x in found))
    score_E, expected_E = (flatten_edges(layout, x) for x in (found, expected))
    np.testing.assert_allclose(score_E, expected_E, rtol=2e-5, atol=1e-9)
    assert len(np.unique(expected_E)) > 0.9 * layout.n_edges


@given(
    n_tokens=st.integers(1, 6),
    n_layers=st.integers(1, 3),
    n_heads=st.integers(1, 3),
    levels=st.sampled_from([1, 2, 5, 1000]),
    seed=st.integers(0, 999),
)
def test_the_baseline_ranks_as_graphtrace_does(n_tokens, n_layers, n_heads, levels, seed):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (rng.integers(levels, size=shape) / levels).astype(np.float32)

    scores = Scores(
        draw(2 * n_layers, n_tokens),
        draw(n_layers, n_tokens),
        draw(n_layers, n_heads, n_tokens, n_tokens),
    )
    layout = GraphLayout(n_tokens, n_layers, n_heads)
    order = canonical(layout, naive.rank(per_edge(scores)))
    assert len(order) == layout.n_edges
    expected = rank_edges(layout, flatten_edges(layout, scores), "best-first")
    np.testing.assert_array_equal(ranks(order), expected)


def test_the_baseline_evaluates_as_graphtrace_does(hf):
    model = load_model(hf)
    scores = score_edges(model, IDS).scores
    layout = GraphLayout(len(IDS), 3, 4)
    edges = naive.rank(per_edge(scores))
    k_P = np.floor(np.array(SIZES) * layout.n_edges).astype(np.int64)
    assert 0 < len(set(k_P)) == len(k_P)
    full_V = naive.forward(hf, IDS)
    found = naive.evaluate(hf, IDS, edges, k_P, full_V)
    q = masked_logits(model, IDS, layout, ranks(canonical(layout, edges)), k_P).double().softmax(-1)
    expected = 0.5 * (full_V.double().softmax(-1) - q).abs().sum(-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.max() > 0.1


def test_the_baselines_curve_is_the_traces(hf):
    found = naive.trace(hf, IDS, SIZES)
    expected = trace(hf, IDS.tolist(), sizes=SIZES)
    np.testing.assert_array_equal(found.k_P, expected.curve.k[:-1])
    # The two may order edges apart whose scores differ in their last bits.
    np.testing.assert_allclose(found.tv_P, expected.curve.tv[:-1], atol=1e-5)
