"""Time and peak memory as inputs grow longer, more numerous, or are asked for at more sizes.

`python -m benchmarks bench_scaling [--write]`; the full run takes minutes. Every point is a process
of its own, so that its peak memory is its own: the most that the process held during the traces,
model, libraries and compiled code included. `held_before_mb` is what it held just before.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.timing import seconds
from graphtrace.layout import GraphLayout

LENGTHS = (32, 64, 128, 256, 512, 1024)
INPUTS = (1, 8, 32, 128)
SIZES = (1, 3, 9, 27)
ROOM_GB = 8.0
"""What a point may take; more is reported as a failure."""

BY_LENGTH = "Scaling with the length of the input: random Llama, L = 16, H = 16, d = 512, 27 sizes"
BY_INPUTS = "Scaling with the number of inputs: extract, demo model, 24 tokens each, 27 sizes"
BY_SIZES = "Scaling with the number of sizes: random Llama, L = 16, H = 16, d = 512, n = 48"
ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------ one point, in its process


def point_of_length(n_tokens: int, n_sizes: int, rounds: int, full: bool) -> dict[str, Any]:
    """One input of a random model: seconds of the parts, edges, forwards.

    full: rank every edge; else only 1 %.
    """
    from benchmarks.random_models import Shape, random_ids, random_llama
    from graphtrace.measuring import plain_forward
    from graphtrace.options import TraceOptions
    from graphtrace.scoring import score_edges
    from graphtrace.sizes import SIZE_GRID
    from graphtrace.tokenizing import tokenize
    from graphtrace.tracing import trace_tokens

    model = random_llama(Shape(16, 16, 512, n_tokens))
    ids = random_ids(model, n_tokens)
    tokens = tokenize(model, ids.tolist())
    options = TraceOptions(sizes=some_sizes(SIZE_GRID, n_sizes))
    n_kept = None if full else max(1, GraphLayout(n_tokens, 16, 16).n_edges // 100)
    warm_up = tokenize(model, ids[: min(16, n_tokens)].tolist())
    trace_tokens(model, warm_up, options, None if full else 10)
    plain_forward(model, ids)
    before = held_mb()
    times, forwards = [], []
    for _ in range(rounds):
        forwards.append(seconds(lambda: plain_forward(model, ids)))
        times.append(seconds(lambda: trace_tokens(model, tokens, options, n_kept)))
    peak = peak_mb()
    scoring = seconds(lambda: score_edges(model, ids))
    median, forward = statistics.median(times), statistics.median(forwards)
    return {
        "seconds": median,
        "forward_s": forward,
        "scoring_s": scoring,
        "per_forward": median / forward,
        "held_before_mb": before,
        "peak_mb": peak,
    }


def point_of_inputs(n_inputs: int, n_tokens: int) -> dict[str, Any]:
    """Many inputs through `extract` into an archive."""
    import numpy as np

    from graphtrace.loading import load_model
    from graphtrace.measuring import plain_forward, sample_tokens
    from graphtrace.study import extract

    model = load_model("demo", device="cpu")
    running = sample_tokens(model, 256).token_ids
    rng = np.random.default_rng(0)
    texts = [
        model.tokenizer.decode(rng.permutation(running)[:n_tokens]) for _ in range(n_inputs + 1)
    ]
    ids = sample_tokens(model, n_tokens).token_ids
    with tempfile.TemporaryDirectory() as folder:
        extract(model, texts[-1:], Path(folder) / "warm-up")
        before = held_mb()
        time_s = seconds(lambda: extract(model, texts[:-1], Path(folder) / "archive"))
    import torch

    ids_T = torch.as_tensor(ids.astype(np.int64))
    forward = statistics.median(seconds(lambda: plain_forward(model, ids_T)) for _ in range(15))
    return {
        "seconds": time_s,
        "ms_per_input": 1e3 * time_s / n_inputs,
        "per_forward": time_s / n_inputs / forward,
        "held_before_mb": before,
        "peak_mb": peak_mb(),
    }


def some_sizes(grid: Sequence[float], n_sizes: int) -> tuple[float, ...]:
    """n_sizes - 1 of the grid, evenly spread with its first and last; size 1 is added by itself."""
    if n_sizes == 1:
        return (1.0,)
    steps = max(n_sizes - 2, 1)
    picked = {round(i * (len(grid) - 1) / steps) for i in range(n_sizes - 1)}
    return tuple(grid[i] for i in sorted(picked))


def held_mb() -> float:
    """What this process holds now, in MB; its peak is counted from here on, where Linux can."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return peak_mb()
    clear.write_text("5")
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """The most memory that this process has held, in MB."""
    if Path("/proc/self/status").exists():
        # ru_maxrss would begin with what the parent held when it started this process.
        return _status_mb("VmHWM")
    kilo = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilo * (1 if sys.platform == "darwin" else 1024) / 1e6


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(key + ":"))
    return int(found.split()[1]) * 1024 / 1e6


# -------------------------------------------------------------------------------- all the points


def measure(point: str, room_gb: float = ROOM_GB, **arguments: Any) -> dict[str, Any]:
    """Run one point in a process of its own; `failed` says how it ended where it did not end well.

    The process may have at most room_gb of memory of its own (RLIMIT_DATA) and gives up beyond.
    """
    command = [sys.executable, "-m", "benchmarks.bench_scaling", point, json.dumps(arguments)]
    env = {**os.environ, "GRAPHTRACE_BENCH_ROOM": str(room_gb)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": f"exit code {done.returncode}: {last[:160]}"}
    return {**json.loads(done.stdout.splitlines()[-1]), "failed": ""}


def tables(
    lengths: Sequence[int] = LENGTHS,
    inputs: Sequence[int] = INPUTS,
    sizes: Sequence[int] = SIZES,
    rounds: int = 7,
) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    rows: dict[str, list] = {BY_LENGTH: [], BY_INPUTS: [], BY_SIZES: []}
    for n in lengths:
        repeats = rounds if n <= 128 else 1
        for full in (True, False):
            found = measure("length", n_tokens=n, n_sizes=27, rounds=repeats, full=full)
            ranked = "all edges" if full else "top 1 %"
            n_edges = GraphLayout(n, 16, 16).n_edges
            rows[BY_LENGTH].append({"n_tokens": n, "n_edges": n_edges, "ranked": ranked, **found})
            print(f"n = {n}, {ranked}: {found}", file=sys.stderr)
    for n in inputs:
        rows[BY_INPUTS].append({"n_inputs": n, **measure("inputs", n_inputs=n, n_tokens=24)})
    for n in sizes:
        found = measure("length", n_tokens=48, n_sizes=n, rounds=rounds, full=True)
        rows[BY_SIZES].append({"n_sizes": n, **found})
    return {title: _tidy(pd.DataFrame(found)) for title, found in rows.items() if found}


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    return table if (table["failed"] != "").any() else table.drop(columns="failed")


def plots(found: dict[str, pd.DataFrame], folder: Path) -> dict[str, str]:
    """Draw the tables that are there into `folder`; title -> file name."""
    from graphtrace.plots import save_figure

    names = {
        BY_LENGTH: ("scaling-length", "n_tokens", "tokens of the input"),
        BY_INPUTS: ("scaling-inputs", "n_inputs", "inputs"),
        BY_SIZES: ("scaling-sizes", "n_sizes", "sizes of the curve"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for title, (name, column, label) in names.items():
        if title in found and "seconds" in found[title]:
            save_figure(_figure(found[title], column, label), folder / f"{name}.svg")
            drawn[title] = f"{name}.svg"
    return drawn


def _figure(table: pd.DataFrame, column: str, label: str):
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from graphtrace.plots import COLOURS

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        time_ax, memory_ax = figure.subplots(1, 2)
        ways = table["ranked"].unique() if "ranked" in table else ["whole run"]
        for i, way in enumerate(ways):
            rows = table[table["ranked"] == way] if "ranked" in table else table
            rows = rows[rows["seconds"].notna()]
            style = {"marker": "os"[i], "markersize": 4, "color": COLOURS[i]}
            name = f"trace, {way} ranked" if "ranked" in table else "trace"
            time_ax.plot(rows[column], rows["seconds"], label=name, **style)
            memory_ax.plot(rows[column], rows["peak_mb"], label=name, **style)
            if i == 0:
                marks = {"linestyle": "--", "color": COLOURS[2], "marker": "^", "markersize": 4}
                if "forward_s" in rows:
                    time_ax.plot(rows[column], rows["forward_s"], label="plain forward", **marks)
                memory_ax.plot(
                    rows[column], rows["held_before_mb"], label="before the trace", **marks
                )
        for axis, unit in ((time_ax, "time (s)"), (memory_ax, "peak memory (MB)")):
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(
                sorted(set(table[column])), [f"{x:,}" for x in sorted(set(table[column]))]
            )
            axis.minorticks_off()
            axis.set_xlabel(label)
            axis.set_ylabel(unit)
        memory_ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        memory_ax.set_ylim(bottom=100, top=max(2e3, 1.5 * float(table["peak_mb"].max())))
        low, high = time_ax.get_ylim()
        time_ax.set_ylim(low, high * (high / low) ** 0.25)  # room for the legend
        time_ax.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def main() -> None:
    """Run one point: its name and its arguments as JSON; prints its figures as JSON."""
    import torch

    room = int(float(os.environ.get("GRAPHTRACE_BENCH_ROOM", ROOM_GB)) * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    point = {"length": point_of_length, "inputs": point_of_inputs}[sys.argv[1]]
    print(json.dumps(point(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
