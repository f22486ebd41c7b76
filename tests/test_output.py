"""Tables on stdout: the same columns in every form, readable as text, whole in the others."""

import csv
import datetime
import io
import json
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from graphtrace.cli.output import Format, print_frame

FRAME = pd.DataFrame(
    {
        "name": ["a [bold]", " the", None],
        "value": [0.123456789, np.nan, 2.0],
        "value_low": [0.1, np.nan, 1.0],
        "value_high": [0.2, np.nan, 3.0],
        "head": pd.array([1, None, 3], dtype="Int16"),
        "special": [True, False, True],
    }
)


def test_text_shows_tokens_and_intervals(capsys):
    print_frame(FRAME, title="A [title]")
    out = capsys.readouterr().out
    assert "A [title]" in out
    assert "0.123 [0.1, 0.2]" in out
    assert "value_low" not in out
    assert "a [bold]" in out
    assert "·the" in out
    assert "yes" in out
    assert "nan" not in out.lower()
    assert "<NA>" not in out


def test_a_kind_of_curve_is_no_emoji_and_one_end_is_no_interval(capsys):
    one = {"curve": ["sufficiency:zero:mlp"], "x": [0.5], "x_low": [np.nan], "x_high": [np.nan]}
    print_frame(pd.DataFrame(one))
    out = capsys.readouterr().out
    assert "sufficiency:zero:mlp" in out
    assert "0.5" in out
    assert "[" not in out


def test_text_says_when_there_is_nothing(capsys):
    print_frame(FRAME.iloc[:0])
    captured = capsys.readouterr()
    assert "(no rows)" in captured.err
    assert "name" in captured.out


@pytest.mark.parametrize("form", [Format.json, Format.csv])
def test_machine_forms_hold_every_column_and_digit(form, capsys):
    print_frame(FRAME, form)
    out = capsys.readouterr().out
    frame = pd.DataFrame(json.loads(out)) if form is Format.json else pd.read_csv(io.StringIO(out))
    assert list(frame.columns) == list(FRAME.columns)
    assert frame["value"][0] == 0.123456789
    assert frame["name"][1] == " the"


def test_parquet_goes_to_stdout_whole(capfdbinary):
    print_frame(FRAME, Format.parquet)
    table = pq.read_table(io.BytesIO(capfdbinary.readouterr().out))
    pd.testing.assert_frame_equal(
        table.to_pandas()[["value", "special"]], FRAME[["value", "special"]]
    )
    assert table.column_names == list(FRAME.columns)


DAY = datetime.date(2020, 1, 2)
ANY = {
    "day": (DAY, "2020-01-02"),
    "moment": (datetime.datetime(2020, 1, 2, 3, 4, 5, 6), "2020-01-02T03:04:05.000006"),
    "time": (datetime.time(3, 4), "03:04:00"),
    "span": (datetime.timedelta(days=1, hours=2), "P1DT2H0M0S"),
    "id": (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "bytes": (b"\xbc\x01", "bc01"),
    "decimal": (Decimal("1.50"), "1.50"),
    "large": (2**62 + 1, 2**62 + 1),
    "truth": (True, True),
    "list": ([1, None, DAY], [1, None, "2020-01-02"]),
    "map": ({"a": {"b": (1, b"\x01")}, 2: "x"}, {"a": {"b": [1, "01"]}, "2": "x"}),
    "array": (np.array([1, 2]), [1, 2]),
    "scalar": (np.int32(3), 3),
    "text": ("x", "x"),
}


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_json_of_what_a_query_may_return(name, missing, capsys):
    value, expected = ANY[name]
    print_frame(pd.DataFrame({"x": pd.Series([value, missing], dtype=object)}), Format.json)
    assert json.loads(capsys.readouterr().out) == [{"x": expected}, {"x": None}]


CELLS = {"moment": "2020-01-02 03:04:05.000006", "span": "1 day, 2:00:00", "truth": "True"}


@pytest.mark.parametrize("name", ANY)
def test_csv_of_what_a_query_may_return(name, capsys):
    """Lists and maps are JSON, so that no reader needs to be Python."""
    value, expected = ANY[name]
    frame = pd.DataFrame({"x": pd.Series([value, None], dtype=object), "y": [1, 2]})
    print_frame(frame, Format.csv)
    _, (first, _), (missing, _) = csv.reader(io.StringIO(capsys.readouterr().out))
    assert missing == ""
    if name in ("list", "map", "array"):
        assert json.loads(first) == expected
    else:
        assert first == CELLS.get(name, str(expected))


@pytest.mark.parametrize("name", ANY)
def test_parquet_of_what_a_query_may_return(name, capfdbinary):
    value, expected = ANY[name]
    print_frame(pd.DataFrame({"x": pd.Series([value, None], dtype=object)}), Format.parquet)
    found, missing = pq.read_table(io.BytesIO(capfdbinary.readouterr().out))["x"].to_pylist()
    assert missing is None
    if isinstance(found, str) and not isinstance(value, str):
        assert json.loads(found) == expected
    else:
        assert found == (value.tolist() if isinstance(value, np.ndarray) else value)


def test_parquet_of_several_types_is_text(capfdbinary):
    values = [1, "a", 2.5, None, [1, DAY], {"k": True}, 2**70]
    print_frame(pd.DataFrame({"x": pd.Series(values, dtype=object), "y": 1}), Format.parquet)
    out, err = capfdbinary.readouterr()
    table = pq.read_table(io.BytesIO(out))
    texts = ["1", "a", "2.5", None, '[1, "2020-01-02"]', '{"k": true}', str(2**70)]
    assert table["x"].to_pylist() == texts
    assert table["y"].to_pylist() == [1] * len(values)
    assert err.decode() == "values of several types, written as text: x\n"
