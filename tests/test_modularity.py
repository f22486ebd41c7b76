import random
from collections import Counter

import igraph
import networkx as nx
import numpy as np
import oracles_graph as oracle
import pytest
from builders import synthetic_trace
from builders_source import random_subgraph, study
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace.analysis.modularity import communities, leiden, modularity, modularity_summary
from graphtrace.analysis.stats import mutual_information
from graphtrace.analysis.weights import edge_weights, merge_parallel
from graphtrace.errors import OptionError
from graphtrace.sizes import ShortTraceWarning


def partitions(n):
    """Every partition of n things, as lists of labels."""
    if n == 0:
        yield []
        return
    for rest in partitions(n - 1):
        for label in range(max(rest, default=-1) + 2):
            yield [*rest, label]


def newman(subgraph, label, gamma):
    """Modularity of the undirected weighted graph, by networkx."""
    graph = oracle.weighted_graph(subgraph).to_undirected()
    groups = {}
    for node, community in zip(subgraph.node_ids.tolist(), label, strict=True):
        groups.setdefault(community, set()).add(node)
    return nx.community.modularity(graph, groups.values(), weight="weight", resolution=gamma)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_best_of_all_partitions(seed, gamma):
    subgraph = random_subgraph(seed, n=3, n_layers=1, n_heads=1, k=9)
    links = merge_parallel(subgraph, edge_weights(subgraph))
    found = leiden(links, gamma, seeds=10)
    best = max(newman(subgraph, label, gamma) for label in partitions(len(links.nodes)))
    assert found.modularity == pytest.approx(best)
    assert newman(subgraph, found.community, gamma) == pytest.approx(found.modularity)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(0, 30), st.booleans())
def test_any_graph_has_a_canonical_partition(seed, k, ties):
    subgraph = random_subgraph(seed, k=k, ties=ties)
    links = merge_parallel(subgraph, edge_weights(subgraph))
    found = leiden(links)
    first = list(dict.fromkeys(found.community.tolist()))
    assert first == list(range(len(first)))  # numbered by first member
    if np.isnan(found.modularity):
        assert links.weight.sum() == 0
        assert len(first) == len(links.nodes)
    else:
        assert newman(subgraph, found.community, 1.0) == pytest.approx(found.modularity)


def test_two_separate_chains_are_two_communities():
    # token 0 and token 1 keep only their residual edges: nothing links them
    subgraph = random_subgraph(0, n=2, n_layers=2, n_heads=1, k=99)
    keep = np.flatnonzero((subgraph.edges.kind == 0) & (subgraph.edges.level < 4))
    part = type(subgraph)(
        **{**vars(subgraph), "edges": subgraph.edges.take(keep), "rank": subgraph.rank[keep]}
    )
    frame = communities(part, resolution=0.1)
    chains = frame[frame["level"] < 4].groupby("position")["community"].nunique()
    assert chains.tolist() == [1, 1]
    assert frame[frame["level"] == 0]["community"].nunique() == 2


def test_same_partition_whatever_the_callers_seed():
    subgraph = synthetic_trace(2, n=8).subgraph("k:90")
    random.seed(1)
    one = communities(subgraph)
    random.seed(2)
    assert communities(subgraph).equals(one)
    random.seed(3)
    expected = random.Random(3).random()
    communities(subgraph)
    assert random.random() == expected  # and the caller's own draws are left alone
    random.seed(3)
    a = igraph.Graph.Erdos_Renyi(n=20, m=30).get_edgelist()
    random.seed(3)
    assert igraph.Graph.Erdos_Renyi(n=20, m=30).get_edgelist() == a  # igraph's generator is back


def entropy(labels):
    return -sum(c / len(labels) * np.log(c / len(labels)) for c in Counter(labels).values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_mutual_information_by_definition(pairs):
    a, b = np.array(pairs).T
    total = entropy(a.tolist()) + entropy(b.tolist())
    if total < 1e-12:
        assert np.isnan(mutual_information(a, b))
        return
    joint = entropy([4 * x + y for x, y in pairs])
    assert mutual_information(a, b) == pytest.approx(2 * (total - joint) / total, abs=1e-12)
    groups = igraph.compare_communities(a.tolist(), b.tolist(), method="nmi")
    assert mutual_information(a, b) == pytest.approx(groups, abs=1e-9)


def test_study_one_row_per_trace_and_resolution():
    source = study(4, models=("a", "b"))
    frame = modularity(source, "k:25", by=["group"], resolutions=[0.5, 1.0])
    assert len(frame) == 16
    assert list(frame.columns[:4]) == ["model", "group", "trace", "input"]
    for row in frame.to_dict("records"):
        subgraph = source.subgraph(row["trace"], "k:25")
        single = communities(subgraph, row["resolution"])
        assert row["n_communities"] == single["community"].nunique()
        assert row["n_nodes"] == len(single)
        assert row["n_edges"] == 25
        layer = single["layer"].fillna(-1).astype(int) + 1
        label = single["community"].to_numpy()
        assert row["layer_nmi"] == pytest.approx(
            igraph.compare_communities(label.tolist(), layer.tolist(), method="nmi")
        )
        assert row["position_nmi"] == pytest.approx(
            igraph.compare_communities(label.tolist(), single["position"].tolist(), method="nmi")
        )
        assert newman(subgraph, label, row["resolution"]) == pytest.approx(row["modularity"])
    assert frame.equals(modularity(source, "k:25", by=["group"], resolutions=[0.5, 1.0]))


def test_the_summary_is_over_inputs():
    source = study(5, models=("a", "b"))
    frame = modularity(source, "k:25", by=["group"], resolutions=[0.5, 1.0])
    traces = source.traces()
    # Two inputs of one name are two inputs, two traces of one input are one.
    names = traces.assign(input=[*traces["input"][:8], *traces["input"][:2]])
    for rows in (traces, names):
        found = modularity_summary(frame, rows, draws=100, seed=3)
        assert list(found.columns[:5]) == ["model", "group", "resolution", "n_inputs", "n_traces"]
        assert len(found) == 8
        input_of = dict(zip(rows["id"], rows["input"], strict=True))
        for row in found.to_dict("records"):
            same = [frame[key] == row[key] for key in ("model", "group", "resolution")]
            own = frame[np.logical_and.reduce(same)]
            by_input = {}
            for part in own.to_dict("records"):
                by_input.setdefault(input_of[part["trace"]], []).append(part["modularity"])
            means = [np.mean(x) for x in by_input.values()]
            assert (row["n_inputs"], row["n_traces"]) == (len(means), len(own))
            assert row["modularity"] == pytest.approx(np.mean(means))
            assert row["modularity_low"] <= row["modularity"] <= row["modularity_high"]
    with pytest.warns(ShortTraceWarning):
        nothing = modularity_summary(modularity(study(2), 1e-9), study(2).traces())
    assert np.isnan(nothing["modularity"].iloc[0])


def test_real_alignment_beats_its_chance_value():
    # traces of long inputs: communities follow token positions, shuffled ones do not
    frame = modularity(study(3, n=12), "k:120")
    assert (frame["position_nmi"] > frame["position_nmi_chance"]).all()


def test_options():
    with pytest.raises(OptionError, match="resolution 0 is not a positive number"):
        modularity(study(2), resolutions=[0])
    with pytest.raises(OptionError, match="0 seeds"):
        communities(synthetic_trace().subgraph(), seeds=0)
