"""The formats of corpus files: every reader yields lines, a place and its columns, in order."""

import csv
import difflib
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from graphtrace.errors import CorpusError
from graphtrace.json_value import json_value


class Line(NamedTuple):
    """One record. place: such as `line 3`, for messages; number: from 1, for default names."""

    place: str
    number: int
    record: dict[str, Any]


def read_lines(path: Path) -> Iterator[Line]:
    """The records of a corpus file. Raises CorpusError naming the file and the line."""
    return READERS[suffix_and_stem(path)[0]](path)


def suffix_and_stem(path: Path) -> tuple[str, str]:
    """The extension (lower case, without `.gz`) and the file's name without it.

    Raises CorpusError where there is no such file, or none of such a kind."""
    name = path.name
    bare = name[:-3] if name.lower().endswith(".gz") else name
    stem, dot, extension = bare.rpartition(".")
    suffix = f".{extension.lower()}" if dot and stem else ""
    if not path.exists():
        folder = path.parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise CorpusError(f"no corpus file {path}{hint}")
    if path.is_dir():
        raise CorpusError(f"{path} is a folder; name one file of it")
    if suffix not in READERS or (suffix == ".parquet" and bare != name):
        raise CorpusError(
            f"{path}: a corpus file ends in one of {', '.join(READERS)}, and this one in "
            f"{path.suffix or 'nothing'}; rename or convert it"
        )
    return suffix, stem


def _text(path: Path) -> str:
    """The file as text, decoded whole so that an error can name byte and line."""
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise CorpusError(f"{path} is not a whole gzip file: {error}") from error
    encoding = "utf-8-sig"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise CorpusError(
            f"{path} is UTF-16, not UTF-8; convert it: "
            f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        # utf-8-sig counts from after a byte order mark.
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, at) + 1
        raise CorpusError(
            f"{path} is not UTF-8 at byte {at} (0x{data[at]:02x}), line {line}; convert it, if it "
            f"is Latin-1: iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line with content; only line feeds end a line."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def _txt(path: Path) -> Iterator[Line]:
    for number, line in _lines(path):
        yield Line(f"line {number}", number, {"text": line})


def _jsonl(path: Path) -> Iterator[Line]:
    for number, line in _lines(path):
        place = f"line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorpusError(
                f"{path}, {place} is not JSON: {_json_problem(line, error)}"
            ) from error
        except RecursionError as error:
            raise CorpusError(f"{path}, {place} is nested too deeply") from error
        yield Line(place, number, _record(path, place, record))


def _json(path: Path) -> Iterator[Line]:
    text = _text(path)
    if not text.strip():
        return
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CorpusError(
            f"{path} is not JSON: {_json_problem(text, error)}; a file of one object per line is "
            "named .jsonl"
        ) from error
    if not isinstance(found, list):
        raise CorpusError(f"{path} holds {shown(found)}, not a list of objects")
    for number, record in enumerate(found, 1):
        place = f"entry {number}"
        if isinstance(record, str):
            record = {"text": record}
        yield Line(place, number, _record(path, place, record))


def _record(path: Path, place: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise CorpusError(f"{path}, {place} is {shown(record)}, not an object with a text")
    return record


def _json_problem(text: str, error: ValueError) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    place = (
        f"line {error.lineno}, column {error.colno}"
        if error.lineno > 1
        else f"column {error.colno}"
    )
    found = text[error.pos : error.pos + 20]
    return f"{error.msg} at {place}, where {found!r} stands" if found else f"{error.msg} at the end"


def _csv(path: Path, delimiter: str = ",") -> Iterator[Line]:
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                twice = {name for name in header if header.count(name) > 1}
                if twice:
                    raise CorpusError(f"{path}: two columns are named {min(twice)!r}")
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"{path}, line {number} has {len(cells)} cells and the header {len(header)}; "
                    "put cells that hold the delimiter in double quotes"
                )
            yield Line(f"line {number}", number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: {error}") from error


def _tsv(path: Path) -> Iterator[Line]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield Line(f"row {number}", number, {k: json_value(v) for k, v in record.items()})
    except pa.ArrowException as error:
        raise CorpusError(f"{path} is not a readable Parquet file: {error}") from error


def shown(value: Any) -> str:
    """A value as messages quote it: its type and the start of its JSON."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
