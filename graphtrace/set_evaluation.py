"""Any sub-graph evaluated: what a model predicts with some of its edges, or without them.

A set of edges is a family of nested traces of one (evaluation.py); several sets go through the
model together.

Shape suffixes: E edges, V vocabulary, P sets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphtrace import schema
from graphtrace.distributions import Reference, log_probabilities, top_tokens
from graphtrace.edge_sets import component_mask, edge_mask, named_sets
from graphtrace.edges import unflatten_edges
from graphtrace.errors import InputError, OptionError
from graphtrace.evaluation import Evaluation, check_finite, evaluate_nested, plan_nested
from graphtrace.forward import run_model
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.masks import NO_EDGE
from graphtrace.models import TracedModel
from graphtrace.options import DEFAULTS, as_evaluation
from graphtrace.pairing import pair_id, with_pair
from graphtrace.pipeline import most_rows
from graphtrace.positions import parse_positions
from graphtrace.reference_means import ReferenceMeans
from graphtrace.selecting import as_tensor
from graphtrace.stages import decoded, layout_of
from graphtrace.subgraph import SubGraph
from graphtrace.targets import Targets
from graphtrace.tokenizing import (
    TEXT_DEFAULTS,
    TextOptions,
    Tokenized,
    at_positions,
    check_text_options,
    tokenize,
)
from graphtrace.traces import Input

ABLATED_OF_COMPONENTS = ("mlp", "attention")
"""Kinds that are masked where components are named and nothing else is asked for."""


@dataclass(frozen=True)
class SetResult:
    """What the model predicts with (sufficiency) or without (necessity) one set of edges.

    n_edges: in the set; n_left: of all edges, how many this left in the model. tv, kl (nats), top1,
    nucleus, p_predicted: against the full model, as in Curve. p_target, logit_diff: None without a
    target and a foil. top_ids, top_tokens, top_probs: the ten most probable tokens.
    """

    name: str
    n_edges: int
    n_left: int
    tv: float
    kl: float
    top1: bool
    nucleus: int
    p_predicted: float
    p_target: float | None
    logit_diff: float | None
    top_ids: np.ndarray
    top_tokens: list[str]
    top_probs: np.ndarray


@dataclass(frozen=True)
class Evaluated:
    """The results of one or more sets of edges of one text, in the order in which they were given.

    kind: of evaluation, as Curve.kind. n_edges: |E| of the whole graph. full: the full model. A
    result is found by its place or by its set's name: `found[0].tv`, `found["circuit"].tv`.
    """

    results: tuple[SetResult, ...]
    full: SetResult
    kind: str
    n_edges: int

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[SetResult]:
        return iter(self.results)

    def __getitem__(self, which: int | str) -> SetResult:
        if isinstance(which, int):
            return self.results[which]
        for result in self.results:
            if result.name == which:
                return result
        names = ", ".join(result.name for result in self.results)
        raise KeyError(f"no set {which!r} was evaluated; there are {names}")

    def frame(self) -> pd.DataFrame:
        """One row per set: name, n_edges, n_left, size (n_edges / |E|), tv, kl, top1, nucleus,
        p_predicted, p_target and logit_diff where there is a target and a foil, and the most
        probable token: top_token, top_prob."""
        rows = []
        for result in self.results:
            row: dict[str, Any] = {"name": result.name, "n_edges": result.n_edges}
            row |= {"n_left": result.n_left, "size": result.n_edges / self.n_edges}
            for field in ("tv", "kl", "top1", "nucleus", "p_predicted", "p_target", "logit_diff"):
                if getattr(result, field) is not None:
                    row[field] = getattr(result, field)
            row |= {"top_token": result.top_tokens[0], "top_prob": float(result.top_probs[0])}
            rows.append(row)
        return pd.DataFrame(rows)


EdgeTable = pd.DataFrame | SubGraph


def evaluate(
    model: TracedModel | Any,
    text: str | list[int] | Input,
    edges: EdgeTable | Iterable[EdgeTable] | Mapping[str, EdgeTable] | None = None,
    *,
    components: Iterable[Any] | Mapping[str, Iterable[str]] | None = None,
    mode: str = DEFAULTS.evaluation.mode,
    ablation: str = DEFAULTS.evaluation.ablation,
    ablate: Iterable[str] | str | None = None,
    means: ReferenceMeans | str | Path | None = None,
    pair: Any = None,
    eval_dtype: str = DEFAULTS.evaluation.dtype,
    position: int | str = -1,
    target: str | int | None = None,
    foil: str | int | None = None,
    bos: str = TEXT_DEFAULTS.bos,
    chat: bool = TEXT_DEFAULTS.chat,
    system: str | None = TEXT_DEFAULTS.system,
) -> Evaluated:
    """What the model predicts with only these edges (sufficiency) or without them (necessity).

    model, text, means, pair, eval_dtype, bos, chat, system: as for `trace`. edges: a table as
    `Trace.edges()` gives it, any rows of it in any order, or a SubGraph; several as a list, or by
    name in a mapping. components: instead of edges, names such as `L9H9`, `9.9`, `L3.mlp`, standing
    for all edges of these components; several sets as a list of lists, or by name in a mapping.
    All sets are evaluated together. mode, ablation: see Evaluation. ablate: the kinds that are
    masked at all, by default all three with edges, and `mlp,attention` with components, so that the
    residual stream stays whole; `ablate="attention"` leaves every MLP whole too. position: whose
    next token is meant. target, foil: tokens whose probability and logit difference are wanted.

    A set without edges is an error where it stands alone, since mostly a filter has found nothing;
    in a list or mapping it is evaluated.

    Raises OptionError, InputError (tables that are not of this model and text: see
    `edge_sets.edge_mask`), NonFiniteError, ModelMemoryError.
    """
    if (edges is None) == (components is None):
        raise OptionError("give either edges or components, and not both")
    if ablate is None:
        ablate = schema.KINDS if components is None else ABLATED_OF_COMPONENTS
    evaluation = as_evaluation(mode, ablation, ablate, means, eval_dtype, pair)
    text_options, positions = TextOptions(bos, chat, system), parse_positions(position)
    if not positions.is_one:
        raise OptionError(f"position {position!r} is several; one is evaluated at a time")
    targets = Targets(target, foil)
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    check_text_options(traced_model, text_options)
    if evaluation.means is not None:
        evaluation.means.check(traced_model)
    whole = tokenize(traced_model, text, options=text_options)
    whole = with_pair(traced_model, targets.aimed(traced_model, whole), [evaluation], text_options)
    (tokens,) = at_positions(whole, positions)
    layout = layout_of(traced_model, tokens)
    if components is None:
        texts = decoded(traced_model, tokens.token_ids)
        tables = named_sets(edges, (pd.DataFrame, SubGraph), "edges")
        masks = _read_sets(tables, lambda table: edge_mask(layout, table, texts))
        alone = isinstance(edges, pd.DataFrame | SubGraph)
    else:
        masks, alone = _component_masks(layout, components, evaluation)
    if alone and not any(mask_E.any() for mask_E in masks.values()):
        raise OptionError(
            "the set holds no edge; if that is meant, for the model with everything ablated, give "
            "it by name in a mapping: {'none': …}"
        )
    return _evaluate_masks(traced_model, tokens, layout, masks, evaluation)


def _component_masks(
    layout: GraphLayout, components: Any, evaluation: Evaluation
) -> tuple[dict[str, np.ndarray], bool]:
    """The edges of each set of components, and whether it is one set alone."""
    if isinstance(components, str):
        components = components.split(",")
    alone = not isinstance(components, Mapping)
    if alone:
        given = list(components)
        alone = all(isinstance(name, str | int | float) for name in given)
        if not given:
            raise OptionError("no component is named; name one, such as L9H9 or 9.9")
        sets = {"components": given} if alone else named_sets(given, (), "components")
    else:
        sets = named_sets(components, (), "components")
    sets = {name: x.split(",") if isinstance(x, str) else list(x) for name, x in sets.items()}
    masks = _read_sets(sets, lambda names: component_mask(layout, names))
    if evaluation.mode == "necessity":
        for mask_E in masks.values():
            for code in np.unique(layout.columns.kind[mask_E]):
                if schema.KINDS[code] not in evaluation.ablate or code == schema.RESIDUAL:
                    raise OptionError(
                        f"a component that is named is of the kind {schema.KINDS[code]}, of which "
                        "nothing is dropped here: necessity keeps every residual edge, and ablate "
                        f"is {','.join(evaluation.ablate)}"
                    )
    return masks, alone


def _read_sets(sets: Mapping[str, Any], read: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray]:
    """The edges of every set; what is wrong with one of several names it."""
    found = {}
    for name, given in sets.items():
        try:
            found[name] = read(given)
        except (InputError, OptionError) as error:
            if len(sets) == 1:
                raise
            raise type(error)(f"set {name!r}: {error}") from error
    return found


def _evaluate_masks(
    model: TracedModel,
    tokens: Tokenized,
    layout: GraphLayout,
    masks: Mapping[str, np.ndarray],
    evaluation: Evaluation,
) -> Evaluated:
    """Evaluate sets given as bool [E]."""
    ids_T = as_tensor(tokens.token_ids)
    pair_T = None if tokens.pair_ids is None else as_tensor(tokens.pair_ids)
    float32 = evaluation.dtype == "float32"
    full_1V = run_model(model, ids_T[None].to(model.device), float32=float32)
    full_V = log_probabilities(full_1V)[0]
    together = max(1, most_rows(model) // layout.n_tokens)
    names, rows = list(masks), []
    for start in range(0, len(names), together):
        nested = []
        for name in names[start : start + together]:
            # The one trace of a family: its edges are in bucket 0, the others in none.
            buckets = unflatten_edges(layout, (~masks[name]).astype(np.uint8), NO_EDGE)
            nested.append(plan_nested(ids_T, layout, buckets, 1, evaluation, pair_T))
        for logits_1V in evaluate_nested(model, nested, evaluation):
            check_finite(model, logits_1V)
            rows.append(log_probabilities(logits_1V)[0])
    reference = Reference.of(full_V)
    results = tuple(
        _result(model, tokens, reference, name, q_V, _counts(layout, masks[name], evaluation))
        for name, q_V in zip(names, rows, strict=True)
    )
    whole = (layout.n_edges, layout.n_edges)
    pair = None if tokens.pair_ids is None else pair_id(tokens.pair_ids)
    return Evaluated(
        results=results,
        full=_result(model, tokens, reference, "full model", full_V, whole),
        kind=evaluation.kind(model.info.dtype, pair),
        n_edges=layout.n_edges,
    )


def _result(
    model: TracedModel,
    tokens: Tokenized,
    reference: Reference,
    name: str,
    q_V: np.ndarray,
    counts: tuple[int, int],
) -> SetResult:
    p_target = logit_diff = None
    if tokens.target_id is not None:
        p_target = float(np.exp(q_V[tokens.target_id]))
        if tokens.foil_id is not None:
            # Of log-probabilities, from which the same constant is taken.
            logit_diff = float(q_V[tokens.target_id] - q_V[tokens.foil_id])
    top_ids, top_probs = top_tokens(q_V)
    return SetResult(
        name,
        *counts,
        **reference.compare(q_V)._asdict(),
        p_target=p_target,
        logit_diff=logit_diff,
        top_ids=top_ids,
        top_tokens=decoded(model, top_ids),
        top_probs=top_probs,
    )


def _counts(layout: GraphLayout, mask_E: np.ndarray, evaluation: Evaluation) -> tuple[int, int]:
    """How many edges are in a set, and how many of all this leaves in the model."""
    kind_E = layout.columns.kind
    masked_E = np.isin(kind_E, [schema.KINDS.index(kind) for kind in evaluation.ablate])
    if evaluation.mode == "necessity":
        dropped_E = masked_E & mask_E & (kind_E != schema.RESIDUAL)
    else:
        dropped_E = masked_E & ~mask_E
    return int(mask_E.sum()), layout.n_edges - int(dropped_E.sum())
