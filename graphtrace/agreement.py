"""How well one next-token distribution agrees with another (method.md 4, 5).

Shape suffixes: P evaluations, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch

NUCLEUS_PERCENT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
N_TOP = 10
"""Most probable tokens that are kept with the full model and with every point."""


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
