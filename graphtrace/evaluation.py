"""How well the traces of growing size reproduce the full next-token distribution (method.md 4, 5).

Every edge carries the bucket of the first grid point that contains it, so the mask of point p is
`bucket <= p`; the points are evaluated as one batch of masked forward passes, everything
downstream recomputed on the masked states.

Shape suffixes: P grid points, E edges, V vocabulary, the others as in forward.py.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from graphtrace.curve import curve_kind
from graphtrace.edges import unflatten_edges
from graphtrace.errors import ModelMemoryError, NonFiniteError, OptionError
from graphtrace.forward import ABLATIONS, LayerMask, run_model
from graphtrace.layout import GraphLayout
from graphtrace.models import TracedModel
from graphtrace.reference_means import ReferenceMeans
from graphtrace.schema import KINDS
from graphtrace.scoring import Scores

NUCLEUS_PERCENT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
N_TOP = 10
"""Most probable tokens that are kept with the full model and with every point."""

NO_EDGE = 255
"""Bucket of places in the tensors where the graph has no edge."""

MASK_BYTES = 256 * 2**20
"""Room for the largest per-layer tensors of the points that are evaluated together."""


MODES = ("sufficiency", "necessity")


@dataclass(frozen=True)
class Evaluation:
    """One way to measure traces (method.md 4).

    mode: `sufficiency` keeps the trace; `necessity` drops its attention and MLP edges and keeps
    every residual. ablation: what a dropped edge contributes: `zero` nothing; `renormalise`
    nothing, attention masked before its softmax; `mean` what `means` says. ablate: the kinds that
    are masked at all. Raises OptionError.
    """

    mode: str = "sufficiency"
    ablation: str = "zero"
    ablate: tuple[str, ...] = KINDS
    means: ReferenceMeans | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if self.ablation not in ABLATIONS:
            raise OptionError(f"ablation {self.ablation!r} is none of {', '.join(ABLATIONS)}")
        asked = tuple(self.ablate)
        if not asked or not set(asked) <= set(KINDS):
            raise OptionError(
                f"ablate {','.join(asked)!r} is not a list of kinds out of {','.join(KINDS)}"
            )
        object.__setattr__(self, "ablate", tuple(kind for kind in KINDS if kind in asked))
        if self.mode == "necessity" and self.ablate == ("residual",):
            raise OptionError("necessity keeps every residual edge; ablate mlp or attention")
        if (self.ablation == "mean") != (self.means is not None):
            raise OptionError(
                "the mean ablation and reference means belong together: make the means with "
                "`graphtrace reference-means` and give both"
            )

    @property
    def kind(self) -> str:
        """The kind of its curves, as Curve.kind."""
        reference = self.means.id if self.means else None
        return curve_kind(self.mode, self.ablation, ",".join(self.ablate), reference)


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
    assert len(k_P) < NO_EDGE
    return np.searchsorted(k_P, rank_E, side="right").astype(np.uint8)


class BucketMasks:
    """Masks of a range of grid points, made layer by layer from the edges' buckets."""

    def __init__(
        self,
        buckets: Scores,
        points: np.ndarray,
        model: TracedModel,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.buckets = buckets
        self.points_B = torch.as_tensor(points.astype(np.int16), device=model.device)
        self.device, self.dtype, self.parallel = model.device, model.dtype, model.parallel
        self.evaluation = evaluation or Evaluation()

    def __call__(self, layer: int) -> LayerMask:
        buckets = self.buckets
        residual = buckets.residual_GT
        return LayerMask(
            attention_BHTS=self._mask("attention", buckets.attention_LHTS[layer]),
            mlp_BT=self._mask("mlp", buckets.mlp_LT[layer]),
            residual_BT=self._mask("residual", residual[layer if self.parallel else 2 * layer + 1]),
            residual_mid_BT=None if self.parallel else self._mask("residual", residual[2 * layer]),
        )

    def _mask(self, kind: str, bucket: np.ndarray) -> torch.Tensor:
        necessity = self.evaluation.mode == "necessity"
        if kind not in self.evaluation.ablate or (necessity and kind == "residual"):
            shape = (len(self.points_B), *bucket.shape)
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        bucket_t = torch.as_tensor(bucket, device=self.device)[None]
        inside = bucket_t <= self.points_B.view(-1, *[1] * bucket.ndim)
        kept = ~inside & (bucket_t != NO_EDGE) if necessity else inside
        return kept.to(self.dtype)


def masked_logits(
    model: TracedModel,
    ids_T: torch.Tensor,
    layout: GraphLayout,
    rank_E: np.ndarray,
    k_P,
    evaluation: Evaluation | None = None,
) -> torch.Tensor:
    """float32 logits [P, V] of the traces of the first k edges, for every k.

    Equal k are evaluated once. Where memory runs out the points that run together are halved.
    Raises ModelMemoryError when not even one fits, NonFiniteError.
    """
    evaluation = evaluation or Evaluation()
    k_P = np.asarray(k_P, np.int64)
    distinct, back = np.unique(k_P, return_inverse=True)
    buckets = unflatten_edges(layout, edge_buckets(rank_E, distinct), NO_EDGE)
    ids_1T = ids_T[None].to(model.device)
    logits, todo, size = [], np.arange(len(distinct)), _points_together(model, layout)
    while len(todo):
        points = todo[:size]
        try:
            logits.append(
                run_model(
                    model,
                    ids_1T.expand(len(points), -1),
                    masks=BucketMasks(buckets, points, model, evaluation),
                    ablation=evaluation.ablation,
                    means=evaluation.means.means if evaluation.means else None,
                )
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(points) == 1:
                raise memory_error(model, layout.n_tokens) from error
            size = len(points) // 2
        else:
            todo = todo[len(points) :]
    found = torch.cat(logits)
    if not torch.isfinite(found).all():
        raise NonFiniteError(
            f"NaN or infinity in a masked evaluation of {model.name}; use --dtype float32"
        )
    return found[torch.as_tensor(back, device=found.device)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says that a device or the machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def memory_error(model: TracedModel, n_tokens: int) -> ModelMemoryError:
    """Names what did not fit and about how many tokens would, by the memory that is free now."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = free_memory()
    needed = bytes_per_point(model, n_tokens)
    while n_tokens > 1 and bytes_per_point(model, n_tokens) > 0.8 * min(free, 0.9 * needed):
        n_tokens = int(0.9 * n_tokens)
    return ModelMemoryError(
        f"out of memory on {model.device} with one evaluation at a time: it needs about "
        f"{needed / 1e9:.2g} GB and {free / 1e9:.2g} GB are free; a text of about {n_tokens} "
        "tokens would fit, or use a device with more memory or --dtype bfloat16"
    )


def free_memory() -> int:
    """Bytes of this machine's memory that a process can still have."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def bytes_per_point(model: TracedModel, n_tokens: int) -> int:
    """About how much the largest tensors of one masked evaluation take."""
    widest = getattr(model.config, "intermediate_size", None) or 4 * model.d_model
    heads = 3 * model.n_heads * n_tokens**2
    return 4 * max(heads, n_tokens * (2 * widest + model.d_model))


def _points_together(model: TracedModel, layout: GraphLayout) -> int:
    return max(1, MASK_BYTES // bytes_per_point(model, layout.n_tokens))


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
