"""Write an archive of traces: `write_traces`, `ArchiveWriter`, `merge_archives`.

A trace is committed by one rename, so a process may be killed at any moment. Loose traces are
packed under the archive's lock; several processes may write the same archive. docs/format.md
says in which order, and why no order of events loses a trace.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from graphtrace.archive import FAILURE_COLUMNS, Archive
from graphtrace.archive_files import (
    ASIDE,
    FAILED,
    LOCK,
    LOOSE,
    MANIFEST,
    PACKS,
    Manifest,
    Pack,
    archive_lock,
    commit,
    file_digest,
    loose_ids,
    loose_path,
    pack_files,
    read_manifest,
    storage_errors,
    sweep,
    sync_folder,
    write_manifest,
)
from graphtrace.archive_parquet import (
    check_row,
    check_seal,
    encode,
    open_parquet,
    parquet_errors,
    seal,
    table_of,
    write_parquet,
)
from graphtrace.errors import ArchiveError, OptionError, SizeError
from graphtrace.sizes import parse_size
from graphtrace.traces import Trace, short_hash

PACK_AT = 256
"""Loose traces that are packed while a run goes on."""

PACK_AT_END = 16
"""Loose traces that are packed when a writer is closed; fewer stay loose, so that many short
runs do not leave as many packs."""

KEEP_SHARE, KEEP_LEAST = 0.01, 5_000
"""What is kept by default: this share of all edges, and at least so many."""


@dataclass(frozen=True)
class Keep:
    """How many of a trace's edges an archive keeps, see `parse_keep`."""

    rule: Literal["default", "fraction", "k", "all"]
    value: float = 0.0

    def __str__(self) -> str:
        if self.rule == "fraction":
            return f"{self.value:g}"
        return f"k:{self.value:g}" if self.rule == "k" else self.rule


def parse_keep(keep: "Keep | str | float | None" = None) -> Keep:
    """Read a keep rule: a fraction of all edges in (0, 1], `k:N` edges, `all`, or None for the
    default, the top 1 % and at least 5,000. Raises OptionError naming the value and the forms."""
    if isinstance(keep, Keep):
        return keep
    if keep is None or keep in ("all", "default"):
        return Keep(keep or "default")  # pyright: ignore[reportArgumentType]
    try:
        size = parse_size(str(keep))
    except SizeError:
        size = None
    if size is None or size.rule == "tv":
        raise OptionError(
            f"--keep {keep!r} is none of: a fraction of all edges in (0, 1] such as 0.01, a number "
            "of edges such as k:5000, or all"
        )
    return Keep(size.rule, size.value)


def keep_count(keep: "Keep | str | float | None", n_edges: int) -> int:
    """How many of `n_edges` edges a keep rule keeps: at least 1, at most all of them."""
    keep = parse_keep(keep)
    if keep.rule == "all":
        return n_edges
    if keep.rule == "default":
        wanted = max(int(KEEP_SHARE * n_edges), KEEP_LEAST)
    else:
        wanted = int(keep.value * n_edges) if keep.rule == "fraction" else int(keep.value)
    return min(max(wanted, 1), n_edges)


class ArchiveWriter:
    """Adds traces to an archive, which is made where there is none. A context manager.

    Every method leaves the archive whole, whenever the process ends; several writers may work on
    one archive. Raises ArchiveError, ArchiveDamagedError, StorageFullError.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        _make_archive(self.folder)
        with storage_errors(str(self.folder)):
            for part in ("", LOOSE, PACKS, FAILED):
                sweep(self.folder / part)
        self._packed: dict[Pack, dict[str, int]] = {}
        self._listed = (0, 0, 0)
        self._n_loose = len(loose_ids(self.folder))
        self._look()

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # A full disk has no room for a pack either; loose traces are as safe as packed ones.
        if kind is None:
            self.close()

    def close(self) -> None:
        """Pack what is loose, if it is worth a pack."""
        if len(loose_ids(self.folder)) >= PACK_AT_END:
            self.pack()

    def has(self, trace: str, n_kept: int = 0) -> bool:
        """Whether the trace of that id is committed, with at least `n_kept` edges, by whichever
        process."""
        try:
            if kept_edges(loose_path(self.folder, trace)).get(trace, -1) >= n_kept:
                return True
        except FileNotFoundError:
            pass
        self._look()
        return any(ids.get(trace, -1) >= n_kept for ids in self._packed.values())

    def write(self, trace: Trace, n_kept: int | None = None) -> None:
        """Commit a trace with its first `n_kept` edges (all that are at hand by default).

        Where it is there already, the copy with more edges counts from now on, so that an archive
        can be extracted again with a larger --keep. A failure under its id is cleared.
        """
        self.write_table(table_of(trace.to_row(n_kept)))

    def write_table(self, table: pa.Table) -> None:
        """Commit a trace given as a one-row `schema.TRACE` table."""
        trace = table["id"][0].as_py()
        data = encode(table)
        commit(loose_path(self.folder, trace), lambda file: file.write(data))
        self.clear_failure(trace)
        self._n_loose += 1
        if self._n_loose >= PACK_AT:
            self._n_loose = len(loose_ids(self.folder))
            if self._n_loose >= PACK_AT:
                self.pack()

    def fail(self, key: str, input: str, model: str, error: BaseException) -> None:
        """Record that something could not be traced.

        key: the trace's id where it is known, otherwise `failure_key(...)`; input: the input's
        name; model: the model's name. A failure of the same key is replaced.
        """
        values = (
            key,
            input,
            model,
            type(error).__name__,
            " ".join(str(error).split()),
            datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        row = dict(zip(FAILURE_COLUMNS, values, strict=True))
        # backslashreplace: a message may quote the broken text that it is about.
        text = json.dumps(row, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")
        commit(self._failure(key), lambda file: file.write(text + b"\n"))

    def clear_failure(self, key: str) -> None:
        """Forget the failure of that key, if there is one."""
        with storage_errors(str(self._failure(key))):
            self._failure(key).unlink(missing_ok=True)

    def has_failed(self, key: str) -> bool:
        """Whether a failure of that key is on record."""
        return self._failure(key).exists()

    def pack(self) -> bool:
        """Move all loose traces into a new pack; False where another process is at it."""
        with archive_lock(self.folder, wait=False) as held:
            if held:
                _pack(self.folder)
        self._n_loose = len(loose_ids(self.folder))
        return held

    def _failure(self, key: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key):
            raise OptionError(f"failure key {key!r} is not of letters, digits, '-' and '_'")
        return self.folder / FAILED / f"{key}.json"

    def _look(self) -> None:
        """Learn the ids of packs that are new in the manifest."""
        found = (self.folder / MANIFEST).stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._listed:
            archive = Archive(self.folder)
            self._packed = {
                pack: self._packed.get(pack) or kept_edges(self.folder / PACKS / name)
                for name, pack in archive._packs.items()
            }
            self._listed = stamp


def failure_key(*parts: Any) -> str:
    """'f' + 12 hex of what was asked (JSON values), for failures that have no trace id."""
    return short_hash(list(parts), "f")


def write_traces(
    path: str | Path, traces: Iterable[Trace], keep: "Keep | str | float | None" = None
) -> int:
    """Add traces to the archive at `path`, made where there is none; returns how many were written.

    keep: see `parse_keep`. A trace that is there already with as many edges is left as it is.
    Raises ArchiveError, ArchiveDamagedError, StorageFullError, OptionError.
    """
    rule, n = parse_keep(keep), 0
    with ArchiveWriter(path) as writer:
        for trace in traces:
            n_kept = min(keep_count(rule, trace.n_edges), trace.n_kept)
            if not writer.has(trace.id, n_kept):
                writer.write(trace, n_kept)
                n += 1
    return n


def merge_archives(sources: Iterable[str | Path], into: str | Path) -> dict[str, int]:
    """Add the traces of archives to the archive `into`, made where there is none.

    Returns how many traces were `added` (or came with more edges than `into` had) and how many
    were `present`. Failures are not merged. Raises ArchiveError, ArchiveDamagedError (nothing of a
    damaged trace is added), StorageFullError.
    """
    archives = [Archive(source) for source in sources]  # every source is looked at before writing
    counts = {"added": 0, "present": 0}
    with ArchiveWriter(into) as writer:
        for archive in archives:
            frame = archive.traces()
            kept = dict(zip(frame["id"], frame["n_kept"].tolist(), strict=True))
            fresh = [trace for trace in kept if not writer.has(trace, kept[trace])]
            for table in archive.tables(fresh, batch=1):
                writer.write_table(table)
            counts["added"] += len(fresh)
            counts["present"] += len(kept) - len(fresh)
    return counts


def kept_edges(path: Path) -> dict[str, int]:
    """Ids of the traces in a file, by row group, and how many edges each keeps."""
    with parquet_errors(str(path)), path.open("rb") as source:
        table = open_parquet(source, str(path)).read(columns=["id", "n_kept"], use_threads=False)
    return dict(zip(table["id"].to_pylist(), table["n_kept"].to_pylist(), strict=True))


def _make_archive(folder: Path) -> None:
    """Make an empty archive of a folder that is absent or empty; leave an archive as it is."""
    if not (folder / MANIFEST).exists():
        if folder.exists() and not folder.is_dir():
            raise ArchiveError(f"{folder} is a file; an archive is a folder")
        with storage_errors(str(folder)):
            strangers = [p.name for p in folder.iterdir()] if folder.exists() else []
            ours = {LOOSE, PACKS, FAILED, LOCK, ASIDE}
            strange = sorted(
                name for name in strangers if name not in ours and not name.startswith(MANIFEST)
            )
            if strange:
                raise ArchiveError(
                    f"{folder} is not an archive and not empty (it holds {strange[0]}); name "
                    "another folder with --archive"
                )
            folder.mkdir(parents=True, exist_ok=True)
        with archive_lock(folder, wait=True):
            if not (folder / MANIFEST).exists():
                now = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = Manifest(now, _version())
                # Packs without a manifest: somebody deleted a damaged one.
                manifest = _adopt(folder, manifest) if (folder / PACKS).is_dir() else manifest
                write_manifest(folder, manifest)
    read_manifest(folder)
    with storage_errors(str(folder)):
        for part in (LOOSE, PACKS, FAILED):
            (folder / part).mkdir(exist_ok=True)


def _version() -> str:
    try:
        return version("graphtrace-llm")
    except PackageNotFoundError:
        return "unknown"


def _pack(folder: Path) -> None:
    """Pack all loose traces; the caller holds the lock.

    Order: the pack (one rename), the manifest (one rename), then the loose files. A process killed
    before the manifest leaves a whole pack that the next packing lists; killed after it, loose
    files that the next packing deletes.
    """
    listed = read_manifest(folder)
    manifest = _adopt(folder, listed)
    if manifest != listed:
        write_manifest(folder, manifest)
    packed: dict[str, int] = {}
    for pack in manifest.packs:
        for trace, n_kept in kept_edges(folder / PACKS / pack.file).items():
            packed[trace] = max(n_kept, packed.get(trace, -1))
    loose = loose_ids(folder)
    before = {trace: _inode(folder, trace) for trace in loose}
    fresh = [
        trace
        for trace in loose
        if kept_edges(loose_path(folder, trace))[trace] > packed.get(trace, -1)
    ]
    if fresh:
        name = _next_name(folder, manifest)
        path = folder / PACKS / name

        def write(file: BinaryIO) -> None:
            write_parquet(file, (_loose_table(folder, trace) for trace in fresh))
            seal(file)

        commit(path, write)
        pack = Pack(name, len(fresh), path.stat().st_size, file_digest(path))
        manifest = replace(manifest, packs=(*manifest.packs, pack))
        write_manifest(folder, manifest)
    for trace in loose:
        if _inode(folder, trace) == before[trace]:  # not replaced by a copy with more edges
            loose_path(folder, trace).unlink(missing_ok=True)
    sync_folder(folder / LOOSE)


def _inode(folder: Path, trace: str) -> int:
    try:
        return loose_path(folder, trace).stat().st_ino
    except FileNotFoundError:
        return -1


def _adopt(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the whole packs that a stopped process left unlisted."""
    known = {pack.file for pack in manifest.packs}
    new = []
    for name in pack_files(folder):
        if name not in known:
            path = folder / PACKS / name
            with path.open("rb") as file:
                check_seal(file, str(path))
            new.append(Pack(name, len(kept_edges(path)), path.stat().st_size, file_digest(path)))
    return replace(manifest, packs=(*manifest.packs, *new)) if new else manifest


def _next_name(folder: Path, manifest: Manifest) -> str:
    aside = [p.name for p in (folder / ASIDE).glob("*.parquet")]
    taken = [pack.file for pack in manifest.packs] + pack_files(folder) + aside
    numbers = [int(name[:5]) for name in taken if name[:5].isdigit()]
    return f"{max(numbers, default=0) + 1:05d}.parquet"


def _loose_table(folder: Path, trace: str) -> pa.Table:
    """A loose trace's table, checked: damage must not be sealed anew into a pack."""
    path = loose_path(folder, trace)
    with path.open("rb") as file:
        check_seal(file, str(path))
    with parquet_errors(str(path)):
        table = open_parquet(os.fspath(path), str(path)).read(use_threads=False)
    check_row(table, trace, str(path))
    return table
