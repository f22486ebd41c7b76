"""The parts of tracing against their goals: ratios within one run, medians of rounds in turn.

`python -m benchmarks.bench_ratios --profile` also says where the time goes in every part that
misses its goal. "forward" is one plain forward pass of the same input by transformers (sdpa, batch
1, last logits). The baseline is `naive.py`, whose curve must be the same in the same run.
"""

import argparse
import cProfile
import io
import pstats
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks import naive
from benchmarks.random_models import Shape, random_ids, random_llama
from graphtrace.archive_write import keep_count
from graphtrace.evaluation import check_sizes, evaluate_nested, kept_edges, plan_nested
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.measuring import plain_forward, sample_tokens, take_turns
from graphtrace.models import TracedModel
from graphtrace.nested import nested_buckets, top_edges
from graphtrace.options import TraceOptions
from graphtrace.pipeline import trace_stream
from graphtrace.scoring import Scores, score_edges
from graphtrace.sizes import SIZE_GRID
from graphtrace.stages import layout_of
from graphtrace.tokenizing import Tokenized, tokenize
from graphtrace.tracing import trace_tokens

SHAPES = (Shape(16, 16, 512, 48), Shape(8, 8, 256, 48))
N_DEMO = (24, 48)
GRAPHS = (GraphLayout(50, 32, 32), GraphLayout(256, 32, 32))
SAME_TV = 1e-4


class Goal(NamedTuple):
    """What a part is measured in, and what it should reach; `at_least` where more is better."""

    unit: str
    goal: float
    stretch: float
    at_least: bool = False

    def text(self, value: float) -> str:
        """As the table says it."""
        return f"{'≥' if self.at_least else '≤'} {value:g}"

    def missed(self, value: float) -> bool:
        """Whether a value is worse than the goal."""
        return value < self.goal if self.at_least else value > self.goal


SHORT = "whole trace as extract keeps it"
BATCH = "each of 8 traces as extract runs them"
N_BATCH = 8

GOALS = {
    "scoring": Goal("forwards", 1.25, 1.15),
    "27 nested traces": Goal("ns/edge", 40, 20),
    "full exact ranking": Goal("ns/edge", 100, 50),
    "top 1 % ranked": Goal("ns/edge", 15, 10),
    "26 evaluations": Goal("26 forwards", 0.35, 0.20),
    "whole trace": Goal("times faster than the baseline", 6, 10, at_least=True),
    SHORT: Goal("times faster than the baseline", 6, 10, at_least=True),
    BATCH: Goal("times faster than the baseline", 6, 10, at_least=True),
}


def full_ranking(layout: GraphLayout, scores: Scores) -> np.ndarray:
    """All edges in order, from the scores as scoring leaves them."""
    return top_edges(layout, scores, layout.n_edges)


class Setting:
    """One model and input, and the work that is timed on it."""

    def __init__(self, name: str, model: TracedModel, tokens: Tokenized) -> None:
        self.name, self.model, self.tokens = name, model, tokens
        self.ids = torch.as_tensor(tokens.token_ids.astype(np.int64))
        self.layout = layout_of(model, tokens)
        self.scores = score_edges(model, self.ids).scores
        self.k_P = kept_edges(check_sizes(SIZE_GRID), self.layout.n_edges)
        self.masked_k = np.unique(self.k_P[:-1])
        self.buckets = nested_buckets(self.layout, self.scores, self.masked_k)

    def parts(self) -> dict[str, Callable[[], Any]]:
        """graphtrace's own parts."""
        return {
            "forward": lambda: plain_forward(self.model, self.ids),
            "scoring": lambda: score_edges(self.model, self.ids),
            "27 nested traces": lambda: nested_buckets(self.layout, self.scores, self.k_P),
            "full exact ranking": lambda: full_ranking(self.layout, self.scores),
            "26 evaluations": self.evaluate,
            "whole trace": self.whole_trace,
            SHORT: self.short_trace,
            BATCH: self.batch,
        }

    def baseline(self) -> dict[str, Callable[[], Any]]:
        """The baseline's parts, which together are its trace."""
        hf, layers = self.model.causal_lm, []
        full_V = naive.forward(hf, self.ids, seen=layers)
        edges = naive.rank(found := naive.score(hf, layers))
        k_P = self.k_P[:-1]

        def scoring():
            seen: list[naive.Layer] = []
            naive.forward(hf, self.ids, seen=seen)
            naive.score(hf, seen)

        return {
            "scoring": scoring,
            "full exact ranking": lambda: naive.rank(found),
            "26 evaluations": lambda: naive.evaluate(hf, self.ids, edges, k_P, full_V),
        }

    def evaluate(self):
        """The masked passes of all sizes, planning included."""
        nested = plan_nested(self.ids, self.layout, self.buckets, len(self.masked_k))
        return evaluate_nested(self.model, [nested])

    def whole_trace(self):
        """A trace with the 26 sizes of the paper, every edge in order as in the baseline."""
        return trace_tokens(self.model, self.tokens, TraceOptions())

    def short_trace(self):
        """The same with the edges in order that `extract` keeps."""
        kept = keep_count(None, self.layout.n_edges)
        return trace_tokens(self.model, self.tokens, TraceOptions(), kept)

    def batch(self):
        """Eight traces of the same input, evaluated together where they fit."""
        kept = keep_count(None, self.layout.n_edges)
        inputs = [self.tokens] * N_BATCH
        return list(trace_stream(self.model, inputs, TraceOptions(), lambda _: kept))

    def check(self) -> float:
        """The largest difference between the baseline's TV and ours; raises where it is not that
        of the same traces."""
        found = naive.trace(self.model.causal_lm, self.ids, SIZE_GRID).tv_P
        worst = float(np.abs(found - self.whole_trace().curve.tv[:-1]).max())
        if worst > SAME_TV:
            raise AssertionError(f"{self.name}: the baseline's TV differs by {worst:.2g}")
        return worst


def settings() -> dict[str, Callable[[], Setting]]:
    """Name -> how to set it up."""

    def random(shape: Shape) -> Callable[[], Setting]:
        def make() -> Setting:
            model = random_llama(shape)
            ids = random_ids(model, shape.n_tokens).tolist()
            return Setting(f"random Llama, {shape}", model, tokenize(model, ids))

        return make

    def demo(n_tokens: int) -> Callable[[], Setting]:
        def make() -> Setting:
            model = load_model("demo", device="cpu")
            tokens = sample_tokens(model, n_tokens)
            return Setting(f"demo model, n = {n_tokens}", model, tokens)

        return make

    return {f"random Llama, {shape}": random(shape) for shape in SHAPES} | {
        f"demo model, n = {n}": demo(n) for n in N_DEMO
    }


def ratios(setting: Setting, rounds: int) -> dict[str, tuple[float, float]]:
    """Part -> (graphtrace, baseline), in the unit of GOALS."""
    setting.check()
    own = _medians(take_turns(setting.parts(), rounds))
    both = {f"naive {name}": work for name, work in setting.baseline().items()}
    # In turns of its own: what the baseline gives back to the system makes what runs behind it ask
    # for memory anew. The plain forward, in both, is the common unit.
    plain = setting.parts()["forward"]
    turns = _medians(take_turns({"forward": plain, **both}, rounds))
    base = {name: turns[f"naive {name}"] for name in setting.baseline()}
    base["27 nested traces"] = base["full exact ranking"]
    n_edges, forward = setting.layout.n_edges, own["forward"]
    per_edge = 1e-9 * n_edges

    def units(forward_s: float) -> dict[str, float]:
        return {
            "scoring": forward_s,
            "27 nested traces": per_edge,
            "full exact ranking": per_edge,
            "26 evaluations": 26 * forward_s,
        }

    theirs = units(turns["forward"])
    found = {name: (own[name] / x, base[name] / theirs[name]) for name, x in units(forward).items()}
    naive_forwards = sum(turns[name] for name in both) / turns["forward"]
    n_traces = {BATCH: N_BATCH}
    for name in ("whole trace", SHORT, BATCH):
        own_forwards = own[name] / forward / n_traces.get(name, 1)
        found[name] = (naive_forwards / own_forwards, 1.0)
    return found


def _medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def random_scores(layout: GraphLayout, seed: int = 0) -> Scores:
    """Scores as trained models have them: a residual edge holds about half of what enters a state
    behind attention and four fifths behind an MLP; heads share the rest, few of them most."""
    rng = np.random.default_rng(seed)
    n, n_layers, n_heads = layout.n_tokens, layout.n_layers, layout.n_heads
    attention = np.empty((n_layers, n_heads, n, n), np.float32)
    for layer in attention:  # by layers: a gamma of float64 is twice the size
        layer[:] = np.tril(rng.gamma(0.3, size=layer.shape))
    attention /= 2 * attention.sum((1, 3), keepdims=True)
    mlp = rng.uniform(0.05, 0.35, (n_layers, n)).astype(np.float32)
    residual = np.empty((2 * n_layers, n), np.float32)
    residual[0::2] = 1 - attention.sum((1, 3))
    residual[1::2] = 1 - mlp
    return Scores(residual, mlp, attention)


def ranking_rows(layout: GraphLayout, rounds: int) -> list[dict[str, Any]]:
    """The two ways to select traces, on random scores."""
    scores = random_scores(layout)
    k_P = kept_edges(check_sizes(SIZE_GRID), layout.n_edges)
    parts = {
        "27 nested traces": lambda: nested_buckets(layout, scores, k_P),
        "full exact ranking": lambda: full_ranking(layout, scores),
        "top 1 % ranked": lambda: top_edges(layout, scores, layout.n_edges // 100),
    }
    median = _medians(take_turns(parts, rounds))
    graph = f"L = {layout.n_layers}, H = {layout.n_heads}, n = {layout.n_tokens}"
    return [
        {
            "graph": graph,
            "n_edges": layout.n_edges,
            "part": name,
            "ms": 1e3 * value,
            **_row(name, 1e9 * value / layout.n_edges),
        }
        for name, value in median.items()
    ]


def _row(name: str, measured: float) -> dict[str, Any]:
    goal = GOALS[name]
    return {
        "unit": goal.unit,
        "measured": measured,
        "goal": goal.text(goal.goal),
        "stretch": goal.text(goal.stretch),
    }


def tables(
    rounds: int = 7, only: Sequence[str] = (), graphs: Sequence[GraphLayout] = GRAPHS
) -> dict[str, pd.DataFrame]:
    """Title -> table. only: parts of the names of the settings that are measured; all without."""
    rows = []
    for name, make in settings().items():
        if only and not any(part in name for part in only):
            continue
        for part, (measured, baseline) in ratios(make(), rounds).items():
            row = {"model": name, "part": part, **_row(part, measured)}
            row["baseline"] = baseline
            rows.append(row)
    selected = [row for layout in graphs for row in ranking_rows(layout, rounds)]
    found = {"Tracing against its goals": rows, "Selecting traces from random scores": selected}
    return {title: pd.DataFrame(rows) for title, rows in found.items() if rows}


def profiles(tables_: dict[str, pd.DataFrame]) -> str:
    """Where the time goes in every part of a model's trace that misses its goal."""
    table = tables_.get("Tracing against its goals", pd.DataFrame(columns=["model"]))
    texts = []
    for name, rows in table.groupby("model", sort=False):
        missed = [row.part for row in rows.itertuples() if GOALS[row.part].missed(row.measured)]
        if not missed:
            continue
        parts = settings()[str(name)]().parts()
        texts += [f"{name}: {part}\n{profile(parts[part])}" for part in missed]
    return "\n".join(texts) or "no goal is missed"


def profile(work: Callable[[], Any], n_rows: int = 12) -> str:
    """The operations of torch, then the functions of Python, in which a call spends its time."""
    work()
    with torch.profiler.profile() as seen:
        work()
    operations = seen.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=n_rows, max_name_column_width=40
    )
    functions, out = cProfile.Profile(), io.StringIO()
    functions.runcall(work)
    pstats.Stats(functions, stream=out).strip_dirs().sort_stats("tottime").print_stats(n_rows)
    return f"{operations}\n{out.getvalue()}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and profiles where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-graphs", action="store_true", help="leave the random scores out")
    parser.add_argument("only", nargs="*", help="parts of names of settings, such as demo")
    options = parser.parse_args(arguments)
    found = tables(options.rounds, options.only, () if options.no_graphs else GRAPHS)
    for title, table in found.items():
        print(f"\n{title}\n{table.to_string(index=False, float_format='{:.3g}'.format)}")
    if options.profile:
        print(profiles(found))


if __name__ == "__main__":
    main()
