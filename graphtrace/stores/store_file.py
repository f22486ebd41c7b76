"""`store.json`: what an embedded store remembers outside its database.

It says which database file is the current one, so that a rebuilt database takes the old one's
place by replacing this one small file; which archives the traces come from, and which traces were
deleted for good. A folder is a store once this file is there.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from graphtrace.errors import StorageFullError, StoreDamagedError, StoreError
from graphtrace.files import DISK_FULL

STORE_FILE = "store.json"
LOCK_FILE = "lock"
STORE_FORMAT = 2
"""Version of the store's file and of its graph; a store of an earlier one is made anew."""

_PREFIX, _SUFFIX = "graph-", ".lbug"


@dataclass(frozen=True)
class StoreFile:
    """database: number of the current database file; archives: absolute paths in the order in
    which they came; deleted: ids of traces that an ingest must not bring back by itself."""

    database: int = 1
    archives: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    format: int = field(default=STORE_FORMAT)

    def path(self, folder: Path) -> Path:
        """The current database file."""
        return folder / f"{_PREFIX}{self.database}{_SUFFIX}"

    def change(self, **changes: Any) -> "StoreFile":
        """A copy with other values."""
        return replace(self, **changes)


def read_store_file(folder: Path) -> StoreFile | None:
    """The folder's store file, None where there is none. Raises StoreDamagedError where it cannot
    be read, StoreError where a later version wrote it."""
    path = folder / STORE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = StoreFile(
            database=int(values["database"]),
            archives=tuple(map(str, values["archives"])),
            deleted=tuple(map(str, values["deleted"])),
            format=int(values["format"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamagedError(
            f"{path} cannot be read ({type(error).__name__}: {error}); delete the folder {folder} "
            "and ingest its archives again"
        ) from error
    if found.format > STORE_FORMAT:
        raise StoreError(
            f"the store {folder} has format {found.format} and this version reads up to "
            f"{STORE_FORMAT}; install a newer graphtrace, or delete the folder and ingest again"
        )
    return found


def write_store_file(folder: Path, content: StoreFile) -> None:
    """Put the file in place in one step: a reader sees the old or the new one, whole. Raises
    StorageFullError, StoreError."""
    temporary = folder / f"{STORE_FILE}.new"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(content), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / STORE_FILE)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StorageFullError(
                f"no room left on the disk for the store {folder}; everything committed before is "
                "kept: free some space and run the same command again"
            ) from error
        raise StoreError(f"the store {folder} cannot be written: {error.strerror}") from error


def database_files(folder: Path) -> list[Path]:
    """Database files and their logs in the folder, the current one's too."""
    return sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}*"))


def sweep(folder: Path, current: StoreFile | None) -> None:
    """Remove what an interrupted build or rebuild left behind. The exclusive lock must be held."""
    keep = current.path(folder).name if current else None
    for path in database_files(folder):
        if keep is None or not (path.name == keep or path.name.startswith(f"{keep}.")):
            path.unlink()
