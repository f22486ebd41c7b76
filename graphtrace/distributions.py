"""How well one next-token distribution agrees with another (method.md 4, 5).

Shape suffixes: P evaluations, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch

from graphtrace.curve import NUCLEUS_PERCENT

_SHARE = np.array(NUCLEUS_PERCENT) / 100
N_TOP = 10
"""Most probable tokens that are kept with the full model and with every point."""


class Agreement(NamedTuple):
    """One distribution q against the reference p, both over the vocabulary.

    tv: fraction; kl: KL(p||q) in nats; top1: the same most probable token; nucleus: percent, see
    `Reference.nucleus_agreement`; p_predicted: q of p's most probable token.
    """

    tv: float
    kl: float
    top1: bool
    nucleus: int
    p_predicted: float


@dataclass(frozen=True)
class Reference:
    """The full model's distribution p, with what every comparison with it needs.

    log_p_V, p_V: float64; order_V: tokens by descending p, ties by id; length: int64, how many
    tokens each of the nuclei of NUCLEUS_PERCENT holds.
    """

    log_p_V: np.ndarray
    p_V: np.ndarray
    order_V: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, log_p_V: np.ndarray) -> "Reference":
        """From float64 log-probabilities."""
        p_V = np.exp(log_p_V)
        order_V = np.argsort(-p_V, kind="stable")
        return cls(log_p_V, p_V, order_V, np.searchsorted(np.cumsum(p_V[order_V]), _SHARE) + 1)

    def compare(self, log_q_V: np.ndarray) -> Agreement:
        """How much q agrees with p; float64 log-probabilities."""
        q_V = np.exp(log_q_V)
        predicted = int(self.order_V[0])
        return Agreement(
            tv=float(0.5 * np.abs(self.p_V - q_V).sum()),
            kl=float((self.p_V * (self.log_p_V - log_q_V)).sum()),
            top1=bool(q_V.argmax() == predicted),
            nucleus=self.nucleus_agreement(q_V),
            p_predicted=float(q_V[predicted]),
        )

    def nucleus_agreement(self, q_V: np.ndarray) -> int:
        """The largest percentage in NUCLEUS_PERCENT whose top-p token list is the same, in the same
        order, in both distributions, each with its own probabilities; 0 where none is.

        A top-p list holds the most probable tokens (ties by token id) up to and with the one that
        brings their sum to p.
        """
        same = _same_order(self.order_V, q_V)
        # As far as the orders are the same, q's own list runs along p's.
        length_q = np.searchsorted(np.cumsum(q_V[self.order_V[:same]]), _SHARE) + 1
        agrees = (self.length == length_q) & (np.minimum(self.length, len(q_V)) <= same)
        return int(np.array(NUCLEUS_PERCENT)[agrees].max(initial=0))


@numba.njit(cache=True, nogil=True)
def _same_order(order_V, q_V):
    """How many of the first tokens of `order_V` are the first by descending q, ties by id, too."""
    same, largest, smallest_id = len(order_V), -np.inf, 0
    for i in range(len(order_V) - 1, -1, -1):
        token = order_V[i]
        q = q_V[token]
        if q > largest:
            largest, smallest_id = q, token
        elif q == largest and token < smallest_id:
            smallest_id = token
        else:
            same = i
    return same


def log_probabilities(logits_PV: torch.Tensor) -> np.ndarray:
    """float64 log-softmax of float32 logits."""
    return torch.log_softmax(logits_PV.double(), dim=-1).cpu().numpy()


def top_tokens(log_p_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most probable tokens, ties by id: ids int32 [10] and probabilities float32 [10]."""
    ids = _top(log_p_V, min(N_TOP, len(log_p_V)))
    return ids.astype(np.int32), np.exp(log_p_V[ids]).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _top(value_V, n):
    """Indices of the n largest, descending, ties by index."""
    ids = np.empty(n, np.int64)
    size = 0
    for i in range(len(value_V)):
        value = value_V[i]
        if size == n and not value > value_V[ids[n - 1]]:
            continue
        place = size if size < n else n - 1
        while place > 0 and value > value_V[ids[place - 1]]:
            ids[place] = ids[place - 1]
            place -= 1
        ids[place] = i
        size = min(size + 1, n)
    return ids


def entropy(log_p_V: np.ndarray) -> float:
    """Entropy in nats."""
    return float(-(np.exp(log_p_V) * log_p_V).sum())
