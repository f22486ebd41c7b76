"""The one layer loop: plain, observed, or with every edge multiplied by its 0/1 mask.

It calls the model's own sub-modules and owns only the residual additions and the attention
function, so that with all masks one it computes what the model computes, bit for bit.

Shape suffixes: B evaluations, T target tokens (queries), S source tokens (keys), D width, H query
heads, K key/value heads, E head size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import AttentionInterface

from graphtrace.models import TracedModel

ATTENTION_NAME = "graphtrace_masked"


class LayerMask(NamedTuple):
    """Which edges of one layer are kept, as 0/1 in the model's dtype.

    residual_mid_BT: edges (2l, t) -> (2l+1, t); attention_BHTS; mlp_BT: (2l+1, t) -> (2l+2, t);
    residual_post_BT: the residual edges parallel to it.
    """

    residual_mid_BT: torch.Tensor
    attention_BHTS: torch.Tensor
    mlp_BT: torch.Tensor
    residual_post_BT: torch.Tensor


class Observer(Protocol):
    """Sees what every edge is made of, layer by layer, in one unmasked pass."""

    def pattern(self, layer: int, probs_BHTS: torch.Tensor, value_BKSE: torch.Tensor) -> None:
        """Attention probabilities and values of a layer."""
        ...

    def attention(self, layer: int, state_BTD: torch.Tensor, added_BTD: torch.Tensor) -> None:
        """The state before attention, and o_proj's output before any post-norm."""
        ...

    def mlp(self, layer: int, state_BTD: torch.Tensor, added_BTD: torch.Tensor) -> None:
        """The state before the MLP, and what the MLP adds after any post-norm."""
        ...


class _Step(NamedTuple):
    """What the attention function needs to know of the layer that calls it."""

    layer: int
    mask_BHTS: torch.Tensor | None
    observer: Observer | None


# Some families do not pass extra arguments on to the attention function; a context variable
# reaches it in all of them.
_step: ContextVar[_Step] = ContextVar("graphtrace_step")


def _masked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention, operation by operation, with the edge mask after the softmax and without
    renormalising (method.md 4)."""
    step = _step.get()
    groups = query.shape[1] // key.shape[1]
    key_BHSE = key.repeat_interleave(groups, dim=1) if groups > 1 else key
    value_BHSE = value.repeat_interleave(groups, dim=1) if groups > 1 else value
    logits_BHTS = torch.matmul(query, key_BHSE.transpose(2, 3)) * scaling + attention_mask
    probs_BHTS = nn.functional.softmax(logits_BHTS, dim=-1, dtype=torch.float32).to(query.dtype)
    if step.observer is not None:
        step.observer.pattern(step.layer, probs_BHTS, value)
    if step.mask_BHTS is not None:
        probs_BHTS = probs_BHTS * step.mask_BHTS
    out_BTHE = torch.matmul(probs_BHTS, value_BHSE).transpose(1, 2).contiguous()
    return out_BTHE, probs_BHTS


AttentionInterface.register(ATTENTION_NAME, _masked_attention)


@contextmanager
def _attention_function(config: Any) -> Iterator[None]:
    """Use the masked attention function; leave the model's configuration as it was found."""
    before = config._attn_implementation
    config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def causal_bias(
    n_tokens: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[1, 1, T, S]: 0 where a query sees a key, the dtype's minimum elsewhere, as eager attention
    adds it."""
    target_T1 = torch.arange(n_tokens, device=device)[:, None]
    source_1S = torch.arange(n_tokens, device=device)[None, :]
    seen_TS = source_1S <= target_T1
    if window is not None:
        seen_TS &= source_1S > target_T1 - window
    bias_TS = torch.zeros((n_tokens, n_tokens), dtype=dtype, device=device)
    return bias_TS.masked_fill(~seen_TS, torch.finfo(dtype).min)[None, None]


@torch.no_grad()
def run_layers(
    model: TracedModel,
    ids_BT: torch.Tensor,
    masks: Callable[[int], LayerMask] | None = None,
    observer: Observer | None = None,
) -> torch.Tensor:
    """The final residual state [B, T, D], before the final norm.

    ids_BT: token ids without padding. masks: the LayerMask of each layer, for B masked evaluations
    at once; None leaves every edge. A node none of whose incoming edges is kept holds zero;
    embeddings are always there. The o_proj bias belongs to no edge: a target keeps it while it
    keeps an attention edge of that layer (method.md 2).
    """
    family = model.family
    state_BTD = model.embedding(ids_BT)
    n_tokens = ids_BT.shape[1]
    positions_1T = torch.arange(n_tokens, device=ids_BT.device)[None]
    rotary = model.rotary(state_BTD, position_ids=positions_1T)
    windows = model.windows or (None,) * model.n_layers
    bias = {
        window: causal_bias(n_tokens, window, state_BTD.dtype, state_BTD.device)
        for window in set(windows)
    }
    with _attention_function(model.config):
        for layer, block in enumerate(model.blocks):
            mask = masks(layer) if masks else None
            token = _step.set(_Step(layer, mask.attention_BHTS if mask else None, observer))
            added_BTD, _ = getattr(block, family.attention)(
                hidden_states=_norm(block, family.attention_norm, state_BTD),
                attention_mask=bias[windows[layer]],
                position_embeddings=rotary,
                position_ids=positions_1T,
                past_key_values=None,
            )
            _step.reset(token)
            if observer is not None:
                observer.attention(layer, state_BTD, added_BTD)
            if mask is not None:
                kept_BT = mask.attention_BHTS.amax(dim=(1, 3))
                added_BTD = added_BTD * kept_BT[..., None]
                state_BTD = state_BTD * mask.residual_mid_BT[..., None]
            state_BTD = state_BTD + _norm(block, family.attention_post_norm, added_BTD)

            mlp_in_BTD = _norm(block, family.mlp_norm, state_BTD)
            added_BTD = getattr(block, family.mlp)(mlp_in_BTD)
            if mask is not None:
                added_BTD = added_BTD * mask.mlp_BT[..., None]
            added_BTD = _norm(block, family.mlp_post_norm, added_BTD)
            if observer is not None:
                observer.mlp(layer, state_BTD, added_BTD)
            if mask is not None:
                state_BTD = state_BTD * mask.residual_post_BT[..., None]
            state_BTD = state_BTD + added_BTD
    return state_BTD


@torch.no_grad()
def next_token_logits(model: TracedModel, state_BTD: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] in float32 at the last position of a final residual state."""
    return model.head(model.final_norm(state_BTD)[:, -1:])[:, 0].float()


def _norm(block: nn.Module, name: str | None, state_BTD: torch.Tensor) -> torch.Tensor:
    return state_BTD if name is None else getattr(block, name)(state_BTD)
