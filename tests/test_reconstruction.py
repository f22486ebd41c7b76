"""Curves and nuclei across inputs, against plain loops over the traces."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves
from builders_source import MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace.analysis.bands import drawn_means, input_means, interval_of, mean_band, quantiles
from graphtrace.analysis.curves import by_curve, input_curves, interpolate
from graphtrace.analysis.nucleus import nucleus
from graphtrace.analysis.reconstruction import (
    PHASE_COLUMNS,
    find_phases,
    reconstruction,
    slopes,
)
from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.curve import NUCLEUS_PERCENT
from graphtrace.errors import OptionError

NECESSITY = "necessity:zero:mlp"


def varied(n=9, name="toy", seed=0, positions=1):
    """Traces of several lengths with curves of their own; `positions` traces of every input."""
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        for j in range(positions):
            trace = synthetic_trace(
                seed + 100 * j + i,
                n=3 + (i + j) % 5,
                model=model_info(name=name),
                name=f"line-{i}",
                text=f"text {i}",
                labels={"group": "ab"[i % 2]},
            )
            tv = np.sort(rng.uniform(0, 1, len(trace.curve.k)))[::-1]
            levels = np.sort(rng.choice([0, *NUCLEUS_PERCENT], len(tv))).astype(np.int32)
            curve = dataclasses.replace(
                trace.curve, tv=tv, kl=3 * tv, p_predicted=1 - tv, nucleus=levels
            )
            made.append(dataclasses.replace(trace, curves=(curve,)))
    return made


# --------------------------------------------------------------------------- tables with gaps

GAPS = st.floats(-5, 5) | st.just(float("nan"))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(GAPS, GAPS, GAPS), min_size=0, max_size=6), st.integers(0, 3))
def test_means_over_inputs_with_gaps_against_pandas(rows, seed):
    values = np.array(rows, float).reshape(-1, 3)
    inputs = [f"i{j}" for j in np.random.default_rng(seed).integers(0, 3, len(values))]
    by_input = input_means(inputs, values)
    expected = pd.DataFrame(values).groupby(inputs, sort=False).mean()
    np.testing.assert_allclose(by_input, expected.to_numpy().reshape(-1, 3), atol=1e-12)
    mean, (low, high) = mean_band(by_input, draws=40, seed=seed)
    if len(by_input):
        np.testing.assert_allclose(mean, pd.DataFrame(by_input).mean(), atol=1e-12)
        expected = pd.DataFrame(by_input).quantile([0.05, 0.5])
        np.testing.assert_allclose(quantiles(by_input, [5, 50]), expected, atol=1e-12)
    enough = np.isfinite(by_input).sum(0) >= 2
    assert np.isfinite(low[enough]).all()
    assert np.isnan(low[~enough]).all()
    assert np.isnan(high[~enough]).all()
    assert (low[enough] <= high[enough] + 1e-12).all()


def test_drawn_means_are_those_of_drawn_rows():
    values = np.random.default_rng(0).normal(size=(5, 3))
    values[0, 0] = values[3, 1] = np.nan
    drawn = drawn_means(values, draws=200, seed=4)
    counts = np.random.default_rng(4).multinomial(5, np.full(5, 0.2), size=200)
    for row, count in zip(drawn, counts, strict=True):
        expected = pd.DataFrame(np.repeat(values, count, axis=0)).mean()
        np.testing.assert_allclose(row, expected, atol=1e-12)
    whole = np.random.default_rng(1).normal(size=(30, 2))
    found = interval_of(drawn_means(whole, 300, 2), 30)
    np.testing.assert_allclose(found, bootstrap_mean(whole, 300, 2), atol=1e-12)


# ------------------------------------------------------------------------------------- curves


def plain_table(traces, size, measure="tv"):
    """[inputs, sizes]: curve by curve, the traces of one input averaged where they have a value."""
    rows = [interpolate(trace.curve, size, measure) for trace in traces]
    frame = pd.DataFrame(rows).groupby([t.input.id for t in traces], sort=False).mean()
    return frame.to_numpy()


@pytest.mark.parametrize("positions", [1, 2])
@pytest.mark.parametrize("measure", ["tv", "kl", "p_predicted"])
def test_bands_against_plain_python(positions, measure):
    traces = varied(positions=positions)
    found = reconstruction(MemorySource(traces), measure, points=40, draws=100)
    curve = found.curve
    size = curve["size"].to_numpy()
    first = pd.Series([1 / t.n_edges if (t.curve.k == 1).any() else
                       float(t.curve.size[t.curve.k >= 1].min()) for t in traces])  # fmt: skip
    starts = np.sort(first.groupby([t.input.id for t in traces]).min())
    np.testing.assert_allclose(size, np.geomspace(starts[len(starts) // 2], 1, 40))
    table = plain_table(traces, size, measure)
    order = pd.DataFrame(table)
    np.testing.assert_allclose(curve["mean"], order.mean(), atol=1e-12)
    for name, share in (("q05", 0.05), ("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        np.testing.assert_allclose(curve[name], order.quantile(share), atol=1e-12)
    assert curve["n_inputs"].tolist() == order.notna().sum().tolist()
    assert curve["n_inputs"].min() < 9, "some inputs start later"
    assert (curve["mean_low"] <= curve["mean"] + 1e-12).all()
    assert (curve["mean_high"] >= curve["mean"] - 1e-12).all()
    row = found.phases.iloc[0]
    assert (row["n_inputs"], row["n_curves"], row["measure"]) == (9, 9 * positions, measure)


def test_points_of_sources_are_the_curves_points():
    traces = varied(4)
    points = MemorySource(traces).curve_points([t.id for t in traces])
    for (trace, _), (x, values) in by_curve(points, "tv").items():
        curve = next(t.curve for t in traces if t.id == trace)
        np.testing.assert_array_equal(values, interpolate(curve, 10**x))


POINTS = st.lists(
    st.tuples(st.integers(0, 40), st.floats(0, 1) | st.sampled_from([0.0, 0.5, float("nan")])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=4))
def test_any_curves_on_one_axis(curves):
    """Equal k, no edge, one point, gaps: as `numpy.interp` over the points that count."""
    rows = [
        {"trace": f"t{i}", "curve": 0, "n_edges": k, "size": k / 40, "tv": tv}
        for i, points in enumerate(curves)
        for k, tv in sorted(points, key=lambda point: point[0])
    ]
    input_of = {f"t{i}": f"i{i // 2}" for i in range(len(curves))}
    size = np.geomspace(1 / 40, 1, 30)
    found = input_curves(pd.DataFrame(rows), input_of, size=size)
    expected: dict = {}
    for i, points in enumerate(curves):
        first: dict = {}
        for k, tv in sorted(points, key=lambda point: point[0]):
            if k >= 1 and tv == tv:
                first.setdefault(k, tv)
        if first:
            x, wanted = np.log10(np.array(list(first)) / 40), np.log10(size)
            values = np.interp(wanted, x, list(first.values()))
            values[(wanted < x[0] - 1e-9) | (wanted > x[-1] + 1e-9)] = np.nan
            expected.setdefault(f"i{i // 2}", []).append(values)
    if not expected:
        assert found is None
        return
    assert found is not None
    assert found.inputs == list(expected)
    table = [pd.DataFrame(values).mean() for values in expected.values()]
    np.testing.assert_allclose(found.values, table, atol=1e-9)


def test_groups_models_and_kinds_are_apart():
    traces = [*varied(6), *varied(6, "b", seed=50)]
    source = MemorySource(traces)
    found = reconstruction(source, points=10, draws=50, by=["group"])
    assert found.phases[["model", "group"]].drop_duplicates().shape == (4, 2)
    alone = reconstruction(source, points=10, draws=50, models=["b"], where=["group=a"])
    own = found.curve[(found.curve["model"] == "b@0123456789ab") & (found.curve["group"] == "a")]
    pd.testing.assert_frame_equal(
        own.drop(columns="group").reset_index(drop=True), alone.curve, check_exact=True
    )
    both = [with_curves(t, t.curve.kind, NECESSITY) for t in traces[:4]] + traces[4:6]
    found = reconstruction(MemorySource(both), curve=NECESSITY, points=10, draws=50)
    expected = [dataclasses.replace(t, curves=t.curves[1:]) for t in both[:4]]
    alone = reconstruction(MemorySource(expected), points=10, draws=50)
    pd.testing.assert_frame_equal(found.curve, alone.curve)
    assert found.phases["n_inputs"].tolist() == [4]
    with pytest.raises(OptionError, match=r"no trace has a curve of kind 'x'; kinds here: nec"):
        reconstruction(MemorySource(both), curve="x")
    with pytest.raises(OptionError, match="first curves are of several kinds"):
        reconstruction(MemorySource([*expected, *traces[4:6]]))


def test_what_has_no_value_is_said():
    source = MemorySource(varied(3))
    with pytest.raises(OptionError, match=r"no curve has logit_diff.*target and a foil"):
        reconstruction(source, "logit_diff")
    with pytest.raises(OptionError, match="measure 'nucleus' is none of tv"):
        reconstruction(source, "nucleus")
    with pytest.raises(OptionError, match="1 points"):
        reconstruction(source, points=1)
    one = reconstruction(MemorySource(varied(1)), points=5)
    assert one.curve[["mean_low", "mean_high"]].isna().all(axis=None)
    assert one.curve["mean"].notna().all()
    assert one.phases["core_size_low"].isna().all()
    only_whole = with_curves(varied(1)[0], "sufficiency:zero:mlp", points=slice(-1, None))
    found = reconstruction(MemorySource([only_whole]), points=5)
    assert found.curve["size"].tolist() == [1] * 5
    assert found.phases[list(PHASE_COLUMNS)].isna().all(axis=None)


# ------------------------------------------------------------------------------------- phases


def test_phases_of_a_logistic_curve_are_where_it_says():
    """TV = 1 / (1 + exp(a (x - c))), x = log10 size: steepest at c with slope a / 4; the slope is a
    quarter of that at c ± ln(7 + 4 sqrt 3) / a."""
    size = np.geomspace(1e-5, 1, 1000)
    c, a = -3.0, 2.5
    mean = 1 / (1 + np.exp(a * (np.log10(size) - c)))
    (found,) = find_phases(size, mean[None])
    row = dict(zip(PHASE_COLUMNS, found, strict=True))
    half = np.log(7 + 4 * np.sqrt(3)) / a
    assert np.log10(row["core_size"]) == pytest.approx(c, abs=0.02)
    assert row["core_value"] == pytest.approx(0.5, abs=0.01)
    assert row["slope"] == pytest.approx(a / 4, rel=0.05)
    assert np.log10(row["construction_start"]) == pytest.approx(c - half, abs=0.06)
    assert np.log10(row["construction_end"]) == pytest.approx(c + half, abs=0.06)
    (rising,) = find_phases(size, 1 - mean[None], -1)
    np.testing.assert_allclose(rising[[0, 2, 3, 4]], found[[0, 2, 3, 4]])
    np.testing.assert_allclose(rising[[1, 5]], 1 - found[[1, 5]])


def test_a_necessity_curve_is_constructed_where_it_rises():
    rising = []
    for trace in varied(5):
        curve = dataclasses.replace(
            trace.curve, tv=1 - trace.curve.tv, kl=1 - trace.curve.kl, mode="necessity"
        )
        rising.append(dataclasses.replace(trace, curves=(curve,)))
    found = reconstruction(MemorySource(rising), points=30, draws=40).phases.iloc[0]
    expected = reconstruction(MemorySource(varied(5)), points=30, draws=40).phases.iloc[0]
    for name in ("core_size", "slope", "construction_start", "construction_end"):
        assert found[name] == pytest.approx(expected[name])
    assert found["core_value"] == pytest.approx(1 - expected["core_value"])


def plain_phases(size, mean):
    x, w = np.log10(size), 0.25 + 1e-9
    slope = []
    for i in range(len(x)):
        near = [j for j in range(len(x)) if abs(x[j] - x[i]) <= w]
        a, b = min(near[0], max(i - 1, 0)), max(near[-1], min(i + 1, len(x) - 1))
        slope.append((mean[a] - mean[b]) / (x[b] - x[a]))
    top = max(slope)
    if not top > 1e-12:
        return [np.nan] * 6
    core = next(i for i, s in enumerate(slope) if s >= top * (1 - 1e-9))
    start = end = core
    while start > 0 and slope[start - 1] >= 0.25 * top:
        start -= 1
    while end < len(x) - 1 and slope[end + 1] >= 0.25 * top:
        end += 1
    return [size[core], mean[core], top, size[start], size[end], mean[end]]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), min_size=2, max_size=30),
    st.floats(-6, -0.01),
)
def test_phases_against_a_walk(values, start):
    size, mean = np.geomspace(10**start, 1, len(values)), np.array(values)
    found = find_phases(size, np.stack([mean, mean[::-1]]))
    np.testing.assert_allclose(found[0], plain_phases(size, mean))
    np.testing.assert_allclose(found[1], plain_phases(size, mean[::-1]))


def test_slopes_of_a_line_are_its_slope():
    size = np.geomspace(1e-4, 1, 50)
    found = slopes(size, (0.8 - 0.2 * np.log10(size))[None])
    np.testing.assert_allclose(found, 0.2)


def test_intervals_of_phases_hold_the_value_and_narrow_with_inputs():
    few, many = (
        reconstruction(MemorySource(varied(n)), points=60, draws=200).phases.iloc[0]
        for n in (4, 60)
    )
    assert many["core_value_low"] <= many["core_value"] <= many["core_value_high"]
    assert many["slope_high"] - many["slope_low"] < few["slope_high"] - few["slope_low"]
    assert many["construction_start"] <= many["core_size"] <= many["construction_end"]


# ------------------------------------------------------------------------------------ nucleus


@pytest.mark.parametrize("positions", [1, 3])
def test_nucleus_sizes_against_plain_python(positions):
    traces = varied(positions=positions, seed=3)
    found = nucleus(MemorySource(traces), draws=200).set_index("percent")
    assert found.index.tolist() == list(NUCLEUS_PERCENT)
    inputs = list(dict.fromkeys(t.input.id for t in traces))
    for percent, row in found.iterrows():
        by_input = {x: [] for x in inputs}
        for trace in traces:
            by_input[trace.input.id].append(trace.curve.nucleus_size(percent))
        sizes = np.array([np.median(np.nan_to_num(x, nan=1e9)) for x in by_input.values()])
        for name, q in (("median", 50), ("q25", 25), ("q75", 75)):
            value = np.percentile(sizes, q)
            np.testing.assert_allclose(row[name], np.nan if value > 1 else value)
        reached = [np.mean(np.isfinite(x)) for x in by_input.values()]
        assert row["share_reached"] == pytest.approx(np.mean(reached))
        assert (row["n_inputs"], row["n_traces"]) == (9, 9 * positions)
        if row["share_reached"] == 1 and np.isfinite(row["median_high"]):
            assert row["median_low"] <= row["median"] <= row["median_high"]


def test_the_interval_of_a_median_is_that_of_drawn_inputs():
    traces = [
        with_curves(t, t.curve.kind) for t in varied(7, seed=5)
    ]  # fmt: skip
    row = nucleus(MemorySource(traces), draws=500, seed=2).set_index("percent").loc[1]
    sizes = np.array([t.curve.nucleus_size(1) for t in traces])
    rng = np.random.default_rng(2)
    drawn = [np.median(sizes[at]) for at in rng.integers(0, 7, (500, 7))]
    np.testing.assert_allclose(
        [row["median_low"], row["median_high"]], np.percentile(drawn, [2.5, 97.5])
    )


def test_levels_that_are_never_reached_are_gaps():
    traces = varied(4)
    none = [
        dataclasses.replace(
            t, curves=(dataclasses.replace(t.curve, nucleus=np.zeros_like(t.curve.nucleus)),)
        )
        for t in traces
    ]
    found = nucleus(MemorySource(none))
    assert found["share_reached"].tolist() == [0] * 12
    assert found[["median", "median_low", "median_high", "q25", "q75"]].isna().all(axis=None)
    one = nucleus(MemorySource(traces[:1]))
    assert one["median_low"].isna().all()
