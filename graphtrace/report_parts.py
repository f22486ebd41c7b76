"""What the parts of a report share: the study they are over, and how they name and print it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from graphtrace.report_page import shown_value
from graphtrace.selection import TraceSource
from graphtrace.sizes import Size


@dataclass(frozen=True)
class Study:
    """What a report is over. traces: rows of `chosen_traces`; selection: keywords of the analyses,
    settings always named."""

    source: TraceSource
    traces: pd.DataFrame
    selection: dict[str, Any]
    size: Size
    draws: int
    seed: int
    workers: int
    progress: bool
    _known: dict[Any, Any] = field(default_factory=dict)

    @property
    def drawn(self) -> dict[str, Any]:
        """Keywords of an analysis that bootstraps."""
        return {**self.selection, "draws": self.draws, "seed": self.seed}

    @property
    def passes(self) -> dict[str, Any]:
        """Keywords of an analysis that measures single traces."""
        return {"workers": self.workers, "progress": self.progress}

    def once(self, analysis: Callable[..., Any], **options: Any) -> Any:
        """What a bootstrapping analysis returns, computed once for all parts that need it."""
        if analysis not in self._known:
            self._known[analysis] = analysis(self.source, **options, **self.drawn)
        return self._known[analysis]


def name_of(row: dict[str, Any], keys: list[str]) -> str:
    """A model and its group in words: `demo`, `demo, group clean`."""
    model = str(row["model"]).partition("@")[0]
    groups = [f"{key} {row[key] or 'none'}" for key in keys if key != "model"]
    return ", ".join([model, *groups])


def keys_of(frame: pd.DataFrame, before: str) -> list[str]:
    """The columns that name a row's model and group: those in front of `before`."""
    return [str(name) for name in frame.columns[: frame.columns.get_loc(before)]]


def with_interval(row: dict[str, Any], name: str) -> str:
    """`0.43 [0.41, 0.45]`."""
    value, low, high = (shown_value(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value or 'no value'} [{low}, {high}]" if low and high else value or "no value"


def percent(share: float) -> str:
    """`43%`, or that there is no value."""
    return "no value" if share != share else f"{share:.0%}"
