"""Nested traces and first edges straight from the scores, against a heap over all edges."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import best_first

from graphtrace import nested, trace_ends
from graphtrace.edges import flatten_edges, unflatten_edges
from graphtrace.layout import GraphLayout
from graphtrace.nested import best_of, nested_buckets, sort_records, top_edges
from graphtrace.ranking import best_first_ranks, source_nodes
from graphtrace.scoring import Scores


@st.composite
def layouts(draw):
    parallel = draw(st.booleans())
    n_layers = draw(st.integers(1, 4))
    windows = draw(st.none() | st.tuples(*[st.sampled_from([None, 1, 2, 3])] * n_layers))
    return GraphLayout(
        draw(st.integers(1, 7)), n_layers, draw(st.integers(1, 4)), parallel, windows
    )


def made_scores(layout, make, seed):
    """float32 [E] with ties of many kinds, zeros and -0.0 among them, or none."""
    rng = np.random.default_rng(seed)
    n_edges = layout.n_edges
    if make == "distinct":
        score_E = rng.permutation(n_edges) + 1.0
    elif make == "shares":
        score_E = rng.gamma(0.3, size=n_edges)
        for start, stop in pairwise(layout.offsets):
            score_E[start:stop] /= score_E[start:stop].sum()
    elif make == "neighbours":  # of one float32, on both sides of a change of the leading bits
        score_E = np.uint32(0x3EFFFFFE) + rng.integers(0, 5, n_edges).astype(np.uint32)
        score_E = score_E.view(np.float32)
    elif make == "wide":
        score_E = np.exp(rng.uniform(-100, 80, n_edges))
        score_E[rng.random(n_edges) < 0.2] = np.finfo(np.float32).smallest_subnormal
    else:
        score_E = rng.integers(0, make + 1, n_edges) / max(make, 1)
    score_E = score_E.astype(np.float32)
    score_E[(score_E == 0) & (rng.random(n_edges) < 0.5)] = -0.0
    return score_E


MAKES = st.sampled_from(["distinct", "shares", "neighbours", "wide", 0, 1, 2, 5, 50])
SEEDS = st.integers(0, 2**32 - 1)


def heap_ranks(layout, score_E):
    return best_first(layout.offsets, source_nodes(layout), score_E, layout.output)


def edge_buckets(rank_E, k_P):
    """The first grid point whose trace holds the edge."""
    return np.array([sum(k <= rank for k in k_P) for rank in rank_E], np.uint8)


def outside_the_graph(layout, score_E, fill=np.nan):
    """Tensors of scores with `fill` where there is no edge: it must not be read."""
    return unflatten_edges(layout, score_E, fill)


def assert_same(found, expected):
    for name in ("residual_GT", "mlp_LT", "attention_LHTS"):
        assert getattr(found, name).dtype == np.uint8
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


@settings(max_examples=500, deadline=None)
@given(layout=layouts(), make=MAKES, seed=SEEDS, data=st.data())
@pytest.mark.parametrize("small", [1, 64, 10**9])
def test_buckets_are_those_of_the_heap(small, layout, make, seed, data):
    k_P = sorted(data.draw(st.lists(st.integers(0, layout.n_edges), max_size=8)))
    score_E = made_scores(layout, make, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_ends, "SMALL", small)  # no histogram at all, as it is, always one
        found = nested_buckets(layout, outside_the_graph(layout, score_E), k_P)
    bucket_E = edge_buckets(heap_ranks(layout, score_E), k_P)
    assert_same(found, unflatten_edges(layout, bucket_E, 255))


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), make=MAKES, seed=SEEDS)
def test_every_number_of_edges(layout, make, seed):
    score_E = made_scores(layout, make, seed)
    scores, ranks = outside_the_graph(layout, score_E), heap_ranks(layout, score_E)
    order = np.argsort(ranks)
    for k in range(0, layout.n_edges + 1, max(1, layout.n_edges // 40)):
        kept = nested_buckets(layout, scores, [k])
        np.testing.assert_array_equal(flatten_edges(layout, kept), ranks >= k)
        np.testing.assert_array_equal(top_edges(layout, scores, k), order[:k])


@settings(max_examples=500, deadline=None)
@given(layout=layouts(), make=MAKES, seed=SEEDS, share=st.floats(0, 1))
@pytest.mark.parametrize("small", [1, 64, 10**9])
def test_first_edges_are_those_of_the_heap(small, layout, make, seed, share):
    score_E = made_scores(layout, make, seed)
    scores, order = outside_the_graph(layout, score_E), np.argsort(heap_ranks(layout, score_E))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_ends, "SMALL", small)
        for k in (round(share * layout.n_edges), layout.n_edges):
            found = top_edges(layout, scores, k)
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, order[:k])


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("make", ["distinct", "shares", "wide", 1, 50, 5000])
def test_larger_graphs_equal_the_full_ranking(parallel, make):
    windows = (None, 7, None, 12, None, None)
    for seed, layout in enumerate(
        [GraphLayout(40, 6, 5, parallel), GraphLayout(33, 6, 4, parallel, windows)]
    ):
        score_E = made_scores(layout, make, seed)
        scores = outside_the_graph(layout, score_E)
        ranks = best_first_ranks(layout, score_E)
        k_P = np.floor(np.geomspace(1e-4, 1, 200) * layout.n_edges).astype(np.int64)
        bucket_E = np.searchsorted(k_P, ranks, side="right").astype(np.uint8)
        expected = unflatten_edges(layout, bucket_E, 255)
        assert_same(nested_buckets(layout, scores, k_P), expected)
        order = np.argsort(ranks)
        for k in (0, layout.n_edges // 100, layout.n_edges // 3, layout.n_edges):
            np.testing.assert_array_equal(top_edges(layout, scores, k), order[:k])


def test_no_grid_points_and_duplicates_by_hand():
    # Residual, two heads; residual, mlp. The mlp edge comes first, then what enters its source.
    layout = GraphLayout(1, 1, 2)
    scores = unflatten_edges(layout, np.array([3, 5, 3, 1, 9], np.float32), 0)
    found = flatten_edges(layout, nested_buckets(layout, scores, [0, 2, 2, 3, 3, 5]))
    # In order: mlp, head 0, residual, head 1, the other residual.
    assert found.tolist() == [3, 1, 5, 5, 1]
    assert top_edges(layout, scores, 5).tolist() == [4, 1, 0, 2, 3]
    assert flatten_edges(layout, nested_buckets(layout, scores, [])).tolist() == [0] * 5
    assert flatten_edges(layout, nested_buckets(layout, scores, [5, 5])).tolist() == [0] * 5
    assert flatten_edges(layout, nested_buckets(layout, scores, [0, 0])).tolist() == [2] * 5


@pytest.mark.parametrize("value", [-1.0, np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("field", ["residual_GT", "mlp_LT", "attention_LHTS"])
def test_scores_that_have_no_rank_are_refused(value, field):
    layout = GraphLayout(3, 2, 2)
    scores = unflatten_edges(layout, np.ones(layout.n_edges, np.float32), 0)
    getattr(scores, field)[0, ..., -1] = value
    with pytest.raises(AssertionError):
        nested_buckets(layout, scores, [1])
    with pytest.raises(AssertionError):
        top_edges(layout, scores, 1)


def test_scores_need_not_lie_side_by_side_and_stay_as_they_are():
    layout = GraphLayout(5, 2, 3)
    score_E = made_scores(layout, "shares", 1)
    plain = unflatten_edges(layout, score_E, 0)
    every_other = Scores(
        *(
            np.repeat(field, 2, axis=-1)[..., ::2]
            for field in (plain.residual_GT, plain.mlp_LT, plain.attention_LHTS)
        )
    )
    assert not every_other.attention_LHTS.flags.c_contiguous
    assert_same(
        nested_buckets(layout, every_other, [7, 20]), nested_buckets(layout, plain, [7, 20])
    )
    np.testing.assert_array_equal(flatten_edges(layout, every_other), score_E)


def test_grids_that_are_not_ascending_or_too_long_are_refused():
    layout = GraphLayout(2, 1, 1)
    scores = unflatten_edges(layout, np.ones(layout.n_edges, np.float32), 0)
    for k_P in ([2, 1], [1] * 255):
        with pytest.raises(AssertionError):
            nested_buckets(layout, scores, k_P)
    assert flatten_edges(layout, nested_buckets(layout, scores, [1] * 254)).max() == 254


@settings(max_examples=100, deadline=None)
@given(bits=st.lists(st.integers(0, 4), max_size=12), seed=SEEDS, need=st.integers(-1, 13))
def test_best_candidates(bits, seed, need):
    priority = np.random.default_rng(seed).permutation(len(bits)).astype(np.int64)
    order = sorted(range(len(bits)), key=lambda i: (-bits[i], priority[i]))
    found = best_of(np.array(bits, np.int32), priority, need)
    assert set(np.flatnonzero(found)) == set(order[: max(0, need)])


@pytest.mark.parametrize("lengths", [[0, 1, 64, 65, 0], [1000, 3], [1 << 14, 200], [(1 << 14) + 1]])
@pytest.mark.parametrize("n_values", [1, 3, 1 << 31])
def test_parts_are_sorted_by_the_leading_bits_and_stable(lengths, n_values):
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *lengths])
    leading = rng.integers(0, n_values, starts[-1])
    records = (leading << nested.EDGE_BITS) | np.arange(starts[-1])[::-1]
    expected = [records[a:b][np.argsort(leading[a:b], kind="stable")] for a, b in pairwise(starts)]
    sort_records(records, starts)
    np.testing.assert_array_equal(records, np.concatenate(expected))
