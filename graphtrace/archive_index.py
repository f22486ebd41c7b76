"""What the packs of an archive say of their traces, kept so that thousands need not be read again.

A pack never changes and is named by its checksum, so what was read of it once stays true. It is
kept beside other caches (`files.cache_folder`) and can be deleted at any time; small packs are not
worth it. `archive verify` reads the packs themselves.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from graphtrace.archive_files import Pack
from graphtrace.archive_frame import METADATA
from graphtrace.errors import GraphtraceError
from graphtrace.files import cache_folder, replacing

MANY = 50
"""Packs of fewer traces are read each time."""


def kept_metadata(pack: Pack, read: Callable[[], pa.Table]) -> pa.Table:
    """The metadata of a pack's traces (columns `METADATA`), from where it was kept, else by `read`,
    and then kept. What cannot be read or written there is only a pack that is read again."""
    path = _path(pack)
    if path is None:
        return read()
    found = _kept(path)
    if found is not None and len(found) == pack.traces and found.column_names == METADATA:
        return found
    table = read()
    try:
        with replacing(path) as file:
            pq.write_table(table, file, compression="zstd")
    except GraphtraceError as error:
        warnings.warn(f"what {pack.file} holds is not kept: {error}", stacklevel=2)
    return table


def _path(pack: Pack) -> Path | None:
    root = cache_folder()
    if root is None or not pack.sha256 or pack.traces < MANY:
        return None
    columns = hashlib.sha256(" ".join(METADATA).encode()).hexdigest()[:8]
    return root / "archives" / f"{pack.sha256[:32]}-{columns}.parquet"


def _kept(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        warnings.warn(f"{path} cannot be read and is made again: {error}", stacklevel=2)
        return None
