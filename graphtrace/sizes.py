"""Trace sizes: `0.001` (a fraction of |E|), `k:500` (edges), `tv:0.2` (what a quality costs).

A fraction means other edge counts at other input lengths, since |E| grows with the square of the
length; results therefore always carry the number of edges.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphtrace.errors import SizeError

# fmt: off
SIZE_GRID: tuple[float, ...] = (
    1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 1.2e-3, 1.4e-3, 2e-3, 3e-3, 4e-3, 6e-3,
    8e-3, 1e-2, 2e-2, 4e-2, 6e-2, 8e-2, 0.1, 0.2, 0.4, 0.6, 0.8,
)
# fmt: on
"""The 26 sizes of the paper's curves; 1 is always added."""


class ShortTraceWarning(UserWarning):
    """A size keeps fewer edges than one complete path from an embedding to the output."""


@dataclass(frozen=True)
class Size:
    """A trace size as asked for; `edges` says how many edges it means for one input."""

    rule: Literal["fraction", "k", "tv"]
    value: float

    def __str__(self) -> str:
        return f"{self.value:g}" if self.rule == "fraction" else f"{self.rule}:{self.value:g}"

    def edges(self, n_edges: int, curve_k=None, curve_tv=None) -> int:
        """Edges of the trace of this size.

        n_edges: |E|. curve_k, curve_tv: the reconstruction curve, needed for `tv:` only.

        Raises SizeError where a curve is needed and missing, or never gets as low.
        """
        if self.rule == "fraction":
            return min(math.floor(self.value * n_edges), n_edges)
        if self.rule == "k":
            if self.value > n_edges:
                raise SizeError(f"size {self} is more than the {n_edges:,} edges of this graph")
            return int(self.value)
        if curve_k is None or curve_tv is None:
            raise SizeError(f"size {self} needs a reconstruction curve, and this trace has none")
        good = np.flatnonzero(np.asarray(curve_tv) <= self.value)
        if len(good) == 0:
            raise SizeError(f"size {self}: no size of the curve has so low a TV")
        return int(np.asarray(curve_k)[good].min())


def parse_size(size: "Size | float | str") -> Size:
    """Read a SIZE: a fraction in (0, 1], `k:N` with N >= 1, or `tv:X` with X in [0, 1].

    Raises SizeError naming the value and the three forms.
    """
    if isinstance(size, Size):
        return size
    text = str(size).strip()
    rule, _, number = text.rpartition(":")
    try:
        value = float(number)
        if rule == "" and 0 < value <= 1:
            return Size("fraction", value)
        if rule == "k" and value >= 1 and value == int(value):
            return Size("k", value)
        if rule == "tv" and 0 <= value <= 1:
            return Size("tv", value)
    except (ValueError, OverflowError):
        pass
    raise SizeError(
        f"size {text!r} is none of: a fraction of all edges in (0, 1] such as 0.001, a number of "
        "edges such as k:500, or a quality such as tv:0.2"
    )


def warn_if_short(n_kept: int, path_length: int, stacklevel: int = 3) -> None:
    """Warn where `n_kept` edges cannot hold one complete path from an embedding to the output."""
    if n_kept < path_length:
        warnings.warn(
            f"{n_kept} edges are fewer than the {path_length} of one complete path from an "
            "embedding to the output; take a larger size",
            ShortTraceWarning,
            stacklevel=stacklevel,
        )
