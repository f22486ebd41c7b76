"""The main path, from a model and a text to a trace. Read this first.

1. forward     one pass of the model, observed: attention patterns, states, MLP outputs
2. scoring     every edge's share of what enters its target
3. ranking     best-first search from the output: one rank per edge, nested traces
4. evaluation  masked forward passes of the traces of growing size: the curve
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

import graphtrace
from graphtrace import schema
from graphtrace.analysis.stats import gini
from graphtrace.edges import flatten_edges
from graphtrace.errors import OptionError
from graphtrace.evaluation import (
    check_sizes,
    compare,
    entropy,
    kept_edges,
    log_probabilities,
    masked_logits,
    top_tokens,
)
from graphtrace.forward import next_token_logits
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.loading import load_model
from graphtrace.models import TracedModel
from graphtrace.ranking import best_first_ranks, random_ranks
from graphtrace.score_statistics import mass_edges
from graphtrace.scoring import l1_scores
from graphtrace.sizes import SIZE_GRID
from graphtrace.subgraph import component_index
from graphtrace.tokenizing import Tokenized, tokenize
from graphtrace.tokens import special_ids, token_texts
from graphtrace.traces import Curve, Input, Settings, Trace, short_hash, trace_id

SCORERS = ("l1", "random")


@dataclass(frozen=True)
class TraceOptions:
    """What to compute for each input; the defaults of Python and command line alike.

    scorer: `l1` (the paper's), or `random`, the paper's baseline: a seeded walk in place of the
    ranking (its edges carry their l1 scores). sizes: fractions of |E|; 1 is always added. Raises
    OptionError.
    """

    scorer: str = "l1"
    seed: int = 0
    sizes: tuple[float, ...] = SIZE_GRID

    def __post_init__(self) -> None:
        if self.scorer not in SCORERS:
            raise OptionError(f"scorer {self.scorer!r} is none of {', '.join(SCORERS)}")
        check_sizes(self.sizes)

    def settings(self, model: TracedModel) -> Settings:
        """What identifies the ranking."""
        drawn = self.seed if self.scorer == "random" else None
        return Settings(scorer=self.scorer, dtype=model.info.dtype, seed=drawn)


DEFAULTS = TraceOptions()


def trace(
    model: TracedModel | Any,
    text: str | list[int] | Input,
    *,
    scorer: str = DEFAULTS.scorer,
    seed: int = DEFAULTS.seed,
    sizes: Iterable[float] = DEFAULTS.sizes,
    continuation: str | None = None,
) -> Trace:
    """Trace the prediction of the token that follows `text`.

    model: from `load_model`, or what `load_model` takes. text: a string, or token ids taken as
    they are. continuation: how the text goes on; its first token gives `loss`.

    Raises EmptyTextError, TextTooLongError, NonFiniteError, OptionError.
    """
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    options = TraceOptions(scorer, seed, tuple(sizes))
    return trace_tokens(traced_model, tokenize(traced_model, text, continuation), options)


def trace_many(
    model: TracedModel | Any,
    texts: Iterable[str | list[int] | Input],
    *,
    scorer: str = DEFAULTS.scorer,
    seed: int = DEFAULTS.seed,
    sizes: Iterable[float] = DEFAULTS.sizes,
) -> Iterator[Trace]:
    """Trace each text in turn: the same traces as one by one."""
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    options = TraceOptions(scorer, seed, tuple(sizes))
    for text in texts:
        yield trace_tokens(traced_model, tokenize(traced_model, text), options)


def trace_tokens(model: TracedModel, tokens: Tokenized, options: TraceOptions) -> Trace:
    """Trace one tokenized input."""
    grid = check_sizes(options.sizes)
    ids = torch.as_tensor(tokens.token_ids.astype(np.int64))
    layout = layout_of(model, tokens)

    scores, final_state = l1_scores(model, ids)
    score = flatten_edges(layout, scores)
    if options.scorer == "random":
        # Each input walks its own way, the same one however many inputs surround it.
        own_seed = int(short_hash([options.seed, tokens.token_ids.tolist()], "", 8), 16)
        rank = random_ranks(layout, own_seed)
    else:
        rank = best_first_ranks(layout, score)

    full = log_probabilities(next_token_logits(model, final_state))[0]
    k = kept_edges(grid, layout.n_edges)
    curve = _curve(model, ids, layout, rank, grid, k, full)

    order = np.empty(layout.n_edges, np.int64)
    order[rank] = np.arange(layout.n_edges)
    ranked = layout.columns._replace(score=score).take(order)
    top_ids, top_probs = top_tokens(full)
    top_texts = _texts(model, top_ids)
    next_id = tokens.next_id
    return Trace(
        model=model.info,
        input=tokens.input,
        settings=options.settings(model),
        token_ids=tokens.token_ids,
        tokens=_texts(model, tokens.token_ids),
        special=np.isin(tokens.token_ids, list(special_ids(model.tokenizer))),
        position=len(ids) - 1,
        ranked=ranked,
        curves=(curve,),
        entropy=entropy(full),
        loss=None if next_id is None else float(-full[next_id]),
        predicted_id=int(top_ids[0]),
        predicted=top_texts[0],
        top_ids=top_ids,
        top_tokens=top_texts,
        top_probs=top_probs,
        mass90_edges=mass_edges(layout.offsets, score, 0.9),
        score_gini=gini(score),
        component_counts=count_components(layout, ranked, k),
        version=graphtrace.__version__,
    )


def _curve(model, ids, layout, rank, grid, k, full) -> Curve:
    # The last point, s = 1, is the full model itself: no masked pass, TV exactly 0.
    masked = (
        log_probabilities(masked_logits(model, ids, layout, rank, k[:-1])) if len(k) > 1 else []
    )
    rows = [*masked, full]
    agreement = [compare(full, q) for q in rows]
    tops = [top_tokens(q) for q in rows]
    texts = iter(_texts(model, np.concatenate([ids for ids, _ in tops])))
    return Curve(
        n_edges=layout.n_edges,
        grid=grid,
        k=k,
        tv=np.array([a.tv for a in agreement]),
        kl=np.array([a.kl for a in agreement]),
        top1=np.array([a.top1 for a in agreement]),
        nucleus=np.array([a.nucleus for a in agreement], np.int32),
        p_predicted=np.array([a.p_predicted for a in agreement]),
        top_ids=np.stack([ids for ids, _ in tops]),
        top_tokens=[list(islice(texts, len(ids))) for ids, _ in tops],
        top_probs=np.stack([probs for _, probs in tops]),
        eval_dtype=model.info.dtype,
    )


def count_components(layout: GraphLayout, ranked: EdgeColumns, k_P: np.ndarray) -> np.ndarray:
    """int64 [points, components]: of the first k edges, how many belong to each component."""
    n_components = len(schema.components(layout.n_layers, layout.n_heads, layout.parallel))
    point = np.searchsorted(k_P, np.arange(layout.n_edges), side="right")
    cell = point * n_components + component_index(layout, ranked)
    counts = np.bincount(cell, minlength=(len(k_P) + 1) * n_components)
    return counts.reshape(-1, n_components)[: len(k_P)].cumsum(axis=0)


def layout_of(model: TracedModel, tokens: Tokenized) -> GraphLayout:
    """The shape of an input's graph."""
    return GraphLayout(len(tokens.token_ids), model.n_layers, model.n_heads, windows=model.windows)


def planned_id(model: TracedModel, tokens: Tokenized, options: TraceOptions) -> str:
    """The id that the trace will have."""
    return trace_id(
        model.info.id,
        tokens.input.id,
        tokens.token_ids,
        len(tokens.token_ids) - 1,
        (None, None),
        options.settings(model).id,
    )


def _texts(model: TracedModel, ids: np.ndarray) -> list[str]:
    if model.tokenizer is None:
        return [f"<id {token_id}>" for token_id in ids]
    return token_texts(model.tokenizer, ids.tolist())
