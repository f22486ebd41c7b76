"""Running modules in float32 whose weights are in half precision."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_float32(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Parameters and buffers as float32 copies, while entered; the originals stay untouched."""
    before = []
    try:
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                before.append((tensor, tensor.data))
                tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """All parameters and buffers of a module, each once."""
    return list({id(x): x for x in (*module.parameters(), *module.buffers())}.values())
