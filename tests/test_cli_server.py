"""The command line on a real Neo4j server: what works on a folder works on `neo4j://…`."""

import io
import json
import socket

import neo4j_server
import pandas as pd
import pytest
from builders import synthetic_trace, with_curves
from command_line import run_text

from graphtrace.archive_write import write_traces
from graphtrace.sizes import ShortTraceWarning

pytestmark = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")
SIZE = ("--size", "k:25")


@pytest.fixture
def run(server, monkeypatch, tmp_path):
    """Run a command line on an empty server, which GRAPHTRACE_STORE names, in a folder with an
    archive; (exit code, stdout, stderr)."""
    neo4j_server.empty(server)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAPHTRACE_STORE", server)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    traces = [synthetic_trace(seed=i, n=5, labels={"group": "ab"[i % 2]}) for i in range(4)]
    write_traces(tmp_path / "traces" / "archive", traces, keep="all")

    return run_text


def test_the_whole_way(run, server, tmp_path):
    store = ("--store", server)
    folder = ("--store", "here")
    code, out, err = run("ingest", *store)
    assert (code, out) == (0, "")
    assert f"{server}: 4 traces added" in err
    assert "0 traces added" in run("ingest", *store)[2]
    assert run("ingest", *folder)[0] == 0
    code, _, err = run("store", "verify", *store)
    assert code == 0
    assert "all 4 traces are what their archives say" in err

    # The same rows as from an embedded store.
    def rows(out):
        return sorted(map(str, json.loads(out)))

    for command in (
        ("traces",),
        ("query", "trace-edges", "-p", "trace=line-1", "-p", "size=k:9"),
        ("query", "MATCH (t:Trace) WHERE t.name <> $name RETURN t.id AS id", "-p", "name=line-3"),
        ("analyze", "centrality", *SIZE, "--by", "group"),
        ("analyze", "modularity", *SIZE),
    ):
        results = [run(*command, *where, "--format", "json") for where in (store, folder)]
        assert [code for code, *_ in results] == [0, 0], results
        assert rows(results[0][1]) == rows(results[1][1]) != []

    code, _, err = run("analyze", "modularity", *SIZE, "--save", *store)
    assert code == 0
    saved = err.split("saved as ")[1].split()[0]
    _, out, _ = run("store", "analyses", *store, "--format", "csv")
    assert pd.read_csv(io.StringIO(out))["id"].tolist() == [saved]
    _, out, _ = run("query", "saved-communities", "-p", "trace=line-2", "--format", "csv")
    assert set(pd.read_csv(io.StringIO(out))["analysis"]) == {saved}

    code, _, err = run("export", "gephi", "line-0", *SIZE, *store, "--out", "trace.gexf")
    assert code == 0, err
    assert (tmp_path / "trace.gexf").stat().st_size > 0

    code, out, _ = run("store", "info", *store, "--format", "json")
    counts = {(row["what"], row["name"]): row["count"] for row in json.loads(out)}
    assert counts["nodes", "Trace"] == 4
    assert counts["nodes", "Analysis"] == 1
    assert counts["archives", str(tmp_path / "traces" / "archive")] == 4

    code, _, err = run("store", "copy", "copied", *store)
    assert code == 0
    assert "4 traces added" in err
    assert "1 saved runs" in err
    assert run("store", "verify", "--store", "copied")[0] == 0

    assert saved in run("store", "delete", "--analysis", saved, *store)[2]
    assert "1 traces deleted" in run("store", "delete", "--trace", "line-1", *store)[2]
    assert run("store", "delete", *store)[0] != 0  # nobody there to confirm
    assert "rebuilt: 3 traces" in run("store", "rebuild", *store)[2]
    assert run("store", "delete", "--yes", *store)[0] == 0
    code, _, err = run("store", "info", *store)
    assert code != 0
    assert "there is no store" in err


def test_counterfactual_curves_contrast_and_report(run, server, tmp_path):
    """What a folder says of pairs of inputs, a server says too, to the last letter."""
    pair = "sufficiency:counterfactual@p1234abcd:residual,mlp,attention"
    traces = [synthetic_trace(seed=i, n=5, labels={"group": "ab"[i % 2]}) for i in range(4)]
    write_traces("traces/archive", [with_curves(traces[0], traces[0].curve.kind, pair)])
    stores = [("--store", server), ("--store", "here")]
    found = []
    for store in stores:
        assert run("ingest", *store)[0] == 0
        text = "MATCH (c:Checkpoint) RETURN c.reference AS pair, count(*) AS n ORDER BY pair"
        code, pairs, _ = run("query", text, *store, "--format", "csv")
        assert code == 0
        code, rows, _ = run(
            *("analyze", "contrast", "--by", "group", *SIZE, "--save", *store, "--format", "csv")
        )
        assert code == 0
        _, saved, _ = run("store", "analyses", *store, "--format", "json")
        (saved,) = json.loads(saved)
        code, _, err = run("report", *SIZE, *store, "--out", "page.html", "--figures", "figures")
        assert code == 0, err
        page = (tmp_path / "page.html").read_text()
        found.append((pairs, rows, saved["measure"], saved["n_rows"], page))
    assert "p1234abcd" in found[0][0]
    assert found[0][3] == len(found[0][1].splitlines()) - 1 > 0
    assert found[0] == found[1]


def test_errors_are_one_line(run, server, monkeypatch):
    assert run("ingest")[0] == 0

    def says(*args, what):
        code, out, err = run(*args)
        assert code != 0
        assert out == ""
        assert what in err
        assert err.count("\n") == 1
        assert err.startswith("graphtrace: ")

    for text in ("MATCH (n) DETACH DELETE n", "CREATE (:Trace)", "MATCH (n) SET n.x = 1"):
        says("query", text, what="queries only read")
    says("query", "MATCH (n RETURN n", what="Invalid input")
    says("query", "minimal-cor", what="did you mean minimal-core")
    says("store", "delete", "--trace", "line-9", what="no trace 'line-9'")
    says("store", "delete", "--analysis", "a00", what="no saved run")
    assert "all 4 traces" in run("store", "verify")[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for command in (("traces",), ("ingest",), ("store", "info"), ("analyze", "density", "--save")):
        says(*command, "--store", f"bolt://127.0.0.1:{port}", what="does not answer")
    monkeypatch.setenv("NEO4J_PASSWORD", "wr0ng")
    # Two tries: after three the server takes no password for a while.
    says("traces", what="refuses this user and password")
    code, _, err = run("ingest")
    assert code != 0
    assert "wr0ng" not in err
