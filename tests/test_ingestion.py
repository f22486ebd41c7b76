"""Ingest: batches, idempotency, and being killed at any moment."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from builders import model_info, synthetic_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphtrace import ingestion
from graphtrace.archive_write import write_traces
from graphtrace.errors import ArchiveError, OptionError, StoreError
from graphtrace.ingestion import batches, ingest
from graphtrace.layout import GraphLayout
from graphtrace.stores.base import open_store
from graphtrace.stores.graph_tables import MAX_STATES, graph_tables
from graphtrace.stores.verify import verify_store


def problems(store):
    with open_store(store) as opened:
        return verify_store(opened, opened.file.archives, opened.file.deleted)


def test_batches_hold_the_limits_and_lose_nothing():
    traces = [(f"t{i}", n) for i, n in enumerate([5, 5, 5, 100, 1, 1, 1, 1])]
    assert list(batches(traces, max_traces=3, max_edges=10)) == [
        ["t0", "t1"],
        ["t2"],
        ["t3"],
        ["t4", "t5", "t6"],
        ["t7"],
    ]
    assert list(batches([])) == []
    with pytest.raises(OptionError):
        list(batches(traces, max_traces=0))


@given(st.lists(st.integers(1, 50)), st.integers(1, 5), st.integers(1, 60))
def test_batches_are_a_partition(sizes, max_traces, max_edges):
    traces = [(f"t{i}", n) for i, n in enumerate(sizes)]
    found = list(batches(traces, max_traces, max_edges))
    assert [trace for batch in found for trace in batch] == [trace for trace, _ in traces]
    for batch in found:
        assert 1 <= len(batch) <= max_traces
        assert len(batch) == 1 or sum(sizes[int(trace[1:])] for trace in batch) <= max_edges


def test_no_archive_no_store(tmp_path):
    with pytest.raises(ArchiveError):
        ingest(tmp_path / "none", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_several_batches_are_one_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ingestion.batches, "__defaults__", (3, 10**6))
    traces = [synthetic_trace(seed=i, n=4) for i in range(8)]
    write_traces(tmp_path / "archive", traces, keep="all")
    result = ingest(tmp_path / "archive", tmp_path / "store")
    assert (result.n_new, result.n_edges) == (8, sum(t.n_edges for t in traces))
    assert len(problems(tmp_path / "store")) == 0
    assert capsys.readouterr() == ("", "")


def test_a_failing_batch_leaves_whole_traces(tmp_path, monkeypatch):
    from graphtrace.errors import QueryError
    from graphtrace.stores.ladybug import Engine

    monkeypatch.setattr(ingestion.batches, "__defaults__", (2, 10**6))
    traces = [synthetic_trace(seed=i, n=4) for i in range(5)]
    write_traces(tmp_path / "archive", traces, keep="all")
    copy, calls = Engine.copy, []

    def failing(self, table, rows):
        calls.append(table)
        if calls.count("MLP") == 2:
            raise QueryError("no")
        copy(self, table, rows)

    monkeypatch.setattr(Engine, "copy", failing)
    with pytest.raises(StoreError, match="could not be written"):
        ingest(tmp_path / "archive", tmp_path / "store")
    monkeypatch.setattr(Engine, "copy", copy)
    found = problems(tmp_path / "store")
    assert len(found) == 3
    assert found["problem"].str.contains("not in the store").all()
    assert ingest(tmp_path / "archive", tmp_path / "store").n_new == 3
    assert len(problems(tmp_path / "store")) == 0


def test_too_many_states_for_an_id():
    import pyarrow as pa

    from graphtrace import schema

    trace = synthetic_trace(seed=0, n=4)
    row = trace.to_row()
    layout = GraphLayout(MAX_STATES // 5 + 1, 2, 2)
    row["position"] = layout.n_tokens - 1
    table = pa.Table.from_pylist([row], schema=schema.TRACE)
    with pytest.raises(StoreError, match=r"trace t\w+ has 5 levels of 209,716 tokens"):
        graph_tables(table, 0)
    with pytest.raises(StoreError, match="numbered"):
        graph_tables(pa.Table.from_pylist([trace.to_row()], schema=schema.TRACE), 1 << 43)


INGEST = """
import sys
from graphtrace import ingestion
ingestion.batches.__defaults__ = (4, 10**9)
print("go", flush=True)
ingestion.ingest(sys.argv[1], sys.argv[2])
"""


def test_killed_at_any_moment_it_goes_on(tmp_path):
    model = model_info(3, 4)
    traces = [synthetic_trace(seed=i, n=8, model=model) for i in range(40)]
    write_traces(tmp_path / "archive", traces, keep="all")
    store, generator = tmp_path / "store", random.Random(0)
    command = [sys.executable, "-c", INGEST, str(tmp_path / "archive"), str(store)]
    n_killed = n_partial = 0
    for _ in range(10):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(generator.uniform(0.1, 1.6))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        n_killed += process.returncode == -signal.SIGKILL
        if (store / "store.json").exists():
            found = problems(store)["problem"]
            assert found.str.startswith("not in the store").all()
            n_partial += 0 < len(found) < 40
    assert n_killed >= 4
    result = ingest(tmp_path / "archive", store)
    assert result.n_new + result.n_present == 40
    assert len(problems(store)) == 0
    with open_store(store) as opened:
        assert len(opened.traces()) == 40
        for label, count in (("State", sum(len(t.nodes()) for t in traces)), ("Trace", 40)):
            assert opened.cypher(f"MATCH (n:{label}) RETURN count(n) AS n")["n"].iloc[0] == count


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 3))
def test_any_order_of_ingests_ends_the_same(tmp_path_factory, order, keep_out):
    """Overlapping archives, ingested in any order and repeatedly, give the union once."""
    folder = tmp_path_factory.mktemp("any")
    parts = {i: {i % 4, (i + 1) % 4, (i * 3) % 4} - {keep_out} for i in range(8)}
    expected = set()
    for i in order:
        traces = [synthetic_trace(seed=seed, n=3) for seed in sorted(parts[i])]
        write_traces(folder / f"a{i}", traces, keep="all")
        ingest(folder / f"a{i}", folder / "store")
        expected |= {trace.id for trace in traces}
    with open_store(folder / "store") as opened:
        assert sorted(opened.traces()["id"]) == sorted(expected)
    assert len(problems(folder / "store")) == 0
