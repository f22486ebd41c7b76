"""Files that people ask for (figures, exports): whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from graphtrace.errors import OptionError, StorageFullError


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFullError(f"no room left on the disk for {str(path)!r}") from error
        raise OptionError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        # Nothing to remove where even the folder could not be made.
        if scratch.exists():
            scratch.unlink()
