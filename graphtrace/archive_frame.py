"""`traces()` of an archive: the DataFrame of its traces' metadata, read without their edges."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from graphtrace import schema
from graphtrace.archive_parquet import open_parquet, read_metadata
from graphtrace.curve import pooled_kind

_FIELD_OF = {
    "name": "input_name",
    "model": "model_id",
    "input": "input_id",
    "text": "input_text",
    "corpus": "input_corpus",
    "dtype": "model_dtype",
    "meta": "input_meta",
}
_MADE = ("n_tokens", "curve")
METADATA = [
    "format",
    *(_FIELD_OF.get(name, name) for name in schema.TRACES_COLUMNS if name not in _MADE),
]
"""What `traces_frame` needs of `schema.TRACE`."""


def metadata_of(source: Any, shown: str) -> pa.Table:
    """The columns `METADATA` of a file, `curves` as a list of kinds. Raises ArchiveDamagedError
    naming the file as `shown`."""
    return read_metadata(open_parquet(source, shown), METADATA)


def traces_frame(tables: list[pa.Table]) -> pd.DataFrame:
    """`schema.TRACES_COLUMNS` from tables of `metadata_of`, in the order of their rows."""
    types = {"curves": pa.list_(pa.string())}
    fields = [(name, types.get(name, schema.TRACE.field(name).type)) for name in METADATA]
    table = pa.concat_tables([pa.schema(fields).empty_table(), *tables])
    columns: dict[str, Any] = {}
    for name in schema.TRACES_COLUMNS:
        if name == "n_tokens":
            columns[name] = table["position"].to_numpy().astype(np.int64) + 1
            continue
        if name == "curve":
            kinds = table["curves"].to_pylist()
            firsts = [pooled_kind(kind[0]) if kind else None for kind in kinds]
            columns[name] = pd.Series(firsts, dtype=object)
            continue
        column = table[_FIELD_OF.get(name, name)]
        if name == "labels":
            columns[name] = pd.Series([dict(x) for x in column.to_pylist()], dtype=object)
        elif name == "seed":
            columns[name] = pd.array(column.to_pylist(), dtype="Int64")
        elif pa.types.is_string(column.type) or name == "curves":
            columns[name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_pandas()
    return pd.DataFrame(columns)


def natural(name: str) -> list[str | int]:
    """A sort key in which `line-2` comes before `line-10`."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def archive_order(frame: pd.DataFrame) -> list[int]:
    """Rows of the traces in an archive's order: by corpus, name (numbers by value), input and id.
    Of copies the one with most edges counts, of those the last, see `ArchiveWriter.write`."""
    best: dict[str, int] = {}
    n_kept = frame["n_kept"].tolist()
    for i, trace in enumerate(frame["id"]):
        if trace not in best or n_kept[i] >= n_kept[best[trace]]:
            best[trace] = i
    rows = frame.loc[list(best.values()), ["corpus", "name", "input", "id"]]
    keys = {
        i: (corpus, natural(name), input_, trace)
        for i, corpus, name, input_, trace in rows.itertuples(name=None)
    }
    return sorted(keys, key=keys.__getitem__)
