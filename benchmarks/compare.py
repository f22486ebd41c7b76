"""What moved between two runs: `python -m benchmarks.compare BEFORE.json AFTER.json`.

The files are those of `python -m benchmarks --json FILE`. Tables are matched by title, rows by
their cells that are not measured (texts and whole numbers). Of a table that has ratios taken
within one run, only these are compared, because milliseconds of two runs on a busy machine say
little; of the others every figure is. --all compares every figure of every table.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

RATIOS = {"per_forward", "ns_per_edge", "measured", "of_floor", "of_the_plain"}
"""Columns of figures that are ratios within one run, or nearly so."""

MORE_IS_BETTER = re.compile(r"/s\b|times faster")
"""Columns, or rows by one of their texts, where more is better; everywhere else less is."""

NOT_MEASURED = {"baseline", "goal", "stretch"}
"""Columns that say nothing about graphtrace's own speed."""

MACHINE = ("machine", "python", "packages")


def keyed(rows: list[dict[str, Any]]) -> dict[tuple, dict[str, float]]:
    """(cells that are not measured) -> column -> figure, of the rows of one table.

    A key that comes again gets a number behind it.
    """
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        figures = {
            name: value
            for name, value in row.items()
            if isinstance(value, float) and name not in NOT_MEASURED
        }
        key = tuple(
            (name, value)
            for name, value in row.items()
            if not isinstance(value, float) and name not in NOT_MEASURED and value is not None
        )
        again = sum(1 for other in found if other[: len(key)] == key)
        found[(*key, ("again", again)) if again else key] = figures
    return found


def moved(
    before: dict[str, Any], after: dict[str, Any], threshold: float = 0.1, everything: bool = False
) -> pd.DataFrame:
    """One row per figure that both runs have and that moved by more than `threshold` (a fraction).

    Columns: table, row, column, before, after, change (after / before - 1), verdict (`slower` or
    `faster`). Slowest first. everything: absolute times too.
    """
    rows = []
    for title, table in before["tables"].items():
        if title not in after["tables"]:
            continue
        old, new = keyed(table), keyed(after["tables"][title])
        for key in (key for key in old if key in new):
            text = ", ".join(str(value) for _, value in key)
            common = [name for name in old[key] if name in new[key]]
            ratios = [name for name in common if name in RATIOS]
            for name in common if everything or not ratios else ratios:
                a, b = old[key][name], new[key][name]
                if not (a > 0 and b > 0) or max(a / b, b / a) <= 1 + threshold:
                    continue
                better = (b > a) == bool(MORE_IS_BETTER.search(f"{name} {text}"))
                rows.append(
                    {
                        "table": title,
                        "row": text,
                        "column": name,
                        "before": a,
                        "after": b,
                        "change": b / a - 1,
                        "verdict": "faster" if better else "slower",
                    }
                )
    rows.sort(key=lambda r: (r["verdict"] == "faster", -abs(math.log(1 + r["change"]))))
    columns = ["table", "row", "column", "before", "after", "change", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def alone(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Tables and rows that only one of the two runs has."""
    found = []
    for title in [*before["tables"], *(t for t in after["tables"] if t not in before["tables"])]:
        sides = [run["tables"].get(title) for run in (before, after)]
        if None in sides:
            found.append(f"only {'after' if sides[0] is None else 'before'}: table {title!r}")
            continue
        old, new = map(keyed, sides)
        for name, these, others in (("before", old, new), ("after", new, old)):
            for key in these:
                if key not in others:
                    text = ", ".join(str(value) for _, value in key)
                    found.append(f"only {name}: row {text!r} of {title!r}")
    return found


def facts(run: dict[str, Any]) -> str:
    """What a run was taken on."""
    return ", ".join(str(run.get(name, "unknown")) for name in MACHINE)


def read(path: Path) -> dict[str, Any]:
    """A run's file. Raises SystemExit with one line where it is none."""
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("tables"), dict):
        raise SystemExit(f"{path}: not the tables of `python -m benchmarks --json`")
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what moved; exit code 1 with --fail where something got slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=0.1, help="fraction [default: 0.1]")
    parser.add_argument("--all", action="store_true", help="absolute times too")
    parser.add_argument("--fail", action="store_true", help="exit code 1 where it got slower")
    options = parser.parse_args(arguments)
    before, after = read(options.before), read(options.after)
    for name, run in (("before", before), ("after", after)):
        print(f"{name}: {run.get('date', 'no date')}, {facts(run)}")
    if facts(before) != facts(after):
        print(
            "warning: these are two machines or installations; only ratios within one run compare",
            file=sys.stderr,
        )
    found = moved(before, after, options.threshold, options.all)
    for row in found.itertuples():
        print(
            f"{row.verdict}  {row.change:+.0%}  {row.before:.3g} -> {row.after:.3g}  "
            f"{row.column}, {row.row} ({row.table})"
        )
    for line in alone(before, after):
        print(line)
    slower = int((found["verdict"] == "slower").sum())
    print(f"{slower} slower and {len(found) - slower} faster by more than {options.threshold:.0%}")
    return int(options.fail and slower > 0)


if __name__ == "__main__":
    sys.exit(main())
