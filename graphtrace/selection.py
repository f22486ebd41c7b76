"""Which traces are meant: by one name, by a filter, and never two settings pooled."""

import difflib
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import pandas as pd

from graphtrace.errors import OptionError, TraceNotFoundError
from graphtrace.sizes import Size
from graphtrace.subgraph import SubGraph


class TraceSource(Protocol):
    """What analyses and exports read from: an archive or a store."""

    def traces(self) -> pd.DataFrame:
        """One row per complete trace, columns `schema.TRACES_COLUMNS`."""
        ...

    def subgraph(self, trace: str, size: Size | float | str = 1.0) -> SubGraph:
        """The trace (by id) of the given size. Raises TraceNotFoundError, SizeError."""
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
    """The traces of the given models (ids or names), settings and labels (`key=value`, all must
    hold; a column of `traces` counts as a key too). Raises OptionError where nothing matches."""
    found = traces
    for model in models or []:
        if model not in {*found["model"], *found["model_name"]}:
            known = ", ".join(sorted(set(traces["model_name"]))) or "none"
            raise OptionError(f"no trace of model {model!r}; models here: {known}")
    if models:
        found = found.loc[found["model"].isin(models) | found["model_name"].isin(models)]
    if settings is not None:
        if settings not in set(found["settings"]):
            known = ", ".join(sorted(set(found["settings"]))) or "none"
            raise OptionError(f"no trace with settings {settings!r}; settings here: {known}")
        found = found.loc[found["settings"] == settings]
    for condition in where or []:
        key, equals, value = condition.partition("=")
        if not equals:
            raise OptionError(f"--where {condition!r} is not of the form key=value")
        if key in found.columns:
            found = found.loc[found[key].astype(str) == value]
        else:
            found = found.loc[[labels.get(key) == value for labels in found["labels"]]]
        if len(found) == 0:
            keys = sorted({key for labels in traces["labels"] for key in labels})
            raise OptionError(
                f"no trace where {condition}; labels here: {', '.join(keys) or 'none'}"
            )
    return found


def select_traces(
    traces: pd.DataFrame,
    models: list[str] | None = None,
    settings: str | None = None,
    where: list[str] | None = None,
) -> pd.DataFrame:
    """`filter_traces` for what is computed over several traces.

    Raises OptionError where nothing matches, or where what is left mixes several settings, since
    numbers of two settings must not be pooled; the message lists them with their counts.
    """
    found = filter_traces(traces, models, settings, where)
    columns = [found[name] for name in ("settings", "scorer", "search", "dtype")]
    kinds = Counter(zip(*columns, strict=True))
    if len({settings_id for settings_id, *_ in kinds}) > 1:
        listed = "; ".join(f"{'/'.join(key)}: {n}" for key, n in sorted(kinds.items()))
        raise OptionError(
            f"these traces mix several settings ({listed}); choose one with --settings"
        )
    return found


def check_curves(traces: pd.DataFrame) -> None:
    """Raise OptionError where the first curves of `traces` (rows of `traces()`) are of several
    kinds, listing them with their counts: densities and `tv:` sizes are of the first curve, and
    those of two kinds must not be pooled."""
    check_kinds(traces["curve"])


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise OptionError where `kinds` of curves, one a trace, are several."""
    counts = Counter(kinds)
    if len(counts) > 1:
        listed = "; ".join(f"{kind}: {n}" for kind, n in sorted(counts.items()))
        raise OptionError(
            f"these traces' first curves are of several kinds ({listed}), which are not pooled; "
            "choose one with --where curve=KIND"
        )
