"""The benchmarks, as tables: `python -m benchmarks [--json FILE] [--write] [NAME ...]`.

Without names all of MODULES run, in about ten minutes; those of LONG run when they are named.
--json writes the tables with the machine's facts, for `benchmarks.compare`; --write puts them into
docs/benchmarks.md, in place of the tables of the same titles, and figures into docs/images.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from graphtrace.measuring import processor

MODULES = ("bench_ratios", "bench_extract", "bench_store", "bench_analysis", "bench_demo")
LONG = ("bench_quality", "bench_scaling", "bench_neo4j", "bench_server", "bench_scale")
IMAGES = Path(__file__).parent.parent / "docs" / "images"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MARK = "<!-- the tables below are written by `python -m benchmarks --write` -->"


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    import torch

    threads = f"torch threads {torch.get_num_threads()}"
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "ladybug"))
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {processor()}, {threads}",
        "python": platform.python_version(),
        "packages": packages,
    }


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, numbers to three digits."""

    def cell(value) -> str:
        if isinstance(value, float):
            if value != value:
                return ""
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    head = "| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns)
    rows = ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join([head, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks, print and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("only", nargs="*", help=f"some of {', '.join(MODULES + LONG)}")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in MODULES + LONG:
            parser.error(f"{name!r} is none of {', '.join(MODULES + LONG)}")
    facts, found, figures = machine(), {}, {}
    print("; ".join(facts.values()), flush=True)
    for name in options.only or MODULES:
        module = import_module(f"benchmarks.{name}")
        own = module.tables()
        found |= own
        for title, table in own.items():
            print(f"\n{title}\n{table.to_string(index=False, float_format='{:.3g}'.format)}")
        sys.stdout.flush()
        if options.write and hasattr(module, "plots"):
            figures |= module.plots(own, IMAGES)
    if options.json:
        rows = {title: table.to_dict("records") for title, table in found.items()}
        options.json.write_text(json.dumps({**facts, "tables": rows}, indent=1, default=float))
    if options.write:
        PAGE.write_text(merged(PAGE.read_text(), facts, found, figures))


def merged(
    page: str,
    facts: dict[str, str],
    found: dict[str, pd.DataFrame],
    figures: dict[str, str] | None = None,
) -> str:
    """The page with the tables of this run in place of those of the same title; others stay.

    figures: title -> file name in docs/images, shown under the table.
    """
    head, mark, rest = page.partition(MARK)
    sections = {}
    for text in rest.split("\n## ")[1:]:
        title, _, body = text.partition("\n")
        sections[title] = body.strip()
    for title, table in found.items():
        measured = f"{facts['date']}: {facts['machine']}; Python {facts['python']}, "
        sections[title] = f"Measured {measured}{facts['packages']}.\n\n{markdown(table)}"
        if title in (figures or {}):
            sections[title] += f"\n\n![{title}](images/{(figures or {})[title]})"
    parts = [f"## {title}\n\n{body}" for title, body in sections.items()]
    return head + mark + "\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
