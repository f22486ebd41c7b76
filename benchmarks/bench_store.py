"""The embedded store: how fast it takes traces in, and how fast it answers.

The traces are made up (random scores, true best-first ranks) with the shape of the bundled model's:
6 layers, 8 heads, 24 tokens, 12,555 edges each, all of them kept. Run alone with
`python -m benchmarks bench_store --json FILE`.
"""

import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.timing import seconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from graphtrace.archive_write import write_traces
from graphtrace.ingestion import ingest
from graphtrace.sizes import ShortTraceWarning
from graphtrace.stores.base import open_store
from graphtrace.stores.maintenance import rebuild_store
from graphtrace.stores.verify import verify_store

QUERIES = {
    "minimal-core": {},
    "component-usage": {},
    "heads-reading-token": {"token": " the"},
    "strongest-path": {"trace": "x7", "position": 3},
    "compare-traces": {"trace": "x7", "other": "x8"},
    "entering": {"trace": "x7"},
    "token-dependence": {"trace": "x7"},
    "layer-share": {},
    "traces-by-density": {},
    "trace-edges": {"trace": "x7"},
    "reconstruction-curve": {"trace": "x7"},
    "top-edges-of-head": {"layer": 2, "head": 3},
    "inputs-using-component": {"component": "L2H3"},
    "labels": {},
}


def archive_of(folder: Path, first: int, count: int, distinct: list) -> None:
    """Write `count` traces x{first} ... of the shapes in `distinct`."""
    named = (
        dataclasses.replace(trace, input=dataclasses.replace(trace.input, name=f"x{i}"))
        for i in range(first, first + count)
        for trace in [distinct[i % len(distinct)]]
    )
    write_traces(folder, named, keep="all")


def median_ms(work, rounds: int) -> float:
    """Median milliseconds of a call, after one that warms up."""
    work()
    return 1000 * statistics.median(seconds(work) for _ in range(rounds))


def ingest_table(folder: Path, parts: int, count: int) -> pd.DataFrame:
    """One row per ingest into a growing store: parts of `count` traces, then a single one."""
    from builders import model_info, synthetic_trace

    model = model_info(6, 8)
    distinct = [
        synthetic_trace(seed=i, n=24, model=model, labels={"group": "ab"[i % 2]}) for i in range(8)
    ]
    rows = []
    for part, size in enumerate([*[count] * parts, 1]):
        archive_of(folder / f"archive-{part}", part * count, size, distinct)
        result = ingest(folder / f"archive-{part}", folder / "store")
        edges = result.n_edges
        rows.append(
            {
                "traces before": part * count,
                "traces added": result.n_new,
                "edges": edges,
                "seconds": result.seconds,
                "million edges/s": edges / result.seconds / 1e6,
            }
        )
    table = pd.DataFrame(rows)
    total = table.iloc[:parts][["traces added", "edges", "seconds"]].sum()
    n_traces, edges, taken = int(total.iloc[0]), int(total.iloc[1]), float(total.iloc[2])
    table = table.astype({"traces before": object})
    table.loc[len(table)] = ["all batches", n_traces, edges, taken, edges / taken / 1e6]
    return table


def tables(parts: int = 3, count: int = 240, rounds: int = 15) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    import warnings

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortTraceWarning)
        folder = Path(name)
        ingested = ingest_table(folder, parts, count)
        rows = []

        def row(what, value):
            rows.append({"what": what, "median_ms": value})

        url = folder / "store"
        row("open the store", median_ms(lambda: open_store(url).close(), 5))
        with open_store(url) as store:
            row("list of all traces", 1000 * seconds(store.traces))
            trace = store.resolve("x7")
            n = store.traces().set_index("id")["n_edges"][trace]
            row(f"one trace of {n:,} edges", median_ms(lambda: store.subgraph(trace), rounds))
            row(
                f"one trace of {n:,} edges as igraph",
                median_ms(lambda: store.subgraph(trace).to_igraph(), rounds),
            )
            row("one trace, top 1 %", median_ms(lambda: store.subgraph(trace, 0.01), rounds))
            for query, params in QUERIES.items():
                row(f"query {query}", median_ms(lambda q=query, p=params: store.query(q, **p), 3))
            count_all = len(store.traces())
            verified = seconds(lambda: verify_store(store, store.file.archives))
            row("verify, per trace", 1000 * verified / count_all)
            size = store.file.path(url).stat().st_size
        edges = int(ingested["edges"].sum())
        rebuilt = seconds(lambda: rebuild_store(url))
    facts = pd.DataFrame(
        [
            {"what": "bytes per edge on disk", "value": size / edges},
            {"what": "rebuild, million edges/s", "value": edges / rebuilt / 1e6},
        ]
    )
    return {
        "Embedded store: ingest into a growing store": ingested,
        f"Embedded store: reading, {count_all:,} traces and {edges:,} edges": pd.DataFrame(rows),
        "Embedded store: size and rebuild": facts,
    }
