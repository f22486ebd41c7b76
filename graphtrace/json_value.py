"""`json_value`: values of files and databases in the types that JSON has."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any


def json_value(value: Any) -> Any:
    """A value in types that JSON has. What it has no type for is text: dates, times and spans of
    time (ISO 8601), bytes (hexadecimal), anything else as `str` shows it; pandas' marks of what is
    missing are null."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, bytes):
        return value.hex()
    import numpy as np
    import pandas as pd

    if isinstance(value, np.ndarray | np.generic):
        return json_value(value.tolist())
    if pd.isna(value):
        return None
    if isinstance(value, timedelta):
        value = pd.Timedelta(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
