"""What traces are made of by size, against plain counting of their edges."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource

from graphtrace import schema
from graphtrace.analysis.structure import QUARTERS, structure
from graphtrace.archive_write import write_traces
from graphtrace.errors import OptionError
from graphtrace.ingestion import ingest
from graphtrace.stores.base import open_store

SEQUENTIAL, PARALLEL = model_info(6, 2, name="seq"), model_info(5, 2, name="par", parallel=True)


def made(model=SEQUENTIAL, n=6, keep=None, seed=0):
    return [
        synthetic_trace(
            seed + i,
            n=4 + i % 3,
            model=model,
            name=f"line-{i}",
            text=f"text {i}",
            labels={"group": "ab"[i % 2]},
            keep=keep,
        )
        for i in range(n)
    ]


def plain_shares(trace, k, table, exclude_special=False):
    """Counted edge by edge among the first k (None: all that there are)."""
    layout = trace.layout
    edges = layout.columns if k is None else trace.ranked.take(slice(0, k))
    parts = schema.KINDS if table == "composition" else QUARTERS
    counts = dict.fromkeys(parts, 0)
    for kind, level, _, source, target in zip(*edges[:5], strict=True):
        if exclude_special and (trace.special[source] or trace.special[target]):
            continue
        if table == "composition":
            counts[schema.KINDS[kind]] += 1
        else:
            layer = layout.layer_of(int(level))
            counts[QUARTERS[int(4 * (layer + 0.5) / layout.n_layers)]] += 1
    total = sum(counts.values())
    return [x / total for x in counts.values()] if total else [np.nan] * len(parts)


def plain(traces, table, exclude_special=False, sizes=None):
    """size -> (share per part, whole per part, n_inputs)."""
    found = {}
    for size in traces[0].curve.grid if sizes is None else sizes:
        rows, whole = [], []
        for trace in traces:
            shares = plain_shares(trace, int(size * trace.n_edges), table, exclude_special)
            if np.isfinite(shares[0]):
                rows.append(shares)
                whole.append(plain_shares(trace, None, table, exclude_special))
        if rows:
            found[size] = np.mean(rows, axis=0), np.mean(whole, axis=0), len(rows)
    return found


def check(found, expected):
    assert found["size"].drop_duplicates().tolist() == list(expected)
    for size, rows in found.groupby("size", sort=False):
        shares, whole, n = expected[size]
        np.testing.assert_allclose(rows["share"], shares, atol=1e-12)
        np.testing.assert_allclose(rows["share_whole"], whole, atol=1e-12)
        assert set(rows["n_inputs"]) == {n}
        assert rows["share"].sum() == pytest.approx(1)


@pytest.mark.parametrize("table", ["composition", "layers"])
@pytest.mark.parametrize("model", [SEQUENTIAL, PARALLEL])
def test_shares_against_counting(table, model):
    traces = made(model)
    found = structure(MemorySource(traces), table, draws=50)
    check(found, plain(traces, table))
    assert (found["share_low"].fillna(0) <= found["share"] + 1e-12).all()
    assert (found["share_high"].fillna(1) >= found["share"] - 1e-12).all()
    assert set(found["part"]) == set(schema.KINDS if table == "composition" else QUARTERS)


@pytest.mark.parametrize("table", ["composition", "layers"])
def test_without_special_tokens(table):
    traces = made()
    found = structure(MemorySource(traces), table, exclude_special=True, draws=20)
    check(found, plain(traces, table, exclude_special=True))
    assert not np.allclose(found.loc[found["size"] == 1, "share"], plain(traces, table)[1.0][0]), (
        "what special tokens do counts otherwise"
    )


def test_counts_are_read_a_few_traces_at_a_time(monkeypatch):
    source = MemorySource([*made(), *made(PARALLEL)])
    whole = structure(source, "layers", draws=20)
    monkeypatch.setattr("graphtrace.analysis.structure.AT_ONCE", 2)
    pd.testing.assert_frame_equal(structure(source, "layers", draws=20), whole)


class Uncounted(MemorySource):
    """A source of an earlier version, which has counted nothing, or only some traces."""

    counted = ()

    def component_counts(self, traces):
        return super().component_counts([trace for trace in traces if trace in self.counted])


def test_a_source_that_has_not_counted_is_read_as_far_as_it_keeps():
    traces = made(keep=60)
    source = Uncounted(traces)
    kept = [s for s in traces[0].curve.grid if all(int(s * t.n_edges) <= 60 for t in traces)]
    assert 0 < len(kept) < len(traces[0].curve.grid)
    for table in ("composition", "layers"):
        found = structure(source, table, draws=20)
        check(found, plain(traces, table, sizes=kept))
    source.counted = [trace.id for trace in traces[:3]]
    mixed = structure(source, draws=20)
    check(mixed.loc[mixed["size"].isin(kept)], plain(traces, "composition", sizes=kept))
    beyond = mixed.loc[~mixed["size"].isin(kept)]
    assert set(beyond["n_inputs"]) == {3}


def test_groups_models_and_inputs():
    traces = [*made(), *made(PARALLEL)]
    found = structure(MemorySource(traces), by=["group"], draws=20)
    part = found[(found["model"] == PARALLEL.id) & (found["group"] == "b")]
    own = [t for t in traces[6:] if t.input.labels["group"] == "b"]
    check(part, plain(own, "composition"))
    one, two, *rest = made()
    two = dataclasses.replace(two, input=one.input)
    found = structure(MemorySource([one, two, *rest]), draws=20)
    last = found.loc[found["size"] == 0.1].set_index("part")["share"]
    shares = [plain_shares(t, int(0.1 * t.n_edges), "composition") for t in (one, two, *rest)]
    expected = np.mean([np.mean(shares[:2], axis=0), *shares[2:]], axis=0)
    np.testing.assert_allclose(last.loc[list(schema.KINDS)], expected)


def test_an_archive_and_a_store_of_it_say_the_same(tmp_path):
    traces = made(n=4)
    write_traces(tmp_path / "archive", traces, keep="k:20")
    ingest(tmp_path / "archive", tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        found = structure(store, "layers", draws=20)
        assert (store.traces()["n_kept"] == 20).all()
    expected = structure(MemorySource(traces), "layers", draws=20)
    pd.testing.assert_frame_equal(found, expected)


def test_what_cannot_be_asked_for():
    source = MemorySource(made(n=2, keep=0))
    with pytest.raises(OptionError, match="neither composition nor layers"):
        structure(source, "depth")
    grids = [
        dataclasses.replace(t, curves=(dataclasses.replace(t.curve, grid=t.curve.grid + 0.5),))
        for t in source.held.values()
    ]
    with pytest.raises(OptionError, match="no size of the grid"):
        structure(MemorySource(grids), exclude_special=True)
    one = structure(MemorySource(made(n=1)))
    assert one[["share_low", "share_high"]].isna().all(axis=None)
    assert one["share"].notna().all()
