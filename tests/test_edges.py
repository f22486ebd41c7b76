"""Per-layer tensors and the flat canonical order, against the columns of the layout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace import schema
from graphtrace.edges import flatten_edges, unflatten_edges
from graphtrace.layout import GraphLayout


@st.composite
def layouts(draw):
    n_layers = draw(st.integers(1, 4))
    widths = st.sampled_from([None, 1, 2, 3, 9])
    windows = draw(st.none() | st.tuples(*[widths] * n_layers))
    return GraphLayout(
        draw(st.integers(1, 6)), n_layers, draw(st.integers(1, 3)), draw(st.booleans()), windows
    )


def value_at(layout, tensors, edge):
    """The tensor entry of one edge, found through the columns of the layout."""
    kind, level, head, source, target = (int(column[edge]) for column in layout.columns[:5])
    layer = level - 1 if layout.parallel else (level - 1) // 2
    if kind == schema.ATTENTION:
        return tensors.attention_LHTS[layer, head, target, source]
    if kind == schema.MLP:
        return tensors.mlp_LT[layer, target]
    return tensors.residual_GT[level - 1, target]


@settings(max_examples=200, deadline=None)
@given(layout=layouts())
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int32])
def test_every_edge_has_its_own_place_and_the_rest_is_fill(dtype, layout):
    modulus = 250 if dtype == np.uint8 else 2**20
    flat_E = (np.arange(layout.n_edges) % modulus + 1).astype(dtype)
    tensors = unflatten_edges(layout, flat_E, 0)
    assert tensors.residual_GT.shape == (layout.n_levels - 1, layout.n_tokens)
    fields = (tensors.residual_GT, tensors.mlp_LT, tensors.attention_LHTS)
    assert {field.dtype for field in fields} == {np.dtype(dtype)}
    # As many entries are filled as there are edges, so no two edges share one.
    assert sum(np.count_nonzero(field) for field in fields) == layout.n_edges
    read = [value_at(layout, tensors, edge) for edge in range(layout.n_edges)]
    np.testing.assert_array_equal(read, flat_E)
    back_E = flatten_edges(layout, tensors)
    assert back_E.dtype == dtype
    np.testing.assert_array_equal(back_E, flat_E)


@settings(max_examples=100, deadline=None)
@given(layout=layouts())
def test_flatten_reads_nothing_outside_the_graph(layout):
    flat_E = np.arange(1, layout.n_edges + 1, dtype=np.float32)
    with_nans = unflatten_edges(layout, flat_E, np.nan)
    np.testing.assert_array_equal(flatten_edges(layout, with_nans), flat_E)


@pytest.mark.parametrize("parallel", [False, True])
def test_one_token_and_one_layer_by_hand(parallel):
    layout = GraphLayout(1, 1, 2, parallel)
    # Sequential: residual, two heads; residual, mlp. Parallel: residual, two heads, mlp.
    tensors = unflatten_edges(layout, np.arange(1, layout.n_edges + 1), 0)
    assert tensors.residual_GT.ravel().tolist() == ([1] if parallel else [1, 4])
    assert tensors.attention_LHTS.ravel().tolist() == [2, 3]
    assert tensors.mlp_LT.ravel().tolist() == ([4] if parallel else [5])


def test_residual_levels_of_another_layout_are_refused():
    sequential, parallel = GraphLayout(2, 2, 1), GraphLayout(2, 2, 1, parallel=True)
    tensors = unflatten_edges(sequential, np.ones(sequential.n_edges, np.float32), 0)
    with pytest.raises(AssertionError):
        flatten_edges(parallel, tensors)


@settings(max_examples=200, deadline=None)
@given(layout=layouts())
def test_columns_are_the_edges_one_by_one(layout):
    rows = []
    for level in range(1, layout.n_levels):
        attention, mlp = layout.has_attention(level), layout.has_mlp(level)
        for t in range(layout.first_position[level], layout.n_tokens):
            width = layout.window(layout.layer_of(level))
            for s in range(max(0, t + 1 - width) if attention else t, t + 1):
                rows += [(schema.RESIDUAL, level, -1, s, t)] * (s == t)
                rows += [
                    (schema.ATTENTION, level, head, s, t)
                    for head in range(layout.n_heads * attention)
                ]
            rows += [(schema.MLP, level, -1, t, t)] * mlp
    columns = layout.columns
    assert [column.dtype for column in columns[:5]] == [np.int8, np.int16, np.int16, "i4", "i4"]
    assert list(zip(*(column.tolist() for column in columns[:5]), strict=True)) == rows
    assert columns.score is None
