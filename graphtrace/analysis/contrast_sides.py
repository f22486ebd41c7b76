"""The two sides of a contrast: which traces stand on each, and which of their inputs are pairs.

Each side is read by itself, so each has one settings; nothing here puts traces of both together
but the order of their pairs.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import per_input
from graphtrace.analysis.reading import chosen_traces
from graphtrace.conditions import group_text, values_of
from graphtrace.errors import OptionError
from graphtrace.keywords import check_keywords, shows_keywords
from graphtrace.selection import SETTINGS_COLUMNS, TraceSource, filter_traces, natural

_LISTED = 12


class ContrastWarning(UserWarning):
    """What a contrast leaves out, or what differs between its sides beside the key."""


class SideSelection(TypedDict, total=False):
    """Which traces are read for both sides.

    models: ids or names, all by default. settings: the id of one settings. where: conditions on
    labels of the inputs and columns of `traces` that must all hold, such as `n_tokens>=20`.
    exclude_special: leave out traces of the positions of BOS and template tokens, and edges that
    touch them.
    """

    models: list[str] | None
    settings: str | None
    where: list[str] | None
    exclude_special: bool


SELECTION: SideSelection = {
    "models": None,
    "settings": None,
    "where": None,
    "exclude_special": False,
}
"""Every keyword of `SideSelection` with its default."""

takes_side_selection = shows_keywords(SideSelection, SELECTION)
"""Show `SideSelection` in the signature and docstring of a function that takes it."""


class Side(NamedTuple):
    """One side of one model's contrast.

    value: of the key. traces: rows of `chosen_traces`, in their order. units: what is compared, a
    text per trace: its pair, or its input. n_alone: inputs that are left out, because the other
    side has no partner for them.
    """

    value: str
    traces: pd.DataFrame
    units: list[str]
    n_alone: int

    @property
    def n_inputs(self) -> int:
        """Different inputs."""
        return len(set(self.traces["input"]))

    def means(self, values: np.ndarray) -> np.ndarray:
        """float64 [units, columns] of values [traces, columns]: traces of one input averaged
        first, then the inputs of one unit; units in the order of their names."""
        inputs = self.traces["input"].tolist()
        unit_of = dict(zip(inputs, self.units, strict=True))
        means = per_input([unit_of[x] for x in dict.fromkeys(inputs)], per_input(inputs, values))
        names = list(dict.fromkeys(unit_of.values()))
        return means[sorted(range(len(names)), key=lambda i: (natural(names[i]), names[i]))]


class Block(NamedTuple):
    """What is compared of one model, or of two: `model` is the first side's."""

    model: str
    a: Side
    b: Side
    paired: bool

    @property
    def n_pairs(self) -> int | None:
        """Pairs, None where the sides are independent."""
        return len(set(self.a.units)) if self.paired else None


class Sides(NamedTuple):
    """Both sides: the key, its two values, and one block per model that stands on both."""

    by: str
    values: tuple[str, str]
    blocks: list[Block]

    @property
    def traces(self) -> pd.DataFrame:
        """The traces that are compared, rows of `chosen_traces`."""
        parts = [side.traces for block in self.blocks for side in (block.a, block.b)]
        return pd.concat(parts, ignore_index=True)


def read_sides(
    source: TraceSource,
    by: str,
    between: Sequence[str] | None,
    pair: str | None,
    selection: Mapping[str, Any],
) -> Sides:
    """The traces of a contrast. by, between, pair: see `contrast`; selection: keywords
    of `SideSelection`.

    Warns `ContrastWarning` of what is left out, and where two models were traced with different
    settings. Raises OptionError.
    """
    check_keywords(selection, SELECTION)
    want = {**SELECTION, **selection}
    names = ("models", "settings", "where")
    candidates = filter_traces(source.traces(), *(want[name] for name in names))
    if len(candidates) == 0:
        raise OptionError("there are no traces here yet; run `graphtrace extract` first")
    values = _two_values(candidates, by, between)
    read = []
    for value in values:
        where = [*(want["where"] or []), f"{by}={value}"]
        read.append(chosen_traces(source, want | {"where": where}))
    column = by.removeprefix("trace.")
    if column == by and any(by in labels for labels in candidates["labels"]):
        column = ""  # the label is meant
    _check_settings(values, read, column)
    by_input = pair is None and (
        column in ("model", "settings") or bool(set(read[0]["input"]) & set(read[1]["input"]))
    )
    blocks = []
    for model, a, b in _by_model(values, read, column):
        keys = [_units(own, pair) for own in (a, b)]
        blocks.append(_block(model, values, (a, b), keys, by_input or pair is not None, pair))
    _warn_of_alone(values, blocks)
    return Sides(by, values, blocks)


def _two_values(
    candidates: pd.DataFrame, by: str, between: Sequence[str] | None
) -> tuple[str, str]:
    found = list(map(group_text, values_of(candidates, by)))
    there = sorted(set(found) - {""}, key=natural)
    listed = ", ".join(there[:_LISTED]) or "none"
    more = f" and {len(there) - _LISTED:,} more" if len(there) > _LISTED else ""
    if between is None:
        if len(there) == 2:
            return there[0], there[1]
        if len(there) < 2:
            raise OptionError(
                f"a contrast needs two values of {by}, and these traces have {len(there)} "
                f"({listed}); choose other traces or another key"
            )
        raise OptionError(
            f"{by} has {len(there)} values here ({listed}{more}); pick two with --between, such as "
            f"--between {there[0]},{there[1]}"
        )
    if isinstance(between, str) or len(between) != 2:
        raise OptionError(f"between {between!r} is not two values, such as ('clean', 'corrupt')")
    chosen = [_value(candidates, by, str(value), there) for value in between]
    for value, name in zip(chosen, between, strict=True):
        if value is None:
            raise OptionError(f"no trace where {by} is {name!r}; values here: {listed}{more}")
    if chosen[0] == chosen[1]:
        raise OptionError(f"both sides are {by} {chosen[0]}; give two different values")
    return str(chosen[0]), str(chosen[1])


def _value(candidates: pd.DataFrame, by: str, name: str, there: list[str]) -> str | None:
    """The value that a name means: itself, or the one model of that name."""
    if name in there:
        return name
    if by.removeprefix("trace.") != "model":
        return None
    ids = sorted(set(candidates.loc[candidates["model_name"] == name, "model"]))
    if len(ids) > 1:
        raise OptionError(f"model {name!r} means {', '.join(ids)}; give one of these ids")
    return ids[0] if ids and ids[0] in there else None


def _check_settings(values: tuple[str, str], read: list[pd.DataFrame], column: str) -> None:
    """Two settings stand side by side where the key is one of theirs; two models may differ, and
    say so; groups of inputs may not."""
    settings = [own["settings"].iloc[0] for own in read]
    if settings[0] == settings[1] or column in ("settings", *SETTINGS_COLUMNS):
        return
    what = f"{values[0]} was traced with settings {settings[0]} and {values[1]} with {settings[1]}"
    if column == "model":
        warnings.warn(f"{what}: they differ in more than the model", ContrastWarning, stacklevel=4)
        return
    raise OptionError(
        f"{what}, so that their difference would be that of the settings too; choose one with "
        "--settings ID, or compare the settings with --by settings"
    )


def _by_model(
    values: tuple[str, str], read: list[pd.DataFrame], column: str
) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    a, b = read
    if column == "model":
        yield values[0], a, b
        return
    both = sorted(set(a["model"]) & set(b["model"]))
    if not both:
        raise OptionError(
            f"no model has traces of both {values[0]} ({', '.join(sorted(set(a['model'])))}) and "
            f"{values[1]} ({', '.join(sorted(set(b['model'])))})"
        )
    left_out = sorted(set(a["model"]) ^ set(b["model"]))
    if left_out:
        warnings.warn(
            f"left out, with traces of one side only: {', '.join(left_out)}",
            ContrastWarning,
            stacklevel=4,
        )
    for model in both:
        yield model, *(own.loc[own["model"] == model].reset_index(drop=True) for own in read)


def _units(traces: pd.DataFrame, pair: str | None) -> list[str]:
    """What each trace's input is matched by: the pair's label, '' where it has none, or its name
    and id."""
    if pair is not None:
        return list(map(group_text, values_of(traces, pair)))
    return [
        f"{name} {input_}" for name, input_ in zip(traces["name"], traces["input"], strict=True)
    ]


def _block(
    model: str,
    values: tuple[str, str],
    own: tuple[pd.DataFrame, pd.DataFrame],
    keys: list[list[str]],
    paired: bool,
    pair: str | None,
) -> Block:
    common = set(keys[0]) & set(keys[1]) - {""}
    if paired and not common:
        shown = [", ".join(sorted(set(k) - {""}, key=natural)[:5]) or "none" for k in keys]
        key = f"value of {pair}" if pair is not None else "input"
        raise OptionError(
            f"no {key} is on both sides of {model}: {values[0]} has {shown[0]}, {values[1]} has "
            f"{shown[1]}" + ("; without --pair the sides are independent groups" if pair else "")
        )
    sides = []
    for value, traces, units in zip(values, own, keys, strict=True):
        keep = [not paired or unit in common for unit in units]
        kept = traces.loc[keep].reset_index(drop=True)
        n_alone = len(set(traces["input"])) - len(set(kept["input"]))
        left = [unit for unit, stays in zip(units, keep, strict=True) if stays]
        sides.append(Side(value, kept, left, n_alone))
    return Block(model, *sides, paired=paired)


def _warn_of_alone(values: tuple[str, str], blocks: list[Block]) -> None:
    alone = [sum(x.a.n_alone for x in blocks), sum(x.b.n_alone for x in blocks)]
    if any(alone):
        n_pairs = sum(block.n_pairs or 0 for block in blocks)
        warnings.warn(
            f"{alone[0]:,} input{'' if alone[0] == 1 else 's'} of {values[0]} and {alone[1]:,} of "
            f"{values[1]} have no partner on the other side and are left out; {n_pairs:,} pairs "
            "are compared",
            ContrastWarning,
            stacklevel=4,
        )
