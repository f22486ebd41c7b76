"""A whole archive as files for `neo4j-admin database import full`: `export_neo4j_import`.

The fastest way to a large study on a server: the importer writes the database's files directly,
with no server running. The folder holds one Parquet file per label and per relationship type, a
finish.cypher for the started server, and a README.txt with the commands. What comes out is what
an ingest over Bolt makes: both are `graph_tables`.

What the importer's Parquet reader cannot take (seen with 5.26.30 and 2025.12.1):

- Lists: 2025.12.1 runs the rows of a list column together. Lists of numbers are written as text
  that the importer splits itself, which the header says; of other lists it would make lists of
  strings without a way to escape its delimiter, so finish.cypher splits those.
- Empty strings: a cell that holds one is left out. EMPTY stands for it, and finish.cypher puts the
  empty string back, where there was one.

Until finish.cypher has run, the traces have the status `importing` and no query sees them.

Header: a column's name is the property's; `:ID`, `:START_ID` and `:END_ID` are the importer's own
node numbers (neo4j.com, operations manual, 'Import', 'Header format'). A state's is its id. The
rest, whose ids are strings, are numbered from FIRST_NUMBER on.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graphtrace.archive import Archive, open_archive
from graphtrace.cypher_files import cypher_folder
from graphtrace.errors import OptionError, StorageFullError
from graphtrace.files import DISK_FULL, is_alive
from graphtrace.ingestion import batches
from graphtrace.progress import Advance, progress
from graphtrace.stores.graph_tables import GraphTables, graph_tables
from graphtrace.stores.neo4j_columns import NO_WINDOW
from graphtrace.stores.neo4j_statements import MARKER
from graphtrace.stores.shared_tables import SharedFacts
from graphtrace.stores.store_file import STORE_FORMAT

BATCH_TRACES = 500
BATCH_EDGES = 500_000
"""At most so many traces, and about so many edges, in memory at a time; two batches are."""

FIRST_NUMBER = 1 << 55
"""Number of the first node that is no state. The importer takes numbers below 2 ** 56."""

IMPORTING = "importing"
"""Status of a trace until finish.cypher has run."""

SEPARATOR, ESCAPE = "\x1f", "\x1e"
EMPTY = f"{ESCAPE}{ESCAPE}empty"
"""Stands for an empty string. SEPARATOR comes before every element of a list; an element that
holds one itself, or an ESCAPE, is escaped."""

DELIMITER = ";"
"""Between the numbers of a list: the importer's own, which `--array-delimiter` would change."""

FINISH, README = "finish.cypher", "README.txt"

_ENDS = {
    "OF_MODEL": ("Trace", "Model"),
    "OF_INPUT": ("Trace", "Input"),
    "LABELLED": ("Input", "Label"),
    "OUTPUT": ("Trace", "State"),
    "IN_TRACE": ("State", "Trace"),
    "AT": ("Trace", "Checkpoint"),
    "USES": ("Trace", "Component"),
}
_SHARED = ("Model", "Input", "Label", "Component")


@dataclass(frozen=True)
class ImportFiles:
    """What was written. nodes, relationships: counts by label and type, without those of which
    there are none; properties: how many the importer must report; command: its command line, to
    be run in the folder."""

    folder: Path
    n_traces: int
    nodes: dict[str, int]
    relationships: dict[str, int]
    properties: int
    command: str
    seconds: float


def export_neo4j_import(
    archive: str | Path | Archive,
    out: str | Path,
    database: str = "neo4j",
    show_progress: bool = False,
) -> ImportFiles:
    """Write a whole archive for Neo4j's importer (5.26 or later).

    archive: a folder, or an open archive. out: the folder to make; it appears whole or not at all,
    and must not be there yet, or be empty. database: the name in the command that is returned.

    Raises ArchiveError, OptionError, StorageFullError, and StoreError for a trace too large for
    the state ids.
    """
    if not isinstance(archive, Archive):
        with open_archive(archive) as opened:
            return export_neo4j_import(opened, out, database, show_progress)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]{2,62}", database) is None:
        raise OptionError(
            f"database {database!r} is no name of a Neo4j database: 3 to 63 letters, digits, dots "
            "and dashes"
        )
    started = time.perf_counter()
    frame = archive.traces()
    if len(frame) == 0:
        raise OptionError(
            f"the archive {archive.folder} holds no traces; there is nothing to export"
        )
    pairs = list(zip(frame["id"].tolist(), frame["n_kept"].tolist(), strict=True))
    with _folder(Path(out)) as folder, _Files(folder, SharedFacts(frame)) as files:
        with progress("export", len(pairs), "traces", show_progress) as advance:
            _write(archive, pairs, files, advance)
        command = _command(files, database)
        (folder / FINISH).write_text(_finish(files), encoding="utf-8")
        (folder / README).write_text(_readme(files, command), encoding="utf-8")
    return ImportFiles(
        folder=Path(out),
        n_traces=len(pairs),
        nodes=files.nodes,
        relationships=files.relationships,
        properties=files.properties,
        command=command,
        seconds=time.perf_counter() - started,
    )


def _write(
    archive: Archive, traces: list[tuple[str, int]], files: "_Files", advance: Advance
) -> None:
    """Write all traces; the files are written beside the computing of the next batch."""
    source, number = str(Path(archive.folder).resolve()), 0
    with ThreadPoolExecutor(1) as thread:
        writing: Future | None = None
        for ids in batches(traces, BATCH_TRACES, BATCH_EDGES):
            (table,) = archive.tables(ids, batch=len(ids))
            batch = graph_tables(table, number, source)
            number += table.num_rows
            if writing is not None:
                writing.result()
            writing = thread.submit(files.write, batch)
            advance(table.num_rows)
        if writing is not None:
            writing.result()
    files.close()


class _Files:
    """The Parquet files of one export, each opened with its first rows; a context manager."""

    def __init__(self, folder: Path, facts: SharedFacts) -> None:
        self.folder, self.facts = folder, facts
        self.nodes: dict[str, int] = {}
        self.relationships: dict[str, int] = {}
        self.properties = 0
        self.lists: dict[str, dict[str, pa.DataType]] = {}
        self.empty: set[tuple[str, str]] = set()
        self._number = FIRST_NUMBER
        self._numbers: dict[str, dict[str, int]] = {label: {} for label in _SHARED}
        self._linked: set[tuple[str, str]] = set()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._open = ExitStack()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the files' ends; a second call does nothing."""
        self._open.close()

    def write(self, batch: GraphTables) -> None:
        """Add a batch; a shared node is written with the first batch that has it."""
        self._numbers |= {"Trace": {}, "Checkpoint": {}}
        edges = dict(batch.edges)
        edges["LABELLED"], labels = self._new_labels(edges["LABELLED"])
        for label, rows in batch.nodes.items():
            if label == "Label":
                rows = rows.filter(
                    pa.array([x in labels for x in rows["id"].to_pylist()], pa.bool_())
                )
            self._nodes(label, rows)
        for kind, rows in edges.items():
            self._relationships(kind, rows)

    def _nodes(self, label: str, rows: pa.Table) -> None:
        if label == "State":
            columns = {":ID": rows["id"]}
        else:
            self.facts.check(label, rows)
            known = self._numbers[label]
            ids = rows["id"].to_pylist()
            new = [key not in known for key in ids]
            rows = self.facts.settled(label, rows.filter(pa.array(new, pa.bool_())))
            last = self._number + rows.num_rows
            numbers = np.arange(self._number, last)
            known |= zip(rows["id"].to_pylist(), numbers.tolist(), strict=True)
            self._number = last
            columns = {":ID": pa.array(numbers)}
        for name in rows.column_names:
            numbers = _is_numbers(rows[name].type)
            header = f"{name}:long[]" if numbers else name
            columns[header] = self._column(label, name, rows[name])
        if label == "Trace":
            columns["status"] = pa.array([IMPORTING] * rows.num_rows, pa.string())
        self._add(label, columns, self.nodes, rows.num_rows, 1)

    def _relationships(self, kind: str, rows: pa.Table) -> None:
        labels = _ENDS.get(kind, ("State", "State"))
        columns = {
            ":START_ID": self._ends(labels[0], rows["from"]),
            ":END_ID": self._ends(labels[1], rows["to"]),
        }
        columns |= {name: rows[name] for name in rows.column_names[2:]}
        self._add(kind, columns, self.relationships, rows.num_rows, 2)

    def _ends(self, label: str, ids: pa.ChunkedArray):
        if label == "State":
            return ids
        found = ids.combine_chunks().dictionary_encode()
        numbers = [self._numbers[label][key] for key in found.dictionary.to_pylist()]
        return pa.array(np.array(numbers, np.int64)[found.indices.to_numpy()])

    def _column(self, label: str, name: str, column: pa.ChunkedArray):
        if _is_numbers(column.type):
            return _numbers_as_text(column)
        if pa.types.is_list(column.type):
            self.lists.setdefault(label, {})[name] = column.type.value_type  # pyright: ignore
            return _as_text(column)
        if pa.types.is_string(column.type):
            empty = _call("equal", column, "")
            if _call("any", empty).as_py():
                self.empty.add((label, name))
                return _call("if_else", empty, EMPTY, column)
        return column

    def _new_labels(self, rows: pa.Table) -> tuple[pa.Table, set[str]]:
        """The links that count and are new, and their labels."""
        kept = []
        for row in rows.to_pylist():
            pair = (row["from"], row["to"])
            if self.facts.counts(*pair) and pair not in self._linked:
                self._linked.add(pair)
                kept.append(row | {"created": self.facts.labelled(*pair)})
        return pa.Table.from_pylist(kept, schema=rows.schema), {row["to"] for row in kept}

    def _add(self, name: str, columns: dict, counts: dict[str, int], n: int, n_ends: int) -> None:
        """columns: the first n_ends are the importer's numbers and no properties."""
        if n == 0:
            return
        counts[name] = counts.get(name, 0) + n
        table = pa.table(columns)
        self.properties += sum(n - column.null_count for column in table.columns[n_ends:])
        if name not in self._writers:
            strings = [f.name for f in table.schema if pa.types.is_string(f.type)]
            self._writers[name] = self._open.enter_context(
                pq.ParquetWriter(
                    self.folder / f"{name}.parquet",
                    table.schema,
                    compression="snappy",
                    use_dictionary=strings,  # pyright: ignore
                    write_statistics=False,
                )
            )
        self._writers[name].write_table(table, row_group_size=n)


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    """Every list as one text: SEPARATOR and the element, element by element."""
    lists = column.combine_chunks()
    parts = lists.flatten()
    if pa.types.is_string(parts.type):
        for old, new in ((ESCAPE, f"{ESCAPE}0"), (SEPARATOR, f"{ESCAPE}1")):
            options = pc.ReplaceSubstringOptions(old, new)
            parts = pc.call_function("replace_substring", [parts], options)
    parts = _call("binary_join_element_wise", "", parts.cast(pa.string()), SEPARATOR)
    return _joined(lists, parts, "")


def _is_numbers(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) and pa.types.is_integer(type_.value_type)  # pyright: ignore


def _numbers_as_text(column: pa.ChunkedArray) -> pa.Array:
    """Every list as one text, as the importer takes a list of numbers."""
    lists = column.combine_chunks()
    parts = lists.flatten().fill_null(NO_WINDOW)  # as over Bolt: only Model.windows has gaps
    return _joined(lists, parts.cast(pa.string()), DELIMITER)


def _joined(lists: pa.ListArray, parts: pa.Array, between: str) -> pa.Array:
    """The parts of every list in one text; null where there is no list."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    text = _call("binary_join", pa.ListArray.from_arrays(pa.array(offsets), parts), between)
    return _call("if_else", lists.is_valid(), text, pa.scalar(None, pa.string()))


def _call(function: str, *arguments):
    return pc.call_function(function, list(arguments))


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well, and vanishes otherwise."""
    if out.is_dir() and any(out.iterdir()):
        raise OptionError(f"{out} is there and not empty; give another folder, or delete it first")
    scratch = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        _sweep(out)
        scratch.mkdir(parents=True)
        yield scratch
        scratch.replace(out)
    except OSError as error:
        # Arrow says the number in its message only.
        number = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)
        if {error.errno, int(number[1]) if number else 0} & DISK_FULL:
            raise StorageFullError(f"no room left on the disk for {out}") from error
        raise OptionError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if scratch.exists():
            shutil.rmtree(scratch)


def _sweep(out: Path) -> None:
    """Remove what killed exports to the same folder have left."""
    for path in out.parent.glob(f".{out.name}.tmp-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(path)


def _command(files: _Files, database: str) -> str:
    nodes = [f"--nodes={label}:{MARKER}={label}.parquet" for label in files.nodes]
    edges = [f"--relationships={kind}={kind}.parquet" for kind in files.relationships]
    options = ["--input-type=parquet", "--id-type=integer", *nodes, *edges]
    return " ".join(["neo4j-admin database import full", database, *options])


def _finish(files: _Files) -> str:
    """The Cypher that the started server runs."""
    schema = (cypher_folder("ingest") / "neo4j" / "schema.cypher").read_text(encoding="utf-8")
    parts = [
        "// What is left to do on the started server after the import. Run it with\n"
        f"// cypher-shell -f {FINISH}; run twice, it does nothing more.",
        schema.strip(),
    ]
    if files.empty:
        parts.append("// The importer leaves empty strings out.")
    parts += [
        f"MATCH (n:{label}) WHERE n.{name} = '{_quoted(EMPTY)}'\n"
        f"CALL (n) {{ SET n.{name} = '' }} IN TRANSACTIONS OF 10000 ROWS;"
        for label, name in sorted(files.empty)
    ]
    parts.append("// The importer's Parquet reader cannot take lists.")
    # Traces last: with its lists a trace gets its status, and is there for queries.
    for label, columns in sorted(files.lists.items()):
        sets = [f"n.{name} = {_split(name, x)}" for name, x in columns.items()]
        where = " AND ".join(f"n.{name} STARTS WITH '{_quoted(SEPARATOR)}'" for name in columns)
        if label == "Trace":
            where, sets = f"n.status = '{IMPORTING}'", [*sets, "n.status = 'complete'"]
        parts.append(
            f"MATCH (n:{label}) WHERE {where}\n"
            "CALL (n) {\n  SET " + ",\n      ".join(sets) + "\n} IN TRANSACTIONS OF 1000 ROWS;"
        )
    store = (cypher_folder("ingest") / "neo4j" / "store.cypher").read_text(encoding="utf-8")
    parts.append(store.strip().replace("$format", str(STORE_FORMAT)))
    return "\n\n".join(parts) + "\n"


def _split(name: str, type_: pa.DataType) -> str:
    """Cypher that makes a list of a text of `_as_text`."""
    if pa.types.is_boolean(type_):
        element = "x = 'true'"
    else:
        # Undone in the other order than it was done.
        inner = f"replace(x, '{_quoted(ESCAPE + '1')}', '{_quoted(SEPARATOR)}')"
        element = f"replace({inner}, '{_quoted(ESCAPE + '0')}', '{_quoted(ESCAPE)}')"
    return f"[x IN split(n.{name}, '{_quoted(SEPARATOR)}')[1..] | {element}]"


def _quoted(text: str) -> str:
    return text.replace(ESCAPE, "\\u001e").replace(SEPARATOR, "\\u001f")


def _readme(files: _Files, command: str) -> str:
    def listed(counts: dict[str, int]) -> str:
        return "\n".join(f"  {name:12}{n:>15,}" for name, n in counts.items())

    return (
        "Files for Neo4j's importer, written by graphtrace.\n\n"
        "1. With the server stopped (Neo4j 5.26 or later), in this folder:\n\n"
        f"{command}\n\n"
        "   The database must be empty or not exist yet; --overwrite-destination replaces\n"
        "   one that does. The importer must report:\n\n"
        f"  {sum(files.nodes.values())} nodes\n"
        f"  {sum(files.relationships.values())} relationships\n"
        f"  {files.properties} properties\n\n"
        "2. Start the server, then:\n\n"
        f"cypher-shell -f {FINISH}\n\n"
        f"Nodes by label:\n\n{listed(files.nodes)}\n\n"
        f"Relationships by type:\n\n{listed(files.relationships)}\n"
    )
