"""`graphtrace ingest`, `traces`, `query`, `queries` and `store` on the command line."""

import io
import json

import pandas as pd
import pytest
from builders import synthetic_trace
from command_line import run_text

from graphtrace.archive_write import write_traces
from graphtrace.catalogue import catalogue
from graphtrace.sizes import ShortTraceWarning


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command line in an empty folder; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHTRACE_STORE", raising=False)
    return run_text


@pytest.fixture
def traces(tmp_path):
    traces = [synthetic_trace(seed=i, n=5, labels={"group": "ab"[i % 2]}) for i in range(4)]
    write_traces(tmp_path / "traces" / "archive", traces, keep="all")
    return traces


def test_the_whole_way_with_defaults(run, traces, tmp_path):
    code, out, err = run("ingest")
    assert (code, out) == (0, "")
    assert "4 traces added" in err
    assert (tmp_path / "traces" / "store" / "store.json").is_file()
    assert "0 traces added" in run("ingest")[2]
    code, out, err = run("store", "verify")
    assert (code, out) == (0, "")
    assert "all 4 traces are what their archives say" in err
    code, out, _ = run("store", "info", "--format", "json")
    rows = {(row["what"], row["name"]): row["count"] for row in json.loads(out)}
    assert rows["nodes", "Trace"] == 4
    assert rows["relationships", "MLP"] == sum((t.edges()["kind"] == "mlp").sum() for t in traces)
    assert rows["archives", str(tmp_path / "traces" / "archive")] == 4


def test_traces(run, traces):
    run("ingest")
    code, out, _ = run("traces", "--sort", "density", "--format", "csv")
    found = pd.read_csv(io.StringIO(out))
    expected = sorted(traces, key=lambda t: -t.density)
    assert code == 0
    assert found["id"].tolist() == [t.id for t in expected]
    _, out, _ = run("traces", "--sort", "-density", "--where", "group=a", "--format", "csv")
    assert pd.read_csv(io.StringIO(out))["id"].tolist() == [
        t.id for t in expected[::-1] if t.input.labels["group"] == "a"
    ]
    _, of_archive, _ = run("traces", "--archive", "traces/archive", "--format", "json")
    _, of_store, _ = run("traces", "--format", "json")
    key = "id"
    assert sorted(json.loads(of_archive), key=lambda r: r[key]) == sorted(
        json.loads(of_store), key=lambda r: r[key]
    )
    assert "line-2" in run("traces")[1]
    code, _, err = run("traces", "--sort", "densty")
    assert code == 2
    assert "no column 'densty'" in err
    assert run("traces", "--where", "group=c")[0] == 2
    assert run("traces", "--archive", "x", "--store", "y")[0] == 2


@pytest.mark.filterwarnings(f"default::{ShortTraceWarning.__module__}.ShortTraceWarning")
def test_query(run, traces):
    run("ingest")
    code, out, _ = run(
        "query", "trace-edges", "-p", "trace=line-1", "--param", "size=k:7", "--format", "json"
    )
    assert code == 0
    edges = traces[1].edges().head(7)
    assert [row["component"] for row in json.loads(out)] == edges["component"].tolist()
    code, out, _ = run(
        "query",
        "MATCH (t:Trace) WHERE t.n_tokens = $n AND t.name <> $name RETURN t.name AS name",
        "-p",
        "n=5",
        "-p",
        "name=line-3",
        "--format",
        "csv",
    )
    assert sorted(out.split()) == ["line-0", "line-1", "line-2", "name"]
    code, out, err = run("query", "minimal-core", "--format", "csv")
    assert code == 0
    assert "graphtrace: at size 0.001, 4 of 4 traces keep fewer edges" in err
    assert out == "component,kind,layer,n_inputs,frequency\n"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["query", "minimal-cor"], "did you mean minimal-core"),
        (["query", "trace-edges"], "needs parameter trace"),
        (["query", "trace-edges", "-p", "trace"], "key=value"),
        (["query", "MATCH (n) DETACH DELETE n"], "queries only read"),
        (["query", "MATCH (n RETURN n"], "Parser exception"),
        (["query", "MATCH (n:Nothing) RETURN n.x AS x"], "Nothing does not exist"),
        (["query", "RETURN 1 AS x", "--store", "bolt://me:pw@x"], "neither user nor password"),
        (["query", "RETURN 1 AS x", "--store", "none"], "no store in none"),
        (["ingest", "none"], "none"),
        (["store", "verify", "--store", "none"], "no store in none"),
        (["store", "delete", "--trace", "line-9"], "no trace 'line-9'"),
    ],
)
def test_errors_are_one_line(run, traces, args, what):
    run("ingest")
    code, out, err = run(*args)
    assert code != 0
    assert out == ""
    assert what in err
    assert err.count("\n") == 1
    assert err.startswith("graphtrace: ")


def test_queries(run):
    code, out, _ = run("queries", "--format", "json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == list(catalogue())
    assert "// name: entering" in run("queries", "entering")[1]
    code, _, err = run("queries", "entring")
    assert code == 1
    assert "did you mean entering" in err


def test_store_rebuild_verify_and_delete(run, traces, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    run("ingest")
    assert "rebuilt: 4 traces" in run("store", "rebuild")[2]
    assert "1 traces deleted" in run("store", "delete", "--trace", "line-1")[2]
    code, _, err = run("ingest")
    assert "1 traces of traces/archive were deleted" in err
    assert "1 traces added" in run("ingest", "--restore")[2]
    write_traces(tmp_path / "traces" / "archive", [synthetic_trace(seed=8, n=5)], keep="all")
    code, out, err = run("store", "verify", "--format", "csv")
    assert code == 1
    assert "line-8" in out
    assert "1 problems" in err
    code, _, err = run("store", "delete")  # nobody there to confirm
    assert code != 0
    assert err.splitlines()[-1].endswith("was not confirmed; --yes deletes without asking")
    assert (tmp_path / "traces" / "store").exists()
    assert run("store", "delete", "--yes")[0] == 0
    assert not (tmp_path / "traces" / "store").exists()
    assert (tmp_path / "traces" / "archive").exists()


def test_the_store_of_the_environment(run, traces, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHTRACE_STORE", str(tmp_path / "mine"))
    run("ingest")
    assert (tmp_path / "mine" / "store.json").is_file()
    assert not (tmp_path / "traces" / "store").exists()
