"""Rank correlations with controls, token frequencies, and the correlates of density."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from builders import WORDS, model_info, synthetic_trace, with_curves
from builders_source import MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, rankdata, spearmanr

from graphtrace.analysis.correlates import CORRELATES, MEASURES, correlates
from graphtrace.analysis.stats import (
    Pair,
    bootstrap_rank_correlations,
    false_discovery_q,
    rank_correlation_p,
    rank_correlations,
)
from graphtrace.analysis.token_frequency import read_frequencies, top1_log_frequency
from graphtrace.errors import OptionError

# ------------------------------------------------------------------------------------ statistics


def plain_partial(a, b, controls):
    """Correlation of what least squares of the ranks on the controls' ranks leaves, or None where
    nothing is left of one of the two."""
    design = np.stack([np.ones(len(a)), *(rankdata(x) for x in controls)], 1)
    left = []
    for values in (a, b):
        ranks = rankdata(values)
        left.append(ranks - design @ np.linalg.lstsq(design, ranks, rcond=1e-9)[0])
    if any(np.abs(rest).max() < 1e-7 for rest in left):
        return None
    return float(np.corrcoef(*left)[0, 1])


def check_partial(values, controls):
    a, b = values[:2]
    found = rank_correlations(values, [Pair(0, 1, controls)])[0]
    constant = len(set(a)) == 1 or len(set(b)) == 1
    expected = None if constant else plain_partial(a, b, values[list(controls)])
    if expected is None:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(expected, abs=1e-6)


VALUES = st.sampled_from([0.0, 1.0, 2.0, 2.5]) | st.floats(-1e3, 1e3)


@settings(max_examples=200)
@given(st.lists(st.tuples(*[VALUES] * 5), min_size=6, max_size=14))
def test_partial_rank_correlation_against_least_squares(rows):
    values = np.array(rows).T
    check_partial(values, (2, 3, 4))
    check_partial(values, (4, 2))


def test_controls_that_say_the_same_count_once():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 40))
    twice = np.stack([*values, values[2] ** 3, np.ones(40), -values[2]])
    one, many = rank_correlations(twice, [Pair(0, 1, (2,)), Pair(0, 1, (2, 3, 4, 5))])
    assert one == pytest.approx(many, abs=1e-12)
    # Two controls together fix a third measure, neither alone does.
    a, b = np.array([1.0, 2, 3, 4, 5, 6, 7, 8]), np.array([1.0, 1, 0, 0, 1, 1, 0, 0])
    fixed = np.stack([rankdata(a) + rankdata(b) / 10, rng.normal(size=8), a, b])
    fixed[0] = rankdata(a)
    assert np.isnan(rank_correlations(fixed, [Pair(0, 1, (3, 2))])[0])


def test_few_inputs_have_no_partial_correlation():
    values = np.random.default_rng(1).normal(size=(5, 6))
    pairs = [Pair(0, 1, tuple(range(2, 2 + c))) for c in range(4)]
    for n in range(7):
        found = rank_correlations(values[:, :n], pairs)
        assert [np.isfinite(x) for x in found] == [n >= 3 + c for c in range(4)]
        low, high = bootstrap_rank_correlations(values[:, :n], pairs, 30)
        assert np.isnan(low[np.isnan(found)]).all()
        assert np.isnan(high[np.isnan(found)]).all()


def test_bootstrap_with_controls_against_a_plain_loop():
    rng = np.random.default_rng(2)
    shared = rng.integers(0, 6, 18).astype(float)
    values = np.stack([shared + rng.normal(size=18) for _ in range(3)] + [shared])
    pairs = [Pair(0, 1), Pair(0, 1, (2, 3)), Pair(2, 1, (0,))]
    found = bootstrap_rank_correlations(values, pairs, draws=400, seed=5)
    drawn = []
    for at in np.random.default_rng(5).integers(0, 18, (400, 18)):
        part = values[:, at]
        drawn.append([plain_partial(part[a], part[b], part[list(c)]) for a, b, c in pairs])
    for i in range(3):
        usable = [row[i] for row in drawn if row[i] is not None]
        expected = np.percentile(usable, [2.5, 97.5])
        assert (found.low[i], found.high[i]) == pytest.approx(tuple(expected), abs=1e-6)
        assert found.high[i] - found.low[i] > 0.1


def test_the_bootstrap_covers_the_truth():
    """95 % intervals over inputs hold the population's rho in about 95 of 100 samples."""
    rng, hits = np.random.default_rng(3), 0
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # of a bivariate normal with correlation 0.5
    for turn in range(150):
        a = rng.normal(size=80)
        values = np.stack([a, 0.5 * a + np.sqrt(0.75) * rng.normal(size=80)])
        found = bootstrap_rank_correlations(values, [Pair(0, 1)], draws=300, seed=turn)
        hits += bool(found.low[0] <= truth <= found.high[0])
    assert 0.88 <= hits / 150 <= 0.99


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.5])] * 2), min_size=3, max_size=6))
def test_p_of_few_inputs_is_the_share_of_all_orders(rows):
    a, b = np.array(rows).T
    found = rank_correlation_p(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(found)
        return
    rho = abs(spearmanr(a, b).statistic)
    orders = [abs(spearmanr(a, order).statistic) for order in itertools.permutations(b)]
    assert found == pytest.approx(np.mean([x >= rho - 1e-9 for x in orders]))
    assert found > 0


def test_p_of_many_inputs_is_students_t():
    rng = np.random.default_rng(4)
    for n in (9, 30, 500):
        a = rng.normal(size=n).round(1)
        b = (a + rng.normal(size=n)).round(1)
        assert rank_correlation_p(a, b) == pytest.approx(spearmanr(a, b).pvalue, rel=1e-9)
    assert rank_correlation_p(a, 3 * a) == 0
    assert np.isnan(rank_correlation_p(a[:2], b[:2]))


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 12))
def test_false_discovery_rates(p, gap):
    q = false_discovery_q(np.array([*p[:gap], np.nan, *p[gap:]]))
    place = min(gap, len(p))
    assert np.isnan(q[place])
    own = np.delete(q, place)
    expected = false_discovery_control(p) if p else []
    np.testing.assert_allclose(own, expected, atol=1e-12)


# ----------------------------------------------------------------------------------- frequencies


def varied(n=12, name="toy", seed=0, loss=True, spread=0.3):
    """Traces of several lengths, each with a prediction of its own frequency."""
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
        trace = with_curves(trace, trace.curve.kind, lift=float(rng.uniform(0, spread)))
        predicted = int(rng.integers(0, len(WORDS)))
        made.append(
            dataclasses.replace(
                trace,
                predicted_id=predicted,
                predicted=WORDS[predicted],
                loss=trace.loss if loss else None,
            )
        )
    return made


def plain_log_frequency(traces):
    """Of every trace, counting each input's tokens once, special ones not, token by token."""
    counts, seen = {}, set()
    for trace in traces:
        if trace.input.id in seen:
            continue
        seen.add(trace.input.id)
        for token, special in zip(trace.token_ids.tolist(), trace.special, strict=True):
            if not special:
                counts[token] = counts.get(token, 0) + 1
    types = set(counts) | {trace.predicted_id for trace in traces}
    total = sum(counts.values()) + len(types)
    return [math.log((counts.get(t.predicted_id, 0) + 1) / total) for t in traces]


def test_frequencies_are_counted_in_the_study():
    traces = varied(9)
    again = dataclasses.replace(traces[0], predicted_id=3, settings=traces[0].settings, position=1)
    other = varied(5, "b", seed=40)
    source = MemorySource([*traces, again, *other])
    frame = source.traces()
    found = dict(zip(frame["id"], top1_log_frequency(source, frame), strict=True))
    for own in ([*traces, again], other):
        expected = plain_log_frequency(own)
        assert [found[t.id] for t in own] == pytest.approx(expected)
    # All tokens' frequencies add up to one.
    every = {t.predicted_id: found[t.id] for t in other}
    assert sum(map(math.exp, every.values())) < 1


def test_frequencies_of_a_table():
    traces = varied(6)
    source = MemorySource(traces)
    counts = {word: 10.0 * (i + 1) for i, word in enumerate(WORDS[:6])}
    counts["never predicted"] = 500.0
    types = {*counts, *(t.predicted for t in traces)}
    total = sum(counts.values()) + len(types)
    expected = [math.log((counts.get(t.predicted, 0) + 1) / total) for t in traces]
    frame = source.traces()
    assert top1_log_frequency(source, frame, counts) == pytest.approx(expected)
    shown = {key.replace(" ", "·"): count for key, count in counts.items()}
    assert top1_log_frequency(source, frame, shown) == pytest.approx(expected)
    with pytest.raises(OptionError, match=r"none of the . predicted tokens"):
        top1_log_frequency(source, frame, {"the": 3})


def test_files_of_frequencies(tmp_path):
    counts = {" the": 30.0, "null": 2.0, "NA": 5.0, ",": 7.0, '"': 0.5}
    frame = pd.DataFrame({"token": list(counts), "count": list(counts.values())})
    paths = [tmp_path / f"table.{x}" for x in ("csv", "parquet", "json")] + [tmp_path / "list.json"]
    frame.to_csv(paths[0], index=False)
    frame.to_parquet(paths[1])
    paths[2].write_text(json.dumps(counts))
    paths[3].write_text(frame.to_json(orient="records"))
    for path in paths:
        assert read_frequencies(path) == counts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "token,count\n the,3\n the,4\n", "twice"),
        ("a.csv", "token,count\n the,many\n", "'many', not a number"),
        ("a.csv", "token,count\n the,-1\n", "not a number of at least 0"),
        ("a.csv", "token,count\n the,0\n", "counts no token"),
        ("a.csv", "word,count\n the,3\n", "no column 'token'"),
        ("a.csv", "", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{" the": true}', "True, not a number"),
        ("a.json", "3", "cannot be read"),
        ("a.parquet", "no table", "cannot be read"),
        ("a.txt", "the 3", "must be a .csv, .json or .parquet"),
        (None, "", "cannot be read: No such file"),
    ],
)
def test_tables_that_are_none(tmp_path, name, content, message):
    path = tmp_path / (name or "absent.csv")
    if name:
        path.write_text(content)
    with pytest.raises(OptionError, match=message):
        read_frequencies(path)
    with pytest.raises(OptionError, match="not a text"):
        read_frequencies({3: 4.0})  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------ correlates


def facts(traces):
    return {
        "density": [t.density for t in traces],
        "density_normalised": [t.density_normalised for t in traces],
        "entropy": [t.entropy for t in traces],
        "loss": [t.loss for t in traces],
        "top1_log_frequency": plain_log_frequency(traces),
        "n_tokens": [t.position + 1 for t in traces],
    }


def test_every_number_against_plain_ones():
    traces = varied(20)
    found = correlates(MemorySource(traces), draws=200)
    assert found["measure"].tolist() == [x for x in MEASURES for _ in CORRELATES]
    assert found["correlate"].tolist() == [*CORRELATES] * 2
    held = facts(traces)
    for row in found.to_dict("records"):
        a, b = np.array(held[row["measure"]]), np.array(held[row["correlate"]])
        others = [x for x in CORRELATES if x != row["correlate"]]
        assert row["rho"] == pytest.approx(spearmanr(a, b).statistic)
        assert row["p"] == pytest.approx(spearmanr(a, b).pvalue)
        expected = plain_partial(a, b, [np.array(held[x]) for x in others])
        assert row["partial_rho"] == pytest.approx(expected)
        assert row["controls"] == ", ".join(others)
        assert (row["n_inputs"], row["n_traces"], row["n_partial"]) == (20, 20, 20)
        assert row["rho_low"] < row["rho"] < row["rho_high"]
        assert row["partial_rho_low"] < row["partial_rho_high"]
    np.testing.assert_allclose(found["q"], false_discovery_control(found["p"]))


def test_a_planted_relation_is_found_and_its_shadow_is_not():
    """Density follows entropy; loss goes with entropy only: rho sees both, the partial one."""
    rng = np.random.default_rng(7)
    entropy = rng.uniform(1, 5, 150)
    loss = entropy + rng.normal(0, 0.5, 150)
    lift = entropy / 20 + rng.normal(0, 0.02, 150)
    traces = [
        dataclasses.replace(with_curves(t, t.curve.kind, lift=x), entropy=e, loss=y)
        for t, x, e, y in zip(varied(150, spread=0), lift, entropy, loss, strict=True)
    ]
    frame = correlates(MemorySource(traces), draws=300)
    frame = frame[frame["measure"] == "density_normalised"].set_index("correlate")
    assert frame.loc[["entropy", "loss"], "rho_low"].min() > 0.5
    assert frame.loc["entropy", "partial_rho_low"] > 0.4
    assert frame.loc["loss", "partial_rho_low"] < 0 < frame.loc["loss", "partial_rho_high"]
    assert frame.loc[["entropy", "loss"], "q"].max() < 1e-6


def test_unknown_losses_are_no_control():
    traces = varied(12, loss=False)
    found = correlates(MemorySource(traces), draws=50).set_index(["measure", "correlate"])
    loss = found.xs("loss", level="correlate")
    assert loss["n_inputs"].tolist() == [0, 0]
    assert loss[["rho", "rho_low", "p", "q", "partial_rho"]].isna().all(axis=None)
    row = found.loc[("density", "entropy")]
    assert row["controls"] == "top1_log_frequency, n_tokens"
    assert (row["n_inputs"], row["n_partial"]) == (12, 12)
    held = facts(traces)
    controls = [np.array(held[x]) for x in ("top1_log_frequency", "n_tokens")]
    expected = plain_partial(np.array(held["density"]), np.array(held["entropy"]), controls)
    assert row["partial_rho"] == pytest.approx(expected)


def test_losses_that_some_inputs_have():
    traces = varied(14)
    traces[:4] = [dataclasses.replace(t, loss=None) for t in traces[:4]]
    found = correlates(MemorySource(traces), draws=50).set_index(["measure", "correlate"])
    row = found.loc[("density", "entropy")]
    assert (row["n_inputs"], row["n_partial"]) == (14, 10)
    held = facts(traces)
    expected = spearmanr(held["density"], held["entropy"]).statistic
    assert row["rho"] == pytest.approx(expected)
    part = {key: np.array(values[4:], float) for key, values in held.items()}
    controls = [part[x] for x in CORRELATES if x != "entropy"]
    expected = plain_partial(part["density"], part["entropy"], controls)
    assert row["partial_rho"] == pytest.approx(expected)


def test_models_and_groups_are_apart():
    source = MemorySource([*varied(10), *varied(9, "b", seed=30)])
    found = correlates(source, by=["group"], draws=20)
    assert list(found.columns[:4]) == ["model", "group", "measure", "correlate"]
    assert len(found) == 2 * 2 * 8
    own = found[found["model"].str.startswith("b@") & (found["group"] == "a")]
    alone = correlates(source, models=["b"], by=["group"], draws=20)
    alone = alone[alone["group"] == "a"]
    pd.testing.assert_frame_equal(
        own.drop(columns="q").reset_index(drop=True),
        alone.drop(columns="q").reset_index(drop=True),
    )


def test_traces_of_one_input_are_averaged_first():
    one, two, *rest = varied(8)
    two = dataclasses.replace(two, input=one.input)
    traces = [one, two, *rest]
    found = correlates(MemorySource(traces), draws=20).set_index(["measure", "correlate"])
    row = found.loc[("density", "entropy")]
    assert (row["n_inputs"], row["n_traces"]) == (7, 8)
    held = facts(traces)
    a, b = ([np.mean(held[x][:2]), *held[x][2:]] for x in ("density", "entropy"))
    assert row["rho"] == pytest.approx(spearmanr(a, b).statistic)


def test_one_input_and_constant_measures_are_nan_and_quiet():
    single = correlates(MemorySource(varied(1)), draws=20)
    assert single["n_inputs"].tolist() == [1] * 8
    numbers = ["rho", "rho_low", "rho_high", "p", "q", "partial_rho", "partial_rho_low"]
    assert single[numbers].isna().all(axis=None)
    flat = [dataclasses.replace(t, entropy=2.0) for t in varied(10)]
    found = correlates(MemorySource(flat), draws=20).set_index("correlate")
    assert found.loc["entropy", numbers].isna().all(axis=None)
    assert found.loc["loss", "partial_rho"].notna().all()


def test_frequencies_can_be_given_and_settings_are_not_pooled():
    traces = varied(10)
    counts = {word: 1.0 + 3 * i for i, word in enumerate(WORDS)}
    found = correlates(MemorySource(traces), frequencies=counts, draws=20)
    row = found.set_index(["measure", "correlate"]).loc[("density", "top1_log_frequency")]
    expected = spearmanr([counts[t.predicted] for t in traces], [t.density for t in traces])
    assert row["rho"] == pytest.approx(expected.statistic)
    kinds = ("necessity:zero:mlp", "sufficiency:zero:mlp")
    mixed = [with_curves(t, kinds[i % 2]) for i, t in enumerate(traces)]
    with pytest.raises(OptionError, match="several kinds"):
        correlates(MemorySource(mixed))
    other = dataclasses.replace(traces[0].settings, scorer="l2")
    traces += [dataclasses.replace(t, settings=other) for t in traces]
    with pytest.raises(OptionError, match="mix several settings"):
        correlates(MemorySource(traces))
