"""Several curves of one trace, and archives of format 1."""

import dataclasses
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import model_info, synthetic_trace, with_curves, with_experts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphtrace import schema
from graphtrace.archive import open_archive
from graphtrace.archive_files import WRITE_LOCK, archive_lock
from graphtrace.archive_parquet import encode, seal, table_of
from graphtrace.archive_verify import set_aside_damaged, verify_archive
from graphtrace.archive_write import ArchiveWriter, merge_archives, write_traces
from graphtrace.errors import ArchiveError
from graphtrace.traces import Trace

ALL = "residual,mlp,attention"
ZERO, NECESSITY, FEW = f"sufficiency:zero:{ALL}", f"necessity:zero:{ALL}", "sufficiency:zero:mlp"
MEAN_1, MEAN_2 = f"sufficiency:mean@m00000001:{ALL}", f"sufficiency:mean@m00000002:{ALL}"
KINDS = (ZERO, NECESSITY, FEW, MEAN_1, MEAN_2)
GOLDEN = Path(__file__).with_name("format-1") / "archive"


def kinds_of(trace: Trace) -> list[str]:
    return [curve.kind for curve in trace.curves]


def check_counts(trace: Trace) -> None:
    """The counts are those of the first curve's points (all edges are kept)."""
    names = trace.components()["component"]
    assert len(trace.component_counts) == len(trace.curve.k)
    np.testing.assert_array_equal(trace.component_counts.sum(axis=1), trace.curve.k)
    assert (trace.component_counts[-1] > 0).sum() == len(names)


def test_a_kind_names_its_reference():
    """T6"""
    trace = with_curves(synthetic_trace(0), *KINDS)
    assert tuple(kinds_of(trace)) == KINDS
    assert trace.curves[3].reference == "m00000001"
    assert (trace.curves[0].reference, trace.curves[0].ablation) == (None, "zero")


def test_two_curves_of_a_kind_are_a_problem(tmp_path):
    """T6"""
    with ArchiveWriter(tmp_path / "a") as writer:
        writer.write(with_curves(synthetic_trace(0), ZERO, MEAN_1, MEAN_1))
    (problem,) = verify_archive(tmp_path / "a")["problem"]
    assert problem == f"has 2 curves of the kind {MEAN_1}"


def test_curves_are_added(tmp_path):
    """W8, W6: loose and packed; the old ones first; edges never fewer."""
    folder, trace = tmp_path / "a", synthetic_trace(1, n=6)
    with ArchiveWriter(folder) as writer:
        assert writer.curve_kinds(trace.id) == ()
        assert not writer.has(trace.id)
        writer.write(with_curves(trace, NECESSITY), 20)
        assert writer.curve_kinds(trace.id) == (NECESSITY,)
        assert writer.has(trace.id, 20, [NECESSITY])
        assert not writer.has(trace.id, 20, [NECESSITY, ZERO])
        assert not writer.has(trace.id, 21, [NECESSITY])
        writer.write(with_curves(trace, ZERO), 5)
        assert writer.has(trace.id, 20, [ZERO, NECESSITY])
        assert writer.pack()
        writer.write(with_curves(trace, MEAN_1, ZERO, lift=0.05), 30)
        assert writer.curve_kinds(trace.id) == (NECESSITY, ZERO, MEAN_1)
        assert writer.pack()
        assert writer.has(trace.id, 30, KINDS[:2])
        assert not writer.has(trace.id, 30, KINDS)
    with ArchiveWriter(folder) as again, open_archive(folder) as found:
        assert again.curve_kinds(trace.id) == (NECESSITY, ZERO, MEAN_1)
        back = found.trace(trace.id)
        assert (len(found), found.info()["packs"], back.n_kept) == (1, 2, 30)
        frame = found.traces()
    assert kinds_of(back) == frame["curves"][0] == [NECESSITY, ZERO, MEAN_1]
    assert frame["curve"][0] == NECESSITY
    assert frame["density"][0] == back.density
    new = with_curves(trace, MEAN_1, ZERO, lift=0.05)
    expected = (with_curves(trace, NECESSITY).curve, *new.curves[::-1])
    for mine, theirs in zip(back.curves, expected, strict=True):
        np.testing.assert_array_equal(mine.tv, theirs.tv)
    assert len(verify_archive(folder)) == 0


def test_a_packed_curve_is_replaced_for_good(tmp_path):
    """T5, W8: as many edges and the same kinds, other numbers; packing again adds nothing."""
    folder, trace = tmp_path / "a", synthetic_trace(1, n=5)
    old, new = with_curves(trace, ZERO, FEW), with_curves(trace, FEW, lift=0.2)
    with ArchiveWriter(folder) as writer:
        writer.write(old)
        writer.pack()
        writer.write(new)
        for pack in (False, True):
            if pack:
                writer.pack()
            with open_archive(folder) as found:
                assert kinds_of(found[trace.id]) == [ZERO, FEW]
                np.testing.assert_array_equal(found[trace.id].curves[1].tv, new.curve.tv)
        writer.write(new)
        writer.pack()
    with open_archive(folder) as found:
        assert (found.info()["packs"], found.info()["loose"]) == (2, 0)
    assert len(verify_archive(folder)) == 0


def test_an_open_archive_sees_added_curves_after_refresh(tmp_path):
    folder, trace = tmp_path / "a", synthetic_trace(1)
    with ArchiveWriter(folder) as writer:
        writer.write(with_curves(trace, ZERO))
        with open_archive(folder) as found:
            assert found.traces()["curves"].tolist() == [[ZERO]]
            assert kinds_of(found[trace.id]) == [ZERO]
            writer.write(with_curves(trace, FEW))
            found.refresh()
            assert found.traces()["curves"].tolist() == [[ZERO, FEW]]
            assert kinds_of(found[trace.id]) == [ZERO, FEW]


def test_counts_follow_the_first_curve(tmp_path):
    """W8, T7: a first curve on another grid takes its counts along where there are any."""
    trace = synthetic_trace(2, n=6)
    fine, coarse = (
        with_curves(trace, ZERO),
        with_curves(trace, ZERO, lift=0.1, points=slice(0, 27, 2)),
    )
    write_traces(tmp_path / "a", [fine], keep="all")
    with ArchiveWriter(tmp_path / "a") as writer:
        writer.write(coarse)
        with open_archive(tmp_path / "a") as found:
            back = found[trace.id]
        check_counts(back)
        np.testing.assert_array_equal(back.curve.tv, coarse.curve.tv)
        # Now it comes second, and the counts of the new trace are of another curve's points.
        other = with_curves(trace, FEW, lift=0.2, points=slice(0, 27, 5))
        odd = dataclasses.replace(other, curves=(other.curve, fine.curve))
        writer.write(odd)
    with open_archive(tmp_path / "a") as found:
        back = found[trace.id]
    check_counts(back)
    assert kinds_of(back) == [ZERO, FEW]
    np.testing.assert_array_equal(back.curve.tv, coarse.curve.tv)
    np.testing.assert_array_equal(back.curves[1].tv, other.curve.tv)
    assert len(verify_archive(tmp_path / "a")) == 0


def test_a_first_curve_on_the_old_grid_takes_the_old_counts(tmp_path):
    """W8, T7: replaced by a curve that stands behind one on another grid."""
    trace = synthetic_trace(2, n=6)
    coarse = with_curves(trace, FEW, points=slice(0, 27, 5))
    lifted = with_curves(trace, ZERO, lift=0.1)
    with ArchiveWriter(tmp_path / "a") as writer:
        writer.write(with_curves(trace, ZERO))
        writer.write(dataclasses.replace(coarse, curves=(coarse.curve, lifted.curve)))
    with open_archive(tmp_path / "a") as found:
        back = found[trace.id]
    assert kinds_of(back) == [ZERO, FEW]
    np.testing.assert_array_equal(back.curve.tv, lifted.curve.tv)
    check_counts(back)
    assert len(verify_archive(tmp_path / "a")) == 0


def test_what_an_old_copy_lacks_is_filled_in(tmp_path):
    trace = synthetic_trace(1)
    with ArchiveWriter(tmp_path / "a") as writer:
        writer.write(trace)
        writer.write(with_curves(with_experts(trace), FEW))
    with open_archive(tmp_path / "a") as found:
        back = found[trace.id]
        assert found.traces()["mlp_active_share"].tolist() == [0.3]
    np.testing.assert_array_equal(back.experts, with_experts(trace).experts)


def other_ranking(trace: Trace) -> Trace:
    return dataclasses.replace(trace, ranked=trace.ranked.take(np.r_[1, 0, 2 : trace.n_kept]))


@pytest.mark.parametrize("pack", [False, True])
def test_rankings_that_differ_are_not_mixed(tmp_path, pack):
    """W9: of as many edges the new copy takes the place, of fewer edges it does not."""
    folder, trace = tmp_path / "a", synthetic_trace(1, n=6)
    with ArchiveWriter(folder) as writer:
        writer.write(with_curves(trace, ZERO, NECESSITY), 20)
        if pack:
            writer.pack()
        writer.write(with_curves(other_ranking(trace), FEW), 10)
        assert writer.curve_kinds(trace.id) == (FEW,)
        assert writer.has(trace.id, 20)
        with open_archive(folder) as found:
            assert found[trace.id].ranked.score[0] == trace.ranked.score[1]
        shorter = table_of(with_curves(trace, MEAN_1).to_row(19))
        assert not writer.write_table(shorter)
        assert writer.curve_kinds(trace.id) == (FEW,)
        writer.write(with_curves(other_ranking(trace), ZERO), 20)
        assert writer.curve_kinds(trace.id) == (FEW, ZERO)
    problems = verify_archive(folder)["problem"].tolist()
    assert len(problems) == pack
    assert all("another ranking" in problem for problem in problems)


@st.composite
def steps(draw):
    """What is done to an archive: (kinds, n_kept, lift), or None to pack."""
    write = st.tuples(
        st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True),
        st.integers(1, 30),
        st.floats(0, 0.2),
    )
    return draw(st.lists(st.none() | write, min_size=1, max_size=8))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps())
def test_any_order_of_writes_keeps_everything(tmp_path_factory, steps):
    """T5, W8: against a plain dictionary of what was written last."""
    folder, trace = tmp_path_factory.mktemp("a"), synthetic_trace(3, n=3)
    curves, n_kept = {}, 0
    for step in steps:
        with ArchiveWriter(folder) as writer:
            if step is None:
                writer.pack()
                continue
            kinds, n, lift = step
            new = with_curves(trace, *kinds, lift=lift)
            writer.write(new, n)
            curves |= {curve.kind: curve for curve in new.curves}
            n_kept = max(n_kept, n)
            assert writer.curve_kinds(trace.id) == tuple(curves)
            assert writer.has(trace.id, n_kept, list(curves))
            assert not writer.has(trace.id, n_kept + 1)
    with open_archive(folder) as found:
        assert len(found) == bool(curves)
        if curves:
            back = found[trace.id]
            assert back.n_kept == n_kept
            assert kinds_of(back) == list(curves)
            for mine in back.curves:
                np.testing.assert_array_equal(mine.tv, curves[mine.kind].tv)
            assert found.traces()["density"][0] == pytest.approx(back.curve.density)
    assert len(verify_archive(folder)) == 0


def test_merge_unites_curves(tmp_path):
    traces = [synthetic_trace(i) for i in range(3)]
    write_traces(tmp_path / "a", [with_curves(t, ZERO, FEW) for t in traces])
    write_traces(tmp_path / "b", [with_curves(t, NECESSITY, ZERO) for t in traces[1:]])
    both = [tmp_path / "a", tmp_path / "b"]
    assert merge_archives(both, tmp_path / "c") == {"added": 5, "present": 0}
    assert merge_archives(both, tmp_path / "c") == {"added": 0, "present": 5}
    with open_archive(tmp_path / "c") as found:
        assert kinds_of(found[traces[0].id]) == [ZERO, FEW]
        assert kinds_of(found[traces[2].id]) == [ZERO, FEW, NECESSITY]
        assert len(found.verify()) == 0


def test_write_traces_adds_what_is_missing(tmp_path):
    trace = synthetic_trace(1)
    for kinds, written in (((ZERO,), 1), ((ZERO,), 0), ((ZERO, FEW), 1), ((FEW,), 0)):
        assert write_traces(tmp_path / "a", [with_curves(trace, *kinds)]) == written


def test_setting_aside_keeps_added_curves(tmp_path):
    folder, traces = tmp_path / "a", [synthetic_trace(i) for i in range(2)]
    with ArchiveWriter(folder) as writer:
        for trace in traces:
            writer.write(with_curves(trace, ZERO))
        writer.pack()
        writer.write(with_curves(traces[1], FEW, ZERO, lift=0.1))
    path = folder / "packs" / "00001.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # in the first row group
    path.write_bytes(data)
    set_aside_damaged(folder)
    with open_archive(folder) as found:
        assert found.ids() == [traces[1].id]
        assert kinds_of(found[traces[1].id]) == [ZERO, FEW]
        expected = with_curves(traces[1], FEW, ZERO, lift=0.1).curves[1].tv
        np.testing.assert_array_equal(found[traces[1].id].curve.tv, expected)


def _add(folder: Path, kind: str) -> None:
    with ArchiveWriter(folder) as writer:
        for seed in range(12):
            writer.write(with_curves(synthetic_trace(seed, n=3), kind))


def test_two_writers_of_two_kinds_lose_none(tmp_path):
    """W8"""
    ArchiveWriter(tmp_path / "a")
    processes = multiprocessing.get_context("spawn")
    started = [processes.Process(target=_add, args=(tmp_path / "a", k)) for k in KINDS[:3]]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    with open_archive(tmp_path / "a") as found:
        assert [sorted(kinds) for kinds in found.traces()["curves"]] == [sorted(KINDS[:3])] * 12
    assert len(verify_archive(tmp_path / "a")) == 0


def test_a_commit_waits_for_the_lock(tmp_path):
    """W8"""
    ArchiveWriter(tmp_path / "a")
    process = multiprocessing.get_context("spawn").Process(target=_add, args=(tmp_path / "a", ZERO))
    with archive_lock(tmp_path / "a", wait=True, name=WRITE_LOCK):
        process.start()
        process.join(4)
        assert process.is_alive()
        with open_archive(tmp_path / "a") as found:
            assert len(found) == 0
    process.join()
    with open_archive(tmp_path / "a") as found:
        assert len(found) == 12


# ------------------------------------------------------------------------------------ format 1


@pytest.fixture
def golden(tmp_path):
    """An archive that was written when there was only format 1: two packed traces, one loose."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def in_format_1(table: pa.Table) -> pa.Table:
    """The table with the columns of format 1, by way of Python objects."""
    (row,) = table.drop_columns(["experts", "mlp_active_share"]).to_pylist()
    for curve in row["curves"]:
        del curve["reference"]
    return pa.Table.from_pylist([row | {"format": 1}], schema=schema.TRACE_1)


def write_sealed(path: Path, table: pa.Table) -> None:
    """A file of the table as it is: the seal is a blank of 64 digits that is filled in (P4)."""
    with pq.ParquetWriter(path, table.schema) as sink:
        sink.write_table(table)
        sink.add_key_value_metadata({"graphtrace.seal": "0" * 64})
    with path.open("r+b") as file:
        seal(file)


def test_an_archive_of_format_1_is_read(golden):
    with open_archive(golden) as found:
        assert found.manifest.format == 1
        frame = found.traces()
        assert frame["id"].tolist() == ["t05e3ed482e6e", "t091934be4dde", "t501fbc7d6a84"]
        assert frame["mlp_active_share"].isna().all()
        assert frame["curves"].tolist() == [[ZERO]] * 3
        assert frame["score_gini"].tolist() == [0.8] * 3
        (table,) = found.tables()
        assert table.schema.equals(schema.TRACE)
        assert table["experts"].null_count == 3
        for trace in map(found.trace, found.ids()):
            assert (trace.experts, trace.mlp_active_share, trace.curve.reference) == (None,) * 3
            assert found.subgraph(trace.id, "k:20").edges.kind.shape == (20,)
    assert len(verify_archive(golden)) == 0
    names = [path.name for path in golden.rglob("*") if path.is_file()]
    assert sorted(names) == ["00001.parquet", "manifest.json", "t501fbc7d6a84.parquet"]


def test_the_columns_of_format_1_are_what_it_had(golden):
    """P1: and both formats may be in one archive."""
    (path,) = (golden / "loose").iterdir()
    assert pq.read_schema(path).equals(schema.TRACE_1)
    with ArchiveWriter(golden) as writer:
        writer.write(synthetic_trace(7, n=3))
    with open_archive(golden) as found:
        (table,) = found.tables()
        assert (len(table), set(table["format"].to_pylist())) == (4, {2})


def test_any_trace_is_the_same_from_a_file_of_format_1(tmp_path):
    model = model_info(3, 2, windows=(2, None, 3))
    trace = with_curves(synthetic_trace(4, n=4, model=model), ZERO, NECESSITY)
    with ArchiveWriter(tmp_path / "a") as writer:
        writer.write(trace)
    (path,) = (tmp_path / "a" / "loose").iterdir()
    whole = pq.read_table(path)
    write_sealed(path, in_format_1(whole))
    assert verify_archive(tmp_path / "a")["problem"].tolist() == []
    with open_archive(tmp_path / "a") as found:
        assert encode(table_of(found[trace.id].to_row())) == encode(whole)
    write_sealed(path, whole.set_column(1, "format", pa.array([1], pa.int32())))
    assert verify_archive(tmp_path / "a")["problem"].tolist() == ["has format 1, not 2"]


def test_a_later_format_in_a_row_is_said(tmp_path):
    folder, trace = tmp_path / "a", synthetic_trace(0)
    with ArchiveWriter(folder) as writer:
        writer.write(trace)
    (path,) = (folder / "loose").iterdir()
    path.write_bytes(encode(table_of(trace.to_row() | {"format": 3})))
    with open_archive(folder) as found, pytest.raises(ArchiveError, match="format 3; install a"):
        found.ids()


def test_writing_raises_the_format(golden):
    """M4: and only writing does; an old trace takes a new curve."""
    with ArchiveWriter(golden) as writer:
        assert writer.curve_kinds("t05e3ed482e6e") == (ZERO,)
        assert writer.has("t05e3ed482e6e", 20, [ZERO])
        with open_archive(golden) as found:
            assert found.manifest.format == 1
            old = found["t501fbc7d6a84"]
            packed = found["t05e3ed482e6e"]
        writer.write(with_experts(with_curves(packed, MEAN_1)))
        with open_archive(golden) as found:
            assert found.manifest.format == 2
            back = found[packed.id]
        assert kinds_of(back) == [ZERO, MEAN_1]
        assert back.mlp_active_share == 0.3
        assert writer.pack()
    with open_archive(golden) as found:
        assert (found.info()["packs"], found.info()["loose"], len(found)) == (2, 0, 3)
        assert found[old.id].ranked.kind.tolist() == old.ranked.kind.tolist()
    assert len(verify_archive(golden)) == 0


def test_packing_raises_the_format(golden):
    """M4"""
    with ArchiveWriter(golden) as writer:
        assert writer.pack()
    with open_archive(golden) as found:
        assert (found.manifest.format, len(found), found.info()["packs"]) == (2, 3, 2)
    assert len(verify_archive(golden)) == 0


def test_archives_of_both_formats_merge(golden, tmp_path):
    write_traces(tmp_path / "new", [synthetic_trace(7, n=3)])
    counts = merge_archives([golden, tmp_path / "new"], tmp_path / "both")
    assert counts == {"added": 4, "present": 0}
    assert len(verify_archive(tmp_path / "both")) == 0
    assert merge_archives([tmp_path / "new"], golden) == {"added": 1, "present": 0}
    assert len(verify_archive(golden)) == 0


def test_experts_of_another_shape_are_refused():
    trace = synthetic_trace(0, n=5)
    for shape in ((2, 4, 2), (3, 5, 2), (2, 5)):
        with pytest.raises(ValueError, match="not of 2 layers and 5 tokens"):
            dataclasses.replace(trace, experts=np.zeros(shape, np.int16))
