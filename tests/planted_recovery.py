"""At which size each scorer and search finds a planted circuit, and the table of it.

`python tests/planted_recovery.py` prints the table of docs/planted-circuits.md.

E edges, K sizes, V vocabulary.
"""

from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from planted import MODELS, Planted, edge_numbers

from graphtrace.distributions import log_probabilities
from graphtrace.edges import flatten_edges
from graphtrace.evaluation import Evaluation, masked_logits
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.models import TracedModel
from graphtrace.ranking import random_ranks
from graphtrace.scoring import score_edges, uses_shares
from graphtrace.search import SEARCHES, rank_edges

SCORERS = ("l1", "l2", "proximity", "gradient", "projection", "fisher")
SEEDS, PROMPTS = (0, 1, 2), 2
MAX_TV = 0.1
"""A trace predicts rightly if its top token is the right one and its TV is at most this."""


class Recovery(NamedTuple):
    """Smallest sizes of one ranking of one input; n_edges + 1 for never.

    found: all circuit edges are in the trace; right: the trace predicts rightly; for_good: so do
    all larger traces that were looked at.
    """

    found: int
    right: int
    for_good: int


class Case(NamedTuple):
    """A planted model, one prompt, and what its full forward says."""

    planted: Planted
    model: TracedModel
    prompt: list[int]
    layout: GraphLayout
    p_V: np.ndarray

    @property
    def ids_T(self) -> torch.Tensor:
        """The prompt's token ids."""
        return torch.tensor(self.prompt)

    @property
    def answer(self) -> int:
        """The right token."""
        return self.planted.answer(self.prompt)

    @property
    def circuit(self) -> np.ndarray:
        """Numbers of the circuit's edges."""
        return edge_numbers(self.layout, self.planted.circuit(self.prompt))

    def keep(self, edges, mode: str = "sufficiency") -> np.ndarray:
        """float64 [V]: the distribution with these edges as the trace."""
        rank_E = np.full(self.layout.n_edges, self.layout.n_edges)
        rank_E[edges] = np.arange(len(edges))
        return self.distributions(rank_E, [len(edges)], mode)[0]

    def distributions(self, rank_E: np.ndarray, k_K, mode: str = "sufficiency") -> np.ndarray:
        """float64 [K, V]: the distributions of the first k edges."""
        logits = masked_logits(
            self.model, self.ids_T, self.layout, rank_E, k_K, Evaluation(mode=mode)
        )
        return np.exp(log_probabilities(logits))

    def tv(self, q_V: np.ndarray) -> np.ndarray:
        """Total variation distance from the full model, of one or many distributions."""
        return 0.5 * np.abs(self.p_V - q_V).sum(-1)


@cache
def cases(name: str) -> list[Case]:
    """All inputs of one kind of model."""
    found = []
    for seed in SEEDS:
        planted = MODELS[name](seed)
        model = load_model(planted.causal_lm)
        for prompt in planted.prompts(PROMPTS, seed):
            logits = planted.causal_lm(torch.tensor([prompt])).logits[:, -1]
            p_V = np.exp(log_probabilities(logits))[0]
            found.append(Case(planted, model, prompt, planted.layout(prompt), p_V))
    return found


def recover(case: Case, rank_E: np.ndarray) -> Recovery:
    """When one ranking finds the circuit and the right answer."""
    n_edges = case.layout.n_edges
    k_K = np.unique(np.r_[1:41, np.geomspace(41, n_edges, 25).astype(int)])
    q_KV = case.distributions(rank_E, k_K)
    right_K = (case.tv(q_KV) <= MAX_TV) & (q_KV.argmax(1) == case.answer)
    wrong = np.flatnonzero(~right_K)
    for_good = 0 if len(wrong) == 0 else wrong[-1] + 1
    k_K = np.append(k_K, n_edges + 1)
    return Recovery(
        found=int(rank_E[case.circuit].max()) + 1,
        right=int(k_K[right_K.argmax() if right_K.any() else -1]),
        for_good=int(k_K[for_good]),
    )


def flat_scores(case: Case, scorer: str, shares: bool) -> np.ndarray:
    """float32 [E]: one score per edge."""
    scores = score_edges(case.model, case.ids_T, scorer, shares=shares).scores
    return flatten_edges(case.layout, scores)


def ranks(case: Case, scorer: str, search: str) -> np.ndarray:
    """int64 [E]: the rank of every edge."""
    return rank_edges(case.layout, flat_scores(case, scorer, uses_shares(scorer, search)), search)


@cache
def recoveries(name: str) -> dict[tuple[str, str], list[Recovery]]:
    """By scorer and search, one entry per input; the random baseline as ("random", "walk")."""
    table: dict[tuple[str, str], list[Recovery]] = {pair: [] for pair in product(SCORERS, SEARCHES)}
    for case, scorer in product(cases(name), SCORERS):
        scores = cache(partial(flat_scores, case, scorer))
        for search in SEARCHES:
            rank_E = rank_edges(case.layout, scores(uses_shares(scorer, search)), search)
            table[scorer, search].append(recover(case, rank_E))
    table["random", "walk"] = [
        recover(case, random_ranks(case.layout, seed)) for seed, case in enumerate(cases(name))
    ]
    return table


def worst(name: str, scorer: str, search: str, field: str) -> int:
    """The largest size over the inputs."""
    return max(getattr(recovery, field) for recovery in recoveries(name)[scorer, search])


def best(name: str, scorer: str, search: str, field: str) -> int:
    """The smallest size over the inputs."""
    return min(getattr(recovery, field) for recovery in recoveries(name)[scorer, search])


def rows() -> Iterator[list[str]]:
    """Rows of the table: model, circuit edges, scorer, and for each search the sizes."""
    for name in MODELS:
        size = str(len(cases(name)[0].circuit))
        for scorer in SCORERS:
            yield [name, size, f"`{scorer}`", *(cell(name, scorer, s) for s in SEARCHES)]
        yield [name, size, "`random`", cell(name, "random", "walk"), "", ""]


def cell(name: str, scorer: str, search: str) -> str:
    """`found / right / for good`, each a number or, where inputs differ, least–most."""
    ends = [[end(name, scorer, search, f) for end in (best, worst)] for f in Recovery._fields]
    return " / ".join(str(low) if low == high else f"{low}–{high}" for low, high in ends)


def markdown() -> str:
    """The table as it stands in the page."""
    head = ["model", "circuit", "scorer", *SEARCHES]
    lines = [head, ["---"] * len(head), *rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(markdown(), end="")
