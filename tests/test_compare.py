"""Two traces side by side, against sets of edges in plain Python."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import graphtrace as gt
from graphtrace.analysis.compare import align, compare
from graphtrace.archive_write import write_traces
from graphtrace.cli import app as module
from graphtrace.errors import OptionError, SizeError, TraceNotFoundError
from graphtrace.ingestion import ingest
from graphtrace.sizes import ShortTraceWarning

pytestmark = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")
TEXT = ["<s>", " the", " cat", " sat", " on", " a", " mat"]
OTHER = ["<s>", " the", " black", " cat", " sat", " on", " mat", " ."]


def with_tokens(trace, tokens, name):
    input_ = dataclasses.replace(trace.input, name=name, text="".join(tokens))
    return dataclasses.replace(trace, tokens=list(tokens), input=input_)


def two(tokens_a=TEXT, tokens_b=OTHER, seeds=(1, 2), **options):
    """A source with the traces `a` and `b` of these tokens."""
    return MemorySource(
        [
            with_tokens(synthetic_trace(seed, n=len(tokens), **options), tokens, name)
            for seed, tokens, name in zip(seeds, (tokens_a, tokens_b), "ab", strict=True)
        ]
    )


def edge_set(trace, size, place):
    """{(kind, level, head, source, target): rank} with positions by `place`, None left as it is."""
    found = {}
    for row in trace.subgraph(size).edge_frame().to_dict("records"):
        head = -1 if pd.isna(row["head"]) else int(row["head"])
        ends = (place[row["source_position"]], place[row["target_position"]])
        own = (trace.name, row["source_position"], row["target_position"]) if None in ends else ends
        found[row["kind"], row["target_level"], head, own] = row["rank"]
    return found


def places(tokens_a, tokens_b):
    to_b = [None if x < 0 else x for x in align(tokens_a, tokens_b).tolist()]
    of_b = [x if x in to_b else None for x in range(len(tokens_b))]
    return to_b, of_b


def check_sizes(source, found):
    a, b = (source.held[x] for x in found.traces)
    to_b, of_b = places(a.tokens, b.tokens)
    for row in found.sizes.to_dict("records"):
        own_a, own_b = edge_set(a, row["size"], to_b), edge_set(b, row["size"], of_b)
        shared = set(own_a) & set(own_b)
        assert (row["n_a"], row["n_b"], row["shared"]) == (len(own_a), len(own_b), len(shared))
        assert (row["only_a"], row["only_b"]) == (
            len(set(own_a) - shared),
            len(set(own_b) - shared),
        )
        union = len(set(own_a) | set(own_b))
        assert row["jaccard"] == pytest.approx(len(shared) / union)
        for name, own in (("a", own_a), ("b", own_b)):
            assert row[f"unaligned_{name}"] == sum(len(key[3]) == 3 for key in own)
        used = [set(x.subgraph(row["size"]).component_names) for x in (a, b)]
        assert (row["components_a"], row["components_b"]) == tuple(map(len, used))
        assert row["shared_components"] == len(used[0] & used[1])
        assert row["component_jaccard"] == len(used[0] & used[1]) / len(used[0] | used[1])


def test_shared_edges_by_size():
    source = two()
    found = compare(source, "a", "b")
    check_sizes(source, found)
    assert found.sizes["size"].iloc[-1] == "1"
    assert (found.sizes[["n_a", "n_b"]] >= 1).all(axis=None)
    assert 0 < found.sizes["jaccard"].iloc[-1] < 1
    assert found.sizes["unaligned_b"].iloc[-1] > 0


WORD = st.sampled_from([" a", " b", " c", " d"])


@examples(max_examples=60)
@given(
    st.lists(WORD, min_size=1, max_size=6),
    st.lists(WORD, min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([None, ["k:7"], [0.3, "k:2"], ["tv:0.5"]]),
)
def test_any_two_texts(tokens_a, tokens_b, parallel, sizes):
    source = two(tokens_a, tokens_b, model=model_info(2, 2, parallel=parallel))
    found = compare(source, "a", "b", sizes)
    check_sizes(source, found)
    again = compare(source, "b", "a", sizes)
    mirrored = {f"{x}_a": f"{x}_b" for x in ("n", "only", "unaligned", "components")}
    mirrored |= {b: a for a, b in mirrored.items()}
    if {*map(tuple, partners(found))} == {*map(tuple, partners(again)[:, ::-1])}:
        renamed = again.sizes.rename(columns=mirrored)[found.sizes.columns]
        pd.testing.assert_frame_equal(renamed, found.sizes)


def partners(found):
    aligned = found.tokens.dropna(subset=["position_a", "position_b"])
    return aligned[["position_a", "position_b"]].to_numpy(int)


@given(st.lists(WORD, max_size=7), st.lists(WORD, max_size=7))
def test_alignment_keeps_texts_and_their_order(a, b):
    found = align(a, b)
    used = found[found >= 0]
    assert len(found) == len(a)
    assert (np.diff(used) > 0).all()
    assert all(a[i] == b[j] for i, j in enumerate(found) if j >= 0)
    if a == b:
        assert found.tolist() == list(range(len(a)))
    if not set(a) & set(b):
        assert len(used) == 0
    # Never better than the longest common subsequence, and at least one where a text is shared.
    best = max(
        n
        for n in range(min(len(a), len(b)) + 1)
        if n == 0 or {*itertools.combinations(a, n)} & {*itertools.combinations(b, n)}
    )
    assert min(best, 1) <= len(used) <= best


def test_alignment_of_an_example():
    assert align(TEXT, OTHER).tolist() == [0, 1, 3, 4, 5, -1, 6]
    tokens = compare(two(), "a", "b").tokens
    assert tokens["token_a"].tolist() == [
        "<s>",
        " the",
        None,
        " cat",
        " sat",
        " on",
        " a",
        " mat",
        None,
    ]
    assert tokens["token_b"].tolist() == [
        "<s>",
        " the",
        " black",
        " cat",
        " sat",
        " on",
        None,
        " mat",
        " .",
    ]
    assert tokens["position_a"].dropna().tolist() == list(range(7))
    assert tokens["position_b"].dropna().tolist() == list(range(8))


def test_one_trace_with_itself_shares_all():
    source = two()
    found = compare(source, "a", "a")
    assert (found.sizes["jaccard"] == 1).all()
    assert (found.sizes["component_jaccard"] == 1).all()
    assert set(found.edges["where"]) == {"both"}
    assert found.edges["rank_a"].tolist() == found.edges["rank_b"].tolist()
    expected = source.held[found.traces[0]].edges(1.0)
    for name in ("kind", "layer", "component", "target_level"):
        assert found.edges[name].tolist() == expected[name].tolist()
    assert found.edges["score_a"].tolist() == expected["score"].tolist()
    assert found.edges["source_token_b"].tolist() == expected["source_token"].tolist()


@pytest.mark.parametrize("size", ["k:30", 1.0])
def test_edges_and_components_against_sets(size):
    source = two()
    found = compare(source, "a", "b", [0.05, size])
    a, b = (source.held[x] for x in found.traces)
    frames = [x.subgraph(size).edge_frame() for x in (a, b)]
    to_b, _ = places(a.tokens, b.tokens)
    rows = found.edges
    for side, frame, trace in zip("ab", frames, (a, b), strict=True):
        own = rows[rows["where"].isin(["both", f"only-{side.upper()}"])]
        ranks = own[f"rank_{side}"].astype(int)
        assert sorted(ranks) == frame["rank"].tolist()
        expected = frame.set_index("rank").loc[ranks.tolist()]
        for name in ("kind", "layer", "component", "target_level"):
            assert own[name].tolist() == expected[name].tolist()
        assert own["head"].fillna(-1).tolist() == expected["head"].fillna(-1).tolist()
        assert own[f"score_{side}"].tolist() == expected["score"].tolist()
        for name in ("source", "target"):
            positions = own[f"{name}_position_{side}"].tolist()
            assert positions == expected[f"{name}_position"].tolist()
            assert own[f"{name}_token_{side}"].tolist() == [trace.tokens[p] for p in positions]
        other = rows[rows["where"] == f"only-{'AB'['ba'.index(side)]}"]
        assert other[f"rank_{side}"].isna().all()
        assert other[f"score_{side}"].isna().all()
    for row in rows.to_dict("records"):
        for name in ("source", "target"):
            place = row[f"{name}_position_a"]
            if not pd.isna(place):
                partner = row[f"{name}_position_b"]
                assert to_b[place] == (None if pd.isna(partner) else partner)
            else:
                assert row[f"{name}_position_b"] not in to_b
                assert row[f"{name}_token_a"] is None
    both = rows[rows["where"] == "both"]
    assert len(both) == found.sizes["shared"].iloc[-1]
    assert len(rows) == (found.sizes[["shared", "only_a", "only_b"]].iloc[-1]).sum()
    assert rows["where"].tolist() == sorted(rows["where"], key=["both", "only-A", "only-B"].index)

    ranks = rows[["rank_a", "rank_b"]].min(axis=1)
    for _, own in rows.assign(rank=ranks).groupby("where"):
        assert own["rank"].is_monotonic_increasing

    components = found.components.set_index("component")
    used = set(frames[0]["component"]) | set(frames[1]["component"])
    assert set(components.index) == used
    for name, row in components.iterrows():
        n = [int((frame["component"] == name).sum()) for frame in frames]
        assert [row["n_edges_a"], row["n_edges_b"]] == n
        assert row["shared"] == (both["component"] == name).sum()
        assert row["where"] == ("both" if all(n) else "only-A" if n[0] else "only-B")
        for side, frame in zip("ab", frames, strict=True):
            best = frame.loc[frame["component"] == name, "rank"]
            expected = best.min() if len(best) else None
            assert (
                pd.isna(row[f"best_rank_{side}"])
                if expected is None
                else (row[f"best_rank_{side}"] == expected)
            )


def test_texts_with_nothing_in_common_share_components_only():
    found = compare(two([" a", " b"], [" c", " d", " e"]), "a", "b")
    assert (found.sizes["shared"] == 0).all()
    assert (found.sizes["unaligned_a"] == found.sizes["n_a"]).all()
    assert found.sizes["shared_components"].iloc[-1] == 10
    assert set(found.edges["where"]) == {"only-A", "only-B"}


def test_sizes_are_those_that_both_hold():
    source = MemorySource(
        [
            synthetic_trace(i, n=6, name=name, keep=keep)
            for i, name, keep in ((1, "a", 20), (2, "b", 9))
        ]
    )
    found = compare(source, "a", "b")
    # 75 edges: 0.1 keeps 7 of them, 0.2 keeps 15, and b has 9.
    assert found.sizes["size"].iloc[-1] == "0.1"
    assert found.sizes[["n_a", "n_b"]].iloc[-1].tolist() == [7, 7]
    with pytest.raises(SizeError, match="9"):
        compare(source, "a", "b", ["k:15"])
    source = MemorySource(
        [synthetic_trace(n, n=n, name=name, keep=1) for n, name in ((2, "a"), (9, "b"))]
    )
    with pytest.raises(OptionError, match="at no size of the grid"):
        compare(source, "a", "b")
    assert compare(source, "a", "b", ["k:1"]).sizes["n_a"].tolist() == [1]


def test_a_size_that_keeps_no_edge():
    found = compare(two(), "a", "b", [1e-5])
    (row,) = found.sizes.to_dict("records")
    assert (row["n_a"], row["n_b"], row["shared"], row["components_a"]) == (0, 0, 0, 0)
    assert np.isnan(row["jaccard"])
    assert np.isnan(row["component_jaccard"])
    assert len(found.edges) == len(found.components) == 0
    assert len(found.tokens) == 9


def test_what_cannot_be_compared():
    source = MemorySource(
        [
            synthetic_trace(1, name="a"),
            synthetic_trace(2, name="b", model=model_info(3, 2, name="deep")),
        ]
    )
    with pytest.raises(OptionError, match=r"2 layers of 2 heads; 3 layers of 2 heads.*--by model"):
        compare(source, "a", "b")
    with pytest.raises(TraceNotFoundError, match="no trace 'c'"):
        compare(source, "a", "c")
    with pytest.raises(OptionError, match="no size"):
        compare(source, "a", "a", [])
    with pytest.raises(SizeError, match="none of"):
        compare(source, "a", "a", ["many"])


def test_archive_store_and_command_line_give_the_same(tmp_path, monkeypatch, capsys):
    expected = compare(two(), "a", "b")
    write_traces(tmp_path / "archive", list(two().held.values()), keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    with (
        gt.open_archive(tmp_path / "archive") as archive,
        gt.open_store(tmp_path / "store") as store,
    ):
        for source in (archive, store):
            found = gt.compare(source, "a", "b")
            for one, other in zip(found[:4], expected[:4], strict=True):
                pd.testing.assert_frame_equal(one, other, check_dtype=False)
    for table in ("sizes", "edges", "components", "tokens"):
        args = ("compare", "a", "b", "--table", table, "--format", "json")
        monkeypatch.setattr("sys.argv", ["graphtrace", *args, "--store", str(tmp_path / "store")])
        with pytest.raises(SystemExit) as done:
            module.main()
        assert not done.value.code
        out, err = capsys.readouterr()
        rows = json.loads(out)
        own = json.loads(getattr(expected, table).to_json(orient="records"))
        assert rows == own
        assert "6 of 7 tokens of A and of 8 of B are aligned" in err
