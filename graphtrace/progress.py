"""Progress of long work on stderr: a bar with rate and time left on a terminal, else one log line a
minute."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LOG_SECONDS = 60.0


class Advance(Protocol):
    """Call with how many units were done since the last call."""

    def __call__(self, n: int = 1) -> None: ...


@contextmanager
def progress(description: str, total: int, unit: str, shown: bool = True) -> Iterator[Advance]:
    """Show how far `total` units of work are; yields the function that counts them.

    shown: False shows nothing, for library calls that should stay silent.
    """
    if not shown:
        yield lambda n=1: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        yield _log_lines(description, total, unit)


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    start = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, rate="")
        done = 0

        def advance(n: int = 1) -> None:
            nonlocal done
            done += n
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=n, rate=f"{rate:,.1f} {unit}/s")

        yield advance


def _log_lines(description: str, total: int, unit: str) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal last, done
        done += n
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate
            print(
                f"{description}: {done:,} of {total:,}, {rate:,.1f} {unit}/s, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    return advance
