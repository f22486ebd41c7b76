"""All edge vectors into the nodes of one level, without ever building one per attention edge.

An attention edge's vector is a[h,t,s] scale[t] M W_O^h v[h,s]: M is the linear part of the norm
that reads it (a post-norm, or the final norm at the last node) and of the block's multiplier,
scale[t] that norm at the state of the full forward (method.md 2). Hence the norms of these
vectors need one product per (head, source), and their inner products with one direction per
target another: never a [T, S, H, D] tensor.

Shape suffixes: H heads, K key/value heads, E head size, T target and S source tokens, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from graphtrace.forward import LayerRecord
from graphtrace.models import TracedModel

CHUNK_BYTES = 64 * 2**20
"""Room for the edge vectors that are built at once where a scorer needs them one by one."""
CPU_CHUNK_BYTES = 512 * 2**10
"""Room for the vectors of heads whose norms a CPU takes at once."""


class NormMap(NamedTuple):
    """The linear part of a norm at given states: v -> (v - mean(v) where centred) gain scale[t].

    The bias of a LayerNorm is left out. gain_D, scale_T: float32.
    """

    gain_D: torch.Tensor
    scale_T: torch.Tensor
    centred: bool

    @classmethod
    def at(cls, norm: Any, kind: str, state_TD: torch.Tensor) -> "NormMap":
        """The norm linearised at `state_TD`, with its own epsilon. kind: see Family.norm."""
        state_TD = state_TD.float()
        if kind.startswith("layer"):
            state_TD = state_TD - state_TD.mean(-1, keepdim=True)
        epsilon = getattr(norm, "variance_epsilon", None)
        epsilon = norm.eps if epsilon is None else epsilon
        weight = getattr(norm, "weight", None)
        gain_D = torch.ones_like(state_TD[0]) if weight is None else weight.detach().float()
        if kind.endswith("+1"):
            gain_D = gain_D + 1
        scale_T = torch.rsqrt(state_TD.pow(2).mean(-1) + epsilon)
        return cls(gain_D.to(state_TD.device), scale_T, kind.startswith("layer"))

    def unscaled(self, vector_XD: torch.Tensor) -> torch.Tensor:
        """M v."""
        if self.centred:
            vector_XD = vector_XD - vector_XD.mean(-1, keepdim=True)
        return vector_XD * self.gain_D

    def transposed(self, direction_TD: torch.Tensor) -> torch.Tensor:
        """M^T r."""
        direction_TD = direction_TD * self.gain_D
        if self.centred:
            direction_TD = direction_TD - direction_TD.mean(-1, keepdim=True)
        return direction_TD

    def __call__(self, vector_TD: torch.Tensor) -> torch.Tensor:
        """scale[t] M v[t]."""
        return self.unscaled(vector_TD) * self.scale_T[:, None]


@dataclass(frozen=True)
class AttentionEdges:
    """The attention edge vectors of one layer, factored. weight_HED: W_O by head, times the
    multiplier; map: the norm that reads the vectors, or None."""

    probs_HTS: torch.Tensor
    value_KSE: torch.Tensor
    weight_HED: torch.Tensor
    map: NormMap | None

    def norms(self, order: int) -> torch.Tensor:
        """||v_e|| [H, T, S] in the l1 or l2 norm."""
        value_HSE = self._value_by_head()
        # On a CPU what stays in the cache is faster, and so is memory that was used before.
        room = CPU_CHUNK_BYTES if value_HSE.device.type == "cpu" else CHUNK_BYTES
        step = max(1, room // (4 * value_HSE.shape[1] * self.weight_HED.shape[2]))
        norms = []
        for start in range(0, len(value_HSE), step):
            heads = slice(start, start + step)
            vector_HSD = torch.bmm(value_HSE[heads], self.weight_HED[heads])
            if self.map is not None:
                vector_HSD = self.map.unscaled(vector_HSD)
            norms.append(norm_(vector_HSD, order))
        return self._weighted(torch.cat(norms)[:, None, :])

    def along(self, direction_TD: torch.Tensor) -> torch.Tensor:
        """<v_e, direction of its target> [H, T, S]: <W v, r> = <v, W^T r>."""
        if self.map is not None:
            direction_TD = self.map.transposed(direction_TD)
        read_HTE = torch.einsum("td,hed->hte", direction_TD, self.weight_HED)
        value_HSE = self._value_by_head()
        return self._weighted(read_HTE @ value_HSE.transpose(1, 2))

    def reduce(
        self, function: Callable[[torch.Tensor, slice], torch.Tensor], n_targets: int
    ) -> torch.Tensor:
        """[H, T, S]: `function(vectors [T', S, D], targets)` -> [T', S] over all edge vectors, in
        chunks of targets."""
        found = []
        for head, vector_SD in enumerate(self._head_vectors()):
            step = max(1, CHUNK_BYTES // (4 * vector_SD.numel()))
            rows = []
            for start in range(0, n_targets, step):
                targets = slice(start, start + step)
                probs_TS = self.probs_HTS[head, targets]
                if self.map is not None:
                    probs_TS = probs_TS * self.map.scale_T[targets, None]
                rows.append(function(probs_TS[..., None] * vector_SD, targets))
            found.append(torch.cat(rows))
        return torch.stack(found)

    def _value_by_head(self) -> torch.Tensor:
        group = len(self.weight_HED) // len(self.value_KSE)
        return self.value_KSE if group == 1 else self.value_KSE.repeat_interleave(group, dim=0)

    def _head_vectors(self) -> Iterator[torch.Tensor]:
        """M W_O^h v [S, D] of each head."""
        group = len(self.weight_HED) // len(self.value_KSE)
        for head, weight_ED in enumerate(self.weight_HED):
            vector_SD = self.value_KSE[head // group] @ weight_ED
            yield vector_SD if self.map is None else self.map.unscaled(vector_SD)

    def _weighted(self, value_HTS: torch.Tensor) -> torch.Tensor:
        value_HTS = self.probs_HTS * value_HTS
        return value_HTS if self.map is None else value_HTS * self.map.scale_T[:, None]


class Incoming(NamedTuple):
    """Every edge vector into one level, and the nodes' values, as the scorers read them.

    residual_TD, value_TD: always; mlp_TD and attention where such edges enter the level.
    """

    level: int
    layer: int
    value_TD: torch.Tensor
    residual_TD: torch.Tensor
    mlp_TD: torch.Tensor | None
    attention: AttentionEdges | None


def incoming_edges(
    model: TracedModel, record: LayerRecord, final_norm: bool = True
) -> Iterator[Incoming]:
    """The levels that a layer's edges enter: two, or one in parallel blocks.

    final_norm: at the last level, apply the final norm's linear part to every vector and value.
    """
    layer, block, family = record.layer, model.blocks[record.layer], model.family
    state_TD, out_TD = record.state_BTD[0].float(), record.out_BTD[0].float()
    mlp_TD = record.mlp_BTD[0].float()
    last = None
    if final_norm and layer == model.n_layers - 1:
        last = NormMap.at(model.final_norm, family.norm, out_TD)
    if record.mid_BTD is None:
        attention = _attention_edges(model, block, record, last)
        value_TD, state_TD, mlp_TD = (_read(last, v_TD) for v_TD in (out_TD, state_TD, mlp_TD))
        yield Incoming(layer + 1, layer, value_TD, state_TD, mlp_TD, attention)
        return
    post = None
    if family.attention_post_norm:
        norm = getattr(block, family.attention_post_norm)
        post = NormMap.at(norm, family.norm, record.attention_BTD[0])
    mid_TD = record.mid_BTD[0].float()
    attention = _attention_edges(model, block, record, post)
    yield Incoming(2 * layer + 1, layer, mid_TD, state_TD, None, attention)
    value_TD, mid_TD, mlp_TD = (_read(last, v_TD) for v_TD in (out_TD, mid_TD, mlp_TD))
    yield Incoming(2 * layer + 2, layer, value_TD, mid_TD, mlp_TD, None)


def output_weight(model: TracedModel, block: Any, multiplied: bool = True) -> torch.Tensor:
    """W_O by head, times the block's multiplier unless told otherwise, float32 [H, E, D]."""
    family = model.family
    projection = attrgetter(f"{family.attention}.{family.output_projection}")(block)
    weight_XD = projection.weight.detach()
    if not family.conv1d:
        weight_XD = weight_XD.T
    weight_HED = weight_XD.reshape(model.n_heads, -1, weight_XD.shape[1]).float()
    if multiplied and family.multiplier:
        weight_HED = weight_HED * getattr(block, family.multiplier)
    return weight_HED


def _attention_edges(
    model: TracedModel, block: Any, record: LayerRecord, norm_map: NormMap | None
) -> AttentionEdges:
    return AttentionEdges(
        probs_HTS=record.probs_BHTS[0].detach().float(),
        value_KSE=record.value_BKSE[0].detach().float(),
        weight_HED=output_weight(model, block),
        map=norm_map,
    )


def _read(norm_map: NormMap | None, vector_TD: torch.Tensor) -> torch.Tensor:
    return vector_TD if norm_map is None else norm_map(vector_TD)


def norm_(vector_XD: torch.Tensor, order: int) -> torch.Tensor:
    """The l1 or l2 norm over the last axis; overwrites its argument."""
    # On a CPU abs().sum() is several times faster than vector_norm(ord=1).
    return vector_XD.abs_().sum(-1) if order == 1 else vector_XD.pow_(2).sum(-1).sqrt_()
