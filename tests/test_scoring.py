"""The scorers beyond their numbers: chunks, seeds, gradients that leave nothing behind, NaN."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import graphtrace as gt
from graphtrace import incoming
from graphtrace.edges import flatten_edges
from graphtrace.errors import NonFiniteError
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.scoring import SCORERS, parse_scorer, score_edges, uses_shares

IDS = torch.tensor([3, 17, 5, 5, 29, 11, 8])
NAMES = ["llama", "gpt2", "gpt_neox", "gemma2"]


def flat(model, scorer, **options):
    layout = GraphLayout(len(IDS), model.n_layers, model.n_heads, model.parallel, model.windows)
    return layout, flatten_edges(layout, score_edges(model, IDS, scorer, **options).scores)


@pytest.mark.parametrize("name", NAMES)
def test_proximity_is_the_same_in_chunks_and_never_builds_more(name, monkeypatch):
    model = load_model(tiny_model(name))
    _, whole = flat(model, "proximity")
    built, one_row = [], 4 * len(IDS) * model.d_model
    reduce = incoming.AttentionEdges.reduce

    def watched(edges, function, n_targets):
        def seen(vector_TSD, targets):
            built.append(4 * vector_TSD.numel())
            return function(vector_TSD, targets)

        return reduce(edges, seen, n_targets)

    monkeypatch.setattr(incoming, "CHUNK_BYTES", 2 * one_row)
    monkeypatch.setattr(incoming.AttentionEdges, "reduce", watched)
    _, chunked = flat(model, "proximity")
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-7)
    assert max(built) == 2 * one_row


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scorer", SCORERS)
def test_shares_of_every_node_add_up_to_one(name, scorer):
    layout, share = flat(load_model(tiny_model(name)), scorer)
    starts, ends = layout.offsets[:-1], layout.offsets[1:]
    sums = [share[a:b].sum() for a, b in zip(starts, ends, strict=True) if b > a]
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert (share >= 0).all()


@pytest.mark.parametrize("scorer", ["gradient", "fisher"])
def test_weights_and_shares_differ_by_a_factor_per_node(scorer):
    model = load_model(tiny_model("llama"))
    layout, share = flat(model, scorer)
    _, weight = flat(model, scorer, shares=False)
    starts, ends = layout.offsets[:-1], layout.offsets[1:]
    sums = [weight[a:b].sum() for a, b in zip(starts, ends, strict=True) if b > a]
    assert np.ptp(sums) > 0.01
    for a, b in zip(starts, ends, strict=True):
        np.testing.assert_allclose(share[a:b] * weight[a:b].sum(), weight[a:b], rtol=1e-4)
    assert not uses_shares(scorer, "best-first")
    assert uses_shares(scorer, "flow")
    assert uses_shares("l1", "best-first")


def test_fisher_is_seeded_and_converges():
    model = load_model(tiny_model("llama"))
    _, one = flat(model, "fisher:2", seed=1)
    _, same = flat(model, "fisher:2", seed=1)
    _, other = flat(model, "fisher:2", seed=2)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    few = [flat(model, "fisher:2", seed=s)[1] for s in range(3)]
    many = [flat(model, "fisher:200", seed=s)[1] for s in range(3)]
    assert np.std(many, axis=0).mean() < 0.3 * np.std(few, axis=0).mean()
    assert parse_scorer("fisher") == ("fisher", 16)
    trace = gt.trace(model, IDS.tolist(), scorer="fisher:16", sizes=(0.1,))
    assert (trace.settings.scorer, trace.settings.seed) == ("fisher", 0)
    assert gt.trace(model, IDS.tolist(), scorer="l2", seed=5, sizes=(0.1,)).settings.seed is None


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_need_no_gradient_of_any_parameter_and_leave_none(frozen):
    hf = tiny_model("llama")
    model = load_model(hf)
    _, expected = flat(model, "gradient")
    for parameter in hf.parameters():
        parameter.requires_grad_(not frozen)
    with torch.no_grad():
        _, found = flat(model, "gradient")
    np.testing.assert_array_equal(found, expected)
    assert all(parameter.grad is None for parameter in hf.parameters())


@pytest.mark.parametrize("scorer", ["l1", "proximity", "gradient"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("layers.1.self_attn.v_proj", r"layer 1 .*\(attention\)"),
        ("layers.2.mlp.up_proj", r"layer 2 .*\(mlp\)"),
        ("norm", "logits"),
        ("lm_head", "logits"),
    ],
)
def test_nan_in_the_weights_names_the_layer(scorer, where, said):
    hf = tiny_model("llama")
    module = hf.lm_head if where == "lm_head" else hf.model.get_submodule(where)
    with torch.no_grad():
        module.weight[-1:] = float("nan")
    with pytest.raises(NonFiniteError, match=said):
        score_edges(load_model(hf), IDS, scorer)


def test_chosen_experts_are_the_routers_and_dense_layers_have_none():
    hf = tiny_model("qwen3_moe")
    facts = score_edges(load_model(hf), IDS).facts
    seen = {}
    for layer, block in enumerate(hf.model.layers):
        if hasattr(block.mlp, "gate"):
            block.mlp.gate.register_forward_hook(
                lambda _, __, out, layer=layer: seen.update({layer: out[2].numpy()})
            )
    with torch.no_grad():
        hf(input_ids=IDS[None])
    assert 0 < len(seen) < len(hf.model.layers)
    for layer, chosen in enumerate(facts.experts):
        assert np.array_equal(chosen, seen.get(layer, np.full_like(chosen, -1)))
    assert score_edges(load_model(tiny_model("llama")), IDS).facts.experts is None


def test_active_share_of_the_mlp_is_its_definition():
    hf = tiny_model("gpt2")
    share = score_edges(load_model(hf), IDS).facts.mlp_active_share
    seen = []
    for block in hf.transformer.h:
        block.mlp.act.register_forward_hook(lambda _, __, out: seen.append(out.abs()))
    with torch.no_grad():
        hf(input_ids=IDS[None])
    expected = [float((a > 0.05 * a.max()).double().mean()) for a in seen]
    assert share == pytest.approx(np.mean(expected), abs=1e-6)
    assert score_edges(load_model(tiny_model("mixtral")), IDS).facts.mlp_active_share is None
