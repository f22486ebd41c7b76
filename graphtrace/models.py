"""A Hugging Face causal LM together with the places that tracing needs."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from graphtrace.families import Family, is_parallel, layer_windows
from graphtrace.traces import ModelInfo


@dataclass(frozen=True)
class TracedModel:
    """A Hugging Face causal LM with the places that tracing needs, and its tokenizer or None."""

    causal_lm: Any
    tokenizer: Any
    family: Family
    name: str
    revision: str

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        return self.causal_lm.config

    @property
    def backbone(self) -> nn.Module:
        """The model without its language-model head."""
        return attrgetter(self.family.backbone)(self.causal_lm)

    @property
    def embedding(self) -> nn.Module:
        """Token embedding."""
        return getattr(self.backbone, self.family.embedding)

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder layers in order."""
        return list(getattr(self.backbone, self.family.layers))[: self.n_layers]

    @property
    def final_norm(self) -> nn.Module:
        """The norm in front of the head."""
        return getattr(self.backbone, self.family.final_norm)

    @cached_property
    def parallel(self) -> bool:
        """Whether attention and MLP of a block both read its input."""
        return is_parallel(self.family, self.config)

    @property
    def n_layers(self) -> int:
        """L."""
        return self.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        """H, query heads."""
        return self.config.num_attention_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.config.hidden_size

    @property
    def context_length(self) -> int | None:
        """Tokens that the model's positions reach, None where it states no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the embedding's device."""
        return next(self.embedding.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.causal_lm.dtype

    @cached_property
    def windows(self) -> tuple[int | None, ...] | None:
        """Per layer the keys that a query sees, None for full attention everywhere."""
        return layer_windows(self.family, self.config)

    @cached_property
    def info(self) -> ModelInfo:
        """The model as it is named in archives and stores."""
        revision = self.revision or weights_fingerprint(self.causal_lm)
        return ModelInfo(
            id=f"{self.name}@{revision}",
            name=self.name,
            revision=revision,
            family=self.family.name,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_model=self.d_model,
            n_params=sum(p.numel() for p in self.causal_lm.parameters()),
            dtype=str(self.dtype).removeprefix("torch."),
            parallel=self.parallel,
            windows=self.windows,
        )


def weights_fingerprint(causal_lm: Any, samples: int = 1024) -> str:
    """12 hex over every parameter's name, shape and up to `samples` evenly spaced values.

    Identifies a model that has no hub revision without naming its path; a change of dtype that
    rounds values changes it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(causal_lm.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // samples)
        digest.update(flat[::step][:samples].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
