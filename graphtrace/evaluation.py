"""How well the traces of growing size reproduce the full next-token distribution (method.md 4, 5).

Every edge carries the bucket of the first grid point that contains it, so the mask of point p is
`bucket <= p`; the points are evaluated as one batch of masked forward passes, everything
downstream recomputed on the masked states.

Shape suffixes: P grid points, E edges, V vocabulary, the others as in forward.py.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from graphtrace.edges import unflatten_edges
from graphtrace.errors import OptionError
from graphtrace.forward import LayerMask, next_token_logits, run_layers
from graphtrace.layout import GraphLayout
from graphtrace.models import TracedModel
from graphtrace.scoring import Scores

NUCLEUS_PERCENT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
N_TOP = 10
"""Most probable tokens that are kept with the full model and with every point."""

MASK_BYTES = 256 * 2**20
"""Room for the largest per-layer tensors of the points that are evaluated together."""


class Agreement(NamedTuple):
    """One distribution q against the reference p, both over the vocabulary.

    tv: fraction; kl: KL(p||q) in nats; top1: the same most probable token; nucleus: percent, see
    `nucleus_agreement`; p_predicted: q of p's most probable token.
    """

    tv: float
    kl: float
    top1: bool
    nucleus: int
    p_predicted: float


def check_sizes(sizes) -> np.ndarray:
    """The grid as float64, ascending, without duplicates, and with 1 added.

    Raises OptionError for a size outside (0, 1].
    """
    grid = np.unique(np.asarray([*sizes, 1.0], np.float64))
    if not (np.isfinite(grid).all() and grid[0] > 0 and grid[-1] <= 1):
        raise OptionError(f"sizes are fractions of all edges in (0, 1]; got {list(sizes)}")
    return grid


def kept_edges(grid_P: np.ndarray, n_edges: int) -> np.ndarray:
    """int64 [P]: k(s) = floor(s |E|) in float64 (method.md 3)."""
    return np.floor(grid_P * n_edges).astype(np.int64)


def edge_buckets(rank_E: np.ndarray, k_P: np.ndarray) -> np.ndarray:
    """uint8 [E]: the first grid point whose trace holds the edge."""
    assert len(k_P) < 255
    return np.searchsorted(k_P, rank_E, side="right").astype(np.uint8)


class BucketMasks:
    """Masks of a range of grid points, made layer by layer from the edges' buckets."""

    def __init__(self, buckets: Scores, points: np.ndarray, model: TracedModel) -> None:
        self.buckets = buckets
        self.points_B = torch.as_tensor(points.astype(np.int16), device=model.device)
        self.device, self.dtype = model.device, model.dtype

    def __call__(self, layer: int) -> LayerMask:
        buckets = self.buckets
        return LayerMask(
            residual_mid_BT=self._mask(buckets.residual_GT[2 * layer]),
            attention_BHTS=self._mask(buckets.attention_LHTS[layer]),
            mlp_BT=self._mask(buckets.mlp_LT[layer]),
            residual_post_BT=self._mask(buckets.residual_GT[2 * layer + 1]),
        )

    def _mask(self, bucket: np.ndarray) -> torch.Tensor:
        bucket_t = torch.as_tensor(bucket, device=self.device)[None]
        points = self.points_B.view(-1, *[1] * bucket.ndim)
        return (bucket_t <= points).to(self.dtype)


def masked_logits(
    model: TracedModel, ids_T: torch.Tensor, layout: GraphLayout, rank_E: np.ndarray, k_P
) -> torch.Tensor:
    """float32 logits [P, V] of the traces of the first k edges, for every k.

    Equal k are evaluated once.
    """
    k_P = np.asarray(k_P, np.int64)
    distinct, back = np.unique(k_P, return_inverse=True)
    buckets = unflatten_edges(layout, edge_buckets(rank_E, distinct), 255)
    ids_1T = ids_T[None].to(model.device)
    logits = []
    for points in np.array_split(np.arange(len(distinct)), _n_chunks(model, layout, len(distinct))):
        masks = BucketMasks(buckets, points, model)
        state_BTD = run_layers(model, ids_1T.expand(len(points), -1), masks=masks)
        logits.append(next_token_logits(model, state_BTD))
    return torch.cat(logits)[torch.as_tensor(back, device=logits[0].device)]


def _n_chunks(model: TracedModel, layout: GraphLayout, n_points: int) -> int:
    n_tokens = layout.n_tokens
    widest = getattr(model.config, "intermediate_size", 4 * model.d_model)
    per_point = 4 * max(3 * layout.n_heads * n_tokens**2, n_tokens * (2 * widest + model.d_model))
    return min(n_points, math.ceil(n_points * per_point / MASK_BYTES))


def compare(log_p_V: np.ndarray, log_q_V: np.ndarray) -> Agreement:
    """How much q agrees with p; float64 log-probabilities over the vocabulary."""
    p_V, q_V = np.exp(log_p_V), np.exp(log_q_V)
    predicted = int(p_V.argmax())
    return Agreement(
        tv=float(0.5 * np.abs(p_V - q_V).sum()),
        kl=float((p_V * (log_p_V - log_q_V)).sum()),
        top1=bool(q_V.argmax() == predicted),
        nucleus=nucleus_agreement(p_V, q_V),
        p_predicted=float(q_V[predicted]),
    )


def nucleus_agreement(p_V: np.ndarray, q_V: np.ndarray) -> int:
    """The largest percentage in NUCLEUS_PERCENT whose top-p token list is the same, in the same
    order, in both distributions, each with its own probabilities; 0 where none is.

    A top-p list holds the most probable tokens (ties by token id) up to and with the one that
    brings their sum to p.
    """
    order_p, order_q = (np.argsort(-x, kind="stable") for x in (p_V, q_V))
    differs = np.flatnonzero(order_p != order_q)
    same = differs[0] if len(differs) else len(p_V)
    share = np.array(NUCLEUS_PERCENT) / 100
    length_p, length_q = (
        np.searchsorted(np.cumsum(x[order]), share) + 1
        for x, order in ((p_V, order_p), (q_V, order_q))
    )
    agrees = (length_p == length_q) & (np.minimum(length_p, len(p_V)) <= same)
    return int(np.array(NUCLEUS_PERCENT)[agrees].max(initial=0))


def log_probabilities(logits_PV: torch.Tensor) -> np.ndarray:
    """float64 log-softmax of float32 logits."""
    return torch.log_softmax(logits_PV.double(), dim=-1).cpu().numpy()


def top_tokens(log_p_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most probable tokens, ties by id: ids int32 [10] and probabilities float32 [10]."""
    ids = np.argsort(-log_p_V, kind="stable")[:N_TOP]
    return ids.astype(np.int32), np.exp(log_p_V[ids]).astype(np.float32)


def entropy(log_p_V: np.ndarray) -> float:
    """Entropy in nats."""
    return float(-(np.exp(log_p_V) * log_p_V).sum())
