"""The archive as its users see it: what is written comes back, in one order, by every name."""

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from builders import model_info, synthetic_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphtrace import archive_write, schema
from graphtrace.archive import open_archive
from graphtrace.archive_parquet import table_of
from graphtrace.archive_verify import verify_archive
from graphtrace.archive_write import (
    ArchiveWriter,
    Keep,
    failure_key,
    keep_count,
    merge_archives,
    parse_keep,
    write_traces,
)
from graphtrace.errors import ArchiveError, OptionError, SizeError, TraceNotFoundError
from graphtrace.selection import select_traces


def row(trace, n_kept=None) -> str:
    """Everything that an archive holds of a trace, comparable even with NaN."""
    return repr(table_of(trace.to_row(n_kept)).to_pylist())


@pytest.fixture
def traces():
    return [synthetic_trace(i, n=3 + i % 3, name=f"line-{i}") for i in range(12)]


@pytest.fixture
def archive(tmp_path, traces):
    write_traces(tmp_path / "a", reversed(traces), keep="all")
    return tmp_path / "a"


# ------------------------------------------------------------------------------- round trip

TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from([" the", "<0xE2>", "\x00", "👩‍👩‍👧", "\u2028", "\r\n", "'\"\\", "é", "\ufeff"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def experts(draw, n):
    """int16 [2, n, k]: what two layers' experts chose for n tokens; one layer may have none."""
    k = draw(st.integers(1, 3))
    chosen = draw(st.lists(st.integers(0, 2**15 - 1), min_size=2 * n * k, max_size=2 * n * k))
    found = np.array(chosen, np.int16).reshape(2, n, k)
    if draw(st.booleans()):
        found[draw(st.integers(0, 1))] = -1
    return found


@st.composite
def any_trace(draw):
    n = draw(st.integers(1, 4))
    windows = draw(st.sampled_from([None, (2, None), (1, 3)]))
    model = model_info(2, 2, parallel=draw(st.booleans()), windows=windows)
    trace = synthetic_trace(draw(st.integers(0, 99)), n=n, model=model)
    curve = trace.curve
    if draw(st.booleans()):
        values = np.array(draw(st.lists(st.floats(), min_size=len(curve.k), max_size=len(curve.k))))
        curve = dataclasses.replace(curve, p_target=values, logit_diff=-values)
    optional = st.none() | TEXT
    return dataclasses.replace(
        trace,
        input=dataclasses.replace(
            trace.input,
            name=draw(TEXT),
            text=draw(TEXT),
            corpus=draw(TEXT),
            continuation=draw(optional),
            meta=draw(st.dictionaries(TEXT, JSON, max_size=3)),
            labels=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        ),
        settings=dataclasses.replace(
            trace.settings, seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1))
        ),
        tokens=draw(st.lists(TEXT, min_size=n, max_size=n)),
        special=np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))),
        curves=(curve, *([dataclasses.replace(curve, mode="necessity")] * draw(st.integers(0, 1)))),
        experts=draw(st.none() | experts(n)),
        mlp_active_share=draw(st.none() | st.floats()),
        entropy=draw(st.floats()),
        loss=draw(st.none() | st.floats()),
        target_id=draw(st.none() | st.integers(0, 2**31 - 1)),
        target=draw(optional),
        foil=draw(optional),
        predicted=draw(TEXT),
        created=draw(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1))).replace(tzinfo=UTC),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=any_trace(), share=st.floats(0, 1))
def test_a_trace_comes_back_as_it_was_written(tmp_path_factory, trace, share):
    """P6: loose and packed; tokens, text, meta, labels, nulls and NaN survive."""
    folder = tmp_path_factory.mktemp("archive")
    n_kept = int(share * trace.n_edges)
    with ArchiveWriter(folder) as writer:
        writer.write(trace, n_kept)
        with open_archive(folder) as found:
            assert row(found.trace(trace.id)) == row(trace, n_kept)
        writer.pack()
    with open_archive(folder) as found:
        back = found.trace(trace.id)
        assert row(back) == row(trace, n_kept)
        assert back.input == trace.input
        assert back.model == trace.model
        assert back.settings == trace.settings
        assert [curve.kind for curve in back.curves] == [curve.kind for curve in trace.curves]
        if trace.experts is None:
            assert back.experts is None
        else:
            assert back.experts.dtype == np.int16
            np.testing.assert_array_equal(back.experts, trace.experts)
        assert len(found.verify()) == 0


def test_half_a_surrogate_is_refused_by_name(tmp_path):
    """P6"""
    trace = synthetic_trace(0)
    trace = dataclasses.replace(trace, predicted="a\ud83d")
    with pytest.raises(ArchiveError, match=r"predicted holds .*surrogate"):
        write_traces(tmp_path / "a", [trace])


# ------------------------------------------------------------------------------ what is there


def test_order_is_by_name_with_numbers_by_value(archive, traces):
    with open_archive(archive) as found:
        wanted = [trace.id for trace in traces]  # line-2 before line-10, though written last
        assert found.ids() == wanted
        assert found.traces()["id"].tolist() == wanted
        tables = list(found.tables(batch=5))
        assert [len(table) for table in tables] == [5, 5, 2]
        assert [x for table in tables for x in table["id"].to_pylist()] == wanted
        assert all(table.schema.equals(schema.TRACE) for table in tables)


def test_traces_has_the_columns_and_values(archive, traces):
    with open_archive(archive) as found:
        frame = found.traces()
    assert tuple(frame.columns) == schema.TRACES_COLUMNS
    for i, trace in enumerate(traces):
        line = frame.iloc[i]
        assert line["name"] == trace.input.name
        assert (line["model"], line["model_name"]) == (trace.model.id, trace.model.name)
        assert (line["input"], line["text"]) == (trace.input.id, trace.input.text)
        assert line["n_tokens"] == trace.layout.n_tokens
        assert (line["n_nodes"], line["n_edges"]) == (trace.n_nodes, trace.n_edges)
        assert line["n_kept"] == trace.n_edges
        assert line["dtype"] == "float32"
        assert line["density"] == trace.density
        assert line["labels"] == trace.input.labels
        assert json.loads(line["meta"]) == trace.input.meta
        assert abs((line["created"] - trace.created).total_seconds()) < 0.002


def test_an_empty_archive_has_the_same_columns_and_types(tmp_path, archive):
    with ArchiveWriter(tmp_path / "empty"), open_archive(tmp_path / "empty") as empty:
        frame = empty.traces()
        assert len(empty) == len(frame) == 0
        assert list(empty.tables()) == []
        assert empty.ids() == []
        assert np.isnan(empty.info()["bytes_per_edge"])
        assert empty.failures().columns.tolist()[0] == "key"
        with open_archive(archive) as full:
            assert frame.dtypes.to_dict() == full.traces().dtypes.to_dict()
        with pytest.raises(TraceNotFoundError, match="no traces here yet"):
            empty.trace("last")


def test_labels_select(tmp_path):
    made = [synthetic_trace(i, labels={"group": "ab"[i % 2]}) for i in range(4)]
    write_traces(tmp_path / "a", made)
    with open_archive(tmp_path / "a") as found:
        chosen = select_traces(found.traces(), where=["group=b"])
    assert set(chosen["id"]) == {made[1].id, made[3].id}


def test_a_trace_is_found_by_every_name(archive, traces):
    with open_archive(archive) as found:
        trace = traces[4]
        for name in (trace.id, trace.id[:9], "line-4", "toy:line-4"):
            assert found[name].id == trace.id
        newest = max(traces, key=lambda t: (t.created.replace(microsecond=0), t.created))
        assert found["last"].created >= newest.created.replace(
            microsecond=newest.created.microsecond // 1000 * 1000
        )
        assert trace.id in found
        assert "t000000000000" not in found
        assert len(found) == 12
        with pytest.raises(TraceNotFoundError, match="line-44"):
            found["line-44"]
        for ask in (found.subgraph, lambda name: list(found.tables([name]))):
            with pytest.raises(TraceNotFoundError, match="t000000000000"):
                ask("t000000000000")


def test_subgraph_is_a_prefix_and_says_what_is_kept(tmp_path):
    trace = synthetic_trace(3, n=8)
    write_traces(tmp_path / "a", [trace], keep="0.5")
    kept = int(0.5 * trace.n_edges)
    with open_archive(tmp_path / "a") as found:
        part = found.subgraph(trace.id, f"k:{kept // 2}")
        for mine, theirs in zip(part.edges, trace.ranked, strict=True):
            np.testing.assert_array_equal(mine, theirs[: kept // 2])
        assert part.layout.n_edges == trace.n_edges
        with pytest.raises(SizeError, match=f"{kept:,} are kept"):
            found.subgraph(trace.id, 1.0)


def test_tables_takes_ids_in_the_archives_order(archive, traces):
    with open_archive(archive) as found:
        asked = [traces[i].id for i in (9, 2, 2, 5)]
        (table,) = found.tables(asked)
        assert table["id"].to_pylist() == [traces[i].id for i in (2, 5, 9)]
        with pytest.raises(OptionError, match="batch"):
            next(found.tables(batch=0))


def test_an_open_archive_is_a_snapshot(archive, traces):
    with open_archive(archive) as found:
        assert len(found) == 12
        write_traces(archive, [synthetic_trace(77)])
        with ArchiveWriter(archive) as writer:
            assert writer.pack()
        assert len(found) == 12
        for trace in traces:  # every loose file has gone into a pack meanwhile
            assert row(found.trace(trace.id)) == row(trace)
        assert len(found) == len(found.traces()) == 12
        found.refresh()
        assert len(found) == 13


def test_info(archive, traces):
    with ArchiveWriter(archive) as writer:
        writer.fail(failure_key("x"), "bad line", "toy", ValueError("no\nsuch thing"))
    with open_archive(archive) as found:
        info = found.info()
        failures = found.failures()
    assert info["traces"] == info["loose"] == 12
    assert info["edges"] == sum(trace.n_edges for trace in traces)
    assert info["models"] == {"toy": 12}
    assert info["failures"] == 1
    assert (
        info["bytes"]
        == sum(path.stat().st_size for path in archive.rglob("*") if path.suffix == ".parquet")
        + (archive / "manifest.json").stat().st_size
    )
    assert failures.iloc[0][["input", "model", "error", "message"]].tolist() == [
        "bad line",
        "toy",
        "ValueError",
        "no such thing",
    ]


# ----------------------------------------------------------------------------------- writing


def test_writing_again_changes_nothing_and_more_edges_win(tmp_path):
    """T5, W6"""
    folder, trace = tmp_path / "a", synthetic_trace(1, n=6)
    assert write_traces(folder, [trace], keep="k:10") == 1
    assert write_traces(folder, [trace], keep="k:10") == 0
    with ArchiveWriter(folder) as writer:
        writer.pack()
        pack = (folder / "packs" / "00001.parquet").read_bytes()
        assert writer.has(trace.id, 10)
        assert not writer.has(trace.id, 11)
        assert write_traces(folder, [trace], keep="k:5") == 0
        assert write_traces(folder, [trace], keep="k:20") == 1
        assert writer.has(trace.id, 20)
        with open_archive(folder) as found:
            assert found[trace.id].n_kept == 20
        writer.pack()
        assert writer.has(trace.id, 20)
    assert (folder / "packs" / "00001.parquet").read_bytes() == pack
    with open_archive(folder) as found:
        assert (found[trace.id].n_kept, len(found), found.info()["packs"]) == (20, 1, 2)
        assert len(found.verify()) == 0


def test_packs_at_the_threshold_and_at_the_end(tmp_path, monkeypatch):
    """W3"""
    monkeypatch.setattr(archive_write, "PACK_AT", 5)
    monkeypatch.setattr(archive_write, "PACK_AT_END", 3)
    folder = tmp_path / "a"
    made = [synthetic_trace(i, n=3) for i in range(14)]
    write_traces(folder, made[:7])
    with open_archive(folder) as found:
        assert (found.info()["packs"], found.info()["loose"]) == (1, 2)
    write_traces(folder, made[7:8])
    with open_archive(folder) as found:
        assert (found.info()["packs"], found.info()["loose"]) == (2, 0)
        assert set(found.ids()) == {trace.id for trace in made[:8]}


def test_failures_go_when_the_trace_is_there(tmp_path):
    trace = synthetic_trace(0)
    with ArchiveWriter(tmp_path / "a") as writer:
        writer.fail(trace.id, "line-0", "toy", RuntimeError("a\udc80b"))
        assert writer.has_failed(trace.id)
        writer.write(trace)
        assert not writer.has_failed(trace.id)
        writer.fail("other", "line-1", "toy", RuntimeError("x"))
        writer.clear_failure("other")
        writer.clear_failure("other")
        assert not writer.has_failed("other")
        with pytest.raises(OptionError, match="failure key"):
            writer.fail("../up", "x", "toy", RuntimeError("x"))


def test_merge(tmp_path):
    made = [synthetic_trace(i) for i in range(6)]
    write_traces(tmp_path / "a", made[:4])
    write_traces(tmp_path / "b", made[2:])
    counts = merge_archives([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert counts == {"added": 6, "present": 2}
    assert merge_archives([tmp_path / "a"], tmp_path / "c") == {"added": 0, "present": 4}
    with open_archive(tmp_path / "c") as found:
        for trace in made:
            assert row(found[trace.id]) == row(trace)
    with pytest.raises(ArchiveError, match="nowhere"):
        merge_archives([tmp_path / "a", tmp_path / "nowhere"], tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("keep", "n_edges", "count"),
    [
        (None, 1_000_000, 10_000),
        (None, 100_000, 5_000),
        (None, 300, 300),
        ("0.01", 100_000, 1_000),
        ("0.01", 10, 1),
        ("1", 123, 123),
        ("k:5000", 100_000, 5_000),
        ("k:5000", 300, 300),
        ("all", 1_271_053, 1_271_053),
        (Keep("all"), 7, 7),
    ],
)
def test_keep(keep, n_edges, count):
    assert keep_count(keep, n_edges) == count


@pytest.mark.parametrize("keep", ["", "0", "-1", "2", "k:0", "k:1.5", "tv:0.2", "some", "nan"])
def test_keep_refuses(keep):
    with pytest.raises(OptionError, match="--keep"):
        parse_keep(keep)


# ------------------------------------------------------------------------ what is no archive


def test_what_is_no_archive(tmp_path):
    with pytest.raises(ArchiveError, match="no such folder"):
        open_archive(tmp_path / "nowhere")
    with pytest.raises(ArchiveError, match="not an archive"):
        open_archive(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArchiveError, match="is a file"):
        open_archive(tmp_path / "file")
    with pytest.raises(ArchiveError, match=r"not an archive and not empty \(it holds file\)"):
        ArchiveWriter(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"graphtrace": "store", "format": 1}')
    with pytest.raises(ArchiveError, match="not an archive of traces"):
        open_archive(tmp_path / "other")


def test_reading_needs_no_torch(archive, traces):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from graphtrace.archive import open_archive\n"
        "with open_archive(sys.argv[1]) as a:\n"
        "    print(len(a.traces()), a.subgraph(sys.argv[2]).edge_frame().shape[0], len(a.verify()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(archive), traces[0].id],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["12", str(traces[0].n_edges), "0"]


def test_tables_of_an_archive_are_plain_parquet(archive, traces):
    """P5: any Parquet reader reads a file; nothing of it is private."""
    import pyarrow.parquet as pq

    path = archive / "loose" / f"{traces[0].id}.parquet"
    table = pq.read_table(path)
    assert table.schema.equals(schema.TRACE)
    assert isinstance(table, pa.Table)
    assert table["edge_score"][0].as_py() == traces[0].ranked.score.tolist()
    assert len(verify_archive(archive)) == 0
