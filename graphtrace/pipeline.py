"""Many inputs through the steps of a trace: evaluated in batches, the host's steps beside the
device's.

While the device scores the inputs of one batch, threads rank those before and compare the
distributions of those before them; compiled code does not hold the interpreter's lock. On a CPU
that torch uses whole the steps take turns instead, because threads that wait for each other at
every product are far slower than either.

Scores are taken one text at a time, so ranks do not depend on the batch; evaluations of several
inputs share their matrix products, so curves depend on it in the last bits. The positions of a text
are inputs of their own that share its scoring pass.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from graphtrace.distributions import log_probabilities
from graphtrace.errors import GraphtraceError, ModelMemoryError, NonFiniteError, OptionError
from graphtrace.evaluation import (
    Evaluation,
    Nested,
    check_finite,
    evaluate_nested,
    is_out_of_memory,
    memory_error,
)
from graphtrace.forward import run_model
from graphtrace.memory import free_memory
from graphtrace.models import TracedModel
from graphtrace.options import TraceOptions
from graphtrace.scoring import Scored
from graphtrace.selecting import Selected, as_tensor, select_edges, select_stored
from graphtrace.stages import (
    Measured,
    TextScores,
    assemble,
    curves_of,
    full_logits,
    layout_of,
)
from graphtrace.tokenizing import Tokenized, WholeText
from graphtrace.traces import Trace

CPU_ROWS = 4096
"""Rows (inputs x sizes x tokens) that go through a CPU together; more does not make it faster."""
CPU_EDGES = 2**24
"""Edges of a batch's inputs on a CPU, where nothing is gained by more: those of up to two batches
are in memory at a time."""
CPU_BATCH, GPU_BATCH = 8, 64
"""Inputs in a batch at most."""

Outcome = Trace | NonFiniteError | ModelMemoryError


class Missing(NamedTuple):
    """Which curves of an input are wanted. stored: the trace as it is there, where its edges tell
    which each masked trace holds (`selecting.reaches`), so that nothing is scored; None where
    the input is ranked."""

    evaluations: tuple[Evaluation, ...]
    stored: Trace | None = None


@dataclass
class _Job:
    """One input on its way. logits_1V: of the full model, where there are no scores."""

    tokens: Tokenized
    missing: Missing
    scored: Scored | None = None
    logits_1V: torch.Tensor | None = None
    selected: "Future[Selected] | None" = None
    trace: "Future[Trace] | None" = None
    error: GraphtraceError | None = None


def trace_stream(
    model: TracedModel,
    inputs: Iterable[Tokenized],
    options: TraceOptions,
    n_kept: Callable[[Tokenized], int] | None = None,
    batch_size: int | None = None,
    missing: Callable[[Tokenized], Missing] | None = None,
) -> Iterator[tuple[Tokenized, Outcome]]:
    """Every input with its trace, in order, or with what stood in its way: NonFiniteError,
    ModelMemoryError.

    n_kept: how many edges of an input are wanted, None for all. batch_size: inputs that are
    evaluated together, None for as many as fit well. missing: which curves of an input are wanted,
    None for those of all of the options' evaluations. Inputs are read ahead, by up to two batches.
    Raises OptionError.
    """
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"--batch-size {batch_size} is not at least 1")
    with _executor(model.device) as pool:
        scorer, full = TextScores(model, options), _FullLogits(model)
        scored: list[_Job] = []
        evaluated: list[_Job] = []
        for batch in _batches(model, inputs, options, batch_size):
            started = [_score(scorer, tokens, n_kept, missing, pool) for tokens in batch]
            yield from map(_outcome, evaluated)
            _evaluate(model, scored, options, full, pool)
            scored, evaluated = started, scored
            if isinstance(pool, _InTurn):  # there is nothing to wait beside
                _evaluate(model, scored, options, full, pool)
                scored, evaluated = [], scored
                yield from map(_outcome, evaluated)
                evaluated = []
        yield from map(_outcome, evaluated)
        _evaluate(model, scored, options, full, pool)
        yield from map(_outcome, scored)


def _score(scorer: TextScores, tokens: Tokenized, n_kept, missing, pool: Executor) -> _Job:
    model, options = scorer.model, scorer.options
    job = _Job(tokens, missing(tokens) if missing else Missing(options.evaluations))
    evaluations, stored = job.missing
    try:
        if stored is None:
            job.scored = scorer.of(tokens)
        else:
            job.logits_1V = full_logits(model, tokens)
    except (NonFiniteError, ModelMemoryError) as error:
        job.error = error
    else:
        if stored is not None:
            job.selected = pool.submit(select_stored, stored, tokens, options, evaluations)
        else:
            assert job.scored is not None
            layout, scores = layout_of(model, tokens), job.scored.scores
            kept = None if n_kept is None else n_kept(tokens)
            job.selected = pool.submit(
                select_edges, layout, tokens, scores, options, kept, evaluations
            )
    return job


class _FullLogits:
    """Logits [1, V] of the full model as it is evaluated, behind each input."""

    def __init__(self, model: TracedModel) -> None:
        self.model = model
        self.whole: WholeText | None = None
        self.logits_QV: torch.Tensor | None = None

    def of(self, tokens: Tokenized, own_1V: torch.Tensor, float32: bool) -> torch.Tensor:
        """own_1V: the logits of the scoring pass, which these are unless they are in float32 from
        weights of another dtype. One pass serves all positions of a text."""
        whole = tokens.whole
        if not float32:
            return own_1V
        if whole is None:
            return self._run(tokens.token_ids, None)
        if whole is not self.whole:
            self.whole = self.logits_QV = None
            self.logits_QV = self._run(whole.token_ids, torch.as_tensor(whole.positions))[0]
            self.whole = whole
        assert self.logits_QV is not None
        q = whole.positions.index(tokens.position)
        return self.logits_QV[q : q + 1]

    def _run(self, ids_T: np.ndarray, positions_Q: torch.Tensor | None) -> torch.Tensor:
        ids_1T = as_tensor(ids_T)[None].to(self.model.device)
        return run_model(self.model, ids_1T, float32=True, positions_Q=positions_Q)


def _evaluate(
    model: TracedModel,
    jobs: list[_Job],
    options: TraceOptions,
    full: _FullLogits,
    pool: Executor,
) -> None:
    """Evaluate the traces of all jobs together, and hand them on to be compared."""
    selected = [(job, job.selected.result()) for job in jobs if job.selected is not None]
    logits = {}
    for evaluation in options.evaluations:
        masked = []
        for job, found in selected:
            for own, nested in zip(job.missing.evaluations, found.nested, strict=True):
                if own is evaluation and nested is not None and job.error is None:
                    masked.append((job, nested))
        logits[evaluation] = _masked_logits(model, masked, evaluation)
    for job, found in selected:
        if job.error is not None:
            continue
        own_1V = job.logits_1V if job.scored is None else job.scored.logits_BV
        assert own_1V is not None
        parts, float32_1V = [], None
        try:
            for evaluation in job.missing.evaluations:
                full_1V = own_1V
                if evaluation.dtype == "float32":
                    if float32_1V is None:
                        float32_1V = full.of(job.tokens, own_1V, float32=True)
                    full_1V = float32_1V
                masked_PV = logits[evaluation].get(id(job), full_1V[:0])
                check_finite(model, masked_PV)
                parts.append((evaluation, full_1V, masked_PV))
        except NonFiniteError as error:
            job.error = error
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            job.error = memory_error(model, len(job.tokens.token_ids))
            continue
        # From here on the host alone works on it.
        measured = [
            Measured(evaluation, log_probabilities(full_1V)[0], log_probabilities(masked_PV))
            for evaluation, full_1V, masked_PV in parts
        ]
        if job.scored is None:
            job.trace = pool.submit(_with_curves, model, job, found, measured)
        else:
            job.trace = pool.submit(
                assemble, model, job.tokens, options, job.scored, found, measured
            )
        job.scored = job.selected = job.logits_1V = None


def _with_curves(
    model: TracedModel, job: _Job, selected: Selected, measured: list[Measured]
) -> Trace:
    """A stored trace with the curves that were measured, in the place of its own."""
    assert job.missing.stored is not None
    curves = curves_of(model, job.tokens, selected, measured)
    return replace(job.missing.stored, curves=curves)


def _masked_logits(
    model: TracedModel, masked: list[tuple[_Job, Nested]], evaluation: Evaluation
) -> dict[int, torch.Tensor]:
    """Logits [P, V] by the job's identity; a job that does not fit by itself gets its error."""
    if not masked:
        return {}
    try:
        found = evaluate_nested(model, [nested for _, nested in masked], evaluation)
    except ModelMemoryError as error:
        if len(masked) == 1:
            masked[0][0].error = error
            return {}
        parts = [_masked_logits(model, [one], evaluation) for one in masked]
        return {key: logits for part in parts for key, logits in part.items()}
    return {id(job): logits for (job, _), logits in zip(masked, found, strict=True)}


def _outcome(job: _Job) -> tuple[Tokenized, Any]:
    if job.error is not None:
        return job.tokens, job.error
    assert job.trace is not None
    return job.tokens, job.trace.result()


def _batches(
    model: TracedModel, inputs: Iterable[Tokenized], options: TraceOptions, batch_size: int | None
) -> Iterator[list[Tokenized]]:
    """Inputs in order, cut where the next one would make a batch too large, padding included."""
    rows, longest, batch = most_rows(model), 0, []
    most = batch_size or (GPU_BATCH if model.device.type == "cuda" else CPU_BATCH)
    for tokens in inputs:
        longest = max(longest, len(tokens.token_ids))
        n_inputs = len(batch) + 1
        too_many = n_inputs * longest * len(options.sizes) > rows
        if model.device.type != "cuda":
            too_many |= n_inputs * longest**2 * model.n_layers * model.n_heads // 2 > CPU_EDGES
        if batch and batch_size is None and too_many:
            yield batch
            batch, longest = [], len(tokens.token_ids)
        batch.append(tokens)
        if len(batch) == most:
            yield batch
            batch, longest = [], 0
    if batch:
        yield batch


def most_rows(model: TracedModel) -> int:
    """Rows that go well through the model together."""
    if model.device.type != "cuda":
        return CPU_ROWS
    width = 4 * model.d_model + 2 * (getattr(model.config, "intermediate_size", None) or 0)
    return max(1, free_memory(model.device) // 8 // (4 * width))


class _InTurn(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """The finished call."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def _executor(device: torch.device) -> Executor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    spare = (cores or 1) - (1 if device.type == "cuda" else torch.get_num_threads())
    return ThreadPoolExecutor(spare) if spare > 0 else _InTurn()
