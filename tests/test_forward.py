"""The layer loop, the scores and the masked evaluations against the model itself and the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_forward import OracleModel
from tiny_models import TINY, tiny_model

from graphtrace import schema
from graphtrace.edges import flatten_edges, unflatten_edges
from graphtrace.evaluation import BucketMasks, masked_logits
from graphtrace.forward import next_token_logits, run_layers
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.scoring import l1_scores

IDS = [3, 17, 5, 5, 29, 11, 8]
_cache = {}


def ids_tensor(ids):
    return torch.tensor(ids, dtype=torch.long)


def loaded(name):
    if name not in _cache:
        hf = tiny_model(name)
        model = load_model(hf)
        layout = GraphLayout(len(IDS), model.n_layers, model.n_heads, windows=model.windows)
        _cache[name] = hf, model, OracleModel(hf), layout
    return _cache[name]


def edge_keys(layout):
    c = layout.columns
    return [
        (schema.KINDS[kind], int(level), int(head), int(source), int(target))
        for kind, level, head, source, target in zip(*c[:5], strict=True)
    ]


@pytest.mark.parametrize("name", TINY)
def test_all_ones_masks_give_the_models_own_logits_bit_for_bit(name):
    hf, model, _, layout = loaded(name)
    ids = ids_tensor(IDS)[None]
    with torch.no_grad():
        own = hf(input_ids=ids, use_cache=False).logits
    buckets = unflatten_edges(layout, np.zeros(layout.n_edges, np.uint8), 0)
    masks = BucketMasks(buckets, np.array([0]), model)
    for state in (run_layers(model, ids), run_layers(model, ids, masks=masks)):
        with torch.no_grad():
            ours = model.head(model.final_norm(state))
        assert torch.equal(ours, own)
        with torch.no_grad():
            last = hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        assert torch.equal(next_token_logits(model, state), last)


@pytest.mark.parametrize("name", TINY)
def test_against_sdpa(name):
    hf, model, _, _ = loaded(name)
    ids = ids_tensor(IDS)[None]
    ours = next_token_logits(model, run_layers(model, ids))
    hf.config._attn_implementation = "sdpa"
    try:
        with torch.no_grad():
            theirs = hf(input_ids=ids, use_cache=False).logits[:, -1]
    finally:
        hf.config._attn_implementation = "eager"
    # Logits of these models reach 10 to 30, so 1e-5 relative to that.
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("name", TINY)
def test_the_model_is_left_as_found(name):
    hf, model, _, layout = loaded(name)
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    masked_logits(model, ids_tensor(IDS), layout, np.arange(layout.n_edges), [3])
    assert hf.config._attn_implementation == "eager"
    assert all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())


@pytest.mark.parametrize("name", TINY)
def test_scores_are_the_oracles(name):
    _, model, oracle, layout = loaded(name)
    scores, _ = l1_scores(model, ids_tensor(IDS))
    flat = flatten_edges(layout, scores)
    expected = oracle.scores(IDS, "l1")
    keys = edge_keys(layout)
    np.testing.assert_allclose(flat, [expected[k] for k in keys], rtol=2e-4, atol=1e-7)
    # Every edge that the layout leaves out cannot reach the output.
    left_out = set(expected) - set(keys)
    assert all(k[4] < len(IDS) - 1 for k in left_out)


@pytest.mark.parametrize("name", TINY)
def test_edge_vectors_add_up_to_their_node(name):
    _, _, oracle, _ = loaded(name)
    run, total = oracle.run(IDS), {}
    for (_, level, _, _, t), vector in run.vectors.items():
        total[level, t] = total.get((level, t), 0) + vector
    for node, value in run.nodes.items():
        if node[0] > 0:
            np.testing.assert_allclose(total[node] + run.biases.get(node, 0), value, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.02, 0.2, 0.6, 0.95]))
@pytest.mark.parametrize("name", TINY)
def test_masked_evaluation_is_the_oracles_on_random_masks(name, seed, share):
    _, model, oracle, layout = loaded(name)
    rng = np.random.default_rng(seed)
    rank = rng.permutation(layout.n_edges)
    if seed % 2:  # keep the residual edges more often, so that states live
        rank = np.argsort(np.argsort(rank - layout.n_edges * (layout.columns.kind == 0)))
    k = int(share * layout.n_edges)
    logits = masked_logits(model, ids_tensor(IDS), layout, rank, [0, k, layout.n_edges])
    keys = edge_keys(layout)
    for row, size in zip(logits, (0, k, layout.n_edges), strict=True):
        kept = {key for key, r in zip(keys, rank, strict=True) if r < size}
        expected = oracle.run(IDS, lambda *edge, kept=kept: edge in kept).logits
        np.testing.assert_allclose(row.numpy(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["llama-mqa-biases", "olmo2-bias"])
def test_dropping_the_last_attention_edge_drops_the_o_proj_bias(name):
    _, _, oracle, _ = loaded(name)
    biases = oracle.run(IDS).biases
    assert any(np.abs(b).max() > 0 for b in biases.values())
    without = oracle.run(IDS, lambda *e: e[0] != "attention" or e[4] == 2).biases
    assert all((np.abs(b).max() > 0) == (t == 2) for (_, t), b in without.items())


def test_batching_the_points_changes_no_more_than_rounding():
    _, model, _, layout = loaded("llama")
    rank = np.random.default_rng(0).permutation(layout.n_edges)
    ks = [0, 5, 50, 50, 120, layout.n_edges]
    together = masked_logits(model, ids_tensor(IDS), layout, rank, ks)
    alone = torch.cat([masked_logits(model, ids_tensor(IDS), layout, rank, [k]) for k in ks])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together[2], together[3])


def test_flatten_is_the_layouts_order_and_unflatten_its_inverse():
    layout = GraphLayout(6, 3, 2, windows=(None, 2, 3))
    flat = np.arange(1, layout.n_edges + 1).astype(np.int32)
    tensors = unflatten_edges(layout, flat, 0)
    np.testing.assert_array_equal(flatten_edges(layout, tensors), flat)
    for value, (kind, level, head, source, target) in zip(flat, edge_keys(layout), strict=True):
        layer = (level - 1) // 2
        if kind == "attention":
            assert tensors.attention_LHTS[layer, head, target, source] == value
        elif kind == "mlp":
            assert tensors.mlp_LT[layer, target] == value
        else:
            assert tensors.residual_GT[level - 1, target] == value
