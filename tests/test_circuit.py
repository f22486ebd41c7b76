"""A known circuit in traces: recall, precision and AUROC against plain loops, and what chance
gives against enumerated and hypergeometric draws."""

import dataclasses
import json

import neo4j_server
import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves
from builders_source import MemorySource, study
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pairs_auroc, random_circuits
from scipy.stats import hypergeom, mannwhitneyu

from graphtrace import schema
from graphtrace.analysis.circuit import MEASURES, circuit
from graphtrace.analysis.component_order import ORDERS
from graphtrace.analysis.recovery import (
    auroc,
    expected_share,
    kind_ranks,
    random_members,
    recovery,
)
from graphtrace.analysis.reference import members, read_reference
from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.component_names import Shape
from graphtrace.errors import InputError, OptionError, SizeError
from graphtrace.ingestion import ingest
from graphtrace.stores.base import open_store
from graphtrace.traces import Settings

# ------------------------------------------------------------------------------------- numbers

SETS = st.lists(
    st.tuples(
        st.sampled_from([-np.inf, -2.0, 0.0, 1.5, 7.0]), st.sampled_from("ab"), st.booleans()
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=300, deadline=None)
@given(SETS)
def test_auroc_against_all_pairs(things):
    goodness, kinds, chosen = zip(*things, strict=True)
    kind_C, member_C = np.array(kinds), np.array(chosen)
    found = auroc(kind_ranks(np.array([goodness]), kind_C), kind_C, member_C)
    expected = pairs_auroc(goodness, kinds, chosen)
    if expected is None:
        assert np.isnan(found).all()
    else:
        assert found[0] == pytest.approx(float(expected), abs=1e-12)


def test_auroc_of_one_kind_is_mann_whitneys():
    rng = np.random.default_rng(0)
    goodness_SC = rng.integers(0, 6, (5, 30)).astype(float)
    member_C = np.arange(30) < 11
    found = auroc(kind_ranks(goodness_SC, np.full(30, "a")), np.full(30, "a"), member_C)
    for values_C, area in zip(goodness_SC, found, strict=True):
        u = mannwhitneyu(values_C[member_C], values_C[~member_C]).statistic
        assert area == pytest.approx(u / (11 * 19), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(SETS)
def test_chance_against_every_random_circuit(things):
    goodness, kinds, chosen = zip(*things, strict=True)
    kind_C, member_C = np.array(kinds), np.array(chosen)
    share_SC = np.array([[0.25 * (x > 0) for x in goodness], [max(x, -1) for x in goodness]])
    drawn = random_circuits(kinds, chosen)
    expected = [np.mean([sum(row[i] for i in one) for one in drawn]) for row in share_SC]
    np.testing.assert_allclose(expected_share(share_SC, kind_C, member_C), expected, atol=1e-12)
    areas = [pairs_auroc(goodness, kinds, [i in one for i in range(len(kinds))]) for one in drawn]
    if areas[0] is not None:
        assert np.mean([float(x) for x in areas]) == pytest.approx(0.5)
    some = random_members(kind_C, member_C, 40, seed=3)
    assert {tuple(np.flatnonzero(x)) for x in some} <= set(map(tuple, map(sorted, drawn)))


def test_all_random_circuits_are_as_probable():
    kind_C, member_C = np.array(list("aabbb")), np.array([True, False, True, True, False])
    drawn_DC = random_members(kind_C, member_C, 6000, seed=0)
    _, counts = np.unique(drawn_DC, axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 4 * np.sqrt(1000 * 5 / 6)


def one_trace(n_heads, n_members, n_present):
    """The arguments of `recovery` for one trace that holds the first `n_present` of the heads."""
    best_TC = np.arange(n_heads)[None]
    kind_C, member_C = np.full(n_heads, "attention"), np.arange(n_heads) % 3 == 0
    member_C &= member_C.cumsum() <= n_members
    rank_SC = kind_ranks(np.where(best_TC < n_present, -best_TC, -np.inf), kind_C)
    k_TS = np.array([[n_present]])
    return best_TC, k_TS, ["a"], auroc(rank_SC, kind_C, member_C)[None], rank_SC, kind_C, member_C


@pytest.mark.parametrize("n_present", [1, 7, 30, 59])
def test_chance_of_one_trace_is_hypergeometric(n_present):
    found = recovery(*one_trace(60, 12, n_present), draws=20_000)
    law = hypergeom(60, n_present, 12)
    assert found.recall.chance[0] == pytest.approx(law.mean() / 12)
    assert found.precision.chance[0] == pytest.approx(12 / 60)
    low, high = law.ppf([0.025, 0.975])
    assert found.recall.chance_low[0] * 12 == pytest.approx(low, abs=0.01)
    assert found.recall.chance_high[0] * 12 == pytest.approx(high, abs=0.01)
    assert found.precision.chance_high[0] * n_present == pytest.approx(high, abs=0.01)
    assert np.isnan(found.recall.low[0])


def test_chance_auroc_has_the_spread_of_mann_whitneys_u():
    found = recovery(*one_trace(60, 12, 60), draws=20_000)
    error = np.sqrt((60 + 1) / (12 * 12 * 48))
    assert found.auroc.chance[0] == pytest.approx(0.5)
    assert found.auroc.chance_low[0] == pytest.approx(0.5 - 1.96 * error, abs=0.01)
    assert found.auroc.chance_high[0] == pytest.approx(0.5 + 1.96 * error, abs=0.01)


# ------------------------------------------------------------------- against plain loops, by size

KNOWN = {"clean": {"early": ["L0H1", "mlp1"], "late": ["1.0"]}, "corrupt": ["L1H1"]}
NAMES = {"clean": ["L0H1", "L1.mlp", "L1H0"], "corrupt": ["L1H1"]}


def two_groups(parallel=False):
    """Five inputs in two groups; the first has two traces."""
    source = study(5, parallel=parallel)
    second = synthetic_trace(
        77,
        n=4,
        model=model_info(parallel=parallel),
        name="line-0",
        text="text 0",
        labels={"group": "clean"},
    )
    source.held[second.id] = second
    return source


def plain_goodness(trace, name, k, all_k, order):
    """How good a component is in the first k edges."""
    edges = trace.edges(f"k:{trace.n_kept}").head(k)
    own = edges[edges["component"] == name]
    if len(own) == 0:
        return float("-inf")
    return {
        "best-rank": -own["rank"].min(),
        "first-size": sum(own["rank"].min() < x for x in all_k),
        "score": own["score"].astype(float).sum(),
        "edges": len(own),
    }[order]


def plain_values(traces, names, candidates, sizes, at, order):
    """measure -> input -> values of its traces, at one of the sizes."""
    values = {name: {} for name in MEASURES}
    kinds, member = [kind for _, kind in candidates], [name in names for name, _ in candidates]
    for trace in traces:
        all_k = [trace.n_edges_at(size) for size in sizes]
        good = [plain_goodness(trace, name, all_k[at], all_k, order) for name, _ in candidates]
        inside = [x > float("-inf") for x in good]
        hits = sum(a and b for a, b in zip(inside, member, strict=True))
        own = {"recall": hits / len(names), "auroc": float(pairs_auroc(good, kinds, member))}
        if any(inside):
            own["precision"] = hits / sum(inside)
        for name, value in own.items():
            values[name].setdefault(trace.input.id, []).append(value)
    return values


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("parallel", [False, True])
def test_against_plain_loops(order, parallel):
    source, sizes = two_groups(parallel), ["k:3", 0.1, 0.3, "k:12"]
    found = circuit(source, KNOWN, sizes, by=["group"], order=order, draws=200, seed=1)
    assert found.summary["size"].tolist() == ["k:3", "0.1", "0.3", "k:12"] * 2
    for row in found.summary.to_dict("records"):
        group, at = row["group"], list(map(str, sizes)).index(row["size"])
        kinds = {schema.ATTENTION, schema.MLP} if group == "clean" else {schema.ATTENTION}
        table = schema.components(2, 2, parallel)
        candidates = [(name, kind) for name, kind, *_ in table if kind in kinds]
        own = [t for t in source.held.values() if t.input.labels["group"] == group]
        assert (row["n_inputs"], row["n_traces"]) == ((3, 4) if group == "clean" else (2, 2))
        assert (row["n_reference"], row["n_candidates"]) == (len(NAMES[group]), len(candidates))
        assert row["trace_edges"] == np.mean([t.n_edges_at(sizes[at]) for t in own])
        values = plain_values(own, NAMES[group], candidates, sizes, at, order)
        for name, by_input in values.items():
            means = np.array([np.mean(x) for x in by_input.values()])
            ends = bootstrap_mean(means[:, None], 200, 1)
            assert row[name] == pytest.approx(means.mean(), abs=1e-12)
            assert row[f"{name}_low"] == pytest.approx(ends.low[0], abs=1e-12, nan_ok=True)
            assert row[f"{name}_high"] == pytest.approx(ends.high[0], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("chance", ["kind", "layer"])
def test_chance_is_the_mean_over_all_circuits_of_that_make_up(chance):
    source, sizes = two_groups(), ["k:2", "k:5", 0.2]
    options = {"where": ["group=clean"], "by": ["group"], "draws": 3000, "chance": chance}
    found = circuit(source, KNOWN, sizes, **options)
    own = [t for t in source.held.values() if t.input.labels["group"] == "clean"]
    table = schema.components(2, 2, False)
    candidates = [(name, kind) for name, kind, *_ in table if kind != schema.RESIDUAL]
    strata = [x if chance == "kind" else (x, name[:2]) for name, x in candidates]
    member = [x in NAMES["clean"] for x, _ in candidates]
    assert len(random_circuits(strata, member)) == (12 if chance == "kind" else 4)
    for at, row in enumerate(found.summary.to_dict("records")):
        drawn = {name: [] for name in MEASURES}
        for one in random_circuits(strata, member):
            names = [candidates[i][0] for i in one]
            values = plain_values(own, names, candidates, sizes, at, "best-rank")
            for name, by_input in values.items():
                drawn[name].append(np.mean([np.mean(x) for x in by_input.values()]))
            if at == 0:  # so small that some inputs have no candidate, and so no precision
                assert 0 < len(values["precision"]) < len(values["recall"])
        for name, values in drawn.items():
            assert row[f"{name}_chance"] == pytest.approx(np.mean(values), abs=1e-12)
            for end, percent in (("low", 2.5), ("high", 97.5)):
                assert row[f"{name}_chance_{end}"] in [pytest.approx(x) for x in values]
                near = np.percentile(values, [percent - 2, percent + 2], method="inverted_cdf")
                assert near[0] - 1e-9 <= row[f"{name}_chance_{end}"] <= near[1] + 1e-9


def test_roles_have_recalls_of_their_own():
    found = circuit(two_groups(), KNOWN, ["k:5", 0.2], by=["group"])
    roles = found.roles
    assert list(roles.columns[:3]) == ["model", "group", "size"]
    clean = roles[roles["group"] == "clean"]
    assert clean["role"].tolist() == ["early", "early", "late", "late"]
    assert clean["n_reference"].tolist() == [2, 2, 1, 1]
    assert roles[roles["group"] == "corrupt"]["role"].tolist() == ["", ""]
    for size in ("k:5", "0.2"):
        own = clean[clean["size"] == size]
        whole = found.summary.query("group == 'clean' and size == @size")["recall"].item()
        assert (own["recall"] * own["n_reference"]).sum() / 3 == pytest.approx(whole)
    alone = circuit(two_groups(), ["1.0"], ["k:5", 0.2], where=["group=clean"]).summary
    ends = ["recall", "recall_low", "recall_high", "recall_chance"]
    late = clean[clean["role"] == "late"][ends]
    np.testing.assert_allclose(late, alone[ends])


def test_the_components_of_a_circuit():
    source, sizes = two_groups(), ["k:9", 0.1]
    frame = circuit(source, KNOWN, sizes, by=["group"]).components
    clean = frame[frame["group"] == "clean"].set_index("component")
    assert set(clean.index) == {"L0H0", "L0H1", "L0.mlp", "L1H0", "L1H1", "L1.mlp"}
    assert clean[clean["in_reference"]].index.sort_values().tolist() == ["L0H1", "L1.mlp", "L1H0"]
    assert clean["role"]["L0H1"] == "early"
    assert clean["role"]["L0H0"] == ""
    assert clean["place"].is_monotonic_increasing
    assert clean.groupby("kind")["place"].sum().to_dict() == {"attention": 10, "mlp": 3}
    own = [t for t in source.held.values() if t.input.labels["group"] == "clean"]
    order = sorted(sizes, key=lambda x: np.mean([t.n_edges_at(x) for t in own]))
    for name, row in clean.iterrows():
        share = {}
        for size in order:
            by_input = {}
            for t in own:
                held = name in set(t.components(f"k:{t.n_edges_at(size)}")["component"])
                by_input.setdefault(t.input.id, []).append(held)
            share[str(size)] = np.mean([np.mean(x) for x in by_input.values()])
        assert row["presence"] == pytest.approx(share[str(order[-1])])
        assert row["first_size"] == next((s for s in share if share[s] >= 0.5), None)
        held = [t.components(order[-1]).set_index("component")["best_rank"].to_dict() for t in own]
        (_, median, *_) = sorted(x.get(name, np.inf) for x in held)
        assert (None if row["best_rank"] is pd.NA else row["best_rank"]) == (
            None if median == np.inf else median
        )


def test_a_component_of_several_roles_counts_once():
    known = {"t": {"a": ["0.0", "L0H0", "1.1"], "b": ["a0.h0"]}}
    found = members(read_reference(known), "t", Shape(2, 2))
    assert found.roles == {0: ("a", "b"), 6: ("a",)}
    assert (found.of_role("b"), found.names) == ([0], ("a", "b"))
    frame = circuit(study(2), known, ["k:5"])
    assert frame.summary["n_reference"].tolist() == [2]
    assert frame.components.set_index("component")["role"]["L0H0"] == "a, b"


def test_a_kind_that_is_in_the_circuit_as_a_whole_has_no_auroc():
    found = circuit(study(3), ["m0", "m1"], ["k:5", "k:30"]).summary
    assert found[["auroc", "auroc_low", "auroc_chance", "auroc_chance_high"]].isna().all(axis=None)
    assert found["precision"].dropna().eq(1).all()
    assert found["recall_chance"].tolist() == found["recall"].tolist()


def test_default_sizes_are_those_at_which_every_trace_has_edges():
    short = synthetic_trace(1, n=3, keep=20)
    traces = [short, synthetic_trace(2, n=9, name="long", keep=60)]
    found = circuit(MemorySource(traces), ["0.0"]).summary["size"].astype(float)
    assert found.min() * short.n_edges >= 1
    assert all((t.n_edges * found.max()) // 1 <= t.n_kept for t in traces)
    assert len(found) > 3
    tiny = [synthetic_trace(1, n=3, keep=1), synthetic_trace(2, n=12, name="long", keep=1)]
    with pytest.raises(OptionError, match=r"at no size of the grid .*k:EDGES"):
        circuit(MemorySource(tiny), ["0.0"])


def test_sizes_by_quality():
    source = two_groups()
    found = circuit(source, ["0.0"], ["tv:0.3", "k:5"]).summary
    expected = np.mean([t.n_edges_at("tv:0.3") for t in source.held.values()])
    assert found["trace_edges"].tolist() == [expected, 5]
    mixed = [
        with_curves(t, ("necessity:zero:mlp", "sufficiency:zero:mlp")[i % 2])
        for i, t in enumerate(source.held.values())
    ]
    with pytest.raises(OptionError, match="several kinds"):
        circuit(MemorySource(mixed), ["0.0"], ["tv:0.3"])
    assert len(circuit(MemorySource(mixed), ["0.0"], ["k:5"]).summary) == 1


# ----------------------------------------------------------------------------- stores, archives


@pytest.fixture(scope="module", params=["embedded", "neo4j"])
def kept(request, tmp_path_factory):
    """(archive, store) of the same traces, 20 edges of each."""
    folder = tmp_path_factory.mktemp("kept")
    url = folder / "store"
    if request.param == "neo4j":
        url = request.getfixturevalue("server")
        neo4j_server.empty(url)
    write_traces(folder / "archive", list(two_groups().held.values()), keep="k:20")
    ingest(folder / "archive", url)
    with open_archive(folder / "archive") as archive, open_store(url) as store:
        yield archive, store


@pytest.mark.parametrize("order", ORDERS)
def test_a_store_gives_the_numbers_of_its_archive(order, kept):
    archive, store = kept
    options = {"by": ["group"], "order": order, "draws": 50}
    for sizes in (["k:3", "k:9"], ["k:20", 0.05, "tv:0.6"]):
        expected = circuit(archive, KNOWN, sizes, **options)
        for ours, theirs in zip(circuit(store, KNOWN, sizes, **options), expected, strict=True):
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for source in (store, archive):
        with pytest.raises(SizeError, match="21"):
            circuit(source, KNOWN, ["k:21"], **options)


def test_first_edges_are_those_of_the_size_asked_for(kept):
    archive, store = kept
    for k in range(1, 20):
        expected = circuit(archive, KNOWN, [f"k:{k}"], by=["group"], draws=2).components
        found = circuit(store, KNOWN, [f"k:{k}"], by=["group"], draws=2).components
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert not (found["best_rank"] >= k).any()


def test_what_traces_use_is_their_component_frame(kept):
    archive, store = kept
    ids = sorted(archive.ids())
    found = store.component_uses(ids[1:])
    assert found["trace"].drop_duplicates().tolist() == ids[1:]
    for trace, own in found.groupby("trace"):
        expected = archive[trace].components("k:20")
        assert own["component"].tolist() == expected["component"].tolist()
        for name in ("n_edges", "best_rank"):
            assert own[name].tolist() == expected[name].tolist()
        np.testing.assert_allclose(own["score"], expected["score"], rtol=1e-6)
    assert store.component_uses(["t0"]).empty


def test_a_store_is_not_asked_for_edges_where_its_relationships_say_it(tmp_path, monkeypatch):
    write_traces(tmp_path / "archive", list(two_groups().held.values()), keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        asked, subgraph = [], type(store).subgraph
        monkeypatch.setattr(
            type(store), "subgraph", lambda *args: asked.append(args[2]) or subgraph(*args)
        )
        circuit(store, KNOWN, ["k:5"], by=["group"])
        assert asked == ["k:1"]  # the model's shape


# --------------------------------------------------------------------------------- what is wrong


def test_the_forms_of_a_reference(tmp_path):
    path = tmp_path / "heads.json"
    for text, tasks in (
        ('["9.9", [10, 0], "mlp3"]', {None: {"": ("9.9", "10.0", "mlp3")}}),
        ('{"heads": ["9.9"], "mlps": ["m1"]}', {None: {"": ("9.9", "m1")}}),
        ('{"heads": ["9.9"], "mlps": []}', {None: {"": ("9.9",)}}),
        (
            '{"ioi": ["9.9"], "gt": {"mid": ["m1"]}}',
            {"ioi": {"": ("9.9",)}, "gt": {"mid": ("m1",)}},
        ),
    ):
        path.write_text(text)
        assert read_reference(path).tasks == read_reference(json.loads(text)).tasks == tasks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is empty"),
        ("{}", "is empty"),
        ('{"heads": []}', "is empty"),
        ('{"ioi": []}', "task 'ioi' is empty"),
        ('{"ioi": {}}', "task 'ioi' is empty"),
        ('{"ioi": {"mover": []}}', "task 'ioi', role 'mover' is empty"),
        ("[9.10]", r"9\.1 is a number; write a head as text"),
        ("[9]", "9 is no component"),
        ("[[1, 2, 3]]", "no component"),
        ('"9.9"', "must be a list"),
        ('{"ioi": "9.9"}', "task 'ioi' is '9.9'; it must be a list"),
        ("[9.9", "is no JSON"),
    ],
)
def test_references_that_mean_nothing(text, message, tmp_path):
    path = tmp_path / "heads.json"
    path.write_text(text)
    with pytest.raises((OptionError, InputError), match=message) as told:
        read_reference(path)
    assert str(path) in str(told.value)


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        read_reference("nowhere.json")


def test_what_does_not_fit_the_traces():
    source = two_groups()
    with pytest.raises(OptionError, match=r"'L99H3'.*2 layers \(0 to 1\) of 2 heads"):
        circuit(source, ["L99H3"], ["k:5"])
    with pytest.raises(OptionError, match="'head 3' cannot be read"):
        circuit(source, ["head 3"], ["k:5"])
    with pytest.raises(OptionError, match=r"2 tasks \(clean, corrupt\).*--by task"):
        circuit(source, KNOWN, ["k:5"])
    with pytest.raises(OptionError, match=r"no trace has group 'ioi'.*'clean', 'corrupt'"):
        circuit(source, KNOWN | {"ioi": ["0.0"]}, ["k:5"], by=["group"])
    one = {"clean": ["0.0"]}
    with pytest.raises(
        OptionError, match=r"no circuit for the traces with group 'corrupt'.*--where"
    ):
        circuit(source, one, ["k:5"], by=["group"])
    with pytest.raises(OptionError, match="no trace has a label 'task'"):
        circuit(source, one, ["k:5"], by=["task"])
    with pytest.raises(OptionError, match="order 'beauty' is none of best-rank"):
        circuit(source, one, ["k:5"], order="beauty")
    with pytest.raises(OptionError, match="chance 'luck' is none of kind, layer"):
        circuit(source, one, ["k:5"], chance="luck")
    # A filter leaves a task out on purpose, and one task needs no label.
    assert set(
        circuit(source, KNOWN, ["k:5"], where=["group=clean"], by=["group"]).summary["group"]
    ) == {"clean"}
    assert circuit(source, one, ["k:5"]).summary["n_traces"].tolist() == [6]


def test_models_of_other_shapes_are_told_apart():
    traces = [synthetic_trace(i, model=model_info(i + 2, name=f"m{i}")) for i in range(2)]
    with pytest.raises(OptionError, match=r"m0@.*: 2 layers of 2 heads; m1@.*: 3 layers.*--model"):
        circuit(MemorySource(traces), ["0.0"], ["k:5"])
    assert (
        circuit(MemorySource(traces), ["2.0"], ["k:5"], models=["m1"]).summary["n_traces"][0] == 1
    )
    alike = [synthetic_trace(i, model=model_info(name=f"m{i}")) for i in range(2)]
    assert circuit(MemorySource(alike), ["0.0"], ["k:5"]).summary["model"].tolist() == [
        "m0@0123456789ab",
        "m1@0123456789ab",
    ]


def test_two_settings_are_not_pooled():
    trace = synthetic_trace(1)
    other = dataclasses.replace(trace, settings=Settings(scorer="l2"))
    with pytest.raises(OptionError, match="mix several settings"):
        circuit(MemorySource([trace, other]), ["0.0"], ["k:5"])
    found = circuit(MemorySource([trace, other]), ["0.0"], ["k:5"], settings=other.settings.id)
    assert found.summary["n_traces"].tolist() == [1]
