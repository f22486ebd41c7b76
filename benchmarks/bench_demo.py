"""The demo as a whole process, and the help page: seconds."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.timing import seconds


def tables() -> dict[str, pd.DataFrame]:
    """Title -> table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, rounds, args in [
            ("graphtrace demo (24 inputs, everything)", 3, ["demo", "--out"]),
            ("graphtrace --help", 9, ["--help"]),
        ]:
            times = []
            for i in range(rounds):
                out = [str(Path(folder) / str(i))] if args[-1] == "--out" else []
                command = [sys.executable, "-m", "graphtrace", *args, *out]
                times.append(seconds(lambda c=command: _run(c)))
            rows.append({"command": name, "seconds": statistics.median(times)})
    return {"Whole commands": pd.DataFrame(rows)}


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)
