"""The queries that return paths, on both kinds of store, and what is pasted into Neo4j Browser."""

import os
import re
import subprocess
import sys

import neo4j_server
import pytest
from builders import synthetic_trace
from neo4j_import_server import ROOT

from graphtrace.archive_write import write_traces
from graphtrace.browser import browser_query, browser_text, browser_values
from graphtrace.catalogue import PATH, bind, catalogue, run
from graphtrace.cypher_files import tokens
from graphtrace.errors import QueryError, QueryParameterError, SizeError
from graphtrace.ingestion import ingest
from graphtrace.path_text import path_text
from graphtrace.schema import state_name
from graphtrace.sizes import ShortTraceWarning
from graphtrace.stores.base import open_store

pytestmark = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")
SIZES = [0.07, 0.3, "k:9", 1.0]
NAMES = ["core-graph", "difference-graph", "head-graph", "state-graph", "token-graph"]


@pytest.fixture(scope="module")
def traces():
    made = [synthetic_trace(seed=i, n=4 + i, labels={"group": "a"}) for i in range(4)]
    return [*made, synthetic_trace(seed=9, n=20)]  # more edges than a query returns


@pytest.fixture(scope="module")
def folder(traces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    write_traces(folder / "archive", traces, keep="all")
    ingest(folder / "archive", folder / "store")
    return folder


@pytest.fixture(scope="module", params=["embedded", "neo4j"])
def store(request, folder):
    url = folder / "store"
    if request.param == "neo4j":
        url = request.getfixturevalue("server")
        ingest(folder / "archive", url)
    with open_store(url) as opened:
        yield opened


def edges_of(trace, size):
    k = int(size[2:]) if isinstance(size, str) else int(size * trace.n_edges)
    return trace.edges().to_dict("records")[:k]


def text_of(edge):
    """The edge as `path_text` shows it."""
    ends = [
        state_name(edge[f"{end}_token"], edge[f"{end}_position"], edge[f"{end}_level"], False)
        for end in ("source", "target")
    ]
    return f"{ends[0]} -{edge['component']}-> {ends[1]}"


def ask(store, name, **params):
    """The rows; never more than 300 nodes."""
    query = catalogue(store.kind)[name]
    raw = store.cypher(query.text, bind(query, params, store))
    nodes = set()
    for path in raw["path"]:
        ends = path.get("_NODES") or path["nodes"]
        nodes |= {(node["trace"], node["id"]) for node in ends}
    assert len(nodes) <= 300
    frame = run(store, name, params)
    assert frame["path"].tolist() == [path_text(path) for path in raw["path"]]
    return frame


@pytest.mark.parametrize("size", SIZES)
def test_core_graph(store, traces, size):
    for trace in traces:
        found = ask(store, "core-graph", trace=trace.id, size=size)
        expected = edges_of(trace, size)[:150]
        assert found["rank"].tolist() == list(range(len(expected)))
        assert found["path"].tolist() == [text_of(edge) for edge in expected]


@pytest.mark.parametrize("size", SIZES)
def test_head_graph(store, traces, size):
    expected = [
        (-edge["score"], trace.id, edge["rank"], text_of(edge))
        for trace in traces
        for edge in edges_of(trace, size)
        if edge["component"] == "L1H0"
    ]
    expected = sorted(expected)[:150]
    found = ask(store, "head-graph", layer=1, head=0, size=size)
    rows = zip(found["trace"], found["rank"], found["path"], strict=True)
    assert list(rows) == [tuple(row[1:]) for row in expected]
    assert found["score"].tolist() == pytest.approx([-row[0] for row in expected])


@pytest.mark.parametrize("size", ["k:3", "k:9", 0.3, 1.0])
def test_difference_graph(store, traces, size):
    one, two = traces[1], traces[3]
    edges = {trace.id: edges_of(trace, size) for trace in (one, two)}
    used = {trace: {edge["component"] for edge in found} for trace, found in edges.items()}
    expected = [
        (edge["rank"], trace, edge["component"], text_of(edge))
        for trace, found in edges.items()
        for edge in found
        if edge["component"] in used[one.id] ^ used[two.id]
    ]
    assert (size in ("k:3", "k:9")) <= (len(expected) > 0)
    found = ask(store, "difference-graph", trace=one.id, other=two.id, size=size)
    rows = zip(found["rank"], found["trace"], found["component"], found["path"], strict=True)
    assert list(rows) == sorted(expected)[:150]


@pytest.mark.parametrize("size", SIZES)
def test_state_graph(store, traces, size):
    for trace in traces:
        edges = edges_of(trace, size)
        for level, position in (
            (trace.layout.n_levels - 1, trace.position),
            (2, 0),
            (3, 2),
            (0, 1),
        ):
            reached, expected = {(level, position)}, {}
            for _ in range(3):
                now = [
                    edge
                    for edge in edges
                    if (edge["target_level"], edge["target_position"]) in reached
                ]
                expected |= {edge["rank"]: text_of(edge) for edge in now}
                reached = {(edge["source_level"], edge["source_position"]) for edge in now}
            found = ask(
                store, "state-graph", trace=trace.id, level=level, position=position, size=size
            )
            rows = zip(found["rank"], found["path"], strict=True)
            assert list(rows) == sorted(expected.items())[:150]


def test_token_graph(store, traces):
    for trace in traces:
        first = {}
        for edge in trace.edges().to_dict("records"):
            first.setdefault((edge["source_level"], edge["source_position"]), edge)
        for position in range(trace.position + 1):
            at, expected = (0, position), []
            while at in first:
                expected.append(text_of(first[at]))
                at = (first[at]["target_level"], first[at]["target_position"])
            assert at == (trace.layout.n_levels - 1, trace.position)
            found = ask(store, "token-graph", trace=trace.id, position=position)
            assert found["path"].tolist() == expected
            assert found["level"].tolist() == list(range(len(expected)))


@pytest.mark.parametrize("kind", ["embedded", "neo4j"])
def test_every_query_of_paths_is_tested_and_bounded(kind):
    found = {name: q for name, q in catalogue(kind).items() if PATH in dict(q.returns).values()}
    assert sorted(found) == NAMES
    for query in found.values():
        words = [token.text for token in tokens(query.text)]
        assert int(words[words.index("LIMIT") + 1]) <= 299
        assert words[-2] == "LIMIT"


# ------------------------------------------------------------------------------- Neo4j Browser


def given(query):
    values = {
        "trace": "line-1",
        "other": "line-2",
        "token": " the",
        "component": "L0H1",
        "key": "group",
    }
    return {p.name: values.get(p.name, 1) for p in query.params if p.required}


@pytest.mark.parametrize("name", sorted(catalogue("neo4j")))
def test_every_query_can_be_pasted(folder, name):
    query = browser_query(name) if "neo4j" in catalogue("neo4j")[name].stores else None
    if query is None:
        with pytest.raises(QueryError, match="does not run on a store of kind neo4j"):
            browser_query(name)
        return
    with open_store(folder / "store") as store:
        text = browser_text(query, browser_values(query, given(query), store))
    line, empty, rest = text.split("\n", 2)
    assert line.startswith(":params {")
    assert empty == ""
    assert rest == query.text.strip() + ";"
    for parameter in query.params:
        assert f"{parameter.name}: " in line


@pytest.mark.parametrize("name", NAMES)
def test_what_is_pasted_runs_in_a_shell(folder, shell, name):
    """Through cypher-shell, which reads `:params` as Neo4j Browser does."""
    query = browser_query(name)
    with open_store(folder / "store") as store:
        params = given(query) | ({"size": 0.3} if "size" in {p.name for p in query.params} else {})
        expected = run(store, name, params)
        text = browser_text(query, browser_values(query, params, store))
    assert len(expected) > 0
    lines = shell(text)
    assert sum(line.startswith("(:") for line in lines) == len(expected)
    assert lines[0].split(", ") == list(expected.columns)


@pytest.fixture(scope="module")
def shell(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("shell")
    with neo4j_server.started(home) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ingest(folder / "archive", environment["NEO4J_URI"])

        def run_shell(text):
            command = [neo4j_server.SCRIPT, "shell", str(home), "--format", "plain"]
            done = subprocess.run(command, input=text, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return [line for line in done.stdout.splitlines() if line]

        yield run_shell


def test_without_a_store_what_must_be_looked_up_is_null():
    query = browser_query("core-graph")
    text = browser_text(query, browser_values(query, {"size": "k:40"}))
    assert text.startswith(":params {trace: null, size: -40.0}\n\n// name: core-graph\n")
    with pytest.raises(SizeError, match="--store"):
        browser_values(query, {"size": "tv:0.2"})
    with pytest.raises(QueryParameterError, match="did you mean size"):
        browser_values(query, {"siz": "1"})


def test_values_are_escaped():
    query = browser_query("heads-reading-token")
    text = browser_text(query, browser_values(query, {"token": 'it\'s\n\\ "x"'}))
    assert text.splitlines()[0] == (
        ":params {token: 'it\\'s\\n\\\\ \"x\"', "
        "model: null, settings: null, label: '', size: 0.001}"
    )


def test_the_command(folder):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "graphtrace", "queries", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    url = str(folder / "store")
    done = command("core-graph", "--browser", "-p", "trace=line-1", "-p", "size=1", "--store", url)
    assert done.returncode == 0, done.stderr
    assert re.match(r":params \{trace: 't[0-9a-f]{12}', size: 1.0\}\n\n// name", done.stdout)
    assert done.stderr == ""
    assert "trace: null here" in command("core-graph", "--browser").stderr
    assert "give its NAME" in command("--browser").stderr
    assert "belong to --browser" in command("core-graph", "-p", "size=1").stderr


def test_a_path_as_text():
    nodes = [
        {"_ID": i, "name": f"n{i}", "layer": 0, "site": "attention", "id": i} for i in range(3)
    ]
    head = {"_LABEL": "ATTENTION", "_SRC": 1, "_DST": 0, "head": 4}
    path = {"_NODES": nodes, "_RELS": [head, {"_LABEL": "IN_TRACE", "_SRC": 1, "_DST": 2}]}
    assert path_text(path) == "n0 <-L0H4- n1 -IN_TRACE-> n2"
    links = [{"_type": "RESIDUAL"}, {"_type": "MLP"}]
    served = {"nodes": nodes, "relationships": links}
    assert path_text(served) == "n0 -L0.resid_mid-> n1 -L0.mlp-> n2"
    assert path_text({"nodes": nodes[:1], "relationships": []}) == "n0"
