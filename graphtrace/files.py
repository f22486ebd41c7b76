"""Files and processes of this machine: files that people ask for (figures, exports) are written
whole or not at all; what an error says of the disk; whether a process lives."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from graphtrace.errors import OptionError, StorageFullError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that mean: no room left."""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine lives; one that we may not ask counts as alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def cache_folder() -> Path | None:
    """Where what only saves time is kept: GRAPHTRACE_CACHE, else `$XDG_CACHE_HOME/graphtrace`, else
    `~/.cache/graphtrace`; None, for nothing, where GRAPHTRACE_CACHE is empty."""
    named = os.environ.get("GRAPHTRACE_CACHE")
    if named is not None:
        return Path(named) if named else None
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "graphtrace"


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends well, and vanishes when it does not.

    Missing folders are made. Raises StorageFullError, and OptionError where the file cannot be
    written there.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            yield file
        scratch.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StorageFullError(f"no room left on the disk for {str(path)!r}") from error
        raise OptionError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        # Nothing to remove where even the folder could not be made.
        if scratch.exists():
            scratch.unlink()
