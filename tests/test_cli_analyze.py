import io
import json
import subprocess
import sys

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from typer.testing import CliRunner

import graphtrace.cli.analyze
import graphtrace.cli.export  # noqa: F401  registers its commands
from graphtrace.analysis.centrality import centrality
from graphtrace.analysis.core import core_stability
from graphtrace.analysis.modularity import modularity
from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.cli.app import app
from graphtrace.errors import OptionError, SizeError, TraceNotFoundError
from graphtrace.ingestion import ingest
from graphtrace.sizes import ShortTraceWarning


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "archive"
    write_traces(
        folder,
        [
            synthetic_trace(
                10 * m + i,
                n=5 + i % 2,
                model=model_info(name=name),
                name=f"line-{i}",
                text=f"text {i}",
                labels={"group": ("clean", "corrupt")[i % 2]},
            )
            for m, name in enumerate(("a", "b"))
            for i in range(4)
        ],
    )
    return str(folder)


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def same(text, frame):
    """The JSON on stdout holds the frame that the library returns."""
    held = pd.DataFrame(json.loads(text))
    expected = pd.DataFrame(json.loads(frame.to_json(orient="records")))
    pd.testing.assert_frame_equal(held, expected, rtol=1e-9)


def test_commands_print_what_the_library_returns(archive):
    with open_archive(archive) as source:
        frames = {
            ("centrality",): centrality(source, "k:25", models=["a"], where=["group=clean"]),
            ("centrality", "--level", "node"): centrality(
                source, "k:25", models=["a"], where=["group=clean"], level="node"
            ),
            ("modularity",): modularity(source, "k:25", models=["a"], where=["group=clean"]),
            ("modularity", "--resolution", "0.5", "--resolution", "2"): modularity(
                source, "k:25", models=["a"], where=["group=clean"], resolutions=[0.5, 2]
            ),
            **{
                ("core-stability", "--table", name): getattr(
                    core_stability(source, "k:25", models=["a"], where=["group=clean"]), name
                )
                for name in ("summary", "components", "lorenz")
            },
        }
    for command, frame in frames.items():
        result = run(
            *("analyze", *command, "--size", "k:25", "--model", "a", "--where", "group=clean"),
            *("--archive", archive, "--format", "json"),
        )
        same(result.stdout, frame)
        assert result.stderr == ""


def test_a_store_gives_the_numbers_of_its_archive(archive, tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    ingest(archive, store)
    monkeypatch.setenv("GRAPHTRACE_STORE", store)
    for command in (
        ("centrality", "--by", "group"),
        ("centrality", "--level", "node"),
        ("modularity",),
        ("core-stability", "--table", "components"),
    ):
        options = ("analyze", *command, "--size", "k:25", "--format", "json")
        expected = run(*options, "--archive", archive).stdout
        assert run(*options, "--store", store).stdout == expected
        assert run(*options).stdout == expected


def test_every_analysis_groups_by_a_label(archive):
    for command in ("centrality", "modularity", "core-stability"):
        options = ("--size", "k:25", "--by", "group", "--archive", archive, "--format", "csv")
        frame = pd.read_csv(io.StringIO(run("analyze", command, *options).stdout))
        assert set(frame["group"]) == {"clean", "corrupt"}
        with pytest.raises(OptionError, match="no trace has a label 'colour'"):
            run("analyze", command, "--by", "colour", "--archive", archive)


def test_measure_orders_the_rows_and_names_the_figure(archive, tmp_path):
    figure = tmp_path / "f.svg"
    options = ("--measure", "betweenness", "--plot", str(figure), "--format", "json")
    result = run("analyze", "centrality", "--size", "k:25", "--archive", archive, *options)
    frame = pd.DataFrame(json.loads(result.stdout))
    assert [m for m, _ in frame.groupby("model", sort=False)] == [
        "a@0123456789ab",
        "b@0123456789ab",
    ]
    for _, block in frame.groupby("model"):
        assert block["betweenness"].is_monotonic_decreasing
    assert "betweenness" in figure.read_text()
    assert f"figure: {figure}" in result.stderr
    with pytest.raises(OptionError, match="leave --level node away"):
        run("analyze", "centrality", "--level", "node", *options, "--archive", archive)


@pytest.mark.parametrize("command", ["centrality", "modularity", "core-stability"])
def test_figures(archive, tmp_path, command):
    path = tmp_path / "figure.png"
    run("analyze", command, "--size", "k:25", "--archive", archive, "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError, match="must end in one of"):
        run("analyze", command, "--archive", archive, "--plot", str(tmp_path / "f.bmp"))


def test_parquet_on_stdout(archive):
    options = ("--size", "k:25", "--archive", archive, "--format", "parquet")
    result = CliRunner().invoke(app, ["analyze", "modularity", *options])
    frame = pd.read_parquet(io.BytesIO(result.stdout_bytes))
    assert len(frame) == 8


def test_long_tables_say_that_they_go_on(archive):
    result = run("analyze", "centrality", "--size", "k:25", "--archive", archive, "--level", "node")
    assert "the first 40 of" in result.stderr


def test_short_traces_are_one_warning(archive):
    what = "8 of 8 traces keep fewer edges than one complete path"
    with pytest.warns(ShortTraceWarning, match=what) as warned:
        run("analyze", "modularity", "--size", "k:2", "--archive", archive)
    assert len(warned) == 1


def test_a_warning_is_one_line_on_stderr(archive):
    command = [sys.executable, "-m", "graphtrace", "analyze", "modularity", "--size", "k:2"]
    done = subprocess.run([*command, "--archive", archive], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("graphtrace: at size k:2, 8 of 8 traces keep fewer edges")
    assert len(done.stderr.strip().splitlines()) == 1


def test_sources_and_sizes_that_mean_nothing(archive, tmp_path):
    with pytest.raises(OptionError, match="give one of them"):
        run("analyze", "modularity", "--archive", archive, "--store", "x")
    with pytest.raises(SizeError, match="size 'big' is none of"):
        run("analyze", "centrality", "--archive", archive, "--size", "big")
    with pytest.raises(TraceNotFoundError, match="no trace 'nothing'"):
        run("export", "gephi", "nothing", "--archive", archive, "--out", str(tmp_path / "g.gexf"))
    assert list(tmp_path.iterdir()) == []


def test_export(archive, tmp_path):
    with open_archive(archive) as source:
        trace = source.traces()["id"].iloc[0]
        subgraph = source.subgraph(trace, "k:30")
    links = len(np.unique(np.stack([subgraph.source_node, subgraph.target_node]), axis=1).T)
    for form, more, count in (
        ("gephi", (), 30),
        ("gephi", ("--collapse",), links),
        ("graphml", (), 30),
    ):
        path = tmp_path / "new" / f"g.{form}"
        options = ("--size", "k:30", "--archive", archive, "--out", str(path), *more)
        result = run("export", form, "a:line-0", *options)
        read = nx.read_graphml if form == "graphml" else nx.read_gexf
        assert read(path).number_of_edges() == count
        assert f"30 edges of trace {trace}" in result.stderr
    options = ("--size", "k:2", "--archive", archive, "--out", str(tmp_path / "short.gexf"))
    with pytest.warns(ShortTraceWarning, match="2 edges are fewer than the 4 of one complete path"):
        run("export", "gephi", trace, *options)


def test_help_imports_nothing_slow():
    code = (
        "import sys, graphtrace.cli.analyze, graphtrace.cli.export; "
        "slow = {'pandas', 'igraph', 'matplotlib', 'numba', 'torch', 'networkx', 'pyarrow'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "core-stability" in run("analyze", "--help").output
