"""The archive's files: names, atomic commits, the lock, the manifest (docs/format.md).

    manifest.json               what the archive is, and its packs with their checksums
    loose/<trace id>.parquet    one trace, just committed
    packs/<number>.parquet      many traces, one row group each
    failed/<key>.json           what could not be traced
    archive.lock                held while the manifest or the packs change
    write.lock                  held while a trace is committed

Nothing here knows what a trace means; `archive` reads with it and `archive_write` writes with it.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from graphtrace import schema
from graphtrace.archive_parquet import damaged
from graphtrace.errors import ArchiveError, StorageFullError
from graphtrace.files import DISK_FULL, is_alive

MANIFEST, LOCK, WRITE_LOCK = "manifest.json", "archive.lock", "write.lock"
LOOSE, PACKS, FAILED = "loose", "packs", "failed"
ASIDE = "damaged"
"""Where `archive verify --set-aside` puts damaged files."""

_LOOSE_NAME = re.compile(r"t[0-9a-f]{12}\.parquet")
_PACK_NAME = re.compile(r"\d{5,}\.parquet")
_TEMPORARY = re.compile(r".+\.tmp-(?P<host>.+)-(?P<pid>\d+)-\d+")
_FOREIGN_AGE = 24 * 3600.0
"""Seconds after which a temporary file of another machine counts as abandoned."""


@contextlib.contextmanager
def storage_errors(shown: str) -> Iterator[None]:
    """Turn a full disk into StorageFullError and a refused write into ArchiveError."""
    try:
        yield
    except OSError as error:
        code = error.errno or _errno_in(str(error))
        if code in DISK_FULL:
            raise StorageFullError(
                f"no room left on the disk for {shown} ({os.strerror(code)}); everything committed "
                "before is kept: free some space and run the same command again"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ArchiveError(
                f"{shown} cannot be written ({os.strerror(code)}); choose a folder that you may "
                "write to with --archive"
            ) from error
        raise


def _errno_in(message: str) -> int:
    found = re.search(r"\[errno (\d+)\]", message, re.IGNORECASE)
    return int(found[1]) if found else 0


_serial = iter(range(1 << 62))


def commit(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Make the file `path` with what `write` puts into an open file: all of it or nothing.

    Written under a temporary name beside it, synced, renamed, the folder synced. While it is
    written the temporary file is locked, so that nobody takes it for an abandoned one.
    Raises StorageFullError, ArchiveError.
    """
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "unknown"
    temporary = path.with_name(f"{path.name}.tmp-{host}-{os.getpid()}-{next(_serial)}")
    with storage_errors(str(path)):
        try:
            with temporary.open("w+b") as file:
                lock(file.fileno())
                write(file)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `commit` uses while it writes."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> list[str]:
    """Delete the temporary files of writers that are gone; returns their names.

    A file is kept while its lock is held, while its process lives on this machine, and, if it is
    another machine's, for a day.
    """
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "unknown"
    gone = []
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if not found:
            continue
        with contextlib.suppress(FileNotFoundError):
            if found["host"] == host:
                if is_alive(int(found["pid"])):
                    continue
            elif time.time() - path.stat().st_mtime < _FOREIGN_AGE:
                continue
            with path.open("rb") as file:
                if lock(file.fileno()):
                    path.unlink()
                    gone.append(path.name)
    return gone


def lock(handle: int, wait: bool = False) -> bool:
    """Take the exclusive advisory lock of an open file; False where another holds it. It ends
    with the file's closing or the process. Where the system has no such locks: True."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@contextlib.contextmanager
def archive_lock(folder: Path, wait: bool, name: str = LOCK) -> Iterator[bool]:
    """Hold a lock of the archive; yields False at once where another holds it and not `wait`."""
    with storage_errors(str(folder / name)):
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock(handle, wait)
    finally:
        os.close(handle)


# --------------------------------------------------------------------------------- the manifest


@dataclass(frozen=True)
class Pack:
    """A pack as the manifest lists it. file: its name in `packs/`; sha256: of the whole file."""

    file: str
    traces: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. created: ISO 8601, UTC; version: of the graphtrace that made the archive."""

    created: str
    version: str
    packs: tuple[Pack, ...] = ()
    format: int = schema.FORMAT


_REBUILD = (
    "restore it from a copy, or delete it and run `graphtrace extract` again, which lists the "
    "packs anew (each carries its own checksum)"
)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an archive.

    Raises ArchiveError (no such folder, not an archive, another format), ArchiveDamagedError.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.exists():
            raise ArchiveError(
                f"no archive at {folder}: there is no such folder; name one with --archive, or "
                "make one with `graphtrace extract`"
            ) from error
        if not folder.is_dir():
            raise ArchiveError(f"{folder} is a file; an archive is a folder") from error
        if any((folder / part).is_dir() for part in (LOOSE, PACKS)):
            raise damaged(str(path), "it is missing", _REBUILD) from error
        raise ArchiveError(
            f"{folder} is not an archive: it has no {MANIFEST}; name an archive's folder, or make "
            "one with `graphtrace extract`"
        ) from error
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = json.loads(text)
        if found["graphtrace"] != "archive":
            raise ArchiveError(f"{folder} is not an archive of traces: {path} says otherwise")
        number = int(found["format"])
        if number > schema.FORMAT:
            raise ArchiveError(
                f"{folder} has archive format {number}, written by graphtrace "
                f"{found.get('version', '?')}; this one reads formats up to {schema.FORMAT}: "
                "install a newer one"
            )
        packs = tuple(
            Pack(str(p["file"]), int(p["traces"]), int(p["bytes"]), str(p["sha256"]))
            for p in found["packs"]
        )
        for pack in packs:
            if not _PACK_NAME.fullmatch(pack.file):
                raise ValueError(f"{pack.file!r} is no name of a pack")
        return Manifest(str(found["created"]), str(found["version"]), packs, number)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(str(path), f"{type(error).__name__}: {error}", _REBUILD) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, atomically; the caller holds the lock."""
    text = json.dumps({"graphtrace": "archive", **asdict(manifest)}, indent=1) + "\n"
    commit(folder / MANIFEST, lambda file: file.write(text.encode()))


def loose_ids(folder: Path) -> list[str]:
    """Ids of the loose traces, sorted."""
    return [name.removesuffix(".parquet") for name in _names(folder / LOOSE, _LOOSE_NAME)]


def pack_files(folder: Path) -> list[str]:
    """Names of the files in `packs/` that are named as packs, sorted, listed or not."""
    return _names(folder / PACKS, _PACK_NAME)


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    # A folder that is not there is empty: tools that copy files often leave empty folders out.
    try:
        return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise ArchiveError(f"{folder} cannot be read: {error.strerror}") from error


def loose_path(folder: Path, trace: str) -> Path:
    """Where the loose trace of that id stands."""
    return folder / LOOSE / f"{trace}.parquet"


def file_digest(path: Path) -> str:
    """SHA-256 of a file as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
