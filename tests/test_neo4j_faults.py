"""Faults with a real server: SIGKILL of the ingest or of the server, cut connections, a full disk,
a database that turns read-only. After each, the same ingest again ends with exactly the archive's
traces.

GRAPHTRACE_FAULT_ROUNDS says how many rounds (`100`) or which (`100:200`); 50 in CI, 10 elsewhere.
GRAPHTRACE_FAULT_LOG names a file that gets a line of JSON per round (docs/reliability.md).
"""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import neo4j_server
import numpy as np
import pytest
from builders import model_info, synthetic_trace
from ingest_processes import Ingests

from graphtrace.archive import open_archive
from graphtrace.archive_write import write_traces
from graphtrace.errors import StoreError
from graphtrace.ingestion import ingest
from graphtrace.stores import neo4j_connection
from graphtrace.stores.base import open_store
from graphtrace.stores.maintenance import delete_store
from graphtrace.stores.neo4j_connection import Server
from graphtrace.stores.verify import verify_store

ROUNDS = os.environ.get("GRAPHTRACE_FAULT_ROUNDS", "50" if os.environ.get("CI") else "10")
FIRST, _, STOP = ROUNDS.rpartition(":")

LOG = os.environ.get("GRAPHTRACE_FAULT_LOG")
N_TRACES = 12


def kind_of(number):
    """What is broken in a round. A server that was started anew is slow at first, so few rounds
    need that."""
    if number % 8 == 2:
        return ("server", "full disk", "server", "read-only")[number // 8 % 4]
    return "connection" if number % 8 in (1, 5) else "ingest"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def victim(home):
    """URL of a server of our own, that may be killed; its NEO4J_* are set."""
    with neo4j_server.started(home) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment["NEO4J_URI"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / "a"
    other = model_info(4, 2, name="other")
    traces = [synthetic_trace(seed=i, n=5 + i % 3) for i in range(N_TRACES - 3)]
    traces += [synthetic_trace(seed=i, n=14, model=other) for i in range(3)]
    write_traces(folder, traces, keep="all")
    return folder


def content():
    """How many nodes of every label, how many relationships of every type."""
    server = Server("neo4j://")
    try:
        nodes = "MATCH (n) UNWIND labels(n) AS label RETURN label, count(*)"
        edges = "MATCH ()-[r]->() RETURN type(r), count(*)"
        return dict(server.read(nodes)) | dict(server.read(edges))
    finally:
        server.close()


@pytest.fixture(scope="module")
def ingests(victim):
    with Ingests() as processes:  # with the victim's NEO4J_*
        yield processes


@pytest.fixture(scope="module")
def clean(victim, archive, ingests, home):
    """(contents after an undisturbed ingest, the seconds that it takes in a process of its own)."""
    seconds = 0.0
    for _ in range(3):  # the first time the server plans the statements
        delete_store(victim, missing_ok=True)
        started = time.perf_counter()
        ingests.start(archive, victim, 1, home)
        out, err = ingests.result()
        assert out == N_TRACES * "trace\n" + "done\n", err
        seconds = time.perf_counter() - started
    found = content()
    delete_store(victim)
    return found, seconds


class Proxy:
    """Passes bytes on to a server until `cut`, which breaks every connection at once."""

    def __init__(self, url):
        host, _, port = url.rpartition("/")[2].partition(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"bolt://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock, self.is_cut = threading.Lock(), False
        self.sockets, self.pumps = [], []
        self.acceptor = threading.Thread(target=self._accept, daemon=True)
        self.acceptor.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                with self.lock:
                    self.sockets.append(near)
                    if self.is_cut:
                        return
                    try:
                        far = socket.create_connection(self.target)
                    except OSError:  # the server is down
                        near.shutdown(socket.SHUT_RDWR)
                        continue
                    self.sockets.append(far)
                    for pair in ((near, far), (far, near)):
                        pump = threading.Thread(target=self._pump, args=pair, daemon=True)
                        self.pumps.append(pump)
                        pump.start()

    @staticmethod
    def _pump(source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Break every connection and take no more."""
        with self.lock:
            self.is_cut = True
            for one in [self.listener, *self.sockets]:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self.acceptor.join()
        for pump in self.pumps:
            pump.join()
        for one in [self.listener, *self.sockets]:
            one.close()


def check_what_is_seen(url, archive):
    """Every trace that is there is whole; what is not there is not there at all. How many are."""
    try:
        with open_store(url) as store:
            found = verify_store(store, [archive])["problem"]
            n = len(store.traces())
    except StoreError as error:
        if "there is no store in" not in str(error):
            raise
        return 0
    allowed = ("not in the store", "half-written", "being removed")
    assert [x for x in found if not any(word in x for word in allowed)] == []
    return n


def empty(url, number):
    """Every sixth round begins without a store; the others, which are quicker, with an empty
    one."""
    if number % 6 == 0:
        delete_store(url, missing_ok=True)
        return
    server = Server(url)
    try:
        server.run("MATCH (n:Graphtrace) WHERE NOT n:GraphtraceStore DETACH DELETE n")
    finally:
        server.close()


@pytest.mark.parametrize("number", range(int(FIRST or 0), int(STOP)))
def test_fault(victim, archive, home, clean, ingests, number, monkeypatch):
    expected, seconds = clean
    kind = kind_of(number)
    rng = np.random.default_rng(number)
    empty(victim, number)
    monkeypatch.setattr(neo4j_connection, "RETRY_SECONDS", 5.0)
    proxy = Proxy(victim)
    child = ingests.start(archive, proxy.url, 60 if kind == "read-only" else 1, home)
    try:
        if number % 6 == 0:
            time.sleep(rng.uniform(0, seconds))  # also while the schema is made
        else:
            ingests.wait_for(rng.integers(0, N_TRACES + 1))
            time.sleep(rng.uniform(0, 0.2))
        if kind == "ingest":
            with suppress(ProcessLookupError):  # it has finished
                os.kill(child, signal.SIGKILL)
        elif kind == "connection":
            proxy.cut()
        elif kind == "full disk":
            neo4j_server.fill_disk(home)
        elif kind == "server":
            neo4j_server.kill(home)
        else:
            neo4j_server.restart_read_only(home)
    finally:
        out, err = ingests.result()
        proxy.cut()
    if kind not in ("ingest", "connection"):
        subprocess.run([neo4j_server.SCRIPT, "kill", str(home)], check=False, capture_output=True)
        neo4j_server.start(home)
    if kind != "ingest" and "done" not in out:
        assert "graphtrace.errors.StoreError" in err.splitlines()[-1]
        # A server that comes back read-only may be met before it is back.
        said = ["run the same command again"] + ["takes no changes now"] * (kind == "read-only")
        assert any(words in err.splitlines()[-1] for words in said)
    seen = check_what_is_seen(victim, archive)
    ingest(archive, victim)
    with open_store(victim) as store, open_archive(archive) as opened:
        assert sorted(store.traces()["id"]) == sorted(opened.traces()["id"])
        assert verify_store(store, [archive])["problem"].tolist() == []
    assert content() == expected
    if LOG:
        row = {"kind": kind, "finished before": "done" in out, "traces seen": seen}
        with Path(LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
