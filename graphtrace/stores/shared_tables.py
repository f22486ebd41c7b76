"""Archive rows -> the nodes that several traces share: models, inputs, labels, components.

Two traces may say different things of one shared node, since their archives were made on different
machines or at different times. Which of them counts never depends on which came first:

    label of an input   per key the value of the trace that was extracted last
    input               the newest trace's corpus, continuation and meta; the most tokens
    model               the least of the rows, compared as text (only `dtype` can differ)

Of two that were extracted in the same millisecond the greater text counts.
"""

import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from graphtrace import schema
from graphtrace.errors import StoreError
from graphtrace.schema import ATTENTION, KINDS

_MODEL = (
    "id", "name", "revision", "family", "n_layers", "n_heads", "d_model", "n_params", "dtype",
    "parallel", "windows",
)  # fmt: skip
_SHAPE = ("n_layers", "n_heads", "parallel")
"""What a model's components follow from."""

_NEWEST = ("corpus", "continuation", "meta")
"""What an input has from its newest trace; name and text are part of its id."""


def created_text(traces: pa.Table) -> pa.ChunkedArray:
    """When every trace was extracted, as ISO 8601 text in UTC, which sorts by time."""
    options = pc.StrftimeOptions(format="%Y-%m-%dT%H:%M:%SZ", locale="C")
    return pc.call_function("strftime", [traces["created"]], options)


def models(traces: pa.Table) -> pa.Table:
    """Model nodes, one row each."""
    rows: dict[str, dict] = {}
    for row in model_rows(traces):
        own = {name: row[f"model_{name}"] for name in _MODEL}
        rows[own["id"]] = least_model(rows.get(own["id"]), own)
    fields = [traces.schema.field(f"model_{name}").with_name(name) for name in _MODEL]
    return pa.Table.from_pylist(list(rows.values()), schema=pa.schema(fields))


def model_rows(traces: pa.Table) -> list[dict[str, Any]]:
    """The distinct models of archive rows, fields as the archive names them."""
    found = {}
    for row in traces.select([f"model_{name}" for name in _MODEL]).to_pylist():
        found.setdefault(json.dumps(row), row)
    return list(found.values())


def least_model(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Which of two rows of one model counts. Raises StoreError where they are of two models."""
    if old is not None:
        check_same_model(old, new)
    return new if old is None else min(old, new, key=lambda row: json.dumps(row, sort_keys=True))


def check_same_model(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise StoreError where two rows of one id have not the same components: the traces of one of
    them could not be read back."""
    if any(old[name] != new[name] for name in _SHAPE):
        shown = " and ".join(
            f"{row['n_layers']} layers of {row['n_heads']} heads"
            + (" in parallel blocks" if row["parallel"] else "")
            for row in (old, new)
        )
        raise StoreError(
            f"there are two models with the id {new['id']}, of {shown}; trace one of them under "
            "another name, or keep them in two stores"
        )


def model_components(row: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """`schema.components` of a row of `model_rows`."""
    return schema.components(row["model_n_layers"], row["model_n_heads"], row["model_parallel"])


def components(traces: pa.Table) -> pa.Table:
    """Component nodes of all models."""
    rows = {}
    for row in model_rows(traces):
        parallel = row["model_parallel"]
        for name, kind, level, head in model_components(row):
            id_ = f"{row['model_id']}:{name}"
            rows[id_] = {
                "id": id_,
                "name": name,
                "hook": schema.component_hook(kind, level, head, parallel),
                "model": row["model_id"],
                "kind": KINDS[kind],
                "layer": level - 1 if parallel else (level - 1) // 2,
                "head": head if kind == ATTENTION else None,
            }
    text = dict.fromkeys(("id", "name", "hook", "model", "kind"), pa.string())
    return _from_rows(rows, text | {"layer": pa.int32(), "head": pa.int32()})


def inputs(traces: pa.Table) -> pa.Table:
    """Input nodes. created: of the newest trace."""
    names = ("id", "name", "text", "corpus", "continuation", "meta")
    columns = [traces[f"input_{name}"].to_pylist() for name in names]
    more = (traces["position"].to_pylist(), created_text(traces).to_pylist())
    rows: dict[str, dict] = {}
    for *values, position, created in zip(*columns, *more, strict=True):
        own = dict(zip(names, values, strict=True))
        own |= {"n_tokens": position + 1, "created": created}
        rows[own["id"]] = newest_input(rows.get(own["id"]), own)
    text = dict.fromkeys(names, pa.string())
    order = ("id", "name", "text", "corpus", "n_tokens", "continuation", "meta", "created")
    types = text | {"n_tokens": pa.int32(), "created": pa.string()}
    return _from_rows(rows, {name: types[name] for name in order})


def newest_input(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """What two rows of one input come to."""
    if old is None:
        return new
    base = max(old, new, key=input_key)
    return base | {"n_tokens": max(old["n_tokens"], new["n_tokens"])}


def input_key(row: dict[str, Any]) -> str:
    """The greater one counts; `shared.cypher` says the same."""
    return "|".join(row[name] or "" for name in ("created", *_NEWEST))


def labels(traces: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Label nodes, and (Input)-[:LABELLED {created}]->(Label), one link per input and key."""
    links: dict[tuple[str, str], tuple[str, str]] = {}
    columns = (traces["input_id"], created_text(traces), traces["labels"])
    for input_, created, pairs in zip(*(c.to_pylist() for c in columns), strict=True):
        for key, value in pairs:
            links[input_, key] = max(links.get((input_, key), ("", "")), (created, value))
    nodes, edges = {}, {}
    for (input_, key), (created, value) in links.items():
        label = f"{key}={value}"
        nodes[label] = {"id": label, "key": key, "value": value, "name": label}
        edges[input_, key] = {"from": input_, "to": label, "created": created}
    text = pa.string()
    return (
        _from_rows(nodes, dict.fromkeys(("id", "key", "value", "name"), text)),
        _from_rows(edges, dict.fromkeys(("from", "to", "created"), text)),
    )


def _from_rows(rows: dict[Any, dict], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist(list(rows.values()), schema=pa.schema(list(types.items())))


class SharedFacts:
    """What the shared nodes of a whole archive come to, known before its traces are read.

    frame: `Archive.traces()`. For a writer that gets the archive batch by batch and cannot change
    what it has written.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        created = pa.table({"created": pa.array(frame["created"], pa.timestamp("ms", tz="UTC"))})
        self._inputs: dict[str, dict] = {}
        self._models: dict[str, dict] = {}
        self._dtypes: dict[str, str] = {}
        self._labels: dict[tuple[str, str], tuple[str, str]] = {}
        for row, text in zip(
            frame.to_dict("records"), created_text(created).to_pylist(), strict=True
        ):
            own = {name: row[name] for name in ("corpus", "meta", "n_tokens")}
            own |= {"created": text, "continuation": None}
            self._inputs[row["input"]] = newest_input(self._inputs.get(row["input"]), own)
            dtype = str(row["dtype"])
            self._dtypes[row["model"]] = min(dtype, self._dtypes.get(row["model"], dtype))
            for key, value in row["labels"].items():
                place = (row["input"], key)
                held = self._labels.get(place, ("", ""))
                self._labels[place] = max(held, (text, f"{key}={value}"))
        self._created = {(i, label): text for (i, _), (text, label) in self._labels.items()}

    def check(self, label: str, rows: pa.Table) -> None:
        """See `check_same_model`, over all rows that this was called with."""
        for row in rows.to_pylist() if label == "Model" else ():
            check_same_model(self._models.setdefault(row["id"], row), row)

    def counts(self, input_: str, label: str) -> bool:
        """Whether the input has the label in the end."""
        return (input_, label) in self._created

    def labelled(self, input_: str, label: str) -> str:
        """`created` of the link."""
        return self._created[input_, label]

    def settled(self, label: str, rows: pa.Table) -> pa.Table:
        """Rows of shared nodes as they are in the end."""
        if label not in ("Input", "Model"):
            return rows
        changed = []
        for row in rows.to_pylist():
            facts = {"dtype": self._dtypes[row["id"]]} if label == "Model" else {}
            if label == "Input":
                facts = dict(self._inputs[row["id"]])
                facts.pop("continuation")
            changed.append(row | facts)
        return pa.Table.from_pylist(changed, schema=rows.schema)
