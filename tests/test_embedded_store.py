"""The embedded store: the common suite, its lock, and looking after it."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from builders import synthetic_trace
from store_suite import OwnStoreSuite, StoreSuite

from graphtrace.analysis.centrality import centrality
from graphtrace.archive_write import write_traces
from graphtrace.errors import (
    OptionError,
    QueryError,
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    TraceNotFoundError,
)
from graphtrace.ingestion import ingest
from graphtrace.stores.base import default_store, open_store, store_folder
from graphtrace.stores.ladybug import Engine
from graphtrace.stores.maintenance import (
    delete_store,
    delete_traces,
    rebuild_store,
    store_info,
)
from graphtrace.stores.recovery import StoreRepairedWarning
from graphtrace.stores.saved_runs import COLUMNS, list_runs, save_analysis
from graphtrace.stores.verify import verify_store
from graphtrace.traces import Settings


@pytest.fixture(scope="class")
def new_url(tmp_path_factory):
    return lambda: str(tmp_path_factory.mktemp("store") / "graph store ü")


class TestSuite(StoreSuite):
    """The behaviour that all stores share."""


class TestOwnSuite(OwnStoreSuite):
    """The same, on stores of their own."""

    rebuild = staticmethod(rebuild_store)


@pytest.fixture
def small(tmp_path):
    """(store, archive, traces) of five small traces."""
    traces = [synthetic_trace(seed=i, n=4) for i in range(5)]
    write_traces(tmp_path / "archive", traces, keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    return tmp_path / "store", tmp_path / "archive", traces


def problems(store):
    with open_store(store) as opened:
        return verify_store(opened, opened.file.archives, opened.file.deleted)


def change(store, text, params=None):
    """Manipulate a store's database behind its back."""
    with open_store(store) as opened:
        path = opened.file.path(opened.folder)
    engine = Engine(path, read_only=False)
    engine.run(text, params)
    engine.close()


# ------------------------------------------------------------------------------------- opening


def test_urls(monkeypatch, tmp_path):
    monkeypatch.delenv("GRAPHTRACE_STORE", raising=False)
    assert default_store() == "traces/store"
    monkeypatch.setenv("GRAPHTRACE_STORE", str(tmp_path / "here"))
    assert store_folder() == tmp_path / "here"
    for url in ("neo4j://localhost:7687", "bolt://x", "neo4j+s://x.databases.neo4j.io"):
        with pytest.raises(StoreError, match="is a server; give a folder"):
            store_folder(url)
    with pytest.raises(StoreError, match="unknown scheme 'http'"):
        open_store("http://x")


def test_no_store_and_not_a_store(tmp_path):
    with pytest.raises(StoreError, match=r"there is no store in .*graphtrace ingest"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        open_store(tmp_path / "papers", read_only=False)
    with pytest.raises(StoreError, match="there is no store"):
        delete_store(tmp_path / "papers")
    assert [p.name for p in (tmp_path / "papers").iterdir()] == ["thesis.tex"]


def test_a_later_format_and_a_damaged_store_file_are_said(small):
    store, *_ = small
    text = (store / "store.json").read_text()
    (store / "store.json").write_text(text.replace('"format": 2', '"format": 3'))
    with pytest.raises(StoreError, match="format 3"):
        open_store(store)
    (store / "store.json").write_text(text[:20])
    with pytest.raises(StoreDamagedError, match=r"store\.json"):
        open_store(store)


def test_a_store_of_an_earlier_format_says_rebuild(small):
    store, archive, traces = small
    text = (store / "store.json").read_text()
    (store / "store.json").write_text(text.replace('"format": 2', '"format": 1'))
    for use in (
        open_store,
        lambda url: ingest(archive, url),
        lambda url: delete_traces(url, ["x"]),
    ):
        with pytest.raises(StoreError, match=r"format 1 .*store rebuild --store"):
            use(store)
    assert rebuild_store(store).n_traces == 5
    assert len(problems(store)) == 0
    assert ingest(archive, store).n_present == len(traces)
    (store / "store.json").write_text(text.replace('"format": 2', '"format": 1'))
    delete_store(store)
    assert not store.exists()


def test_a_store_from_before_saved_runs_is_read_and_brought_up_to_date(small):
    store, archive, _ = small
    for text in (
        *(f"DROP TABLE {x}" for x in ("MEASURED", "IN_COMMUNITY", "OF_TRACE", "FOUND", "OVER")),
        "DROP TABLE Community",
        "DROP TABLE Analysis",
        "ALTER TABLE Label DROP name",
        "ALTER TABLE Checkpoint DROP name",
        "ALTER TABLE Checkpoint DROP component_counts",
        "ALTER TABLE LABELLED DROP created",
        "ALTER TABLE Input DROP created",
    ):
        change(store, text)
    with open_store(store) as opened:
        assert len(opened.traces()) == 5
        assert len(opened.subgraph("line-1")) > 0
        assert list_runs(opened).columns.tolist() == list(COLUMNS)
        assert len(list_runs(opened)) == 0
        assert opened.loose_ends() == []
        assert len(opened.component_counts(opened.traces()["id"])) == 0
        assert len(opened.curve_points(opened.traces()["id"])) > 0
        assert "Analysis" not in store_info(opened)["nodes"]
        for ask in (
            lambda: opened.query("saved-components"),
            lambda: verify_store(opened, opened.archives),
        ):
            with pytest.raises(QueryError, match="made by an earlier version") as caught:
                ask()
            assert "\n" not in str(caught.value)
    assert ingest(archive, store).n_present == 5
    assert len(problems(store)) == 0
    with open_store(store, read_only=False) as opened:
        save_analysis(opened, "centrality", centrality(opened, "k:20"), "k:20")
        assert len(list_runs(opened)) == 1
    with open_store(store) as opened:
        names = opened.query("MATCH (c:Checkpoint) RETURN c.n_edges AS n, c.name AS name")
        assert names["name"].tolist() == [f"{n} edges" for n in names["n"]]


def test_a_store_whose_making_was_interrupted_is_made_anew(small):
    store, archive, _ = small
    (store / "store.json").unlink()
    (store / "graph-1.lbug").write_bytes(b"half")
    assert ingest(archive, store).n_new == 5
    assert len(problems(store)) == 0


# ---------------------------------------------------------------------------------------- lock


HOLD = """
import sys
from graphtrace.stores.base import open_store
with open_store(sys.argv[1], read_only=sys.argv[2] == "read"):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(small):
    """Start a process that holds the store; gives its pid."""
    processes = []

    def start(read_only):
        command = [sys.executable, "-c", HOLD, str(small[0]), "read" if read_only else "write"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_lock_between_processes(small, holder):
    store, archive, _ = small
    reader = holder(read_only=True)
    with open_store(store) as beside:
        assert len(beside.traces()) == 5
    with pytest.raises(StoreLockedError, match=f"process {reader} reads it"):
        ingest(archive, store)
    for function in (rebuild_store, delete_store):
        with pytest.raises(StoreLockedError):
            function(store)
    assert (store / "store.json").is_file()
    os.kill(reader, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while True:  # the lock is free once the process is gone
        try:
            open_store(store, read_only=False).close()
            break
        except StoreLockedError:
            assert time.monotonic() < deadline
    writer = holder(read_only=False)
    for read_only in (True, False):
        start = time.monotonic()
        with pytest.raises(StoreLockedError, match=f"process {writer} writes to it"):
            open_store(store, read_only=read_only)
        assert time.monotonic() - start < 5
    os.kill(writer, signal.SIGKILL)
    with open_store(store, wait=20) as beside:
        assert len(beside.traces()) == 5


def test_lock_within_a_process(small):
    store, archive, _ = small
    with open_store(store), pytest.raises(StoreLockedError, match=r"\(this one\) reads it"):
        ingest(archive, store)
    with open_store(store, read_only=False), pytest.raises(StoreLockedError, match="writes to it"):
        open_store(store)
    assert ingest(archive, store).n_present == 5


def test_the_lock_file_stays_small(small):
    store, *_ = small
    from graphtrace.stores.lock import StoreLock

    for _ in range(3000):
        StoreLock(store / "lock", exclusive=False).release()
    assert (store / "lock").stat().st_size < 20_000


# ------------------------------------------------------------------------- verify, rebuild, delete


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("MATCH ()-[r:ATTENTION]->() SET r.score = 0.5", "content"),
        ("MATCH ()-[r:RESIDUAL]->() DELETE r", "has not the"),
        ("MATCH ()-[r:RESIDUAL]->() SET r.first = false", "first of their source"),
        ("MATCH (s:State) WHERE s.position = 1 SET s.token = ''", "State.token"),
        ("MATCH (s:State) WHERE s.level = 1 SET s.name = ''", "State.name"),
        ("MATCH (s:State) WHERE s.level = 2 SET s.experts = '1'", "State.experts"),
        ("MATCH (t:Trace) SET t.mlp_active_share = 0.5", "Trace.mlp_active_share"),
        ("MATCH (t:Trace) SET t.curves = []", "Trace.curves"),
        ("MATCH (c:Checkpoint) SET c.reference = 'm'", "Checkpoint.reference"),
        ("MATCH (i:Input) SET i.text = 'x'", "Input.text"),
        ("MATCH (t:Trace) SET t.density = 0.0", "Trace.density"),
        ("MATCH (t:Trace) SET t.tokens = ['a', 'b', 'c', 'd']", "Trace.tokens"),
        ("MATCH (c:Checkpoint) WHERE c.curve = 0 SET c.tv = 1.0", "Checkpoint.tv"),
        (
            "MATCH (c:Checkpoint) WHERE c.curve = 0 SET c.component_counts = NULL",
            "Checkpoint.component_counts",
        ),
        ("MATCH ()-[u:USES]->() SET u.n = 0", "USES.n"),
        ("MATCH ()-[r:IN_TRACE]->() DELETE r", "IN_TRACE"),
        ("MATCH (t:Trace)-[r:AT]->() DELETE r", "Checkpoint: 0 in the store"),
    ],
)
def test_verify_finds_what_was_changed(small, text, problem):
    store, _, traces = small
    assert len(problems(store)) == 0
    change(store, text)
    found = problems(store)
    assert set(found["trace"]) == {trace.id for trace in traces}
    assert found["problem"].str.contains(problem).sum() == 5
    rebuild_store(store)
    assert len(problems(store)) == 0


def test_a_store_whose_other_edges_say_that_they_are_not_first_is_right(small):
    store, _, traces = small
    with open_store(store) as opened:
        before = opened.query("trace-edges", trace=traces[0].id, size=1.0)
    assert before["first"].nunique() == 2
    for kind in ("RESIDUAL", "MLP", "ATTENTION"):
        change(store, f"MATCH ()-[r:{kind}]->() WHERE r.first IS NULL SET r.first = false")
    assert len(problems(store)) == 0
    with open_store(store) as opened:
        after = opened.query("trace-edges", trace=traces[0].id, size=1.0)
    assert after.equals(before)


def test_verify_names_missing_and_unknown_traces(small, tmp_path):
    store, archive, _ = small
    extra = synthetic_trace(seed=7, n=4)
    write_traces(archive, [extra], keep="all")
    found = problems(store)
    assert found[["trace", "name"]].to_numpy().tolist() == [[extra.id, "line-7"]]
    assert "not in the store" in found["problem"].iloc[0]
    shutil.move(archive, tmp_path / "elsewhere")
    found = problems(store)["problem"]
    assert found.str.contains("cannot be read").sum() == 1
    assert found.str.contains("none of its archives").sum() == 5


def test_rebuild_takes_new_traces_and_swaps(small):
    store, archive, _ = small
    write_traces(archive, [synthetic_trace(seed=7, n=4)], keep="all")
    result = rebuild_store(store)
    assert (result.n_traces, result.n_added, result.n_removed) == (6, 1, 0)
    assert sorted(p.name for p in store.iterdir()) == ["graph-2.lbug", "lock", "store.json"]
    assert len(problems(store)) == 0


def test_rebuild_without_the_archive_leaves_the_store(small, tmp_path):
    store, archive, traces = small
    shutil.move(archive, tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"archive .* cannot be read"):
        rebuild_store(store)
    with pytest.raises(StoreError, match="cannot be read"):
        delete_traces(store, ["line-1"])
    with open_store(store) as opened:
        assert len(opened.traces()) == 5
        assert len(opened.subgraph(traces[1].id)) == traces[1].n_edges


def test_deleted_traces_stay_away(small):
    store, archive, traces = small
    result = delete_traces(store, ["line-1", traces[2].id])
    assert (result.n_traces, result.n_removed) == (3, 2)
    again = ingest(archive, store)
    assert (again.n_new, again.n_present, again.n_deleted) == (0, 3, 2)
    assert rebuild_store(store).n_traces == 3
    with open_store(store) as opened:
        left = {traces[i].id for i in (0, 3, 4)}
        assert set(opened.traces()["id"]) == left
        assert store_info(opened)["deleted"] == 2
        assert opened.cypher("MATCH (i:Input) RETURN count(i) AS n")["n"].tolist() == [3]
    assert len(problems(store)) == 0
    back = ingest(archive, store, restore=True)
    assert (back.n_new, back.n_deleted) == (2, 0)
    assert ingest(archive, store).n_present == 5
    assert len(problems(store)) == 0


def test_delete_by_settings_and_model(small):
    store, archive, traces = small
    with pytest.raises(OptionError, match="no trace with settings 's0'; settings here: sadb"):
        delete_traces(store, settings="s0")
    with pytest.raises(OptionError, match="no trace of model 'tow'; models here: toy"):
        delete_traces(store, model="tow")
    with pytest.raises(TraceNotFoundError):
        delete_traces(store, ["line-77"])
    with pytest.raises(OptionError, match="nothing to delete"):
        delete_traces(store)
    assert delete_traces(store, settings=traces[0].settings.id).n_traces == 0
    ingest(archive, store, restore=True)
    assert delete_traces(store, model="toy").n_removed == 5


def test_delete_where_all_conditions_hold(tmp_path):
    traces = [synthetic_trace(i, labels={"group": "ab"[i % 2]}) for i in range(6)]
    traces += [dataclasses.replace(t, settings=Settings(scorer="l2")) for t in traces]
    archive, store = tmp_path / "archive", tmp_path / "store"
    write_traces(archive, traces, keep="all")
    ingest(archive, store)
    with pytest.raises(OptionError, match=r"settings 's0'; settings here: .*scorer l2: 6"):
        delete_traces(store, settings="s0")
    with pytest.raises(OptionError, match="values of group here: a, b"):
        delete_traces(store, where=["group=c"])
    with open_store(store) as opened:
        assert len(opened.traces()) == 12
        assert opened.deleted == ()
    settings = traces[6].settings.id
    assert delete_traces(store, settings=settings, where=["group=a"]).n_removed == 3
    gone = {t.id for t in traces[6:] if t.input.labels["group"] == "a"}
    with open_store(store) as opened:
        assert set(opened.traces()["id"]) == {t.id for t in traces} - gone
        assert set(opened.deleted) == gone
    assert ingest(archive, store).n_deleted == 3
    assert delete_traces(store, settings=settings).n_removed == 3
    with open_store(store) as opened:
        assert set(opened.traces()["settings"]) == {traces[0].settings.id}


def test_delete_the_store(small):
    store, archive, _ = small
    delete_store(store)
    assert not store.exists()
    assert ingest(archive, store).n_new == 5


def test_info(small):
    store, archive, traces = small
    with open_store(store) as opened:
        info = store_info(opened)
    assert info["nodes"]["Trace"] == 5
    assert info["relationships"]["RESIDUAL"] == sum(
        (t.edges()["kind"] == "residual").sum() for t in traces
    )
    assert info["models"] == {"toy": 5}
    assert info["archives"] == {str(archive.resolve()): 5}
    assert info["bytes"] == (store / "graph-1.lbug").stat().st_size > 0


# ------------------------------------------------------------------------------------- recovery

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from builders import synthetic_trace
from graphtrace.stores.base import open_store
store = open_store({store!r}, read_only=False)
store.engine.run("MATCH (t:Trace) SET t.version = 'after'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_damaged_log_is_put_right(small):
    store, *_ = small
    code = textwrap.dedent(KILLED).format(tests=os.path.dirname(__file__), store=str(store))  # noqa: PTH120
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    log = store / "graph-1.lbug.wal"
    content = bytearray(log.read_bytes())
    content[len(content) // 2 :] = np.random.default_rng(0).bytes(len(content) // 2 + 1)
    log.write_bytes(content)
    with pytest.warns(StoreRepairedWarning, match="could not be opened"):
        opened = open_store(store)
    opened.close()
    assert len(problems(store)) == 0
    (aside,) = store.glob("damaged-*")
    assert (aside / "graph-1.lbug.wal").read_bytes() == content


def test_a_missing_or_ruined_database_is_rebuilt(small):
    store, *_ = small
    (store / "graph-1.lbug").unlink()
    with pytest.warns(StoreRepairedWarning, match="rebuilt"):
        open_store(store).close()
    assert len(problems(store)) == 0
    (store / "graph-2.lbug").write_bytes(b"no database" * 1000)
    with pytest.warns(StoreRepairedWarning, match="rebuilt"):
        open_store(store, read_only=False).close()
    assert len(problems(store)) == 0


def test_a_ruined_database_without_its_archive_is_an_error(small, tmp_path):
    store, archive, _ = small
    shutil.move(archive, tmp_path / "elsewhere")
    (store / "graph-1.lbug").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreDamagedError, match="bring the archive back"):
        open_store(store)
    shutil.move(tmp_path / "elsewhere", archive)
    with pytest.warns(StoreRepairedWarning, match="rebuilt"):
        open_store(store).close()
