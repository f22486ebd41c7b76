"""Edge masks of nested traces, made layer by layer from one uint8 per edge.

Every edge carries the bucket of the first trace that contains it, so the mask of point p is
`bucket <= p`. Several inputs of different lengths stand in one batch, padded at the end: a token
never sees what comes after it, so the padding changes nothing.

Shape suffixes: N evaluations of all inputs, I inputs, the others as in forward.py.
"""

from collections.abc import Sequence

import numpy as np
import torch

from graphtrace.forward import LayerMask
from graphtrace.models import TracedModel
from graphtrace.scoring import Scores

NO_EDGE = 255
"""Bucket of places in the tensors where the graph has no edge."""
COUNTED_TOGETHER = 2**24
"""Places whose masks are made at once to count them."""


class BucketMasks:
    """Masks of every point of every input, N in all, inputs in order and points ascending.

    buckets: uint8 per edge and input, n_points or more where no trace holds it, NO_EDGE where there
    is no edge. mode, ablate: as in evaluation.Evaluation.
    """

    def __init__(
        self,
        model: TracedModel,
        buckets: Sequence[Scores],
        n_points: Sequence[int],
        mode: str = "sufficiency",
        ablate: Sequence[str] = ("residual", "mlp", "attention"),
    ) -> None:
        self.buckets, self.mode, self.ablate = buckets, mode, ablate
        self.device, self.dtype, self.parallel = model.device, model.dtype, model.parallel
        self.input_N = np.repeat(np.arange(len(buckets)), n_points)
        self.point_N = np.concatenate([np.arange(n, dtype=np.uint8) for n in n_points])
        self.n_tokens = max(tensors.mlp_LT.shape[1] for tensors in buckets)

    def __call__(self, layer: int) -> LayerMask:
        """The masks of every edge of a layer."""
        every = np.arange(len(self.input_N))

        def residual(level: int) -> torch.Tensor:
            return self._mask("residual", self._padded("residual_GT", level), every)

        return LayerMask(
            attention_BHTS=self.attention(layer, every),
            mlp_BT=self._mask("mlp", self._padded("mlp_LT", layer), every),
            residual_BT=residual(layer if self.parallel else 2 * layer + 1),
            residual_mid_BT=None if self.parallel else residual(2 * layer),
        )

    def attention(self, layer: int, rows_B: np.ndarray) -> torch.Tensor:
        """The attention masks [B, H, T, S] of a layer, for some of the N evaluations."""
        return self._mask("attention", self._padded("attention_LHTS", layer), rows_B)

    def targets(self, layer: int, rows_B: np.ndarray, targets_BA: np.ndarray) -> torch.Tensor:
        """The same [B, H, A, S] for some of the targets of each."""
        bucket_ITHS = self._padded("attention_LHTS", layer).transpose(0, 2, 1, 3)
        n_inputs, n_tokens, n_heads, _ = bucket_ITHS.shape
        row_BA = self.input_N[rows_B][:, None] * n_tokens + targets_BA
        bucket_X = upload(bucket_ITHS.reshape(n_inputs * n_tokens, -1), self.device)
        bucket_X = bucket_X.index_select(0, upload(row_BA.ravel(), self.device))
        bucket_BAHS = bucket_X.view(*targets_BA.shape, n_heads, n_tokens)
        kept_BAHS = self._kept("attention", bucket_BAHS, self.point_N[rows_B])
        return kept_BAHS.transpose(1, 2).contiguous()

    def dropped(self, layer: int) -> torch.Tensor:
        """How many attention edges each target lacks, int64 [N, H, T]."""
        exists_I = upload(self._padded("attention_LHTS", layer), self.device) != NO_EDGE
        step, found = max(1, COUNTED_TOGETHER // exists_I[0].numel()), []
        for start in range(0, len(self.input_N), step):
            rows_B = np.arange(len(self.input_N))[start : start + step]
            exists_B = exists_I[upload(self.input_N[rows_B], self.device)]
            found.append(((self.attention(layer, rows_B) == 0) & exists_B).sum(-1))
        return torch.cat(found)

    def _padded(self, name: str, index: int) -> np.ndarray:
        """uint8 [I, T] or [I, H, T, S]: one layer's buckets of all inputs."""
        found = [getattr(tensors, name)[index] for tensors in self.buckets]
        if all(bucket.shape[-1] == self.n_tokens for bucket in found):
            return found[0][None] if len(found) == 1 else np.stack(found)
        shape = (*found[0].shape[:-2], self.n_tokens, self.n_tokens)[-found[0].ndim :]
        padded = np.full((len(found), *shape), NO_EDGE, np.uint8)
        for i, bucket in enumerate(found):
            padded[i][tuple(slice(size) for size in bucket.shape)] = bucket
        return padded

    def _mask(self, kind: str, bucket_I: np.ndarray, rows_B: np.ndarray) -> torch.Tensor:
        bucket_B = upload(bucket_I, self.device)[upload(self.input_N[rows_B], self.device)]
        return self._kept(kind, bucket_B, self.point_N[rows_B])

    def _kept(self, kind: str, bucket_B: torch.Tensor, point_B: np.ndarray) -> torch.Tensor:
        """0/1 of the shape of the buckets, the first axis of which are evaluations."""
        necessity = self.mode == "necessity"
        if kind not in self.ablate or (necessity and kind == "residual"):
            return torch.ones_like(bucket_B, dtype=self.dtype)
        inside = bucket_B <= upload(point_B, self.device).view(-1, *[1] * (bucket_B.ndim - 1))
        kept = ~inside & (bucket_B != NO_EDGE) if necessity else inside
        return kept.to(self.dtype)


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device; to a GPU through pinned memory, without waiting."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
