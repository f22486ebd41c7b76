"""Which rows of nested evaluations differ from the evaluation before: the others are reused.

A row is the state of one token in one evaluation. Evaluations of growing traces share most rows: a
state changes only where an edge into it is newly kept (or newly dropped), or where what a kept edge
carries has changed; an attention edge also reads every key that its query sees. All is planned
from the edges' buckets before the model runs (performance: method.md 4, "as one batch").

Shape suffixes: P evaluations in order, L layers, H heads, T target and S source tokens.
"""

from typing import NamedTuple

import numba
import numpy as np

from graphtrace.masks import NO_EDGE
from graphtrace.scoring import Scores


class LayerPlan(NamedTuple):
    """What one layer computes anew, and what is kept. bool [P, T].

    state, mid, out: the state in front of the block, behind attention (None in parallel blocks) and
    behind the block differs from that of the evaluation before. attention, mlp: outputs that are
    computed; has_attention, has_mlp: those that an edge keeps. has_residual_mid, has_residual:
    kept residual edges into mid (None in parallel blocks) and into out.
    """

    state_PT: np.ndarray
    attention_PT: np.ndarray
    has_attention_PT: np.ndarray
    has_residual_mid_PT: np.ndarray | None
    mid_PT: np.ndarray | None
    mlp_PT: np.ndarray
    has_mlp_PT: np.ndarray
    has_residual_PT: np.ndarray
    out_PT: np.ndarray


@numba.njit(cache=True, nogil=True)
def _attention_changes(bucket_HTS, window, n_points, changed_PT, first_T, last_T):
    """Where a target's kept attention edges change; first and last bucket of each target."""
    n_heads, n_tokens = bucket_HTS.shape[0], bucket_HTS.shape[1]
    for t in range(n_tokens):
        first, last = n_points, -1
        for head in range(n_heads):
            for s in range(max(0, t + 1 - window), t + 1):
                bucket = np.int64(bucket_HTS[head, t, s])
                if bucket >= n_points:
                    continue
                changed_PT[bucket, t] = True
                first, last = min(first, bucket), max(last, bucket)
        first_T[t], last_T[t] = first, last


def plan_layers(
    buckets: Scores,
    n_points: int,
    windows: list[int],
    necessity: bool,
    ablate: tuple[str, ...],
    every_target: bool = False,
) -> list[LayerPlan]:
    """The plan of every layer.

    buckets: uint8 per edge, the first evaluation that contains it; at least n_points where there
    is no edge. windows: keys that a query sees, by layer. every_target: targets without a kept
    attention edge are computed too (the o_proj bias stays with the mean ablation).
    """
    n_layers, n_tokens = buckets.mlp_LT.shape
    parallel = len(buckets.residual_GT) == n_layers
    points = np.arange(n_points)[:, None]
    start = points == 0

    def direct(kind: str, bucket_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether an edge is kept, and whether that changes, [P, T]."""
        always = kind not in ablate or (necessity and kind == "residual")
        if always:
            return np.ones((n_points, n_tokens), bool), np.broadcast_to(start, (n_points, n_tokens))
        inside = bucket_T[None] <= points
        kept = ~inside & (bucket_T < NO_EDGE) if necessity else inside
        return kept, np.diff(kept, axis=0, prepend=~kept[:1])

    state_PT = np.broadcast_to(start, (n_points, n_tokens))
    found = []
    for layer in range(n_layers):
        kept_attention, attention_changes = _attention(
            buckets.attention_LHTS[layer],
            windows[layer],
            n_points,
            necessity,
            "attention" in ablate,
        )
        if every_target:
            kept_attention = np.ones_like(kept_attention)
        seen_changes = _any_seen(state_PT, windows[layer])
        attention_PT = kept_attention & (attention_changes | seen_changes | start)
        # A target that loses its last edge changes without anything to compute.
        added_changes = attention_PT | attention_changes
        residual = buckets.residual_GT[layer if parallel else 2 * layer]
        kept, changes = direct("residual", residual)
        mid_PT = start | added_changes | changes | (kept & state_PT)
        has_mlp, mlp_changes = direct("mlp", buckets.mlp_LT[layer])
        read = state_PT if parallel else mid_PT
        mlp_PT = has_mlp & (read | mlp_changes | start)
        plan = LayerPlan(
            state_PT=state_PT,
            attention_PT=attention_PT,
            has_attention_PT=kept_attention,
            has_residual_mid_PT=None if parallel else kept,
            mid_PT=None if parallel else mid_PT,
            mlp_PT=mlp_PT,
            has_mlp_PT=has_mlp,
            has_residual_PT=kept,
            out_PT=mid_PT | mlp_PT | mlp_changes,
        )
        if not parallel:
            kept, changes = direct("residual", buckets.residual_GT[2 * layer + 1])
            out_PT = start | mlp_PT | mlp_changes | changes | (kept & mid_PT)
            plan = plan._replace(has_residual_PT=kept, out_PT=out_PT)
        found.append(plan)
        state_PT = plan.out_PT
    return found


def _attention(bucket_HTS, window, n_points, necessity, ablated):
    """(targets that keep an attention edge, targets whose kept edges change), bool [P, T]."""
    n_tokens = bucket_HTS.shape[1]
    changed_PT = np.zeros((n_points, n_tokens), np.bool_)
    if not ablated:
        return np.ones_like(changed_PT), changed_PT
    first_T, last_T = np.empty(n_tokens, np.int64), np.empty(n_tokens, np.int64)
    _attention_changes(bucket_HTS, window, n_points, changed_PT, first_T, last_T)
    points = np.arange(n_points)[:, None]
    if not necessity:
        return points >= first_T, changed_PT
    # Edges that no evaluation reaches stay kept: their bucket is n_points where they exist at all.
    exists = (bucket_HTS != NO_EDGE).any(axis=(0, 2))
    beyond = ((bucket_HTS >= n_points) & (bucket_HTS != NO_EDGE)).any(axis=(0, 2))
    return exists & ((points < last_T) | beyond), changed_PT


def _any_seen(state_PT: np.ndarray, window: int) -> np.ndarray:
    """Whether any state that a target's query sees differs, [P, T]."""
    count = np.cumsum(state_PT, axis=1)
    count[:, window:] -= np.cumsum(state_PT, axis=1)[:, :-window]
    return count > 0


def row_places(changed_PT: np.ndarray, has_PT: np.ndarray | None = None) -> np.ndarray:
    """int64 [P, T]: the place of each row among the changed ones, those of `np.flatnonzero`; the
    place behind the last where `has_PT` says that there is nothing."""
    place_PT = np.cumsum(changed_PT.ravel()).reshape(changed_PT.shape) - 1
    found_PT = place_PT[latest(changed_PT), np.arange(changed_PT.shape[1])]
    return found_PT if has_PT is None else np.where(has_PT, found_PT, np.count_nonzero(changed_PT))


def latest(changed_PT: np.ndarray) -> np.ndarray:
    """int64 [P, T]: the last evaluation up to this one in which the row changed; -1 for none."""
    points_P1 = np.arange(len(changed_PT))[:, None]
    return np.maximum.accumulate(np.where(changed_PT, points_P1, -1), axis=0)
