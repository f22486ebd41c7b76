"""Controls: density by context length within endings, by token rarity within lengths."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from builders import WORDS, model_info, synthetic_trace, with_curves
from builders_source import MemorySource, study
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import page_trend_test, rankdata
from test_correlates import plain_log_frequency

from graphtrace.analysis.controls import controls
from graphtrace.analysis.matched_contexts import LENGTHS, TREND, matched_contexts
from graphtrace.analysis.token_rarity import _quarter, rarity_design, rarity_quartiles
from graphtrace.designs import write_design
from graphtrace.errors import OptionError

CONTEXTS = (2, 4, 8, 16)


def lifted(trace, lift):
    return with_curves(trace, trace.curve.kind, lift=float(lift))


def matched_traces(n=12, slope=0.0, noise=0.05, name="toy", seed=0, contexts=CONTEXTS, longer=True):
    """Every ending with every context; TV rises by `slope` per doubling, endings differ."""
    rng, made = np.random.default_rng(seed), []
    for e in range(n):
        own = rng.uniform(0, 0.1)
        for i, context in enumerate(contexts):
            trace = synthetic_trace(
                7 * e,  # one curve but for the lift
                n=3 + i if longer else 5,
                model=model_info(name=name),
                name=f"e{e}-{context}",
                text=f"text {e} {context}",
                labels={"ending": f"e{e}", "context": str(context), "half": "ab"[e % 2]},
            )
            made.append(lifted(trace, own + 0.1 + slope * i + noise * rng.uniform()))
    return made


def table_of(traces, endings, contexts=CONTEXTS, of="density_normalised"):
    held = {t.input.name: getattr(t, of) for t in traces}
    return np.array([[held[f"e{e}-{c}"] for c in contexts] for e in endings])


# ------------------------------------------------------------------------- matched continuations


def test_matched_contexts_against_plain_ones():
    traces = matched_traces(10, slope=0.02)
    # One ending lacks a length: it is in no mean.
    held = [t for t in traces if t.input.name != "e3-8"][::-1]
    found = matched_contexts(MemorySource(held), draws=400)
    table = table_of(traces, [e for e in range(10) if e != 3])
    assert found.lengths["context"].tolist() == [*CONTEXTS]
    assert found.lengths["n_endings"].tolist() == [9] * 4
    assert found.lengths["n_tokens"].tolist() == [3, 4, 5, 6]
    assert found.lengths["mean"].tolist() == pytest.approx(table.mean(0))
    error = table.std(0, ddof=1) / 3
    half = (found.lengths["mean_high"] - found.lengths["mean_low"]) / 2
    assert half.tolist() == pytest.approx(1.9 * error, rel=0.35)
    (row,) = found.trend.to_dict("records")
    slopes = [np.polyfit(np.log2(CONTEXTS), own, 1)[0] for own in table]
    assert row["slope"] == pytest.approx(np.mean(slopes))
    assert row["slope_low"] < row["slope"] < row["slope_high"]
    assert (row["n_endings"], row["n_left_out"], row["n_contexts"]) == (9, 1, 4)
    page = page_trend_test(table)
    assert row["page_l"] == page.statistic
    assert row["p"] == pytest.approx(2 * page.pvalue)
    assert row["p"] < 0.01


def test_a_fall_is_found_as_a_rise_is_and_no_trend_is_not():
    rising, flat, falling = (
        matched_contexts(MemorySource(matched_traces(15, slope, longer=False))).trend.iloc[0]
        for slope in (0.02, 0, -0.02)
    )
    assert rising["slope_low"] > 0
    assert falling["slope_high"] < 0
    assert flat["slope_low"] < 0 < flat["slope_high"]
    assert max(rising["p"], falling["p"]) < 1e-3
    assert flat["p"] > 0.05


def test_models_and_groups_have_their_own_endings():
    traces = matched_traces(8, name="a") + matched_traces(6, name="b", seed=4)
    source = MemorySource(traces)
    found = matched_contexts(source, by=["half"], draws=50)
    assert list(found.trend.columns) == ["model", "half", *TREND]
    assert list(found.lengths.columns) == ["model", "half", *LENGTHS]
    assert found.trend["n_endings"].tolist() == [4, 4, 3, 3]
    alone = matched_contexts(source, models=["b"], where=["half=b"], draws=50)
    own = found.trend.iloc[3:].drop(columns="half").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone.trend)


def test_several_traces_of_a_text_are_averaged():
    traces = matched_traces(3)
    again = dataclasses.replace(traces[0], position=1)
    again = lifted(again, 0.3)
    found = matched_contexts(MemorySource([*traces, again]), measure="density", draws=20)
    table = table_of(traces, range(3), of="density")
    table[0, 0] = (traces[0].density + again.density) / 2
    assert found.lengths["mean"].tolist() == pytest.approx(table.mean(0))


def test_few_endings_and_few_lengths():
    one = matched_contexts(MemorySource(matched_traces(1, 0.02)))
    assert one.lengths["mean"].notna().all()
    assert one.lengths["mean_low"].isna().all()
    row = one.trend.iloc[0]
    assert np.isfinite(row["slope"])
    assert np.isnan([row["slope_low"], row["page_l"], row["p"]]).all()
    two = matched_contexts(MemorySource(matched_traces(4, 0.02, contexts=(2, 4))))
    row = two.trend.iloc[0]
    assert np.isfinite([row["slope"], row["slope_low"]]).all()
    assert np.isnan(row["p"])
    single = matched_contexts(MemorySource(matched_traces(4, contexts=(6,)))).trend.iloc[0]
    assert single["n_endings"] == 4
    assert np.isnan([single["slope"], single["p"]]).all()
    traces = matched_traces(2, contexts=(2, 4))
    none = matched_contexts(MemorySource([traces[0], traces[3]]))
    assert none.lengths["n_endings"].tolist() == [0, 0]
    assert none.lengths[["mean", "n_tokens"]].isna().all(axis=None)
    assert none.trend[["n_endings", "n_left_out"]].to_numpy().tolist() == [[0, 2]]


def test_labels_that_are_none():
    with pytest.raises(OptionError, match="no trace has a label 'ending'"):
        matched_contexts(study(3))
    for context in ("long", "0", "-3", "inf", "nan"):
        trace = synthetic_trace(1, labels={"ending": "e", "context": context})
        with pytest.raises(OptionError, match="not a number of words above 0"):
            matched_contexts(MemorySource([trace]))
    apart = [
        synthetic_trace(1, labels={"ending": "e"}),
        synthetic_trace(2, labels={"context": "4"}),
    ]
    with pytest.raises(OptionError, match="no trace has both labels"):
        matched_contexts(MemorySource(apart))
    mixed = [*matched_traces(3), synthetic_trace(500, name="other")]
    assert matched_contexts(MemorySource(mixed)).trend["n_endings"].tolist() == [3]


# ---------------------------------------------------------------------------------- token rarity


def rare_and_frequent(n=64, effect=0.0, name="toy", seed=0, lengths=(3, 4, 5, 6)):
    """Every length with tokens of every frequency (by a table); TV falls with frequency."""
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        word = int(rng.integers(0, 8))
        trace = synthetic_trace(
            seed * 1000,
            n=lengths[i % len(lengths)],
            model=model_info(name=name),
            name=f"line-{i}",
            text=f"text {i}",
            labels={"half": "ab"[i % 2]},
        )
        trace = lifted(trace, 0.2 - effect * word + 0.05 * rng.uniform())
        made.append(dataclasses.replace(trace, predicted_id=word, predicted=WORDS[word]))
    return made


COUNTS = {word: 10.0**i for i, word in enumerate(WORDS)}


def plain_quarter(values):
    """0 ... 3 by the share of the values that are smaller, and half of the equal ones."""
    return [
        int(4 * (sum(y < x for y in values) + sum(y == x for y in values) / 2) // len(values))
        for x in values
    ]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_quarters_of_mid_ranks(values):
    found = _quarter(np.array(values, float))
    assert found.tolist() == plain_quarter(values)
    assert len({(x, y) for x, y in zip(values, found.tolist(), strict=True)}) == len(set(values))
    if len(set(values)) == len(values):
        assert max(np.bincount(found, minlength=4)) - min(np.bincount(found, minlength=4)) <= 1


def plain_rarity(traces, length_part, of="density_normalised", log_frequency=None):
    """Per stratum and quartile the values, by loops; strata as {part: [[values] x 4]}."""
    lengths = [t.position + 1 for t in traces]
    log_frequency = log_frequency or [np.log(COUNTS[t.predicted]) for t in traces]
    cells = {}
    for part in sorted(set(parts := length_part(lengths))):
        own = [i for i, x in enumerate(parts) if x == part]
        quarters = plain_quarter([log_frequency[i] for i in own])
        cells[part] = [
            [getattr(traces[i], of) for i, x in zip(own, quarters, strict=True) if x == q]
            for q in range(4)
        ]
    return cells


def test_rarity_against_plain_ones():
    traces = rare_and_frequent(60, effect=0.01)
    found = rarity_quartiles(MemorySource(traces), frequencies=COUNTS, draws=300)
    cells = plain_rarity(traces, plain_quarter)
    used = [x for x in cells.values() if all(x)]
    means = np.array([[np.mean(cell) for cell in x] for x in used])
    assert found.quartiles["quartile"].tolist() == [1, 2, 3, 4]
    assert found.quartiles["mean"].tolist() == pytest.approx(means.mean(0))
    expected = [sum(len(x[q]) for x in used) for q in range(4)]
    assert found.quartiles["n_inputs"].tolist() == expected
    counts = [len(cell) for x in cells.values() for cell in x]
    assert found.cells["n_inputs"].tolist() == counts
    (row,) = found.difference.to_dict("records")
    assert row["difference"] == pytest.approx(means[:, 3].mean() - means[:, 0].mean())
    assert row["difference_low"] < row["difference"] < row["difference_high"] < 0
    assert (row["n_strata"], row["n_strata_left_out"]) == (len(used), len(cells) - len(used))
    assert row["n_inputs"] == sum(expected)
    assert abs(row["n_tokens_difference"]) < 1e-9, "each stratum has one length"
    assert (found.quartiles["log_frequency"].diff().dropna() > 0).all()
    assert len(found.inputs) == 60
    assert found.cells["used"].all()


def test_edges_make_the_strata():
    traces = rare_and_frequent(60)
    found = rarity_quartiles(MemorySource(traces), edges=[5, 40], frequencies=COUNTS, draws=50)
    assert found.cells["stratum"].tolist() == [1] * 4 + [2] * 4
    assert found.cells["n_tokens_from"].tolist() == [3] * 4 + [5] * 4
    assert found.cells["n_tokens_to"].tolist() == [4] * 4 + [6] * 4
    cells = plain_rarity(traces, lambda lengths: [int(x >= 5) for x in lengths])
    expected = [np.mean(cell) for x in cells.values() for cell in x]
    assert found.cells["mean"].tolist() == pytest.approx(expected)
    for edges in ([], [5, 5], [6, 5]):
        with pytest.raises(OptionError, match="must be at least one length"):
            rarity_quartiles(MemorySource(traces), edges=edges)


def test_no_effect_is_found_where_length_alone_matters():
    """Long inputs are dense and predict frequent tokens: within lengths nothing is left."""
    rng, made = np.random.default_rng(1), []
    for i, trace in enumerate(rare_and_frequent(120, lengths=(3, 6))):
        word = int(rng.integers(0, 4)) + 4 * (i % 2)
        trace = lifted(trace, 0.3 * (i % 2))
        made.append(dataclasses.replace(trace, predicted_id=word, predicted=WORDS[word]))
    source = MemorySource(made)
    held = rarity_quartiles(source, edges=[5], frequencies=COUNTS).difference.iloc[0]
    pooled = rarity_quartiles(source, edges=[50], frequencies=COUNTS).difference.iloc[0]
    assert pooled["difference_low"] > 0.05
    assert abs(held["difference"]) < 0.02
    assert held["n_strata"] == 2
    assert pooled["n_tokens_difference"] == 3
    assert held["n_tokens_difference"] == 0


def test_the_interval_is_that_of_a_plain_bootstrap():
    traces = rare_and_frequent(48, effect=0.01, lengths=(3, 6))
    found = rarity_quartiles(MemorySource(traces), frequencies=COUNTS, draws=2000).difference
    rng, drawn = np.random.default_rng(9), []
    cells = plain_rarity(traces, plain_quarter)
    for _ in range(2000):
        parts = []
        for quarters in cells.values():
            pool = [(q, x) for q, cell in enumerate(quarters) for x in cell]
            chosen = [pool[i] for i in rng.integers(0, len(pool), len(pool))]
            means = [[x for q, x in chosen if q == wanted] for wanted in (0, 3)]
            parts.append(np.mean(means[1]) - np.mean(means[0]) if all(means) else np.nan)
        drawn.append(np.mean(parts))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    width = high - low
    assert found["difference_low"][0] == pytest.approx(low, abs=0.12 * width)
    assert found["difference_high"][0] == pytest.approx(high, abs=0.12 * width)


def test_frequencies_are_the_studys_own_by_default():
    traces = rare_and_frequent(40)
    found = rarity_quartiles(MemorySource(traces), edges=[5], draws=20)
    cells = plain_rarity(
        traces,
        lambda lengths: [int(x >= 5) for x in lengths],
        log_frequency=list(np.round(plain_log_frequency(traces), 12)),
    )
    counts = [len(cell) for x in cells.values() for cell in x]
    assert found.cells["n_inputs"].tolist() == counts


def test_few_inputs_and_ties_leave_strata_out():
    flat = [
        dataclasses.replace(t, predicted_id=3, predicted=WORDS[3]) for t in rare_and_frequent(9)
    ]
    one = rare_and_frequent(1)
    for traces in (flat, one):
        found = rarity_quartiles(MemorySource(traces), frequencies=COUNTS)
        (row,) = found.difference.to_dict("records")
        assert (row["n_inputs"], row["n_strata"]) == (0, 0)
        assert row["n_strata_left_out"] > 0
        assert np.isnan([row["difference"], row["difference_low"]]).all()
        assert found.quartiles["mean"].isna().all()
        assert found.quartiles["n_inputs"].tolist() == [0] * 4
        assert not found.cells["used"].any()
        assert found.cells["n_inputs"].sum() == len(traces)
    # One input per cell: a difference, and no way to tell how sure it is.
    four = [
        dataclasses.replace(t, predicted_id=i, predicted=WORDS[i])
        for i, t in enumerate(rare_and_frequent(4, lengths=(4,)))
    ]
    found = rarity_quartiles(MemorySource(four), frequencies=COUNTS)
    assert found.quartiles["mean"].tolist() == pytest.approx([t.density_normalised for t in four])
    assert found.quartiles[["mean_low", "mean_high"]].isna().all(axis=None)
    assert np.isnan(found.difference["difference_low"][0])


def test_cells_do_not_depend_on_the_measure():
    traces = rare_and_frequent(40)
    source = MemorySource(traces)
    dense, plain = (
        rarity_quartiles(source, measure=x, frequencies=COUNTS, draws=5)
        for x in ("density", "density_normalised")
    )
    pd.testing.assert_frame_equal(dense.inputs, plain.inputs)
    # Inputs without the measure stay in their cells, and out of means and counts.
    less = [
        dataclasses.replace(t, mlp_active_share=0.1 if i % 3 else None)
        for i, t in enumerate(traces)
    ]
    found = rarity_quartiles(
        MemorySource(less), measure="mlp_active_share", frequencies=COUNTS, draws=5
    )
    pd.testing.assert_frame_equal(found.inputs, plain.inputs)
    assert found.cells["n_inputs"].sum() == sum(t.mlp_active_share is not None for t in less)
    nothing = rarity_quartiles(source, measure="mlp_active_share", frequencies=COUNTS, draws=5)
    assert len(nothing.cells) == 0
    assert nothing.difference["n_strata"].tolist() == [0]


def test_models_groups_and_several_traces_of_an_input():
    traces = [*rare_and_frequent(32, name="a"), *rare_and_frequent(40, name="b", seed=3)]
    source = MemorySource(traces)
    found = rarity_quartiles(source, by=["half"], frequencies=COUNTS, draws=20)
    alone = rarity_quartiles(source, models=["b"], where=["half=a"], frequencies=COUNTS, draws=20)
    for whole, part in zip(found, alone, strict=True):
        assert list(whole.columns[:2]) == ["model", "half"]
        own = whole[whole["model"].str.startswith("b@") & (whole["half"] == "a")]
        pd.testing.assert_frame_equal(own.drop(columns="half").reset_index(drop=True), part)
    one = rare_and_frequent(20)
    word = (one[0].predicted_id + 4) % 8
    again = dataclasses.replace(one[0], position=1, predicted_id=word, predicted=WORDS[word])
    both = rarity_quartiles(MemorySource([*one, again]), frequencies=COUNTS, draws=5)
    assert len(both.inputs) == 20
    row = both.inputs.set_index("input").loc[one[0].input.id]
    total = sum(COUNTS.values()) + len(COUNTS)
    mean = np.mean([np.log((COUNTS[t.predicted] + 1) / total) for t in (one[0], again)])
    assert row["log_frequency"] == pytest.approx(mean)


def test_the_design_says_which_input_is_where(tmp_path):
    traces = [*rare_and_frequent(24, name="a"), *rare_and_frequent(24, name="b", seed=3)]
    table = tmp_path / "table.json"
    table.write_text(json.dumps(COUNTS))
    found = rarity_quartiles(MemorySource(traces), edges=[5], frequencies=table, draws=5)
    selection = {"where": ["half=a"], "models": None}
    design = rarity_design(found.inputs, [5], table, selection)
    held = json.loads(write_design(design, tmp_path / "rarity.json").read_text())
    assert held["design"] == "rarity quartiles"
    assert held["version"]
    assert held["parameters"]["selection"] == {"where": ["half=a"]}
    assert held["parameters"]["frequencies"]["file"] == "table.json"
    assert str(tmp_path) not in json.dumps(held)
    place = {
        (group["model"], input_): (cell["stratum"], cell["quartile"])
        for group in held["groups"]
        for cell in group["cells"]
        for input_ in cell["inputs"]
    }
    rows = found.inputs.to_dict("records")
    assert place == {(x["model"], x["input"]): (x["stratum"], x["quartile"]) for x in rows}
    assert [group["n_inputs"] for group in held["groups"]] == [24, 24]


# ------------------------------------------------------------------------------------------ both


def test_controls_are_both():
    traces = matched_traces(16, 0.02)
    source = MemorySource(traces)
    found = controls(source, draws=50, by=["half"])
    matched = matched_contexts(source, draws=50, by=["half"])
    rarity = rarity_quartiles(source, draws=50, by=["half"])
    for name in ("lengths", "trend"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(matched, name))
    for name in ("quartiles", "difference", "cells", "inputs"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(rarity, name))
    plain = controls(study(12), by=["group"])
    assert len(plain.lengths) == len(plain.trend) == 0
    assert list(plain.trend.columns) == ["model", "group", *TREND]
    assert list(plain.lengths.columns) == ["model", "group", *LENGTHS]
    assert len(plain.quartiles) == 8


def test_what_is_refused():
    traces = matched_traces(3)
    for analysis in (controls, matched_contexts, rarity_quartiles):
        with pytest.raises(OptionError, match="measure 'size' is none of density, "):
            analysis(MemorySource(traces), measure="size")
        with pytest.raises(OptionError, match="no trace of model 'x'"):
            analysis(MemorySource(traces), models=["x"])
        mixed = [
            with_curves(t, ("necessity:zero:mlp", t.curve.kind)[i % 2])
            for i, t in enumerate(traces)
        ]
        with pytest.raises(OptionError, match="several kinds"):
            analysis(MemorySource(mixed))


def test_page_ranks_with_ties_shared():
    """Constant density is no trend at all, without a warning."""
    traces = [lifted(t, 0.1) for t in matched_traces(4)]
    same = [with_curves(synthetic_trace(1, n=4), t.curve.kind) for t in traces]
    flat = [
        dataclasses.replace(t, curves=x.curves, ranked=x.ranked, token_ids=x.token_ids)
        for t, x in zip(traces, same, strict=True)
    ]
    table = table_of(flat, range(4))
    assert len(set(table.ravel())) == 1
    assert set(rankdata(table, axis=1).ravel()) == {2.5}
    row = matched_contexts(MemorySource(flat), draws=10).trend.iloc[0]
    assert row["slope"] == pytest.approx(0)
    assert row["p"] == 1
