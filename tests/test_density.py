"""Density beside its alternatives; and that two kinds of curve are never pooled."""

import dataclasses
import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves, with_experts
from builders_source import MemorySource, study
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from typer.testing import CliRunner

import graphtrace as gt
import graphtrace.cli.analyze
from graphtrace.analysis.centrality import centrality
from graphtrace.analysis.curves import curve_band
from graphtrace.analysis.density import MEASURES, density
from graphtrace.analysis.modularity import modularity
from graphtrace.analysis.stats import bootstrap_rank_correlation, rank_correlation
from graphtrace.archive_write import write_traces
from graphtrace.cli.app import app
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
from graphtrace.stores.base import open_store

KINDS = ("necessity:zero:mlp", "sufficiency:mean@m00000001:mlp")

# ---------------------------------------------------------------------------- rank correlation


def plain_partial(a, b, control):
    """Pearson's correlation of the residuals of the ranks after a regression on those of control;
    None where nothing is left of one of the two."""
    design = np.stack([np.ones(len(a)), rankdata(control)], 1)
    left = []
    for values in (a, b):
        ranks = rankdata(values)
        fitted = design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
        left.append(ranks - fitted)
    if any(np.abs(rest).max() < 1e-9 for rest in left):
        return None
    return float(np.corrcoef(*left)[0, 1])


VALUES = st.sampled_from([0.0, 1.0, 2.0, 2.5]) | st.floats(-1e3, 1e3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=4, max_size=12))
def test_rank_correlation_against_plain_ones(rows):
    a, b, control = np.array(rows).T
    found = rank_correlation(a, b, control)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(found).all()
        return
    assert found.rho == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    expected = plain_partial(a, b, control)
    if expected is None:
        assert np.isnan(found.partial)
    else:
        assert found.partial == pytest.approx(expected, abs=1e-6)


def test_rank_correlation_of_few_or_constant_values():
    x = np.array([3.0, 1.0, 2.0, 5.0])
    flat = np.ones(4)
    assert np.isnan(rank_correlation(x, flat, x)).all()
    assert np.isnan(rank_correlation(flat, x, x)).all()
    assert rank_correlation(x, x, flat) == (1, 1)
    assert rank_correlation(x, -x, flat) == (-1, -1)
    assert rank_correlation(x[:3], x[:3], flat[:3])[0] == 1
    assert np.isnan(rank_correlation(x[:3], x[:3], flat[:3]).partial)
    for n in (0, 1, 2):
        assert np.isnan(rank_correlation(x[:n], x[:n], x[:n])).all()
        intervals = bootstrap_rank_correlation(x[:n], x[:n], x[:n], 10)
        assert np.isnan(intervals).all()
    other = np.array([1.0, 5.0, 2.0, 2.0])
    assert np.isnan(rank_correlation(x, other, x**3).partial), "the control fixes x"
    for n in (7, 100, 3001):
        x, y = np.random.default_rng(n).normal(size=(2, n)).round(1)
        assert np.isnan(rank_correlation(x, y, x**3).partial)
        assert np.isnan(rank_correlation(y, x, -x).partial)


def test_bootstrap_against_a_plain_loop():
    rng = np.random.default_rng(3)
    control = rng.integers(3, 9, 25).astype(float)
    a, b = control + rng.normal(size=25), control + rng.normal(size=25)
    intervals = bootstrap_rank_correlation(a, b, control, draws=500, seed=1)
    rho, partial = [], []
    for at in np.random.default_rng(1).integers(0, 25, (500, 25)):
        rho.append(spearmanr(a[at], b[at]).statistic)
        partial.append(plain_partial(a[at], b[at], control[at]))
    for interval, drawn in zip(intervals, (rho, partial), strict=True):
        np.testing.assert_allclose(interval, np.percentile(drawn, [2.5, 97.5]), rtol=1e-6)
        assert interval.high - interval.low > 0.3
    value = rank_correlation(a, b, control)
    assert intervals[0].low < value.rho < intervals[0].high
    assert intervals[1].low < value.partial < intervals[1].high


def test_bootstrap_in_parts_is_the_bootstrap():
    rng = np.random.default_rng(0)
    a, b, control = rng.normal(size=(3, 2000))
    whole = bootstrap_rank_correlation(a, b, control, draws=1200)
    again = bootstrap_rank_correlation(a, b, control, draws=1200)
    np.testing.assert_array_equal(whole, again)
    # rho of independent values has the standard error 1 / sqrt(n - 1).
    np.testing.assert_allclose(np.diff(whole[0]), 2 * 1.96 / np.sqrt(1999), rtol=0.12)


# ------------------------------------------------------------------------------------- density


def varied(n=12, name="toy", seed=0):
    """Traces of several lengths whose measures differ."""
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        trace = synthetic_trace(
            seed + i,
            n=3 + i % 5,
            model=model_info(name=name),
            name=f"line-{i}",
            text=f"text {i}",
            labels={"group": "ab"[i % 2]},
        )
        trace = with_curves(trace, trace.curve.kind, lift=float(rng.uniform(0, 0.3)))
        made.append(
            dataclasses.replace(
                trace,
                mass90_edges=int(rng.integers(1, trace.n_edges)),
                score_gini=float(rng.uniform()),
                mlp_active_share=float(rng.uniform()),
            )
        )
    return made


def measured(trace):
    return {
        "density": trace.density,
        "density_normalised": trace.density_normalised,
        "mass90_share": trace.mass90_edges / trace.n_edges,
        "score_gini": trace.score_gini,
        "mlp_active_share": trace.mlp_active_share,
    }


def test_every_number_against_plain_python():
    traces = varied()
    found = density(MemorySource(traces))
    assert found["measure"].tolist() == list(MEASURES)
    length = [t.position + 1 for t in traces]
    against = [t.density_normalised for t in traces]
    for row in found.to_dict("records"):
        values = [measured(t)[row["measure"]] for t in traces]
        assert (row["model"], row["n"]) == ("toy@0123456789ab", 12)
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["sd"] == pytest.approx(pd.Series(values).std())
        error = row["sd"] / np.sqrt(12)
        assert row["mean_low"] == pytest.approx(row["mean"] - 1.96 * error, abs=0.5 * error)
        assert row["mean_high"] == pytest.approx(row["mean"] + 1.96 * error, abs=0.5 * error)
        assert row["rho"] == pytest.approx(spearmanr(values, against).statistic)
        assert row["partial_rho"] == pytest.approx(plain_partial(values, against, length))
        assert row["rho_low"] <= row["rho"] <= row["rho_high"]
    own = found.set_index("measure").loc["density_normalised"]
    assert own[["rho", "rho_low", "rho_high"]].tolist() == [1, 1, 1]
    assert own["partial_rho"] == pytest.approx(1)


def test_models_are_apart_and_traces_are_chosen():
    traces = [*varied(8, "a"), *varied(8, "b", seed=50)]
    source = MemorySource(traces)
    found = density(source)
    assert found["model"].tolist() == [f"{x}@0123456789ab" for x in "ab" for _ in MEASURES]
    pd.testing.assert_frame_equal(
        density(source, models=["b"]), found.iloc[5:].reset_index(drop=True), check_exact=True
    )
    part = density(source, models=["a"], where=["group=b"])
    expected = [t.density for t in traces[:8] if t.input.labels["group"] == "b"]
    assert part["n"].tolist() == [4] * 5
    assert part["mean"][0] == pytest.approx(np.mean(expected))
    with pytest.raises(OptionError, match="no trace of model 'c'"):
        density(source, models=["c"])


def test_groups_are_measured_apart():
    source = MemorySource(varied(8) + varied(3, name="b", seed=20))
    found = density(source, by=["group", "model"])
    assert list(found.columns[:3]) == ["model", "group", "measure"]
    for group in "ab":
        for model in ("toy", "b"):
            own = found[(found["group"] == group) & (found["model"] == f"{model}@0123456789ab")]
            expected = density(source, models=[model], where=[f"group={group}"])
            pd.testing.assert_frame_equal(
                own.drop(columns="group").reset_index(drop=True), expected, check_exact=True
            )


def test_settings_are_never_pooled():
    traces = varied(4)
    other = dataclasses.replace(traces[0].settings, scorer="l2")
    traces += [dataclasses.replace(t, settings=other) for t in traces]
    with pytest.raises(OptionError, match="mix several settings"):
        density(MemorySource(traces))
    assert density(MemorySource(traces), settings=other.id)["n"].tolist() == [4] * 5


def test_traces_of_one_input_are_averaged_first():
    one, two, *rest = varied(5)
    two = dataclasses.replace(two, input=one.input)
    found = density(MemorySource([one, two, *rest]))
    assert found["n"].tolist() == [4] * 5
    gini = [(one.score_gini + two.score_gini) / 2, *(t.score_gini for t in rest)]
    row = found.set_index("measure").loc["score_gini"]
    assert row["mean"] == pytest.approx(np.mean(gini))
    against = [(one.density_normalised + two.density_normalised) / 2]
    against += [t.density_normalised for t in rest]
    assert row["rho"] == pytest.approx(spearmanr(gini, against).statistic)


def test_what_is_missing_or_constant_is_nan_and_quiet():
    traces = [dataclasses.replace(t, mlp_active_share=None, score_gini=0.5) for t in varied(6)]
    some = [dataclasses.replace(t, mlp_active_share=0.1 * i) for i, t in enumerate(varied(3))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = density(MemorySource(traces)).set_index("measure")
        partly = density(MemorySource([*some, *traces[3:]])).set_index("measure")
        single = density(MemorySource(traces[:1])).set_index("measure")
    row = nothing.loc["mlp_active_share"]
    assert row["n"] == 0
    assert row.drop(["model", "n"]).isna().all()
    row = nothing.loc["score_gini"]
    assert row[["n", "mean", "mean_low", "mean_high", "sd"]].tolist() == [6, 0.5, 0.5, 0.5, 0]
    correlations = ["rho", "rho_low", "rho_high", "partial_rho", "partial_rho_low"]
    assert row[correlations].isna().all()
    row = partly.loc["mlp_active_share"]
    assert (row["n"], row["mean"]) == (3, pytest.approx(0.1))
    assert row[["rho"]].notna().all()
    assert np.isnan(row["partial_rho"])
    assert single["n"].tolist() == [1, 1, 1, 1, 0]
    assert single[["sd", "mean_low", "rho", "rho_high"]].isna().all(axis=None)


def test_a_density_that_a_trace_has_not_is_left_out():
    traces = varied(6)
    traces[0] = with_curves(traces[0], traces[0].curve.kind, points=slice(-1, None))
    assert np.isnan(traces[0].density)
    found = density(MemorySource(traces)).set_index("measure")
    assert found["n"].tolist() == [5, 5, 6, 6, 6]
    values, against = zip(*[(t.score_gini, t.density_normalised) for t in traces[1:]], strict=True)
    assert found["rho"]["score_gini"] == pytest.approx(spearmanr(values, against).statistic)


# ------------------------------------------------------------------------------- kinds of curve


@pytest.fixture
def mixed():
    return MemorySource([with_curves(t, KINDS[i % 2]) for i, t in enumerate(varied(5))])


def test_densities_of_two_kinds_of_curve_are_not_pooled(mixed):
    listed = r"necessity:zero:mlp: 3; sufficiency:mean@m00000001:mlp: 2.*--where curve=KIND"
    with pytest.raises(OptionError, match=listed):
        density(mixed)
    assert density(mixed, where=[f"curve={KINDS[0]}"])["n"].tolist() == [3] * 5


def test_a_size_by_quality_is_of_one_kind_of_curve(mixed):
    for measure in (centrality, modularity):
        with pytest.raises(OptionError, match="first curves are of several kinds"):
            measure(mixed, "tv:0.5")
        measure(mixed, "k:9", where=["group=a"])
    centrality(mixed, "tv:0.5", where=[f"curve={KINDS[1]}"])


def test_a_band_is_of_one_kind_of_curve(mixed):
    curves = [trace.curve for trace in mixed.held.values()]
    with pytest.raises(OptionError, match="necessity:zero:mlp: 3"):
        curve_band(curves)
    assert curve_band(curves[::2]).n[-1] == 3


def test_settings_and_sizes_of_a_study_are_not_in_the_way():
    """One kind is no mixture, whatever second curves there are."""
    source = study(4)
    first = next(iter(source.held.values()))
    source.held[first.id] = with_curves(first, first.curve.kind, KINDS[0])
    assert density(source)["n"].tolist() == [4, 4, 4, 4, 0]


# -------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("density") / "archive"
    write_traces(folder, [*varied(9), with_experts(synthetic_trace(99, n=4))])
    return str(folder)


def run(*arguments):
    result = CliRunner().invoke(app, ["analyze", "density", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_the_command_prints_what_the_library_returns(archive, tmp_path):
    store = str(tmp_path / "store")
    ingest(archive, store)
    with open_store(store) as opened:
        expected = gt.density(opened, where=["group=a"])
    options = ("--where", "group=a", "--format")
    for source in (("--archive", archive), ("--store", store)):
        text = run(*source, *options, "json").stdout
        held = pd.DataFrame(json.loads(text))
        pd.testing.assert_frame_equal(held, expected, rtol=1e-9)
        csv = pd.read_csv(io.StringIO(run(*source, *options, "csv").stdout))
        pd.testing.assert_frame_equal(csv, expected, check_dtype=False)
    table = run("--archive", archive).stdout
    assert "mass90_share" in table
    assert "partial_rho_low" not in table, "an interval stands with its value"


def test_the_command_refuses_what_the_library_refuses(archive):
    with pytest.raises(OptionError, match="no trace of model 'x'"):
        run("--archive", archive, "--model", "x")
    with pytest.raises(OptionError, match="no trace where curve=x"):
        run("--archive", archive, "--where", "curve=x")
