"""The `l1` scores of all edges in one unmasked pass (method.md 2; paper, section 3).

An attention edge's vector is a[h,t,s] W_O^h v[h,s] and a >= 0, so its norm is
a[h,t,s] ||W_O^h v[h,s]||: the attention probabilities and one norm per (layer, head, source), never
a [T, S, H, D] tensor. Norms are accumulated in float32 whatever the model's dtype.

Shape suffixes: G levels 1 ... 2L, L layers, H heads, K key/value heads, E head size, T target and S
source tokens, D width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from graphtrace.errors import NonFiniteError
from graphtrace.forward import run_layers
from graphtrace.models import TracedModel


@dataclass(frozen=True)
class Scores:
    """Every edge's share of its target's incoming weight, float32; zero where there is no edge.

    residual_GT: edge (g-1, t) -> (g, t) for g = 1 ... 2L; mlp_LT; attention_LHTS.
    """

    residual_GT: np.ndarray
    mlp_LT: np.ndarray
    attention_LHTS: np.ndarray


class _L1Observer:
    """Collects ||v_e||_1 of every edge, in host memory, during one pass over a single input."""

    def __init__(self, model: TracedModel, n_tokens: int) -> None:
        self.model = model
        n_layers, n_heads = model.n_layers, model.n_heads
        self.attention_LHTS = torch.zeros(n_layers, n_heads, n_tokens, n_tokens)
        self.residual_GT = torch.zeros(2 * n_layers, n_tokens)
        self.mlp_LT = torch.zeros(n_layers, n_tokens)

    def pattern(self, layer: int, probs_BHTS: torch.Tensor, value_BKSE: torch.Tensor) -> None:
        norm_HS = self._head_norms(layer, value_BKSE[0])
        self.attention_LHTS[layer] = probs_BHTS[0].float() * norm_HS[:, None, :]

    def _head_norms(self, layer: int, value_KSE: torch.Tensor) -> torch.Tensor:
        """||W_O^h v||_1 [H, S], weighted by the gain of a norm behind attention."""
        family, block = self.model.family, self.model.blocks[layer]
        projection = getattr(getattr(block, family.attention), family.output_projection)
        n_heads = self.model.n_heads
        weight_HED = projection.weight.T.reshape(n_heads, -1, projection.weight.shape[0])
        gain_D: torch.Tensor | None = None
        if family.attention_post_norm:
            norm: Any = getattr(block, family.attention_post_norm)
            gain_D = norm.weight.float()
        group = n_heads // value_KSE.shape[0]
        norm_HS = torch.empty(n_heads, value_KSE.shape[1], device=value_KSE.device)
        for head in range(n_heads):
            vector_SD = value_KSE[head // group].float() @ weight_HED[head].float()
            if gain_D is not None:
                vector_SD = vector_SD * gain_D
            norm_HS[head] = vector_SD.abs().sum(-1)
        return norm_HS

    def attention(self, layer: int, state_BTD: torch.Tensor, added_BTD: torch.Tensor) -> None:
        self.residual_GT[2 * layer] = state_BTD[0].float().abs().sum(-1)
        name = self.model.family.attention_post_norm
        if name:
            norm = getattr(self.model.blocks[layer], name)
            self.attention_LHTS[layer] *= inverse_rms(norm, added_BTD[0]).cpu()[None, :, None]

    def mlp(self, layer: int, state_BTD: torch.Tensor, added_BTD: torch.Tensor) -> None:
        state_TD, added_TD = state_BTD[0].float(), added_BTD[0].float()
        if layer == self.model.n_layers - 1:
            # The prediction reads the last node through the final norm: its linear part applies.
            norm: Any = self.model.final_norm
            gain_D = norm.weight.float()
            scale_T = inverse_rms(norm, state_TD + added_TD)[:, None]
            state_TD, added_TD = state_TD * gain_D * scale_T, added_TD * gain_D * scale_T
        self.residual_GT[2 * layer + 1] = state_TD.abs().sum(-1)
        self.mlp_LT[layer] = added_TD.abs().sum(-1)


def inverse_rms(norm: Any, state_TD: torch.Tensor) -> torch.Tensor:
    """1 / rms [T] with the norm's own epsilon: an RMSNorm linearised at `state_TD`."""
    return torch.rsqrt(state_TD.float().pow(2).mean(-1) + norm.variance_epsilon)


def l1_scores(model: TracedModel, ids_T: torch.Tensor) -> tuple[Scores, torch.Tensor]:
    """Scores of one input, and its final residual state [1, T, D].

    ids_T: token ids. Raises NonFiniteError naming the first layer whose states are not finite.
    """
    observer = _L1Observer(model, len(ids_T))
    state_BTD = run_layers(model, ids_T[None].to(model.device), observer=observer)
    finite_G = torch.isfinite(observer.residual_GT).all(dim=1)
    finite_G[0::2] &= torch.isfinite(observer.attention_LHTS).all(dim=(1, 2, 3))
    finite_G[1::2] &= torch.isfinite(observer.mlp_LT).all(dim=1)
    if not finite_G.all():
        level = int((~finite_G).nonzero()[0])
        raise NonFiniteError(
            f"NaN or infinity in layer {level // 2} of {model.name} "
            f"({'mlp' if level % 2 else 'attention'}); check the weights or use --dtype float32"
        )
    return _shares(observer), state_BTD


def _shares(observer: _L1Observer) -> Scores:
    """Weights divided by the sum over each target's incoming edges; 0 where that sum is 0."""
    residual_GT, mlp_LT = observer.residual_GT, observer.mlp_LT
    total_mid_LT = residual_GT[0::2] + observer.attention_LHTS.sum(dim=(1, 3))
    total_post_LT = residual_GT[1::2] + mlp_LT
    scale_mid_LT = torch.where(total_mid_LT > 0, 1 / total_mid_LT, 0)
    scale_post_LT = torch.where(total_post_LT > 0, 1 / total_post_LT, 0)
    residual_GT[0::2] *= scale_mid_LT
    residual_GT[1::2] *= scale_post_LT
    observer.attention_LHTS *= scale_mid_LT[:, None, :, None]
    return Scores(
        residual_GT=residual_GT.numpy(),
        mlp_LT=(mlp_LT * scale_post_LT).numpy(),
        attention_LHTS=observer.attention_LHTS.numpy(),
    )
