"""Where each model family keeps its sub-modules and norms: data, keyed by the model class.

Attribute names mean different things in different families (`post_attention_layernorm` is the norm
before the MLP in Llama and the norm after attention in OLMo-2), hence one explicit row per class.
To add a family with sequential blocks, add a row and a tiny configuration to
`tests/tiny_models.py`; the exactness tests then run on it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from graphtrace.errors import UnsupportedFamilyError


@dataclass(frozen=True)
class Family:
    """One family with sequential pre- or post-norm blocks.

    Norms: attribute of the norm in front of (`_norm`) or behind (`_post_norm`) each sub-layer,
    None where there is none. window: which layers see a sliding window: `all` of them when the
    configuration has one, those that `layer_types` marks, or none.
    """

    name: str
    model_class: str
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    window: Literal["all", "layer_types"] | None = None
    backbone: str = "model"
    embedding: str = "embed_tokens"
    rotary: str = "rotary_emb"
    layers: str = "layers"
    attention: str = "self_attn"
    output_projection: str = "o_proj"
    mlp: str = "mlp"
    final_norm: str = "norm"
    head: str = "lm_head"


FAMILIES: dict[str, Family] = {
    family.model_class: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM", window="all"),
        Family("qwen2", "Qwen2ForCausalLM", window="layer_types"),
        Family("qwen3", "Qwen3ForCausalLM", window="layer_types"),
        Family("phi3", "Phi3ForCausalLM", window="all"),
        Family(
            "olmo2",
            "Olmo2ForCausalLM",
            attention_norm=None,
            attention_post_norm="post_attention_layernorm",
            mlp_norm=None,
            mlp_post_norm="post_feedforward_layernorm",
        ),
    )
}
"""Supported families by model class name."""


def family_of(model_class: str, model_type: str = "") -> Family:
    """The family of a model class. Raises UnsupportedFamilyError naming it and those supported."""
    if model_class in FAMILIES:
        return FAMILIES[model_class]
    supported = ", ".join(sorted(family.name for family in FAMILIES.values()))
    kind = f" (model type {model_type!r})" if model_type else ""
    raise UnsupportedFamilyError(
        f"{model_class or 'this model'}{kind} is not a family that graphtrace can trace; "
        f"supported: {supported}"
    )


def layer_windows(family: Family, config: Any) -> tuple[int | None, ...] | None:
    """Per layer how many keys a query sees, itself included; None for no window at all."""
    width = getattr(config, "sliding_window", None)
    if family.window is None or width is None:
        return None
    if family.window == "all":
        return (int(width),) * config.num_hidden_layers
    kinds = config.layer_types[: config.num_hidden_layers]
    windows = tuple(int(width) if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else None
