"""How frequent a model's most probable token is: ln of its share of a text's tokens.

Counted in the study itself or taken from a table. Add-one smoothing gives a token that was never
counted a frequency: with `count` of a token, N counts in all and T tokens that are counted or
predicted, f = (count + 1) / (N + T), so the f of these T tokens add up to 1.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graphtrace.errors import OptionError
from graphtrace.schema import visible
from graphtrace.selection import TraceSource

COLUMNS = ("token", "count")
_AT_ONCE = 512
Frequencies = str | Path | Mapping[str, float]


def top1_log_frequency(
    source: TraceSource, traces: pd.DataFrame, frequencies: Frequencies | None = None
) -> np.ndarray:
    """float64 [traces]: natural logarithm of the frequency of each trace's top-1 token.

    traces: rows of `chosen_traces`. Without `frequencies` the tokens of the inputs of these
    traces are counted, model by model, by id: each input's text once, special tokens not.
    frequencies: counts by token text (`" the"`, or `·the` as tables show it), a dict or a file, see
    `read_frequencies`; the same for every model. Raises OptionError where no predicted token is in
    that table.
    """
    if frequencies is None:
        return _counted_in(source, traces)
    counts = read_frequencies(frequencies)
    tokens = traces["predicted"].tolist()
    names = [x if x in counts or visible(x) not in counts else visible(x) for x in tokens]
    if not any(name in counts for name in names):
        raise OptionError(
            f"none of the {len(set(tokens)):,} predicted tokens (such as {tokens[0]!r}) is in the "
            f"table of frequencies (tokens such as {next(iter(counts))!r}); tokens are matched by "
            "their whole text, leading spaces included"
        )
    return _log_frequency(names, counts)


def read_frequencies(frequencies: Frequencies) -> dict[str, float]:
    """Counts by token: a mapping, or a file with columns token and count (.csv, .parquet, .json as
    a list of such records), or .json with one object `{token: count}`.

    Counts need not be whole (shares would be smoothed away: give counts). Raises OptionError
    for what is none of these, a token twice, a count that is negative or no number, or all zero.
    """
    where = "the table of frequencies"
    if isinstance(frequencies, Mapping):
        pairs = list(frequencies.items())
    else:
        where = str(frequencies)
        pairs = _read_pairs(Path(frequencies))
    counts: dict[str, float] = {}
    for token, count in pairs:
        if not isinstance(token, str):
            raise OptionError(f"{where}: the token {token!r} is not a text")
        if token in counts:
            raise OptionError(f"{where}: the token {token!r} is there twice; give it one count")
        counts[token] = _count(where, token, count)
    if not sum(counts.values()) > 0:
        raise OptionError(f"{where} counts no token; give counts above 0")
    return counts


def _count(where: str, token: str, count: Any) -> float:
    try:
        number = math.nan if isinstance(count, bool) else float(count)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise OptionError(
            f"{where}: the count of the token {token!r} is {count!r}, not a number of at least 0"
        )
    return number


def _read_pairs(path: Path) -> list[tuple[Any, Any]]:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".parquet"):
        raise OptionError(f"frequencies {str(path)!r} must be a .csv, .json or .parquet file")
    try:
        if suffix == ".json":
            found = json.loads(path.read_text("utf-8"))
            if isinstance(found, dict):
                return list(found.items())
            frame = pd.DataFrame(found)
        elif suffix == ".csv":
            # "NA" and "null" are tokens like any other.
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        else:
            frame = pd.read_parquet(path)
    except OSError as error:
        raise OptionError(
            f"frequencies {str(path)!r} cannot be read: {error.strerror or error}"
        ) from error
    except ValueError as error:  # of JSON, Unicode, CSV and Parquet alike
        raise OptionError(f"frequencies {str(path)!r} cannot be read: {error}") from error
    absent = [name for name in COLUMNS if name not in frame.columns]
    if absent:
        raise OptionError(
            f"frequencies {str(path)!r} has no column {absent[0]!r}; it needs the columns "
            f"{' and '.join(COLUMNS)}, and has {', '.join(map(str, frame.columns)) or 'none'}"
        )
    return list(zip(frame["token"].tolist(), frame["count"].tolist(), strict=True))


def _counted_in(source: TraceSource, traces: pd.DataFrame) -> np.ndarray:
    found = np.full(len(traces), np.nan)
    model = traces["model"].to_numpy()
    for name in dict.fromkeys(model.tolist()):
        at = np.flatnonzero(model == name)
        own = traces.iloc[at]
        texts: dict[str, np.ndarray] = {}
        predicted: list[int] = []
        for start in range(0, len(own), _AT_ONCE):  # bounds the lists of tokens held
            part = own.iloc[start : start + _AT_ONCE]
            rows = source.trace_tokens(part["id"].tolist())
            predicted += rows["predicted_id"].tolist()
            for input_, ids, special in zip(
                part["input"], rows["token_ids"], rows["special"], strict=True
            ):
                # Traces of an early position may hold no more of the text than up to there.
                if input_ not in texts or len(ids) > len(texts[input_]):
                    texts[input_] = np.where(np.asarray(special, bool), -1, ids)
        ids = np.concatenate(list(texts.values()))
        tokens, counts = np.unique(ids[ids >= 0], return_counts=True)
        held = dict(zip(tokens.tolist(), counts.astype(float).tolist(), strict=True))
        found[at] = _log_frequency(predicted, held)
    return found


def _log_frequency(tokens: list, counts: dict) -> np.ndarray:
    n_tokens = len({*tokens, *counts})
    total = sum(counts.values()) + n_tokens
    return np.log(np.array([counts.get(x, 0) + 1 for x in tokens], np.float64) / total)
