"""Random Llama models of a given shape, for benchmarks: float32, sdpa, nothing downloaded."""

from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from graphtrace.loading import load_model
from graphtrace.models import TracedModel


class Shape(NamedTuple):
    """Layers, query heads, width and tokens of one configuration."""

    n_layers: int
    n_heads: int
    d_model: int
    n_tokens: int

    def __str__(self) -> str:
        return f"L = {self.n_layers}, H = {self.n_heads}, d = {self.d_model}, n = {self.n_tokens}"


def llama_config(shape: Shape, vocab_size: int = 32_000, **own) -> LlamaConfig:
    """The configuration of a Llama: MLP width 8/3 d, rounded up to 64; `own` overrides."""
    width = -(-8 * shape.d_model // (3 * 64)) * 64
    return LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": shape.d_model,
            "intermediate_size": width,
            "num_hidden_layers": shape.n_layers,
            "num_attention_heads": shape.n_heads,
            "num_key_value_heads": shape.n_heads,
            "max_position_embeddings": max(2048, shape.n_tokens),
            **own,
        }
    )


def random_llama(shape: Shape, seed: int = 0, embedding_std: float = 1.0, **own) -> TracedModel:
    """Random weights as transformers draws them, but for the embeddings.

    In the demo model, which is trained, residual edges hold about half of the score behind
    attention and four fifths behind the MLP. Embeddings of variance 1 give about the same at
    d = 512 (0.55 and 0.93); with those of transformers (0.02) the first layers are nearly all
    attention, and traces spread over heads as they do in no trained model.
    """
    torch.manual_seed(seed)
    causal_lm = LlamaForCausalLM(llama_config(shape, **own)).eval()
    torch.nn.init.normal_(causal_lm.model.embed_tokens.weight, std=embedding_std)
    return load_model(causal_lm)


def random_ids(model: TracedModel, n_tokens: int, seed: int = 0) -> torch.Tensor:
    """int64 [n_tokens], uniform over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (n_tokens,), generator=generator)
