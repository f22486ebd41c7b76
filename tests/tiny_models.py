"""Tiny random models of every family, with the corners that matter: grouped and multi-query heads,
biases, windows shorter than the text, layers with and without positions, soft caps, sinks, tied
embeddings, partial rotary, odd head sizes, norms of queries and keys, multipliers, experts,
sequential and parallel blocks."""

import dataclasses

import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

# What a family's configuration does not know of this is left out.
BASE = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SLIDING, FULL = "sliding_attention", "full_attention"

TINY = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-mqa-biases": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-tied-odd-head": (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 4},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": 3}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            "use_sliding_window": True,
            "sliding_window": 2,
            "layer_types": [FULL, SLIDING, SLIDING],
        },
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "qwen3-bias": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 6, "attention_bias": True}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {"sliding_window": None}),
    "phi3-partial-rotary-window": (
        Phi3ForCausalLM,
        Phi3Config,
        {"hidden_size": 32, "sliding_window": 4, "partial_rotary_factor": 0.5},
    ),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {}),
    "olmo2-bias": (Olmo2ForCausalLM, Olmo2Config, {"attention_bias": True}),
    "olmo3": (
        Olmo3ForCausalLM,
        Olmo3Config,
        {"sliding_window": 3, "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "olmo3-bias-mqa": (
        Olmo3ForCausalLM,
        Olmo3Config,
        {"attention_bias": True, "num_key_value_heads": 1, "layer_types": [FULL] * 3},
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "head_dim": 8,
            "sliding_window": 3,
            "attn_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 10,
        },
    ),
    "gemma2-untied-bias-no-caps": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "head_dim": 6,
            "num_key_value_heads": 1,
            "sliding_window": 2,
            "layer_types": [FULL, SLIDING, SLIDING],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 6,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 8,
            "sliding_window": 3,
            "layer_types": [SLIDING, SLIDING, FULL],
            "query_pre_attn_scalar": 12,
        },
    ),
    "gemma3-cap-bias": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 6,
            "sliding_window": 2,
            "layer_types": [FULL, SLIDING, FULL],
            "query_pre_attn_scalar": 6,
            "final_logit_softcapping": 20.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {}),
    "gpt2-odd-head-layer-scale": (
        GPT2LMHeadModel,
        GPT2Config,
        {
            "hidden_size": 20,
            "n_inner": 18,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2-unscaled": (
        GPT2LMHeadModel,
        GPT2Config,
        {"scale_attn_weights": False, "activation_function": "gelu"},
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {"hidden_size": 32, "rotary_pct": 0.5}),
    "gpt_neox-sequential": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        {"hidden_size": 32, "use_parallel_residual": False},
    ),
    "gpt_neox-tied-no-bias": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        {"rotary_pct": 1.0, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "phi": (PhiForCausalLM, PhiConfig, {"hidden_size": 32}),
    "phi-qk-norm": (
        PhiForCausalLM,
        PhiConfig,
        {"hidden_size": 32, "qk_layernorm": True, "num_key_value_heads": 4},
    ),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.4}),
    "cohere-qk-norm-bias": (
        CohereForCausalLM,
        CohereConfig,
        {
            "logit_scale": 1.5,
            "use_qk_norm": True,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "cohere2": (
        Cohere2ForCausalLM,
        Cohere2Config,
        {"logit_scale": 0.4, "sliding_window": 3, "layer_types": [SLIDING, SLIDING, FULL]},
    ),
    "cohere2-bias-mqa": (
        Cohere2ForCausalLM,
        Cohere2Config,
        {
            "logit_scale": 0.7,
            "sliding_window": 2,
            "layer_types": [FULL, SLIDING, SLIDING],
            "attention_bias": True,
            "num_key_value_heads": 1,
        },
    ),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
    "mixtral-window-odd-head": (
        MixtralForCausalLM,
        MixtralConfig,
        {"num_local_experts": 4, "sliding_window": 3, "head_dim": 10},
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "head_dim": 8,
        },
    ),
    "qwen3_moe-window-bias": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 3,
            "attention_bias": True,
        },
    ),
    "gpt_oss": (
        GptOssForCausalLM,
        GptOssConfig,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 3,
            "swiglu_limit": 3.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 2.0,
                "beta_slow": 0.1,
                "truncate": False,
            },
        },
    ),
    "gpt_oss-no-bias-mqa": (
        GptOssForCausalLM,
        GptOssConfig,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 6,
            "num_key_value_heads": 1,
            "layer_types": [FULL, FULL, SLIDING],
            "sliding_window": 2,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.25,
            "logits_scaling": 2.5,
        },
    ),
    "granite-tied-biases": (
        GraniteForCausalLM,
        GraniteConfig,
        {
            "embedding_multiplier": 0.5,
            "residual_multiplier": 1.4,
            "attention_multiplier": 0.5,
            "logits_scaling": 0.8,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "glm4": (Glm4ForCausalLM, Glm4Config, {"head_dim": 8}),
    "glm4-no-bias-mqa": (
        Glm4ForCausalLM,
        Glm4Config,
        {
            "head_dim": 8,
            "num_key_value_heads": 1,
            "attention_bias": False,
            "partial_rotary_factor": 0.25,
        },
    ),
    "exaone4": (
        Exaone4ForCausalLM,
        Exaone4Config,
        {"sliding_window": 3, "layer_types": [SLIDING, FULL, SLIDING]},
    ),
    "exaone4-full-tied": (
        Exaone4ForCausalLM,
        Exaone4Config,
        {"sliding_window": None, "layer_types": [FULL] * 3, "tie_word_embeddings": True},
    ),
    "opt": (OPTForCausalLM, OPTConfig, {"ffn_dim": 20}),
    "opt-projected-plain-norms": (
        OPTForCausalLM,
        OPTConfig,
        {
            "ffn_dim": 20,
            "hidden_size": 20,
            "word_embed_proj_dim": 14,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
        },
    ),
    "stablelm": (StableLmForCausalLM, StableLmConfig, {"hidden_size": 32}),
    "stablelm-qk-norm-bias": (
        StableLmForCausalLM,
        StableLmConfig,
        {"partial_rotary_factor": 0.7, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    "stablelm-parallel": (
        StableLmForCausalLM,
        StableLmConfig,
        {
            "hidden_size": 32,
            "use_parallel_residual": True,
            "use_qkv_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "stablelm-parallel-qk-norm": (
        StableLmForCausalLM,
        StableLmConfig,
        {
            "hidden_size": 32,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "num_key_value_heads": 1,
        },
    ),
    "starcoder2": (Starcoder2ForCausalLM, Starcoder2Config, {}),
    "starcoder2-window-no-bias": (
        Starcoder2ForCausalLM,
        Starcoder2Config,
        {"sliding_window": 3, "use_bias": False, "tie_word_embeddings": False},
    ),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {"no_rope_layers": [1, 0, 1]}),
    "smollm3-window-biases": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        {
            "use_sliding_window": True,
            "sliding_window": 3,
            "no_rope_layers": [0, 1, 0],
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "nemotron": (NemotronForCausalLM, NemotronConfig, {"hidden_size": 32}),
    "nemotron-biases-mqa": (
        NemotronForCausalLM,
        NemotronConfig,
        {
            "head_dim": 8,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.25,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}

# Their gain is 1 + weight.
UNIT_OFFSET_NORMS = {"Gemma2RMSNorm", "Gemma3RMSNorm", "NemotronLayerNorm1P"}


def tiny_config(name, **extra):
    """The configuration of a row of TINY; `extra` overrides it."""
    _, config_class, own = TINY[name]
    known = {f.name for f in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    base = {key: value for key, value in BASE.items() if key in known}
    return config_class(**(base | own | extra))


def norm_gains(model):
    """{parameter name: its value for a gain of 1} of every norm's weight in a model."""
    return {
        f"{name}.weight": float(type(module).__name__ not in UNIT_OFFSET_NORMS)
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
    }


def tiny_model(name: str, seed: int = 0):
    """A Hugging Face model in eval mode, float32, eager attention and experts, with weights large
    enough that attention is far from uniform and norms and biases are not trivial."""
    config = tiny_config(name, attn_implementation="eager", experts_implementation="eager")
    torch.manual_seed(seed)
    model = TINY[name][0](config).eval()
    gains = norm_gains(model)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key in gains:
                value.copy_(gains[key] + 0.3 * torch.randn_like(value))
            else:
                value.copy_(0.35 * torch.randn_like(value))
    return model


def save_tiny(folder, name="llama", seed=0, bos=True, **extra):
    """A tiny model with a byte-level BPE tokenizer of 300 entries as a local folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the cat sat on the mat and the dog ran to the cat"] * 3, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")
    torch.manual_seed(seed)
    model = TINY[name][0](tiny_config(name, vocab_size=300, **extra)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn_like(value) if value.ndim > 1 else value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
