"""Nested masked evaluations in one pass, each row of every layer computed once (see plan.py).

The model's own sub-modules run on the rows that changed, packed together over all inputs and
sizes; a row that did not change is fetched from the evaluation that computed it. Inside attention
the input projections run on the distinct states, and the output projection on the targets that
keep an attention edge. All indices are made and uploaded before the model runs, so that a device
is never waited for.

Shape suffixes: N evaluations of all inputs, T tokens, D width, R computed rows, U distinct states,
B evaluations whose attention runs together, H heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graphtrace.forward import LayerMask, Means, block_norm, run_mlp
from graphtrace.masks import BucketMasks, upload
from graphtrace.models import TracedModel
from graphtrace.plan import LayerPlan, changed_rows, latest


class _Attention(NamedTuple):
    """One chunk of attention. rows_B: evaluations, on the host; rows_U: their distinct states, in
    [N * T]; place_BT: each state among those; active_R: targets that are computed, in [B * T]."""

    rows_B: np.ndarray
    rows_U: torch.Tensor
    place_BT: torch.Tensor
    active_R: torch.Tensor


class _LayerWork(NamedTuple):
    """What one layer does. place_NT: each output among the computed rows, the row behind them
    where nothing is kept."""

    attention: list[_Attention]
    attention_place_NT: torch.Tensor
    mlp_rows: list[torch.Tensor]
    mlp_place_NT: torch.Tensor
    without_mlp_NT: torch.Tensor


class PlannedBatch:
    """What `run_model` needs to evaluate nested traces of several inputs by plan.

    plans: the plan of every input. lengths: tokens of every input. points_together: evaluations
    whose attention runs at once.
    """

    def __init__(
        self,
        model: TracedModel,
        masks: BucketMasks,
        plans: Sequence[list[LayerPlan]],
        lengths: Sequence[int],
        means: Means | None,
        points_together: int,
    ) -> None:
        self.model, self.masks, self.means = model, masks, means
        self.points_together = points_together
        n_points = np.bincount(masks.input_N)
        self.input_N = upload(masks.input_N, model.device)
        self.last_N = upload(np.repeat(np.array(lengths) - 1, n_points), model.device)
        self.work = [
            self._layer_work(_stack([plan[layer] for plan in plans], masks.n_tokens))
            for layer in range(model.n_layers)
        ]

    def expand(self, state_ITD: torch.Tensor) -> torch.Tensor:
        """The states of every evaluation [N, T, D], from those of every input."""
        return state_ITD[self.input_N.to(state_ITD.device)]

    def last(self, state_NTD: torch.Tensor) -> torch.Tensor:
        """The states with every input's own last token in the last place."""
        index = self.last_N.to(state_NTD.device)
        own_ND = state_NTD[torch.arange(len(index), device=state_NTD.device), index]
        return torch.cat([state_NTD[:, :-1], own_ND[:, None]], dim=1)

    def residual_mask(self, layer: int) -> LayerMask:
        """The residual masks of a layer."""
        return self.masks.residual(layer)

    def attention(self, run: Any, layer: int, block: Any, attend: Any, state_NTD: torch.Tensor):
        """o_proj's output [N, T, D] of the kept attention edges."""
        work, family, width = self.work[layer], self.model.family, state_NTD.shape[-1]
        flat_XD = state_NTD.reshape(-1, width)
        module = getattr(block, family.attention)
        computed, mask = [], run.mask
        for chunk in work.attention:
            rows_U, place_BT, active_R = (x.to(flat_XD.device) for x in chunk[1:])
            normed_UD = block_norm(block, family.attention_norm, flat_XD[rows_U])
            attention_BHTS = self.masks.attention(layer, chunk.rows_B)
            run.mask = mask._replace(attention_BHTS=attention_BHTS)
            with _packed(module, family.output_projection, normed_UD, place_BT, active_R):
                added_BTD = attend(hidden_states=normed_UD[place_BT])[0]
            computed.append(added_BTD.reshape(-1, width)[active_R])
        run.mask = mask
        added_NTD = _fetch(computed, flat_XD, work.attention_place_NT)
        if run.ablation == "mean":
            assert self.means is not None
            mean_HD = self.means.attention_LHD[layer].to(added_NTD.device)
            dropped_NHT = self.masks.dropped(layer).to(mean_HD)
            extra_NTD = torch.einsum("nht,hd->ntd", dropped_NHT, mean_HD)
            added_NTD = added_NTD + extra_NTD.to(added_NTD.dtype)
        return added_NTD

    def mlp(self, run: Any, layer: int, block: Any, norm: str | None, state_NTD: torch.Tensor):
        """The MLP's output [N, T, D] where its edge is kept."""
        work, flat_XD = self.work[layer], state_NTD.reshape(-1, state_NTD.shape[-1])
        computed = []
        for rows in work.mlp_rows:
            state_1RD = flat_XD[rows.to(flat_XD.device)][None]
            computed.append(run_mlp(self.model, block, block_norm(block, norm, state_1RD))[0])
        added_NTD = _fetch(computed, flat_XD, work.mlp_place_NT)
        if run.ablation == "mean":
            assert self.means is not None
            mean_D = self.means.mlp_LD[layer].to(added_NTD)
            added_NTD = added_NTD + work.without_mlp_NT.to(added_NTD.device)[..., None] * mean_D
        return added_NTD

    def _layer_work(self, plan: LayerPlan) -> _LayerWork:
        device, n_tokens = self.model.device, plan.state_PT.shape[1]
        latest_NT = latest(plan.state_PT)
        chunks, order = [], []
        points_P = np.flatnonzero(plan.attention_PT.any(axis=1))
        for start in range(0, len(points_P), self.points_together):
            rows_B = points_P[start : start + self.points_together]
            active_BT = plan.attention_PT[rows_B]
            # No query looks beyond the last active target.
            reach_B = n_tokens - np.argmax(active_BT[:, ::-1], axis=1)
            row_BT = latest_NT[rows_B] * n_tokens + np.arange(n_tokens)
            row_BT = np.where(np.arange(n_tokens) < reach_B[:, None], row_BT, row_BT[:, :1])
            rows_U, place_BT = _distinct(row_BT, latest_NT.size)
            active_R = np.flatnonzero(active_BT)
            order.append(rows_B)
            chunks.append(
                _Attention(rows_B, *(upload(x, device) for x in (rows_U, place_BT, active_R)))
            )
        _, attention_place = changed_rows(plan.attention_PT, plan.has_attention_PT)
        mlp_rows_R, mlp_place = changed_rows(plan.mlp_PT, plan.has_mlp_PT)
        step = max(1, self.points_together * n_tokens)
        return _LayerWork(
            attention=chunks,
            attention_place_NT=upload(attention_place, device),
            mlp_rows=[
                upload(mlp_rows_R[start : start + step], device)
                for start in range(0, len(mlp_rows_R), step)
            ],
            mlp_place_NT=upload(mlp_place, device),
            without_mlp_NT=upload(~plan.has_mlp_PT, device),
        )


def _stack(plans: list[LayerPlan], n_tokens: int) -> LayerPlan:
    """One layer's plans of all inputs, one below the other; nothing happens in the padding."""
    return LayerPlan(
        *(
            np.concatenate([np.pad(x, ((0, 0), (0, n_tokens - x.shape[1]))) for x in parts])
            for parts in zip(*plans, strict=True)
        )
    )


def _distinct(row_BT: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, ascending, and the place of each row among them; like np.unique."""
    used = np.zeros(n_rows, bool)
    used[row_BT] = True
    return np.flatnonzero(used), (np.cumsum(used) - 1)[row_BT]


def _fetch(computed: list[torch.Tensor], like: torch.Tensor, place_NT: torch.Tensor):
    """[N, T, D]: the computed row at each place; zero at the place behind the last."""
    rows_RD = torch.cat([*computed, like.new_zeros(1, like.shape[-1])])
    return rows_RD[place_NT.to(like.device)]


@contextmanager
def _packed(
    module: nn.Module, output: str, normed_UD: torch.Tensor, place_BT, active_R
) -> Iterator[None]:
    """Run the input projections of an attention module on the distinct states only, and its
    output projection on the active targets only; other rows of its output are zero."""
    replaced = []
    try:
        for name, child in module.named_children():
            # What accelerate or a quantiser has wrapped runs on every row, as it is.
            if type(child) not in (nn.Linear, Conv1D) or "forward" in child.__dict__:
                continue
            forward = child.forward
            if name == output:

                def output_rows(x_BTE, forward=forward):
                    out_RD = forward(x_BTE.reshape(-1, x_BTE.shape[-1])[active_R])
                    out_XD = out_RD.new_zeros(x_BTE.shape[0] * x_BTE.shape[1], out_RD.shape[-1])
                    out_XD[active_R] = out_RD
                    return out_XD.view(*x_BTE.shape[:2], -1)

                child.forward = output_rows
            else:

                def input_rows(_, forward=forward):
                    return forward(normed_UD)[place_BT]

                child.forward = input_rows
            replaced.append(child)
        yield
    finally:
        for child in replaced:
            del child.forward
