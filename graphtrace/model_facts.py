"""What one pass shows besides the edges: chosen experts, and how many MLP activations are large.

Shape suffixes: L layers, T tokens, X chosen experts.
"""

from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from graphtrace.models import TracedModel

ACTIVE = 0.05
"""An MLP activation counts as active above this share of its layer's largest (method.md 5)."""


class Facts(NamedTuple):
    """experts: int16 [L, T, X], -1 in layers without, None for models without experts;
    mlp_active_share: mean over the layers whose activations can be seen, or None."""

    experts: np.ndarray | None
    mlp_active_share: float | None


class FactObserver:
    """Hooks on the routers and on what reads the MLPs' activations, while it is entered."""

    def __init__(self, model: TracedModel) -> None:
        self.model = model
        self.experts: dict[int, np.ndarray] = {}
        self.active: dict[int, float] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "FactObserver":
        family = self.model.family
        for layer, block in enumerate(self.model.blocks):
            router = _sub_module(block, family.router)
            down = _sub_module(block, family.mlp_down)
            if router is not None:
                hook = lambda _, __, out, layer=layer: self._chose(layer, out)  # noqa: E731
                self._hooks.append(router.register_forward_hook(hook))
            if down is not None:
                hook = lambda _, given, layer=layer: self._activated(layer, given[0])  # noqa: E731
                self._hooks.append(down.register_forward_pre_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _chose(self, layer: int, out: tuple[torch.Tensor, ...]) -> None:
        self.experts[layer] = out[-1].detach().cpu().numpy().astype(np.int16)

    def _activated(self, layer: int, activation: torch.Tensor) -> None:
        size = activation.detach().abs()
        self.active[layer] = float((size > ACTIVE * size.max()).float().mean())

    def found(self) -> Facts:
        """What was seen."""
        experts = None
        if self.experts:
            shape = next(iter(self.experts.values())).shape
            absent = np.full(shape, -1, np.int16)
            experts = np.stack(
                [self.experts.get(layer, absent) for layer in range(self.model.n_layers)]
            )
        share = float(np.mean(list(self.active.values()))) if self.active else None
        return Facts(experts, share)


def _sub_module(block: Any, path: str | None) -> Any:
    """The sub-module at a dotted path, None where the block has none."""
    try:
        return None if path is None else attrgetter(path)(block)
    except AttributeError:
        return None
