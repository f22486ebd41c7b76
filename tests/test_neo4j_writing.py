"""Writing to a real server: long traces in parts, writers side by side, overlapping archives."""

import dataclasses
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import neo4j_server
import numpy as np
import pytest
from builders import model_info, synthetic_trace
from store_suite import StoreSuite, check_same

from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.errors import OptionError, QueryError, StoreError
from graphtrace.ingestion import ingest
from graphtrace.stores import neo4j_reader, neo4j_schema, neo4j_writer
from graphtrace.stores.base import open_store
from graphtrace.stores.graph_tables import graph_tables
from graphtrace.stores.maintenance import delete_store
from graphtrace.stores.neo4j import Neo4jStore
from graphtrace.stores.neo4j_columns import trace_columns
from graphtrace.stores.neo4j_connection import Server
from graphtrace.stores.neo4j_statements import ingest_statements
from graphtrace.stores.verify import verify_store


@pytest.fixture
def empty(server):
    """URL of a server without a store."""
    neo4j_server.empty(server)
    return server


@pytest.fixture
def raw(server):
    """A connection past the store."""
    connection = Server(server)
    yield connection
    connection.close()


@pytest.fixture(scope="class")
def in_parts():
    """Every trace of more than 60 edges is a long one, and is read in several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neo4j_writer, "LONG", 60)
        patch.setattr(neo4j_writer, "PART", 20)
        patch.setattr(neo4j_reader, "PART", 50)
        yield


@pytest.fixture(scope="class")
def new_url(server, in_parts):
    def make():
        neo4j_server.empty(server)
        return server

    return make


class TestSuiteInParts(StoreSuite):
    """What all stores share, where traces are written and read in parts."""


def content(raw):
    """How many nodes of every set of labels, how many relationships of every type, in all."""
    nodes = raw.read(
        "MATCH (n) UNWIND labels(n) AS label RETURN label, count(*) AS n ORDER BY label"
    )
    edges = raw.read("MATCH ()-[r]->() RETURN type(r) AS kind, count(r) AS n ORDER BY kind")
    return dict(nodes) | dict(edges)


def problems(url):
    with open_store(url) as opened:
        return verify_store(opened, opened.archives, opened.deleted)["problem"].tolist()


def one_trace(archive, number=0):
    """(GraphTables, TraceColumns) of an archive's only trace."""
    with open_archive(archive) as opened:
        batch = graph_tables(next(opened.tables()), number, str(archive.resolve()))
    return batch, next(trace_columns(batch))


def test_a_long_trace_is_invisible_until_it_is_whole(empty, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(neo4j_writer, "LONG", 60)
    monkeypatch.setattr(neo4j_writer, "PART", 30)
    trace = synthetic_trace(seed=3, n=6)
    write_traces(tmp_path / "a", [trace], keep="all")
    seen = []
    original = neo4j_writer._row

    def spy(transaction, name, params):
        if name in ("aside", "begin"):
            return original(transaction, name, params)
        with open_store(empty) as beside:
            visible = beside.cypher("MATCH (t:Trace) RETURN count(t) AS n")["n"].tolist()
            states = beside.cypher("MATCH (s:State) RETURN count(s) AS n")["n"].tolist()
            seen.append((name, len(beside.traces()), visible, states))
        return original(transaction, name, params)

    monkeypatch.setattr(neo4j_writer, "_row", spy)
    ingest(tmp_path / "a", empty)
    names = [name for name, *_ in seen]
    assert names[0] == "states"
    assert names[-1] == "complete"
    assert names.count("edges") >= 3
    assert {tuple(map(str, rest)) for _, *rest in seen} == {("0", "[0]", "[0]")}
    with open_store(empty) as store:
        check_same(store.subgraph(trace.id), trace, 1.0)
    assert problems(empty) == []


class Stop(Exception):
    """Raised where a writer is made to stop."""


@pytest.mark.parametrize("after", range(5))
def test_an_interrupted_long_trace_is_begun_again(empty, raw, tmp_path, monkeypatch, after):
    monkeypatch.setattr(neo4j_writer, "LONG", 60)
    monkeypatch.setattr(neo4j_writer, "PART", 30)
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    original, calls = neo4j_writer._row, []

    def stop(transaction, name, params):
        calls.extend([name] * (name not in ("aside", "begin")))
        if len(calls) > after:
            raise Stop
        return original(transaction, name, params)

    with monkeypatch.context() as patch:
        patch.setattr(neo4j_writer, "_row", stop)
        with pytest.raises(Stop):
            ingest(tmp_path / "a", empty)
    assert "half-written" in problems(empty)[1]
    with open_store(empty) as store:
        assert len(store.traces()) == 0
    result = ingest(tmp_path / "a", empty)
    assert (result.n_new, result.n_present) == (1, 0)
    assert problems(empty) == []
    mine = content(raw)
    delete_store(empty)
    ingest(tmp_path / "a", empty)
    assert content(raw) == mine


def test_a_writer_that_lost_its_trace_gives_way(empty, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(neo4j_writer, "LONG", 60)
    monkeypatch.setattr(neo4j_writer, "PART", 30)
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    original, begun, others = neo4j_writer._row, [], []

    def overtaken(transaction, name, params):
        if name == "edges" and not begun:
            begun.append(True)
            others.append(ingest(tmp_path / "a", empty))
        return original(transaction, name, params)

    monkeypatch.setattr(neo4j_writer, "_row", overtaken)
    result = ingest(tmp_path / "a", empty)
    assert others[0].n_new == 1
    assert (result.n_new, result.n_present, result.n_edges) == (0, 1, 0)
    assert problems(empty) == []


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_part_that_fails(empty, raw, tmp_path, monkeypatch, taken_over):
    """The states of a trace that was taken over are being removed while a part of it is written;
    an error of another cause is said, and nothing is visible."""
    monkeypatch.setattr(neo4j_writer, "LONG", 60)
    monkeypatch.setattr(neo4j_writer, "PART", 30)
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    original, failed, others = neo4j_writer._row, [], []

    def failing(transaction, name, params):
        if name != "edges" or failed:
            return original(transaction, name, params)
        failed.append(True)
        if taken_over:
            others.append(ingest(tmp_path / "a", empty))
        return transaction.run("RETURN 1 / 0").single()

    with monkeypatch.context() as patch:
        patch.setattr(neo4j_writer, "_row", failing)
        if taken_over:
            assert ingest(tmp_path / "a", empty).n_new == 0
            assert others[0].n_new == 1
        else:
            with pytest.raises(QueryError, match="by zero"):
                ingest(tmp_path / "a", empty)
            with open_store(empty) as store:
                assert len(store.traces()) == 0
            assert ingest(tmp_path / "a", empty).n_new == 1
    assert problems(empty) == []


def test_a_trace_that_is_taken_over_while_a_part_is_written(empty, raw, tmp_path):
    """The part sees the owner as it was, waits for the trace's lock at its end, and gives up."""
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    _, columns = one_trace(tmp_path / "a")
    first = next(columns.rounds(30))[0][0].params()
    who = {"id": columns.id, "owner": "me"}
    raw.write(lambda tx: neo4j_writer._count(tx, "begin", who))
    states = {"states": columns.state_lists()}
    raw.write(lambda tx: neo4j_writer._count(tx, "states", states | who))
    counts = []

    def part(tx):
        counts.append(neo4j_writer._count(tx, "edges", first | who))
        raise Stop

    with ThreadPoolExecutor(1) as pool:

        def take_over(tx):
            tx.run("MATCH (t:GraphtraceLoading) SET t.owner = 'other'").consume()
            writing = pool.submit(raw.write, part)
            time.sleep(3)
            assert not writing.done()
            return writing

        writing = raw.write(take_over)
        with pytest.raises(Stop):
            writing.result()
    assert counts == [0]


def test_what_a_vanished_writer_left_is_swept_away(empty, raw, tmp_path):
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    ingest(tmp_path / "a", empty)
    before = content(raw)
    raw.run(
        "CREATE (t:GraphtraceLoading:Graphtrace {id: 'gone', owner: 'x', heartbeat: 1}) "
        "WITH t UNWIND range(1, 50) AS i CREATE (s:Graphtrace {id: -i})-[:IN_TRACE]->(t) "
        "WITH collect(s) AS ss UNWIND ss AS a UNWIND ss AS b CREATE (a)-[:MLP]->(b)"
    )
    raw.run(
        "CREATE (:GraphtraceLoading:Graphtrace {id: 'alive', owner: 'x', heartbeat: timestamp()})"
    )
    with open_store(empty, read_only=False):
        pass
    assert content(raw) == before | {"GraphtraceLoading": 1, "Graphtrace": before["Graphtrace"] + 1}


def test_writing_twice_is_writing_once(empty, raw, tmp_path, monkeypatch):
    """A commit whose answer was lost is tried again by the driver."""
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    original = Server.write

    def twice(self, work):
        original(self, work)
        return original(self, work)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "write", twice)
        ingest(tmp_path / "a", empty)
    assert problems(empty) == []
    mine = content(raw)
    delete_store(empty)
    ingest(tmp_path / "a", empty)
    assert content(raw) == mine


def test_numbers_are_given_once(empty):
    with Neo4jStore(empty, read_only=False):
        pass

    def reserve(_):
        with Neo4jStore(empty, read_only=False) as store:
            return [store.reserve(n) for n in (1, 7, 2) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reserve, range(4)))
    taken = [
        number
        for starts in found
        for start, n in zip(starts, [1] * 5 + [7] * 5 + [2] * 5, strict=True)
        for number in range(start, start + n)
    ]
    assert sorted(taken) == list(range(200))


@pytest.fixture
def overlapping(tmp_path):
    """Two archives of 30 traces, 15 of them the same; one model is in both."""
    other = model_info(3, 2, name="other", parallel=True)
    traces = [
        synthetic_trace(seed=i, n=4 + i % 3, model=other if i % 4 == 0 else None,
                        labels={"group": "ab"[i % 2]})
        for i in range(45)
    ]  # fmt: skip
    write_traces(tmp_path / "one", traces[:30], keep="all")
    write_traces(tmp_path / "two", traces[15:], keep="all")
    return tmp_path / "one", tmp_path / "two"


def seen(store):
    """All that queries see, but for the numbers: traces, and edges of each."""
    frame = store.traces().sort_values("id", ignore_index=True).drop(columns="created")
    edges = {trace: store.subgraph(trace).edge_frame() for trace in frame["id"]}
    return frame, edges


def test_archives_that_overlap_in_either_order(empty, raw, overlapping):
    one, two = overlapping
    results = []
    for order in ((one, two), (two, one)):
        delete_store(empty, missing_ok=True)
        new = [ingest(archive, empty).n_new for archive in order]
        assert new == [30, 15]
        assert problems(empty) == []
        with open_store(empty) as store:
            results.append((content(raw), *seen(store)))
    (a, traces, edges), (b, other, others) = results
    assert a == b
    assert traces.equals(other)
    assert all(edges[trace].equals(others[trace]) for trace in edges)


@pytest.mark.parametrize("long", [60, 40_000])
def test_ingests_at_the_same_time(empty, raw, overlapping, monkeypatch, long):
    monkeypatch.setattr(neo4j_writer, "LONG", long)
    monkeypatch.setattr(neo4j_writer, "PART", long // 4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda archive: ingest(archive, empty), [*overlapping, *overlapping]))
    for archive in overlapping:  # a trace that one left to another, which was overtaken
        ingest(archive, empty)
    assert problems(empty) == []
    mine = content(raw)
    delete_store(empty)
    for archive in overlapping:
        ingest(archive, empty)
    assert content(raw) == mine


def test_a_closed_or_read_only_store_is_said(empty, tmp_path):
    write_traces(tmp_path / "a", [synthetic_trace()])
    ingest(tmp_path / "a", empty)
    batch, _ = one_trace(tmp_path / "a")
    with open_store(empty) as store, pytest.raises(StoreError, match="for reading only"):
        store.write(batch)
    with pytest.raises(StoreError, match="closed"):
        store.traces()


def test_a_store_of_another_format_is_said(empty, raw, tmp_path):
    write_traces(tmp_path / "a", [synthetic_trace()])
    ingest(tmp_path / "a", empty)
    raw.run("MATCH (s:GraphtraceStore) SET s.format = 99")
    with pytest.raises(StoreError, match="has format 99"):
        open_store(empty)


def test_the_columns_of_a_trace(tmp_path):
    """Ends of edges are places in the list of states."""
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6)], keep="all")
    batch, columns = one_trace(tmp_path / "a", number=7)
    whole = columns.whole()
    ids = np.array(whole["states"]["id"])
    assert (np.diff(ids) > 0).all()
    for label in ("RESIDUAL", "MLP", "ATTENTION"):
        lists = whole[label.lower()]
        assert ids[lists["source"]].tolist() == batch.edges[label]["from"].to_pylist()
        assert ids[lists["target"]].tolist() == batch.edges[label]["to"].to_pylist()
    assert ids[whole["output"]] == batch.edges["OUTPUT"]["to"][0].as_py()
    assert dataclasses.replace(columns, id="x").n_edges == batch.n_edges


LABELS = ("residual", "mlp", "attention")


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("size", [1, 7, 25, 10_000])
def test_the_parts_of_a_long_trace(tmp_path, size, parallel):
    """Every edge is in one part, with its own ends; lists written side by side share no state."""
    model = model_info(3, 2, parallel=parallel)
    write_traces(tmp_path / "a", [synthetic_trace(seed=3, n=6, model=model)], keep="all")
    batch, columns = one_trace(tmp_path / "a", number=7)
    ids = batch.nodes["State"]["id"].to_numpy()
    assert (np.diff(ids) > 0).all()
    seen, alone = [], []
    for lists in columns.rounds(size):
        states = []
        for parts in lists:
            mine = set()
            for part in (part.params() for part in parts):
                between = ids[(ids >= part["low"]) & (ids <= part["high"])]
                n = 0
                for label in LABELS:
                    found = part[label]
                    ends = between[found["source"]], between[found["target"]]
                    rest = [
                        found[name] for name in sorted(found) if name not in ("source", "target")
                    ]
                    seen += [(label, *edge) for edge in zip(*ends, *rest, strict=True)]
                    mine.update(*(x.tolist() for x in ends))
                    n += len(found["rank"])
                assert 0 < n <= size
            states.append(mine)
        alone.append(len(states))
        assert sum(map(len, states)) == len(set().union(*states))
    expected = []
    for label in LABELS:
        table = batch.edges[label.upper()]
        names = ["from", "to", *sorted(set(table.column_names) - {"from", "to"})]
        rows = zip(*(table[name].to_pylist() for name in names), strict=True)
        expected += [(label, *row) for row in rows]
    assert Counter(seen) == Counter(expected)
    assert len(alone) == 2
    assert max(alone) == (1 if size == 10_000 else 2 if parallel else 3)


@pytest.mark.parametrize("workers", [0, -1, 65])
def test_a_number_of_workers_that_makes_no_sense(workers):
    with pytest.raises(OptionError, match=f"--workers {workers} is not from 1 to 64"):
        open_store("neo4j://localhost", workers=workers)


def test_an_embedded_store_has_no_workers(tmp_path):
    with pytest.raises(OptionError, match="--workers 2: an embedded store is written by one"):
        open_store(tmp_path / "store", read_only=False, workers=2)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("workers", [1, 8])
def test_workers(server, tmp_path, workers):
    traces = [synthetic_trace(seed=i, n=5) for i in range(12)]
    write_traces(tmp_path / "a", traces, keep="all")
    delete_store("neo4j://", missing_ok=True)
    result = ingest(tmp_path / "a", "neo4j://", workers=workers)
    assert result.n_new == 12
    with open_store("neo4j://") as store:
        assert verify_store(store, [tmp_path / "a"])["problem"].tolist() == []


def test_indexes_that_lost_their_constraints_give_way(empty, raw, tmp_path, monkeypatch):
    """What is left behind where a constraint was being made: by a disk that fills up, or by a
    killed ingest."""
    monkeypatch.setattr(neo4j_schema, "WAIT_SECONDS", 0.1)
    delete_store(empty, missing_ok=True)  # with its schema
    text = "\n".join(ingest_statements("schema"))
    found = re.findall(r"CREATE CONSTRAINT (\w+) .* FOR \(n:(\w+)\) REQUIRE n\.(\w+)", text)
    assert len(found) == text.count("CREATE CONSTRAINT") > 10
    for name, label, key in found:
        raw.run(f"CREATE INDEX {name} FOR (n:{label}) ON (n.{key})")
    write_traces(tmp_path / "a", [synthetic_trace(seed=0, n=4)], keep="all")
    assert ingest(tmp_path / "a", empty).n_new == 1
    owners = "SHOW INDEXES YIELD name, owningConstraint WHERE owningConstraint IS NOT NULL"
    rows = raw.read(f"{owners} RETURN name, owningConstraint ORDER BY name")
    assert rows == sorted((name, name) for name, *_ in found)
