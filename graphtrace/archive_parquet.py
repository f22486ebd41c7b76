"""Traces as Parquet bytes: one row group per trace, sealed with the file's own checksum.

The seal is a footer entry of 64 hex digits: the SHA-256 of the file with those digits read as
zeros. One file therefore says by itself whether it is whole, footer included, which page
checksums alone cannot. docs/format.md is the specification.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graphtrace import schema
from graphtrace.curve import KIND_FIELDS, curve_kind
from graphtrace.errors import ArchiveDamagedError, ArchiveError
from graphtrace.layout import EdgeColumns
from graphtrace.traces import content_hash

SEAL = "graphtrace.seal"
"""Key of the footer entry that holds the file's own checksum, see `sealed_digest`."""

_BLANK = "0" * 64

_SPLIT = (
    *(f"{name}.list.element" for name in schema.EDGE_FIELDS if name != "edge_kind"),
    "component_counts.list.element",
    "experts.list.element",
)
# Byte streams of small integers and of float32 compress best when split: 7.6 bytes per edge, all
# included, against 10.8 with Parquet's defaults (13,000 edges of a 32-layer model). No statistics
# and no Arrow schema: nothing reads them, and they would be a tenth of a small file.
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": False,
    "column_encoding": dict.fromkeys(_SPLIT, "BYTE_STREAM_SPLIT"),
    "write_statistics": False,
    "store_schema": False,
    "write_page_checksum": True,
}


_LONG = (*schema.EDGE_FIELDS, "component_counts", "experts")


def table_of(row: dict[str, Any]) -> pa.Table:
    """The one-row `schema.TRACE` table of `Trace.to_row()`.

    Raises ArchiveError where a string is not valid Unicode (a lone surrogate).
    """
    columns = []
    for entry in schema.TRACE:
        value = row[entry.name]
        try:
            if isinstance(value, np.ndarray):
                # No copy and no Python objects for what is long.
                values = pa.array(np.ascontiguousarray(value), entry.type.value_type)
                offsets = pa.array([0, len(values)], pa.int32())
                columns.append(pa.ListArray.from_arrays(offsets, values).cast(entry.type))
            else:
                columns.append(pa.array([value], entry.type))
        except UnicodeEncodeError as error:
            raise ArchiveError(
                f"trace {row['id']}: {entry.name} holds {error.object[error.start]!r} at character "
                f"{error.start}, half a surrogate pair, which no UTF-8 file can hold; repair the "
                "text and trace it again"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema.TRACE)


def row_of(table: pa.Table, index: int = 0) -> dict[str, Any]:
    """Row `index` of a `schema.TRACE` table as `Trace.from_row` takes it: long lists as arrays."""
    row = {}
    for entry, column in zip(table.schema, table.columns, strict=True):
        value = column[index]
        long = entry.name in _LONG and value.is_valid
        row[entry.name] = value.values.to_numpy(zero_copy_only=False) if long else value.as_py()
    return row


def write_parquet(sink: Any, tables: Iterable[pa.Table]) -> int:
    """Write one row group per one-row table and a blank seal; returns the number of tables."""
    n = 0
    with pq.ParquetWriter(sink, schema.TRACE, **_PARQUET) as writer:
        for table in tables:
            writer.write_table(table)
            n += 1
        writer.add_key_value_metadata({SEAL: _BLANK})
    return n


def seal(file: BinaryIO) -> str:
    """Fill the blank seal of a Parquet file open for reading and writing; returns its digest."""
    digest, at, _ = sealed_digest(file)
    file.seek(at)
    file.write(digest.encode())
    return digest


def sealed_digest(file: BinaryIO) -> tuple[str, int, str]:
    """(digest, offset, stored): the SHA-256 of the file with its 64-digit seal read as zeros,
    where the seal stands, and what stands there. Raises ValueError where there is no seal."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    if size < 12 or tail[4:] != b"PAR1":
        raise ValueError("it does not end as a Parquet file does")
    start = size - 8 - int.from_bytes(tail[:4], "little")
    if start < 4:
        raise ValueError("its footer is longer than the file")
    file.seek(start)
    footer = file.read()
    at = footer.find(SEAL.encode())
    # Key, then the value's type and length (two bytes), then its 64 digits.
    at = at + len(SEAL) + 2 if at >= 0 else len(footer)
    stored = footer[at : at + 64]
    if len(stored) < 64:
        raise ValueError("it has no seal")
    digest = hashlib.sha256()
    file.seek(0)
    left = start
    while left:
        block = file.read(min(left, 1 << 20))
        if not block:
            raise ValueError("it ends early")
        digest.update(block)
        left -= len(block)
    digest.update(footer[:at] + _BLANK.encode() + footer[at + 64 :])
    return digest.hexdigest(), start + at, stored.decode("ascii", "replace")


def check_seal(file: BinaryIO, shown: str) -> None:
    """Raise ArchiveDamagedError where the file is not what was sealed; `shown` names it."""
    try:
        digest, _, stored = sealed_digest(file)
    except ValueError as error:
        raise damaged(shown, str(error)) from error
    if digest != stored:
        raise damaged(shown, "its checksum is not the one it was sealed with")


@contextlib.contextmanager
def parquet_errors(shown: str) -> Iterator[None]:
    """Turn what pyarrow raises on damaged bytes into ArchiveDamagedError naming the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise ArchiveError(f"{shown} cannot be read: {error.strerror}") from error
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise damaged(shown, str(error).splitlines()[0] if str(error) else repr(error)) from error


RESTORE = (
    "restore the file from a copy, or run `graphtrace archive verify --set-aside` to take every "
    "damaged file out and then `graphtrace extract` again, which traces only what is missing"
)


def damaged(shown: str, what: str, advice: str = RESTORE) -> ArchiveDamagedError:
    """The error for a damaged file; `advice` says how to go on."""
    return ArchiveDamagedError(f"{shown} is damaged: {what}; {advice}")


def open_parquet(source: Any, shown: str, columns: bool = True) -> pq.ParquetFile:
    """A ParquetFile with page checksums verified. Raises ArchiveDamagedError where its footer
    cannot be read or, with `columns`, its columns are those of no format."""
    with parquet_errors(shown):
        file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
        if columns and format_of(file.schema_arrow) is None:
            here, there = ({x.name: x for x in s} for s in (file.schema_arrow, schema.TRACE))
            unlike = {
                name
                for name in here | there
                if name not in here or name not in there or not here[name].equals(there[name])
            }
            names = ", ".join(sorted(unlike)) or "their order"
            raise ValueError(f"its columns are not those of format {schema.FORMAT} ({names})")
        return file


def format_of(columns: pa.Schema) -> int | None:
    """The format that has exactly these columns, None where none has."""
    formats = {1: schema.TRACE_1, schema.FORMAT: schema.TRACE}
    return next((number for number, known in formats.items() if columns.equals(known)), None)


def current(table: pa.Table) -> pa.Table:
    """Rows of any format as rows of `schema.TRACE`: null for what an earlier format lacks."""
    if not table.schema.equals(schema.TRACE_1):
        return table
    n, fields = len(table), list(schema.TRACE.field("curves").type.value_type)
    found: dict[str, Any] = {name: table[name] for name in table.column_names}
    found["format"] = pa.array([schema.FORMAT] * n, pa.int32())
    lists = table["curves"].combine_chunks()
    starts = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())])
    curves = lists.flatten()
    parts = dict(zip([field.name for field in curves.type], curves.flatten(), strict=True))
    parts["reference"] = pa.nulls(len(curves), pa.string())
    structs = pa.StructArray.from_arrays([parts[field.name] for field in fields], fields=fields)
    found["curves"] = pa.ListArray.from_arrays(starts.astype(np.int32), structs)
    for field in schema.TRACE:
        found.setdefault(field.name, pa.nulls(n, field.type))
    return pa.Table.from_arrays([found[name] for name in schema.TRACE.names], schema=schema.TRACE)


def read_metadata(file: pq.ParquetFile, names: Collection[str]) -> pa.Table:
    """Some columns of all rows, without reading more; null for what an earlier format lacks.

    names: columns of `schema.TRACE`; in place of `curves` comes the list of their kinds
    (`Curve.kind`), first curve first.
    """
    leaves = [f"curves.list.element.{part}" for part in KIND_FIELDS] if "curves" in names else []
    wanted = [*(name for name in names if name != "curves"), *leaves]
    table = file.read(columns=wanted, use_threads=False).combine_chunks()
    columns = {}
    for name in names:
        if name == "curves":
            kinds = [
                [curve_kind(**curve) for curve in curves or ()]
                for curves in table[name].to_pylist()
            ]
            columns[name] = pa.array(kinds, pa.list_(pa.string()))
        elif name in table.column_names:
            columns[name] = table[name]
        else:
            columns[name] = pa.nulls(len(table), schema.TRACE.field(name).type)
    return pa.table(columns)


def edges_of(table: pa.Table) -> EdgeColumns:
    """The edge columns of a one-row `schema.TRACE` table, without copies."""
    return EdgeColumns(
        *(table[name].combine_chunks()[0].values.to_numpy() for name in schema.EDGE_FIELDS)
    )


def check_row(table: pa.Table, trace: str, shown: str) -> None:
    """Raise ArchiveDamagedError where a one-row table is not that trace, or its edges are not
    those that its content hash was made of; `shown` names the file."""
    found = table["id"][0].as_py()
    if found != trace:
        raise damaged(shown, f"it holds {found} in the place of {trace}")
    edges, n_kept = edges_of(table), table["n_kept"][0].as_py()
    lengths = {0 if column is None else len(column) for column in edges}
    if lengths != {n_kept}:
        raise damaged(shown, f"the edge columns of {trace} have lengths {sorted(lengths)}")
    if content_hash(edges) != table["content"][0].as_py():
        raise damaged(shown, f"the edges of {trace} are not those that were written")


def encode(table: pa.Table) -> bytes:
    """The sealed bytes of one trace's loose file."""
    buffer = io.BytesIO()
    write_parquet(_Unclosed(buffer), [table])
    seal(buffer)
    return buffer.getvalue()


class _Unclosed:
    """A file that its Parquet writer may write to and not close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.closed = False
        self.write, self.flush, self.tell = file.write, file.flush, file.tell

    def close(self) -> None:
        """Leave the file open; it belongs to somebody else."""
