"""The main path, from a model and a text to a trace. Read this first.

1. forward     one pass of the model, observed: attention patterns, states, MLP outputs
2. scoring     what every edge adds to its target, one weight per edge
3. search      from the output: one rank per edge, nested traces
4. evaluation  masked forward passes of the traces of growing size: the curve
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphtrace
from graphtrace import schema
from graphtrace.agreement import Reference, entropy, log_probabilities, top_tokens
from graphtrace.edges import flatten_edges
from graphtrace.errors import OptionError
from graphtrace.evaluation import (
    Evaluation,
    check_sizes,
    is_out_of_memory,
    kept_edges,
    masked_logits,
    memory_error,
)
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.loading import load_model
from graphtrace.models import TracedModel
from graphtrace.ranking import random_ranks
from graphtrace.reference_means import ReferenceMeans, load_means
from graphtrace.score_statistics import gini_of, mass_edges
from graphtrace.scoring import FISHER_PROBES, Scored, draws, parse_scorer, score_edges, uses_shares
from graphtrace.search import SEARCHES, rank_edges
from graphtrace.sizes import SIZE_GRID
from graphtrace.subgraph import component_index
from graphtrace.tokenizing import TEXT_DEFAULTS, TextOptions, Tokenized, tokenize
from graphtrace.tokens import special_ids, token_texts
from graphtrace.traces import Curve, Input, Settings, Trace, short_hash, trace_id


@dataclass(frozen=True)
class TraceOptions:
    """What to compute for each input; the defaults of Python and command line alike.

    scorer: see scoring.SCORERS, `fisher:4` for another number of probes; `random` is the paper's
    baseline, a seeded walk in place of a ranking, whose edges carry their l1 scores. search: see
    search.SEARCHES. sizes: fractions of |E|; 1 is always added. evaluation: how the traces are
    measured. Raises OptionError.
    """

    scorer: str = "l1"
    search: str = "best-first"
    seed: int = 0
    sizes: tuple[float, ...] = SIZE_GRID
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        name, probes = parse_scorer(self.scorer)
        if f"{name}:{probes}" == f"fisher:{FISHER_PROBES}":
            object.__setattr__(self, "scorer", "fisher")
        if self.search not in SEARCHES:
            raise OptionError(f"search {self.search!r} is none of {', '.join(SEARCHES)}")
        if name == "random" and self.search != "best-first":
            raise OptionError(
                f"the random baseline is a walk, not a weight: search {self.search!r} does not go "
                "with it; leave the search out"
            )
        check_sizes(self.sizes)

    def settings(self, model: TracedModel) -> Settings:
        """What identifies the ranking."""
        return Settings(
            scorer=self.scorer,
            search=self.search,
            dtype=model.info.dtype,
            seed=self.seed if draws(self.scorer) else None,
        )


DEFAULTS = TraceOptions()


def as_evaluation(
    mode: str, ablation: str, ablate: Iterable[str] | str, means: ReferenceMeans | str | Path | None
) -> Evaluation:
    """The Evaluation of plain arguments. ablate: kinds, or their comma-separated list; means:
    ReferenceMeans or the path of their file. Raises OptionError, ModelError."""
    kinds = ablate.split(",") if isinstance(ablate, str) else ablate
    found = means if means is None or isinstance(means, ReferenceMeans) else load_means(means)
    return Evaluation(mode, ablation, tuple(kind.strip() for kind in kinds), found)


def trace(
    model: TracedModel | Any,
    text: str | list[int] | Input,
    *,
    scorer: str = DEFAULTS.scorer,
    search: str = DEFAULTS.search,
    seed: int = DEFAULTS.seed,
    sizes: Iterable[float] = DEFAULTS.sizes,
    mode: str = DEFAULTS.evaluation.mode,
    ablation: str = DEFAULTS.evaluation.ablation,
    ablate: Iterable[str] | str = DEFAULTS.evaluation.ablate,
    means: ReferenceMeans | str | Path | None = None,
    continuation: str | None = None,
    bos: str = TEXT_DEFAULTS.bos,
    chat: bool = TEXT_DEFAULTS.chat,
    system: str | None = TEXT_DEFAULTS.system,
) -> Trace:
    """Trace the prediction of the token that follows `text`.

    model: from `load_model`, or what `load_model` takes. text: a string, the messages of a chat,
    or token ids taken as they are. continuation: how the text goes on; its first token gives
    `loss`. scorer, search: see TraceOptions. mode, ablation, ablate: see Evaluation; means:
    ReferenceMeans or their file, for the `mean` ablation. bos, chat, system: see TextOptions.

    Raises EmptyTextError, TextTooLongError, NonFiniteError, ModelMemoryError, OptionError.
    """
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    evaluation = as_evaluation(mode, ablation, ablate, means)
    options = TraceOptions(scorer, search, seed, tuple(sizes), evaluation)
    tokens = tokenize(traced_model, text, continuation, TextOptions(bos, chat, system))
    return trace_tokens(traced_model, tokens, options)


def trace_many(
    model: TracedModel | Any,
    texts: Iterable[str | list[int] | Input],
    *,
    scorer: str = DEFAULTS.scorer,
    search: str = DEFAULTS.search,
    seed: int = DEFAULTS.seed,
    sizes: Iterable[float] = DEFAULTS.sizes,
    mode: str = DEFAULTS.evaluation.mode,
    ablation: str = DEFAULTS.evaluation.ablation,
    ablate: Iterable[str] | str = DEFAULTS.evaluation.ablate,
    means: ReferenceMeans | str | Path | None = None,
    bos: str = TEXT_DEFAULTS.bos,
    chat: bool = TEXT_DEFAULTS.chat,
    system: str | None = TEXT_DEFAULTS.system,
) -> Iterator[Trace]:
    """Trace each text in turn: the same traces as one by one."""
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    evaluation = as_evaluation(mode, ablation, ablate, means)
    options = TraceOptions(scorer, search, seed, tuple(sizes), evaluation)
    text_options = TextOptions(bos, chat, system)
    for text in texts:
        tokens = tokenize(traced_model, text, options=text_options)
        yield trace_tokens(traced_model, tokens, options)


def trace_tokens(model: TracedModel, tokens: Tokenized, options: TraceOptions) -> Trace:
    """Trace one tokenized input."""
    grid = check_sizes(options.sizes)
    if options.evaluation.means is not None:
        options.evaluation.means.check(model)
    ids = torch.as_tensor(tokens.token_ids.astype(np.int64))
    layout = layout_of(model, tokens)

    scored = _score(model, ids, options)
    score = flatten_edges(layout, scored.scores)
    if parse_scorer(options.scorer)[0] == "random":
        # Each input walks its own way, the same one however many inputs surround it.
        own_seed = int(short_hash([options.seed, tokens.token_ids.tolist()], "", 8), 16)
        rank = random_ranks(layout, own_seed)
    else:
        rank = rank_edges(layout, score, options.search)

    full = log_probabilities(scored.logits_BV)[0]
    k = kept_edges(grid, layout.n_edges)
    curve = _curve(model, ids, layout, rank, grid, k, full, options.evaluation)

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
        score_gini=gini_of(score),
        mlp_active_share=scored.facts.mlp_active_share,
        experts=scored.facts.experts,
        component_counts=count_components(layout, ranked, k),
        version=graphtrace.__version__,
    )


def _score(model: TracedModel, ids: torch.Tensor, options: TraceOptions) -> Scored:
    shares = uses_shares(options.scorer, options.search)
    try:
        return score_edges(model, ids, options.scorer, options.seed, shares)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise memory_error(model, len(ids)) from error
        raise


def _curve(model, ids, layout, rank, grid, k, full, evaluation) -> Curve:
    # With every edge kept the evaluation is the full model itself: no masked pass, TV exactly 0.
    whole = k == (layout.n_edges if evaluation.mode == "sufficiency" else 0)
    masked = k[~whole]
    logits = masked_logits(model, ids, layout, rank, masked, evaluation) if len(masked) else None
    found = iter(() if logits is None else log_probabilities(logits))
    rows = [full if is_whole else next(found) for is_whole in whole]
    reference = Reference.of(full)
    agreement = [reference.compare(q) for q in rows]
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
        mode=evaluation.mode,
        ablation=evaluation.ablation,
        ablate=",".join(evaluation.ablate),
        reference=evaluation.means.id if evaluation.means else None,
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
    return GraphLayout(
        len(tokens.token_ids), model.n_layers, model.n_heads, model.parallel, model.windows
    )


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
