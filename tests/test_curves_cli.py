"""`analyze reconstruction|nucleus|structure|baselines`: what they print, draw and save."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves
from typer.testing import CliRunner

import graphtrace as gt
import graphtrace.cli.analyze_curves
from graphtrace.archive_write import write_traces
from graphtrace.cli.commands import app
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
from graphtrace.plots import save_figure
from graphtrace.plots_curves import (
    plot_baselines,
    plot_composition,
    plot_layers,
    plot_nucleus,
    plot_reconstruction_bands,
)
from graphtrace.stores.base import open_store
from graphtrace.stores.saved_runs import list_runs, read_run

KINDS = ("sufficiency:zero:residual,mlp,attention", "necessity:zero:mlp")


def traces():
    own = [
        with_curves(
            synthetic_trace(
                i,
                n=4 + i % 2,
                model=model_info(4, 2, name="ab"[i % 2]),
                name=f"line-{i}",
                text=f"text {i}",
                labels={"group": "xy"[i // 2 % 2]},
            ),
            *KINDS,
        )
        for i in range(8)
    ]
    random = [
        dataclasses.replace(
            with_curves(t, "sufficiency:zero:mlp,attention", lift=0.1),
            settings=dataclasses.replace(t.settings, scorer="random", seed=0),
        )
        for t in own
    ]
    return [*own, *random]


SETTINGS = traces()[0].settings.id
ONE = ("--settings", SETTINGS)
RANDOM = "random, seed 0 sufficiency:zero:mlp,attention"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    write_traces(folder / "archive", traces(), keep="all")
    ingest(folder / "archive", folder / "store")
    return folder


@pytest.fixture(scope="module")
def archive(folder):
    return str(folder / "archive")


def run(*arguments):
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


CASES = {
    ("reconstruction", *ONE): lambda s, **k: gt.reconstruction(s, **k).phases,
    ("reconstruction", "--table", "curve", "--measure", "kl", *ONE): lambda s, **k: (
        gt.reconstruction(s, "kl", **k).curve
    ),
    ("reconstruction", "--curve", KINDS[1], "--draws", "50", "--seed", "3", *ONE): lambda s, **k: (
        gt.reconstruction(s, curve=KINDS[1], draws=50, seed=3, **k).phases
    ),
    ("nucleus", *ONE): lambda s, **k: gt.nucleus(s, **k),
    ("structure", *ONE): lambda s, **k: gt.structure(s, **k),
    ("structure", "--table", "layers", "--exclude-special", "--workers", "1", *ONE): (
        lambda s, **k: gt.structure(s, "layers", exclude_special=True, **k)
    ),
    ("baselines",): lambda s, **k: gt.baselines(s).summary,
    ("baselines", "--table", "curve", "--reference", RANDOM): lambda s, **k: (
        gt.baselines(s, reference=RANDOM).curve
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[:3]))
def test_the_commands_print_what_the_library_returns(case, archive):
    with gt.open_archive(archive) as opened:
        expected = CASES[case](opened, settings=SETTINGS)
    printed = run(*case, "--archive", archive, "--format", "csv").stdout
    found = pd.read_csv(io.StringIO(printed))
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
    assert json.loads(run(*case, "--archive", archive, "--format", "json").stdout)
    assert "_low" not in run(*case, "--archive", archive).stdout


def test_a_store_says_the_same(folder, archive):
    for command in ("reconstruction", "nucleus", "structure"):
        texts = [
            run(command, *place, *ONE, "--format", "csv").stdout
            for place in (("--archive", archive), ("--store", folder / "store"))
        ]
        a, b = (pd.read_csv(io.StringIO(text)) for text in texts)
        pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("command", ["reconstruction", "nucleus", "structure", "baselines"])
def test_rows_are_saved_about_models(command, folder, tmp_path):
    store = tmp_path / "store"
    ingest(folder / "archive", store)
    found = run(command, "--store", store, *ONE, "--save", "--by", "group")
    assert "saved as" in found.output
    with open_store(store) as opened:
        (run_id,) = list_runs(opened)["id"]
        saved = read_run(opened, run_id)
    rows = saved.measured["Model"]
    assert rows.num_rows == saved.properties["n_rows"] > 0
    assert set(rows["to"].to_pylist()) == {"a@0123456789ab", "b@0123456789ab"}
    assert set(rows["subset"].to_pylist()) == {"group=x", "group=y"}


def test_baselines_of_two_settings_are_not_saved(folder):
    with pytest.raises(OptionError, match="mix several settings"):
        run("baselines", "--store", folder / "store", "--save")


# ------------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def source(archive):
    with gt.open_archive(archive) as opened:
        yield opened


def texts_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text")))


def test_figures_show_the_values_and_say_what_they_are(source, tmp_path):
    found = gt.reconstruction(source, settings=SETTINGS, draws=50)
    figure = plot_reconstruction_bands(found)
    phases, axis = figure.axes
    for line, model in zip(axis.lines, "ab", strict=True):
        own = found.curve.loc[found.curve["model"].str.startswith(model)]
        np.testing.assert_allclose(line.get_ydata(), own["mean"])
        np.testing.assert_allclose(line.get_xdata(), own["size"])
    ends = found.phases[["construction_start", "construction_end"]].to_numpy()
    np.testing.assert_allclose([line.get_xdata() for line in phases.lines[::2]], ends)
    cores = [line.get_xdata()[0] for line in phases.lines[1::2]]
    np.testing.assert_allclose(cores, found.phases["core_size"])
    assert "4 inputs" in texts_of(figure)
    assert "95 %" in texts_of(figure)
    assert axis.get_xscale() == "log"
    one = gt.reconstruction(source, "kl", settings=SETTINGS, models=["a"], draws=50)
    (axis,) = plot_reconstruction_bands(one).axes
    assert "nats" in axis.get_ylabel()

    frame = gt.nucleus(source, settings=SETTINGS, draws=50)
    above, below = plot_nucleus(frame).axes
    np.testing.assert_allclose(above.lines[0].get_ydata(), frame["median"][:12])
    np.testing.assert_allclose(below.lines[1].get_ydata(), frame["share_reached"][12:])

    for table, plot in (("composition", plot_composition), ("layers", plot_layers)):
        frame = gt.structure(source, table, settings=SETTINGS, draws=50)
        figure = plot(frame)
        assert len(figure.axes) == 2
        top = figure.axes[0].collections[-1].get_paths()[0].vertices[:, 1].max()
        assert top == pytest.approx(1)
        assert all(part in texts_of(figure) for part in set(frame["part"]))

    found = gt.baselines(source, draws=50)
    figure = plot_baselines(found)
    assert len(figure.axes) == 2
    named = {line.get_label() for line in figure.axes[0].lines}
    assert set(found.summary["what"]) <= named
    figures = [plot_baselines(found), plot_baselines(found)]
    paths = [save_figure(f, tmp_path / f"{i}.svg") for i, f in enumerate(figures)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_flat_curves_and_single_inputs_are_drawn(tmp_path):
    trace = traces()[0]
    flat = dataclasses.replace(trace.curve, tv=np.full_like(trace.curve.tv, 0.5))
    write_traces(tmp_path / "a", [dataclasses.replace(trace, curves=(flat,))])
    for command in ("reconstruction", "nucleus", "structure", "baselines"):
        path = tmp_path / f"{command}.png"
        run(command, "--archive", tmp_path / "a", "--plot", path)
        assert path.stat().st_size > 1000
