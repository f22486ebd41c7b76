"""What every edge adds to its target, as one weight per edge (method.md 2; paper, section 3).

All scorers share one observed pass; `gradient` and `fisher` add backward passes. Weights are
float32 whatever the model's dtype.

Shape suffixes: G levels from 1 on, L layers, H heads, T target and S source tokens, D width, V
vocabulary, P probes.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from graphtrace.errors import NonFiniteError, OptionError
from graphtrace.forward import LayerRecord, run_model
from graphtrace.incoming import Incoming, incoming_edges, norm_
from graphtrace.memory import free_memory
from graphtrace.model_facts import FactObserver, Facts
from graphtrace.models import TracedModel

SCORERS = ("l1", "l2", "proximity", "gradient", "projection", "fisher", "random")
FISHER_PROBES = 16
"""Probes of `fisher` where the name says no other number (`fisher:4`)."""

DEVICE_SHARE = 8
"""Weights stay on the device where they take less than this part of its free memory."""

PROJECTION_FLOOR = 0.02
"""Share of an edge's own length in its `projection` weight."""


@dataclass(frozen=True)
class Scores:
    """One number per edge, float32; zero where there is no edge.

    residual_GT: edge (g-1, t) -> (g, t) for g = 1 ...; mlp_LT; attention_LHTS.
    """

    residual_GT: np.ndarray
    mlp_LT: np.ndarray
    attention_LHTS: np.ndarray


class Scored(NamedTuple):
    """Scores of all edges, the full model's logits [1, V] and what else the pass showed."""

    scores: Scores
    logits_BV: torch.Tensor
    facts: Facts


def parse_scorer(scorer: str) -> tuple[str, int]:
    """(name, probes) of `l1`, `fisher`, `fisher:4` ... Raises OptionError."""
    name, colon, count = scorer.partition(":")
    if name not in SCORERS or (colon and name != "fisher"):
        raise OptionError(f"scorer {scorer!r} is none of {', '.join(SCORERS)}")
    if not colon:
        return name, FISHER_PROBES
    if not re.fullmatch(r"[1-9]\d{0,3}", count):
        raise OptionError(f"scorer {scorer!r}: probes are a number from 1, such as fisher:4")
    return name, int(count)


def draws(scorer: str) -> bool:
    """Whether a scorer draws random numbers, so that its seed is part of the settings."""
    return parse_scorer(scorer)[0] in ("fisher", "random")


def uses_shares(scorer: str, search: str) -> bool:
    """Whether the search reads each target's shares, or the weights themselves: `gradient` and
    `fisher` compare across nodes already (method.md 2)."""
    return search != "best-first" or parse_scorer(scorer)[0] not in ("gradient", "fisher")


def score_edges(
    model: TracedModel, ids_T: torch.Tensor, scorer: str = "l1", seed: int = 0, shares: bool = True
) -> Scored:
    """Score every edge of one input.

    ids_T: token ids. scorer: see SCORERS; `random` scores as `l1`. shares: divide by the sum over
    the target's incoming edges (0 where that is 0), else the weights. Raises NonFiniteError naming
    the first layer whose states are not finite, OptionError.
    """
    name, probes = parse_scorer(scorer)
    weights = _Weights(model, len(ids_T))
    facts = FactObserver(model)
    ids_BT = ids_T[None].to(model.device)
    if name in ("gradient", "fisher"):
        observer = _Records()
        with facts:
            logits_BV = run_model(model, ids_BT, observer=observer, grad=True)
        n_probes = probes if name == "fisher" else 0
        _weigh_gradients(weights, observer.records, logits_BV, n_probes, seed)
    else:
        observer = _Streamed(weights, "l1" if name == "random" else name)
        with facts:
            logits_BV = run_model(model, ids_BT, observer=observer)
    # Every state is in some weight, so these are finite only where all states are.
    if not (weights.are_finite() and _is_finite(logits_BV)):
        _raise_not_finite(model, ids_BT)
    return Scored(weights.scores(shares), logits_BV.detach(), facts.found())


class _Weights:
    """Weights of all edges of one input, filled level by level: on the model's device, so that the
    host waits for it once, or in host memory where they would take much of the device's."""

    def __init__(self, model: TracedModel, n_tokens: int) -> None:
        self.model = model
        n_layers, n_levels = model.n_layers, model.n_layers * (1 if model.parallel else 2)
        shape = (n_layers, model.n_heads, n_tokens, n_tokens)
        device = model.device
        if device.type == "cuda" and 4 * math.prod(shape) > free_memory(device) // DEVICE_SHARE:
            device = torch.device("cpu")
        self.attention_LHTS = torch.zeros(shape, device=device)
        self.residual_GT = torch.zeros(n_levels, n_tokens, device=device)
        self.mlp_LT = torch.zeros(n_layers, n_tokens, device=device)

    def cells(self, edges: Incoming) -> "list[torch.Tensor | None]":
        """Where the weights of `edges` are kept: residual [T], mlp [T], attention [H, T, S]; None
        where the level has no such edges."""
        return [
            self.residual_GT[edges.level - 1],
            None if edges.mlp_TD is None else self.mlp_LT[edges.layer],
            None if edges.attention is None else self.attention_LHTS[edges.layer],
        ]

    def are_finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(map(_is_finite, (self.residual_GT, self.mlp_LT, self.attention_LHTS)))

    def scores(self, shares: bool) -> Scores:
        if shares:
            self._divide()
        tensors = (self.residual_GT, self.mlp_LT, self.attention_LHTS)
        return Scores(*(tensor.cpu().numpy() for tensor in tensors))

    def _divide(self) -> None:
        """Divide by the sum over each target's incoming edges; 0 where that sum is 0."""
        heads_LT = self.attention_LHTS.sum(dim=(1, 3))
        if self.model.parallel:
            mid_LT = post_LT = _inverse(self.residual_GT + heads_LT + self.mlp_LT)
            self.residual_GT *= post_LT
        else:
            mid_LT = _inverse(self.residual_GT[0::2] + heads_LT)
            post_LT = _inverse(self.residual_GT[1::2] + self.mlp_LT)
            self.residual_GT[0::2] *= mid_LT
            self.residual_GT[1::2] *= post_LT
        self.mlp_LT *= post_LT
        self.attention_LHTS *= mid_LT[:, None, :, None]


def _inverse(total_LT: torch.Tensor) -> torch.Tensor:
    return torch.where(total_LT > 0, 1 / total_LT, 0)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are numbers; where their sum is one, so are they."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _raise_not_finite(model: TracedModel, ids_BT: torch.Tensor) -> None:
    """Look again, layer by layer, and raise NonFiniteError naming the first with NaN or infinity;
    where all states are finite, weights made of them were not."""
    observer = _Finite(model)
    logits_BV = run_model(model, ids_BT, observer=observer)
    if not _is_finite(logits_BV):
        raise NonFiniteError(
            f"NaN or infinity in the logits of {model.name}; check the final norm and the head"
        )
    raise NonFiniteError(
        f"the scores of {model.name} are beyond float32 for this input; its states are finite, so "
        "check for very large weights"
    )


class _Finite:
    """Raises NonFiniteError at the first layer whose states are not numbers."""

    def __init__(self, model: TracedModel) -> None:
        self.model = model

    def layer(self, record: LayerRecord) -> None:
        """Look at one layer."""
        states = (record.attention_BTD, record.mlp_BTD, record.out_BTD)
        for part, state in zip(("attention", "mlp", "sum"), states, strict=True):
            if not _is_finite(state):
                raise NonFiniteError(
                    f"NaN or infinity in layer {record.layer} of {self.model.name} ({part}); "
                    "check the weights or use --dtype float32"
                )


class _Streamed:
    """Weighs every layer as soon as it is seen."""

    def __init__(self, weights: _Weights, name: str) -> None:
        self.weights = weights
        self.weigh = _WEIGH[name]

    def layer(self, record: LayerRecord) -> None:
        """Weigh one layer."""
        for edges in incoming_edges(self.weights.model, record):
            for cell, weight in zip(self.weights.cells(edges), self.weigh(edges), strict=True):
                if cell is not None and weight is not None:
                    cell.copy_(weight, non_blocking=cell.device.type != "cpu")


class _Records:
    """Keeps every layer, for scorers that look back from the output."""

    def __init__(self) -> None:
        self.records: list[LayerRecord] = []

    def layer(self, record: LayerRecord) -> None:
        """Keep one layer."""
        self.records.append(record)


Weighed = Sequence[torch.Tensor | None]
"""Weights of one level's edges: residual [T], mlp [T], attention [H, T, S]."""


def _lengths(edges: Incoming, order: int) -> Weighed:
    direct = [
        None if v_TD is None else norm_(v_TD.clone(), order)
        for v_TD in (edges.residual_TD, edges.mlp_TD)
    ]
    return [*direct, None if edges.attention is None else edges.attention.norms(order)]


def _proximity(edges: Incoming) -> Weighed:
    """max(||y|| - ||v - y||, 0) in the l1 norm, y the node's value (IFR, equation 3)."""
    y_TD = edges.value_TD
    y_T = y_TD.abs().sum(-1)

    def near(vector_TXD: torch.Tensor, targets: slice) -> torch.Tensor:
        distance_TX = (vector_TXD - y_TD[targets, None]).abs().sum(-1)
        return (y_T[targets, None] - distance_TX).clamp(min=0)

    direct = [
        None if v_TD is None else near(v_TD[:, None], slice(None))[:, 0]
        for v_TD in (edges.residual_TD, edges.mlp_TD)
    ]
    attention = edges.attention
    return [*direct, None if attention is None else attention.reduce(near, len(y_TD))]


def _projection(edges: Incoming) -> Weighed:
    """max(<v, y>, 0) / ||y|| + 0.02 ||v||, y the node's value."""
    y_TD = edges.value_TD
    y_T = torch.linalg.vector_norm(y_TD, dim=-1)
    unit_T = torch.where(y_T > 0, 1 / y_T, 0)
    direct = [
        None if v_TD is None else (v_TD * y_TD).sum(-1).clamp(min=0) * unit_T
        for v_TD in (edges.residual_TD, edges.mlp_TD)
    ]
    attention = edges.attention
    along = None if attention is None else attention.along(y_TD).clamp(min=0) * unit_T[:, None]
    return [
        None if part is None or length is None else part + PROJECTION_FLOOR * length
        for part, length in zip((*direct, along), _lengths(edges, 2), strict=True)
    ]


_WEIGH: dict[str, Callable[[Incoming], Weighed]] = {
    "l1": partial(_lengths, order=1),
    "l2": partial(_lengths, order=2),
    "proximity": _proximity,
    "projection": _projection,
}


@torch.no_grad()
def _weigh_gradients(weights: _Weights, records, logits_BV, probes: int, seed: int) -> None:
    """|<dm/dy, v>| with m the log-probability of the top token; with probes, the root mean square
    of <d(z . logits)/dy, v> over probes z whose covariance is the Fisher information of the
    logits."""
    nodes = [
        node for record in records for node in (record.mid_BTD, record.out_BTD) if node is not None
    ]
    with torch.enable_grad():
        log_p_V = torch.log_softmax(logits_BV[0], dim=-1)
        if probes:
            probes_PV = _fisher_probes(log_p_V.detach(), probes, seed)
            targets = [(z_V * logits_BV[0]).sum() for z_V in probes_PV]
        else:
            targets = [log_p_V.max()]
    for target in targets:
        gradients = torch.autograd.grad(target, nodes, retain_graph=target is not targets[-1])
        level = iter(gradients)
        for record in records:
            for edges in incoming_edges(weights.model, record, final_norm=False):
                found = _along(edges, next(level)[0].float())
                for cell, part in zip(weights.cells(edges), found, strict=True):
                    if cell is not None and part is not None:
                        torch.hypot(cell, part.to(cell.device), out=cell)
    for tensor in (weights.residual_GT, weights.mlp_LT, weights.attention_LHTS):
        tensor /= len(targets) ** 0.5


def _fisher_probes(log_p_V: torch.Tensor, probes: int, seed: int) -> torch.Tensor:
    """z [P, V] = sqrt(p) (eps - <eps, sqrt p> sqrt p), eps ~ N(0, I)."""
    generator = torch.Generator().manual_seed(seed)
    eps_PV = torch.randn(probes, len(log_p_V), generator=generator).to(log_p_V.device)
    root_V = (0.5 * log_p_V).exp()
    return root_V * (eps_PV - (eps_PV @ root_V)[:, None] * root_V)


def _along(edges: Incoming, direction_TD: torch.Tensor) -> Weighed:
    direct = [
        None if v_TD is None else (v_TD * direction_TD).sum(-1)
        for v_TD in (edges.residual_TD, edges.mlp_TD)
    ]
    return [*direct, None if edges.attention is None else edges.attention.along(direction_TD)]
