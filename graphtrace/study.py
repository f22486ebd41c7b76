"""Many inputs through one model into one archive: resumable; one failure does not end the run."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from graphtrace.archive_write import ArchiveWriter, Keep, failure_key, keep_count, parse_keep
from graphtrace.corpus import as_input, read_corpus
from graphtrace.errors import InputError, ModelMemoryError, NonFiniteError
from graphtrace.loading import load_model
from graphtrace.models import TracedModel
from graphtrace.progress import progress
from graphtrace.reference_means import ReferenceMeans
from graphtrace.tokenizing import (
    TEXT_DEFAULTS,
    TextOptions,
    check_text_options,
    tokenize,
)
from graphtrace.traces import Input
from graphtrace.tracing import (
    DEFAULTS,
    TraceOptions,
    as_evaluation,
    layout_of,
    planned_id,
    trace_tokens,
)


class ExtractResult(NamedTuple):
    """What a run did. traced, present, failed: lists of trace ids, trace ids, and (input name,
    message); seconds: spent on tracing; stopped: whether it was asked to stop before the end."""

    traced: list[str]
    present: list[str]
    failed: list[tuple[str, str]]
    seconds: float
    stopped: bool


def extract(
    model: TracedModel | Any,
    inputs: Iterable[Input | str] | str | Path,
    archive: str | Path = "traces/archive",
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
    keep: Keep | str | float | None = None,
    retry_failed: bool = False,
    show_progress: bool = False,
    stop: threading.Event | None = None,
) -> ExtractResult:
    """Trace every input that the archive does not hold yet, committing each when it is done.

    inputs: Inputs, texts or chats, or the path of a corpus file. bos, chat, system: see
    `tokenizing.TextOptions`. keep: how many edges the archive keeps,
    see `archive_write.parse_keep`. An input that cannot be traced is recorded as failed and the
    run goes on; later runs pass over it unless `retry_failed`. A trace that is there with fewer
    edges than `keep` asks for, or without a curve of the kind of evaluation that is asked for, is
    traced again; curves that it has are kept. stop: set it (from a signal handler)
    to end after the input at hand.

    Raises ModelError, CorpusError, ArchiveError, StorageFullError; what was committed is kept.
    """
    traced_model = model if isinstance(model, TracedModel) else load_model(model)
    evaluation = as_evaluation(mode, ablation, ablate, means)
    options = TraceOptions(scorer, search, seed, tuple(sizes), evaluation)
    text_options = TextOptions(bos, chat, system)
    check_text_options(traced_model, text_options)
    todo = _as_inputs(inputs, chat)
    keep = parse_keep(keep)
    settings = options.settings(traced_model).id
    result = ExtractResult([], [], [], 0.0, False)
    start = time.monotonic()
    with (
        ArchiveWriter(archive) as writer,
        progress("extract", len(todo), "inputs", show_progress) as advance,
    ):
        for input_ in todo:
            if stop is not None and stop.is_set():
                result = result._replace(stopped=True)
                break
            read_as = [] if text_options == TEXT_DEFAULTS else [list(vars(text_options).values())]
            key = failure_key(traced_model.info.id, input_.id, settings, *read_as)
            if writer.has_failed(key) and not retry_failed:
                result.failed.append((input_.name, "failed in an earlier run; see --retry-failed"))
            else:
                _trace_one(traced_model, input_, text_options, options, keep, writer, key, result)
            advance()
    return result._replace(seconds=time.monotonic() - start)


def _trace_one(model, input_, text_options, options, keep, writer, key, result) -> None:
    try:
        tokens = tokenize(model, input_, options=text_options)
        trace_id = planned_id(model, tokens, options)
        n_kept = keep_count(keep, layout_of(model, tokens).n_edges)
        if writer.has(trace_id, n_kept, (options.evaluation.kind,)):
            result.present.append(trace_id)
            return
        trace = trace_tokens(model, tokens, options)
    except (InputError, NonFiniteError, ModelMemoryError) as error:
        writer.fail(key, input_.name, model.info.id, error)
        result.failed.append((input_.name, str(error)))
        return
    writer.write(trace, n_kept)
    writer.clear_failure(key)
    result.traced.append(trace.id)


def _as_inputs(inputs: Iterable[Input | str] | str | Path, chat: bool) -> list[Input]:
    if isinstance(inputs, str | Path):
        return list(read_corpus(inputs, chat=chat))
    return [x if isinstance(x, Input) else as_input(x) for x in inputs]
