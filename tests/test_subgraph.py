"""One vocabulary in every form of a sub-graph."""

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace import schema
from graphtrace.traces import Trace


@pytest.mark.parametrize("parallel", [False, True])
def test_names_of_components_and_hooks(parallel):
    names = {
        name: schema.component_hook(kind, level, head, parallel)
        for name, kind, level, head in schema.components(11, 8, parallel)
    }
    assert names["L10H7"] == "blocks.10.attn.hook_result[7]"
    assert names["L10.mlp"] == "blocks.10.hook_mlp_out"
    assert names["L10.resid_post"] == "blocks.10.hook_resid_post"
    assert ("L10.resid_mid" in names) is not parallel
    assert len(names) == 11 * (8 + (2 if parallel else 3))


def test_names_of_states():
    assert schema.state_name(" the", 7, 7, False) == "the@7 L3.mid"
    assert schema.state_name("\n", 0, 0, False) == "↵@0 embed"
    assert schema.state_name(" a", 1, 8, False) == "a@1 L3.post"
    assert schema.state_name(" a", 1, 4, True) == "a@1 L3.post"
    assert schema.visible(" the\t") == "·the⇥"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9),
    n=st.integers(1, 6),
    k=st.integers(4, 30),
    parallel=st.booleans(),
)
def test_every_form_says_the_same(seed, n, k, parallel):
    trace = synthetic_trace(seed, n, model_info(parallel=parallel))
    sub = trace.subgraph(f"k:{min(k, trace.n_edges)}")
    edges, nodes, parts = sub.edge_frame(), sub.node_frame(), sub.component_frame()
    assert edges["rank"].tolist() == list(range(len(sub)))
    assert ((edges["target_level"] - edges["source_level"]) == 1).all()
    assert edges["head"].isna().equals(edges["kind"] != "attention")
    assert parts["n_edges"].sum() == len(edges)
    assert parts["best_rank"].tolist() == sorted(parts["best_rank"])
    for row in parts.itertuples():
        own = edges[edges["component"] == row.component]
        assert (len(own), own["rank"].min()) == (row.n_edges, row.best_rank)
        assert own["score"].sum() == pytest.approx(row.score)
    ends = {
        (row[f"{side}_level"], row[f"{side}_position"])
        for row in edges.to_dict("records")
        for side in ("source", "target")
    }
    output = (trace.layout.n_levels - 1, n - 1)
    assert set(zip(nodes["level"], nodes["position"], strict=True)) == ends | {output}
    assert list(zip(nodes["level"], nodes["position"], strict=True)) == sorted(ends | {output})

    ig, nx = sub.to_igraph(), sub.to_networkx()
    assert ig.vs["name"] == nodes["name"].tolist()
    assert ig.es["component"] == edges["component"].tolist()
    assert [ig.vs[e.source]["level"] for e in ig.es] == edges["source_level"].tolist()
    assert [ig.vs[e.target]["position"] for e in ig.es] == edges["target_position"].tolist()
    assert nx.number_of_edges() == len(edges)
    by_rank = {d["rank"]: (u, v, d["component"]) for u, v, d in nx.edges(data=True)}
    for row in edges.to_dict("records"):
        u, v, component = by_rank[row["rank"]]
        assert u == (row["source_level"], row["source_position"])
        assert v == (row["target_level"], row["target_position"])
        assert component == row["component"]


def test_every_prefix_hangs_from_the_output():
    trace = synthetic_trace(3, 6)
    for k in (4, 9, 20):
        graph = trace.to_igraph(f"k:{k}")
        reach = graph.subcomponent(graph.vcount() - 1, mode="in")
        assert len(reach) == graph.vcount()


def test_top_is_the_smaller_trace():
    trace = synthetic_trace(1, 5)
    pd.testing.assert_frame_equal(
        trace.subgraph(1.0).top(13).edge_frame(), trace.subgraph("k:13").edge_frame()
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 50), n=st.integers(1, 5), keep=st.one_of(st.none(), st.integers(1, 9)))
def test_rows_hold_everything(seed, n, keep):
    trace = synthetic_trace(seed, n, keep=keep, labels={"b": "2", "a": "1"}, meta={"x": [1, None]})
    again = Trace.from_row(trace.to_row())
    assert again.id == trace.id
    for name in Trace.__dataclass_fields__:
        a, b = getattr(again, name), getattr(trace, name)
        if name in ("ranked", "curves"):
            continue
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype or name == "component_counts"
        else:
            assert a == b, name
    for column, expected in zip(again.ranked, trace.ranked, strict=True):
        np.testing.assert_array_equal(column, expected)
    pd.testing.assert_frame_equal(again.curve.frame(), trace.curve.frame())
    assert again.curve.top_tokens == trace.curve.top_tokens


def test_density_counts_equal_k_once_and_leaves_out_zero():
    trace = synthetic_trace(0, 5)
    curve = trace.curve
    points = {}
    for k, tv in zip(curve.k, curve.tv, strict=True):
        if k >= 1:
            points.setdefault(int(k), tv)
    x = np.log10(np.array(sorted(points)) / trace.n_edges)
    y = np.array([points[k] for k in sorted(points)])
    expected = sum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(len(x) - 1))
    assert curve.density == pytest.approx(expected)
    assert curve.density_normalised == pytest.approx(expected / -x[0])
    assert (curve.k == 0).any()
    assert (np.diff(curve.k) == 0).any()
