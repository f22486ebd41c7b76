"""The embedded store's own lock: many readers or one writer, across processes.

The engine's own locking is not enough: a reader beside a writer gets wrong rows. The lock is an
advisory lock on a file (`flock`), so the operating system frees it when its holder is killed. The
file's text says who holds it: `read PID` or `write PID`, one line each, and `done PID` when a
reader has finished; lines of processes that are gone mean nothing.
"""

import contextlib
import fcntl
import os
import time
from collections import Counter
from pathlib import Path

from graphtrace.errors import StoreError, StoreLockedError
from graphtrace.files import is_alive

_COMPACT = 1 << 14


class StoreLock:
    """A held lock; `release` gives it back.

    path: the lock file, made if it is not there. exclusive: for writing. wait: seconds to keep
    trying before StoreLockedError.
    """

    def __init__(self, path: Path, exclusive: bool, wait: float = 0.0) -> None:
        self.path = path
        self.exclusive = exclusive
        self._handle: int | None = _open(path, exclusive)
        try:
            self._acquire(wait)
        except BaseException:
            self.release()
            raise

    def _acquire(self, wait: float) -> None:
        assert self._handle is not None
        # A short grace, because a reader that tidies the file holds it alone for a moment.
        until = time.monotonic() + max(wait, 0.25)
        while True:
            try:
                kind = fcntl.LOCK_EX if self.exclusive else fcntl.LOCK_SH
                fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise StoreLockedError(self._held_message()) from None
                time.sleep(0.02)
        with contextlib.suppress(OSError):  # a read-only disk: the lock holds, only unnamed
            if self.exclusive:
                os.ftruncate(self._handle, 0)
            os.write(self._handle, f"{self._word} {os.getpid()}\n".encode())

    @property
    def _word(self) -> str:
        return "write" if self.exclusive else "read"

    def _held_message(self) -> str:
        lines = [(word, pid) for word, pid in _lines(self.path) if is_alive(pid)]
        writers = [pid for word, pid in lines if word == "write"]
        reading = Counter(pid for word, pid in lines if word == "read")
        reading.subtract(pid for word, pid in lines if word == "done")
        readers = sorted(pid for pid, count in reading.items() if count > 0)
        parts = [f"process {pid} writes to it" for pid in _named(writers[-1:])]
        if not parts or self.exclusive:
            parts += [f"process {pid} reads it" for pid in _named(readers[:3])]
        by = ", ".join(parts) or "by another process"
        return f"the store {self.path.parent} is in use: {by}; try again when it has finished"

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        with contextlib.suppress(OSError):
            if self.exclusive:
                os.ftruncate(handle, 0)
            else:
                os.write(handle, f"done {os.getpid()}\n".encode())
            if os.fstat(handle).st_size > _COMPACT:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(handle, 0)
        os.close(handle)


def _open(path: Path, exclusive: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if not exclusive and path.exists():
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise StoreError(f"the store {path.parent} cannot be locked: {error.strerror}") from error


def _lines(path: Path) -> list[tuple[str, int]]:
    found = []
    for line in path.read_text().splitlines():
        word, _, pid = line.partition(" ")
        if pid.isdecimal():
            found.append((word, int(pid)))
    return found


def _named(pids: list[int]) -> list[str]:
    return [f"{pid} (this one)" if pid == os.getpid() else str(pid) for pid in pids]
