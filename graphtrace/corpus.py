"""Inputs from files: text, JSON lines, JSON, CSV, TSV and Parquet, each also as `.gz`.

`corpus_formats` reads records; one function here, `_input`, makes an Input of a record, so that
all formats obey the same rules.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from graphtrace.corpus_formats import Line, read_lines, shown, suffix_and_stem
from graphtrace.errors import CorpusError, EmptyTextError, OptionError
from graphtrace.traces import Input

TEXT_COLUMNS = ("text", "sentence", "prompt")
"""Columns that are taken for the text where none is named, in this order."""

LABELS = ("group", "pair", "label")
"""Columns that become labels where they are present, besides those that are named."""


def read_corpus(
    path: str | Path,
    limit: int | None = None,
    text_column: str | None = None,
    labels: Sequence[str] = (),
    id_column: str | None = None,
) -> list[Input]:
    """The inputs of a corpus file, in its order.

    path: `.txt` (a text per non-empty line), `.jsonl` or `.ndjson`, `.json` (a list), `.csv`,
    `.tsv`, `.parquet`; all but the last also with `.gz`. limit: the first so many. text_column:
    by default the first of `text`, `sentence`, `prompt` that is there. labels: columns to group
    by, besides `group`, `pair` and `label` where present. id_column: the column of names, by
    default `id`; a line without one is named `<stem>-<line number>`. `continuation` is the text
    that really follows; every other column goes into `meta`. The corpus's name is the file's
    stem.

    Raises CorpusError naming the file and the line.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit} is not at least 1")
    suffix, stem = suffix_and_stem(path)
    try:
        lines = list(islice(read_lines(path), limit))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error
    if not lines:
        raise CorpusError(f"{path} is empty: it holds no text")
    columns = _columns(path, suffix, lines, text_column, labels, id_column)
    inputs: list[Input] = []
    places: dict[str, str] = {}
    for line in lines:
        found = _input(path, stem, line, columns)
        if found.name in places:
            raise CorpusError(
                f"{path}: {line.place} has the id {found.name!r} of {places[found.name]}; ids must "
                "differ (name another column with --id-column, or repair the file)"
            )
        places[found.name] = line.place
        inputs.append(found)
    return inputs


def texts_as_inputs(texts: Iterable[str], corpus: str = "") -> list[Input]:
    """Inputs of plain texts, named by the text itself (`text-` + 6 hex), so that the same text
    keeps its name from run to run. Equal texts are one input. Raises EmptyTextError."""
    found: dict[str, Input] = {}
    for text in texts:
        if not text:
            raise EmptyTextError("a text is empty; give at least one character")
        try:
            digest = hashlib.sha256(text.encode()).hexdigest()
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"the text {text[:40]!r} is not valid Unicode at character {error.start}"
            ) from error
        found.setdefault(text, Input(name=f"text-{digest[:6]}", text=text, corpus=corpus))
    return list(found.values())


class Shard(NamedTuple):
    """Part `index` (from 1) of `count`."""

    index: int
    count: int


def parse_shard(shard: str) -> Shard:
    """Read `3/16`: the third of sixteen parts. Raises OptionError."""
    index, slash, count = str(shard).partition("/")
    if slash and index.isascii() and count.isascii() and index.isdigit() and count.isdigit():
        found = Shard(int(index), int(count))
        if 1 <= found.index <= found.count:
            return found
    raise OptionError(
        f"--shard {shard!r} is not of the form i/n with 1 <= i <= n, such as 3/16 for the third of "
        "sixteen parts"
    )


def take_shard(inputs: Sequence[Input], shard: Shard | tuple[int, int] | None) -> list[Input]:
    """The inputs of one shard, every n-th; together the shards are all inputs, each once."""
    if shard is None:
        return list(inputs)
    index, count = shard
    return list(inputs[index - 1 :: count])


# ------------------------------------------------------------------------ a record to an Input


class _Columns(NamedTuple):
    text: str
    name: str
    name_required: bool
    labels: tuple[str, ...]


def _columns(
    path: Path,
    suffix: str,
    lines: Sequence[Line],
    text_column: str | None,
    labels: Sequence[str],
    id_column: str | None,
) -> _Columns:
    """Which columns are meant. Raises CorpusError for a named one that no line has."""
    named = [("--text-column", text_column), ("--id-column", id_column)]
    named = [pair for pair in (*named, *(("--label", label) for label in labels)) if pair[1]]
    if suffix == ".txt" and named:
        raise CorpusError(f"{path}: {' '.join(map(str, named[0]))}: a .txt file has no columns")
    known = dict.fromkeys(key for line in lines for key in line.record)
    listed = ", ".join(known) or "none"
    for option, name in named:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CorpusError(
                f"{path} has no column {name!r} ({option}); its columns: {listed}{hint}"
            )
    text = text_column or next((name for name in TEXT_COLUMNS if name in known), None)
    if text is None:
        raise CorpusError(
            f"{path} has no column named {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}; its "
            f"columns: {listed}; name the one that holds the text with --text-column"
        )
    name = id_column or "id"
    return _Columns(text, name, id_column is not None, tuple(dict.fromkeys((*LABELS, *labels))))


def _input(path: Path, stem: str, line: Line, columns: _Columns) -> Input:
    record = dict(line.record)
    where = f"{path}, {line.place}"
    if columns.text not in record:
        raise CorpusError(f"{where}: there is no {columns.text!r}; every line needs a text")
    text = record.pop(columns.text)
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: {columns.text!r} is {shown(text)}, not a text; repair it or name another "
            "column with --text-column"
        )
    if not text.strip():
        raise CorpusError(f"{where}: {columns.text!r} is empty; remove the line or give it a text")
    value = record.pop(columns.name, None)
    name = f"{stem}-{line.number}" if _absent(value) or value == "" else _plain(value)
    if columns.name_required and (_absent(value) or value == ""):
        raise CorpusError(f"{where}: {columns.name!r} is empty; give every line an id")
    continuation = record.pop("continuation", None)
    if _absent(continuation) or continuation == "":
        continuation = None
    elif not isinstance(continuation, str):
        raise CorpusError(f"{where}: 'continuation' is {shown(continuation)}, not a text")
    found = {}
    for key in columns.labels:
        value = record.pop(key, None)
        if isinstance(value, (list, dict)):
            raise CorpusError(f"{where}: the label {key!r} is {shown(value)}, not one value")
        if not _absent(value) and value != "":
            found[key] = _plain(value)
    for value in (
        text,
        name,
        continuation or "",
        *found.values(),
        json.dumps(record, ensure_ascii=False),
    ):
        _check_unicode(where, value)
    meta = {key: None if _absent(value) else value for key, value in record.items()}
    return Input(
        name=name, text=text, corpus=stem, continuation=continuation, meta=meta, labels=found
    )


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> str:
    """A label's or id's text: `true`, `3`, `3.5`; a whole float as an integer."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _check_unicode(where: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: character {error.start} is half a surrogate pair ({value[error.start]!r}), "
            "which is no text; repair the line"
        ) from error
