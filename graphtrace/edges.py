"""Between per-layer tensors and the flat canonical order of all edges of a layout.

Sequential blocks. Shape suffixes as in scoring.py; E edges.
"""

import numba
import numpy as np

from graphtrace.layout import GraphLayout
from graphtrace.scoring import Scores


@numba.njit(cache=True)
def _walk(first, windows, n_tokens, residual_GT, mlp_LT, attention_LHTS, flat_E, to_flat):
    """Visit all edges in canonical order, copying tensors -> flat or flat -> tensors."""
    edge = 0
    n_layers, n_heads = attention_LHTS.shape[0], attention_LHTS.shape[1]
    for layer in range(n_layers):
        for t in range(first[2 * layer + 1], n_tokens):
            for s in range(max(0, t + 1 - windows[layer]), t + 1):
                if s == t:
                    if to_flat:
                        flat_E[edge] = residual_GT[2 * layer, t]
                    else:
                        residual_GT[2 * layer, t] = flat_E[edge]
                    edge += 1
                for head in range(n_heads):
                    if to_flat:
                        flat_E[edge] = attention_LHTS[layer, head, t, s]
                    else:
                        attention_LHTS[layer, head, t, s] = flat_E[edge]
                    edge += 1
        for t in range(first[2 * layer + 2], n_tokens):
            if to_flat:
                flat_E[edge] = residual_GT[2 * layer + 1, t]
                flat_E[edge + 1] = mlp_LT[layer, t]
            else:
                residual_GT[2 * layer + 1, t] = flat_E[edge]
                mlp_LT[layer, t] = flat_E[edge + 1]
            edge += 2
    return edge


def _windows(layout: GraphLayout) -> np.ndarray:
    return np.array([layout.window(layer) for layer in range(layout.n_layers)], np.int64)


def flatten_edges(layout: GraphLayout, tensors: Scores) -> np.ndarray:
    """The values of all edges [E] in canonical order."""
    flat_E = np.empty(layout.n_edges, tensors.attention_LHTS.dtype)
    n_edges = _walk(
        layout.first_position, _windows(layout), layout.n_tokens, *_fields(tensors), flat_E, True
    )
    assert n_edges == layout.n_edges
    return flat_E


def unflatten_edges(layout: GraphLayout, flat_E: np.ndarray, fill) -> Scores:
    """Tensors of per-edge values in canonical order, `fill` where there is no edge."""
    n_layers, n_heads, n_tokens = layout.n_layers, layout.n_heads, layout.n_tokens
    tensors = Scores(
        residual_GT=np.full((2 * n_layers, n_tokens), fill, flat_E.dtype),
        mlp_LT=np.full((n_layers, n_tokens), fill, flat_E.dtype),
        attention_LHTS=np.full((n_layers, n_heads, n_tokens, n_tokens), fill, flat_E.dtype),
    )
    _walk(layout.first_position, _windows(layout), n_tokens, *_fields(tensors), flat_E, False)
    return tensors


def _fields(tensors: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tensors.residual_GT, tensors.mlp_LT, tensors.attention_LHTS
