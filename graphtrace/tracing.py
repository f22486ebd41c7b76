"""The main path, from a model and a text to a trace. Read this first.

1. forward     one pass of the model, observed: attention patterns, states, MLP outputs
2. scoring     what every edge adds to its target, one weight per edge
3. search      from the output: one rank per edge, nested traces
4. evaluation  masked forward passes of the traces of growing size: the curve

stages.py has these steps for one input, pipeline.py runs them for many.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from graphtrace.loading import load_model
from graphtrace.models import TracedModel
from graphtrace.options import DEFAULTS, TraceOptions, as_evaluation
from graphtrace.pipeline import trace_stream
from graphtrace.reference_means import ReferenceMeans
from graphtrace.tokenizing import TEXT_DEFAULTS, TextOptions, Tokenized, tokenize
from graphtrace.traces import Input, Trace


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
    eval_dtype: str = DEFAULTS.evaluation.dtype,
    continuation: str | None = None,
    bos: str = TEXT_DEFAULTS.bos,
    chat: bool = TEXT_DEFAULTS.chat,
    system: str | None = TEXT_DEFAULTS.system,
) -> Trace:
    """Trace the prediction of the token that follows `text`.

    model: from `load_model`, or what `load_model` takes. text: a string, the messages of a chat,
    or token ids taken as they are. continuation: how the text goes on; its first token gives
    `loss`. scorer, search: see TraceOptions. mode, ablation, ablate, eval_dtype: see Evaluation;
    means: ReferenceMeans or their file, for the `mean` ablation. bos, chat, system: see
    TextOptions.

    Raises EmptyTextError, TextTooLongError, NonFiniteError, ModelMemoryError, OptionError.
    """
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    evaluation = as_evaluation(mode, ablation, ablate, means, eval_dtype)
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
    eval_dtype: str = DEFAULTS.evaluation.dtype,
    bos: str = TEXT_DEFAULTS.bos,
    chat: bool = TEXT_DEFAULTS.chat,
    system: str | None = TEXT_DEFAULTS.system,
    batch_size: int | None = None,
) -> Iterator[Trace]:
    """Trace each text, in order: the same ranks as one by one, the same curves up to rounding.

    batch_size: inputs whose traces are evaluated together, None for as many as fit well.
    """
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    evaluation = as_evaluation(mode, ablation, ablate, means, eval_dtype)
    options = TraceOptions(scorer, search, seed, tuple(sizes), evaluation)
    text_options = TextOptions(bos, chat, system)
    tokens = (tokenize(traced_model, text, options=text_options) for text in texts)
    for _, found in trace_stream(traced_model, tokens, options, batch_size=batch_size):
        if not isinstance(found, Trace):
            raise found
        yield found


def trace_tokens(
    model: TracedModel, tokens: Tokenized, options: TraceOptions, n_kept: int | None = None
) -> Trace:
    """Trace one tokenized input; n_kept: see stages.select_edges."""
    kept = None if n_kept is None else lambda _: n_kept
    ((_, found),) = trace_stream(model, [tokens], options, kept)
    if not isinstance(found, Trace):
        raise found
    return found
