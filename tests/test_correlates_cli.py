"""`analyze correlates|agreement|controls|density --plot` and `design`; their figures."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
from builders import WORDS
from builders_source import MemorySource
from test_agreement_of_models import models_of_one_corpus, source_of
from test_controls import COUNTS, matched_traces, rare_and_frequent
from test_correlates import varied
from test_designs import book
from typer.testing import CliRunner

import graphtrace as gt
import graphtrace.cli.commands
from graphtrace.analysis.density import density
from graphtrace.analysis.measured_traces import values_per_input
from graphtrace.archive_write import write_traces
from graphtrace.cli.app import app
from graphtrace.corpus import read_corpus
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
from graphtrace.plots import save_figure
from graphtrace.plots_correlates import (
    plot_agreement,
    plot_controls,
    plot_correlates,
    plot_density,
)
from graphtrace.stores.base import open_store


def run(*arguments):
    result = CliRunner().invoke(app, [str(x) for x in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("correlates") / "archive"
    models = models_of_one_corpus("ab", 12)
    write_traces(folder, [trace for own in models.values() for trace in own])
    return folder


@pytest.fixture(scope="module")
def matched_archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matched") / "archive"
    made = matched_traces(10, 0.02)
    rng = np.random.default_rng(0)
    for i, word in enumerate(rng.integers(0, 8, len(made)).tolist()):
        made[i] = dataclasses.replace(made[i], predicted_id=word, predicted=WORDS[word])
    write_traces(folder, made)
    return folder


def check_same(printed, expected):
    found = pd.DataFrame(json.loads(printed.stdout)).astype(expected.dtypes)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


# ----------------------------------------------------------------------------------- the commands


def test_correlates(archive, tmp_path):
    store, table = tmp_path / "store", tmp_path / "counts.csv"
    pd.DataFrame({"token": COUNTS.keys(), "count": COUNTS.values()}).to_csv(table, index=False)
    ingest(archive, store)
    options = ("--draws", 50, "--frequencies", table, "--seed", 3, "--by", "group")
    with gt.open_archive(archive) as opened:
        expected = gt.correlates(opened, frequencies=COUNTS, draws=50, seed=3, by=["group"])
    for source in (("--archive", archive), ("--store", store)):
        check_same(run("analyze", "correlates", *source, *options, "--format", "json"), expected)
    figure = tmp_path / "figure.svg"
    printed = run("analyze", "correlates", "--store", store, *options, "--plot", figure, "--save")
    assert figure.read_text().startswith("<?xml")
    assert "partial_rho_low" not in printed.stdout, "an interval stands with its value"
    with open_store(str(store)) as opened:
        rows = opened.cypher(
            "MATCH (a:Analysis)-[m:MEASURED]->(x:Model) "
            "RETURN a.measure AS measure, m.correlate AS correlate, m.rho AS rho"
        )
    assert len(rows) == len(expected)
    found = rows["rho"].dropna().sort_values().to_numpy()
    np.testing.assert_allclose(found, expected["rho"].dropna().sort_values().to_numpy())


def test_agreement(archive, matched_archive, tmp_path):
    with gt.open_archive(archive) as opened:
        expected = gt.agreement(opened, measure="density", draws=50)
    options = ("--archive", archive, "--measure", "density", "--draws", 50)
    for table in ("pairs", "summary"):
        printed = run("analyze", "agreement", *options, "--table", table, "--format", "json")
        check_same(printed, getattr(expected, table))
    figure = tmp_path / "figure.png"
    run("analyze", "agreement", *options, "--plot", figure)
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError, match="these traces are of one model"):
        run("analyze", "agreement", "--archive", matched_archive)


def test_controls(archive, matched_archive, tmp_path):
    with gt.open_archive(matched_archive) as opened:
        expected = gt.controls(opened, edges=[5], draws=50)
    assert expected.difference["n_strata"].tolist() == [1], "and one with an empty quartile"
    written, figure = tmp_path / "cells.json", tmp_path / "figure.pdf"
    options = ("--archive", matched_archive, "--edges", "5", "--draws", 50)
    for table in ("lengths", "trend", "quartiles", "difference", "cells"):
        printed = run("analyze", "controls", *options, "--table", table, "--format", "json")
        check_same(printed, getattr(expected, table))
    printed = run("analyze", "controls", *options, "--design", written, "--plot", figure)
    assert "slope" in printed.stdout
    assert figure.read_bytes().startswith(b"%PDF")
    held = json.loads(written.read_text())
    assert held["parameters"]["strata"] == [5]
    plain = run("analyze", "controls", "--archive", archive, "--draws", 5)
    assert "difference" in plain.stdout
    with pytest.raises(OptionError, match="--table trend needs inputs with the labels"):
        run("analyze", "controls", "--archive", archive, "--table", "trend")
    for edges in ("5;6", "", "-3", "5,"):
        with pytest.raises(OptionError, match="is not a list of lengths"):
            run("analyze", "controls", "--archive", archive, "--edges", edges)
    again = tmp_path / "again.json"
    run("design", "rarity", "--archive", matched_archive, "--edges", "5", "--out", again)
    assert json.loads(again.read_text()) == held
    for command in (("analyze", "controls", "--design"), ("design", "rarity", "--out")):
        with pytest.raises(OptionError, match=r"must end in \.json"):
            run(*command, tmp_path / "cells.txt", "--archive", archive)


def test_matched_designs_are_traced_as_a_corpus(tmp_path):
    paths = [tmp_path / f"{i}.txt" for i in range(2)]
    for i, path in enumerate(paths):
        path.write_text(book(i))
    out = tmp_path / "matched.jsonl"
    options = ("--endings", 6, "--contexts", "4, 8,16", "--ending-words", 4, "--seed", 2)
    printed = run("design", "matched", *paths, "--out", out, *options)
    assert "18 texts of 6 endings" in printed.stderr
    expected = gt.matched_continuations(paths, 6, contexts=[4, 8, 16], ending_words=4, seed=2)
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected.rows
    inputs = read_corpus(out, labels=["ending", "context"])
    assert {len(x.text.split()) for x in inputs} == {4, 8, 16}
    held = json.loads((tmp_path / "matched.design.json").read_text())
    assert held["inputs"] == [x.name for x in inputs]
    with pytest.raises(OptionError, match="is not a list of lengths"):
        run("design", "matched", *paths, "--out", out, "--contexts", "4;8")
    with pytest.raises(OptionError, match=r"must end in \.jsonl"):
        run("design", "matched", *paths, "--out", tmp_path / "matched.txt")


def test_density_is_drawn(archive, tmp_path):
    figure = tmp_path / "density.svg"
    printed = run("analyze", "density", "--archive", archive, "--plot", figure)
    assert f"figure: {figure}" in printed.stderr
    assert "normalised density" in figure.read_text()
    csv = run("analyze", "density", "--archive", archive, "--format", "csv").stdout
    with gt.open_archive(archive) as opened:
        pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(csv)), gt.density(opened))


# ---------------------------------------------------------------------------------- their figures


def sources():
    matched = MemorySource([*matched_traces(8, 0.02, name="a"), *matched_traces(8, name="b")])
    return {
        "two models": source_of(models_of_one_corpus("ab", 12)),
        "one input": MemorySource(varied(1)),
        "matched": matched,
        "no losses": MemorySource(varied(6, loss=False)),
    }


def figures(source):
    frame = density(source, draws=20)
    yield plot_correlates(gt.correlates(source, draws=20))
    yield plot_controls(gt.controls(source, draws=20))
    yield plot_density(frame, values_per_input(source))
    yield plot_density(frame)
    if len(set(source.traces()["model"])) > 1:
        yield plot_agreement(gt.agreement(source, draws=20))
        yield plot_agreement(gt.agreement(source, draws=20, measure="entropy"))


@pytest.mark.parametrize("name", sources())
def test_every_axis_is_labelled_and_the_same_data_give_the_same_file(name, tmp_path):
    source = sources()[name]
    for i, (figure, again) in enumerate(zip(figures(source), figures(source), strict=True)):
        for axis in figure.axes:
            if axis.get_label() != "<colorbar>":
                assert axis.get_xlabel(), i
                assert axis.get_ylabel(), i
        one = save_figure(figure, tmp_path / "one.svg").read_bytes()
        assert one == save_figure(again, tmp_path / "two.svg").read_bytes()


def test_no_figure_of_one_model():
    with pytest.raises(OptionError, match="there is one model"):
        plot_agreement(gt.agreement(MemorySource(varied(4))))


def test_points_are_the_values_of_the_table():
    frame = gt.correlates(MemorySource(varied(20)), draws=20)
    axes = plot_correlates(frame).axes
    for axis, measure in zip(axes, ("density_normalised", "density"), strict=True):
        own = frame[frame["measure"] == measure]
        drawn = [line.get_xdata() for line in axis.lines[:2]]
        assert drawn[0].tolist() == own["rho"].tolist()
        assert drawn[1].tolist() == own["partial_rho"].tolist()
        assert f"({20} inputs)" in axis.figure.legends[0].get_texts()[0].get_text()


def test_the_matrix_holds_every_pair():
    found = gt.agreement(source_of(models_of_one_corpus("abc", 12)), draws=20)
    (axis, _) = plot_agreement(found).axes
    table = np.asarray(axis.images[0].get_array().filled(np.nan))
    rho = dict(
        zip(
            zip(*[found.pairs[x].str[0] for x in ("model", "other_model")], strict=True),
            found.pairs["rho"],
            strict=True,
        )
    )
    for i, one in enumerate("abc"):
        for j, other in enumerate("abc"):
            pair = tuple(sorted((one, other)))
            assert np.isnan(table[i, j]) if i == j else table[i, j] == rho[pair]
    assert f"mean ρ {found.summary['rho_mean'][0]:.2f}" in axis.get_title(loc="left")


def test_lines_are_those_of_the_tables():
    source = MemorySource(matched_traces(10, 0.02))
    found = gt.controls(source, draws=20)
    matched, rarity = plot_controls(found).axes
    assert matched.lines[0].get_ydata().tolist() == found.lengths["mean"].tolist()
    assert matched.lines[0].get_xdata().tolist() == found.lengths["context"].tolist()
    np.testing.assert_array_equal(rarity.lines[0].get_ydata(), found.quartiles["mean"])
    assert "10 endings" in matched.get_legend().get_texts()[0].get_text()
    (only,) = plot_controls(gt.controls(MemorySource(rare_and_frequent(40)), draws=20)).axes
    assert "strata" in only.get_legend().get_texts()[0].get_text()


def test_bars_count_every_input():
    source = MemorySource(varied(30))
    figure = plot_density(density(source, draws=5), values_per_input(source))
    outlines = figure.axes[0].patches
    heights = outlines[0].get_xy()[:, 1]
    assert heights.max() >= 1
    values = values_per_input(source)
    assert len(values) == 30
    assert values["n_traces"].tolist() == [1] * 30
    counts, _ = np.histogram(values["value"], 30)
    assert sorted(set(heights)) == sorted({0, *counts})


def test_archive_store_and_memory_count_the_same_tokens(matched_archive, tmp_path):
    ingest(matched_archive, tmp_path / "store")
    with gt.open_archive(matched_archive) as archive, open_store(str(tmp_path / "store")) as store:
        memory = MemorySource([archive[x] for x in archive.traces()["id"][::-1]])
        one, two, three = (gt.controls(x, draws=5) for x in (archive, store, memory))
        values = [values_per_input(x) for x in (archive, store)]
    assert len(set(one.inputs["log_frequency"])) > 4
    for first, second, third in zip(one, two, three, strict=True):
        pd.testing.assert_frame_equal(first, second)
        pd.testing.assert_frame_equal(first, third, check_dtype=False)
    pd.testing.assert_frame_equal(*values)
