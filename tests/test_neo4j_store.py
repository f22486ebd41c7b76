"""The Neo4j store on a real server: the common suite, connecting, writing, looking after it."""

import datetime
import io
import shutil
import socket
import sys

import neo4j_server
import pytest
from builders import synthetic_trace
from store_suite import OwnStoreSuite, StoreSuite, check_same, zoo

from graphtrace.archive_write import write_traces
from graphtrace.errors import (
    MissingPackageError,
    OptionError,
    QueryError,
    ReadOnlyError,
    StoreError,
    TraceNotFoundError,
)
from graphtrace.ingestion import ingest
from graphtrace.stores.base import open_store
from graphtrace.stores.copying import copy_store
from graphtrace.stores.maintenance import (
    delete_store,
    delete_traces,
    rebuild_store,
    store_info,
)
from graphtrace.stores.neo4j_connection import Server, check_version, server_url
from graphtrace.stores.verify import verify_store


@pytest.fixture(scope="class")
def new_url(server):
    def make():
        neo4j_server.empty(server)
        return server

    return make


class TestSuite(StoreSuite):
    """The behaviour that all stores share."""


class TestOwnSuite(OwnStoreSuite):
    """The same, on stores of their own."""

    rebuild = staticmethod(rebuild_store)


@pytest.fixture
def small(server, tmp_path):
    """(url, archive, traces) of five small traces on the server."""
    neo4j_server.empty(server)
    traces = [synthetic_trace(seed=i, n=4, labels={"odd": str(i % 2)}) for i in range(5)]
    write_traces(tmp_path / "archive", traces, keep="all")
    ingest(tmp_path / "archive", server)
    return server, tmp_path / "archive", traces


@pytest.fixture
def raw(server):
    """A connection past the store, to read and change the database behind its back."""
    connection = Server(server)
    yield connection
    connection.close()


def problems(url):
    with open_store(url) as opened:
        return verify_store(opened, opened.archives, opened.deleted)


def everything(raw):
    """(nodes, relationships) in the whole database."""
    return raw.read("MATCH (n) RETURN count(n)")[0][0], raw.read(
        "MATCH ()-[r]->() RETURN count(r)"
    )[0][0]


# --------------------------------------------------------------------------------- connecting


def test_a_url_holds_no_password(monkeypatch):
    for url in ("neo4j://neo4j:s3cret@localhost", "bolt+s://s3cret@x:7687"):
        with pytest.raises(StoreError, match="neither user nor password") as caught:
            open_store(url)
        assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("NEO4J_URI", "neo4j://neo4j:s3cret@localhost")
    with pytest.raises(StoreError, match="neither user nor password") as caught:
        open_store("neo4j://")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("neo4j://h", "neo4j://h:7687"),
        ("bolt+ssc://h:99/", "bolt+ssc://h:99"),
        ("neo4j+s://x.databases.neo4j.io", "neo4j+s://x.databases.neo4j.io:7687"),
        ("bolt://[::1]:7688", "bolt://[::1]:7688"),
        ("neo4j://h?policy=eu", "neo4j://h:7687?policy=eu"),
        ("neo4j://", "bolt://elsewhere:1"),
    ],
)
def test_urls_are_passed_on(monkeypatch, url, expected):
    monkeypatch.setenv("NEO4J_URI", "bolt://elsewhere:1")
    assert server_url(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("neo4j://h/db", "NEO4J_DATABASE names the database"),
        ("neo4j://h:99999", "[Pp]ort"),
        ("neo4j://", "set NEO4J_URI"),
        ("bolt://:7687", "names no host"),
    ],
)
def test_a_url_that_means_nothing_is_said(monkeypatch, url, message):
    monkeypatch.delenv("NEO4J_URI", raising=False)
    with pytest.raises(StoreError, match=message):
        server_url(url)


def test_no_server_answers(monkeypatch):
    monkeypatch.setenv("NEO4J_PASSWORD", "s3cret")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("bolt", "neo4j", "bolt+ssc", "neo4j+s"):
        with pytest.raises(StoreError, match=r"does not answer .*see that it runs") as caught:
            open_store(f"{scheme}://127.0.0.1:{port}")
        assert "s3cret" not in str(caught.value)


def test_wrong_password_database_and_scheme(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("NEO4J_PASSWORD", "wr0ng")
        with pytest.raises(StoreError, match="refuses this user and password") as caught:
            open_store(server)
        assert "wr0ng" not in str(caught.value)
        patch.delenv("NEO4J_PASSWORD")
        patch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(StoreError, match="set NEO4J_PASSWORD"):
            open_store(server)
    with monkeypatch.context() as patch:
        patch.setenv("NEO4J_DATABASE", "nowhere")
        with pytest.raises(StoreError, match="has no such database; set NEO4J_DATABASE"):
            open_store(server)
    with pytest.raises(StoreError, match="does not answer"):  # it speaks no TLS
        open_store(server.replace("bolt:", "bolt+ssc:"))


@pytest.mark.parametrize("agent", ["Neo4j/4.4.40", "Neo4j/5.25.9", "Memgraph/3", "Neo4j/v5.11.0 x"])
def test_too_old_a_server_is_said(agent):
    with pytest.raises(StoreError, match=r"needs Neo4j 5\.26 or newer"):
        check_version(agent, "neo4j://x:7687")


def test_new_servers_are_taken():
    for agent in ("Neo4j/5.26.0", "Neo4j/5.27-aura", "Neo4j/2025.12.1", "Neo4j/6.0.0"):
        check_version(agent, "neo4j://x:7687")


def test_the_driver_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "neo4j", None)
    with pytest.raises(MissingPackageError, match=r"graphtrace-llm\[neo4j\]"):
        open_store("neo4j://127.0.0.1:1")


def test_no_store_yet(server):
    delete_store(server, missing_ok=True)
    with pytest.raises(StoreError, match=r"there is no store in .*graphtrace ingest --store"):
        open_store(server)
    with pytest.raises(StoreError, match="there is no store"):
        delete_store(server)


def test_the_server_refuses_to_write(small, raw):
    url, *_ = small
    before = everything(raw)
    with open_store(url) as store:
        for text in (
            "MATCH (t:Trace) SET t.name = 'x'",
            "CREATE (:Model)",
            "MATCH (n) DETACH DELETE n",
            "CREATE INDEX FOR (n:Trace) ON (n.name)",
        ):
            with pytest.raises(ReadOnlyError, match="queries only read") as caught:
                store.cypher(text)
            assert "\n" not in str(caught.value)
        with pytest.raises(QueryError, match="Invalid input") as caught:
            store.cypher("MATCH (t:Trace RETURN t")
        assert "\n" not in str(caught.value)
        with pytest.raises(StoreError, match="for reading only"):
            store.remember(archives=["x"])
    assert everything(raw) == before


def test_nodes_relationships_and_paths_are_plain(small):
    url, *_ = small
    with open_store(url) as store:
        row = store.query(
            "MATCH p = (t:Trace)-[r:OF_MODEL]->(m:Model) RETURN m, r, p, [m.name] AS l LIMIT 1"
        ).iloc[0]
    assert row["m"]["name"] == "toy"
    assert row["m"]["_labels"] == ["Graphtrace", "Model"]
    assert row["r"] == {"_type": "OF_MODEL"}
    assert [len(row["p"][part]) for part in ("nodes", "relationships")] == [2, 1]
    assert row["l"] == ["toy"]


def test_dates_points_and_durations_are_plain(small):
    url, *_ = small
    with open_store(url) as store:
        row = store.query(
            "RETURN date('2020-01-02') AS d, localdatetime('2020-01-02T03:04:05.000006789') AS m, "
            "datetime('2020-01-02T03:04:05+01:00') AS z, localtime('03:04:05') AS t, "
            "duration('P1Y2DT3S') AS s, point({x: 1, y: 2}) AS p, "
            "point({longitude: 12, latitude: 56, height: 7}) AS q, "
            "[date('2020-01-02'), {a: point({x: 1, y: 2, z: 3})}] AS l"
        ).iloc[0]
    day, flat = datetime.date(2020, 1, 2), {"srid": 7203, "x": 1.0, "y": 2.0}
    zone = datetime.timezone(datetime.timedelta(hours=1))
    assert row["d"] == day
    assert row["m"] == datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
    assert row["z"] == datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=zone)
    assert row["t"] == datetime.time(3, 4, 5)
    assert row["s"] == "P1Y2DT3S"
    assert row["p"] == flat
    assert row["q"] == {"srid": 4979, "x": 12.0, "y": 56.0, "z": 7.0}
    assert row["l"] == [day, {"a": {"srid": 9157, "x": 1.0, "y": 2.0, "z": 3.0}}]


# ------------------------------------------------------------------------- verify, rebuild, delete


@pytest.mark.parametrize(
    ("text", "problem", "n"),
    [
        ("MATCH ()-[r:ATTENTION]->() SET r.score = 0.5", "content", 5),
        ("MATCH ()-[r:RESIDUAL]->() DELETE r", "has not the", 5),
        ("MATCH ()-[r:RESIDUAL]->() SET r.first = false", "first of their source", 5),
        ("MATCH (s:State) WHERE s.position = 1 SET s.token = ''", "State.token", 5),
        ("MATCH (t:Trace) SET t.tokens = ['a', 'b', 'c', 'd']", "Trace.tokens", 5),
        ("MATCH (i:Input) SET i.text = 'x'", "Input.text", 5),
        ("MATCH (c:Checkpoint) WHERE c.curve = 0 SET c.tv = 1.0", "Checkpoint.tv", 5),
        ("MATCH (c:Checkpoint) REMOVE c.component_counts", "Checkpoint.component_counts", 5),
        ("MATCH ()-[u:USES]->() SET u.n = 0", "USES.n", 5),
        ("MATCH ()-[r:IN_TRACE]->() DELETE r", "IN_TRACE", 5),
        ("MATCH (t:Trace)-[r:AT]->() DELETE r", "Checkpoint: 0 in the store", 5),
        ("CREATE (:GraphtraceLoading:Graphtrace {id: 'x'})", "half-written", 1),
        ("CREATE (:State:Graphtrace {id: -1})", "states of no trace", 1),
    ],
)
def test_verify_finds_what_was_changed_and_rebuild_puts_it_right(small, raw, text, problem, n):
    url, *_ = small
    assert len(problems(url)) == 0
    raw.run(text)
    found = problems(url)
    assert found["problem"].str.contains(problem).sum() == n
    if n == 5:
        rebuild_store(url)
        left = problems(url)["problem"].tolist()
        assert all(line.endswith("of no trace") for line in left)


def test_a_store_whose_other_edges_say_that_they_are_not_first_is_right(small, raw):
    url, _, traces = small
    with open_store(url) as store:
        before = store.query("trace-edges", trace=traces[0].id, size=1.0)
    assert before["first"].nunique() == 2
    raw.run("MATCH (:State)-[r]->(:State) WHERE r.first IS NULL SET r.first = false")
    assert len(problems(url)) == 0
    with open_store(url) as store:
        assert store.query("trace-edges", trace=traces[0].id, size=1.0).equals(before)


def test_a_store_from_before_names_is_brought_up_to_date(small, raw):
    url, archive, _ = small
    raw.run("MATCH (l:Label) REMOVE l.name")
    raw.run("MATCH (c:Checkpoint) REMOVE c.name, c.component_counts")
    raw.run("MATCH (s:GraphtraceStore) REMOVE s.layout")
    raw.run("DROP CONSTRAINT graphtrace_analysis IF EXISTS")
    assert len(problems(url)) >= 5
    with open_store(url) as store:
        assert len(store.component_counts(store.traces()["id"])) == 0
    result = ingest(archive, url)
    assert (result.n_present, result.n_changed) == (5, 5)
    assert len(problems(url)) == 0
    assert raw.read("MATCH (l:Label) RETURN l.name ORDER BY l.name") == [("odd=0",), ("odd=1",)]
    names = {name for (name,) in raw.read("SHOW CONSTRAINTS YIELD name RETURN name")}
    assert "graphtrace_analysis" in names


def test_rebuild_exchanges_every_trace(small, raw):
    url, archive, _ = small
    before = everything(raw)
    raw.run("MATCH (m:Model) SET m.name = 'wrong', m.n_heads = 7")
    raw.run("MATCH (:Input)-[r:LABELLED]->(l:Label) DELETE r SET l.value = 'wrong'")
    write_traces(archive, [synthetic_trace(seed=7, n=4)], keep="all")
    result = rebuild_store(url)
    assert (result.n_traces, result.n_added, result.n_removed) == (6, 1, 0)
    assert len(problems(url)) == 0
    with open_store(url) as store:
        traces = store.traces()
        assert set(traces["model_name"]) == {"toy"}
        assert sorted(map(str, traces["labels"])) == sorted(
            ["{'odd': '0'}"] * 3 + ["{'odd': '1'}"] * 2 + ["{}"]
        )
    delete_traces(url, ["line-7"])
    assert everything(raw) == before


def test_rebuild_without_the_archive_leaves_the_store(small, raw, tmp_path):
    url, archive, _ = small
    before = everything(raw)
    shutil.move(archive, tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"archive .* cannot be read"):
        rebuild_store(url)
    assert everything(raw) == before
    # Unlike the embedded store, a server needs no archive to delete.
    assert delete_traces(url, ["line-1"]).n_traces == 4


def test_deleted_traces_stay_away(small, raw):
    url, archive, traces = small
    before = everything(raw)
    result = delete_traces(url, ["line-1", traces[2].id])
    assert (result.n_traces, result.n_removed) == (3, 2)
    again = ingest(archive, url)
    assert (again.n_new, again.n_present, again.n_deleted) == (0, 3, 2)
    assert rebuild_store(url).n_traces == 3
    with open_store(url) as opened:
        assert set(opened.traces()["id"]) == {traces[i].id for i in (0, 3, 4)}
        assert store_info(opened)["deleted"] == 2
        assert opened.cypher("MATCH (i:Input) RETURN count(i) AS n")["n"].tolist() == [3]
    assert len(problems(url)) == 0
    back = ingest(archive, url, restore=True)
    assert (back.n_new, back.n_deleted) == (2, 0)
    assert ingest(archive, url).n_present == 5
    assert len(problems(url)) == 0
    assert everything(raw) == before


def test_delete_by_settings_and_model(small):
    url, archive, traces = small
    with pytest.raises(OptionError, match="no trace of model 'tow'; models here: toy"):
        delete_traces(url, model="tow")
    with pytest.raises(TraceNotFoundError):
        delete_traces(url, ["line-77"])
    assert delete_traces(url, settings=traces[0].settings.id).n_traces == 0
    ingest(archive, url, restore=True)
    where = [f"name={traces[0].name}"]
    assert delete_traces(url, settings=traces[0].settings.id, where=where).n_removed == 1
    with open_store(url) as store:
        assert store.deleted == (traces[0].id,)
    assert delete_traces(url, model="toy").n_removed == 4


def test_delete_removes_only_what_is_ours(server, raw, tmp_path):
    delete_store(server, missing_ok=True)
    raw.run("CREATE (:Person {name: 'x'})-[:KNOWS]->(:Model {id: 'mine'})-[:AT]->(:State {id: -5})")
    raw.run("CREATE INDEX mine IF NOT EXISTS FOR (p:Person) ON (p.name)")
    try:
        write_traces(tmp_path / "archive", [synthetic_trace()])
        ingest(tmp_path / "archive", server)
        delete_store(server)
        assert everything(raw) == (3, 2)
        names = {name for (name,) in raw.read("SHOW INDEXES YIELD name RETURN name")}
        assert {name for name in names if name.startswith("graphtrace")} == set()
        assert "mine" in names
        assert raw.read("SHOW CONSTRAINTS YIELD name RETURN name") == []
    finally:
        raw.run("MATCH (p:Person)-->(m)-->(s) DETACH DELETE p, m, s")
        raw.run("DROP INDEX mine IF EXISTS")


def test_info(small):
    url, archive, traces = small
    with open_store(url) as opened:
        info = store_info(opened)
    assert info["nodes"]["Trace"] == 5
    assert info["relationships"]["RESIDUAL"] == sum(
        (t.edges()["kind"] == "residual").sum() for t in traces
    )
    assert info["archives"] == {str(archive.resolve()): 5}


# ------------------------------------------------------------------------------------------ copy


@pytest.mark.filterwarnings("ignore::graphtrace.sizes.ShortTraceWarning")
def test_copy_there_and_back(server, raw, tmp_path):
    delete_store(server, missing_ok=True)
    traces = zoo()
    write_traces(tmp_path / "archive", traces, keep="all")
    ingest(tmp_path / "archive", tmp_path / "one")
    # Something is there already, so the numbers of all others are new ones.
    write_traces(tmp_path / "some", traces[3:4], keep="all")
    ingest(tmp_path / "some", server)
    result = copy_store(tmp_path / "one", server)
    assert (result.n_new, result.n_present) == (10, 1)
    assert result.n_edges == sum(t.n_kept for t in traces if t.id != traces[3].id)
    assert copy_store(tmp_path / "one", server).n_new == 0
    back = copy_store(server, tmp_path / "two")
    assert (back.n_new, back.n_present) == (11, 0)
    copy_store(tmp_path / "two", tmp_path / "three")
    with open_store(tmp_path / "one") as first:
        expected = OwnStoreSuite.counts(first)
    for url in (server, tmp_path / "two", tmp_path / "three"):
        with open_store(url) as store:
            assert OwnStoreSuite.counts(store) == expected
            for trace in traces[:-1]:
                check_same(store.subgraph(trace.id), trace, 1.0)
        assert problems(url)["problem"].tolist() == []
    with pytest.raises(OptionError, match="name two"):
        copy_store(tmp_path / "one", tmp_path / "one")
