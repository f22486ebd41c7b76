"""Between per-layer tensors and the flat canonical order of all edges of a layout.

Sequential blocks: two levels per layer, attention edges into the first, mlp edges into the
second. Parallel blocks: one level per layer, which both enter. Residual edges enter every level.

Shape suffixes: G levels above the embedding, L layers, H heads, T target and S source tokens, E
edges.
"""

import numba
import numpy as np

from graphtrace.layout import GraphLayout
from graphtrace.scoring import Scores


@numba.njit(nogil=True, cache=True)
def _walk(first_position, windows, parallel, residual_GT, mlp_LT, attention_LHTS, flat_E, to_flat):
    """Visit all edges in canonical order, copying tensors -> flat or flat -> tensors."""
    edge = 0
    n_levels, n_tokens, n_heads = len(first_position), mlp_LT.shape[1], attention_LHTS.shape[1]
    # The rows of one target side by side, since rows of several heads at a power of two from each
    # other would push each other out of the cache.
    rows = np.empty(n_heads * n_tokens, flat_E.dtype)
    for level in range(1, n_levels):
        layer = level - 1 if parallel else (level - 1) // 2
        has_attention = parallel or level % 2 == 1
        has_mlp = parallel or level % 2 == 0
        for t in range(first_position[level], n_tokens):
            own = edge  # the residual edge; the heads of the own token follow it
            if has_attention:
                first_source = max(0, t + 1 - windows[layer])
                n_sources = t + 1 - first_source
                own += (n_sources - 1) * n_heads
                tensor_LHS = attention_LHTS[:, :, t, first_source : t + 1]
                if to_flat:
                    for head in range(n_heads):
                        row, part = tensor_LHS[layer, head], rows[head * n_sources :]
                        for s in range(n_sources):
                            part[s] = row[s]
                for s in range(n_sources):
                    at = edge + s * n_heads + (1 if s == n_sources - 1 else 0)
                    flat = flat_E[at : at + n_heads]
                    if to_flat:
                        for head in range(n_heads):
                            flat[head] = rows[head * n_sources + s]
                    else:
                        for head in range(n_heads):
                            rows[head * n_sources + s] = flat[head]
                if not to_flat:
                    for head in range(n_heads):
                        row, part = tensor_LHS[layer, head], rows[head * n_sources :]
                        for s in range(n_sources):
                            row[s] = part[s]
                edge += n_sources * n_heads
            if to_flat:
                flat_E[own] = residual_GT[level - 1, t]
            else:
                residual_GT[level - 1, t] = flat_E[own]
            edge += 1
            if has_mlp:
                if to_flat:
                    flat_E[edge] = mlp_LT[layer, t]
                else:
                    mlp_LT[layer, t] = flat_E[edge]
                edge += 1
    return edge


def flatten_edges(layout: GraphLayout, tensors: Scores) -> np.ndarray:
    """The values of all edges [E] in canonical order, in the dtype of the attention tensor."""
    flat_E = np.empty(layout.n_edges, tensors.attention_LHTS.dtype)
    _copy(layout, tensors, flat_E, to_flat=True)
    return flat_E


def unflatten_edges(layout: GraphLayout, flat_E: np.ndarray, fill) -> Scores:
    """Tensors of per-edge values in canonical order, `fill` where there is no edge."""
    n_layers, n_heads, n_tokens = layout.n_layers, layout.n_heads, layout.n_tokens
    tensors = Scores(
        residual_GT=np.full((layout.n_levels - 1, n_tokens), fill, flat_E.dtype),
        mlp_LT=np.full((n_layers, n_tokens), fill, flat_E.dtype),
        attention_LHTS=np.full((n_layers, n_heads, n_tokens, n_tokens), fill, flat_E.dtype),
    )
    _copy(layout, tensors, flat_E, to_flat=False)
    return tensors


def _copy(layout: GraphLayout, tensors: Scores, flat_E: np.ndarray, to_flat: bool) -> None:
    n_layers, n_heads, n_tokens = layout.n_layers, layout.n_heads, layout.n_tokens
    # The compiled loop checks no bounds.
    assert flat_E.shape == (layout.n_edges,)
    assert tensors.residual_GT.shape == (layout.n_levels - 1, n_tokens)
    assert tensors.mlp_LT.shape == (n_layers, n_tokens)
    assert tensors.attention_LHTS.shape == (n_layers, n_heads, n_tokens, n_tokens)
    windows = np.array([layout.window(layer) for layer in range(n_layers)], np.int64)
    n_copied = _walk(
        layout.first_position,
        windows,
        layout.parallel,
        tensors.residual_GT,
        tensors.mlp_LT,
        tensors.attention_LHTS,
        flat_E,
        to_flat,
    )
    assert n_copied == layout.n_edges
