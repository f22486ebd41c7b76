"""One measure over many traces: in parallel processes, with progress, resumed where it stopped.

The caller's process reads the sub-graphs, since a store may allow no second reader, and hands them
to the others a few at a time; results come back in the order of the traces. What was measured is
kept (`measure_cache`), so a pass that was stopped measures only what is missing.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graphtrace.analysis.measure_cache import MeasureCache, Values
from graphtrace.analysis.reading import read_subgraphs, warn_of_short
from graphtrace.errors import OptionError
from graphtrace.progress import progress as show_progress
from graphtrace.selection import TraceSource, check_curves
from graphtrace.sizes import Size, parse_size
from graphtrace.subgraph import SubGraph

CHUNK = 8
"""Sub-graphs that a process is given at a time."""

FEW = 32
"""So many traces are not worth a further process, which takes a second to start."""

SHORT, N_EDGES = "short", "trace_edges"


class Measure(NamedTuple):
    """A measure of one sub-graph.

    name, version: what its kept values are filed under; raise the version when numbers change.
    function: a function of a module, so that another process finds it: sub-graph and `params` by
    keyword -> `Values`, the same names and types for every trace. params: JSON values by name.
    """

    name: str
    version: int
    function: Callable[..., Values]
    params: dict[str, Any] | None = None


def measured(
    source: TraceSource,
    traces: pd.DataFrame,
    size: Size | float | str,
    measure: Measure,
    exclude_special: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> Iterator[tuple[dict[str, Any], Values]]:
    """(row of `traces`, values of its sub-graph), in the order of `traces`.

    Beside the measure's own values come `trace_edges` (int64 [1]), the edges of the sub-graph.
    exclude_special: measured without edges that touch special tokens. workers: processes; with
    more than one, a script that calls this needs the `if __name__ == "__main__":` of Python's
    multiprocessing. Warns once, at the end, of traces that hold no complete path. Raises
    SizeError, OptionError, and whatever the measure raises.
    """
    if workers < 1:
        raise OptionError(f"{workers} workers are none; take at least 1")
    size = parse_size(size)
    if size.rule == "tv":
        check_curves(traces)
    rows = [{str(k): v for k, v in row.items()} for row in traces.to_dict("records")]
    keys = [_key(row, size) for row in rows]
    cache = MeasureCache(
        {
            "measure": measure.name,
            "version": measure.version,
            "params": measure.params or {},
            "size": str(size),
            "exclude_special": exclude_special,
        }
    )
    known = cache.find(keys)
    left = [row["id"] for row, key in zip(rows, keys, strict=True) if key not in known]
    work = _work(source, left, size, exclude_special)
    short = 0
    label = f"{measure.name} at {size}"
    with ExitStack() as stack:
        advance = stack.enter_context(show_progress(label, len(rows), "traces", shown=progress))
        stack.callback(cache.close)
        if len(left) >= FEW and workers > 1:
            pool = stack.enter_context(_pool(min(workers, 1 + len(left) // FEW)))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            results = _in_processes(pool, work, measure, workers)
        else:
            results = (_measure(measure, *item) for item in work)
        for row, key in zip(rows, keys, strict=True):
            if key in known:
                values = known.pop(key)
            else:
                values = next(results)
                cache.add(key, values)
            short += int(values[SHORT][0])
            yield row, {name: x for name, x in values.items() if name != SHORT}
            advance()
    warn_of_short(short, len(rows), size)


def available_workers() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(row: dict[str, Any], size: Size) -> str:
    """A trace as it was extracted; a size by quality also depends on the kind of its curve."""
    created = int(pd.Timestamp(row["created"]).value // 1_000_000)
    return f"{row['id']}:{created}" + (f":{row['curve']}" if size.rule == "tv" else "")


def _work(source: TraceSource, ids: list[str], size: Size, exclude_special: bool):
    for subgraph in read_subgraphs(source, ids, size):
        short = len(subgraph) < subgraph.layout.path_length
        yield subgraph.without_special() if exclude_special else subgraph, short


def _measure(measure: Measure, subgraph: SubGraph, short: bool) -> Values:
    values = measure.function(subgraph, **measure.params or {})
    values[N_EDGES] = np.array([len(subgraph)], np.int64)
    values[SHORT] = np.array([short], np.int64)
    return values


def _measure_chunk(measure: Measure, chunk: list[tuple[SubGraph, bool]]) -> list[Values]:
    return [_measure(measure, *item) for item in chunk]


def _in_processes(
    pool: ProcessPoolExecutor, work: Iterator, measure: Measure, workers: int
) -> Iterator[Values]:
    waiting: deque[Future[list[Values]]] = deque()
    while True:
        while len(waiting) <= workers and (chunk := list(islice(work, CHUNK))):
            waiting.append(pool.submit(_measure_chunk, measure, chunk))
        if not waiting:
            return
        yield from waiting.popleft().result()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: threads of the engine and of numba do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_stop_to_parent)


def _leave_stop_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
