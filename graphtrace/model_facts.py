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
        # On the device until the pass is over, so that it is not waited for in between.
        self.experts: dict[int, torch.Tensor] = {}
        self.active: dict[int, tuple[torch.Tensor, int]] = {}
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
        self.experts[layer] = out[-1].detach()

    def _activated(self, layer: int, activation: torch.Tensor) -> None:
        size = activation.detach().abs()
        # In place, as numbers: several times as fast on a CPU as counting booleans.
        n_active = size.gt_(ACTIVE * size.max()).sum(-1, dtype=torch.float32)
        self.active[layer] = n_active.sum(dtype=torch.float64), size.numel()

    def found(self) -> Facts:
        """What was seen."""
        experts = None
        if self.experts:
            chosen = {i: x.cpu().numpy().astype(np.int16) for i, x in self.experts.items()}
            absent = np.full_like(next(iter(chosen.values())), -1)
            experts = np.stack([chosen.get(layer, absent) for layer in range(self.model.n_layers)])
        shares = [int(count) / size for count, size in self.active.values()]
        return Facts(experts, float(np.mean(shares)) if shares else None)


def _sub_module(block: Any, path: str | None) -> Any:
    """The sub-module at a dotted path, None where the block has none."""
    try:
        return None if path is None else attrgetter(path)(block)
    except AttributeError:
        return None
