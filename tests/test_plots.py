import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource, study

from graphtrace.analysis.centrality import centrality
from graphtrace.analysis.circuit import circuit
from graphtrace.analysis.core import core_stability
from graphtrace.analysis.curves import curve_band, interpolate
from graphtrace.analysis.modularity import modularity
from graphtrace.errors import OptionError
from graphtrace.plots import (
    MANY_POINTS,
    MEASURES,
    plot_centrality,
    plot_circuit,
    plot_core_stability,
    plot_modularity,
    plot_reconstruction,
    save_figure,
)


@pytest.fixture(scope="module")
def source():
    return study(5, models=("a", "b"))


def figures(source):
    frame = centrality(source, "k:25", by=["group"])
    return {
        **{measure: plot_centrality(frame, measure) for measure in MEASURES},
        "core": plot_core_stability(core_stability(source, "k:25")),
        "circuit": plot_circuit(circuit(source, ["0.0", "m1"], by=["group"], draws=20)),
        "modularity": plot_modularity(modularity(source, "k:25", resolutions=[0.5, 1])),
        "curves": plot_reconstruction({"a": [t.curve for t in source.held.values()]}),
    }


def panels(figure):
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def test_every_axis_is_labelled_and_every_file_is_written(source, tmp_path):
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for name, figure in figures(source).items():
        for axis in panels(figure):
            assert axis.get_xlabel(), name
            assert axis.get_ylabel() or name == "modularity", name
        if name == "modularity":  # its panels share the names of the models
            assert [len(axis.get_yticklabels()) for axis in panels(figure)] == [4, 0, 0]
        for suffix, magic in start.items():
            path = save_figure(figure, tmp_path / "new folder" / f"{name}{suffix}")
            assert path.read_bytes().startswith(magic)
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_the_same_data_give_the_same_file(source, tmp_path):
    for suffix in (".svg", ".pdf", ".png"):
        for turn in (1, 2):
            frame = centrality(source, "k:25")
            save_figure(plot_centrality(frame), tmp_path / f"{turn}{suffix}")
        one, two = ((tmp_path / f"{turn}{suffix}").read_bytes() for turn in (1, 2))
        assert one == two, suffix


def test_heat_map_holds_the_values_of_the_table(source):
    frame = centrality(source, "k:25", models=["a"])
    grid, bars = panels(plot_centrality(frame, "strength"))
    table = np.asarray(grid.images[0].get_array())
    heads = frame[frame["kind"] == "attention"]
    assert table.shape == (2, 2)
    for row in heads.to_dict("records"):
        assert table[row["layer"], row["head"]] == pytest.approx(row["strength"])
    widths = [patch.get_width() for patch in bars.patches]
    others = frame.loc[frame["kind"] != "attention", "strength"]
    assert sorted(widths) == pytest.approx(sorted(others))


def test_curves_of_a_circuit_are_those_of_the_table(source):
    found = circuit(source, ["0.0"], ["k:40", "k:5", "k:20"], models=["a"], by=["group"], draws=20)
    axes = panels(plot_circuit(found))
    assert [axis.get_ylabel() for axis in axes] == ["recall", "precision", "AUROC"]
    for axis, name in zip(axes, ("recall", "precision", "auroc"), strict=True):
        lines = [line for line in axis.get_lines() if len(line.get_xdata())]
        expected = [
            block.sort_values("trace_edges")[["trace_share", f"{name}{end}"]].to_numpy()
            for _, block in found.summary.groupby("group")
            for end in ("", "_chance")
        ]
        assert len(lines) == len(expected) == 4
        for line, values in zip(lines, expected, strict=True):
            np.testing.assert_array_equal(np.stack(line.get_data(), 1), values)


def test_unknown_suffix_and_measure(source, tmp_path):
    frame = centrality(source, "k:25")
    with pytest.raises(OptionError, match=r"'.*f\.bmp' must end in one of \.svg, \.png, \.pdf"):
        save_figure(plot_centrality(frame), tmp_path / "f.bmp")
    with pytest.raises(OptionError, match="measure 'fame' is none of path_flow"):
        plot_centrality(frame, "fame")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write"):
        save_figure(plot_centrality(frame), tmp_path / "file" / "f.png")


def test_odd_studies_have_figures_too():
    parallel = centrality(study(2, parallel=True), "k:9")
    assert panels(plot_centrality(parallel))
    one = MemorySource([synthetic_trace(1)])
    assert panels(plot_centrality(centrality(one, "k:20")))
    assert panels(plot_core_stability(core_stability(one, "k:20")))
    assert panels(plot_modularity(modularity(one, "k:20")))
    residual = centrality(one, "k:20")
    assert panels(plot_centrality(residual[residual["kind"] != "attention"]))


def test_interpolation_follows_the_definition():
    curve = synthetic_trace(1, n=12, model=model_info(4, 4)).curve
    k, first = np.unique(curve.k, return_index=True)
    k, tv = k[1:], curve.tv[first][1:]
    assert curve.k[0] == 0, "the test needs a point without edges"
    np.testing.assert_allclose(interpolate(curve, k / curve.n_edges), tv)
    middle = np.sqrt(k[3] * k[4]) / curve.n_edges
    assert interpolate(curve, np.array([middle]))[0] == pytest.approx((tv[3] + tv[4]) / 2)
    assert np.isnan(interpolate(curve, np.array([0.5 / curve.n_edges]))).all()


def test_band_is_the_mean_of_the_inputs_that_reach_a_size():
    long = synthetic_trace(1, n=12, model=model_info(4, 4)).curve
    short = synthetic_trace(2, n=3, model=model_info(4, 4)).curve
    shifted = replace(long, tv=np.clip(long.tv + 0.1, 0, 1))
    band = curve_band([long, shifted, short])
    assert band.size[0] == pytest.approx(1 / long.n_edges, rel=0.5)
    assert band.n[0] == 2
    assert band.n[-1] == 3
    both = [interpolate(curve, band.size[:1])[0] for curve in (long, shifted)]
    assert band.mean[0] == pytest.approx(np.mean(both))
    all_three = [interpolate(curve, band.size[-20:]) for curve in (long, shifted, short)]
    np.testing.assert_allclose(band.q75[-20:], np.percentile(all_three, 75, axis=0))
    assert (band.low <= band.mean).all()
    assert (band.mean <= band.high).all()


def test_importing_the_plots_imports_no_matplotlib():
    code = "import sys, graphtrace.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_study_of_thousands_makes_no_file_of_megabytes(source, tmp_path):
    """Points beyond `MANY_POINTS` are a picture inside the figure; a few stay outlines."""
    few = modularity(source, "k:20")
    own = few[few["model"] == few["model"].iloc[0]]
    many = own.loc[np.repeat(own.index, MANY_POINTS)].reset_index(drop=True)
    for frame, pictures in ((few, 0), (many, 3)):
        path = save_figure(plot_modularity(frame), tmp_path / "f.svg")
        assert path.read_text().count("<image") == pictures
        assert path.stat().st_size < 500_000
