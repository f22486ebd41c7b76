"""Some columns of many traces of an archive at once, without reading their edges."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from graphtrace import schema
from graphtrace.curve import KIND_FIELDS, POINT_MEASURES, points_frame

_CURVES = "curves.list.element."
POINT_COLUMNS = (
    *("id", "n_edges"),
    *(f"{_CURVES}{name}" for name in (*KIND_FIELDS, "grid", "k", *POINT_MEASURES)),
)
TOKEN_COLUMNS = ("id", "token_ids", "tokens", "special", "predicted_id")
COUNT_COLUMNS = ("id", f"{_CURVES}k", "component_counts")


def read_columns(
    file: pq.ParquetFile, columns: Collection[str], groups: list[int] | None = None
) -> pa.Table:
    """Columns (or fields of `curves`) of some row groups, all by default; the fields of `curves`
    that an earlier format lacks are left out."""
    known = {file.schema.column(i).path for i in range(len(file.schema))}
    wanted = [x for x in columns if not x.startswith(_CURVES) or _has(known, x)]
    if groups is None or len(groups) == file.metadata.num_row_groups:
        return file.read(columns=wanted, use_threads=False)
    return file.read_row_groups(groups, columns=wanted, use_threads=False)


def _has(known: set[str], column: str) -> bool:
    return any(path == column or path.startswith(f"{column}.") for path in known)


def points_of(tables: list[pa.Table]) -> pd.DataFrame:
    """`curve.points_frame` of tables with `POINT_COLUMNS`."""
    missing = dict.fromkeys((*KIND_FIELDS, *POINT_MEASURES))
    return points_frame(
        (trace, n_edges, [missing | curve for curve in curves or ()])
        for table in tables
        for trace, n_edges, curves in zip(
            *(table[name].to_pylist() for name in ("id", "n_edges", "curves")), strict=True
        )
    )


def tokens_of(tables: list[pa.Table]) -> pd.DataFrame:
    """`TraceSource.trace_tokens` of tables with `TOKEN_COLUMNS`."""
    table = pa.concat_tables([schema.TRACE.empty_table().select(list(TOKEN_COLUMNS)), *tables])
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in TOKEN_COLUMNS[1:]}
    frame = pd.DataFrame({"trace": pd.Series(table["id"].to_pylist(), dtype=object)})
    frame = frame.assign(**{name: pd.Series(x, dtype=object) for name, x in columns.items()})
    return frame.astype({"predicted_id": np.int64})


def counts_of(tables: list[pa.Table]) -> pd.DataFrame:
    """`TraceSource.component_counts` of tables with `COUNT_COLUMNS`."""
    traces: list[str] = []
    n_edges: list[int] = []
    counts: list[np.ndarray] = []
    for table in tables:
        for trace, curves, flat in zip(
            table["id"].to_pylist(),
            table["curves"].to_pylist(),
            table["component_counts"].combine_chunks(),
            strict=True,
        ):
            k = curves[0]["k"] if curves else []
            if not k or not flat.is_valid:
                continue
            counts += list(flat.values.to_numpy().reshape(len(k), -1))
            n_edges += k
            traces += [trace] * len(k)
    return pd.DataFrame(
        {
            "trace": pd.Series(traces, dtype=object),
            "n_edges": np.array(n_edges, np.int64),
            "counts": pd.Series(counts, dtype=object),
        }
    )
