"""The command line, run as a user types it but inside the tests' process: in one of its own it
would take seconds to import torch."""

import io
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from graphtrace.cli.app import main


class Done(NamedTuple):
    """Exit code, and what was printed."""

    code: int
    out: bytes
    err: str


def run(*arguments: object, cwd: Path | None = None) -> Done:
    """Run `graphtrace ARGUMENTS` in a folder."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: int | str | None = 0
    with (
        chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["graphtrace", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        try:
            main()
        except SystemExit as done:
            code = done.code
    assert code is None or isinstance(code, int), code
    printed = [stream.buffer.getvalue() for stream in (out, err)]
    return Done(code or 0, printed[0], printed[1].decode())


def run_text(*arguments: object) -> tuple[int, str, str]:
    """Run `graphtrace ARGUMENTS` in this folder: exit code, stdout and stderr as text."""
    done = run(*arguments)
    return done.code, done.out.decode(), done.err
