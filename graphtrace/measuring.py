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

from graphtrace.corpus import read_corpus
from graphtrace.edges import flatten_edges
from graphtrace.errors import OptionError, TextTooLongError
from graphtrace.evaluation import check_sizes, kept_edges, masked_logits
from graphtrace.loading import demo_folder
from graphtrace.models import TracedModel
from graphtrace.progress import Advance, progress
from graphtrace.scoring import score_edges, uses_shares
from graphtrace.search import rank_edges
from graphtrace.tokenizing import Tokenized, tokenize
from graphtrace.tracing import TraceOptions, layout_of, trace_tokens

Work = Callable[[], Any]

FORWARD, WHOLE = "plain forward", "whole trace"
REST = "all else in a trace"
"""The whole trace less its other parts: comparing predictions, counting, naming tokens."""

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
    model: TracedModel, tokens: Tokenized, options: TraceOptions | None = None
) -> dict[str, Work]:
    """Name -> one part of tracing `tokens`, as `tracing.trace_tokens` does it.

    Ranking starts from the scores and makes the graph's layout anew, as every input does.
    """
    options = options or TraceOptions()
    ids = torch.as_tensor(tokens.token_ids.astype(np.int64))
    shares = uses_shares(options.scorer, options.search)

    def score():
        return score_edges(model, ids, options.scorer, options.seed, shares)

    def rank():
        layout = layout_of(model, tokens)
        return rank_edges(layout, flatten_edges(layout, scores), options.search)

    scores, layout = score().scores, layout_of(model, tokens)
    rank_E = rank()
    masked_k = kept_edges(check_sizes(options.sizes)[:-1], layout.n_edges)
    return {
        FORWARD: lambda: plain_forward(model, ids),
        "scoring": score,
        "ranking": rank,
        f"evaluation of {len(masked_k)} sizes": lambda: masked_logits(
            model, ids, layout, rank_E, masked_k, options.evaluation
        ),
        WHOLE: lambda: trace_tokens(model, tokens, options),
    }


def measure_parts(
    model: TracedModel, n_tokens: Sequence[int], rounds: int = 7, show_progress: bool = False
) -> pd.DataFrame:
    """One row per input length and part.

    n_tokens: lengths to measure. rounds: how many count. Columns: n_tokens, part, ms (median),
    per_forward (ms over that of the plain forward, batch 1, of the same length), n_edges,
    ns_per_edge (NaN where a part does not grow with the edges). The parts are those of
    `pipeline_parts`, and in front of the whole trace what of it they leave (REST), a difference,
    which noise can make negative where it is small.

    Raises OptionError, TextTooLongError and what tracing raises.
    """
    if rounds < 1:
        raise OptionError(f"--rounds {rounds} is not at least 1")
    inputs = [sample_tokens(model, n) for n in n_tokens]
    if not inputs:
        raise OptionError("no input length is given; --tokens takes numbers such as 24,48")
    tables = []
    total = 5 * (rounds + 1) * len(inputs)
    with progress("bench", total, "runs", show_progress) as advance:
        for tokens in inputs:
            parts = pipeline_parts(model, tokens)
            times = take_turns(parts, rounds, waiter(model.device), advance)
            tables.append(_table(model, tokens, times))
    return pd.concat(tables, ignore_index=True)


def _table(model: TracedModel, tokens: Tokenized, times: dict[str, list[float]]) -> pd.DataFrame:
    own = {name: values for name, values in times.items() if name not in (FORWARD, WHOLE)}
    rest = [whole - sum(parts) for whole, *parts in zip(times[WHOLE], *own.values(), strict=True)]
    ordered = {FORWARD: times[FORWARD], **own, REST: rest, WHOLE: times[WHOLE]}
    median = {name: statistics.median(values) for name, values in ordered.items()}
    n_edges = layout_of(model, tokens).n_edges
    return pd.DataFrame(
        {
            "n_tokens": len(tokens.token_ids),
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
