"""How commands print: tables as text, JSON, CSV or Parquet on stdout; notes on stderr."""

import json
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from graphtrace.json_value import json_value


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

    `table` shows visible tokens and rounds; the machine forms hold full values. What a form has no
    type for is text: in JSON dates (ISO 8601), UUIDs and bytes (hexadecimal); in CSV lists and maps
    as JSON; in Parquet a column whose values are of several types, each as JSON.
    """
    if format is Format.json:
        frame = _mapped(frame, _of_any_type(frame), json_value)
        print(frame.to_json(orient="records", force_ascii=False, date_format="iso", indent=1))
    elif format is Format.csv:
        _mapped(frame, _of_any_type(frame), _for_csv).to_csv(sys.stdout, index=False)
    elif format is Format.parquet:
        _print_parquet(frame)
    else:
        _print_text(frame, title)


def _print_parquet(frame) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    mixed = []
    for column in _of_any_type(frame):
        try:
            pa.array(frame[column], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            mixed.append(column)
    if mixed:
        note(f"values of several types, written as text: {', '.join(mixed)}")
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(_mapped(frame, mixed, _as_text), preserve_index=False)
    pq.write_table(table, sink)
    sys.stdout.buffer.write(sink.getvalue())
    sys.stdout.buffer.flush()


def _of_any_type(frame) -> list[str]:
    """Columns whose values may be anything but text alone."""
    from pandas.api.types import infer_dtype

    objects = [column for column in frame.columns if frame[column].dtype == object]
    return [column for column in objects if infer_dtype(frame[column]) not in ("string", "empty")]


def _mapped(frame, columns: list[str], function: Callable[[Any], Any]):
    """The frame with a function of each value in these columns; pandas' own `map` turns whole
    numbers into others where one is missing."""
    import pandas as pd

    return frame.assign(
        **{
            column: pd.Series(map(function, frame[column]), index=frame.index, dtype=object)
            for column in columns
        }
    )


def _for_csv(value: Any) -> Any:
    import numpy as np

    if isinstance(value, Mapping | list | tuple | np.ndarray):
        return _as_text(value)
    return value.hex() if isinstance(value, bytes) else value


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(json_value(value), ensure_ascii=False)


def _print_text(frame, title: str | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    numeric = {c for c in frame.columns if frame[c].dtype.kind in "iuf"}
    intervals = {c for c in frame.columns if {f"{c}_low", f"{c}_high"} <= set(frame.columns)}
    ends = {f"{c}_{end}" for c in intervals for end in ("low", "high")}
    shown = [c for c in frame.columns if c not in ends]
    for column in shown:
        side = "right" if column in numeric else "left"
        table.add_column(str(column), justify=side, overflow="fold")
    for row in frame.to_dict("records"):
        table.add_row(*(_with_interval(row, c) if c in intervals else _cell(row[c]) for c in shown))
    console = Console(emoji=False)  # `sufficiency:zero:mlp` is no emoji
    if not console.is_terminal:
        console = Console(width=10_000, emoji=False)  # as wide as the table: pipes do not wrap
    if title:
        console.print(f"[bold]{escape(title)}[/bold]")
    console.print(table)
    if len(frame) == 0:
        note("(no rows)")


def _with_interval(row, column: str) -> str:
    """`0.862 [0.855, 0.87]`: a value and its interval in one cell."""
    value, low, high = (row[name] for name in (column, f"{column}_low", f"{column}_high"))
    if value is None or value != value:
        return ""
    if low != low:
        return f"{value:.3g}"
    return f"{value:.3g} \\[{low:.3g}, {high:.3g}]"


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
