"""The ranking against a heap over all edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import best_first

from graphtrace.layout import GraphLayout
from graphtrace.ranking import best_first_ranks, random_ranks, source_nodes

LAYOUTS = st.builds(
    GraphLayout,
    n_tokens=st.integers(1, 7),
    n_layers=st.integers(1, 4),
    n_heads=st.integers(1, 3),
    parallel=st.booleans(),
)


def oracle(layout, score):
    return best_first(layout.offsets, source_nodes(layout), score, layout.output)


@settings(max_examples=300, deadline=None)
@given(layout=LAYOUTS, seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([0, 1, 2, 5, 50]))
def test_equals_the_heap(layout, seed, levels):
    rng = np.random.default_rng(seed)
    score = rng.random(layout.n_edges, dtype=np.float32)
    if levels:  # exact ties, zeros included
        score = np.floor(score * levels).astype(np.float32) / np.float32(levels)
    np.testing.assert_array_equal(best_first_ranks(layout, score), oracle(layout, score))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    windows=st.lists(st.sampled_from([None, 1, 2, 3]), min_size=3, max_size=3),
)
def test_equals_the_heap_with_sliding_windows(seed, windows):
    layout = GraphLayout(6, 3, 2, windows=tuple(windows))
    score = np.random.default_rng(seed).integers(0, 9, layout.n_edges).astype(np.float32)
    np.testing.assert_array_equal(best_first_ranks(layout, score), oracle(layout, score))


def test_every_score_the_same_is_first_come_first_served():
    layout = GraphLayout(4, 2, 2)
    score = np.zeros(layout.n_edges, np.float32)
    ranks = best_first_ranks(layout, score)
    np.testing.assert_array_equal(ranks, oracle(layout, score))
    into_output = slice(layout.offsets[layout.output], None)
    assert ranks[into_output].tolist() == [0, 1]  # residual before mlp


def test_scores_over_the_whole_range_of_float32():
    layout = GraphLayout(5, 3, 3)
    rng = np.random.default_rng(3)
    score = np.exp(rng.uniform(-100, 80, layout.n_edges)).astype(np.float32)
    score[::7] = 0.0
    score[1::11] = np.float32(-0.0)
    score[2::13] = np.finfo(np.float32).smallest_subnormal
    np.testing.assert_array_equal(best_first_ranks(layout, score), oracle(layout, score))


@settings(max_examples=100, deadline=None)
@given(layout=LAYOUTS, seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0, 1e-15, 1, 700]))
def test_float64_scores_keep_what_float32_would_lose(layout, seed, spread):
    rng = np.random.default_rng(seed)
    score = np.exp(spread * rng.uniform(-1, 1, layout.n_edges))
    score[:: int(rng.integers(3, 9))] = rng.choice([0.0, -0.0, 5e-324])
    before = score.copy()
    np.testing.assert_array_equal(best_first_ranks(layout, score), oracle(layout, score))
    np.testing.assert_array_equal(score, before)


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, seed=st.integers(0, 2**32 - 1))
def test_float64_copies_of_float32_scores_rank_the_same(layout, seed):
    score = np.random.default_rng(seed).random(layout.n_edges, dtype=np.float32)
    np.testing.assert_array_equal(
        best_first_ranks(layout, score.astype(np.float64)), best_first_ranks(layout, score)
    )


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, seed=st.integers(0, 2**40))
def test_random_walk_is_a_walk(layout, seed):
    rank = random_ranks(layout, seed)
    order = np.argsort(rank)
    assert sorted(rank) == list(range(layout.n_edges))
    columns = layout.columns
    target = columns.level.astype(int) * layout.n_tokens + columns.target
    source = source_nodes(layout)
    visited = {layout.output}
    for edge in order:
        assert target[edge] in visited
        into = range(layout.offsets[target[edge]], layout.offsets[target[edge] + 1])
        if columns.head[edge] >= 0:  # residual and mlp edges of a node come first
            assert all(rank[e] < rank[edge] for e in into if columns.head[e] < 0)
        visited.add(int(source[edge]))
    np.testing.assert_array_equal(rank, random_ranks(layout, seed))


def test_random_walks_differ_by_seed_and_choose_frontier_nodes_uniformly():
    layout = GraphLayout(3, 1, 1)
    # After the output's two edges (both lead to one node) its three attention edges are next.
    attention = np.flatnonzero(layout.columns.head >= 0)
    first = [attention[np.argmin(random_ranks(layout, seed)[attention])] for seed in range(900)]
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == 3
    assert abs(counts - 300).max() < 75  # 5 standard deviations


@pytest.mark.parametrize("parallel", [False, True])
def test_counts_are_the_formulas_of_the_method(parallel):
    for n, n_layers, n_heads in [(1, 1, 1), (11, 3, 4), (50, 32, 32), (7, 2, 5)]:
        layout = GraphLayout(n, n_layers, n_heads, parallel)
        pairs, last = n_heads * n * (n + 1) // 2, n_heads * n * (n - 1) // 2
        if parallel:
            assert layout.n_nodes == n * (n_layers + 1) - (n - 1)
            assert layout.n_edges == n_layers * (pairs + 2 * n) - 2 * (n - 1) - last
        else:
            assert layout.n_nodes == n * (2 * n_layers + 1) - 2 * (n - 1)
            assert layout.n_edges == n_layers * (pairs + 3 * n) - 3 * (n - 1) - last
        assert len(layout.columns.kind) == layout.n_edges
