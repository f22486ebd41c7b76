"""Archive rows -> what a store says of their curves, as Arrow tables."""

import numpy as np
import pyarrow as pa

from graphtrace.curve import KIND_FIELDS, curve_kind

_CURVE_FIELDS = {
    "tv": pa.float64(),
    "kl": pa.float64(),
    "top1": pa.bool_(),
    "nucleus": pa.int32(),
    "p_predicted": pa.float64(),
    "p_target": pa.float64(),
    "logit_diff": pa.float64(),
}


_COUNTS = pa.list_(pa.int64())


def curve_kinds(traces: pa.Table) -> list[list[str]]:
    """The kinds of every trace's curves."""
    lists = traces["curves"].combine_chunks()
    flat = lists.flatten()
    parts = dict(zip([field.name for field in flat.type], flat.flatten(), strict=True))
    kinds = list(map(curve_kind, *(parts[name].to_pylist() for name in KIND_FIELDS)))
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()
    return [kinds[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def checkpoints(traces: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Checkpoint nodes, one per point of every curve, and (Trace)-[:AT]->(Checkpoint). Those of the
    first curve say how many of their edges each component has, null on the others."""
    parts, ends = [], []
    counts = traces["component_counts"].combine_chunks()
    columns = zip(*(traces[x].to_pylist() for x in ("id", "n_edges", "curves")), strict=True)
    for row, (trace, n_edges, curves) in enumerate(columns):
        for number, curve in enumerate(curves):
            k = np.asarray(curve["k"], np.int64)
            count = len(k)
            ids = [f"{trace}:{number}:{point}" for point in range(count)]
            part = {"id": ids, "curve": np.full(count, number, np.int32), "grid": curve["grid"]}
            part |= {"size": k / n_edges, "n_edges": k}
            for name in KIND_FIELDS:
                part[name] = pa.array([curve[name]] * count, pa.string())
            for name, type_ in _CURVE_FIELDS.items():
                values = curve[name]
                part[name] = pa.nulls(count, type_) if values is None else pa.array(values, type_)
            part["name"] = [f"{edges} edges" for edges in k.tolist()]
            whole = counts[row] if number == 0 else pa.scalar(None, _COUNTS)
            part["component_counts"] = _by_point(whole, count)
            parts.append(pa.table(part))
            ends += [trace] * count
    nodes = pa.concat_tables(parts).combine_chunks()
    return nodes, pa.table({"from": pa.array(ends, pa.string()), "to": nodes["id"]})


def _by_point(counts: pa.Scalar, n_points: int) -> pa.Array:
    """A trace's `component_counts` as one list per point."""
    if not counts.is_valid or n_points == 0:
        return pa.nulls(n_points, _COUNTS)
    values = counts.values  # pyright: ignore[reportAttributeAccessIssue]
    offsets = np.arange(n_points + 1) * (len(values) // n_points)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values).cast(_COUNTS)
