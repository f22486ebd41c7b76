"""A text as the token ids that the model reads."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphtrace.corpus import texts_as_inputs
from graphtrace.errors import EmptyTextError, InputError, OptionError, TextTooLongError
from graphtrace.models import TracedModel
from graphtrace.traces import Input, short_hash


@dataclass(frozen=True)
class Tokenized:
    """One input as the model reads it. next_id: the true next token, None where it is not known."""

    input: Input
    token_ids: np.ndarray
    next_id: int | None


def tokenize(
    model: TracedModel, text: str | list[int] | Input, continuation: str | None = None
) -> Tokenized:
    """The token ids of a text as the model's tokenizer makes them, special tokens included.

    The true next token is known where the text with its continuation begins with the text's own
    tokens; where a cut inside a word makes them differ, it is not.

    Raises EmptyTextError, TextTooLongError, InputError (ids outside the vocabulary).
    """
    if not isinstance(text, Input | str):
        ids = np.asarray(text, np.int32)
        input_ = Input(name=short_hash(ids.tolist(), "ids-", 6), text="", continuation=continuation)
        vocabulary = model.config.vocab_size
        if len(ids) and not (ids.min() >= 0 and ids.max() < vocabulary):
            raise InputError(f"token ids must lie in 0 ... {vocabulary - 1}; got {ids.tolist()}")
        return _checked(model, input_, ids, None)
    if model.tokenizer is None:
        raise OptionError("this model came without a tokenizer; pass tokenizer=… or token ids")
    if isinstance(text, str):
        text = replace(texts_as_inputs([text])[0], continuation=continuation)
    if not text.text.strip():
        raise EmptyTextError(f"input {text.name!r} has no text, so there is nothing to trace")
    ids = _encode(model, text.text)
    next_id = None
    if text.continuation:
        longer = _encode(model, text.text + text.continuation)
        if len(longer) > len(ids) and (longer[: len(ids)] == ids).all():
            next_id = int(longer[len(ids)])
    return _checked(model, text, ids, next_id)


def _encode(model: TracedModel, text: str) -> np.ndarray:
    encoded: Any = model.tokenizer(text, verbose=False)
    return np.asarray(encoded["input_ids"], np.int32)


def _checked(model: TracedModel, input_: Input, ids: np.ndarray, next_id) -> Tokenized:
    if len(ids) == 0:
        raise EmptyTextError(f"input {input_.name!r} yields no token, so there is nothing to trace")
    limit = model.context_length
    if limit is not None and len(ids) > limit:
        raise TextTooLongError(
            f"input {input_.name!r} has {len(ids)} tokens and the context of {model.name} holds "
            f"{limit}; shorten the text"
        )
    return Tokenized(input_, ids, next_id)
