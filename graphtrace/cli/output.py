"""How commands print: tables as text, JSON, CSV or Parquet on stdout; notes on stderr."""

import sys
from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """Forms of a table on stdout."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


FormatOption = Annotated[Format, typer.Option("--format", help="Form of the table on stdout.")]


def note(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr)


def print_frame(frame, format: Format = Format.table, title: str | None = None) -> None:
    """Print a DataFrame on stdout in the given form; column names are the same in all of them.

    `table` shows visible tokens and rounds; the machine forms hold full values.
    """
    if format is Format.json:
        print(frame.to_json(orient="records", force_ascii=False, date_format="iso", indent=1))
    elif format is Format.csv:
        frame.to_csv(sys.stdout, index=False)
    elif format is Format.parquet:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
        sys.stdout.buffer.write(sink.getvalue())
        sys.stdout.buffer.flush()
    else:
        _print_text(frame, title)


def _print_text(frame, title: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    numeric = {c for c in frame.columns if frame[c].dtype.kind in "iuf"}
    for column in frame.columns:
        table.add_column(str(column), justify="right" if column in numeric else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 200))
    if title:
        console.print(f"[bold]{escape(title)}[/bold]")
    console.print(table)
    if len(frame) == 0:
        note("(no rows)")


def _cell(value) -> str:
    from rich.markup import escape

    from graphtrace.schema import visible

    if value is None or type(value).__name__ == "NAType" or value != value:  # pandas' <NA>
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if hasattr(value, "dtype") and value.dtype.kind == "f":
        return f"{float(value):.4g}"
    if isinstance(value, str):
        return escape(visible(value) if value[:1].isspace() or value[-1:].isspace() else value)
    return escape(str(value))
