"""A Neo4j server: traces written from an archive and read back.

Many traces of the bundled model's shape (12,555 edges each, as in `bench_store`), and one of
1.16 million edges; every row in a process of its own, with the driver's compiled extension
(neo4j-rust-ext) and without, on a server with the memory settings of docker/compose.yaml and on a
smaller one. CPU seconds are of this process and of the server: on a machine that
other work shares they say more than the wall clock. Needs the real servers of `../shared/neo4j`;
run alone with `python -m benchmarks bench_server`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from benchmarks.bench_neo4j import PASSWORD, SERVER, VERSION, run_server
from benchmarks.bench_store import archive_of, median_ms

ROUNDS = 3
SERVERS = {
    "as docker/": (("--heap", "2g", "--pagecache", "1g"), "-XX:G1HeapRegionSize=8m"),
    "1 GB heap": ((), ""),
}
"""Options and Java's options of a server: those of docker/compose.yaml, and 1 GB for all."""
LONG_SHAPE = (12, 12, 132)
"""Layers, heads and tokens of the long trace."""


def child(what: str, folder: Path, rust: bool, **options: int) -> dict[str, float]:
    """Run one of WORK in a process of its own; what it printed."""
    command = [sys.executable, "-m", "benchmarks.bench_server", what, str(folder), str(int(rust))]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [*command, json.dumps(options)], capture_output=True, text=True, cwd=root, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _server_cpu() -> float:
    """CPU seconds of the server so far."""
    process = Path("/proc", os.environ["NEO4J_PID"], "stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, process[11:13])) / os.sysconf("SC_CLK_TCK")


def _peak_mb() -> float:
    # Not ru_maxrss, which begins at what the process held that this one was started from.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def write(folder: Path, workers: int = 3) -> dict[str, float]:
    """Ingest an archive into an empty store: the median of three, after one that warms up."""
    import numpy as np

    from graphtrace.ingestion import ingest
    from graphtrace.stores.maintenance import delete_store

    rows = []
    for _ in range(ROUNDS + 1):
        delete_store("neo4j://", missing_ok=True)
        before, base = (time.process_time(), _server_cpu()), _peak_mb()
        result = ingest(folder, "neo4j://", workers=workers)
        client, server = time.process_time() - before[0], _server_cpu() - before[1]
        rows.append((result.seconds, client, server, _peak_mb() - base))
    took, client, server, _ = np.median(rows[1:], axis=0)
    return {
        "traces": result.n_new,
        "edges": result.n_edges,
        "seconds": took,
        "edges/s": result.n_edges / took,
        "client CPU s": client,
        "server CPU s": server,
        "memory MB": rows[0][3],
    }


def read(folder: Path, size: int = 0) -> dict[str, float]:
    """Read one trace of the store: its sub-graph and, from it, the igraph graph."""
    from graphtrace.stores.base import open_store

    with open_store("neo4j://") as store:
        trace = store.traces()["id"].iloc[0]
        k = f"k:{size}" if size else 1.0
        edges = len(store.subgraph(trace, k).rank)
        rounds = 3 if edges > 1e6 else 25
        return {
            "edges": edges,
            "sub-graph ms": median_ms(lambda: store.subgraph(trace, k), rounds),
            "with igraph ms": median_ms(lambda: store.subgraph(trace, k).to_igraph(), rounds),
        }


WORK = {"write": write, "read": read}


@contextmanager
def running(folder: Path, name: str):
    """A server of SERVERS in an empty folder, named in the environment."""
    options, java = SERVERS[name]
    os.environ["JAVA_TOOL_OPTIONS"] = java
    start = ("start", "--home", str(folder), "--version", VERSION, "--password", PASSWORD)
    os.environ.update(re.findall(r"export (\w+)=(\S+)", run_server(*start, *options)))
    try:
        yield
    finally:
        run_server("kill", str(folder))


def server_tables(folder: Path, count: int) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    from builders import model_info, synthetic_trace

    many, one = folder / "many", folder / "one"
    model = model_info(6, 8)
    archive_of(many, 0, count, [synthetic_trace(seed=i, n=24, model=model) for i in range(8)])
    n_layers, n_heads, n_tokens = LONG_SHAPE
    long = synthetic_trace(seed=0, n=n_tokens, model=model_info(n_layers, n_heads))
    archive_of(one, 0, 1, [long])
    written, found = [], []

    def row(what: str, path: Path, rust: bool, **options: int) -> None:
        name = {"many": f"{count} traces", "one": "one long trace"}[path.name]
        facts = {"server": server, "archive": name, "workers": 3} | options
        facts["rust extension"] = "yes" if rust else "no"
        into = written if what == "write" else found
        into.append(facts | child(what, path, rust, **options))
        print(into[-1], file=sys.stderr, flush=True)

    server = "as docker/"
    with running(folder / "large", server):
        child("write", many, True)  # the server compiles
        for workers in (1, 2, 3, 4):
            row("write", many, True, workers=workers)
        row("write", many, False)
        for rust in (True, False):
            row("read", many, rust)
        for rust in (True, False):
            row("write", one, rust)
        for rust in (True, False):
            row("read", one, rust)
        row("read", one, True, size=12_555)
    server = "1 GB heap"
    with running(folder / "small", server):
        child("write", many, True)
        for path in (many, one):
            row("write", path, True)
            row("read", path, True)
    return {
        "Neo4j: archives written to a server": pd.DataFrame(written),
        "Neo4j: a trace read back": pd.DataFrame(found).drop(columns=["size", "workers"]),
    }


def tables(count: int | None = None) -> dict[str, pd.DataFrame]:
    """Title -> table. count: traces, 120 by default (GRAPHTRACE_BENCH_TRACES)."""
    if not SERVER.is_file():
        print("bench_server: the servers of ../shared/neo4j are not here; left out")
        return {}
    count = count or int(os.environ.get("GRAPHTRACE_BENCH_TRACES", "120"))
    with tempfile.TemporaryDirectory() as name:
        return server_tables(Path(name), count)


def main() -> None:
    """One of WORK, its figures as JSON."""
    what, folder, rust, options = sys.argv[1:]
    if not int(rust):
        sys.modules["neo4j._rust"] = None  # type: ignore[assignment]
    from neo4j._codec.packstream import v1

    if (v1._rust_pack is not None) != bool(int(rust)):
        raise RuntimeError(f"the driver's extension is not as asked for ({rust})")
    print(json.dumps(WORK[what](Path(folder), **json.loads(options)), default=float))


if __name__ == "__main__":
    main()
