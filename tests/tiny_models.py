"""Tiny random models of every family, with the corners that matter: grouped and multi-query heads,
biases, windows shorter than the text, tied embeddings, partial rotary, odd head sizes."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
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
}


def tiny_model(name: str, seed: int = 0):
    """A Hugging Face model in eval mode, float32, eager attention, with weights large enough that
    attention is far from uniform and norms and biases are not trivial."""
    model_class, config_class, extra = TINY[name]
    config = config_class(**(BASE | extra), attn_implementation="eager")
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key:
                value.copy_(1 + 0.3 * torch.randn_like(value))
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
    model_class, config_class, own = TINY[name]
    values = BASE | {"vocab_size": 300} | own | extra
    config = config_class(**values)
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn_like(value) if value.ndim > 1 else value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
