"""What sources give in bulk: an archive and a store of its traces say the same."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from builders import synthetic_trace, with_curves
from builders_source import MemorySource, study
from store_suite import zoo

from graphtrace.analysis.reading import chosen_traces
from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.curve import POINT_COLUMNS
from graphtrace.errors import (
    OptionError,
    SizeError,
    StoreDamagedError,
    TraceNotFoundError,
)
from graphtrace.ingestion import ingest
from graphtrace.stores import embedded_reader
from graphtrace.stores.base import open_store
from graphtrace.stores.graph_tables import graph_tables
from graphtrace.stores.merging import merge_copies

KINDS = ("sufficiency:zero:residual,mlp,attention", "necessity:zero:mlp")


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Equal frames, lists compared as lists."""
    assert a.columns.tolist() == b.columns.tolist()
    for name in a.columns:
        if a[name].dtype == object:
            left, right = ([np.asarray(x).tolist() for x in f[name]] for f in (a, b))
            assert left == right, name
        else:
            assert a[name].dtype == b[name].dtype, name
            np.testing.assert_array_equal(a[name].to_numpy(), b[name].to_numpy(), err_msg=name)


READINGS = ("curve_points", "trace_tokens", "component_counts")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same traces in memory, in an archive and in a store."""
    folder = tmp_path_factory.mktemp("reading")
    traces = [
        *zoo(),
        with_curves(synthetic_trace(31, n=4), *KINDS),
        with_curves(synthetic_trace(32, n=5), KINDS[1], points=slice(5, None)),
    ]
    write_traces(folder / "archive", traces, keep="all")
    ingest(folder / "archive", folder / "store")
    with open_archive(folder / "archive") as archive, open_store(folder / "store") as store:
        yield MemorySource(traces), archive, store


@pytest.mark.parametrize("reading", READINGS)
def test_every_source_says_the_same(sources, reading):
    memory, *others = sources
    ids = sorted(memory.held)
    expected = getattr(memory, reading)(ids)
    assert len(expected) >= len(ids)
    for other in others:
        same(getattr(other, reading)(ids), expected)
        same(getattr(other, reading)(ids[::-1]), getattr(memory, reading)(ids[::-1]))
        same(getattr(other, reading)(ids[2:3]), getattr(memory, reading)(ids[2:3]))
        assert len(getattr(other, reading)([])) == 0


def test_more_traces_than_are_looked_up_one_by_one(tmp_path):
    traces = [synthetic_trace(i, n=3, name=f"line-{i}", text=f"text {i}") for i in range(105)]
    write_traces(tmp_path / "archive", traces)
    ingest(tmp_path / "archive", tmp_path / "store")
    memory, ids = MemorySource(traces), [trace.id for trace in traces]
    with open_store(tmp_path / "store") as store:
        for reading in READINGS:
            same(getattr(store, reading)(ids[:-1]), getattr(memory, reading)(ids[:-1]))


def test_counts_are_of_the_edges_kept(sources):
    for source in sources:
        found = source.component_counts(list(sources[0].held))
        assert [counts.sum() for counts in found["counts"]] == found["n_edges"].tolist()
        points = source.curve_points(list(sources[0].held))
        assert points.columns.tolist() == list(POINT_COLUMNS)
        first = points.loc[points["curve"] == 0]
        assert first["n_edges"].tolist() == found["n_edges"].tolist()


def test_only_the_first_curve_has_counts(sources):
    store = sources[2]
    found = store.query(
        "MATCH (c:Checkpoint) RETURN c.curve AS curve, c.component_counts IS NULL AS absent, "
        "count(*) AS n"
    )
    assert sorted(zip(found["curve"] > 0, found["absent"], strict=True)) == [
        (False, False),
        (True, True),
    ]
    assert store.uncounted() == set()


def test_special_tokens_are_left_out_alike(sources):
    memory, *others = sources
    expected = chosen_traces(memory, {"models": ["toy"], "exclude_special": True})
    whole = chosen_traces(memory, {"models": ["toy"]})
    assert (expected["n_tokens"] < whole["n_tokens"]).any()
    for other in others:
        found = chosen_traces(other, {"models": ["toy"], "exclude_special": True})
        assert found["id"].tolist() == expected["id"].tolist()
        assert found["n_tokens"].tolist() == expected["n_tokens"].tolist()


def test_traces_of_special_positions_are_left_out():
    traces = list(study(3).held.values())
    marked = traces[0].special.copy()
    marked[-1] = True
    traces[0] = dataclasses.replace(traces[0], special=marked)
    found = chosen_traces(MemorySource(traces), {"exclude_special": True})
    assert found["id"].tolist() == [trace.id for trace in traces[1:]]
    with pytest.raises(OptionError, match="special token's position"):
        chosen_traces(MemorySource(traces[:1]), {"exclude_special": True})


# ------------------------------------------------------------------------- merging and old stores


def tables(trace, number=0):
    import pyarrow as pa

    from graphtrace import schema

    return graph_tables(pa.Table.from_pylist([trace.to_row()], schema.TRACE), number)


def counts_of(found):
    points = found.nodes["Checkpoint"]
    return {
        (row["curve"], row["n_edges"]): row["component_counts"]
        for row in points.select(["curve", "n_edges", "component_counts"]).to_pylist()
    }


def test_merged_copies_keep_the_counts_of_the_first_curve():
    """The first curve of one copy is the second of the other; whichever counts, the merged first
    curve has counts, and the others none."""
    trace = synthetic_trace(4, n=5)
    one = with_curves(trace, KINDS[0], KINDS[1])
    other = with_curves(trace, KINDS[1], KINDS[0], lift=-0.05)
    expected = {int(k): c.tolist() for k, c in zip(one.curve.k, one.component_counts, strict=True)}
    later = other.created + pd.Timedelta(seconds=5)
    for first, second in ((one, other), (other, one)):
        for second_ in (second, dataclasses.replace(second, created=later)):
            found = counts_of(merge_copies([tables(first), tables(second_)]).tables)
            assert {k: x for (curve, k), x in found.items() if curve == 0} == expected
            assert all(x is None for (curve, _), x in found.items() if curve > 0)


def test_a_store_without_counts_gets_them_with_the_next_ingest(tmp_path):
    traces = [with_curves(synthetic_trace(i, n=4), *KINDS) for i in range(3)]
    write_traces(tmp_path / "archive", traces, keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    ids = sorted(trace.id for trace in traces)
    with open_store(tmp_path / "store", read_only=False) as store:
        before = store.component_counts(ids)
        store.engine.run("ALTER TABLE Checkpoint DROP component_counts")
    with open_store(tmp_path / "store") as store:
        assert store.component_counts(ids).columns.tolist() == before.columns.tolist()
        assert len(store.component_counts(ids)) == 0
    result = ingest(tmp_path / "archive", tmp_path / "store")
    assert (result.n_present, result.n_changed) == (3, 3)
    with open_store(tmp_path / "store") as store:
        same(store.component_counts(ids), before)
    assert ingest(tmp_path / "archive", tmp_path / "store").n_changed == 0


def alike(a, b) -> None:
    """Equal sub-graphs."""
    assert (a.trace, a.model, a.layout, a.tokens) == (b.trace, b.model, b.layout, b.tokens)
    for ours, theirs in zip(
        (a.token_ids, a.special, a.rank, *a.edges),
        (b.token_ids, b.special, b.rank, *b.edges),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.filterwarnings("ignore::graphtrace.sizes.ShortTraceWarning")
@pytest.mark.parametrize(("together", "at_most"), [(32, 1_000_000), (3, 1_000_000), (32, 60)])
def test_subgraphs_read_together_are_those_read_alone(sources, monkeypatch, together, at_most):
    monkeypatch.setattr(embedded_reader, "TOGETHER", together)
    monkeypatch.setattr(embedded_reader, "AT_MOST", at_most)
    memory, _, store = sources
    whole = [trace for trace, t in memory.held.items() if t.n_kept == t.n_edges]
    ids = sorted(whole)  # in no order of their numbers
    for size in (1.0, 0.3, 0.02, "k:3", "k:1", "tv:0.9"):
        found = list(store.subgraphs(ids, size))
        assert [subgraph.trace for subgraph in found] == ids
        for subgraph in found:
            alike(subgraph, memory.subgraph(subgraph.trace, size))
    assert list(store.subgraphs([], 1.0)) == []
    chosen = [ids[4], ids[1], ids[4]]
    for subgraph, trace in zip(store.subgraphs(chosen, 0.5), chosen, strict=True):
        alike(subgraph, memory.subgraph(trace, 0.5))
    with pytest.raises(TraceNotFoundError):
        list(store.subgraphs([ids[0], "t000000000000"], 1.0))


@pytest.mark.filterwarnings("ignore::graphtrace.sizes.ShortTraceWarning")
def test_what_a_store_does_not_keep_comes_from_the_archive(tmp_path):
    traces = [synthetic_trace(i, n=5, name=f"x{i}", text=f"text {i}") for i in range(6)]
    write_traces(tmp_path / "archive", [*traces[:3]], keep="all")
    write_traces(tmp_path / "short", traces[3:], keep="k:30")
    for name in ("archive", "short"):
        ingest(tmp_path / name, tmp_path / "store")
    memory, ids = MemorySource(traces), [trace.id for trace in traces]
    with open_store(tmp_path / "store") as store:
        for subgraph in store.subgraphs(ids, "k:30"):
            alike(subgraph, memory.subgraph(subgraph.trace, "k:30"))
        found = store.subgraphs(ids, 1.0)
        for _ in range(3):
            alike(subgraph := next(found), memory.subgraph(subgraph.trace, 1.0))
        with pytest.raises(SizeError, match="the store keeps 30"):
            next(found)


def test_edges_that_are_gone_are_seen_together_too(tmp_path):
    traces = [synthetic_trace(i, n=4, name=f"x{i}", text=f"text {i}") for i in range(3)]
    write_traces(tmp_path / "archive", traces, keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    with open_store(tmp_path / "store", read_only=False) as store:
        broken = store.cypher("MATCH (t:Trace) RETURN t.id AS id ORDER BY t.number")["id"][1]
        store.cypher(
            "MATCH (t:Trace {id: $id})<-[:IN_TRACE]-(:State)-[r:MLP]->(:State) DELETE r",
            {"id": broken},
        )
        ids = [trace.id for trace in traces]
        with pytest.raises(StoreDamagedError, match=broken):
            list(store.subgraphs(ids, 1.0))
