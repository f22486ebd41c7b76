"""The files for Neo4j's importer: what they hold, and what the real importer makes of them."""

import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import synthetic_trace
from neo4j_import_server import ROOT, VERSIONS, finish, imported, rows
from store_suite import zoo

from graphtrace import neo4j_import
from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.errors import OptionError, StorageFullError
from graphtrace.ingestion import ingest
from graphtrace.neo4j_import import ESCAPE, FINISH, SEPARATOR, export_neo4j_import
from graphtrace.stores.base import open_store
from graphtrace.stores.graph_tables import EDGE_LABELS, graph_tables
from graphtrace.stores.verify import verify_store

NASTY = ["", SEPARATOR, f"{ESCAPE}1", f"{ESCAPE}{SEPARATOR}", " ;\t'\"\\", ""]


def awkward():
    """The zoo, a line with another value of its label, empty strings, control characters."""
    traces = zoo()
    empty = dataclasses.replace(synthetic_trace(seed=20, n=6, text=""), tokens=NASTY)
    again = dataclasses.replace(traces[1], settings=dataclasses.replace(traces[1].settings, seed=7))
    labelled = dataclasses.replace(again.input, labels={"group": "other", "size": "big"})
    return [*traces, empty, dataclasses.replace(again, input=labelled)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import") / "archive"
    write_traces(folder, awkward(), keep="all")
    return folder


def expected_tables(folder):
    """What an ingest of all traces at once puts into a store."""
    with open_archive(folder) as archive:
        (table,) = archive.tables(batch=1000)
        return graph_tables(table, 0, str(folder.resolve()))


def property_rows(table, skip=0):
    """Rows as dicts without what is missing; a list on a server has no gaps."""
    found = []
    for row in table.select(table.column_names[skip:]).to_pylist():
        if row.get("windows") is not None:
            row["windows"] = [w or 0 for w in row["windows"]]
        found.append({name: value for name, value in row.items() if value is not None})
    return found


@pytest.fixture(scope="module", params=VERSIONS)
def server(request, archive, tmp_path_factory, monkeypatch_module):
    # Several batches, of one trace and of more, as a large archive has them.
    monkeypatch_module.setattr(neo4j_import, "BATCH_EDGES", 150)
    folder = tmp_path_factory.mktemp("server")
    files = export_neo4j_import(archive, folder / "files")
    with imported(files, folder / "home", request.param) as (driver, report):
        yield driver, report, files


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_importer_reports_what_was_announced(server):
    _, report, files = server
    said = {what: int(n) for n, what in re.findall(r"^\s+(\d+) (\w+)\s*$", report, re.MULTILINE)}
    assert said["nodes"] == sum(files.nodes.values())
    assert said["relationships"] == sum(files.relationships.values())
    assert said["properties"] == files.properties


def test_every_node_is_what_the_archive_says(server, archive):
    driver, _, files = server
    tables = expected_tables(archive)
    for label, table in tables.nodes.items():
        expected = {row["id"]: row for row in property_rows(table)}
        found = rows(driver, f"MATCH (n:{label}) RETURN n.id, labels(n), properties(n)")
        assert {tuple(sorted(labels)) for _, labels, _ in found} == {
            tuple(sorted((label, "Graphtrace")))
        }
        assert len(found) == len(expected) == files.nodes[label]
        for key, _, properties in found:
            assert properties == expected[key], key
            for name, value in properties.items():
                assert type(value) is type(expected[key][name]), name
                if isinstance(value, list):
                    assert list(map(type, value)) == list(map(type, expected[key][name]))


def test_every_relationship_is_what_the_archive_says(server, archive):
    driver, _, files = server
    tables = expected_tables(archive)
    for kind, table in tables.edges.items():
        ends = zip(table["from"].to_pylist(), table["to"].to_pylist(), strict=True)
        expected = [
            (source, target, tuple(sorted(row.items())))
            for (source, target), row in zip(ends, property_rows(table, 2), strict=True)
        ]
        found = rows(driver, f"MATCH (a)-[r:{kind}]->(b) RETURN a.id, b.id, properties(r)")
        assert Counter((a, b, tuple(sorted(p.items()))) for a, b, p in found) == Counter(expected)
        assert files.relationships[kind] == len(expected)
    total = rows(driver, "MATCH ()-[r]->() RETURN count(r)")
    assert total == [[sum(files.relationships.values())]]


def test_the_edges_are_those_of_the_traces_in_memory(server):
    driver, _, _ = server
    for trace in awkward():
        found = rows(
            driver,
            "MATCH (:Trace {id: $id, status: 'complete'})<-[:IN_TRACE]-(b:State)"
            "<-[r:RESIDUAL|MLP|ATTENTION]-(a:State) RETURN r.rank, toLower(type(r)), "
            "a.level, a.position, a.token, b.level, b.position, b.token, r.score ORDER BY r.rank",
            id=trace.id,
        )
        names = ("rank", "kind", "source_level", "source_position", "source_token")
        names += ("target_level", "target_position", "target_token", "score")
        frame = trace.edges(f"k:{trace.n_kept}")
        expected = [
            [row[name] for name in names] for row in frame.astype({"kind": str}).to_dict("records")
        ]
        assert found == expected, trace.name


def test_the_schema_is_there_and_finishing_twice_changes_nothing(server):
    driver, _, files = server
    everything = "MATCH (n) RETURN n.id AS id, properties(n) ORDER BY labels(n)[0], toString(id)"
    before = rows(driver, everything)
    finish(driver, files.folder)
    assert rows(driver, everything) == before
    found = {name for (name,) in rows(driver, "SHOW CONSTRAINTS YIELD name")}
    assert {"graphtrace_trace", "graphtrace_state", "graphtrace_model"} <= found
    assert rows(driver, "SHOW INDEXES YIELD state RETURN DISTINCT state") == [["ONLINE"]]


def test_the_store_is_one_as_an_ingest_makes_it(server, archive, tmp_path):
    """Read as any other, checked against the archive, and an ingest goes on from there."""
    with open_archive(archive) as source, open_store("neo4j://") as store:
        ours = store.traces().set_index("id").sort_index()
        theirs = source.traces().set_index("id").sort_index()
        # The second of two traces of one line brings another value of its label.
        same = [c for c in ours.columns if c != "labels"]
        pd.testing.assert_frame_equal(ours[same], theirs[same], check_dtype=False)
        assert list(store.archives) == [str(archive.resolve())]
        assert len(verify_store(store, store.archives, store.deleted, True)) == 0
        for trace in awkward():
            size = f"k:{trace.n_kept}"
            expected = trace.subgraph(size).edge_frame()
            pd.testing.assert_frame_equal(store.subgraph(trace.id, size).edge_frame(), expected)
    before = rows(server[0], "MATCH (n) RETURN count(n)")
    result = ingest(archive, "neo4j://")
    assert (result.n_new, result.n_present) == (0, len(awkward()))
    assert rows(server[0], "MATCH (n) RETURN count(n)") == before
    write_traces(tmp_path / "more", [synthetic_trace(seed=70)], keep="all")
    assert ingest(tmp_path / "more", "neo4j://").n_new == 1
    number = rows(server[0], "MATCH (t:Trace) WITH max(t.number) AS n RETURN n")
    assert number == [[len(awkward())]]


# ------------------------------------------------------------------- the files, without a server


def read_all(folder):
    """Rows of every file as sorted text, the numbers of nodes that are no states left out."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        columns = [c for c in table.column_names if not c.startswith(":")]
        found[path.stem] = sorted(map(str, table.select(columns).to_pylist()))
    return found


@pytest.mark.parametrize("edges", [1, 40, 300])
def test_the_batches_do_not_matter(archive, tmp_path, monkeypatch, edges):
    whole = export_neo4j_import(archive, tmp_path / "whole")
    monkeypatch.setattr(neo4j_import, "BATCH_EDGES", edges)
    parts = export_neo4j_import(archive, tmp_path / "parts")
    assert (whole.nodes, whole.relationships, whole.properties) == (
        parts.nodes,
        parts.relationships,
        parts.properties,
    )
    assert read_all(tmp_path / "whole") == read_all(tmp_path / "parts")
    text = (tmp_path / "whole" / FINISH).read_text()
    assert text == (tmp_path / "parts" / FINISH).read_text()


def test_every_end_of_a_relationship_is_its_node(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(neo4j_import, "BATCH_EDGES", 150)
    files = export_neo4j_import(archive, tmp_path / "files")
    tables = {path.stem: pq.read_table(path) for path in files.folder.glob("*.parquet")}
    nodes = {
        number: (label, key)
        for label in files.nodes
        for number, key in zip(*(tables[label][x].to_pylist() for x in (":ID", "id")), strict=True)
    }
    assert len(nodes) == sum(files.nodes.values())
    assert 0 <= min(nodes) <= max(nodes) < 1 << 56  # what the importer takes
    expected = expected_tables(archive).edges
    for kind in files.relationships:
        labels = neo4j_import._ENDS.get(kind, ("State", "State"))
        ends = (tables[kind][end].to_pylist() for end in (":START_ID", ":END_ID"))
        keys = (expected[kind][end].to_pylist() for end in ("from", "to"))
        wanted = (zip(labels, pair, strict=True) for pair in zip(*keys, strict=True))
        assert Counter((nodes[a], nodes[b]) for a, b in zip(*ends, strict=True)) == Counter(
            map(tuple, wanted)
        )


def test_memory_is_of_a_batch_not_of_the_archive(tmp_path, monkeypatch):
    """No batch holds more edges than it may; at most two are there at a time."""
    traces = [synthetic_trace(seed=i, n=6) for i in range(12)]
    write_traces(tmp_path / "archive", traces, keep="all")
    monkeypatch.setattr(neo4j_import, "BATCH_EDGES", 200)
    sizes = []
    real = neo4j_import.graph_tables
    monkeypatch.setattr(
        neo4j_import, "graph_tables", lambda *a: sizes.append((t := real(*a)).n_edges) or t
    )
    export_neo4j_import(tmp_path / "archive", tmp_path / "files")
    assert sum(sizes) == sum(t.n_kept for t in traces)
    assert max(sizes) <= 200
    assert len(sizes) > 3


def test_a_finished_folder_or_none(archive, tmp_path, monkeypatch):
    out = tmp_path / "files"
    real = neo4j_import._Files.write
    count = []

    def failing(self, batch):
        count.append(1)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        real(self, batch)

    monkeypatch.setattr(neo4j_import, "BATCH_EDGES", 100)
    monkeypatch.setattr(neo4j_import._Files, "write", failing)
    with pytest.raises(StorageFullError, match="no room left"):
        export_neo4j_import(archive, out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(neo4j_import._Files, "write", real)
    out.mkdir()
    export_neo4j_import(archive, out)
    with pytest.raises(OptionError, match="not empty"):
        export_neo4j_import(archive, out)


def test_a_full_disk_is_said_in_one_line(archive, tmp_path):
    """The operating system refuses to let a file grow, whoever writes it."""
    code = (
        "import resource, signal, sys\nfrom graphtrace.cli.app import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "sys.argv[1:] = ['export', 'neo4j-import', *sys.argv[1:]]\nmain()\n"
    )
    command = [sys.executable, "-c", code, str(archive), "--out", str(tmp_path / "files")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    expected = f"graphtrace: no room left on the disk for {tmp_path / 'files'}\n"
    assert done.stderr == expected
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_swept(archive, tmp_path):
    code = (
        "import os, sys\nfrom graphtrace import neo4j_import\n"
        "neo4j_import._Files.write = lambda *a: os.kill(os.getpid(), 9)\n"
        "neo4j_import.export_neo4j_import(sys.argv[1], sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(archive), str(tmp_path / "files")]
    assert subprocess.run(command, env=os.environ).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".files.tmp-")
    export_neo4j_import(archive, tmp_path / "files")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_what_cannot_be_exported_is_said(archive, tmp_path):
    with pytest.raises(OptionError, match="no name of a Neo4j database"):
        export_neo4j_import(archive, tmp_path / "files", database="a b")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write"):
        export_neo4j_import(archive, tmp_path / "file" / "files")


def test_lists_as_text():
    column = pa.chunked_array([pa.array([["a", ""], None, [SEPARATOR, f"{ESCAPE}1"]])])
    assert neo4j_import._as_text(column).to_pylist() == [
        f"{SEPARATOR}a{SEPARATOR}",
        None,
        f"{SEPARATOR}{ESCAPE}1{SEPARATOR}{ESCAPE}01",
    ]
    assert set(EDGE_LABELS) == {"RESIDUAL", "MLP", "ATTENTION"}


def test_the_command_says_what_comes_next(archive, tmp_path):
    command = [sys.executable, "-m", "graphtrace", "export", "neo4j-import", str(archive)]
    done = subprocess.run(
        [*command, "--out", "files", "--database", "study"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "files"
    assert "cd files && neo4j-admin database import full study --input-type=parquet" in done.stderr
    assert "cypher-shell -d study -f files/finish.cypher" in done.stderr
    named = set(re.findall(r"=(\w+\.parquet)", done.stderr))
    assert named == {path.name for path in folder.glob("*.parquet")}
    assert {path.name for path in folder.iterdir()} == named | {FINISH, "README.txt"}
