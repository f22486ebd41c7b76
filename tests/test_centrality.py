import networkx as nx
import numpy as np
import oracles_graph as oracle
import pytest
from builders import synthetic_trace
from builders_source import MemorySource, random_subgraph, study
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace.analysis.centrality import (
    COMPONENT_MEASURES,
    centrality,
    component_centrality,
    component_values,
    node_centrality,
    per_input,
)
from graphtrace.analysis.flow import path_flow
from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.analysis.weights import edge_weights, merge_parallel
from graphtrace.errors import OptionError
from graphtrace.sizes import ShortTraceWarning

random_graphs = st.builds(
    random_subgraph,
    seed=st.integers(0, 10_000),
    n=st.integers(1, 4),
    n_layers=st.integers(1, 2),
    n_heads=st.integers(1, 2),
    k=st.one_of(st.none(), st.integers(0, 3)),
    parallel=st.booleans(),
    ties=st.booleans(),
)
few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(random_graphs)
def test_weights_into_a_state_add_up_to_one(subgraph):
    weight = edge_weights(subgraph)
    for node in np.unique(subgraph.target_node):
        into = subgraph.target_node == node
        expected = 1.0 if subgraph.edges.score[into].sum() > 0 else 0.0
        assert weight[into].sum() == pytest.approx(expected)


@few
@given(random_graphs)
def test_links_merge_parallel_edges_in_rank_order(subgraph):
    weight = edge_weights(subgraph)
    links = merge_parallel(subgraph, weight)
    expected = oracle.weighted_graph(subgraph)
    ends = list(
        zip(links.nodes[links.source].tolist(), links.nodes[links.target].tolist(), strict=True)
    )
    assert len(set(ends)) == len(ends)
    assert dict(zip(ends, links.weight, strict=True)) == pytest.approx(
        {(s, t): w for s, t, w in expected.edges(data="weight")}
    )
    first = [int(np.flatnonzero(links.link == i)[0]) for i in range(len(ends))]
    assert first == sorted(first)
    assert [ends[i] for i in links.link] == list(
        zip(subgraph.source_node.tolist(), subgraph.target_node.tolist(), strict=True)
    )


@few
@given(random_graphs)
def test_path_flow_against_path_enumeration(subgraph):
    weight = edge_weights(subgraph)
    flow = path_flow(subgraph, weight)
    edge, node, total = oracle.path_flow(subgraph, weight)
    np.testing.assert_allclose(flow.edge, edge, atol=1e-12)
    np.testing.assert_allclose(flow.node, [node[int(v)] for v in subgraph.node_ids], atol=1e-12)
    assert flow.complete == pytest.approx(total, abs=1e-12)


@few
@given(random_graphs)
def test_path_flow_is_conserved_at_every_level(subgraph):
    flow = path_flow(subgraph, edge_weights(subgraph))
    expected = 1.0 if flow.complete > 0 else 0.0
    for level in range(1, subgraph.layout.n_levels):
        assert flow.edge[subgraph.edges.level == level].sum() == pytest.approx(expected)


def test_path_flow_survives_a_hundred_tiny_levels():
    # 100 levels whose only way through weighs 1e-6: the product, 1e-600, is below float64
    subgraph = random_subgraph(0, n=1, n_layers=50, n_heads=1, k=10_000)
    weight = np.where(subgraph.edges.kind == 0, 1e-6, 0.0)
    flow = path_flow(subgraph, weight)
    np.testing.assert_allclose(flow.edge, (subgraph.edges.kind == 0).astype(float))


@few
@given(random_graphs)
def test_node_measures_against_networkx(subgraph):
    frame = node_centrality(subgraph)
    graph = oracle.weighted_graph(subgraph)
    nodes = subgraph.node_ids.tolist()
    plain = nx.Graph(graph.to_undirected())
    plain.remove_edges_from(nx.selfloop_edges(plain))
    core = nx.core_number(plain)
    assert frame["core_number"].tolist() == [core[v] for v in nodes]
    between = nx.betweenness_centrality(graph, normalized=True)
    np.testing.assert_allclose(frame["betweenness"], [between[v] for v in nodes], atol=1e-12)
    rank = oracle.pagerank(subgraph)
    np.testing.assert_allclose(frame["pagerank"], [rank[v] for v in nodes], atol=1e-8)
    into, out = graph.in_degree(weight="weight"), graph.out_degree(weight="weight")
    np.testing.assert_allclose(frame["in_strength"], [into[v] for v in nodes], atol=1e-12)
    np.testing.assert_allclose(frame["out_strength"], [out[v] for v in nodes], atol=1e-12)


@few
@given(random_graphs)
def test_component_measures_are_taken_over_edges(subgraph):
    frame = component_centrality(subgraph).set_index("component")
    graph = oracle.weighted_graph(subgraph)
    weight = edge_weights(subgraph)
    flow, _, _ = oracle.path_flow(subgraph, weight)
    between = nx.edge_betweenness_centrality(graph, normalized=True)
    rank = oracle.pagerank(subgraph)
    names = subgraph.component_names
    assert set(frame.index) == set(names)
    for name in set(names):
        edges = np.flatnonzero(names == name)
        ends = [(int(subgraph.source_node[e]), int(subgraph.target_node[e])) for e in edges]
        row = frame.loc[name]
        assert row["n_edges"] == len(edges)
        assert row["path_flow"] == pytest.approx(flow[edges].sum(), abs=1e-12)
        assert row["strength"] == pytest.approx(weight[edges].sum())
        assert row["betweenness"] == pytest.approx(np.mean([between[end] for end in ends]))
        expected = sum(rank[t] * weight[e] for e, (_, t) in zip(edges, ends, strict=True))
        assert row["pagerank"] == pytest.approx(expected, abs=1e-8)


def test_pagerank_goes_against_the_edges():
    frame = node_centrality(synthetic_trace(1, n=6).subgraph("k:60"))
    assert frame["pagerank"].idxmax() == len(frame) - 1  # the output, where every walk restarts
    assert frame["pagerank"].sum() == pytest.approx(1)


def test_study_means_presence_and_intervals():
    source = study(8)
    frame = centrality(source, "k:25")
    values = [component_values(t.subgraph("k:25")) for t in source.held.values()]
    names = synthetic_trace().components()["component"]
    assert frame["path_flow"].is_monotonic_decreasing
    assert set(frame["component"]) <= set(names)
    table = component_centrality(synthetic_trace(n=5).subgraph()).set_index("component")
    order = list(table.index)  # canonical, since the whole graph uses every component
    for measure in COMPONENT_MEASURES:
        matrix = np.stack([getattr(v, measure) for v in values])
        low, high = bootstrap_mean(matrix)
        for row in frame.to_dict("records"):
            place = order.index(row["component"])
            assert row[measure] == pytest.approx(matrix[:, place].mean())
            assert row[f"{measure}_low"] == pytest.approx(low[place])
            assert row[f"{measure}_high"] == pytest.approx(high[place])
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    used = np.stack([v.n_edges > 0 for v in values])
    for row in frame.to_dict("records"):
        assert row["presence"] == used[:, order.index(row["component"])].mean()
    assert set(frame["n_inputs"]) == {8}
    assert set(frame["trace_edges"]) == {25.0}
    assert frame["presence"].min() < 1, "the test needs a component that some input lacks"


def test_groups_and_models_stay_apart():
    source = study(6, models=("a", "b"))
    frame = centrality(source, "k:25", by=["group"])
    assert list(frame.columns[:2]) == ["model", "group"]
    only = centrality(source, "k:25", models=["b"], where=["group=clean"])
    part = frame[(frame["model"] == "b@0123456789ab") & (frame["group"] == "clean")]
    part = part.drop(columns="group").reset_index(drop=True)
    assert part.equals(only)
    assert set(only["n_inputs"]) == {3}
    with pytest.raises(OptionError, match=r"no trace has a label 'colour'.*labels here: group"):
        centrality(source, "k:25", by=["colour"])
    with pytest.raises(OptionError, match="neither 'component' nor 'node'"):
        centrality(source, level="edge")  # type: ignore[arg-type]


def test_several_traces_of_an_input_count_once():
    values = np.array([[1.0], [3.0], [10.0]])
    assert per_input(["a", "a", "b"], values).tolist() == [[2.0], [10.0]]
    one = synthetic_trace(3, n=5, name="x", text="x")
    other = synthetic_trace(4, n=6, name="x", text="x")
    third = synthetic_trace(5, n=5, name="y", text="y")
    frame = centrality(MemorySource([one, other, third]), "k:25")
    assert set(frame["n_inputs"]) == {2}
    assert set(frame["n_traces"]) == {3}


def test_one_input_has_no_interval():
    frame = centrality(MemorySource([synthetic_trace(3)]), "k:25")
    assert frame["path_flow_low"].isna().all()
    assert frame["path_flow"].notna().all()


def test_node_level_keeps_every_trace():
    source = study(3)
    frame = centrality(source, "k:25", level="node", by=["group"])
    assert list(frame.columns[:5]) == ["model", "group", "trace", "input", "name"]
    for trace in source.held.values():
        rows = frame[frame["trace"] == trace.id].reset_index(drop=True)
        alone = node_centrality(trace.subgraph("k:25"))
        assert rows[alone.columns].equals(alone)
        assert set(rows["input"]) == {trace.name}


def test_short_traces_warn_once_with_counts():
    with pytest.warns(ShortTraceWarning, match="3 of 3 traces keep fewer edges") as caught:
        centrality(study(3), "k:2")
    assert len(caught) == 1


def test_bootstrap_covers_the_mean():
    # seeded: 95 % intervals of the mean of 30 exponential values, 300 studies
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(300):
        low, high = bootstrap_mean(rng.exponential(size=(30, 1)), draws=300, seed=i)
        inside += low[0] <= 1 <= high[0]
    assert 0.88 <= inside / 300 <= 0.97


def test_the_order_of_the_source_changes_nothing():
    source = study(12, models=("a", "b"))
    backwards = MemorySource(list(source.held.values())[::-1])
    for level in ("component", "node"):
        frame = centrality(source, "k:25", level=level)
        assert frame.equals(centrality(backwards, "k:25", level=level))
    names = list(dict.fromkeys(frame["input"]))
    assert names == [f"line-{i}" for i in range(12)]


def test_same_numbers_twice():
    source = study(3, models=("m",), groups=None)
    assert centrality(source, 0.5).equals(centrality(source, 0.5))
