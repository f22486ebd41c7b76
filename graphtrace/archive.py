"""Read an archive of traces: `open_archive`. The format is docs/format.md.

An `Archive` is a snapshot of what was committed when it was opened (`refresh` takes a new one);
processes may write meanwhile. Needs no torch.
"""

import io
import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from graphtrace import schema
from graphtrace.archive_columns import (
    COUNT_COLUMNS,
    POINT_COLUMNS,
    TOKEN_COLUMNS,
    counts_of,
    points_of,
    read_columns,
    tokens_of,
)
from graphtrace.archive_files import (
    FAILED,
    PACKS,
    Pack,
    loose_ids,
    loose_path,
    pack_files,
    read_manifest,
)
from graphtrace.archive_frame import archive_order, metadata_of, traces_frame
from graphtrace.archive_index import kept_metadata
from graphtrace.archive_parquet import (
    check_row,
    check_seal,
    current,
    damaged,
    open_parquet,
    parquet_errors,
    row_of,
)
from graphtrace.errors import ArchiveError, OptionError, TraceNotFoundError
from graphtrace.selection import resolve_trace
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph
from graphtrace.traces import Trace

FAILURE_COLUMNS = ("key", "input", "model", "error", "message", "created")
"""Columns of `Archive.failures()`."""

_OPEN_PACKS = 16
_ATTEMPTS = 5


class _Place(NamedTuple):
    """Where a trace stands: a pack's file name and row group, or None for its loose file."""

    pack: str | None
    group: int = 0


class Archive:
    """The committed traces of one archive, as they were when it was opened.

    Order of `traces`, `ids` and `tables`: by corpus, input name (numbers inside names by value),
    input id, trace id; it depends on neither the time nor the files.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises ArchiveError, ArchiveDamagedError; see `open_archive`."""
        self.folder = Path(folder)
        self._tables: dict[Pack | str, pa.Table] = {}
        self._files: dict[str, pq.ParquetFile] = {}
        self._last: Trace | None = None
        self.refresh()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the packs that are open; the archive can still be read from."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def refresh(self) -> None:
        """See what was committed since. Raises as `open_archive`."""
        # Loose files first: a trace that leaves `loose/` is in the manifest before that, so the
        # manifest read afterwards has whatever this listing missed.
        self._loose = loose_ids(self.folder)
        self.manifest = read_manifest(self.folder)
        self._packs = {pack.file: pack for pack in self.manifest.packs}
        for pack in self.manifest.packs:
            self._check_size(pack)
        for name in pack_files(self.folder):
            if name not in self._packs:
                self._packs[name] = self._unlisted(name)
        # A loose file may have been replaced by one with more edges or curves.
        self._tables = {s: t for s, t in self._tables.items() if isinstance(s, Pack)}
        self._last = None
        self._index: dict[str, _Place] | None = None
        self._frame: pd.DataFrame | None = None

    # ------------------------------------------------------------------------- what is there

    def traces(self) -> pd.DataFrame:
        """One row per trace, columns `schema.TRACES_COLUMNS`; reads no edges.

        n_tokens: tokens of the graph, position + 1. labels: dict; meta: JSON text; created: UTC.
        """
        self._load()
        assert self._frame is not None
        return self._frame.copy()

    def ids(self) -> list[str]:
        """Ids of all traces, in the archive's order."""
        return list(self._places())

    def __len__(self) -> int:
        return len(self._places())

    def __contains__(self, trace: object) -> bool:
        return trace in self._places()

    def failures(self) -> pd.DataFrame:
        """What could not be traced: key, input (name), model, error (class), message, created."""
        rows = []
        folder = self.folder / FAILED
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            try:
                found = json.loads(path.read_bytes())
                rows.append({name: found[name] for name in FAILURE_COLUMNS})
            except FileNotFoundError:
                continue  # cleared since it was listed
            except (ValueError, KeyError, TypeError) as error:
                raise damaged(str(path), f"{type(error).__name__}: {error}") from error
        frame = pd.DataFrame(rows, columns=list(FAILURE_COLUMNS), dtype=object)
        frame["created"] = pd.to_datetime(frame["created"], utc=True)
        return frame

    def info(self) -> dict[str, Any]:
        """What the archive holds: traces, edges (kept), bytes (of all its files), bytes_per_edge,
        models (name: traces), settings (id: traces), packs, loose, failures, format, created."""
        frame = self.traces()
        edges = sum(frame["n_kept"].tolist())
        size = sum(path.stat().st_size for path in self._all_files())
        return {
            "archive": self.folder.name,
            "format": self.manifest.format,
            "created": self.manifest.created,
            "traces": len(frame),
            "edges": edges,
            "bytes": size,
            "bytes_per_edge": size / edges if edges else float("nan"),
            "models": frame["model_name"].value_counts().to_dict(),
            "settings": frame["settings"].value_counts().to_dict(),
            "packs": len(self._packs),
            "loose": len(self._loose),
            "failures": len(self.failures()),
        }

    # ------------------------------------------------------------------------------- traces

    def __getitem__(self, name: str) -> Trace:
        return self.trace(name)

    def trace(self, name: str) -> Trace:
        """The trace that `name` means: an id, a unique prefix, an input's name, `last` or
        `model:name`. Raises TraceNotFoundError, ArchiveDamagedError."""
        if name not in self._places():
            name = resolve_trace(self.traces(), name)
        return self._trace(name)

    def subgraph(self, trace: str, size: Size | float | str = 1.0) -> SubGraph:
        """The trace (by id) of the given size, a fraction of |E| unless a form of SIZE.

        Raises TraceNotFoundError, SizeError where more edges are asked for than are kept,
        ArchiveDamagedError.
        """
        return self._trace(trace).subgraph(size)

    def curve_points(self, traces: Collection[str]) -> pd.DataFrame:
        """See `selection.TraceSource`; reads no edges."""
        return points_of(self._columns(traces, POINT_COLUMNS))

    def trace_tokens(self, traces: Collection[str]) -> pd.DataFrame:
        """See `selection.TraceSource`; reads no edges."""
        return tokens_of(self._columns(traces, TOKEN_COLUMNS))

    def component_counts(self, traces: Collection[str]) -> pd.DataFrame:
        """See `selection.TraceSource`; reads no edges."""
        return counts_of(self._columns(traces, COUNT_COLUMNS))

    def tables(self, ids: Iterable[str] | None = None, batch: int = 100) -> Iterator[pa.Table]:
        """`schema.TRACE` tables of up to `batch` traces, in the archive's order.

        ids: which traces, all by default. Raises TraceNotFoundError for an id that is not here.
        """
        if batch < 1:
            raise OptionError(f"batch is {batch}; it must be at least 1")
        places = self._places()
        if ids is None:
            wanted = list(places)
        else:
            asked = set(ids)
            for trace in sorted(asked - places.keys()):
                raise TraceNotFoundError(f"no trace {trace!r} in {self.folder}")
            wanted = [trace for trace in places if trace in asked]
        for start in range(0, len(wanted), batch):
            yield pa.concat_tables(self._read(wanted[start : start + batch]))

    def verify(self) -> pd.DataFrame:
        """Every problem of every file, now: file, trace, problem; no rows where all is well."""
        from graphtrace.archive_verify import verify_archive

        return verify_archive(self.folder)

    # ----------------------------------------------------------------------------- internals

    def _trace(self, trace: str) -> Trace:
        if self._last is None or self._last.id != trace:
            if trace not in self._places():
                raise TraceNotFoundError(
                    f"no trace {trace!r} in {self.folder}; `graphtrace traces` lists them"
                )
            self._last = Trace.from_row(row_of(self._read([trace])[0]))
        return self._last

    def _places(self) -> dict[str, _Place]:
        self._load()
        assert self._index is not None
        return self._index

    def _load(self) -> None:
        """Read the metadata of what is not known yet, and build the index and the frame."""
        if self._index is not None:
            return
        for _ in range(_ATTEMPTS):
            try:
                self._load_metadata()
                return
            except FileNotFoundError:
                self.refresh()  # packed since it was listed
        raise ArchiveError(f"the files of {self.folder} keep changing; try again")

    def _load_metadata(self) -> None:
        sources: list[Pack | str] = [*self._packs.values(), *self._loose]
        new = [source for source in sources if source not in self._tables]
        with ThreadPoolExecutor(4) as threads:
            self._tables |= zip(new, threads.map(self._metadata, new), strict=True)
        tables = [self._tables[source] for source in sources]
        places = [
            _Place(source.file if isinstance(source, Pack) else None, group)
            for source, table in zip(sources, tables, strict=True)
            for group in range(len(table))
        ]
        frame = traces_frame(tables)
        order = archive_order(frame)
        self._frame = ordered = frame.iloc[order].reset_index(drop=True)
        self._index = dict(zip(ordered["id"], (places[i] for i in order), strict=True))

    def _metadata(self, source: Pack | str) -> pa.Table:
        """The metadata columns of a pack, or of a loose trace given by its id."""
        if isinstance(source, Pack):
            return kept_metadata(source, lambda: self._read_metadata(source))
        return self._read_metadata(source)

    def _read_metadata(self, source: Pack | str) -> pa.Table:
        path = (
            self.folder / PACKS / source.file
            if isinstance(source, Pack)
            else self._loose_path(source)
        )
        with parquet_errors(str(path)), path.open("rb") as file:
            table = metadata_of(file, str(path))
        if isinstance(source, Pack) and len(table) != source.traces:
            what = f"it holds {len(table)} traces and the manifest says {source.traces}"
            raise damaged(str(path), what)
        if isinstance(source, str) and table["id"].to_pylist() != [source]:
            raise damaged(str(path), f"it holds {table['id'].to_pylist()}")
        for number in set(table["format"].to_pylist()) - set(range(1, schema.FORMAT + 1)):
            raise ArchiveError(f"{path} holds a trace of format {number}; install a newer version")
        return table

    def _read(self, ids: list[str]) -> list[pa.Table]:
        """The one-row tables of the given traces, each checked against its content hash."""
        for _ in range(_ATTEMPTS):
            places = self._places()
            try:
                return self._read_at([(trace, places[trace]) for trace in ids])
            except FileNotFoundError:
                self._relocate()
        raise ArchiveError(f"the files of {self.folder} keep changing; try again")

    def _columns(self, ids: Collection[str], columns: Collection[str]) -> list[pa.Table]:
        """One-row tables of some columns, in the order of `ids`. Raises TraceNotFoundError."""
        places = self._places()
        for trace in ids:
            if trace not in places:
                raise TraceNotFoundError(f"no trace {trace!r} in {self.folder}")
        for _ in range(_ATTEMPTS):
            places = self._places()
            try:
                return self._columns_at([(trace, places[trace]) for trace in ids], columns)
            except FileNotFoundError:
                self._relocate()
        raise ArchiveError(f"the files of {self.folder} keep changing; try again")

    def _columns_at(
        self, wanted: list[tuple[str, _Place]], columns: Collection[str]
    ) -> list[pa.Table]:
        found: dict[str, pa.Table] = {}
        for name in {place.pack for _, place in wanted}:
            here = sorted((place.group, trace) for trace, place in wanted if place.pack == name)
            if name is None:
                for _, trace in here:
                    path = self._loose_path(trace)
                    with parquet_errors(str(path)), path.open("rb") as file:
                        found[trace] = read_columns(open_parquet(file, str(path)), columns)
                continue
            with parquet_errors(str(self.folder / PACKS / name)):
                table = read_columns(self._pack(name), columns, [group for group, _ in here])
                found |= {trace: table.slice(i, 1) for i, (_, trace) in enumerate(here)}
        return [found[trace] for trace, _ in wanted]

    def _relocate(self) -> None:
        """Find the traces of this snapshot again after some went into a pack."""
        known, frame = self._places(), self._frame
        self.refresh()
        now = self._places()
        for trace in known.keys() - now.keys():
            raise damaged(str(self._loose_path(trace)), "it was there and is gone")
        self._index, self._frame = {trace: now[trace] for trace in known}, frame

    def _read_at(self, wanted: list[tuple[str, _Place]]) -> list[pa.Table]:
        found: dict[str, pa.Table] = {}
        for name in {place.pack for _, place in wanted}:
            here = sorted((place.group, trace) for trace, place in wanted if place.pack == name)
            if name is None:
                found |= {trace: self._read_loose(trace) for _, trace in here}
                continue
            path = str(self.folder / PACKS / name)
            with parquet_errors(path):
                groups = [group for group, _ in here]
                table = current(self._pack(name).read_row_groups(groups, use_threads=False))
                found |= {trace: table.slice(i, 1) for i, (_, trace) in enumerate(here)}
        for trace, place in wanted:
            path = self.folder / PACKS / place.pack if place.pack else self._loose_path(trace)
            check_row(found[trace], trace, str(path))
        return [found[trace] for trace, _ in wanted]

    def _read_loose(self, trace: str) -> pa.Table:
        path = self._loose_path(trace)
        data = path.read_bytes()
        check_seal(io.BytesIO(data), str(path))
        with parquet_errors(str(path)):
            file = open_parquet(pa.BufferReader(data), str(path))
            return current(file.read(use_threads=False))

    def _loose_path(self, trace: str) -> Path:
        return loose_path(self.folder, trace)

    def _pack(self, name: str) -> pq.ParquetFile:
        if name not in self._files:
            while len(self._files) >= _OPEN_PACKS:
                self._files.pop(next(iter(self._files))).close()
            path = self.folder / PACKS / name
            self._files[name] = open_parquet(path, str(path))
        return self._files[name]

    def _check_size(self, pack: Pack) -> None:
        path = self.folder / PACKS / pack.file
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise damaged(str(path), "it is listed in manifest.json and missing") from error
        if size != pack.bytes:
            raise damaged(str(path), f"it has {size:,} bytes and the manifest says {pack.bytes:,}")

    def _unlisted(self, name: str) -> Pack:
        """A pack whose writer was stopped before it could list it: whole, or damaged."""
        path = self.folder / PACKS / name
        with path.open("rb") as file:
            check_seal(file, str(path))
        groups = open_parquet(path, str(path)).metadata.num_row_groups
        return Pack(name, groups, path.stat().st_size, "")

    def _all_files(self) -> Iterator[Path]:
        yield self.folder / "manifest.json"
        yield from (self.folder / PACKS / name for name in self._packs)
        yield from (path for t in self._loose if (path := self._loose_path(t)).exists())


def open_archive(path: str | Path) -> Archive:
    """Open an archive for reading; use it as a context manager.

    Raises ArchiveError where there is no archive or it has a later format, ArchiveDamagedError
    where a file that should be there is missing or has the wrong size. Content is checked when it
    is read.
    """
    return Archive(path)
