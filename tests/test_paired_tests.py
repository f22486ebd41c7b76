"""Two groups of inputs compared: every test against a plain one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, fisher_exact, mannwhitneyu

from graphtrace.analysis.paired_tests import (
    bootstrap_difference,
    fisher,
    mcnemar,
    paired_difference,
    rank_sum,
    sign_test,
)
from graphtrace.analysis.stats import false_discovery_q


def plain_mcnemar(only_a, only_b):
    """Of all ways in which the discordant pairs could have fallen, those at least as lopsided."""
    n = only_a + only_b
    worst = abs(only_a - only_b)
    ways = [sum(x) for x in itertools.product((0, 1), repeat=n)]
    return sum(abs(2 * k - n) >= worst for k in ways) / len(ways)


def plain_bh(p):
    """q of p_i: the smallest level at which the step-up procedure rejects it."""
    n = len(p)
    ordered = sorted(p)
    q = []
    for x in p:
        levels = [ordered[k] * n / (k + 1) for k in range(n) if ordered[k] >= x]
        q.append(min([*levels, 1.0]))
    return q


@pytest.mark.parametrize(("only_a", "only_b"), list(itertools.product(range(7), repeat=2)))
def test_mcnemar_against_all_ways(only_a, only_b):
    found = mcnemar(np.array([only_a]), np.array([only_b]))
    assert found[0] == pytest.approx(plain_mcnemar(only_a, only_b), abs=1e-12)


def test_mcnemar_of_a_known_example():
    # 10 and 0 discordant pairs: 2 / 2^10; and 6 and 16 (Fagerland et al. 2013 give 0.0525).
    found = mcnemar(np.array([10, 6]), np.array([0, 16]))
    assert found[0] == pytest.approx(2 / 1024)
    exact = 2 * sum(math.comb(22, k) for k in range(7)) / 2**22
    assert found[1] == pytest.approx(exact)
    assert found[1] == pytest.approx(0.0525, abs=1e-4)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
)
def test_the_sign_test_of_presences_is_mcnemars(pairs):
    a, b = np.array(pairs, float).T
    only_a = sum(x and not y for x, y in pairs)
    only_b = sum(y and not x for x, y in pairs)
    found = sign_test((a - b)[:, None])
    assert found[0] == pytest.approx(plain_mcnemar(only_a, only_b), abs=1e-12)


@given(st.data())
def test_fisher_against_the_definition(data):
    n_a, n_b = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    has_a, has_b = data.draw(st.integers(0, n_a)), data.draw(st.integers(0, n_b))
    total = has_a + has_b

    def chance(k):
        return math.comb(n_a, k) * math.comb(n_b, total - k) / math.comb(n_a + n_b, total)

    possible = range(max(0, total - n_b), min(n_a, total) + 1)
    expected = sum(chance(k) for k in possible if chance(k) <= chance(has_a) * (1 + 1e-9))
    found = fisher(np.array([has_a, has_a]), n_a, np.array([has_b, has_b]), n_b)
    assert found == pytest.approx([expected] * 2, abs=1e-9)
    assert found[0] == pytest.approx(
        fisher_exact([[has_a, n_a - has_a], [has_b, n_b - has_b]])[1], abs=1e-12
    )


def test_fisher_keeps_columns_apart_and_in_order():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, 50), rng.integers(0, 6, 50)
    expected = [fisher_exact([[x, 7 - x], [y, 5 - y]])[1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(fisher(a, 7, b, 5), expected)
    assert np.isnan(fisher(np.zeros(3), 0, np.ones(3), 5)).all()


VALUES = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-1, 1)


@given(st.lists(VALUES, min_size=1, max_size=9), st.lists(VALUES, min_size=1, max_size=9))
def test_rank_sum_against_scipy_and_constants(a, b):
    columns_a, columns_b = np.array([a, [2.0] * len(a)]).T, np.array([b, [2.0] * len(b)]).T
    found = rank_sum(columns_a, columns_b)
    assert found[1] == 1
    if len({*a, *b}) == 1:
        assert found[0] == 1
    else:
        assert found[0] == pytest.approx(mannwhitneyu(a, b, method="asymptotic").pvalue)
    assert np.isnan(rank_sum(columns_a[:0], columns_b)).all()


def test_rank_sum_against_a_published_example():
    # Mann-Whitney U of Hollander and Wolfe's permeability constants: U = 35, exact p 0.2544.
    x = np.array([0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46])
    y = np.array([1.15, 0.88, 0.90, 0.74, 1.21])
    assert rank_sum(x[:, None], y[:, None])[0] == pytest.approx(0.2544, abs=0.02)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.5, 1.0]), max_size=20))
def test_benjamini_hochberg_against_two_others(p):
    found = false_discovery_q(np.array(p))
    np.testing.assert_allclose(found, plain_bh(p), atol=1e-12)
    if p:
        np.testing.assert_allclose(found, false_discovery_control(p), atol=1e-12)


def test_benjamini_hochberg_of_a_published_example():
    # Benjamini and Hochberg 1995, section 3.2: four of the 15 are found at 0.05.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262,
         0.5719, 0.6528, 0.7590, 1.0]  # fmt: skip
    found = false_discovery_q(np.array(p))
    assert (found <= 0.05).sum() == 4
    holes = np.insert(np.array(p), [0, 4], np.nan)
    again = false_discovery_q(holes)
    assert np.isnan(again[[0, 5]]).all()
    np.testing.assert_array_equal(again[~np.isnan(again)], found)


def test_bootstrap_of_two_groups_against_a_plain_loop():
    rng = np.random.default_rng(5)
    a, b = rng.normal(1, 1, (9, 3)), rng.normal(0, 2, (6, 3))
    found = bootstrap_difference(a, b, draws=300, seed=4)
    first = np.random.default_rng([4, 0]).multinomial(9, [1 / 9] * 9, size=300)
    second = np.random.default_rng([4, 1]).multinomial(6, [1 / 6] * 6, size=300)
    for column in range(3):
        drawn = [
            np.mean(np.repeat(a[:, column], x)) - np.mean(np.repeat(b[:, column], y))
            for x, y in zip(first, second, strict=True)
        ]
        expected = np.percentile(drawn, [2.5, 97.5])
        assert (found.low[column], found.high[column]) == pytest.approx(tuple(expected))
        # The standard error of a difference of two means.
        error = math.sqrt(a[:, column].var() / 9 + b[:, column].var() / 6)
        assert found.high[column] - found.low[column] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_swapping_groups_mirrors_the_interval():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(8, 4)), rng.uniform(size=(8, 4))
    one = bootstrap_difference(a, b)
    other = bootstrap_difference(b, a, streams=(1, 0))
    np.testing.assert_allclose(one.low, -other.high)
    np.testing.assert_allclose(one.high, -other.low)
    same = bootstrap_difference(a, a)
    assert (same.low < 0).all(), "the two groups are drawn apart"
    pairs = paired_difference(a, a)
    assert (pairs.low == 0).all()
    assert (pairs.high == 0).all()


def test_pairs_are_drawn_whole():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 10, (40, 1))
    a, b = base + rng.normal(0.5, 0.1, (40, 1)), base
    found = paired_difference(a, b)
    assert found.low[0] > 0.4
    assert found.high[0] < 0.6
    apart = bootstrap_difference(a, b)
    assert apart.high[0] - apart.low[0] > 4


@pytest.mark.parametrize(("n_a", "n_b"), [(0, 3), (1, 3), (3, 1), (0, 0)])
def test_too_few_inputs_have_no_interval(n_a, n_b):
    found = bootstrap_difference(np.ones((n_a, 2)), np.ones((n_b, 2)))
    assert np.isnan(found).all()
    assert np.isnan(paired_difference(np.ones((1, 2)), np.ones((1, 2)))).all()
