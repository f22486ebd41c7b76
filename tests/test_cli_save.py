"""`analyze … --save`, `store analyses` and `store delete --analysis` on the command line."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from command_line import run_text

from graphtrace.archive_write import write_traces
from graphtrace.sizes import ShortTraceWarning

pytestmark = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command line in a folder with an ingested archive; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHTRACE_STORE", raising=False)
    traces = [
        synthetic_trace(
            seed=10 * m + i,
            n=5,
            model=model_info(name=name),
            name=f"line-{i}",
            labels={"group": "ab"[i % 2]},
        )
        for m, name in enumerate(("one", "two"))
        for i in range(3)
    ]
    write_traces(tmp_path / "traces" / "archive", traces, keep="all")

    assert run_text("ingest")[0] == 0
    return run_text


SAVED = {
    ("centrality", "--size", "k:25", "--by", "group"): "Component",
    ("centrality", "--size", "k:25", "--level", "node"): "State",
    ("centrality", "--size", "k:25", "--measure", "pagerank", "--model", "one"): "Component",
    ("modularity", "--size", "k:25", "--resolution", "2"): "Trace",
    ("core-stability", "--size", "k:25", "--table", "components"): "Component",
    ("core-stability", "--size", "k:25"): "Model",
    ("density",): "Model",
    ("circuit", "--reference", "heads.json", "--table", "components"): "Component",
}


@pytest.mark.parametrize("command", SAVED, ids=" ".join)
def test_what_is_printed_is_what_is_saved(run, tmp_path, command):
    (tmp_path / "heads.json").write_text('["L0H1", "1.0"]')
    code, out, err = run("analyze", *command, "--save", "--format", "json")
    assert code == 0, err
    table = pd.DataFrame(json.loads(out))
    assert run("analyze", *command, "--format", "json")[1] == out
    table = table[table["model"] != "all models"]
    assert "saved as a" in err
    name = err.split("saved as ")[1].split()[0]
    assert f"{len(table):,} rows" in err
    text = (
        f"MATCH (a:Analysis {{id: '{name}'}})-[m:MEASURED]->(x:{SAVED[command]}) "
        "RETURN m.row AS line, %s AS value ORDER BY line"
    )
    own = {"model", "component", "kind", "layer", "head", "trace", "input", "group", "name"}
    own |= {"level", "site", "position", "token_id", "token", "special"}
    for column in set(table) - own:
        _, out, _ = run("query", text % f"m.`{column}`", "--format", "json")
        found = pd.DataFrame(json.loads(out))
        assert found["line"].tolist() == table.index.tolist()
        values, expected = found["value"], table[column]
        if expected.dtype.kind in "if":
            # JSON text holds ten digits.
            np.testing.assert_allclose(
                values.astype(float), expected.astype(float), rtol=1e-9, equal_nan=True
            )
        else:
            assert values.tolist() == expected.tolist()


def test_runs_are_listed_and_removed(run):
    run("analyze", "modularity", "--size", "k:25", "--save")
    run("analyze", "centrality", "--size", "k:25", "--save")
    run("analyze", "centrality", "--size", "k:25", "--save")
    code, out, _ = run("store", "analyses", "--format", "csv")
    listed = pd.read_csv(io.StringIO(out))
    assert code == 0
    assert listed["measure"].tolist() == ["modularity", "centrality"]
    assert listed["n_left"].tolist() == [6, 6]
    assert "modularity" in run("store", "analyses")[1]
    _, out, _ = run("store", "info", "--format", "json")
    counts = {(row["what"], row["name"]): row["count"] for row in json.loads(out)}
    assert counts["nodes", "Analysis"] == 2
    code, _, err = run("store", "delete", "--analysis", listed["id"][0])
    assert (code, err.count("\n")) == (0, 1)
    assert listed["id"][0] in err
    _, out, _ = run("store", "analyses", "--format", "csv")
    assert pd.read_csv(io.StringIO(out))["id"].tolist() == [listed["id"][1]]
    code, _, err = run("store", "verify")
    assert code == 0
    code, out, _ = run("query", "saved-components", "-p", "n=3", "--format", "json")
    assert [row["analysis"] for row in json.loads(out)] == [listed["id"][1]] * 3


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["analyze", "density", "--archive", "traces/archive", "--save"], "graphtrace ingest"),
        (["analyze", "density", "--store", "none", "--save"], "no store in none"),
        (["store", "delete", "--analysis", "a00"], "no saved run"),
        (["store", "delete", "--analysis", "a0", "--model", "x"], "with another call"),
        (["store", "delete", "--analysis", "a0", "--store", "none"], "no store in none"),
    ],
)
def test_errors_are_one_line(run, tmp_path, args, what):
    code, out, err = run(*args)
    assert code != 0
    assert out == ""
    assert what in err
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()
