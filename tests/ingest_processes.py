"""Ingests in processes of their own, for the tests that break something meanwhile.

Run as `python ingest_processes.py`: for each line on stdin (JSON: archive, store, seconds of
patience, file for stdout, file for stderr) it forks an ingest and prints its process id, and when
it has ended its status. A fork of a process that has imported everything is at work at once.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path


class Ingests:
    """Starts one ingest after the other; a context manager."""

    def __enter__(self):
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)

    def start(self, archive, store, patience, folder):
        """Start an ingest; its process id. `result` must be asked for before the next."""
        self.files = [folder / "out", folder / "err"]
        for path in self.files:
            path.write_text("")
        line = [str(archive), store, patience, *map(str, self.files)]
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait_for(self, n, seconds=120.0):
        """Wait until the ingest has begun to write `n` traces, or has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            lines = self.files[0].read_text().splitlines()
            if len(lines) >= n or "done" in lines or self.files[1].read_text():
                return
            time.sleep(0.002)
        raise AssertionError("the ingest neither writes nor ends")

    def result(self):
        """What the ingest wrote to stdout and to stderr, once it has ended."""
        self.process.stdout.readline()
        return tuple(path.read_text() for path in self.files)


def main() -> None:
    """Fork an ingest for each line on stdin."""
    import neo4j  # noqa: F401

    from graphtrace.ingestion import ingest
    from graphtrace.stores import neo4j as store  # noqa: F401
    from graphtrace.stores import neo4j_connection, neo4j_writer

    # Traces of more than 400 edges are written in parts, so that both ways are interrupted.
    neo4j_writer.LONG = 400
    neo4j_writer.PART = 100
    for line in sys.stdin:
        archive, url, patience, out, err = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            neo4j_connection.RETRY_SECONDS = float(patience)
            add = neo4j_writer.ServerWriter._add

            def announced(*args, add=add):
                os.write(1, b"trace\n")
                return add(*args)

            neo4j_writer.ServerWriter._add = announced
            try:
                ingest(Path(archive), url)
                print("done", flush=True)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
