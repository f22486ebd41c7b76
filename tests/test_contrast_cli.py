"""`analyze contrast` on the command line: printed, drawn and saved."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource
from command_line import run_text
from test_contrast import pairs

import graphtrace as gt
from graphtrace.analysis.contrast import contrast
from graphtrace.analysis.contrast_runs import save_contrast
from graphtrace.archive_write import write_traces
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
from graphtrace.plots import save_figure
from graphtrace.plots_contrast import plot_contrast
from graphtrace.stores.base import open_store
from graphtrace.stores.saved_runs import list_runs

SIZE = "k:20"
GIVEN = ("--by", "group", "--pair", "pair", "--size", SIZE)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command line in a folder with an ingested archive of two models; (code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHTRACE_STORE", raising=False)
    write_traces(tmp_path / "traces" / "archive", pairs(4, models=("a", "b")), keep="all")

    assert run_text("ingest")[0] == 0
    return run_text


def expected(size=SIZE, **options):
    return contrast(MemorySource(pairs(4, models=("a", "b"))), size, **options)


def test_the_command_prints_what_the_library_returns(run):
    found = expected(by="group", pair="pair")
    for place in ((), ("--archive", "traces/archive")):
        code, out, err = run("analyze", "contrast", *GIVEN, *place, "--format", "csv")
        assert code == 0, err
        table = pd.read_csv(io.StringIO(out))
        own = pd.read_csv(io.StringIO(found.rows.to_csv(index=False)))
        pd.testing.assert_frame_equal(table, own)
        assert "4 pairs; matched by component; test mcnemar" in err
        assert "A clean: 4 inputs, 20 edges" in err
    _, out, _ = run("analyze", "contrast", *GIVEN, "--table", "summary", "--format", "json")
    assert json.loads(out) == json.loads(found.summary.to_json(orient="records"))
    _, out, err = run("analyze", "contrast", *GIVEN[:2], "--size", SIZE, "--level", "layer")
    assert "share_difference" in out
    assert "share_difference_low" not in out, "an interval stands with its value"
    assert "independent groups" in err


def test_options_reach_the_library(run):
    options = {
        ("--between", "corrupt,clean"): {"between": ("corrupt", "clean")},
        ("--core", "1"): {"core": 1.0},
        ("--level", "token", "--exclude-special"): {"level": "token", "exclude_special": True},
        ("--model", "b", "--where", "pair!=2"): {"models": ["b"], "where": ["pair!=2"]},
    }
    for given, keywords in options.items():
        code, out, err = run("analyze", "contrast", *GIVEN, *given, "--format", "csv")
        assert code == 0, err
        rows = expected(by="group", pair="pair", **keywords).rows
        own = pd.read_csv(io.StringIO(rows.to_csv(index=False)))
        pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), own)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--by", "pair"), "pick two with --between"),
        (("--by", "group", "--between", "clean"), "not two values"),
        (("--by", "group", "--between", "clean,dirty"), "no trace where group is 'dirty'"),
        (("--by", "group", "--pair", "couple"), "no trace has a label 'couple'"),
        (("--by", "group", "--plot", "x.gif"), "must end in"),
        (("--by", "group", "--archive", "traces/archive", "--save"), "--archive names none"),
    ],
)
def test_what_is_refused(run, given, message):
    code, out, err = run("analyze", "contrast", *given, "--size", SIZE)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.filterwarnings("default")
def test_inputs_without_a_partner_are_said(run):
    where = ("--where", "pair!=1")
    code, _, err = run("analyze", "contrast", *GIVEN, *where)
    assert code == 0
    assert "no partner" not in err
    write_traces(
        "traces/archive",
        [synthetic_trace(5, labels={"group": "clean"}, model=model_info(name="a"))],
    )
    run("ingest")
    code, _, err = run("analyze", "contrast", *GIVEN, *where)
    assert code == 0
    assert "1 input of clean and 0 of corrupt have no partner" in err


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (GIVEN, "Component"),
        (("--by", "model", "--size", SIZE), "Component"),
        ((*GIVEN, "--level", "layer"), "Model"),
        ((*GIVEN, "--level", "token"), "Model"),
        ((*GIVEN, "--table", "summary"), "Model"),
    ],
    ids=["components", "models", "layers", "tokens", "summary"],
)
def test_what_is_printed_is_what_is_saved(run, given, label):
    code, out, err = run("analyze", "contrast", *given, "--save", "--format", "json")
    assert code == 0, err
    table = pd.DataFrame(json.loads(out))
    name = err.split("saved as ")[1].split()[0]
    assert f"{len(table):,} rows" in err
    own = {"model", "component", "kind", "layer", "head"} if label == "Component" else {"model"}
    with open_store("traces/store") as store:
        for column in [x for x in table if x not in own]:
            if table[column].isna().all():
                continue
            held = store.query(
                f"MATCH (a:Analysis {{id: $id}})-[m:MEASURED]->(x:{label}) "
                f"RETURN m.row AS line, m.`{column}` AS value, x.id AS about ORDER BY line",
                id=name,
            )
            assert len(held) == len(table), column
            for value, printed in zip(held["value"], table[column], strict=True):
                same = (
                    value == pytest.approx(printed)
                    if isinstance(printed, float)
                    else (value == printed)
                )
                assert same or (pd.isna(value) and pd.isna(printed)), column
            if label == "Component":
                assert (
                    held["about"].tolist() == (table["model"] + ":" + table["component"]).tolist()
                )
        (listed,) = list_runs(store).to_dict("records")
    assert listed["measure"] == "contrast"
    assert listed["n_rows"] == len(table)
    assert listed["n_traces"] == 16
    assert json.loads(listed["parameters"])["between"] == [table["a"][0], table["b"][0]]


def test_a_contrast_of_settings_is_saved_with_both(tmp_path):
    import dataclasses

    traces = pairs(3)
    other = dataclasses.replace(traces[0].settings, scorer="l2")
    write_traces(
        tmp_path / "a", [*traces, *(dataclasses.replace(t, settings=other) for t in traces)]
    )
    ingest(tmp_path / "a", tmp_path / "s")
    with open_store(tmp_path / "s", read_only=False) as store:
        names = (traces[0].settings.id, other.id)
        found = gt.contrast(store, SIZE, by="settings", between=names)
        saved = save_contrast(store, found.rows, SIZE, by="settings", between=names)
        assert saved.properties["settings"] == ", ".join(names)
        assert len(saved.traces) == 12
        again = save_contrast(store, found.rows, SIZE, by="settings", between=names)
        assert again.id == saved.id
        assert len(list_runs(store)) == 1
        with pytest.raises(OptionError, match="both sides"):
            save_contrast(store, found.rows, SIZE, by="settings", between=names[:1] * 2)


# -------------------------------------------------------------------------------------- figures


def panels(figure):
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def test_the_figure_holds_the_values_of_the_table():
    found = expected("k:8", by="group", pair="pair", models=["a"])
    figure = plot_contrast(found)
    grid, bars = panels(figure)
    image = grid.images[0]
    table = image.get_array()
    rows = found.rows
    for row in rows[rows["kind"] == "attention"].to_dict("records"):
        assert table[row["layer"], row["head"]] == pytest.approx(row["difference"])
    assert len(set(rows["difference"])) > 2
    low, high = image.get_clim()
    assert low == -high
    assert high == pytest.approx(rows[rows["kind"] == "attention"]["difference"].abs().max())
    widths = sorted(patch.get_width() for patch in bars.patches)
    others = rows.loc[rows["kind"] != "attention", "difference"]
    assert widths == pytest.approx(sorted(others))
    assert bars.get_xlim()[0] == -bars.get_xlim()[1]
    assert "4 pairs" in grid.get_title("left")
    assert "95 % intervals" in figure.get_suptitle()


def test_what_is_found_is_marked():
    found = expected("k:8", by="group", pair="pair", models=["a"])
    rows = found.rows.assign(q=np.where(found.rows["component"].isin(["L1H0", "L0.mlp"]), 0.01, 1))
    grid, bars = panels(plot_contrast(found._replace(rows=rows)))
    (stars,) = grid.lines
    assert stars.get_xydata().tolist() == [[0, 1]]
    marked = [line for line in bars.lines if line.get_marker() == "*"]
    assert sum(len(line.get_xydata()) for line in marked) == 1


def test_shares_are_drawn_without_marks():
    found = expected("k:8", by="group", pair="pair", models=["a"])
    figure = plot_contrast(found._replace(rows=found.rows.assign(q=0.01)), "share")
    grid, bars = panels(figure)
    table = grid.images[0].get_array()
    rows = found.rows
    for row in rows[rows["kind"] == "attention"].to_dict("records"):
        assert table[row["layer"], row["head"]] == pytest.approx(row["share_difference"])
    assert "marked" not in figure.get_suptitle()
    assert "share of edges" in bars.get_xlabel()
    stars = [line for axis in (grid, bars) for line in axis.lines if line.get_marker() == "*"]
    assert sum(len(line.get_xydata()) for line in stars) == 0
    with pytest.raises(OptionError, match="measure 'size' is none of"):
        plot_contrast(found, "size")


def test_a_head_that_no_trace_uses_is_grey():
    found = expected("k:8", by="group", pair="pair", models=["a"])
    rows = found.rows[found.rows["component"] != "L0H1"]
    grid, _ = panels(plot_contrast(found._replace(rows=rows)))
    assert grid.images[0].get_array().mask.tolist() == [[False, True], [False, False]]


def test_every_level_has_a_figure(tmp_path):
    shapes = (model_info(2, 2, name="small"), model_info(3, 3, name="large", parallel=True))
    deep = MemorySource(
        [
            synthetic_trace(10 * i + m, n=5, model=model, name=f"line-{i}", text=f"text {i}")
            for i in range(3)
            for m, model in enumerate(shapes)
        ]
    )
    figures = {
        level: plot_contrast(expected(by="group", level=level))
        for level in ("component", "layer", "token")
    }
    figures["depth"] = plot_contrast(contrast(deep, SIZE, by="model"))
    figures["depth-layer"] = plot_contrast(contrast(deep, SIZE, by="model", level="layer"))
    figures["one"] = plot_contrast(
        contrast(MemorySource(pairs(1)), SIZE, by="group", level="token")
    )
    for name, figure in figures.items():
        for axis in panels(figure):
            assert axis.get_xlabel(), name
            assert axis.get_ylabel(), name
        for suffix in (".svg", ".png", ".pdf"):
            assert save_figure(figure, tmp_path / f"{name}{suffix}").stat().st_size > 1000
    tokens = panels(figures["one"])[0]
    assert len(tokens.get_yticklabels()) == len(tokens.patches)


def test_the_command_draws(run, tmp_path):
    for measure, what in (("presence", "share of inputs"), ("share", "share of edges")):
        figure = ("--plot", tmp_path / "x.svg", "--measure", measure)
        code, _, err = run("analyze", "contrast", *GIVEN, *figure)
        assert code == 0
        assert what in (tmp_path / "x.svg").read_text()
        assert "figure:" in err
