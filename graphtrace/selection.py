"""Which traces are meant: by one name, by a filter, and never two settings pooled."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Protocol

import pandas as pd

from graphtrace.conditions import group_text, matching, parse_condition, values_of
from graphtrace.curve import pooled_kind
from graphtrace.errors import OptionError, TraceNotFoundError
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph

SETTINGS_COLUMNS = (
    "scorer",
    "search",
    "dtype",
    "seed",
    "position_rule",
    "target_rule",
    "method",
)
"""Columns of `traces()` that settings are made of (`traces.Settings`)."""


class TraceSource(Protocol):
    """What analyses and exports read from: an archive or a store."""

    def traces(self) -> pd.DataFrame:
        """One row per complete trace, columns `schema.TRACES_COLUMNS`."""
        ...

    def subgraph(self, trace: str, size: Size | float | str = 1.0) -> SubGraph:
        """The trace (by id) of the given size. Raises TraceNotFoundError, SizeError."""
        ...

    def curve_points(self, traces: Collection[str]) -> pd.DataFrame:
        """Every point of every curve of these traces (ids): `curve.POINT_COLUMNS`, traces in the
        order given, the first curve first, points by size."""
        ...

    def trace_tokens(self, traces: Collection[str]) -> pd.DataFrame:
        """One row per trace (ids, in the order given): trace, token_ids, tokens, special (lists
        over the whole text), predicted_id."""
        ...

    def component_counts(self, traces: Collection[str]) -> pd.DataFrame:
        """One row per trace and point of its first curve: trace, n_edges (the edges kept), counts
        (int64 array, one number per component of the model in the order of `schema.components`).
        Traces for which the source does not know them are left out."""
        ...


def resolve_trace(traces: pd.DataFrame, name: str) -> str:
    """The id of the one trace that `name` means.

    name: an id, a unique prefix of one, an input's name, `last` (the newest), or `model:input
    name`. Raises TraceNotFoundError; where several match, its message lists them.
    """
    if len(traces) == 0:
        raise TraceNotFoundError("there are no traces here yet; run `graphtrace extract` first")
    if name == "last":
        return str(traces.sort_values(["created", "id"])["id"].to_numpy()[-1])
    model, colon, rest = name.partition(":")
    in_model = (traces["model"] == model) | (traces["model_name"] == model)
    for found in (
        traces.loc[traces["id"] == name],
        traces.loc[traces["name"] == name],
        traces.loc[in_model & (traces["name"] == rest) & bool(colon)],
        traces.loc[traces["id"].str.startswith(name) & (len(name) >= 2)],
    ):
        if len(found) == 1:
            return str(found["id"].to_numpy()[0])
        if len(found) > 1:
            listed = ", ".join(
                f"{row['id']} ({row['name']}, {row['model_name']}, settings {row['settings']})"
                for row in found.head(8).to_dict("records")
            )
            more = f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise TraceNotFoundError(
                f"{name!r} means {len(found)} traces: {listed}{more}; give an id"
            )
    near = difflib.get_close_matches(name, [*traces["name"], *traces["id"]], n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "`graphtrace traces` lists them"
    raise TraceNotFoundError(f"no trace {name!r} among {len(traces):,}; {hint}")


def filter_traces(
    traces: pd.DataFrame,
    models: list[str] | None = None,
    settings: str | None = None,
    where: list[str] | None = None,
) -> pd.DataFrame:
    """The traces of the given models (ids or names) and settings for which every condition of
    `where` holds (`key=value`, see `conditions`). Raises OptionError where nothing matches."""
    found = traces
    for model in models or []:
        if model not in {*found["model"], *found["model_name"]}:
            known = ", ".join(sorted(set(traces["model_name"]))) or "none"
            raise OptionError(f"no trace of model {model!r}; models here: {known}")
    if models:
        found = found.loc[found["model"].isin(models) | found["model_name"].isin(models)]
    if settings is not None:
        if settings not in set(found["settings"]):
            known = "; ".join(describe_settings(found)) or "none"
            raise OptionError(f"no trace with settings {settings!r}; settings here: {known}")
        found = found.loc[found["settings"] == settings]
    for condition in where or []:
        found = matching(found, parse_condition(condition))
    return found


def select_traces(
    traces: pd.DataFrame,
    models: list[str] | None = None,
    settings: str | None = None,
    where: list[str] | None = None,
    option: str = "--settings ID",
) -> pd.DataFrame:
    """`filter_traces` for what is computed over several traces.

    option: how the caller takes one settings id, for the message. Raises OptionError where nothing
    matches, or where what is left mixes several settings, since numbers of two settings must not be
    pooled; the message lists them with what differs and their counts.
    """
    found = filter_traces(traces, models, settings, where)
    if len(set(found["settings"])) > 1:
        raise OptionError(
            f"these traces mix several settings, which are not pooled: "
            f"{'; '.join(describe_settings(found))}; choose one with {option}"
        )
    return found


def count_traces(traces: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row per combination of the values of these labels or columns, in their order: the keys,
    n_traces, n_inputs, models (names) and settings (ids), the last two as text. Raises OptionError
    for a key that is neither."""
    keys = {key.removeprefix("trace."): list(map(group_text, values_of(traces, key))) for key in by}
    rows = []
    for values in sorted(set(zip(*keys.values(), strict=True)), key=lambda x: [*map(natural, x)]):
        keep = [x == values for x in zip(*keys.values(), strict=True)]
        own = traces.loc[keep]
        rows.append(
            {
                **dict(zip(keys, values, strict=True)),
                "n_traces": len(own),
                "n_inputs": own["input"].nunique(),
                "models": ", ".join(sorted(set(own["model_name"]))),
                "settings": ", ".join(sorted(set(own["settings"]))),
            }
        )
    counted = ["n_traces", "n_inputs", "models", "settings"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*keys, *counted])))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key in which digits are numbers, `line-2` before `line-10`: text and digits take
    turns, so like compares with like."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def settings_table(traces: pd.DataFrame) -> pd.DataFrame:
    """One row per settings, those with most traces first: settings (the id), what they are
    (`SETTINGS_COLUMNS`), n_traces, n_inputs, models (names) and curves (kinds of the first curves
    of their traces), the last two as text."""
    rows = []
    for settings, own in traces.groupby("settings", sort=True):
        first = own.iloc[0]
        rows.append(
            {
                "settings": settings,
                **{name: first[name] for name in SETTINGS_COLUMNS},
                "n_traces": len(own),
                "n_inputs": own["input"].nunique(),
                "models": ", ".join(sorted(set(own["model_name"]))),
                "curves": ", ".join(sorted({kind for kind in own["curve"] if kind is not None})),
            }
        )
    names = ["settings", *SETTINGS_COLUMNS, "n_traces", "n_inputs", "models", "curves"]
    frame = pd.DataFrame(rows, columns=names).astype({"seed": "Int64"})
    return frame.sort_values("n_traces", ascending=False, kind="stable", ignore_index=True)


def describe_settings(traces: pd.DataFrame) -> list[str]:
    """Every settings of the traces in a few words, with what differs between them:
    `s3fa (scorer l1: 24 traces)`."""
    table = settings_table(traces)
    differ = [x for x in SETTINGS_COLUMNS if len(set(map(str, table[x].tolist()))) > 1]
    described = []
    for row in table.to_dict("records"):
        n = row["n_traces"]
        what = ", ".join(f"{x} {'none' if pd.isna(row[x]) else row[x]}" for x in differ)
        count = f"{n:,} trace{'' if n == 1 else 's'}"
        described.append(f"{row['settings']} ({what}{': ' if what else ''}{count})")
    return described


def check_curves(traces: pd.DataFrame) -> None:
    """Raise OptionError where the first curves of `traces` (rows of `traces()`) are of several
    kinds, listing them with their counts: densities and `tv:` sizes are of the first curve, and
    those of two kinds must not be pooled."""
    check_kinds(traces["curve"])


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise OptionError where `kinds` of curves, one a trace, are several; whose pair an edge's
    counterfactual comes from does not count."""
    counts = Counter(map(pooled_kind, kinds))
    if len(counts) > 1:
        listed = "; ".join(f"{kind}: {n}" for kind, n in sorted(counts.items()))
        raise OptionError(
            f"these traces' first curves are of several kinds ({listed}), which are not pooled; "
            "choose one with --where curve=KIND"
        )
