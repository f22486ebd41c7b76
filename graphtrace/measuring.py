"""How long each part of tracing takes, against a plain forward pass of the same input.

Machines are noisy, so the parts take turns, round by round, and the median of the rounds counts: a
ratio of two parts then says more than either's milliseconds.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from graphtrace.archive_write import Keep, keep_count
from graphtrace.corpus import read_corpus
from graphtrace.distributions import log_probabilities
from graphtrace.errors import OptionError, TextTooLongError
from graphtrace.evaluation import evaluate_nested
from graphtrace.loading import demo_folder
from graphtrace.models import TracedModel
from graphtrace.options import TraceOptions
from graphtrace.progress import Advance, progress
from graphtrace.selecting import select_edges
from graphtrace.stages import Measured, assemble, layout_of, score_tokens
from graphtrace.tokenizing import Tokenized, tokenize
from graphtrace.tracing import trace_tokens

Work = Callable[[], Any]

FORWARD, WHOLE = "plain forward", "whole trace"
N_PARTS = 6
PER_EDGE = ("scoring", "ranking", WHOLE)
"""Parts whose time grows with the edges."""


def take_turns(
    parts: Mapping[str, Work],
    rounds: int,
    synchronize: Work = lambda: None,
    advance: Advance = lambda n=1: None,
) -> dict[str, list[float]]:
    """Seconds of every part in every round; the parts run in turn.

    A round that is not counted comes first: it compiles and warms up. synchronize: waits until a
    device has done what it was given, see `waiter`. advance: told of every call that is done.
    """
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, work in parts.items():
            synchronize()
            start = time.perf_counter()
            work()
            synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
            advance()
    return times


def waiter(device: torch.device) -> Work:
    """A function that waits until `device` has done what it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def plain_forward(model: TracedModel, ids_T: torch.Tensor) -> torch.Tensor:
    """Logits [1, 1, V] of the model as transformers runs it: its own attention, no hooks."""
    with torch.no_grad():
        ids_BT = ids_T[None].to(model.device)
        return model.causal_lm(input_ids=ids_BT, use_cache=False, logits_to_keep=1).logits


def pipeline_parts(
    model: TracedModel,
    tokens: Tokenized,
    options: TraceOptions | None = None,
    n_kept: int | None = None,
) -> dict[str, Work]:
    """Name -> one step of tracing `tokens`, as stages.py has them, and the whole.

    Ranking is everything that the scores say: the graph's layout, the edges that are kept in order,
    the nested traces and the plan of their evaluation. n_kept: see selecting.select_edges.
    """
    options = options or TraceOptions()
    ids = torch.as_tensor(tokens.token_ids.astype(np.int64))
    scored = score_tokens(model, tokens, options)

    def select():
        layout = layout_of(model, tokens)
        return select_edges(layout, tokens, scored.scores, options, n_kept)

    selected = select()

    def evaluate():
        nested = [x for x in selected.nested if x is not None]
        return evaluate_nested(model, nested, options.evaluation)[0] if nested else None

    logits_PV = evaluate()

    def put_together():
        full_V = log_probabilities(scored.logits_BV)[0]
        masked_PV = full_V[None][:0] if logits_PV is None else log_probabilities(logits_PV)
        measured = Measured(options.evaluation, full_V, masked_PV)
        return assemble(model, tokens, options, scored, selected, [measured])

    return {
        FORWARD: lambda: plain_forward(model, ids),
        "scoring": lambda: score_tokens(model, tokens, options),
        "ranking": select,
        f"evaluation of {len(options.sizes)} sizes": evaluate,
        "assembling": put_together,
        WHOLE: lambda: trace_tokens(model, tokens, options, n_kept),
    }


def measure_parts(
    model: TracedModel,
    n_tokens: Sequence[int],
    rounds: int = 7,
    keep: Keep | str | float | None = None,
    show_progress: bool = False,
) -> pd.DataFrame:
    """One row per input length and part.

    n_tokens: lengths to measure. rounds: how many count. keep: how many edges are kept in order,
    as `extract` has it. Columns: n_tokens, part, ms (median), per_forward (ms over that of the
    plain forward, batch 1, of the same length), n_edges, ns_per_edge (NaN where a part does not
    grow with the edges).

    Raises OptionError, TextTooLongError and what tracing raises.
    """
    if rounds < 1:
        raise OptionError(f"--rounds {rounds} is not at least 1")
    inputs = [sample_tokens(model, n) for n in n_tokens]
    if not inputs:
        raise OptionError("no input length is given; --tokens takes numbers such as 24,48")
    tables = []
    total = N_PARTS * (rounds + 1) * len(inputs)
    with progress("bench", total, "runs", show_progress) as advance:
        for tokens in inputs:
            n_edges = layout_of(model, tokens).n_edges
            parts = pipeline_parts(model, tokens, n_kept=keep_count(keep, n_edges))
            times = take_turns(parts, rounds, waiter(model.device), advance)
            tables.append(_table(len(tokens.token_ids), n_edges, times))
    return pd.concat(tables, ignore_index=True)


def _table(n_tokens: int, n_edges: int, times: dict[str, list[float]]) -> pd.DataFrame:
    median = {name: statistics.median(values) for name, values in times.items()}
    return pd.DataFrame(
        {
            "n_tokens": n_tokens,
            "part": list(median),
            "ms": [1e3 * value for value in median.values()],
            "per_forward": [value / median[FORWARD] for value in median.values()],
            "n_edges": n_edges,
            "ns_per_edge": [
                1e9 * value / n_edges if name in PER_EDGE else np.nan
                for name, value in median.items()
            ],
        }
    )


def sample_tokens(model: TracedModel, n_tokens: int) -> Tokenized:
    """An input of exactly `n_tokens` tokens: English text, begun again where it ends; random ids
    where the model has no tokenizer.

    Raises OptionError, TextTooLongError.
    """
    if n_tokens < 1:
        raise OptionError(f"--tokens {n_tokens}: an input has at least 1 token")
    if model.context_length is not None and n_tokens > model.context_length:
        raise TextTooLongError(
            f"--tokens {n_tokens}: the context of {model.name} holds {model.context_length} "
            "tokens; ask for fewer"
        )
    if model.tokenizer is None:
        vocabulary = model.config.vocab_size
        ids = np.random.default_rng(0).integers(0, vocabulary, n_tokens).tolist()
    else:
        text = " ".join(x.text for x in read_corpus(demo_folder() / "sentences.jsonl"))
        found = model.tokenizer(text, verbose=False)["input_ids"]
        ids = [int(token) for token in islice(cycle(found), n_tokens)]
    return tokenize(model, ids)


def machine_facts(model: TracedModel) -> dict[str, str]:
    """What the figures are taken on: processor, cores, torch, threads, device, model."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    shape = f"L = {model.n_layers}, H = {model.n_heads}, d = {model.d_model}"
    return {
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "device": name,
        "model": f"{model.name}, {shape}, {model.info.dtype}, "
        f"{model.config._attn_implementation} attention",
    }


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123  not a file of ours
            names = [line for line in file if line.startswith("model name")]
    except OSError:
        names = []
    found = names[0].partition(":")[2].strip() if names else platform.processor()
    return found or platform.machine()
