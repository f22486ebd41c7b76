"""Check every file of an archive, and take damaged files out of it.

`verify_archive` reads everything and trusts nothing; what each check holds a file to is said in
docs/format.md.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from graphtrace import schema
from graphtrace.archive import FAILURE_COLUMNS
from graphtrace.archive_files import (
    ASIDE,
    FAILED,
    LOOSE,
    PACKS,
    Manifest,
    archive_lock,
    file_digest,
    is_temporary,
    loose_path,
    pack_files,
    read_manifest,
    storage_errors,
    sync_folder,
    write_manifest,
)
from graphtrace.archive_parquet import (
    check_row,
    check_seal,
    current,
    edges_of,
    format_of,
    open_parquet,
    parquet_errors,
    row_of,
)
from graphtrace.errors import ArchiveDamagedError, ArchiveError
from graphtrace.layout import EdgeColumns, GraphLayout
from graphtrace.traces import Trace, content_hash

_OPTIONAL = ("target_id", "target", "foil_id", "foil", "loss", "experts", "mlp_active_share")
NULLABLE = frozenset(("model_windows", "input_continuation", "seed", *_OPTIONAL))
"""Fields of `schema.TRACE` that may be null."""


class Problem(NamedTuple):
    """file: path inside the archive; trace: its id, None where the whole file is meant."""

    file: str
    trace: str | None
    problem: str


class _Copy(NamedTuple):
    file: str
    n_kept: int
    content: str


def verify_archive(folder: str | Path) -> pd.DataFrame:
    """Every problem of every file: columns file, trace (None for a whole file), problem.

    Reads and decodes all of the archive: checksums, columns, each trace's id and content hash,
    and whether copies of one trace agree. Raises ArchiveError where there is no archive and
    ArchiveDamagedError where the manifest itself cannot be read.
    """
    return pd.DataFrame(list(_problems(Path(folder))), columns=list(Problem._fields))


def set_aside_damaged(folder: str | Path) -> pd.DataFrame:
    """Move every damaged file into `damaged/` and drop it from the manifest; nothing is deleted.

    The traces of a damaged pack that are whole stay readable: they are committed anew. Returns the
    problems found, as `verify_archive`. Run `extract` afterwards to trace again what is missing.
    Raises ArchiveError where another process is writing.
    """
    from graphtrace.archive_write import ArchiveWriter

    folder = Path(folder)
    with archive_lock(folder, wait=False) as held:
        if not held:
            raise ArchiveError(f"{folder} is being packed by another process; try again later")
        problems = verify_archive(folder)
        bad = sorted(set(problems["file"]))
        saved = [table for file in bad for table in _whole_rows(folder, file, problems)]
        manifest = read_manifest(folder)
        kept = tuple(pack for pack in manifest.packs if f"{PACKS}/{pack.file}" not in bad)
        with storage_errors(str(folder)):
            (folder / ASIDE).mkdir(exist_ok=True)
            write_manifest(folder, replace(manifest, packs=kept))
            for file in bad:
                if (folder / file).exists():
                    (folder / file).replace(folder / ASIDE / Path(file).name)
                    sync_folder((folder / file).parent)
    with ArchiveWriter(folder) as writer:
        for table in saved:
            row = row_of(table)
            kinds = [curve.kind for curve in Trace.from_row(row).curves]
            if not writer.has(row["id"], row["n_kept"], kinds):
                writer.write_table(table)
    return problems


def _problems(folder: Path) -> Iterator[Problem]:
    manifest = read_manifest(folder)
    copies: dict[str, _Copy] = {}
    yield from _pack_problems(folder, manifest, copies)
    for path in sorted((folder / LOOSE).iterdir()) if (folder / LOOSE).is_dir() else []:
        if is_temporary(path.name):
            continue
        file = f"{LOOSE}/{path.name}"
        if path != loose_path(folder, path.stem) or not path.stem.startswith("t"):
            yield Problem(file, None, "is not a file of an archive")
            continue
        try:
            yield from _file_problems(folder, file, path.stem, copies)
        except FileNotFoundError:
            continue  # packed meanwhile; the pack was whole or is the next run's business
    for path in sorted((folder / FAILED).glob("*.json")):
        try:
            found = json.loads(path.read_bytes())
            if set(FAILURE_COLUMNS) - set(found):
                raise ValueError("a field is missing")
        except FileNotFoundError:
            continue
        except (ValueError, TypeError) as error:
            yield Problem(f"{FAILED}/{path.name}", None, f"cannot be read: {error}")


def _pack_problems(folder: Path, manifest: Manifest, copies: dict[str, _Copy]) -> Iterator[Problem]:
    listed = {pack.file: pack for pack in manifest.packs}
    for name in sorted({*listed, *pack_files(folder)}):
        file, path = f"{PACKS}/{name}", folder / PACKS / name
        if not path.exists():
            yield Problem(file, None, "is listed in manifest.json and missing")
            continue
        if name in listed:
            size = path.stat().st_size
            if size != listed[name].bytes:
                yield Problem(file, None, f"has {size} bytes instead of {listed[name].bytes}")
            elif file_digest(path) != listed[name].sha256:
                yield Problem(file, None, "its SHA-256 is not the one in manifest.json")
        yield from _file_problems(folder, file, None, copies)


def _file_problems(
    folder: Path, file: str, expected: str | None, copies: dict[str, _Copy]
) -> Iterator[Problem]:
    """Problems of one Parquet file. expected: the id that its name promises."""
    path = folder / file
    try:
        with path.open("rb") as source:
            check_seal(source, file)
    except ArchiveDamagedError as error:
        yield Problem(file, None, _short(error))
    try:
        with path.open("rb") as source:
            parquet = open_parquet(source, file)
            for group in range(parquet.metadata.num_row_groups):
                try:
                    table = _one_row(parquet, group, file)
                except ArchiveDamagedError as error:
                    yield Problem(file, expected, f"row group {group}: {_short(error)}")
                    continue
                trace = str(table["id"][0].as_py())
                for problem in _row_problems(folder, table, file, expected or trace, copies):
                    yield Problem(file, trace, problem)
    except ArchiveDamagedError as error:
        yield Problem(file, expected, _short(error))


def _one_row(parquet: pq.ParquetFile, group: int, file: str) -> pa.Table:
    with parquet_errors(file):
        table = parquet.read_row_group(group, use_threads=False)
        if len(table) != 1:
            raise ValueError(f"it holds {len(table)} rows, not one")
        return table


def _row_problems(
    folder: Path, table: pa.Table, file: str, trace: str, copies: dict[str, _Copy]
) -> Iterator[str]:
    try:
        check_row(table, trace, file)
    except ArchiveDamagedError as error:
        yield _short(error)
        return
    if table["format"][0].as_py() != format_of(table.schema):
        yield f"has format {table['format'][0].as_py()}, not {format_of(table.schema)}"
        return
    table = current(table)
    nulls = [name for name in table.column_names if table[name].null_count]
    for name in nulls:
        if name not in NULLABLE:
            yield f"{name} is null"
            return
    try:
        found = Trace.from_row(row_of(table))
        made = {"n_edges": found.n_edges, "n_nodes": found.n_nodes, "input_id": found.input.id}
        # The ids of another method's traces are made with that method's number.
        if table["method"][0].as_py() == schema.METHOD:
            made |= {"id": found.id, "settings": found.settings.id}
        for name, value in made.items():
            if table[name][0].as_py() != value:
                yield f"{name} is not the {value} that its other fields make"
        if not len(found.token_ids) == len(found.tokens) == len(found.special):
            yield "token_ids, tokens and special differ in length"
        for name in ("density", "density_normalised"):
            if not np.isclose(table[name][0].as_py(), getattr(found, name), equal_nan=True):
                yield f"{name} is not that of the first curve"
        kinds = [curve.kind for curve in found.curves]
        for kind in sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            yield f"has {kinds.count(kind)} curves of the kind {kind}"
        shape = found.layout.n_layers, found.layout.n_heads, found.layout.parallel
        if found.component_counts.shape[1] != len(schema.components(*shape)):
            yield f"component_counts is not of {len(schema.components(*shape))} components"
        yield from _edge_problems(found.layout, found.ranked)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        yield f"cannot be a trace: {type(error).__name__}: {error}"
        return
    copy = _Copy(file, found.n_kept, content_hash(found.ranked))
    other = copies.setdefault(trace, copy)
    if other is not copy and not _agree(folder, trace, found.ranked, copy, other):
        yield f"is another ranking than the copy in {other.file}"


def _edge_problems(layout: GraphLayout, edges: EdgeColumns) -> Iterator[str]:
    if len(edges.kind) > layout.n_edges:
        yield f"keeps {len(edges.kind)} of {layout.n_edges} edges"
    if len(edges.kind) == 0:
        return
    ranges = {
        "kind": (0, len(schema.KINDS) - 1),
        "level": (1, layout.n_levels - 1),
        "head": (-1, layout.n_heads - 1),
        "source": (0, layout.n_tokens - 1),
        "target": (0, layout.n_tokens - 1),
    }
    for name, (low, high) in ranges.items():
        column = getattr(edges, name)
        if column.min() < low or column.max() > high:
            yield f"edge_{name} is not within {low} ... {high}"


def _agree(folder: Path, trace: str, edges: EdgeColumns, copy: _Copy, other: _Copy) -> bool:
    """Whether two copies hold the same edges, as far as both go."""
    if copy.n_kept == other.n_kept:
        return copy.content == other.content
    shared = slice(0, min(copy.n_kept, other.n_kept))
    with (folder / other.file).open("rb") as source:
        parquet = open_parquet(source, other.file)
        ids = parquet.read(columns=["id"])["id"].to_pylist()
        others = edges_of(parquet.read_row_group(ids.index(trace)))
    return content_hash(edges.take(shared)) == content_hash(others.take(shared))


def _whole_rows(folder: Path, file: str, problems: pd.DataFrame) -> list[pa.Table]:
    """The traces of a damaged pack that are whole themselves."""
    bad = set(problems.loc[problems["file"] == file, "trace"]) - {None}
    found = []
    try:
        with (folder / file).open("rb") as source:
            parquet = open_parquet(source, file)
            for group in range(parquet.metadata.num_row_groups):
                try:
                    table = _one_row(parquet, group, file)
                    trace = str(table["id"][0].as_py())
                    if trace not in bad and not list(_row_problems(folder, table, file, trace, {})):
                        found.append(current(table))
                except ArchiveDamagedError:
                    continue
    except (ArchiveDamagedError, FileNotFoundError):
        pass
    return found


def _short(error: ArchiveDamagedError) -> str:
    """What is wrong, without the file's name and the advice."""
    return str(error).partition(" is damaged: ")[2].partition("; restore")[0] or str(error)
