"""Loose traces into packs, and which copy of a trace counts.

Nothing here takes a lock; who calls says under which one.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from graphtrace import schema
from graphtrace.archive_files import (
    ASIDE,
    LOOSE,
    PACKS,
    Manifest,
    Pack,
    commit,
    file_digest,
    loose_ids,
    loose_path,
    pack_files,
    read_manifest,
    sync_folder,
    write_manifest,
)
from graphtrace.archive_parquet import (
    check_row,
    check_seal,
    current,
    encode,
    open_parquet,
    parquet_errors,
    read_metadata,
    seal,
    write_parquet,
)


class Held(NamedTuple):
    """One copy of a trace. path: its file; group: its row group there; n_kept: edges it keeps;
    kinds: of its curves, first curve first."""

    path: Path
    group: int
    n_kept: int
    kinds: tuple[str, ...]


def held_traces(path: Path) -> dict[str, Held]:
    """The traces of a file by id, in the order of its row groups. Raises ArchiveDamagedError,
    FileNotFoundError."""
    with parquet_errors(str(path)), path.open("rb") as source:
        table = read_metadata(open_parquet(source, str(path)), ("id", "n_kept", "curves"))
    columns = (table[name].to_pylist() for name in ("id", "n_kept", "curves"))
    return {
        trace: Held(path, group, n_kept, tuple(kinds))
        for group, (trace, n_kept, kinds) in enumerate(zip(*columns, strict=True))
    }


def counting(copies: Iterable[Held]) -> Held | None:
    """Of copies in the order in which they were written, the one that counts: the one with the
    most edges, among equals the last."""
    best = None
    for copy in copies:
        if best is None or copy.n_kept >= best.n_kept:
            best = copy
    return best


def read_held(copy: Held, trace: str) -> pa.Table:
    """The one-row `schema.TRACE` table of a copy, checked. Raises ArchiveDamagedError,
    FileNotFoundError."""
    shown = str(copy.path)
    if copy.path.parent.name == LOOSE:
        with copy.path.open("rb") as file:
            check_seal(file, shown)
    with parquet_errors(shown), open_parquet(os.fspath(copy.path), shown) as file:
        table = file.read_row_group(copy.group, use_threads=False)
    check_row(table, trace, shown)
    return current(table)


def pack_loose(folder: Path) -> None:
    """Pack all loose traces; the caller holds the archive's lock.

    Order: the pack (one rename), the manifest (one rename), then the loose files. A process killed
    before the manifest leaves a whole pack that the next packing lists; killed after it, loose
    files that the next packing deletes.
    """
    listed = read_manifest(folder)
    loose = loose_ids(folder)
    manifest = adopt(folder, listed)
    if loose:
        manifest = replace(manifest, format=schema.FORMAT)  # before there is a pack of that format
    if manifest != listed:
        write_manifest(folder, manifest)
    packed: dict[str, list[Held]] = {}
    for pack in manifest.packs:
        for trace, copy in held_traces(folder / PACKS / pack.file).items():
            packed.setdefault(trace, []).append(copy)
    before = {trace: _inode(folder, trace) for trace in loose}
    copies = {trace: held_traces(loose_path(folder, trace))[trace] for trace in loose}
    fresh = [trace for trace in loose if _is_new(copies[trace], trace, packed.get(trace, []))]
    if fresh:
        name = _next_name(folder, manifest)
        path = folder / PACKS / name

        def write(file: BinaryIO) -> None:
            # Checked as they are read: damage must not be sealed anew into a pack.
            write_parquet(file, (read_held(copies[trace], trace) for trace in fresh))
            seal(file)

        commit(path, write)
        pack = Pack(name, len(fresh), path.stat().st_size, file_digest(path))
        manifest = replace(manifest, packs=(*manifest.packs, pack))
        write_manifest(folder, manifest)
    for trace in loose:
        if _inode(folder, trace) == before[trace]:  # not replaced by a copy with more in it
            loose_path(folder, trace).unlink(missing_ok=True)
    sync_folder(folder / LOOSE)


def _is_new(copy: Held, trace: str, packed: list[Held]) -> bool:
    """Whether a loose copy counts beside the packed ones and is not one of them already."""
    best = counting(packed)
    if best is None or copy.n_kept != best.n_kept:
        return best is None or copy.n_kept > best.n_kept
    # As bytes: NaN is not equal to itself in a table.
    return encode(read_held(copy, trace)) != encode(read_held(best, trace))


def _inode(folder: Path, trace: str) -> int:
    try:
        return loose_path(folder, trace).stat().st_ino
    except FileNotFoundError:
        return -1


def adopt(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the whole packs that a stopped process left unlisted."""
    known = {pack.file for pack in manifest.packs}
    new = []
    for name in pack_files(folder):
        if name not in known:
            path = folder / PACKS / name
            with path.open("rb") as file:
                check_seal(file, str(path))
            traces = len(held_traces(path))
            new.append(Pack(name, traces, path.stat().st_size, file_digest(path)))
    return replace(manifest, packs=(*manifest.packs, *new)) if new else manifest


def _next_name(folder: Path, manifest: Manifest) -> str:
    aside = [p.name for p in (folder / ASIDE).glob("*.parquet")]
    taken = [pack.file for pack in manifest.packs] + pack_files(folder) + aside
    numbers = [int(name[:5]) for name in taken if name[:5].isdigit()]
    return f"{max(numbers, default=0) + 1:05d}.parquet"
