"""What packs say of their traces is kept, and never decides what is there."""

import dataclasses

import pandas as pd
import pytest
from builders import synthetic_trace

import graphtrace as gt
from graphtrace import archive as archive_module
from graphtrace import archive_index
from graphtrace.archive_pack import pack_loose


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """An archive with one pack of 6 traces that is worth keeping, and the list of files read."""
    monkeypatch.setattr(archive_index, "MANY", 5)
    monkeypatch.setenv("GRAPHTRACE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "archive"
    write(folder, range(6))
    read = []
    real = archive_module.metadata_of

    def counted(file, shown):
        read.append(shown.rpartition("/")[2])
        return real(file, shown)

    monkeypatch.setattr(archive_module, "metadata_of", counted)
    return folder, read


def write(folder, seeds):
    traces = [synthetic_trace(i, n=4, labels={"group": "ab"[i % 2]}) for i in seeds]
    gt.write_traces(folder, traces, keep="all")
    pack_loose(folder)


def listed(folder):
    with gt.open_archive(folder) as archive:
        return archive.traces()


def test_a_pack_is_read_once(packed):
    folder, read = packed
    first = listed(folder)
    assert len(first) == 6
    assert len(read) == 1
    again = listed(folder)
    pd.testing.assert_frame_equal(first, again)
    assert len(read) == 1
    write(folder, range(6, 9))  # few: read each time
    assert len(listed(folder)) == len(listed(folder)) == 9
    assert len(read) == 3
    assert len(set(read)) == 2


def test_the_same_without_it(packed, monkeypatch):
    folder, _ = packed
    kept = [listed(folder), listed(folder)][1]
    monkeypatch.setenv("GRAPHTRACE_CACHE", "")
    pd.testing.assert_frame_equal(kept, listed(folder))


def test_what_cannot_be_read_is_made_again(packed, tmp_path):
    folder, read = packed
    first = listed(folder)
    (path,) = (tmp_path / "cache" / "archives").iterdir()
    path.write_bytes(b"PAR1 and no more")
    with pytest.warns(UserWarning, match="made again"):
        pd.testing.assert_frame_equal(first, listed(folder))
    assert len(read) == 2
    listed(folder)
    assert len(read) == 2


def test_what_is_of_another_pack_is_not_taken(packed, tmp_path):
    folder, read = packed
    listed(folder)
    (path,) = (tmp_path / "cache" / "archives").iterdir()
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).slice(0, 4), path)
    assert len(listed(folder)) == 6
    assert len(read) == 2


def test_a_cache_that_cannot_be_written_is_said(packed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHTRACE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not kept"):
        assert len(listed(packed[0])) == 6


def test_newer_copies_still_win(packed):
    folder, _ = packed
    listed(folder)
    longer = dataclasses.replace(synthetic_trace(2, n=4), loss=99.0)
    gt.write_traces(folder, [longer], keep="all")
    frame = listed(folder).set_index("id")
    assert len(frame) == 6
    assert frame.index.is_unique
