"""Where each model family keeps its sub-modules and norms: data, keyed by the model class.

Attribute names mean different things in different families (`post_attention_layernorm` is the norm
before the MLP in Llama, the norm after attention in OLMo-2 and Gemma-2), hence one explicit row
per class. docs/families.md says how to add one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from graphtrace.errors import UnsupportedFamilyError


@dataclass(frozen=True)
class Family:
    """One family of decoder-only models.

    Norms: attribute of the norm in front of (`_norm`) or behind (`_post_norm`) each sub-layer,
    None where there is none. norm: what kind they are: `rms`, `layer` (with centring), and `+1`
    where the stored weight lacks 1. parallel: attention and MLP both read the block's input;
    or the configuration's flag that says so. parallel_mlp_norm: the MLP's own norm in a parallel
    block, None where it shares the attention's; residual_first: whether its sum begins with the
    residual (the last bit of a float sum depends on it). window: which layers see a sliding
    window: `all` of them when the configuration has one, those that `layer_types` marks, or none.
    conv1d: the output projection's weight is [in, out]. multiplier: block attribute that scales
    each sub-layer's output. run_mlp: how to run the MLP where it is no module of its own.
    mlp_down: the projection that reads the MLP's activations. router: the module of a
    mixture-of-experts block whose last output are the chosen experts. refused: configuration
    values under which the blocks are built differently, with the reason.
    """

    name: str
    model_class: str
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    norm: Literal["rms", "rms+1", "layer", "layer+1"] = "rms"
    parallel: bool | str = False
    parallel_mlp_norm: str | None = None
    residual_first: bool = False
    window: Literal["all", "layer_types"] | None = None
    backbone: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    attention: str = "self_attn"
    output_projection: str = "o_proj"
    conv1d: bool = False
    mlp: str = "mlp"
    mlp_down: str = "mlp.down_proj"
    run_mlp: Callable[[Any, Any], Any] | None = None
    router: str | None = None
    multiplier: str | None = None
    final_norm: str = "norm"
    refused: tuple[tuple[str, Any, str], ...] = ()


def _opt_mlp(block: Any, state_BTD: Any) -> Any:
    flat_ND = state_BTD.reshape(-1, state_BTD.shape[-1])
    return block.fc2(block.activation_fn(block.fc1(flat_ND))).view(state_BTD.shape)


_POST_ONLY: dict[str, Any] = {
    "attention_norm": None,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": None,
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GEMMA: dict[str, Any] = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "norm": "rms+1",
    "window": "layer_types",
}
_COHERE: dict[str, Any] = {"norm": "layer", "parallel": True, "residual_first": True}

FAMILIES: dict[str, Family] = {
    family.model_class: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM", window="all"),
        Family("qwen2", "Qwen2ForCausalLM", window="layer_types"),
        Family("qwen3", "Qwen3ForCausalLM", window="layer_types"),
        Family("phi3", "Phi3ForCausalLM", window="all"),
        Family("olmo2", "Olmo2ForCausalLM", **_POST_ONLY),
        Family("olmo3", "Olmo3ForCausalLM", **_POST_ONLY, window="layer_types"),
        Family("exaone4", "Exaone4ForCausalLM", **_POST_ONLY, window="layer_types"),
        Family("gemma2", "Gemma2ForCausalLM", **_GEMMA),
        Family(
            "gemma3",
            "Gemma3ForCausalLM",
            **_GEMMA,
            refused=(("use_bidirectional_attention", True, "its attention is not causal"),),
        ),
        Family(
            "glm4",
            "Glm4ForCausalLM",
            attention_post_norm="post_self_attn_layernorm",
            mlp_post_norm="post_mlp_layernorm",
        ),
        Family("granite", "GraniteForCausalLM", multiplier="residual_multiplier"),
        Family("smollm3", "SmolLM3ForCausalLM", window="layer_types"),
        Family("mixtral", "MixtralForCausalLM", window="all", router="mlp.gate"),
        Family("qwen3_moe", "Qwen3MoeForCausalLM", window="all", router="mlp.gate"),
        Family("gpt_oss", "GptOssForCausalLM", window="layer_types", router="mlp.router"),
        Family(
            "starcoder2",
            "Starcoder2ForCausalLM",
            norm="layer",
            window="all",
            mlp_down="mlp.c_proj",
        ),
        Family("nemotron", "NemotronForCausalLM", norm="layer+1"),
        Family(
            "stablelm",
            "StableLmForCausalLM",
            norm="layer",
            parallel="use_parallel_residual",
            residual_first=True,
        ),
        Family(
            "opt",
            "OPTForCausalLM",
            attention_norm="self_attn_layer_norm",
            mlp_norm="final_layer_norm",
            norm="layer",
            backbone="model.decoder",
            output_projection="out_proj",
            run_mlp=_opt_mlp,
            mlp_down="fc2",
            final_norm="final_layer_norm",
            refused=(
                ("do_layer_norm_before", False, "its norms stand behind the residual addition"),
                ("_remove_final_layer_norm", True, "it has no final norm"),
            ),
        ),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            attention_norm="ln_1",
            mlp_norm="ln_2",
            norm="layer",
            backbone="transformer",
            embedding="wte",
            layers="h",
            attention="attn",
            output_projection="c_proj",
            conv1d=True,
            mlp_down="mlp.c_proj",
            final_norm="ln_f",
            refused=(("add_cross_attention", True, "its cross-attention has no edges"),),
        ),
        Family(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            norm="layer",
            parallel="use_parallel_residual",
            parallel_mlp_norm="post_attention_layernorm",
            backbone="gpt_neox",
            embedding="embed_in",
            attention="attention",
            output_projection="dense",
            mlp_down="mlp.dense_4h_to_h",
            final_norm="final_layer_norm",
        ),
        Family(
            "phi",
            "PhiForCausalLM",
            norm="layer",
            parallel=True,
            output_projection="dense",
            mlp_down="mlp.fc2",
            final_norm="final_layernorm",
        ),
        Family("cohere", "CohereForCausalLM", **_COHERE),
        Family("cohere2", "Cohere2ForCausalLM", **_COHERE, window="layer_types"),
    )
}
"""Supported families by model class name."""


def family_of(model_class: str, model_type: str = "", config: Any = None) -> Family:
    """The family of a model class.

    Raises UnsupportedFamilyError naming it and those supported, or the value of `config` under
    which this family's blocks are built in a way that is not supported.
    """
    family = FAMILIES.get(model_class)
    if family is None:
        supported = ", ".join(sorted(family.name for family in FAMILIES.values()))
        kind = f" (model type {model_type!r})" if model_type else ""
        raise UnsupportedFamilyError(
            f"{model_class or 'this model'}{kind} is not a family that graphtrace can trace; "
            f"supported: {supported}"
        )
    for key, value, reason in family.refused:
        if getattr(config, key, None) == value:
            raise UnsupportedFamilyError(
                f"{model_class} with {key}={value} cannot be traced: {reason}; other {family.name} "
                "models can"
            )
    return family


def is_parallel(family: Family, config: Any) -> bool:
    """Whether attention and MLP of a block both read its input."""
    if isinstance(family.parallel, str):
        return bool(getattr(config, family.parallel))
    return family.parallel


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
