"""Processes for the archive's tests: writers that are killed, writers at the same time.

Run as `python archive_processes.py kill FOLDER LOG` or `... write FOLDER FIRST LAST`. Packs are
small here, so that every moment of packing is hit too.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from builders import synthetic_trace

from graphtrace import archive_write
from graphtrace.archive_write import ArchiveWriter

archive_write.PACK_AT = 4
archive_write.PACK_AT_END = 1


def write_until_killed(folder: str, log: int) -> None:
    """Write traces in a loop; an id goes into the log once its commit has returned."""
    with ArchiveWriter(folder) as writer:
        seed = sum(1 for _ in Path(folder, "loose").iterdir()) + 1000 * os.getpid()
        while True:
            seed += 1
            trace = synthetic_trace(seed, n=3)
            writer.write(trace)
            os.write(log, f"{trace.id}\n".encode())


def kill_rounds(folder: str, log_path: str) -> None:
    """For each line on stdin: fork a writer and kill it at a random moment. A fork of a process
    that has imported everything is at work at once."""
    rng = random.Random(0)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                write_until_killed(folder, log)
            finally:
                os._exit(1)
        time.sleep(0.03 + 0.25 * rng.random())
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -1, flush=True)


def write_range(folder: str, first: int, last: int) -> None:
    """Write the synthetic traces of seeds first ... last - 1, and pack at the end."""
    with ArchiveWriter(folder) as writer:
        for seed in range(first, last):
            trace = synthetic_trace(seed, n=3)
            if not writer.has(trace.id):
                writer.write(trace)


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill_rounds(sys.argv[2], sys.argv[3])
    else:
        write_range(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
