"""`save_analysis` on both stores: what is printed is written, replaced and removed whole."""

import json

import neo4j_server
import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace

from graphtrace.analysis.centrality import centrality
from graphtrace.analysis.core import core_stability
from graphtrace.analysis.density import density
from graphtrace.analysis.modularity import communities, modularity, modularity_with_members
from graphtrace.archive_write import write_traces
from graphtrace.errors import OptionError, ReadOnlyError, StoreError
from graphtrace.ingestion import ingest
from graphtrace.sizes import ShortTraceWarning
from graphtrace.stores import neo4j_runs
from graphtrace.stores.base import open_store
from graphtrace.stores.copying import copy_store
from graphtrace.stores.maintenance import (
    delete_analyses,
    delete_store,
    delete_traces,
    rebuild_store,
    store_info,
)
from graphtrace.stores.measured_tables import measured_rows, target_of
from graphtrace.stores.saved_runs import list_runs, read_run, save_analysis
from graphtrace.stores.verify import verify_store

pytestmark = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")
SIZE = "k:20"


@pytest.fixture(params=["embedded", "neo4j"])
def url(request, tmp_path):
    """A store of six traces of two models, in two groups."""
    url = str(tmp_path / "store")
    if request.param == "neo4j":
        url = request.getfixturevalue("server")
        neo4j_server.empty(url)
    write_traces(tmp_path / "archive", traces(), keep="all")
    ingest(tmp_path / "archive", url)
    return url


def traces():
    made = [
        synthetic_trace(seed=i, n=4, name=f"line-{i % 3}", labels={"group": "ab"[i % 2]})
        for i in range(3)
    ]
    other = model_info(3, 2, name="other", parallel=True)
    return made + [
        synthetic_trace(seed=i, n=5, model=other, labels={"group": "ab"[i % 2]}) for i in range(3)
    ]


def save(url, name, size=None, by=None, **parameters):
    """(table, run) of an analysis, saved."""
    members = None
    with open_store(url, read_only=False) as store:
        if name == "modularity":
            table, members = modularity_with_members(store, size, by=by, **parameters)
        elif name == "density":
            table = density(store)
        elif name == "core-stability":
            table = getattr(core_stability(store, size, by=by), parameters["table"])
        else:
            table = centrality(store, size, by=by, **parameters)
        run = save_analysis(store, name, table, size, by=by, members=members, parameters=parameters)
        return table, run


def values(store, run, label, end, columns):
    """What Cypher gives back of a run's rows, in the order of the printed table."""
    parts = ", ".join(f"m.`{name}` AS `{name}`" for name in columns)
    return store.query(
        f"MATCH (a:Analysis {{id: $id}})-[m:MEASURED]->(x:{label}) "
        f"RETURN m.row AS `row`, m.subset AS subset, {end}, {parts} ORDER BY `row`",
        id=run.id,
    )


def same(found, table, columns):
    """The values of the printed table, NaN as nothing."""
    for name in columns:
        expected = table[name].tolist()
        for a, b in zip(found[name].tolist(), expected, strict=True):
            assert (pd.isna(a) and pd.isna(b)) or a == b, name


def everything(store):
    """Ids of runs, and how much of each kind there is."""
    kinds = ("OVER", "MEASURED", "FOUND", "OF_TRACE", "IN_COMMUNITY")
    counts = {
        kind: int(store.query(f"MATCH (a:{a})-[r:{kind}]->(b:{b}) RETURN count(r) AS n")["n"].sum())
        for kind, a, b in zip(
            kinds,
            ("Analysis", "Analysis", "Analysis", "Community", "State"),
            ("Trace", "Component", "Community", "Trace", "Community"),
            strict=True,
        )
    }
    counts |= {
        x: int(store.query(f"MATCH (x:{x}) RETURN count(x) AS n")["n"].iloc[0])
        for x in ("Analysis", "Community")
    }
    return counts


def test_components(url):
    table, run = save(url, "centrality", size=SIZE, by=["group"])
    own = ("model", "group", "component", "kind", "layer", "head")
    columns = [name for name in table if name not in own]
    with open_store(url) as store:
        found = values(store, run, "Component", "x.name AS component, x.model AS model", columns)
        assert found["row"].tolist() == list(range(len(table)))
        assert found["component"].tolist() == table["component"].tolist()
        assert found["model"].tolist() == table["model"].tolist()
        assert found["subset"].tolist() == [f"group={x}" for x in table["group"]]
        same(found, table, columns)
        listed = list_runs(store)
        top = store.query("saved-components", n=len(table))
    (row,) = listed.to_dict("records")
    assert row["id"] == run.id
    assert (row["measure"], row["size"], row["n_rows"]) == ("centrality", SIZE, len(table))
    assert (row["n_traces"], row["n_left"], row["n_communities"]) == (6, 6, 0)
    assert json.loads(row["parameters"]) == {"size": SIZE, "by": ["group"]}
    expected = table.sort_values(
        ["model", "group", "path_flow", "component"], ascending=[True, True, False, True]
    )
    assert top["component"].tolist() == expected["component"].tolist()
    assert top["path_flow"].tolist() == expected["path_flow"].tolist()
    assert top["subset"].tolist() == [f"group={x}" for x in expected["group"]]


def test_states(url):
    table, run = save(url, "centrality", size=SIZE, level="node")
    columns = ["rank", "pagerank", "betweenness", "in_strength", "out_strength", "path_flow"]
    with open_store(url) as store:
        ends = "x.trace AS trace, x.level AS level, x.position AS position"
        found = values(store, run, "State", ends, columns)
        for name in ("trace", "level", "position"):
            assert found[name].tolist() == table[name].tolist()
        same(found, table, columns)


def test_traces_and_communities(url):
    table, run = save(url, "modularity", size=SIZE, resolutions=[0.5, 1.0])
    columns = [name for name in table if name not in ("model", "trace", "input")]
    with open_store(url) as store:
        found = values(store, run, "Trace", "x.id AS trace", columns)
        assert found["trace"].tolist() == table["trace"].tolist()
        same(found, table, columns)
        pd.testing.assert_frame_equal(table, modularity(store, SIZE, resolutions=[0.5, 1.0]))
        for row in table.to_dict("records"):
            expected = communities(store.subgraph(row["trace"], SIZE), row["resolution"])
            held = store.query(
                "MATCH (a:Analysis)-[:FOUND]->(c:Community)-[:OF_TRACE]->(t:Trace {id: $trace}) "
                "MATCH (s:State)-[:IN_COMMUNITY]->(c) WHERE c.resolution = $resolution "
                "RETURN s.level AS level, s.position AS position, c.number AS community "
                "ORDER BY level, position",
                trace=row["trace"],
                resolution=row["resolution"],
            )
            names = ["level", "position", "community"]
            np.testing.assert_array_equal(held[names], expected[names])
            listed = store.query("saved-communities", trace=row["trace"])
            listed = listed[listed["resolution"] == row["resolution"]]
            groups = expected.groupby("community")
            assert listed["community"].tolist() == list(range(row["n_communities"]))
            assert listed["n_states"].tolist() == groups.size().tolist()
            assert listed["first_level"].tolist() == groups["level"].min().tolist()
            assert listed["last_position"].tolist() == groups["position"].max().tolist()
        sizes = store.query("MATCH (c:Community) RETURN c.size AS size, c.name AS name")
        assert sizes["name"].str.contains("of line-").all()
        total = store.query("MATCH ()-[r:IN_COMMUNITY]->(c:Community) RETURN count(r) AS n")
        assert sizes["size"].sum() == total["n"].iloc[0]


@pytest.mark.parametrize("table_name", ["summary", "components"])
def test_core_stability(url, table_name):
    table, run = save(url, "core-stability", size=SIZE, table=table_name)
    own = ("model", "component", "kind", "layer", "head")
    columns = [name for name in table if name not in own]
    label = "Model" if table_name == "summary" else "Component"
    with open_store(url) as store:
        found = values(store, run, label, "x.id AS id", columns)
        same(found, table, columns)


def test_density_is_about_models(url):
    table, run = save(url, "density")
    columns = [name for name in table if name != "model"]
    with open_store(url) as store:
        found = values(store, run, "Model", "x.id AS model", columns)
        assert found["model"].tolist() == table["model"].tolist()
        same(found, table, columns)


def test_rows_of_all_models_are_about_none():
    table = pd.DataFrame({"model": ["m", "all models"], "presence": [0.5, 1.0]})
    (rows,) = measured_rows(table, []).values()
    assert rows.to_pylist() == [{"to": "m", "row": 0, "subset": None, "presence": 0.5}]
    with pytest.raises(OptionError, match="neither a component"):
        target_of(["x"])


@pytest.mark.parametrize("name", ["a`b", "a b", "", "1a", "é"])
def test_a_column_that_cannot_be_a_property(name):
    table = pd.DataFrame({"model": ["m"], name: [1.0]})
    with pytest.raises(OptionError, match="cannot be saved: the name of a property"):
        measured_rows(table, [])


def test_the_same_again_takes_its_own_place(url):
    _, first = save(url, "modularity", size=SIZE)
    _, other = save(url, "modularity", size="k:12")
    _, third = save(url, "centrality", size=SIZE)
    with open_store(url) as store:
        before = everything(store)
        assert before["Analysis"] == 3
    _, again = save(url, "modularity", size=SIZE)
    assert again.id == first.id
    assert len({first.id, other.id, third.id}) == 3
    with open_store(url) as store:
        assert everything(store) == before
        assert store.loose_ends() == []
        assert set(list_runs(store)["id"]) == {first.id, other.id, third.id}
        info = store_info(store)
        assert info["nodes"]["Analysis"] == 3
        assert info["nodes"]["Community"] == before["Community"]


def test_other_traces_are_another_run(url):
    _, first = save(url, "centrality", size=SIZE)
    with open_store(url, read_only=False) as store:
        table = centrality(store, SIZE, models=["toy"])
        second = save_analysis(store, "centrality", table, SIZE, models=["toy"])
    assert first.id != second.id
    assert json.loads(second.properties["parameters"])["models"] == ["toy"]
    with open_store(url) as store:
        assert list_runs(store)["n_traces"].tolist() == [6, 3]


def test_rows_of_traces_that_were_left_out_are_an_error(url):
    with open_store(url, read_only=False) as store:
        table = modularity(store, SIZE)
        with pytest.raises(OptionError, match="leave out"):
            save_analysis(store, "modularity", table, SIZE, models=["toy"])
        assert len(list_runs(store)) == 0


def test_removing(url):
    _, first = save(url, "modularity", size=SIZE)
    _, second = save(url, "centrality", size=SIZE)
    with pytest.raises(OptionError, match="no saved run"):
        delete_analyses(url, ["a0"] if not first.id.startswith("a0") else ["af"])
    assert delete_analyses(url, [first.id[:9]]) == [first.id]
    with open_store(url) as store:
        assert list_runs(store)["id"].tolist() == [second.id]
        assert everything(store)["Community"] == everything(store)["IN_COMMUNITY"] == 0
        assert store.loose_ends() == []
    delete_analyses(url, [second.id])
    with open_store(url) as store:
        assert set(everything(store).values()) == {0}
        assert verify_store(store, store.archives)["problem"].tolist() == []


def test_a_store_that_is_read_refuses(url):
    table, _ = save(url, "centrality", size=SIZE)
    with open_store(url) as store:
        with pytest.raises((ReadOnlyError, StoreError), match=r"read"):
            save_analysis(store, "centrality", table, "k:5")
        assert len(list_runs(store)) == 1


def test_a_failure_on_the_way_leaves_nothing_half_written(url, monkeypatch):
    _, run = save(url, "modularity", size=SIZE)
    with open_store(url) as store:
        before = everything(store)
        embedded = store.kind == "embedded"
    from graphtrace.stores import embedded_runs

    def broken(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(embedded_runs, "_write_communities", broken)
        patch.setattr(neo4j_runs, "_complete", broken)
        with pytest.raises(RuntimeError, match="killed"):
            save(url, "modularity", size=SIZE)
    with open_store(url) as store:
        assert store.loose_ends() == []
        if embedded:  # which removes the old one first
            assert set(everything(store).values()) == {0}
        else:
            assert everything(store) == before
            assert list_runs(store)["id"].tolist() == [run.id]


def test_many_rows_come_in_parts(url, monkeypatch):
    monkeypatch.setattr(neo4j_runs, "PART", 7)
    table, run = save(url, "centrality", size=SIZE, level="node")
    save(url, "modularity", size=SIZE)
    with open_store(url) as store:
        found = values(store, run, "State", "x.trace AS trace", ["pagerank"])
        same(found, table, ["pagerank"])
    delete_analyses(url, [run.id])
    with open_store(url) as store:
        assert store.loose_ends() == []
        assert len(list_runs(store)) == 1


def rows_of(run):
    """All that a run holds, in a form that two can be compared by; columns without values left
    out."""
    measured = {
        label: [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
        for label, table in run.measured.items()
        if table.num_rows
    }
    members = sorted(map(str, run.members.to_pylist()))
    nodes = sorted(map(str, run.communities.to_pylist()))
    return run.properties, run.traces, measured, nodes, members


@pytest.mark.parametrize("name", ["modularity", "centrality"])
def test_read_back_whole(url, name):
    options = {"level": "node"} if name == "centrality" else {}
    _, run = save(url, name, size=SIZE, **options)
    with open_store(url) as store:
        assert rows_of(read_run(store, run.id)) == rows_of(run)
        with pytest.raises(StoreError, match="no saved run"):
            read_run(store, "a0")


def test_deleting_a_trace_takes_what_was_found_of_it(url):
    _, of_traces = save(url, "modularity", size=SIZE)
    components, of_components = save(url, "centrality", size=SIZE)
    _, of_states = save(url, "centrality", size=SIZE, level="node")
    gone = traces()[1].id
    kept = [rows_of(run.of_traces(set(run.traces) - {gone})) for run in (of_traces, of_states)]
    delete_traces(url, [gone])
    with open_store(url) as store:
        assert store.loose_ends() == []
        listed = list_runs(store).set_index("id")
        assert listed["n_traces"].tolist() == [6] * 3
        assert listed["n_left"].tolist() == [5] * 3
        assert [rows_of(read_run(store, run.id)) for run in (of_traces, of_states)] == kept
        found = values(store, of_components, "Component", "x.name AS name", ["path_flow"])
        same(found, components, ["path_flow"])


def test_rebuild_keeps_runs(url, tmp_path):
    runs = [save(url, "modularity", size=SIZE)[1], save(url, "centrality", size=SIZE)[1]]
    write_traces(tmp_path / "archive", [synthetic_trace(seed=9, n=4)], keep="all")
    rebuild_store(url)
    with open_store(url) as store:
        assert len(store.traces()) == 7
        assert [rows_of(read_run(store, run.id)) for run in runs] == list(map(rows_of, runs))
        assert verify_store(store, store.archives)["problem"].tolist() == []


def test_copy_brings_runs_along(url, tmp_path):
    runs = [save(url, "modularity", size=SIZE)[1], save(url, "centrality", size=SIZE)[1]]
    result = copy_store(url, tmp_path / "copy")
    assert (result.n_new, result.n_runs) == (6, 2)
    assert copy_store(url, tmp_path / "copy").n_runs == 0
    with open_store(tmp_path / "copy") as store:
        assert [rows_of(read_run(store, run.id)) for run in runs] == list(map(rows_of, runs))
        assert store.loose_ends() == []


def test_a_trace_with_other_edges_loses_what_was_found_of_it(url, tmp_path):
    short = synthetic_trace(seed=8, n=4)
    write_traces(tmp_path / "short", [short], keep="k:30")
    ingest(tmp_path / "short", url)
    _, run = save(url, "modularity", size=SIZE)
    write_traces(tmp_path / "short", [short], keep="all")
    assert ingest(tmp_path / "short", url).n_changed == 1
    with open_store(url) as store:
        assert store.loose_ends() == []
        assert list_runs(store)[["n_traces", "n_left"]].to_numpy().tolist() == [[7, 6]]
        assert rows_of(read_run(store, run.id)) == rows_of(run.of_traces({t.id for t in traces()}))


def test_deleting_the_store_takes_all(url):
    save(url, "modularity", size=SIZE)
    delete_store(url)
    with pytest.raises(StoreError, match="no store"):
        open_store(url)
