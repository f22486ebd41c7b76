"""What every graph store must do: one behaviour suite, one thin file per backend.

A backend's test module defines a fixture `new_url` (a function that gives the URL of a store that
does not exist yet; stores that it gave before may be gone then) and two classes that inherit from
`StoreSuite` and `OwnStoreSuite`.
"""

import dataclasses
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves, with_experts

from graphtrace import schema
from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.errors import (
    QueryParameterError,
    ReadOnlyError,
    SizeError,
    StoreError,
    TraceNotFoundError,
)
from graphtrace.ingestion import ingest
from graphtrace.sizes import ShortTraceWarning
from graphtrace.stores.base import open_store

SECOND = timedelta(seconds=1)
NO_WARNING = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")


def zoo():
    """Traces of several models: sequential, parallel, sliding windows, experts, odd texts, few
    edges kept, a target and a foil."""
    parallel = model_info(3, 2, name="par", parallel=True)
    windowed = model_info(3, 2, name="win", windows=(2, None, 3))
    traces = [synthetic_trace(seed=i, n=4 + i, labels={"group": "ab"[i % 2]}) for i in range(4)]
    traces += [synthetic_trace(seed=i, n=5, model=parallel) for i in range(2)]
    traces += [synthetic_trace(seed=i, n=6, model=windowed) for i in range(2)]
    for model in (model_info(3, 2, name="moe"), model_info(3, 2, name="moe-par", parallel=True)):
        traces.append(with_experts(synthetic_trace(seed=5, n=5, model=model)))
    odd = synthetic_trace(
        seed=9, n=6, name="naïve 'quote' \"x\" \\ ; //", text="日本\n`語`", keep=20
    )
    tokens = [" é", "'", '"', "\\", "<0xE2>", "\n"]
    curve = odd.curves[0]
    points = len(curve.k)
    other = dataclasses.replace(
        curve,
        ablation="mean",
        reference="m0a1b2c3d",
        mode="necessity",
        p_target=np.linspace(0, 1, points),
        logit_diff=np.linspace(-2, 2, points),
    )
    traces.append(
        dataclasses.replace(
            odd,
            tokens=tokens,
            curves=(curve, other),
            loss=None,
            target_id=3,
            target=" Mary",
            foil_id=4,
            foil=" John",
        )
    )
    return traces


def check_same(subgraph, trace, size):
    """The store's sub-graph is the in-memory trace's, every column."""
    expected = trace.subgraph(size)
    pd.testing.assert_frame_equal(subgraph.edge_frame(), expected.edge_frame())
    pd.testing.assert_frame_equal(subgraph.node_frame(), expected.node_frame())
    assert (subgraph.trace, subgraph.model) == (expected.trace, expected.model)
    assert subgraph.layout == expected.layout
    for mine, theirs in zip(subgraph.edges, expected.edges, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


class Suite:
    """What both classes share."""

    @pytest.fixture(scope="class")
    @classmethod
    def traces(cls):
        return zoo()

    @pytest.fixture(scope="class")
    @classmethod
    def archive(cls, traces, tmp_path_factory):
        folder = tmp_path_factory.mktemp("archive") / "a"
        write_traces(folder, traces, keep="all")
        return folder

    @staticmethod
    def counts(store):
        """How many nodes and relationships of every label and type."""
        labels = ("Model", "Input", "Label", "Trace", "State", "Component", "Checkpoint")
        types = ("OF_MODEL", "OF_INPUT", "LABELLED", "OUTPUT", "IN_TRACE", "AT", "USES")
        types += ("RESIDUAL", "MLP", "ATTENTION")
        found = {x: f"MATCH (n:{x}) RETURN count(n) AS n" for x in labels}
        found |= {x: f"MATCH ()-[r:{x}]->() RETURN count(r) AS n" for x in types}
        return {x: int(store.query(text)["n"].iloc[0]) for x, text in found.items()}


class StoreSuite(Suite):
    """On one store that is only read. Inherit; the module provides `new_url`."""

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, new_url, archive):
        url = new_url()
        result = ingest(archive, url)
        assert result.n_new == 11
        return url

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, url):
        with open_store(url) as store:
            yield store

    def test_traces_are_those_of_the_archive(self, store, archive):
        with open_archive(archive) as opened:
            expected = opened.traces()
        found = store.traces()
        assert tuple(found.columns) == schema.TRACES_COLUMNS
        key = {"by": "id", "ignore_index": True}
        pd.testing.assert_frame_equal(
            found.sort_values(**key), expected.sort_values(**key), check_dtype=False
        )
        assert str(found["created"].dtype) == str(expected["created"].dtype)

    @pytest.mark.parametrize("reading", ["curve_points", "trace_tokens", "component_counts"])
    def test_what_is_read_in_bulk_is_the_archives(self, store, archive, reading):
        ids = sorted(store.traces()["id"])
        with open_archive(archive) as opened:
            expected = getattr(opened, reading)(ids)
        found = getattr(store, reading)(ids)
        assert found.dtypes.tolist() == expected.dtypes.tolist()
        for name in expected.columns:
            mine, theirs = ([np.asarray(x).tolist() for x in f[name]] for f in (found, expected))
            assert repr(mine) == repr(theirs), name  # NaN is like itself
        assert store.uncounted() == set()

    @NO_WARNING
    @pytest.mark.parametrize("size", [1.0, 0.5, 0.05, "k:1", "k:17", "tv:0.4"])
    def test_subgraphs_are_those_of_the_trace(self, store, traces, size):
        for trace in traces[:-1]:
            check_same(store.subgraph(trace.id, size), trace, size)

    @NO_WARNING
    def test_odd_text_and_few_edges(self, store, traces):
        check_same(store.subgraph(traces[-1].id, "k:20"), traces[-1], "k:20")

    def test_a_size_beyond_what_is_kept_names_what_is_kept(self, store, traces):
        with pytest.raises(SizeError, match=r"20.*kept|keeps 20"):
            store.subgraph(traces[-1].id, 1.0)

    def test_every_form_of_trace_name(self, store, traces):
        trace = traces[5]
        assert store.resolve(trace.id) == trace.id
        assert store.resolve(trace.id[:9]) == trace.id
        assert store.resolve("par:line-1") == trace.id
        assert store.subgraph("par:line-1").trace == trace.id
        with pytest.raises(TraceNotFoundError, match="means 3 traces"):
            store.resolve("line-1")
        with pytest.raises(TraceNotFoundError, match="no trace"):
            store.subgraph("nowhere")

    def test_counts(self, store, traces):
        counts = self.counts(store)
        assert counts["Trace"] == len(traces) == counts["OUTPUT"] == counts["OF_INPUT"]
        # Names and texts decide an input: two models traced some of the same lines.
        assert counts["Input"] == len({trace.input.id for trace in traces})
        assert counts["State"] == sum(len(t.nodes(f"k:{t.n_kept}")) for t in traces)
        assert counts["IN_TRACE"] == counts["State"]
        kinds = pd.concat([t.edges(f"k:{t.n_kept}")["kind"] for t in traces]).value_counts()
        for kind in schema.KINDS:
            assert counts[kind.upper()] == kinds[kind]
        assert counts["Checkpoint"] == sum(len(c.k) for t in traces for c in t.curves)
        models = {t.model.id: t.model for t in traces}.values()
        assert counts["Component"] == sum(
            len(schema.components(m.n_layers, m.n_heads, m.parallel)) for m in models
        )

    def test_component_use_is_the_component_frame(self, store, traces):
        for trace in traces:
            found = store.query(
                "MATCH (t:Trace {id: $id})-[u:USES]->(c:Component) RETURN c.name AS component, "
                "c.kind AS kind, c.layer AS layer, c.head AS head, u.n AS n_edges, "
                "u.best_rank AS best_rank, u.score AS score ORDER BY best_rank",
                id=trace.id,
            )
            expected = trace.components(f"k:{trace.n_kept}")
            assert found["head"].fillna(-1).tolist() == expected["head"].fillna(-1).tolist()
            for name in ("component", "kind", "layer", "n_edges", "best_rank"):
                assert found[name].tolist() == expected[name].tolist()
            np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-6)

    def test_first_edges_and_states(self, store, traces):
        for trace in traces:
            edges = trace.edges(f"k:{trace.n_kept}")
            source = list(zip(edges["source_level"], edges["source_position"], strict=True))
            first = [end not in source[:i] or None for i, end in enumerate(source)]
            found = store.query(
                "MATCH (t:Trace {id: $id})<-[:IN_TRACE]-(a:State)"
                "-[r:RESIDUAL|MLP|ATTENTION]->(b:State) "
                "RETURN r.first AS first, a.name AS source, b.name AS target ORDER BY r.rank",
                id=trace.id,
            )
            assert [x if x is True else None for x in found["first"]] == first
            assert found["first"].isna().sum() == first.count(None)
            names = trace.nodes(f"k:{trace.n_kept}").set_index(["level", "position"])["name"]
            assert found["source"].tolist() == [names[end] for end in source]
            target = zip(edges["target_level"], edges["target_position"], strict=True)
            assert found["target"].tolist() == [names[end] for end in target]

    def test_every_curve_is_there(self, store, traces):
        trace = traces[-1]
        found = store.query("reconstruction-curve", trace=trace.id)
        assert found["curve"].tolist() == [0] * 27 + [1] * 27
        for number, curve in enumerate(trace.curves):
            rows, expected = found[found["curve"] == number], curve.frame()
            assert set(rows["mode"]) == {curve.mode}
            assert set(rows["reference"].fillna("")) == {curve.reference or ""}
            for name in expected.columns:
                assert rows[name].tolist() == expected[name].tolist()
        assert found["p_target"].isna().tolist() == [True] * 27 + [False] * 27

    def test_experts_stand_on_the_states_behind_their_block(self, store, traces):
        for trace in traces:
            found = store.query(
                "MATCH (s:State)-[:IN_TRACE]->(t:Trace {id: $id}) RETURN s.level AS level, "
                "s.layer AS layer, s.site AS site, s.position AS position, s.experts AS experts",
                id=trace.id,
            )
            assert len(found) == len(trace.nodes(f"k:{trace.n_kept}"))
            n_said = 0
            for row in found.to_dict("records"):
                said = None if pd.isna(row["experts"]) else row["experts"]
                if trace.experts is None or row["site"] not in ("mlp", "block") or row["layer"] < 1:
                    assert said is None
                else:
                    a, b = trace.experts[int(row["layer"]), row["position"]]
                    assert said == f"{a},{b}"
                    n_said += 1
            assert bool(n_said) == (trace.experts is not None)

    def test_what_is_known_of_a_trace(self, store, traces):
        found = store.query(
            "MATCH (t:Trace) RETURN t.id AS id, t.mlp_active_share AS share, "
            "t.mass90_edges AS mass90, t.score_gini AS gini, t.curve AS curve, t.curves AS curves"
        ).set_index("id")
        for trace in traces:
            row = found.loc[trace.id]
            share = trace.mlp_active_share
            assert pd.isna(row["share"]) if share is None else row["share"] == share
            assert (row["mass90"], row["gini"]) == (trace.mass90_edges, trace.score_gini)
            assert row["curve"] == trace.curve.kind
            assert list(row["curves"]) == [curve.kind for curve in trace.curves]

    def test_cypher_takes_parameters_and_only_reads(self, store):
        text = "MATCH (t:Trace) WHERE t.name = $name RETURN count(t) AS n"
        assert store.query(text, name="line-2")["n"].tolist() == [1]
        assert store.query(text, name="' OR true //")["n"].tolist() == [0]
        with pytest.raises(QueryParameterError, match="needs parameter name"):
            store.query(text)
        with pytest.raises(QueryParameterError, match="no parameter nam; did you mean name"):
            store.query(text, name="x", nam="y")
        with pytest.raises(ReadOnlyError):
            store.query("MATCH (t:Trace) DETACH DELETE t")
        with pytest.raises(ReadOnlyError):  # the second line of defence
            store.cypher("MATCH (t:Trace) SET t.name = 'x'")
        assert store.query(text, name="line-2")["n"].tolist() == [1]

    def test_a_variable_may_have_a_clauses_name(self, store):
        text = (
            "MATCH (start:State)-[use:MLP]->(stop:State) RETURN count(use) AS n, max(start.id) AS m"
        )
        own = text.replace("start", "a").replace("use", "r").replace("stop", "b")
        assert store.query(text)["n"][0] > 0
        pd.testing.assert_frame_equal(store.query(text), store.query(own))

    def test_closed(self, url):
        store = open_store(url)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.subgraph("line-2")


class OwnStoreSuite(Suite):
    """Every test makes a store of its own; there is one at a time. Inherit, with `rebuild(url)`."""

    def test_again_changes_nothing(self, new_url, archive):
        url = new_url()
        ingest(archive, url)
        with open_store(url) as store:
            before = store.traces()
            counts = self.counts(store)
        again = ingest(archive, url)
        assert (again.n_new, again.n_present, again.n_edges) == (0, 11, 0)
        with open_store(url) as store:
            pd.testing.assert_frame_equal(store.traces(), before)
            assert self.counts(store) == counts

    def test_two_archives_meet(self, new_url, tmp_path):
        shared, mine = synthetic_trace(seed=1, labels={"a": "1"}), synthetic_trace(seed=2)
        labelled = dataclasses.replace(shared.input, labels={"a": "2", "b": "3"})
        theirs = synthetic_trace(seed=3, model=model_info(name="other"))
        write_traces(tmp_path / "one", [shared, mine], keep="all")
        second = dataclasses.replace(theirs, input=labelled, created=shared.created + SECOND)
        write_traces(tmp_path / "two", [dataclasses.replace(shared, input=labelled), second])
        url = new_url()
        ingest(tmp_path / "one", url)
        result = ingest(tmp_path / "two", url)
        assert (result.n_new, result.n_present) == (1, 1)
        with open_store(url) as store:
            # The newer value of a label counts; a key that was not there comes in.
            labels = store.traces().set_index("id")["labels"]
            assert labels[second.id] == {"a": "2", "b": "3"}
            counts = self.counts(store)
            assert (counts["Trace"], counts["Input"], counts["Model"]) == (3, 2, 2)
            assert counts["Label"] == 2
            found = store.query("MATCH (l:Label) RETURN l.name AS name ORDER BY name")
            assert found["name"].tolist() == ["a=2", "b=3"]

    def test_the_archive_answers_where_the_store_keeps_less(self, new_url, tmp_path):
        trace = synthetic_trace(seed=4, n=6)
        url, archive = new_url(), tmp_path / "archive"
        write_traces(archive, [trace], keep="k:30")
        ingest(archive, url)
        write_traces(archive, [trace], keep="all")
        with open_store(url) as store:
            check_same(store.subgraph(trace.id, 1.0), trace, 1.0)
            check_same(store.subgraph(trace.id, "k:30"), trace, "k:30")
            assert store.traces()["n_kept"].tolist() == [30]
        result = ingest(archive, url)
        assert (result.n_new, result.n_changed, result.n_conflicts) == (0, 1, 0)
        with open_store(url) as store:
            assert store.traces()["n_kept"].tolist() == [trace.n_edges]
            check_same(store.subgraph(trace.id, 1.0), trace, 1.0)

    def test_more_curves_in_the_archive_come_in(self, new_url, tmp_path):
        trace, other = synthetic_trace(seed=4), synthetic_trace(seed=5)
        url, archive = new_url(), tmp_path / "archive"
        kind = "sufficiency:zero:mlp"
        write_traces(archive, [trace, other])
        assert ingest(archive, url).n_changed == 0
        write_traces(archive, [with_curves(trace, kind)])
        result = ingest(archive, url)
        assert (result.n_new, result.n_changed) == (0, 1)
        assert ingest(archive, url).n_changed == 0
        with open_store(url) as store:
            found = store.traces().set_index("id").loc[trace.id]
            assert found["curves"] == [trace.curve.kind, kind]
            assert found["curve"] == trace.curve.kind
            assert found["density"] == trace.density
            names = store.query(
                "MATCH (:Trace {id: $id})-[:AT]->(c:Checkpoint) "
                "RETURN c.n_edges AS n, c.name AS name",
                id=trace.id,
            )
            assert names["name"].tolist() == [f"{n} edges" for n in names["n"]]
            assert len(names) == 2 * len(trace.curve.k)
