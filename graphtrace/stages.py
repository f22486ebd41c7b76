"""The steps from an input to a trace, each on its own side: device, host, device, host.

1. score_tokens   one observed pass: a weight for every edge
2. select_edges   the ranking, the nested traces, the plan of their evaluation
3. evaluation.evaluate_nested   masked passes, of several inputs at once
4. assemble       the curve and everything else that a trace holds

pipeline.py runs them, 2 and 4 beside the device's work on other inputs.

Shape suffixes: P sizes, E edges, V vocabulary, X components.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

import graphtrace
from graphtrace.distributions import Reference, entropy, log_probabilities, top_tokens
from graphtrace.errors import ModelMemoryError
from graphtrace.evaluation import (
    Evaluation,
    check_finite,
    is_out_of_memory,
    memory_error,
)
from graphtrace.forward import run_model
from graphtrace.gradients import Aim
from graphtrace.layout import GraphLayout
from graphtrace.models import TracedModel
from graphtrace.options import TraceOptions
from graphtrace.pairing import pair_id, with_pair
from graphtrace.scoring import Scored, ScoredText, uses_shares
from graphtrace.selecting import Selected, as_tensor, is_whole
from graphtrace.tokenizing import TEXT_DEFAULTS, TextOptions, Tokenized, WholeText, at_positions
from graphtrace.tokens import special_ids, token_texts
from graphtrace.traces import Curve, Trace, trace_id


class Measured(NamedTuple):
    """One evaluation's outcome: log-probabilities of the full model as evaluated, and of the
    distinct masked traces, ascending."""

    evaluation: Evaluation
    full_V: np.ndarray
    masked_PV: np.ndarray


def score_tokens(model: TracedModel, tokens: Tokenized, options: TraceOptions) -> Scored:
    """Score every edge of one input. Raises NonFiniteError, ModelMemoryError."""
    return TextScores(model, options).of(tokens)


def read_positions(
    model: TracedModel,
    whole: Tokenized,
    options: TraceOptions,
    text_options: TextOptions = TEXT_DEFAULTS,
) -> list[Tokenized]:
    """A text up to each position that is asked for, with its target and foil, and its pair where an
    evaluation takes one, read as text_options say.

    Raises InputError, OptionError.
    """
    aimed = options.targets.aimed(model, whole)
    return at_positions(
        with_pair(model, aimed, options.evaluations, text_options), options.positions
    )


def kind_of(model: TracedModel, tokens: Tokenized, evaluation: Evaluation) -> str:
    """The kind of the curve that an evaluation gives of an input."""
    return evaluation.kind(model.info.dtype, _pair_of(tokens, evaluation))


def _pair_of(tokens: Tokenized, evaluation: Evaluation) -> str | None:
    if not evaluation.takes_pair:
        return None
    assert tokens.pair_ids is not None
    return pair_id(tokens.pair_ids)


def full_logits(model: TracedModel, tokens: Tokenized) -> torch.Tensor:
    """The full model's logits [1, V]. Raises NonFiniteError, ModelMemoryError."""
    with _memory_errors(model, len(tokens.token_ids)):
        ids_1T = as_tensor(tokens.token_ids)[None].to(model.device)
        logits_1V = run_model(model, ids_1T)
    check_finite(model, logits_1V)
    return logits_1V


class TextScores:
    """Scores of inputs in turn; those at several positions of one text share its pass."""

    def __init__(self, model: TracedModel, options: TraceOptions) -> None:
        self.model, self.options = model, options
        self.whole: WholeText | None = None
        self.scored: ScoredText | ModelMemoryError | None = None
        for evaluation in options.evaluations:
            if evaluation.means is not None:
                evaluation.means.check(model)

    def of(self, tokens: Tokenized) -> Scored:
        """Score every edge of one input. Raises NonFiniteError, ModelMemoryError."""
        if tokens.whole is None or tokens.whole is not self.whole:
            self.scored = None  # one text at a time
            self.whole, self.scored = tokens.whole, self._run(tokens)
        if isinstance(self.scored, ModelMemoryError):
            raise self.scored
        assert self.scored is not None
        aim = Aim(tokens.target_id, tokens.foil_id)
        with _memory_errors(self.model, len(tokens.token_ids)):
            found = self.scored.at(tokens.position, aim)
        if tokens.whole is None or tokens.position == tokens.whole.positions[-1]:
            self.whole = self.scored = None
        return found

    def _run(self, tokens: Tokenized) -> ScoredText | ModelMemoryError:
        """One observed pass; that it does not fit is said of each of the text's positions."""
        whole, options = tokens.whole, self.options
        ids = tokens.token_ids if whole is None else whole.token_ids
        shares = uses_shares(options.scorer, options.search)
        positions = None if whole is None else whole.positions
        try:
            with _memory_errors(self.model, len(ids)):
                return ScoredText(
                    self.model, as_tensor(ids), positions, options.scorer, options.seed, shares
                )
        except ModelMemoryError as error:
            return error


@contextmanager
def _memory_errors(model: TracedModel, n_tokens: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise memory_error(model, n_tokens) from error
        raise


def assemble(
    model: TracedModel,
    tokens: Tokenized,
    options: TraceOptions,
    scored: Scored,
    selected: Selected,
    measured: Sequence[Measured],
) -> Trace:
    """The trace of what the other steps found, with a curve per evaluation that was measured."""
    own_V = log_probabilities(scored.logits_BV)[0]
    top_ids, top_probs = top_tokens(own_V)
    top_texts = decoded(model, top_ids)
    next_id = tokens.next_id
    return Trace(
        model=model.info,
        input=tokens.input,
        settings=options.settings(model, tokens.input),
        token_ids=tokens.token_ids,
        tokens=decoded(model, tokens.token_ids),
        special=np.isin(tokens.token_ids, list(special_ids(model.tokenizer))),
        position=tokens.position,
        ranked=selected.ranked,
        curves=curves_of(model, tokens, selected, measured),
        entropy=entropy(own_V),
        loss=None if next_id is None else float(-own_V[next_id]),
        predicted_id=int(top_ids[0]),
        predicted=top_texts[0],
        target_id=tokens.target_id,
        target=token_text(model, tokens.target_id),
        foil_id=tokens.foil_id,
        foil=token_text(model, tokens.foil_id),
        top_ids=top_ids,
        top_tokens=top_texts,
        top_probs=top_probs,
        mass90_edges=selected.mass90_edges,
        score_gini=selected.score_gini,
        mlp_active_share=scored.facts.mlp_active_share,
        experts=scored.facts.experts,
        component_counts=selected.component_counts,
        version=graphtrace.__version__,
    )


def curves_of(
    model: TracedModel, tokens: Tokenized, selected: Selected, measured: Sequence[Measured]
) -> tuple[Curve, ...]:
    """The curve of every evaluation that was measured."""
    return tuple(_curve(model, tokens, selected, *one) for one in measured)


def _curve(
    model, tokens: Tokenized, selected: Selected, evaluation: Evaluation, full_V, masked_PV
) -> Curve:
    k_P, layout = selected.k_P, selected.layout
    whole = is_whole(k_P, layout, evaluation)
    _, place = np.unique(k_P[~whole], return_inverse=True)
    found = iter(masked_PV[place])
    rows = [full_V if is_whole else next(found) for is_whole in whole]
    reference = Reference.of(full_V)
    agreement = [reference.compare(q_V) for q_V in rows]
    tops = [top_tokens(q_V) for q_V in rows]
    texts = iter(decoded(model, np.concatenate([ids for ids, _ in tops])))
    p_target = logit_diff = None
    if tokens.target_id is not None:
        target_P = np.array([q_V[tokens.target_id] for q_V in rows])
        p_target = np.exp(target_P)
        if tokens.foil_id is not None:
            # Of log-probabilities, from which the same constant is taken.
            logit_diff = target_P - np.array([q_V[tokens.foil_id] for q_V in rows])
    return Curve(
        n_edges=layout.n_edges,
        grid=selected.grid_P,
        k=k_P,
        tv=np.array([a.tv for a in agreement]),
        kl=np.array([a.kl for a in agreement]),
        top1=np.array([a.top1 for a in agreement]),
        nucleus=np.array([a.nucleus for a in agreement], np.int32),
        p_predicted=np.array([a.p_predicted for a in agreement]),
        top_ids=np.stack([ids for ids, _ in tops]),
        top_tokens=[list(islice(texts, len(ids))) for ids, _ in tops],
        top_probs=np.stack([probs for _, probs in tops]),
        p_target=p_target,
        logit_diff=logit_diff,
        eval_dtype=evaluation.eval_dtype(model.info.dtype),
        mode=evaluation.mode,
        ablation=evaluation.ablation,
        ablate=",".join(evaluation.ablate),
        reference=evaluation.means.id if evaluation.means else _pair_of(tokens, evaluation),
    )


def token_text(model: TracedModel, token_id: int | None) -> str | None:
    """A token as tables show it, None for none."""
    return None if token_id is None else decoded(model, np.array([token_id]))[0]


def decoded(model: TracedModel, ids: np.ndarray) -> list[str]:
    """Tokens as text, one by one; a model without a tokenizer has `<id 7>`."""
    if model.tokenizer is None:
        return [f"<id {token_id}>" for token_id in ids]
    return token_texts(model.tokenizer, ids.tolist())


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
        tokens.position,
        (tokens.target_id, tokens.foil_id),
        options.settings(model, tokens.input).id,
    )
