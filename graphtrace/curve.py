"""A reconstruction curve: how well the traces of growing size reproduce the full model.

One trace has a curve per kind of evaluation. Two kinds are never pooled.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

NUCLEUS_PERCENT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
"""Levels of the nucleus, percent of the probability."""


def curve_kind(
    mode: str,
    ablation: str,
    ablate: str,
    reference: str | None = None,
    eval_dtype: str | None = None,
) -> str:
    """`mode:ablation:ablate`, the name of a kind of evaluation; with reference means the ablation
    is `mean@m1234abcd`, and with a pair `counterfactual@p1234abcd`, so that two references, or two
    pairs of an input, are two kinds; where the passes have another dtype
    than the weights, it stands behind: `mode:ablation:ablate:float32`."""
    ablation = ablation if reference is None else f"{ablation}@{reference}"
    computed, other, _ = (eval_dtype or "").partition(" from ")
    return f"{mode}:{ablation}:{ablate}" + (f":{computed}" if other else "")


def pooled_kind(kind: str) -> str:
    """The kind under which curves of several inputs are pooled: of a counterfactual one without its
    pair, which is each input's own."""
    return re.sub("counterfactual@p[0-9a-f]{8}", "counterfactual", kind)


def densities(k: np.ndarray, tv: np.ndarray, n_edges: int) -> tuple[float, float]:
    """`Curve.density` and `Curve.density_normalised` of P points (int64, float64 [P])."""
    k, first = np.unique(k, return_index=True)
    keep = k >= 1
    x, tv = np.log10(k[keep] / n_edges), tv[first[keep]]
    if len(x) < 2:
        return float("nan"), float("nan")
    density = float(np.trapezoid(tv, x))
    return density, density / -x[0]


@dataclass(frozen=True)
class Curve:
    """How well the traces of growing size reproduce the full model's next-token distribution.

    P points, ascending. grid: float64 [P], the sizes asked for; k: int64 [P], edges kept = rank <
    k; tv, kl (nats), p_predicted, p_target, logit_diff: float64 [P]; top1: bool [P]; nucleus:
    int32 [P], the largest p in percent whose top-p token list agrees, 0 for none (method.md 5);
    top_ids int32 [P, 10], top_tokens, top_probs float32 [P, 10]. p_target and logit_diff are None
    without a target and foil. eval_dtype: of the masked passes, `bfloat16`, or `float32 from
    bfloat16` where it is not the weights'. reference: 'm' + 8 hex, the id of the reference means
    of a `mean` ablation; 'p' + 8 hex of the pair's token ids of a `counterfactual` one; None for
    the others.
    """

    n_edges: int
    grid: np.ndarray
    k: np.ndarray
    tv: np.ndarray
    kl: np.ndarray
    top1: np.ndarray
    nucleus: np.ndarray
    p_predicted: np.ndarray
    top_ids: np.ndarray
    top_tokens: list[list[str]]
    top_probs: np.ndarray
    p_target: np.ndarray | None = None
    logit_diff: np.ndarray | None = None
    mode: str = "sufficiency"
    ablation: str = "zero"
    ablate: str = "residual,mlp,attention"
    eval_dtype: str = "float32"
    reference: str | None = None

    @property
    def size(self) -> np.ndarray:
        """float64 [P]: the actual sizes k / |E|."""
        return self.k / self.n_edges

    @property
    def kind(self) -> str:
        """See `curve_kind`."""
        return curve_kind(self.mode, self.ablation, self.ablate, self.reference, self.eval_dtype)

    @cached_property
    def density(self) -> float:
        """Trapezoid of TV over log10(k / |E|), k >= 1; equal k count once (paper, section 4)."""
        return densities(self.k, self.tv, self.n_edges)[0]

    @cached_property
    def density_normalised(self) -> float:
        """`density` over the range of log10 size covered: the mean TV over that range."""
        return densities(self.k, self.tv, self.n_edges)[1]

    def nucleus_size(self, percent: int) -> float:
        """The first size whose top-`percent` nucleus is the full model's; NaN if none is."""
        good = np.flatnonzero(self.nucleus >= percent)
        return float(self.size[good[0]]) if len(good) else float("nan")

    def frame(self) -> pd.DataFrame:
        """One row per point: size, n_edges, tv, kl, top1, nucleus, p_predicted, and p_target and
        logit_diff where there is a target and a foil."""
        columns = {
            "size": self.size,
            "n_edges": self.k,
            "tv": self.tv,
            "kl": self.kl,
            "top1": self.top1,
            "nucleus": self.nucleus,
            "p_predicted": self.p_predicted,
        }
        for name in ("p_target", "logit_diff"):
            if getattr(self, name) is not None:
                columns[name] = getattr(self, name)
        return pd.DataFrame(columns)


_CURVE_ARRAYS = {
    "grid": np.float64,
    "k": np.int64,
    "tv": np.float64,
    "kl": np.float64,
    "top1": bool,
    "nucleus": np.int32,
    "p_predicted": np.float64,
    "p_target": np.float64,
    "logit_diff": np.float64,
    "top_ids": np.int32,
    "top_probs": np.float32,
}


def curve_row(curve: Curve) -> dict[str, Any]:
    """The curve as an entry of the archive's `curves`: lists in place of arrays."""
    row = {key: value for key, value in vars(curve).items() if key in Curve.__dataclass_fields__}
    row.pop("n_edges")
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}


def curve_from_row(row: dict[str, Any], n_edges: int) -> Curve:
    """The curve of an entry of `curves`; n_edges: |E| of its trace."""
    values = dict(row)
    for key, dtype in _CURVE_ARRAYS.items():
        if values[key] is not None:
            values[key] = np.asarray(values[key], dtype)
    return Curve(n_edges=n_edges, **values)


POINT_MEASURES = ("tv", "kl", "top1", "nucleus", "p_predicted", "p_target", "logit_diff")
"""Measures of a curve's points, as columns of `points_frame`."""

KIND_FIELDS = ("mode", "ablation", "ablate", "reference", "eval_dtype")
"""What `curve_kind` is made of."""

POINT_COLUMNS = ("trace", "curve", "kind", "grid", "size", "n_edges", *POINT_MEASURES)
"""Columns of `points_frame`."""


def points_frame(traces: Iterable[tuple[str, int, Iterable[Mapping[str, Any]]]]) -> pd.DataFrame:
    """One row per point of every curve, as sources return them: `POINT_COLUMNS`.

    traces: (id, |E|, entries of the archive's `curves`). trace: id; curve: int64, 0 for the first;
    kind: `curve_kind`; grid: the size asked for; size: n_edges / |E|; n_edges: int64, edges kept;
    the measures are float64, NaN where a curve has none, top1 bool, nucleus int64.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in POINT_COLUMNS}
    for trace, n_edges, curves in traces:
        for number, curve in enumerate(curves):
            k = np.asarray(curve["k"], np.int64)
            kind = curve_kind(**{name: curve[name] for name in KIND_FIELDS})
            parts["trace"].append(np.full(len(k), trace, object))
            parts["curve"].append(np.full(len(k), number, np.int64))
            parts["kind"].append(np.full(len(k), kind, object))
            parts["grid"].append(np.asarray(curve["grid"], np.float64))
            parts["size"].append(k / n_edges)
            parts["n_edges"].append(k)
            for name in POINT_MEASURES:
                values, dtype = curve[name], _POINT_TYPES.get(name, np.float64)
                missing = np.full(len(k), np.nan)
                parts[name].append(missing if values is None else np.asarray(values, dtype))
    types = {"trace": object, "kind": object, "curve": np.int64, "n_edges": np.int64}
    return pd.DataFrame(
        {
            name: np.concatenate(found)
            if found
            else np.zeros(0, types.get(name, _POINT_TYPES.get(name, np.float64)))
            for name, found in parts.items()
        }
    ).astype({"trace": object, "kind": object})


_POINT_TYPES: dict[str, Any] = {"top1": bool, "nucleus": np.int64}
