"""Contrasts against plain Python: groups, pairs, models and settings side by side."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource, study
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from oracles_contrast import (
    component_shares,
    depth_shares,
    discoveries,
    layer_shares,
    plain_rows,
    token_shares,
)

import graphtrace as gt
from graphtrace.analysis.contrast import contrast
from graphtrace.analysis.contrast_sides import ContrastWarning
from graphtrace.analysis.core import CORE_MEASURE
from graphtrace.analysis.counts_at_size import counts_at_size
from graphtrace.analysis.passes import measured
from graphtrace.archive_write import write_traces
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
from graphtrace.sizes import ShortTraceWarning

SIZE = "k:20"


def pairs(n=10, groups=("clean", "corrupt"), models=("toy",), start=0, **options):
    """n pairs of texts, one of each group, traced by every model."""
    made = []
    for m, name in enumerate(models):
        for i in range(n):
            for g, group in enumerate(groups):
                made.append(
                    synthetic_trace(
                        start + 100 * m + 10 * i + g,
                        n=4 + i % 3,
                        model=model_info(name=name, **options),
                        name=f"{group}-{i}",
                        text=f"{group} {i}",
                        labels={"group": group, "pair": str(i)},
                    )
                )
    return made


def held(traces, unit, shares_of, size=SIZE):
    """One side of the oracle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortTraceWarning)
        return [(unit(t), t.input.id, shares_of(t.subgraph(size))) for t in traces]


def check(rows, expected, key_of, primary):
    """The numbers of the table are those of the oracle, row by row."""
    found = {key_of(row): row for row in rows.to_dict("records")}
    assert set(found) == set(expected)
    assert len(found) == len(rows)
    for key, row in found.items():
        plain = expected[key]
        for name in ("share_a", "share_b"):
            assert row[name] == pytest.approx(plain[name], abs=1e-12), (key, name)
        assert row["share_difference"] == pytest.approx(plain["share_a"] - plain["share_b"])
        assert row["p"] == pytest.approx(plain[f"{primary}_p"]), key
        if primary == "presence":
            a, b = plain["presence_a"], plain["presence_b"]
            assert (row["presence_a"], row["presence_b"]) == pytest.approx((a, b))
            assert row["difference"] == pytest.approx(a - b)
            where = {(1, 1): "both", (1, 0): "only-A", (0, 1): "only-B", (0, 0): "neither"}
            assert row["where"] == where[int(row["presence_a"] >= 0.5), int(b >= 0.5)]
    np.testing.assert_allclose(rows["q"], discoveries(rows["p"].to_numpy()))


def by_component(row):
    return row["component"]


def groups_of(traces):
    return ([t for t in traces if t.input.labels["group"] == x] for x in ("clean", "corrupt"))


def test_components_of_independent_groups():
    traces = pairs()
    found = contrast(MemorySource(traces), SIZE, by="group")
    sides = [held(own, lambda t: t.input.id, component_shares) for own in groups_of(traces)]
    check(found.rows, plain_rows(*sides, paired=False), by_component, "presence")
    (row,) = found.summary.to_dict("records")
    assert (row["a"], row["b"], row["test"], row["matched"]) == (
        *("clean", "corrupt", "fisher", "component"),
    )
    assert (row["n_inputs_a"], row["n_inputs_b"], row["n_traces_a"]) == (10, 10, 10)
    assert pd.isna(row["n_pairs"])
    assert row["trace_edges_a"] == 20
    counts = found.rows["where"].value_counts()
    for name, where in (("n_both", "both"), ("n_only_a", "only-A"), ("n_only_b", "only-B")):
        assert row[name] == counts.get(where, 0)


def test_components_of_pairs():
    traces = pairs()
    source = MemorySource(traces)
    found = contrast(source, SIZE, by="group", pair="pair")
    sides = [
        held(own, lambda t: t.input.labels["pair"], component_shares) for own in groups_of(traces)
    ]
    check(found.rows, plain_rows(*sides, paired=True), by_component, "presence")
    assert found.summary["test"].tolist() == ["mcnemar"]
    assert found.rows["n_pairs"].tolist() == [10] * len(found.rows)
    # Largest difference first.
    assert found.rows["difference"].abs().is_monotonic_decreasing
    pd.testing.assert_frame_equal(
        found.rows, contrast(source, SIZE, by="group", pair="pair").rows, check_exact=True
    )
    assert found.rows.equals(gt.contrast(source, SIZE, by="group", pair="pair").rows)


def test_intervals_against_plain_bootstraps():
    traces = pairs()
    rows = contrast(MemorySource(traces), SIZE, by="group", pair="pair", seed=3).rows
    values = {}
    for side, own in zip("ab", groups_of(traces), strict=True):
        for t in own:
            shares = component_shares(t.subgraph(SIZE))
            for name in set(rows["component"]):
                values.setdefault(name, {}).setdefault(t.input.labels["pair"], {})[side] = (
                    shares.get(name, 0)
                )
    counts = np.random.default_rng(3).multinomial(10, [0.1] * 10, size=1000)
    for row in rows.to_dict("records"):
        by_pair = [values[row["component"]][str(i)] for i in range(10)]
        for column, value_of in (("share_difference", float), ("difference", lambda x: x > 0)):
            own = np.array([float(value_of(x["a"])) - float(value_of(x["b"])) for x in by_pair])
            drawn = [np.mean(np.repeat(own, n)) for n in counts]
            low, high = np.percentile(drawn, [2.5, 97.5])
            assert row[f"{column}_low"] == pytest.approx(low, abs=1e-12)
            assert row[f"{column}_high"] == pytest.approx(high, abs=1e-12)


def test_traces_of_one_input_and_inputs_of_one_pair_are_averaged_first():
    traces = pairs(5)
    # A second position of two inputs, and a second clean input in the first pair.
    for place in (0, 3):
        other = synthetic_trace(900 + place, n=5)
        traces.append(dataclasses.replace(other, input=traces[place].input))
    traces.append(
        synthetic_trace(950, name="more", labels={"group": "clean", "pair": "0"}, text="more")
    )
    source = MemorySource(traces)
    own = list(groups_of(traces))
    for pair, unit in ((None, lambda t: t.input.id), ("pair", lambda t: t.input.labels["pair"])):
        found = contrast(source, SIZE, by="group", pair=pair)
        sides = [held(x, unit, component_shares) for x in own]
        expected = plain_rows(*sides, paired=pair is not None)
        check(found.rows, expected, by_component, "presence")
        assert found.summary["n_inputs_a"].tolist() == [6]
        assert found.summary["n_traces_a"].tolist() == [7]


def test_an_input_holds_what_half_of_its_traces_hold():
    traces = pairs(6)
    traces += [
        dataclasses.replace(synthetic_trace(500 + i, n=7), input=t.input)
        for i, t in enumerate(traces)
    ]
    own = list(groups_of(traces))
    for pair, unit in ((None, lambda t: t.input.id), ("pair", lambda t: t.input.labels["pair"])):
        found = contrast(MemorySource(traces), "k:12", by="group", pair=pair)
        sides = [held(x, unit, component_shares, "k:12") for x in own]
        check(found.rows, plain_rows(*sides, paired=pair is not None), by_component, "presence")
    halves = found.rows[["presence_a", "presence_b"]] * 12
    assert (halves % 2 == 1).any(axis=None)


def test_pairs_are_matched_by_their_label_whatever_the_order():
    traces = pairs(8)
    turned = [
        dataclasses.replace(t, input=dataclasses.replace(t.input, name=f"z-{99 - i}"))
        if t.input.labels["group"] == "corrupt"
        else t
        for i, t in enumerate(traces)
    ]
    expected = contrast(MemorySource(traces), SIZE, by="group", pair="pair").rows
    found = contrast(MemorySource(turned), SIZE, by="group", pair="pair").rows
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("pair", [None, "pair"])
def test_layers(pair):
    traces = pairs()
    found = contrast(MemorySource(traces), SIZE, by="group", pair=pair, level="layer")
    unit = (lambda t: t.input.labels["pair"]) if pair else (lambda t: t.input.id)
    sides = [held(own, unit, layer_shares) for own in groups_of(traces)]
    expected = plain_rows(*sides, paired=pair is not None)
    check(found.rows, expected, lambda row: (row["layer"], row["kind"]), "share")
    assert found.rows["layer"].is_monotonic_increasing
    whole = found.rows[found.rows["kind"] == "all"]
    assert whole["share_a"].sum() == pytest.approx(1)
    assert found.summary["test"].tolist() == ["sign" if pair else "rank-sum"]
    assert found.summary["n_both"].isna().all()


@pytest.mark.parametrize("pair", [None, "pair"])
def test_tokens(pair):
    traces = pairs()
    found = contrast(MemorySource(traces), SIZE, by="group", pair=pair, level="token")
    unit = (lambda t: t.input.labels["pair"]) if pair else (lambda t: t.input.id)
    sides = [held(own, unit, token_shares) for own in groups_of(traces)]
    expected = plain_rows(*sides, paired=pair is not None)
    check(found.rows, expected, lambda row: (row["token"], row["special"]), "share")
    assert found.rows["share_a"].sum() == pytest.approx(1)
    clean = next(groups_of(traces))
    for row in found.rows.to_dict("records"):
        there = [row["token"] in t.tokens for t in clean]
        assert row["in_text_a"] == pytest.approx(np.mean(there))
    assert found.rows.set_index("token")["special"].to_dict()["<s>"]


def test_many_tokens_come_in_parts(monkeypatch):
    source = MemorySource(pairs())
    whole = contrast(source, SIZE, by="group", level="token", pair="pair").rows
    monkeypatch.setattr("graphtrace.analysis.contrast_tokens.AT_ONCE", 3)
    parts = contrast(source, SIZE, by="group", level="token", pair="pair").rows
    pd.testing.assert_frame_equal(whole, parts)


def without_special(shares_of):
    return lambda subgraph: shares_of(subgraph.without_special())


def test_special_tokens_are_left_out():
    traces = pairs()
    source = MemorySource(traces)
    for level, shares_of, key_of, primary in (
        ("component", component_shares, by_component, "presence"),
        ("token", token_shares, lambda row: (row["token"], row["special"]), "share"),
    ):
        found = contrast(source, SIZE, by="group", level=level, exclude_special=True)
        sides = [
            held(own, lambda t: t.input.id, without_special(shares_of)) for own in groups_of(traces)
        ]
        check(found.rows, plain_rows(*sides, paired=False), key_of, primary)
        assert found.summary["trace_edges_a"].iloc[0] < 20


def test_two_models_are_paired_by_input():
    source = study(8, models=("a", "b"))
    traces = list(source.held.values())
    found = contrast(source, SIZE, by="model", between=("b", "a"))
    own = [[t for t in traces if t.model.name == name] for name in "ba"]
    sides = [held(x, lambda t: t.input.id, component_shares) for x in own]
    check(found.rows, plain_rows(*sides, paired=True), by_component, "presence")
    assert set(found.rows["model"]) == {"b@0123456789ab"}
    assert found.rows["n_pairs"].tolist() == [8] * len(found.rows)


def test_two_settings_stand_side_by_side():
    first = pairs(6)
    other = dataclasses.replace(first[0].settings, scorer="l2")
    second = [
        dataclasses.replace(t, settings=other, input=s.input)
        for t, s in zip(pairs(6, start=1000), first, strict=True)
    ]
    source = MemorySource([*first, *second])
    for by, names in (
        ("settings", [first[0].settings.id, other.id]),
        ("scorer", ["l1", "l2"]),
    ):
        found = contrast(source, SIZE, by=by, between=names)
        sides = [held(x, lambda t: t.input.id, component_shares) for x in (first, second)]
        check(found.rows, plain_rows(*sides, paired=True), by_component, "presence")
        (row,) = found.summary.to_dict("records")
        assert (row["settings_a"], row["settings_b"]) == (first[0].settings.id, other.id)
        assert row["n_pairs"] == 12
    with pytest.raises(OptionError, match="mix several settings"):
        contrast(source, SIZE, by="group")
    contrast(source, SIZE, by="group", settings=other.id)
    uneven = MemorySource(
        [
            t
            for t in source.held.values()
            if (t.settings == other) == (t.input.labels["group"] == "clean")
        ]
    )
    with pytest.raises(OptionError, match="compare the settings with --by settings"):
        contrast(uneven, SIZE, by="group")


def test_models_with_other_settings_say_so():
    source = study(4, models=("a", "b"))
    for t in list(source.held.values()):
        if t.model.name == "b":
            del source.held[t.id]
            new = dataclasses.replace(t, settings=dataclasses.replace(t.settings, dtype="bfloat16"))
            source.held[new.id] = new
    with pytest.warns(ContrastWarning, match="differ in more than the model"):
        found = contrast(source, SIZE, by="model")
    assert found.summary["settings_a"].iloc[0] != found.summary["settings_b"].iloc[0]


def test_models_of_other_shapes_are_matched_by_depth():
    small, large = model_info(2, 2, name="small"), model_info(3, 3, name="large", parallel=True)
    traces = [
        synthetic_trace(10 * i + m, n=5, model=model, name=f"line-{i}", text=f"text {i}")
        for i in range(6)
        for m, model in enumerate((small, large))
    ]
    source = MemorySource(traces)
    found = contrast(source, SIZE, by="model", between=("small", "large"))
    sides = [
        held(
            [t for t in traces if t.model is model],
            lambda t: t.input.id,
            lambda g, n=model.n_layers: depth_shares(g, 2, n),
        )
        for model in (small, large)
    ]
    expected = plain_rows(*sides, paired=True)
    check(found.rows, expected, lambda row: (int(row["part"][6]) - 1, row["kind"]), "presence")
    assert set(found.rows["matched"]) == {"depth"}
    assert set(found.rows["depth_from"]) == {0, 0.5}
    layers = contrast(source, SIZE, by="model", between=("small", "large"), level="layer").rows
    assert len(layers) == 8
    assert set(layers["part"]) == {"depth 1/2", "depth 2/2"}
    assert layers[layers["kind"] == "all"]["share_b"].sum() == pytest.approx(1)
    # A third of three layers straddles the halves: its middle decides.
    three = layers.set_index(["part", "kind"])["share_b"]
    whole = [layer_shares(t.subgraph(SIZE)) for t in traces if t.model is large]
    first = np.mean([x.get((0, "all"), 0) for x in whole])
    assert three["depth 1/2", "all"] == pytest.approx(first)


@examples(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.booleans())
def test_swapping_the_sides_mirrors_the_table(seed, n, paired):
    source = MemorySource(pairs(n, start=seed))
    pair = "pair" if paired else None
    for level, key in (("component", ["component"]), ("token", ["token", "special"])):
        one = contrast(source, 1.0, by="group", pair=pair, level=level, draws=50).rows
        other = contrast(
            source, 1.0, by="group", pair=pair, level=level, draws=50, between=("corrupt", "clean")
        ).rows
        one, other = (x.set_index(key).sort_index() for x in (one, other))
        for name in [x for x in one if x.endswith("difference")]:
            np.testing.assert_allclose(one[name], -other[name], atol=1e-12)
            np.testing.assert_allclose(one[f"{name}_low"], -other[f"{name}_high"], atol=1e-12)
        for name in ("share_a", "p", "q"):
            mirrored = name.replace("_a", "_b")
            np.testing.assert_allclose(one[name], other[mirrored], atol=1e-12)
        if level == "component":
            swap = {"only-A": "only-B", "only-B": "only-A"}
            assert one["where"].replace(swap).tolist() == other["where"].tolist()
        assert one["share_difference_low"].isna().all() == (n == 1)


def test_identical_groups_differ_in_nothing():
    traces = pairs(6)
    same = []
    for t in traces:
        group = t.input.labels["group"]
        own = traces[2 * int(t.input.labels["pair"])]
        same.append(
            dataclasses.replace(own, input=dataclasses.replace(t.input, name=group + t.name))
        )
    for pair in ("pair", None):
        rows = contrast(MemorySource(same), SIZE, by="group", pair=pair).rows
        assert (rows["difference"] == 0).all()
        assert rows["share_difference"].abs().max() < 1e-15
        assert not set(rows["where"]) & {"only-A", "only-B"}
        assert (rows["q"] == 1).all()
        if pair:
            assert (rows[["difference_low", "difference_high"]] == 0).all(axis=None)


def test_a_planted_difference_is_found():
    """A head that every clean trace has and no corrupt one."""
    traces = [t for t in pairs(12) if t.n_edges > 0]
    planted = []
    for t in traces:
        names = t.subgraph(1.0).component_names
        keep = names != ("L0H1" if t.input.labels["group"] == "corrupt" else "none")
        planted.append(dataclasses.replace(t, ranked=t.ranked.take(np.flatnonzero(keep))))
    source = MemorySource(planted)
    found = contrast(source, "k:30", by="group", pair="pair")
    first = found.rows.iloc[0]
    assert (first["component"], first["where"]) == ("L0H1", "only-A")
    assert first["presence_b"] == 0
    assert first["p"] == pytest.approx(2 / 2 ** (12 * first["presence_a"]))
    assert first["q"] < 0.05
    assert found.summary["n_found"].iloc[0] >= 1
    turned = contrast(source, "k:30", by="group", pair="pair", between=("corrupt", "clean"))
    first = turned.rows.iloc[0]
    assert (first["component"], first["where"], first["presence_a"]) == ("L0H1", "only-B", 0)


def test_the_threshold_is_a_parameter():
    source = MemorySource(pairs())
    rows = contrast(source, SIZE, by="group", core=1.0).rows
    a, b = rows["presence_a"] == 1, rows["presence_b"] == 1
    expected = np.select([a & b, a, b], ["both", "only-A", "only-B"], "neither")
    assert rows["where"].tolist() == expected.tolist()
    assert "neither" in set(rows["where"])
    for core in (0, 1.5):
        with pytest.raises(OptionError, match="no share of inputs"):
            contrast(source, SIZE, by="group", core=core)


def test_sizes_of_the_grid_are_read_from_the_counts():
    source = MemorySource(pairs(4, models=("a", "b")))
    traces = source.traces()
    for size in (0.2, 1.0):
        passed = [x["counts"] for _, x in measured(source, traces, size, CORE_MEASURE)]
        expected = contrast(source, size, by="group").rows
        reads = []

        def counting(*given, reads=reads):
            reads.append(given)
            return MemorySource.subgraph(source, *given)

        source.subgraph = counting
        found = counts_at_size(source, traces, size)
        assert len(reads) == 2, "one per model, for its shape"
        del source.subgraph
        np.testing.assert_array_equal(found.counts, passed)
        source.component_counts = lambda ids: MemorySource.component_counts(source, ids).iloc[:0]
        np.testing.assert_array_equal(counts_at_size(source, traces, size).counts, passed)
        pd.testing.assert_frame_equal(contrast(source, size, by="group").rows, expected)
        del source.component_counts
    # 0.08 of the 43 edges of 4 tokens are 3, and a path has 4.
    with pytest.warns(ShortTraceWarning, match="8 of 16 traces"):
        found = counts_at_size(source, traces, 0.08)
    with pytest.warns(ShortTraceWarning, match="8 of 16 traces"):
        passed = [x["counts"] for _, x in measured(source, traces, 0.08, CORE_MEASURE)]
    np.testing.assert_array_equal(found.counts, passed)
    # In parallel blocks a path has 2 edges: 0.04 of the 38 edges of 4 tokens are 1.
    source = MemorySource(pairs(4, parallel=True))
    with pytest.warns(ShortTraceWarning, match="4 of 8 traces"):
        counts_at_size(source, source.traces(), 0.04)


def test_archive_and_store_give_the_same(tmp_path):
    write_traces(tmp_path / "archive", pairs(6, models=("a", "b")), keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    memory = MemorySource(pairs(6, models=("a", "b")))
    with (
        gt.open_archive(tmp_path / "archive") as archive,
        gt.open_store(tmp_path / "store") as store,
    ):
        for size in (0.2, SIZE):
            for options in (
                {"by": "group", "pair": "pair"},
                {"by": "group", "level": "token"},
                {"by": "model", "level": "layer"},
                {"by": "group", "exclude_special": True},
            ):
                expected = contrast(memory, size, **options)
                for source in (archive, store):
                    found = contrast(source, size, **options)
                    pd.testing.assert_frame_equal(found.rows, expected.rows, check_dtype=False)
                    pd.testing.assert_frame_equal(
                        found.summary, expected.summary, check_dtype=False
                    )


# ------------------------------------------------------------------------------------ bad input


def test_one_value_or_three_values():
    source = MemorySource(pairs(3))
    with pytest.raises(OptionError, match="needs two values of group, and these traces have 1"):
        contrast(source, SIZE, by="group", where=["group=clean"])
    three = MemorySource(pairs(3, groups=("x", "y", "z")))
    listed = r"group has 3 values here \(x, y, z\); pick two with --between.*--between x,y"
    with pytest.raises(OptionError, match=listed):
        contrast(three, SIZE, by="group")
    found = contrast(three, SIZE, by="group", between=("z", "x"), pair="pair")
    assert (found.rows["a"][0], found.rows["b"][0]) == ("z", "x")
    with pytest.raises(OptionError, match="no trace where group is 'w'; values here: x, y, z"):
        contrast(three, SIZE, by="group", between=("x", "w"))
    with pytest.raises(OptionError, match="both sides are group x"):
        contrast(three, SIZE, by="group", between=("x", "x"))
    for between in (("x",), "xy", ("x", "y", "z")):
        with pytest.raises(OptionError, match="not two values"):
            contrast(three, SIZE, by="group", between=between)


def test_unknown_keys_levels_and_keywords():
    source = MemorySource(pairs(3))
    with pytest.raises(OptionError, match="no trace has a label 'colour'"):
        contrast(source, SIZE, by="colour")
    with pytest.raises(OptionError, match="no trace has a label 'couple'"):
        contrast(source, SIZE, by="group", pair="couple")
    with pytest.raises(OptionError, match="level 'node' is none of"):
        contrast(source, SIZE, by="group", level="node")
    with pytest.raises(OptionError, match="no keyword 'setting'"):
        contrast(source, SIZE, by="group", setting="s")
    with pytest.raises(OptionError, match="no trace of model"):
        contrast(source, SIZE, by="group", models=["x"])
    with pytest.raises(OptionError, match="no traces here yet"):
        contrast(MemorySource([]), SIZE, by="group")


def test_inputs_without_a_partner_are_counted_and_said():
    traces = pairs(5)[:-1]
    alone = synthetic_trace(77, name="alone", text="x", labels={"group": "corrupt", "pair": "9"})
    none = synthetic_trace(78, name="none", text="y", labels={"group": "corrupt"})
    other = synthetic_trace(79, name="other", text="z", labels={"group": "clean"})
    source = MemorySource([*traces, alone, none, other])
    with pytest.warns(ContrastWarning, match="2 inputs of clean and 2 of corrupt.*4 pairs"):
        found = contrast(source, SIZE, by="group", pair="pair")
    (row,) = found.summary.to_dict("records")
    assert (row["n_pairs"], row["unpaired_a"], row["unpaired_b"]) == (4, 2, 2)
    assert (row["n_inputs_a"], row["n_traces_b"]) == (4, 4)
    expected = contrast(MemorySource(pairs(4)), SIZE, by="group", pair="pair")
    pd.testing.assert_frame_equal(found.rows, expected.rows)
    apart = [
        t for t in traces if (t.input.labels["group"] == "clean") == (t.input.labels["pair"] < "2")
    ]
    with pytest.raises(OptionError, match="no value of pair is on both sides"):
        contrast(MemorySource(apart), SIZE, by="group", pair="pair")


def test_models_without_a_common_input():
    one, two = (study(3, models=(name,)).held for name in "ab")
    two = {
        t.id: t
        for t in (
            dataclasses.replace(x, input=dataclasses.replace(x.input, name=f"other {x.name}"))
            for x in two.values()
        )
    }
    with pytest.raises(OptionError, match="no input is on both sides"):
        contrast(MemorySource([*one.values(), *two.values()]), SIZE, by="model")


def test_models_with_one_side_only_are_left_out_and_named():
    traces = pairs(3, models=("a", "b"))
    traces = [t for t in traces if t.model.name == "a" or t.input.labels["group"] == "clean"]
    with pytest.warns(ContrastWarning, match="left out.*b@0123456789ab"):
        found = contrast(MemorySource(traces), SIZE, by="group")
    assert found.summary["model"].tolist() == ["a@0123456789ab"]
    apart = [t for t in traces if t.model.name == "b" or t.input.labels["group"] == "corrupt"]
    with pytest.raises(OptionError, match="no model has traces of both"):
        contrast(MemorySource(apart), SIZE, by="group")


def test_one_input_on_each_side_has_no_interval_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = contrast(MemorySource(pairs(1)), SIZE, by="group").rows
    ends = ["difference_low", "difference_high", "share_difference_low", "share_difference_high"]
    assert rows[ends].isna().all(axis=None)
    assert rows[["difference", "p", "q"]].notna().all(axis=None)


def test_positions_of_the_same_inputs_are_pairs():
    inputs = [t.input for t in pairs(4)]
    traces = [
        dataclasses.replace(synthetic_trace(10 * i + n, n=n), input=input_)
        for i, input_ in enumerate(inputs)
        for n in (4, 6)
    ]
    found = contrast(MemorySource(traces), SIZE, by="position")
    assert found.summary[["a", "b", "n_pairs", "test"]].to_numpy().tolist() == [
        ["3", "5", 8, "mcnemar"]
    ]
    sides = [
        held([t for t in traces if t.position == p], lambda t: t.input.id, component_shares)
        for p in (3, 5)
    ]
    check(found.rows, plain_rows(*sides, paired=True), by_component, "presence")
