import time

import networkx as nx
import numpy as np
import oracles_graph as oracle
import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource, study
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from graphtrace.analysis.core import core_stability, expected_jaccard, overlap, stability
from graphtrace.analysis.stats import gini, lorenz, wilson
from graphtrace.errors import OptionError

matrices = st.builds(
    lambda m, d, p, seed: np.random.default_rng(seed).random((m, d)) < p,
    m=st.integers(2, 9),
    d=st.integers(1, 8),
    p=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 10_000),
)
few = settings(max_examples=80, deadline=None, derandomize=True)


@few
@given(matrices)
def test_stability_by_its_definition(present):
    found = stability(present)
    if present.all() or not present.any():
        assert np.isnan(found.phi)
        return
    phi, variance = oracle.stability(present)
    assert found.phi == pytest.approx(phi)
    assert found.error**2 == pytest.approx(variance, rel=1e-9, abs=1e-15)
    assert found.low == pytest.approx(phi - 1.96 * variance**0.5, abs=1e-4)
    assert found.high == pytest.approx(min(phi + 1.96 * variance**0.5, 1), abs=1e-4)


def test_stability_of_equal_and_of_random_sets():
    equal = np.tile([True, True, False, False, False], (6, 1))
    assert stability(equal).phi == pytest.approx(1)
    rng = np.random.default_rng(0)
    draws = [rng.random((20, 40)) < 0.3 for _ in range(200)]
    assert np.mean([stability(z).phi for z in draws]) == pytest.approx(0, abs=0.005)


def test_stability_needs_two_sets_and_two_inputs():
    assert np.isnan(stability(np.ones((1, 3), bool)).phi)
    one_input = stability(np.eye(3, dtype=bool), np.zeros(3, np.int64))
    assert one_input.phi == pytest.approx(-0.5)
    assert np.isnan(one_input.error)


def _population(rng, n):
    """Cores of n inputs: each component's probability, by d = 60 components."""
    p = np.linspace(0.02, 0.98, 60)
    return rng.random((n, 60)) < p


def test_interval_of_stability_covers():
    truth = stability(_population(np.random.default_rng(1), 200_000)).phi
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(500):
        found = stability(_population(rng, 40))
        inside += found.low <= truth <= found.high
    assert 0.91 <= inside / 500 <= 0.98


def test_interval_covers_when_an_input_has_several_traces():
    # four traces of one input share most of their core: counting traces would be far too sure
    def draw(rng, n):
        core = np.repeat(_population(rng, n), 4, axis=0)
        return core ^ (rng.random(core.shape) < 0.02), np.repeat(np.arange(n), 4)

    truth = stability(draw(np.random.default_rng(1), 30_000)[0]).phi
    rng = np.random.default_rng(3)
    covered, naive = 0, 0
    for _ in range(300):
        present, inputs = draw(rng, 60)
        found, wrong = stability(present, inputs), stability(present)
        covered += found.low <= truth <= found.high
        naive += wrong.low <= truth <= wrong.high
    assert covered / 300 >= 0.85
    assert naive < covered - 30


@few
@given(matrices, st.integers(1, 4))
def test_overlap_by_pairs(present, n_inputs):
    inputs = np.arange(len(present)) % n_inputs
    found = overlap(present, inputs)
    for same, value in ((False, found.between), (True, found.within)):
        assert value == pytest.approx(oracle.mean_jaccard(present, inputs, same), nan_ok=True)


def test_overlap_in_several_chunks():
    rng = np.random.default_rng(0)
    present = rng.random((600, 6)) < 0.5
    inputs = rng.integers(0, 400, 600)
    found = overlap(present, inputs)
    assert found.between == pytest.approx(oracle.mean_jaccard(present, inputs))
    assert found.within == pytest.approx(oracle.mean_jaccard(present, inputs, True))


@pytest.mark.parametrize("n", [1, 3, 6])
def test_chance_overlap_by_enumeration(n):
    a, b = (grid.ravel() for grid in np.indices((n + 1, n + 1)))
    expected = [oracle.expected_jaccard(n, int(x), int(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(expected_jaccard(n, a, b), expected, atol=1e-12)


def test_random_cores_overlap_as_chance_says():
    rng = np.random.default_rng(0)
    present = rng.random((400, 50)) < 0.4
    found = overlap(present, np.arange(400))
    assert found.between == pytest.approx(found.chance, abs=0.002)
    assert 0.2 < found.chance < 0.3


@few
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_gini_and_lorenz(values):
    if sum(values) == 0:
        assert np.isnan(gini(np.array(values)))
        assert np.isnan(lorenz(np.array(values))).all()
        return
    assert gini(np.array(values)) == pytest.approx(oracle.gini(values), abs=1e-12)
    curve = lorenz(np.array(values))
    best = sorted(values, reverse=True)
    for count in range(len(values) + 1):
        assert curve[count] == pytest.approx(sum(best[:count]) / sum(values))


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 7), (50, 100)])
def test_wilson_against_scipy(k, n):
    low, high = wilson(np.array([k / n]), n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_study_tables():
    source = study(6, models=("a", "b"))
    found = core_stability(source, "k:25")
    assert found.summary["model"].tolist() == ["a@0123456789ab", "b@0123456789ab", "all models"]
    for model in ("a@0123456789ab", "b@0123456789ab", "all models"):
        chosen = [t for t in source.held.values() if model in (t.model.id, "all models")]
        cores = [set(t.components("k:25")["component"]) for t in chosen]
        inputs = [t.input.id for t in chosen]
        rows = found.components[found.components["model"] == model].set_index("component")
        assert len(rows) == 2 * (2 + 3)
        for name, row in rows.iterrows():
            assert row["presence"] == pytest.approx(np.mean([name in core for core in cores]))
            assert row["presence_low"] <= row["presence"] <= row["presence_high"]
        assert rows["edge_share"].sum() == pytest.approx(1)
        summary = found.summary[found.summary["model"] == model].iloc[0]
        present = np.array([[name in core for name in rows.index] for core in cores])
        phi, variance = oracle.stability(present)
        assert summary["stability"] == pytest.approx(phi)
        if model != "all models":
            assert summary["stability_error"] == pytest.approx(variance**0.5)
        assert summary["jaccard"] == pytest.approx(oracle.mean_jaccard(present, inputs))
        assert summary["jaccard_same_input"] == pytest.approx(
            oracle.mean_jaccard(present, inputs, True), nan_ok=True
        )
        assert summary["n_inputs"] == 6
        assert summary["n_traces"] == len(chosen)
        assert summary["trace_edges"] == 25
        assert summary["core_size"] == pytest.approx(np.mean([len(core) for core in cores]))
        assert summary["gini"] == pytest.approx(oracle.gini(rows["edge_share"].tolist()))
        innermost = []
        for trace in chosen:
            plain = nx.Graph(oracle.weighted_graph(trace.subgraph("k:25")).to_undirected())
            core = list(nx.core_number(plain).values())
            innermost.append((max(core), core.count(max(core)) / len(core)))
        for i, name in enumerate(("k_core", "k_core_share")):
            assert summary[name] == pytest.approx(np.mean([x[i] for x in innermost]))
            assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
        curve = found.lorenz[found.lorenz["model"] == model]
        assert len(curve) == 11
        assert curve["share"].iloc[1] == pytest.approx(rows["edge_share"].max())
        assert summary["top10_share"] == pytest.approx(curve["share"].iloc[1])


def test_models_of_other_shapes_are_not_taken_together():
    small = synthetic_trace(1, name="x")
    large = synthetic_trace(2, name="x", model=model_info(n_heads=3, name="wide"))
    found = core_stability(MemorySource([small, large]), "k:20")
    assert "all models" not in found.summary["model"].tolist()
    assert np.isnan(found.summary["stability"]).all()  # one trace each


def test_groups():
    found = core_stability(study(8), "k:25", by=["group"])
    assert found.summary[["group", "n_inputs"]].values.tolist() == [["clean", 4], ["corrupt", 4]]
    only = core_stability(study(8), "k:25", where=["group=corrupt"])
    row = found.summary[found.summary["group"] == "corrupt"].drop(columns="group")
    assert row.reset_index(drop=True).equals(only.summary)
    by_model = core_stability(study(3, models=("a", "b")), "k:25", by=["model_name"])
    assert by_model.summary["model_name"].tolist() == ["a", "b"]
    with pytest.raises(OptionError, match="no trace has a label"):
        core_stability(study(2), by=["nothing"])


def test_many_inputs_are_quick():
    rng = np.random.default_rng(0)
    present = rng.random((3000, 400)) < rng.random(400)
    start = time.perf_counter()
    overlap(present, np.arange(3000))
    stability(present)
    assert time.perf_counter() - start < 10
