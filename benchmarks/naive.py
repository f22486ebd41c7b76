"""The baseline: what a competent user would write for a Llama without graphtrace.

The definitions of docs/method.md, taken straight: every edge's vector is built ([T, S, H, D] per
layer), a heap of tuples holds every available edge, and each size is its own masked forward pass of
full size. Nothing here is slow on purpose, and nothing comes from graphtrace, so that the baseline
stays the same while graphtrace changes. Llama models without biases, full attention, scorer l1.

Shape suffixes: T target and S source tokens, H query heads, K key/value heads, E head size, D
width, L layers, G levels from 1 on, V vocabulary, P sizes.
"""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

RESIDUAL, MLP = -1, -2
"""In the place of a head's number."""


class PerEdge(NamedTuple):
    """One number per edge: its score, or its 0/1 mask."""

    residual_GT: torch.Tensor
    mlp_LT: torch.Tensor
    attention_LHTS: torch.Tensor

    @classmethod
    def zeros(cls, causal_lm, n_tokens: int) -> "PerEdge":
        """No edge."""
        config = causal_lm.config
        n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
        return cls(
            torch.zeros(2 * n_layers, n_tokens),
            torch.zeros(n_layers, n_tokens),
            torch.zeros(n_layers, n_heads, n_tokens, n_tokens),
        )


class Layer(NamedTuple):
    """What one layer's edges are made of."""

    probs_HTS: torch.Tensor
    value_HSE: torch.Tensor
    state_TD: torch.Tensor
    mid_TD: torch.Tensor
    mlp_TD: torch.Tensor
    out_TD: torch.Tensor


class Edge(NamedTuple):
    """An edge into (level, target); head is RESIDUAL or MLP where it is no attention edge."""

    level: int
    target: int
    source: int
    head: int


@dataclass(frozen=True)
class NaiveTrace:
    """Scores, the edges in the order in which they were taken, and the curve."""

    scores: PerEdge
    edges: list[Edge]
    k_P: np.ndarray
    tv_P: np.ndarray


@torch.no_grad()
def forward(causal_lm, ids_T, masks: PerEdge | None = None, seen: list[Layer] | None = None):
    """Logits [V] at the last position, each edge times its mask; `seen` gets the layers."""
    model, n_tokens = causal_lm.model, len(ids_T)
    state_TD = model.embed_tokens(ids_T)
    cos, sin = model.rotary_emb(state_TD[None], torch.arange(n_tokens)[None])
    causal_TS = torch.full((n_tokens, n_tokens), -torch.inf).triu(1)
    for layer, block in enumerate(model.layers):
        attn, normed_TD = block.self_attn, block.input_layernorm(state_TD)
        query, key, value = (
            project(normed_TD).view(1, n_tokens, -1, attn.head_dim).transpose(1, 2)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        key, value = (repeat_kv(x, attn.num_key_value_groups)[0] for x in (key, value))
        logits_HTS = query[0] @ key.transpose(1, 2) * attn.scaling + causal_TS
        probs_HTS = nn.functional.softmax(logits_HTS, dim=-1)
        kept_HTS = probs_HTS if masks is None else probs_HTS * masks.attention_LHTS[layer]
        attention_TD = attn.o_proj((kept_HTS @ value).transpose(0, 1).reshape(n_tokens, -1))
        before_TD, mid_kept_TD = state_TD, None
        if masks is not None:
            before_TD = state_TD * masks.residual_GT[2 * layer][:, None]
        mid_TD = before_TD + attention_TD
        mlp_TD, mid_kept_TD = block.mlp(block.post_attention_layernorm(mid_TD)), mid_TD
        if masks is not None:
            mlp_TD = mlp_TD * masks.mlp_LT[layer][:, None]
            mid_kept_TD = mid_TD * masks.residual_GT[2 * layer + 1][:, None]
        out_TD = mid_kept_TD + mlp_TD
        if seen is not None:
            seen.append(Layer(probs_HTS, value, state_TD, mid_TD, mlp_TD, out_TD))
        state_TD = out_TD
    return causal_lm.lm_head(model.norm(state_TD[-1]))


@torch.no_grad()
def score(causal_lm, layers: list[Layer]) -> PerEdge:
    """l1 scores: every edge's share of the norms of all vectors into its target."""
    scores = PerEdge.zeros(causal_lm, len(layers[0].state_TD))
    for number, (block, layer) in enumerate(zip(causal_lm.model.layers, layers, strict=True)):
        n_heads, _, head_dim = layer.value_HSE.shape
        weight_DHE = block.self_attn.o_proj.weight.view(-1, n_heads, head_dim)
        head_SHD = torch.einsum("hse,dhe->shd", layer.value_HSE, weight_DHE)
        vector_TSHD = layer.probs_HTS.permute(1, 2, 0)[..., None] * head_SHD
        norm_TSH = torch.linalg.vector_norm(vector_TSHD, 1, dim=-1)
        residual_T = torch.linalg.vector_norm(layer.state_TD, 1, dim=-1)
        total_T = norm_TSH.sum((1, 2)) + residual_T
        scores.attention_LHTS[number] = norm_TSH.permute(2, 0, 1) / total_T[:, None]
        scores.residual_GT[2 * number] = residual_T / total_T
        mid_TD, mlp_TD = layer.mid_TD, layer.mlp_TD
        if number == len(layers) - 1:  # as the final norm reads them
            norm = causal_lm.model.norm
            mean_T1 = layer.out_TD.pow(2).mean(-1, keepdim=True)
            linear_TD = norm.weight * torch.rsqrt(mean_T1 + norm.variance_epsilon)
            mid_TD, mlp_TD = mid_TD * linear_TD, mlp_TD * linear_TD
        residual_T, mlp_T = (torch.linalg.vector_norm(v, 1, dim=-1) for v in (mid_TD, mlp_TD))
        scores.residual_GT[2 * number + 1] = residual_T / (residual_T + mlp_T)
        scores.mlp_LT[number] = mlp_T / (residual_T + mlp_T)
    return scores


def rank(scores: PerEdge) -> list[Edge]:
    """All edges that lead to the output, best first from it; ties first come, first served."""
    attention_LTSH = scores.attention_LHTS.permute(0, 2, 3, 1).tolist()
    residual_GT, mlp_LT = scores.residual_GT.tolist(), scores.mlp_LT.tolist()
    output = (len(residual_GT), len(residual_GT[0]) - 1)
    heap, visited, edges, arrivals = [], {output}, [], 0
    node = output
    while True:
        if node is not None and node[0] > 0:
            level, target = node
            layer = (level - 1) // 2
            if level % 2:
                for source, score_H in enumerate(attention_LTSH[layer][target][: target + 1]):
                    if source == target:
                        weight = residual_GT[level - 1][target]
                        heapq.heappush(heap, (-weight, arrivals, level, target, source, RESIDUAL))
                        arrivals += 1
                    for head, weight in enumerate(score_H):
                        heapq.heappush(heap, (-weight, arrivals, level, target, source, head))
                        arrivals += 1
            else:
                for head, weight in (
                    (RESIDUAL, residual_GT[level - 1][target]),
                    (MLP, mlp_LT[layer][target]),
                ):
                    heapq.heappush(heap, (-weight, arrivals, level, target, target, head))
                    arrivals += 1
        if not heap:
            return edges
        _, _, level, target, source, head = heapq.heappop(heap)
        edges.append(Edge(level, target, source, head))
        node = (level - 1, source)
        if node in visited:
            node = None
        else:
            visited.add(node)


def mask_of(causal_lm, n_tokens: int, edges_E4: np.ndarray) -> PerEdge:
    """Ones at the given edges, rows of (level, target, source, head)."""
    masks = PerEdge.zeros(causal_lm, n_tokens)
    level, target, source, head = torch.as_tensor(edges_E4).T
    at = head == RESIDUAL
    masks.residual_GT[level[at] - 1, target[at]] = 1
    at = head == MLP
    masks.mlp_LT[(level[at] - 1) // 2, target[at]] = 1
    at = head >= 0
    masks.attention_LHTS[(level[at] - 1) // 2, head[at], target[at], source[at]] = 1
    return masks


def evaluate(causal_lm, ids_T, edges: list[Edge], k_P, full_V: torch.Tensor) -> np.ndarray:
    """float64 [P]: total variation distance of the first k edges' prediction, for every k."""
    p_V, edges_E4, tv = full_V.double().softmax(-1), np.array(edges), []
    for k in k_P:
        masks = mask_of(causal_lm, len(ids_T), edges_E4[:k])
        q_V = forward(causal_lm, ids_T, masks).double().softmax(-1)
        tv.append(0.5 * (p_V - q_V).abs().sum().item())
    return np.array(tv)


def trace(causal_lm, ids_T, sizes) -> NaiveTrace:
    """Score, rank, and evaluate the traces of every size (fractions of all edges)."""
    layers: list[Layer] = []
    full_V = forward(causal_lm, ids_T, seen=layers)
    scores = score(causal_lm, layers)
    edges = rank(scores)
    k_P = np.floor(np.array(sizes) * len(edges)).astype(np.int64)
    return NaiveTrace(scores, edges, k_P, evaluate(causal_lm, ids_T, edges, k_P, full_V))
