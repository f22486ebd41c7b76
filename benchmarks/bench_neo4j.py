"""Neo4j: from an archive to a server that answers, through Neo4j's own importer.

The traces are those of `bench_store` (12,555 edges each, all kept). Needs the real servers of
`../shared/neo4j`; run alone with `python -m benchmarks bench_neo4j`. The full size, ten million
edges, is `import_table(folder, 797)`.
"""

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from benchmarks.bench_store import archive_of
from graphtrace.neo4j_import import export_neo4j_import

SERVER = Path(__file__).resolve().parent.parent.parent / "shared" / "neo4j" / "neo4j"
VERSION = "5.26.30"
ASKED = (
    "MATCH (:Trace {status: 'complete'})<-[:IN_TRACE]-(:State)-[r:ATTENTION]->() RETURN count(r)"
)


PASSWORD = secrets.token_hex(12)
"""One that a server draws may begin with a hyphen, which its tools take for an option."""


def run_server(*arguments: str, folder: Path | None = None) -> str:
    done = subprocess.run([SERVER, *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


def import_table(
    folder: Path, count: int, version: str = VERSION, heap: str = "1g", pagecache: str = "512m"
) -> pd.DataFrame:
    """One row per step from an archive of `count` traces to a server that answers."""
    import neo4j
    from builders import model_info, synthetic_trace
    from neo4j_import_server import finish

    model = model_info(6, 8)
    distinct = [synthetic_trace(seed=i, n=24, model=model) for i in range(8)]
    archive_of(folder / "archive", 0, count, distinct)
    home = str(folder / "home")
    start = ("start", "--home", home, "--version", version, "--heap", heap, "--password", PASSWORD)
    # The server's folder must have been made; what is timed is a database's first filling.
    run_server(*start, "--pagecache", pagecache)
    run_server("stop", home)
    rows, begun = [], time.perf_counter()

    def step(what: str) -> None:
        rows.append({"step": what, "seconds": time.perf_counter() - begun - total()})

    def total() -> float:
        return sum(row["seconds"] for row in rows)

    files = export_neo4j_import(folder / "archive", folder / "files")
    step("export of the archive")
    command = files.command.split()[1:]
    run_server("admin", home, *command, "--overwrite-destination", folder=files.folder)
    step("neo4j-admin database import")
    found = dict(re.findall(r"export (\w+)=(\S+)", run_server(*start, "--pagecache", pagecache)))
    step("start of the server")
    auth = (found["NEO4J_USERNAME"], found["NEO4J_PASSWORD"])
    try:
        with neo4j.GraphDatabase.driver(found["NEO4J_URI"], auth=auth) as driver:
            finish(driver, files.folder)
            step("finish.cypher")
            (record,) = driver.execute_query(ASKED).records
            step("first answer, over every state")
    finally:
        run_server("kill", home)
    assert record[0] == files.relationships["ATTENTION"]
    edges = sum(files.relationships[kind] for kind in ("RESIDUAL", "MLP", "ATTENTION"))
    rows.append({"step": f"all, {count:,} traces of {edges:,} edges", "seconds": total()})
    table = pd.DataFrame(rows)
    table["edges/s"] = (edges / table["seconds"]).round()
    sizes = (path.stat().st_size for path in files.folder.glob("*.parquet"))
    print(f"{sum(sizes) / edges:.1f} bytes per edge in the files", file=sys.stderr)
    return table


def tables(count: int | None = None) -> dict[str, pd.DataFrame]:
    """Title -> table. count: traces, 797 by default (GRAPHTRACE_BENCH_TRACES)."""
    if not SERVER.is_file():
        print("bench_neo4j: the servers of ../shared/neo4j are not here; left out")
        return {}
    count = count or int(os.environ.get("GRAPHTRACE_BENCH_TRACES", "797"))
    with tempfile.TemporaryDirectory() as name:
        return {"Neo4j: an archive through the importer": import_table(Path(name), count)}
