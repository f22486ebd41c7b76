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
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
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
