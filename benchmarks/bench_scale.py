"""A whole study: 5,000 inputs of one model, kept at 1 %, through every analysis and the report.

The traces are made up (random scores, true best-first ranks) with the shape of a 32-layer model
with 32 heads at 50 tokens: |E| = 1,271,053, of which 1 % is kept, so 5,000 of them hold 64 M edges.
Sixty different rankings are dealt out to the inputs; the curves differ in every one. Takes about
half an hour and 5 GB of disk. Run with `python -m benchmarks bench_scale`; in the environment,

    GRAPHTRACE_BENCH_TRACES    200 makes a small study
    GRAPHTRACE_BENCH_STUDY     a folder that keeps the archive and the store for the next run
    GRAPHTRACE_BENCH_COMMANDS  some of `COMMANDS`, such as report
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from graphtrace import schema
from graphtrace.archive_write import write_traces
from graphtrace.layout import GraphLayout
from graphtrace.ranking import best_first_ranks
from graphtrace.sizes import SIZE_GRID
from graphtrace.subgraph import component_index
from graphtrace.traces import Curve, Trace

N_TRACES = int(os.environ.get("GRAPHTRACE_BENCH_TRACES", "5000"))
SHAPE = (32, 32)
N_TOKENS = 50
DISTINCT = 60
COMMANDS: dict[str, list[str]] = {
    "analyze reconstruction": ["analyze", "reconstruction"],
    "analyze nucleus": ["analyze", "nucleus"],
    "analyze structure": ["analyze", "structure"],
    "analyze density": ["analyze", "density"],
    "analyze correlates": ["analyze", "correlates"],
    "analyze core-stability": ["analyze", "core-stability", "--size", "0.01"],
    "analyze centrality": ["analyze", "centrality", "--size", "0.01"],
    "analyze modularity": ["analyze", "modularity", "--size", "0.01"],
    "report": ["report", "--size", "0.01", "--out"],
}
"""Each is run on the store and on the archive, with nothing kept from before."""


def distinct_traces() -> list[Trace]:
    """Rankings of random scores in which residual edges are heavy, cut at 1 %."""
    from builders import model_info, synthetic_trace

    model = model_info(*SHAPE, name="study")
    layout = GraphLayout(N_TOKENS, *SHAPE, False, None)
    columns = layout.columns
    node = columns.level.astype(np.int64) * N_TOKENS + columns.target
    n_components = len(schema.components(*SHAPE, False))
    small = synthetic_trace(0, n=N_TOKENS, model=model_info())
    grid = np.array([*SIZE_GRID, 1.0])
    k = np.floor(grid * layout.n_edges).astype(np.int64)
    found = []
    for seed in range(DISTINCT):
        rng = np.random.default_rng(seed)
        weight = rng.gamma(0.3, size=layout.n_edges)
        weight[columns.kind == schema.RESIDUAL] *= 200
        weight[columns.kind == schema.MLP] *= 100
        score = (weight / np.bincount(node, weight)[node]).astype(np.float32)
        order = np.argsort(best_first_ranks(layout, score))
        component = component_index(layout, columns)[order]
        counts = np.stack([np.bincount(component[:n], minlength=n_components) for n in k])
        ranked = columns._replace(score=score).take(order[: k[grid == 0.01][0]])
        trace = dataclasses.replace(
            small,
            model=model,
            ranked=ranked,
            curves=(_curve(small.curves[0], layout.n_edges, grid, k, rng),),
            component_counts=counts,
        )
        found.append(trace)
    return found


def _curve(like: Curve, n_edges: int, grid, k, rng) -> Curve:
    tv = 0.95 / (1 + (grid / 10 ** rng.normal(-3, 0.4)) ** 0.8) * (grid < 1)
    return dataclasses.replace(
        like,
        n_edges=n_edges,
        grid=grid,
        k=k,
        tv=tv,
        kl=2 * tv,
        p_predicted=1 - tv,
        nucleus=np.select([tv < 0.1, tv < 0.4], [90, 10], 0).astype(np.int32),
    )


def study(n_traces: int) -> Iterator[Trace]:
    """`n_traces` inputs: a ranking each, a curve and facts of their own."""
    distinct = distinct_traces()
    rng = np.random.default_rng(1)
    for i in range(n_traces):
        base = distinct[i % DISTINCT]
        curve = base.curves[0]
        own = _curve(curve, curve.n_edges, curve.grid, curve.k, rng)
        yield dataclasses.replace(
            base,
            input=dataclasses.replace(
                base.input, name=f"x{i}", labels={"group": "ab"[i % 2], "pair": str(i // 2)}
            ),
            curves=(own,),
            entropy=float(own.density + rng.normal(0, 0.5)),
            loss=float(rng.gamma(2)),
            predicted_id=int(rng.integers(len(base.top_tokens))),
            mass90_edges=int(rng.integers(100_000, 300_000)),
            score_gini=float(rng.uniform(0.8, 0.95)),
            mlp_active_share=float(rng.uniform(0.1, 0.4)),
        )


def resident(root: int) -> int:
    """Bytes that a process and all its children hold, shared pages counted once for each."""
    children: dict[int, list[int]] = {}
    held: dict[int, int] = {}
    page = os.sysconf("SC_PAGE_SIZE")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended since it was listed
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        held[int(folder.name)] = int(fields[21]) * page
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += held.get(process, 0)
        waiting += children.get(process, [])
    return total


def command(arguments: list[str]) -> tuple[float, float]:
    """(seconds, peak gigabytes of all its processes) of a command of graphtrace."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "graphtrace", *arguments], stdout=subprocess.DEVNULL
    )
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = process.wait()
    finally:
        ended.set()
        watcher.join()
    if code:
        raise RuntimeError(f"graphtrace {' '.join(arguments)} exited with {code}")
    return time.perf_counter() - start, peak / 1e9


def tables() -> dict[str, pd.DataFrame]:
    """How long every command takes on the store and on the archive, and the memory it needs."""
    kept = os.environ.get("GRAPHTRACE_BENCH_STUDY")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(kept or temporary)
        archive, store = root / "archive", root / "store"
        rows = []
        if not archive.exists():
            start = time.perf_counter()
            write_traces(archive, study(N_TRACES), keep=0.01)
            rows.append({"command": "make the archive", "store_s": time.perf_counter() - start})
        if not store.exists():
            ingest = command(["ingest", str(archive), "--store", str(store)])
            rows.append({"command": "ingest", "store_s": ingest[0], "store_gb": ingest[1]})
        os.environ["GRAPHTRACE_CACHE"] = ""
        wanted = os.environ.get("GRAPHTRACE_BENCH_COMMANDS")
        names = wanted.split(",") if wanted else list(COMMANDS)
        for name in names:
            arguments = COMMANDS[name]
            row: dict[str, object] = {"command": name}
            out = [str(root / "report.html")] if arguments[-1] == "--out" else []
            for source, place in (("store", store), ("archive", archive)):
                took = command([*arguments, *out, f"--{source}", str(place)])
                row |= {f"{source}_s": took[0], f"{source}_gb": took[1]}
            rows.append(row)
            print(row, flush=True)
        columns = ["command", "store_s", "store_gb", "archive_s", "archive_gb"]
        frame = pd.DataFrame(rows, columns=columns)
        edges = GraphLayout(N_TOKENS, *SHAPE, False, None).n_edges // 100
        title = f"A study of {N_TRACES:,} inputs kept at 1 % ({N_TRACES * edges:,} edges)"
    return {title: frame}
