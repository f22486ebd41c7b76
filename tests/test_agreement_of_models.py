"""Agreement of density between models on the same inputs."""

import dataclasses
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves
from builders_source import MemorySource, study
from scipy.stats import false_discovery_control, spearmanr
from test_correlates import plain_partial

from graphtrace.analysis.agreement import agreement
from graphtrace.errors import OptionError


def models_of_one_corpus(names="abc", n=15, seed=0):
    """Every model sees the same inputs; their densities go together a little, lengths differ."""
    rng = np.random.default_rng(seed)
    shared, lengths = rng.uniform(0, 0.2, n), rng.integers(3, 8, n)
    return {
        name: [
            with_curves(
                t := synthetic_trace(
                    1000 * place + i,
                    n=int(lengths[i]) + place % 2 * int(rng.integers(0, 2)),
                    model=model_info(name=name),
                    name=f"line-{i}",
                    text=f"text {i}",
                    labels={"group": "xy"[i % 2]},
                ),
                t.curve.kind,
                lift=float(shared[i] + rng.uniform(0, 0.2)),
            )
            for i in range(n)
        ]
        for place, name in enumerate(names)
    }


def source_of(models):
    return MemorySource([trace for own in models.values() for trace in own])


def test_every_pair_against_plain_ones():
    models = models_of_one_corpus()
    # Not every model has every input, nor in one order.
    models["b"] = models["b"][12:2:-1]
    source = source_of(models)
    for measure in ("density_normalised", "density", "entropy"):
        found = agreement(source, measure=measure, draws=100)
        expected = []
        for one, other in combinations("abc", 2):
            there = {t.input.id: t for t in models[other]}
            pairs = [(t, there[t.input.id]) for t in models[one] if t.input.id in there]
            a, b = ([getattr(pair[i], measure) for pair in pairs] for i in (0, 1))
            lengths = [np.array([pair[i].position + 1.0 for pair in pairs]) for i in (0, 1)]
            rho = spearmanr(a, b)
            partial = plain_partial(np.array(a), np.array(b), lengths)
            expected.append((one, other, len(pairs), rho.statistic, rho.pvalue, partial))
        rows = found.pairs.to_dict("records")
        assert len(rows) == 3
        for row, (one, other, n, rho, p, partial) in zip(rows, expected, strict=True):
            assert (row["model"][0], row["other_model"][0], row["n_inputs"]) == (one, other, n)
            assert row["rho"] == pytest.approx(rho)
            assert row["p"] == pytest.approx(p)
            assert row["partial_rho"] == pytest.approx(partial)
            assert row["rho_low"] < row["rho"] < row["rho_high"]
            assert row["measure"] == measure
        np.testing.assert_allclose(found.pairs["q"], false_discovery_control(found.pairs["p"]))
        (row,) = found.summary.to_dict("records")
        rho = [x[3] for x in expected]
        assert (row["n_models"], row["n_pairs"], row["n_inputs_min"]) == (3, 3, 10)
        assert row["rho_mean"] == pytest.approx(np.mean(rho))
        assert (row["rho_min"], row["rho_max"]) == pytest.approx((min(rho), max(rho)))
        assert row["partial_rho_mean"] == pytest.approx(np.mean([x[5] for x in expected]))


def test_the_interval_narrows_and_covers():
    few, many = (agreement(source_of(models_of_one_corpus("ab", n))).pairs for n in (30, 120))
    width = [float((x["rho_high"] - x["rho_low"]).iloc[0]) for x in (few, many)]
    assert 1.4 < width[0] / width[1] < 3  # about the square root of 4
    # Shared and own part have the same variance: Pearson's 1/2, Spearman's a little below.
    assert many["rho_low"][0] < 0.48 < many["rho_high"][0]


def test_groups_are_apart():
    source = source_of(models_of_one_corpus("ab"))
    found = agreement(source, by=["group"], draws=20)
    assert list(found.pairs.columns[:4]) == ["group", "model", "other_model", "measure"]
    assert found.pairs["group"].tolist() == found.summary["group"].tolist() == ["x", "y"]
    for group, n in (("x", 8), ("y", 7)):
        alone = agreement(source, where=[f"group={group}"], draws=20).pairs
        own = found.pairs[found.pairs["group"] == group].drop(columns="group")
        drop = ["q"]
        pd.testing.assert_frame_equal(
            own.drop(columns=drop).reset_index(drop=True), alone.drop(columns=drop)
        )
        assert own["n_inputs"].tolist() == [n]


def test_traces_of_one_input_are_averaged_first():
    models = models_of_one_corpus("ab", 8)
    first, second = models["a"][:2]
    models["a"].append(dataclasses.replace(second, input=first.input, position=1))
    found = agreement(source_of(models), draws=20).pairs
    values = [t.density_normalised for t in models["a"]]
    values = [(values[0] + values[-1]) / 2, *values[1:-1]]
    expected = spearmanr(values, [t.density_normalised for t in models["b"]]).statistic
    assert found["n_inputs"].tolist() == [8]
    assert found["rho"][0] == pytest.approx(expected)


def test_one_model_has_no_pair():
    found = agreement(study(4, groups=("x", "y")), by=["group"])
    full = agreement(source_of(models_of_one_corpus("ab")), by=["group"], draws=5)
    assert list(found.pairs.columns) == list(full.pairs.columns)
    assert list(found.summary.columns) == list(full.summary.columns)
    assert len(found.pairs) == 0
    assert found.summary[["n_models", "n_pairs", "n_inputs_min"]].to_numpy().tolist() == [
        [1, 0, 0],
        [1, 0, 0],
    ]
    assert found.summary[["rho_mean", "rho_min", "partial_rho_max"]].isna().all(axis=None)


def test_models_without_common_inputs_and_few_inputs_are_nan():
    models = models_of_one_corpus("ab", 6)
    apart = {"a": models["a"][:3], "b": models["b"][3:]}
    found = agreement(source_of(apart))
    (row,) = found.pairs.to_dict("records")
    assert row["n_inputs"] == 0
    assert np.isnan([row[x] for x in ("rho", "rho_low", "p", "q", "partial_rho")]).all()
    assert found.summary["n_pairs"].tolist() == [0]
    for n in (1, 2, 3, 4, 5):
        part = {name: own[:n] for name, own in models.items()}
        (row,) = agreement(source_of(part), draws=20).pairs.to_dict("records")
        assert np.isfinite(row["rho"]) == (n >= 3)
        assert np.isfinite(row["p"]) == (n >= 3)
        assert row["n_inputs"] == n


def test_a_measure_that_no_trace_has_is_nan():
    source = source_of(models_of_one_corpus("ab", 5))
    (row,) = agreement(source, measure="mlp_active_share").pairs.to_dict("records")
    assert row["n_inputs"] == 0
    assert np.isnan(row["rho"])


def test_what_is_refused():
    models = models_of_one_corpus("ab", 4)
    source = source_of(models)
    with pytest.raises(OptionError, match="measure 'size' is none of density, "):
        agreement(source, measure="size")
    for key in ("model", "trace.model", "model_name"):
        with pytest.raises(OptionError, match="groups cannot be models"):
            agreement(source, by=[key])
    models["b"] = [with_curves(t, "necessity:zero:mlp") for t in models["b"]]
    with pytest.raises(OptionError, match="several kinds"):
        agreement(source_of(models))
