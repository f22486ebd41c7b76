"""What was measured of single traces, kept on disk, so that a pass that was stopped goes on.

A cache never decides a number: it holds what the same measure gave for the same trace, and
without it everything is measured again. Blocks are Parquet files, written whole or not at all, in
a folder per measure (`files.cache_folder`), which can be deleted at any time.
"""

import json
import time
import uuid
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graphtrace.errors import GraphtraceError
from graphtrace.files import cache_folder, replacing
from graphtrace.traces import short_hash

Values = dict[str, np.ndarray]
"""What a measure gives for one trace: one-dimensional int64 or float64 arrays by name."""

FLUSH_SECONDS = 10.0
_KEY = "trace"


class MeasureCache:
    """The values of one measure with its parameters, by trace.

    Nothing is written before `FLUSH_SECONDS` have gone by, so short passes leave no files.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        """about: what decides the values beside the trace: measure, version, size, parameters."""
        root = cache_folder()
        self.folder = None if root is None else root / "measures" / short_hash(dict(about), "m")
        self._about = dict(about)
        self._new: dict[str, Values] = {}
        self._last = time.monotonic()

    def find(self, keys: Collection[str]) -> dict[str, Values]:
        """The values that are kept for these keys. A block that cannot be read is removed."""
        found: dict[str, Values] = {}
        if self.folder is None or not self.folder.is_dir():
            return found
        wanted = set(keys)
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                table = pq.read_table(path)
            except (pa.ArrowException, OSError) as error:
                warnings.warn(f"removed {path}, which cannot be read: {error}", stacklevel=2)
                path.unlink(missing_ok=True)
                continue
            names = table.column_names[1:]
            columns = [table[name].combine_chunks() for name in names]
            for i, key in enumerate(table[_KEY].to_pylist()):
                if key in wanted:
                    values = [column[i].values.to_numpy() for column in columns]
                    found[key] = dict(zip(names, values, strict=True))
        return found

    def add(self, key: str, values: Values) -> None:
        """Keep the values of one trace; written from time to time."""
        if self.folder is None:
            return
        self._new[key] = values
        if time.monotonic() - self._last >= FLUSH_SECONDS:
            self.flush()

    def close(self) -> None:
        """Write what a pass of more than `FLUSH_SECONDS` has left; a short one leaves nothing."""
        known = self.folder is not None and self.folder.is_dir()
        if known or time.monotonic() - self._last >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new. A cache that cannot be written is reported once and given up."""
        self._last = time.monotonic()
        if self.folder is None or not self._new:
            return
        names = list(next(iter(self._new.values())))
        columns: dict[str, Any] = {_KEY: list(self._new)}
        for name in names:
            parts = [values[name] for values in self._new.values()]
            ends = np.cumsum([0, *map(len, parts)])
            flat = pa.array(np.concatenate(parts))
            columns[name] = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), flat)
        try:
            about = self.folder / "about.json"
            if not about.exists():
                with replacing(about) as file:
                    file.write(json.dumps(self._about, indent=1, sort_keys=True).encode())
            with replacing(self.folder / f"{uuid.uuid4().hex}.parquet") as file:
                pq.write_table(pa.table(columns), file, compression="zstd")
            self._new.clear()
        except GraphtraceError as error:
            warnings.warn(
                f"measures are not kept, so nothing can be resumed: {error}", stacklevel=2
            )
            self.folder = None
