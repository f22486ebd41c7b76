"""The searches against exact fractions, and what every prefix of their rankings is."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import oracles
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphtrace.errors import OptionError
from graphtrace.layout import GraphLayout
from graphtrace.ranking import best_first_ranks, source_nodes
from graphtrace.search import SEARCHES, flow_keys, rank_edges

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def layouts(draw, n_tokens=5, n_layers=3, n_heads=3):
    """Layouts up to these sizes; with `parallel` one layer more, since each has half the levels."""
    parallel = draw(st.booleans())
    depth = draw(st.integers(1, n_layers + parallel))
    windows = draw(st.none() | st.tuples(*[st.sampled_from([None, 1, 2, 3])] * depth))
    tokens, heads = draw(st.integers(1, n_tokens)), draw(st.integers(1, n_heads))
    return GraphLayout(tokens, depth, heads, parallel, windows)


TINY = layouts(n_tokens=3, n_layers=2, n_heads=2)  # at most a few hundred paths


@st.composite
def scores_of(draw, layout):
    """Scores of many makes: ties, zeros, shares, neighbouring floats, a huge range, dead nodes."""
    rng = np.random.default_rng(draw(SEEDS))
    make = draw(
        st.sampled_from(["eighths", "halves", "shares", "neighbours", "wide", "zero", "equal"])
    )
    n_edges = layout.n_edges
    if make == "eighths":
        score_E = rng.integers(0, 9, n_edges) / 8
    elif make == "halves":
        score_E = rng.choice([0, 0.25, 0.5, 1], n_edges)
    elif make == "shares":
        score_E = rng.random(n_edges)
        for start, stop in pairwise(layout.offsets):
            score_E[start:stop] /= score_E[start:stop].sum()
    elif make == "neighbours":
        value = np.float32(rng.random() + 0.01)
        score_E = rng.choice([value, np.nextafter(value, np.float32(2))], n_edges)
    elif make == "wide":
        score_E = np.exp(rng.uniform(-100, 80, n_edges))
        score_E[:: int(rng.integers(2, 9))] = np.finfo(np.float32).smallest_subnormal
    else:
        score_E = np.full(n_edges, 0 if make == "zero" else 1 / 3)
    if draw(st.booleans()):  # nodes that nothing enters, as where all weights are 0
        for node in rng.integers(0, layout.output + 1, rng.integers(1, 3)):
            score_E[layout.offsets[node] : layout.offsets[node + 1]] = 0
    return score_E.astype(np.float32)


@st.composite
def graphs(draw, layout_strategy):
    layout = draw(layout_strategy)
    return layout, draw(scores_of(layout))


def oracle(search, layout, score_E):
    run = {"flow": oracles.flow, "path": oracles.path, "best-first": oracles.best_first}[search]
    return run(layout.offsets, source_nodes(layout), score_E, layout.output)


def targets(layout):
    return np.repeat(np.arange(layout.output + 1), np.diff(layout.offsets))


def are_told_apart(values):
    """Whether values that differ do so by more than 1e-11 of themselves."""
    distinct = sorted(set(values))
    return all(b - a > Fraction(1, 10**11) * b for a, b in pairwise(distinct))


@settings(max_examples=300, deadline=None)
@given(graph=graphs(layouts()))
def test_flow_equals_best_first_on_exact_flows(graph):
    layout, score_E = graph
    arguments = layout.offsets, source_nodes(layout), score_E, layout.output
    values = [value for value in oracles.flow_values(*arguments) if value]
    assume(are_told_apart(values))
    # Exact ties are only ties in float64 where its sums are exact: few enough binary digits.
    exact = all(value.numerator.bit_length() <= 40 for value in values)
    assume(exact or len(set(values)) == len(values))
    np.testing.assert_array_equal(rank_edges(layout, score_E, "flow"), oracles.flow(*arguments))


@settings(max_examples=300, deadline=None)
@given(graph=graphs(TINY))
def test_path_equals_the_enumeration_of_all_paths(graph):
    layout, score_E = graph
    arguments = layout.offsets, source_nodes(layout), score_E, layout.output
    assume(are_told_apart(oracles.path_values(*arguments)))
    np.testing.assert_array_equal(rank_edges(layout, score_E, "path"), oracles.path(*arguments))


@pytest.mark.parametrize("search", ["flow", "path"])
@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("parallel", [False, True])
def test_exact_ties_are_ties(search, levels, parallel):
    # Eighths: sums and products are exact, nothing is left out by a gap too small to compare.
    for seed in range(12):
        layout = GraphLayout(3, 3 if parallel else 2, 2, parallel)
        score_E = np.random.default_rng(seed).integers(0, levels + 1, layout.n_edges) / levels
        score_E = score_E.astype(np.float32)
        np.testing.assert_array_equal(
            rank_edges(layout, score_E, search), oracle(search, layout, score_E)
        )


@pytest.mark.parametrize("search", ["flow", "path"])
@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e-40])
def test_all_scores_the_same(search, value):
    for parallel in (False, True):
        layout = GraphLayout(3, 2, 2, parallel)
        score_E = np.full(layout.n_edges, value, np.float32)
        np.testing.assert_array_equal(
            rank_edges(layout, score_E, search), oracle(search, layout, score_E)
        )


@settings(max_examples=200, deadline=None)
@given(graph=graphs(layouts()))
@pytest.mark.parametrize("search", SEARCHES)
def test_a_permutation_and_every_prefix_hangs_from_the_output(search, graph):
    layout, score_E = graph
    before = score_E.copy()
    rank_E = rank_edges(layout, score_E, search)
    assert rank_E.dtype == np.int64
    assert sorted(rank_E) == list(range(layout.n_edges))
    np.testing.assert_array_equal(score_E, before)
    source, target = source_nodes(layout), targets(layout)
    reached = {layout.output}
    for edge in np.argsort(rank_E):
        assert target[edge] in reached
        reached.add(int(source[edge]))


def first_prefix_not_of_paths(layout, rank_E):
    """The smallest k whose k first edges are not complete paths and at most one unfinished path.

    None where there is none. Looks at every prefix afresh.
    """
    source, target = source_nodes(layout), targets(layout)
    order = np.argsort(rank_E)
    for k in range(layout.n_edges + 1):
        taken = sorted(order[:k].tolist())  # by target, lowest level first
        grounded = set(range(layout.n_tokens))  # a taken path leads here from an embedding
        for edge in taken:
            if source[edge] in grounded:
                grounded.add(int(target[edge]))
        reached = {layout.output}
        for edge in reversed(taken):
            if target[edge] in reached:
                reached.add(int(source[edge]))
        complete = [e for e in taken if source[e] in grounded and target[e] in reached]
        rest = [e for e in reversed(taken) if e not in complete]
        hangs_from = {layout.output} | {int(source[e]) for e in complete}
        for edge in rest:
            if target[edge] not in hangs_from:
                return k
            hangs_from = {int(source[edge])}
    return None


@settings(max_examples=200, deadline=None)
@given(graph=graphs(layouts(n_tokens=4, n_layers=2)))
def test_every_prefix_of_path_is_complete_paths_and_one_unfinished(graph):
    layout, score_E = graph
    assert first_prefix_not_of_paths(layout, rank_edges(layout, score_E, "path")) is None


def test_the_check_of_prefixes_finds_broken_paths():
    layout = GraphLayout(4, 2, 2)
    score_E = np.random.default_rng(0).random(layout.n_edges, dtype=np.float32)
    assert first_prefix_not_of_paths(layout, rank_edges(layout, score_E, "path")) is None
    assert first_prefix_not_of_paths(layout, best_first_ranks(layout, score_E)) is not None
    assert first_prefix_not_of_paths(layout, rank_edges(layout, score_E, "flow")) is not None


def test_path_takes_whole_paths_in_the_order_of_their_values():
    # Levels 0 - 1 - 2 of one token: edges into level 1 are residual 0 and head 1, into level 2
    # residual 2 and mlp 3.
    layout = GraphLayout(1, 1, 1)
    score_E = np.array([0.9, 0.2, 0.3, 0.6], np.float32)
    # Paths 0-3 (0.54), 0-2 (0.27), 1-3 (0.12), 1-2: new edges 3 and 0, then 2, then 1.
    assert np.argsort(rank_edges(layout, score_E, "path")).tolist() == [3, 0, 2, 1]
    # Flow: 3 0.6, 0 0.81, 2 0.3, 1 0.18.
    assert np.argsort(rank_edges(layout, score_E, "flow")).tolist() == [3, 0, 2, 1]
    score_E = np.array([0.4, 0.3, 0.5, 0.5], np.float32)
    # Path: 0-2 (0.2) ties 0-3 (0.2): both before 1 (0.15). Flow: 2 0.5, 3 0.5, 0 0.4, 1 0.3.
    assert np.argsort(rank_edges(layout, score_E, "path")).tolist() == [2, 0, 3, 1]
    assert np.argsort(rank_edges(layout, score_E, "flow")).tolist() == [2, 3, 0, 1]


def test_flow_sums_over_outgoing_edges_and_path_does_not():
    # Parallel, two layers, one token, one head. Into level 1: residual, head, mlp (0 1 2); into
    # the output the same (3 4 5).
    layout = GraphLayout(1, 2, 1, parallel=True)
    score_E = np.array([0.5, 0.5, 0.0, 0.25, 0.25, 0.5], np.float32)
    # imp(level 1) = 1, so 0 and 1 carry 0.5 like 5 and precede 3; by path they carry 0.25 like 3.
    assert np.argsort(rank_edges(layout, score_E, "flow")).tolist() == [5, 0, 1, 3, 4, 2]
    assert np.argsort(rank_edges(layout, score_E, "path")).tolist() == [5, 0, 1, 3, 4, 2]
    score_E[3:] = [0.4, 0.2, 0.4]
    assert np.argsort(rank_edges(layout, score_E, "flow")).tolist() == [3, 0, 1, 5, 4, 2]
    assert np.argsort(rank_edges(layout, score_E, "path")).tolist() == [3, 0, 5, 1, 4, 2]


def test_a_score_of_zero_comes_last():
    layout = GraphLayout(4, 2, 2)
    rng = np.random.default_rng(5)
    score_E = (rng.random(layout.n_edges, dtype=np.float32) + 0.1) * (
        rng.random(layout.n_edges) < 0.6
    )
    score_E = score_E.astype(np.float32)
    values = oracles.path_values(layout.offsets, source_nodes(layout), score_E, layout.output)
    in_order = [values[edge] for edge in np.argsort(rank_edges(layout, score_E, "path"))]
    n_positive = sum(value > 0 for value in values)
    assert 0 < n_positive < layout.n_edges
    # A walk's edges below the first may only be worth more through a path taken before.
    assert all(value > 0 for value in in_order[:n_positive])
    assert sorted(in_order, reverse=True) == in_order


@pytest.mark.parametrize("search", ["flow", "path"])
def test_products_far_below_the_smallest_float64_keep_their_order(search):
    # 160 levels of scores about 1e-30: the smallest products are near 1e-4800.
    layout = GraphLayout(1, 80, 1)
    rng = np.random.default_rng(2)
    score_E = (1e-30 * rng.uniform(1, 2, layout.n_edges)).astype(np.float32)
    source = source_nodes(layout)
    if search == "flow":
        values = oracles.flow_values(layout.offsets, source, score_E, layout.output)
        keys = flow_keys(layout, score_E)
        assert min(values) < Fraction(1, 10**4500)
        np.testing.assert_array_equal(
            np.argsort(keys), sorted(range(len(values)), key=values.__getitem__)
        )
        expected = oracles.flow(layout.offsets, source, score_E, layout.output)
        np.testing.assert_array_equal(rank_edges(layout, score_E, "flow"), expected)
        return
    # One token: the best edge of every level makes the best path, the others swap one edge of it.
    ranks = rank_edges(layout, score_E, "path")
    best, loss = [], {}
    for node in range(layout.n_levels - 1, 0, -1):
        into = sorted(
            range(layout.offsets[node], layout.offsets[node + 1]), key=lambda e: -score_E[e]
        )
        best.append(into[0])
        loss.update({e: score_E[e] / np.float64(score_E[into[0]]) for e in into[1:]})
    assert np.argsort(ranks).tolist() == best + sorted(loss, key=lambda e: -loss[e])


def test_one_part_of_a_level_may_hold_less_than_a_float64_beside_one_that_holds_all():
    # Two tokens; a head looks back only in the last layer, at 1e-30. Below it every edge into
    # token 0 costs 1e-30 again, while the way down token 1 keeps everything.
    layout = GraphLayout(2, 12, 1, windows=(1,) * 11 + (None,))
    columns = layout.columns
    score_E = np.where(columns.target == 1, np.float32(0.5), np.float32(1e-30))
    score_E[(columns.source == 0) & (columns.target == 1)] = 1e-30
    score_E *= np.random.default_rng(0).uniform(1, 2, layout.n_edges).astype(np.float32)
    source = source_nodes(layout)
    values = oracles.flow_values(layout.offsets, source, score_E, layout.output)
    assert min(values) < Fraction(1, 10**400)
    assert max(values[: layout.offsets[2 * 2]]) > Fraction(1, 10)  # into level 1
    expected = oracles.flow(layout.offsets, source, score_E, layout.output)
    np.testing.assert_array_equal(rank_edges(layout, score_E, "flow"), expected)


def test_deep_wide_graphs_do_not_overflow():
    # The largest float32 on every edge of a deep graph: by symmetry the rest is order of arrival.
    layout = GraphLayout(2, 120, 8)
    for value in (np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal):
        score_E = np.full(layout.n_edges, value, np.float32)
        ones = np.ones(layout.n_edges, np.float32)
        np.testing.assert_array_equal(
            rank_edges(layout, score_E, "path"), rank_edges(layout, ones, "path")
        )
        assert (flow_keys(layout, score_E) > 0).all()


def test_best_first_is_the_default_and_another_name_an_error():
    layout = GraphLayout(5, 2, 2)
    score_E = np.random.default_rng(1).random(layout.n_edges, dtype=np.float32)
    expected = best_first_ranks(layout, score_E)
    np.testing.assert_array_equal(rank_edges(layout, score_E), expected)
    np.testing.assert_array_equal(rank_edges(layout, score_E, "best-first"), expected)
    with pytest.raises(OptionError, match="'deepest' is none of best-first, flow, path"):
        rank_edges(layout, score_E, "deepest")


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_scores_that_are_no_scores_are_refused(search, bad):
    layout = GraphLayout(2, 1, 1)
    score_E = np.ones(layout.n_edges, np.float32)
    score_E[2] = bad
    with pytest.raises(AssertionError):
        rank_edges(layout, score_E, search)
