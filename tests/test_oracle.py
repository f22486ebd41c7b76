"""The oracle itself: against the models' own logits and gradients, and against its definitions."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from oracle_forward import OracleModel, probabilities, reachable, shares
from tiny_models import TINY, norm_gains, save_tiny, tiny_model
from transformers import AutoModelForCausalLM

IDS = [3, 17, 5, 5, 29, 11, 8]
N, L, H = len(IDS), 3, 4

# Norms behind a sub-layer: there `vectors` and `unnormed` differ.
POST_NORM = ("olmo2", "olmo3", "gemma2", "gemma3", "glm4", "exaone4")
PARALLEL = ("gpt_neox", "phi", "cohere", "stablelm-parallel")


def is_post_norm(name):
    return name.startswith(POST_NORM)


def is_parallel(name):
    return (
        name.startswith(PARALLEL) and not name.startswith("phi3") and name != "gpt_neox-sequential"
    )


@cache
def pair(name):
    hf = tiny_model(name)
    return hf, OracleModel(hf)


@cache
def full_run(name):
    return pair(name)[1].run(IDS)


def half_the_attention(kind, level, head, source, target):
    return kind != "attention" or (level + head + source + target) % 2 == 0


def totals(vectors):
    total = {}
    for (_, level, _, _, t), vector in vectors.items():
        total[level, t] = total.get((level, t), 0) + vector
    return total


@pytest.mark.parametrize("name", TINY)
def test_logits_are_the_models_own(name):
    hf, _ = pair(name)
    with torch.no_grad():
        own = hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1].double().numpy()
    difference = np.abs(full_run(name).logits - own).max()
    assert difference <= 5e-6 * np.abs(own).max()


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_the_models_own(name):
    """At the input of every block, by a backward pass through the model."""
    hf, oracle = pair(name)
    hf, inputs = copy.deepcopy(hf).double(), []
    stem, blocks = oracle.f.stem.rstrip("."), oracle.f.blocks
    hooks = [
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for block in hf.get_submodule(stem).get_submodule(blocks)
    ]
    logits = hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
    own = torch.autograd.grad(torch.log_softmax(logits.double(), -1).max(), inputs)
    for hook in hooks:
        hook.remove()
    assert len(own) == L
    (gradients,), _ = oracle._gradients(IDS, [lambda x: torch.log_softmax(x, -1).max()])
    for layer, own_BTD in enumerate(own):
        level = layer if oracle.parallel else 2 * layer
        ours = torch.stack([gradients[level, t] for t in range(N)])
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, own_BTD[0].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_vectors_and_biases_add_up(name):
    _, oracle = pair(name)
    run = full_run(name)
    total = totals(run.vectors)
    assert set(run.nodes) == {(0, t) for t in range(N)} | set(total)
    for node, value in run.nodes.items():
        if node[0] > 0:
            np.testing.assert_allclose(total[node] + run.biases.get(node, 0), value, atol=1e-12)
    inside = {edge: v for edge, v in run.unnormed.items() if edge[0] != "residual"}
    for (level, t), value in totals(inside).items():
        layer, has_bias = oracle.layer_of(level), (level, t) in run.biases
        bias = oracle.f.multiplier * oracle.f.output_bias(layer).numpy() if has_bias else 0
        np.testing.assert_allclose(value + bias, run.sums[level, t], atol=1e-12)
    same = all(np.array_equal(v, run.unnormed[edge]) for edge, v in run.vectors.items())
    assert same != is_post_norm(name)
    assert any(np.abs(b).max() > 0 for b in run.biases.values()) == has_output_bias(name)


def has_output_bias(name):
    _, oracle = pair(name)
    return oracle.f.attn(0, oracle.f.output) + ".bias" in oracle.f.w


@pytest.mark.parametrize("name", TINY)
def test_counts_of_the_reachable_graph(name):
    """method.md 1; a window leaves out edges, and nodes that no path reaches."""
    _, oracle = pair(name)
    assert oracle.parallel == is_parallel(name)
    nodes, edges = reachable(full_run(name).vectors, (oracle.top, N - 1))
    if oracle.parallel:
        n_nodes = N * (L + 1) - (N - 1)
        n_edges = L * (H * N * (N + 1) // 2 + 2 * N) - 2 * (N - 1) - H * N * (N - 1) // 2
    else:
        n_nodes = N * (2 * L + 1) - 2 * (N - 1)
        n_edges = L * (H * N * (N + 1) // 2 + 3 * N) - 3 * (N - 1) - H * N * (N - 1) // 2
    windows = [oracle.f.window(layer) for layer in range(L)]
    if any(windows):
        assert all(w is None or w < N for w in windows)
        assert len(edges) < n_edges
        assert len(nodes) <= n_nodes
    else:
        assert (len(nodes), len(edges)) == (n_nodes, n_edges)


@pytest.mark.parametrize("name", TINY)
def test_dropping_one_edge_takes_its_vector_away_and_nothing_else(name):
    _, oracle = pair(name)
    full, rng = full_run(name), np.random.default_rng(0)
    edges = list(full.vectors)
    for i in rng.choice(len(edges), 6, replace=False):
        dropped = edges[i]
        run = oracle.run(IDS, lambda *edge, dropped=dropped: edge != dropped)
        kind, level, _, _, t = dropped
        values = (run.nodes, full.nodes) if kind == "residual" else (run.sums, full.sums)
        change = values[1][level, t] - values[0][level, t]
        np.testing.assert_allclose(change, full.unnormed[dropped], atol=1e-12)
        lower = [node for node in full.nodes if node[0] < level or node == (level, t - 1)]
        assert all(np.array_equal(run.nodes[node], full.nodes[node]) for node in lower)


@pytest.mark.parametrize("name", [name for name in TINY if "bias" in name or name == "gpt2"])
def test_the_output_bias_goes_with_the_last_attention_edge(name):
    _, oracle = pair(name)

    def keep(kind, level, head, source, target):
        return kind != "attention" or target == 2

    run = oracle.run(IDS, keep)
    for (level, t), bias in run.biases.items():
        assert (np.abs(bias).max() > 0) == (t == 2 and has_output_bias(name))
        if t != 2 and not oracle.parallel:
            assert not np.abs(run.sums[level, t]).any()
    means = oracle.means([IDS])
    run = oracle.run(IDS, keep, ablation="mean", means=means)
    assert all((np.abs(b).max() > 0) == has_output_bias(name) for b in run.biases.values())


@pytest.mark.parametrize("name", TINY)
def test_with_no_edge_the_head_reads_a_zero_state(name):
    _, oracle = pair(name)
    run = oracle.run(IDS, lambda *edge: False)
    assert not run.vectors
    assert all(not v.any() for node, v in run.nodes.items() if node[0] > 0)
    expected = oracle.f.head(oracle.f.final_norm()(torch.zeros(oracle.f.D).double()))
    np.testing.assert_allclose(run.logits, expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("name", TINY)
def test_ablations_of_nothing_change_nothing(name):
    _, oracle = pair(name)
    ids = IDS[:4]
    full, plain = oracle.run(ids).logits, oracle.run(ids, half_the_attention).logits
    means = oracle.means([ids])
    for options in ({"ablation": "renormalise"}, {"ablation": "mean", "means": means}):
        run = oracle.run(ids, lambda *edge: True, **options)
        np.testing.assert_allclose(run.logits, full, atol=1e-12)
        half = oracle.run(ids, half_the_attention, **options)
        assert np.abs(half.logits - plain).max() > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_the_means_of_a_single_token_stand_in_for_its_edges(name):
    """With one token each head has one edge, so its mean is the edge and dropping it is nothing."""
    _, oracle = pair(name)
    full, means = oracle.run([7]), oracle.means([[7]])
    run = oracle.run([7], lambda kind, *rest: kind == "residual", ablation="mean", means=means)
    np.testing.assert_allclose(run.logits, full.logits, atol=1e-9)
    for node, value in full.nodes.items():
        np.testing.assert_allclose(run.nodes[node], value, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "granite", "olmo2", "cohere2"])
def test_means_pool_every_pair_that_the_mask_allows(name):
    _, oracle = pair(name)
    texts = [IDS, [4], [9, 2, 30]]
    attention, mlp = oracle.means(texts)
    f, layer, head = oracle.f, 1, 2
    level = 2 if oracle.parallel else 3
    rows, outputs = [], []
    for ids in texts:
        run = oracle.run(ids)
        for t in range(len(ids)):
            for s in range(t + 1):
                if f.window(layer) is None or s > t - f.window(layer):
                    rows.append(run.unnormed["attention", level, head, s, t] / f.multiplier)
            out = run.unnormed["mlp", level + (not oracle.parallel), -1, t, t]
            outputs.append(out / f.multiplier)
    np.testing.assert_allclose(attention[layer, head], np.mean(rows, 0), atol=1e-12)
    np.testing.assert_allclose(mlp[layer], np.mean(outputs, 0), atol=1e-12)
    assert attention.shape == (L, H, f.D)
    assert mlp.shape == (L, f.D)


def test_probabilities():
    logits = torch.tensor([1.0, 3.0, 2.0]).double()
    plain = probabilities(logits, None, None)
    assert torch.allclose(plain, torch.softmax(logits, 0))
    assert torch.allclose(
        probabilities(logits, None, [True, False, True]),
        torch.tensor([1.0, 0.0, np.e]).double() / (1 + np.e),
    )
    assert not probabilities(logits, None, [False] * 3).any()
    sink = torch.tensor(2.5).double()
    with_sink = probabilities(logits, sink, None)
    assert torch.allclose(with_sink, torch.softmax(torch.cat([logits, sink[None]]), 0)[:3])
    # A sink keeps its share however few sources are left.
    alone = probabilities(logits, sink, [True, False, False])
    assert torch.allclose(alone[0], torch.sigmoid(logits[0] - sink))
    assert not probabilities(logits, sink, [False] * 3).any()


@pytest.mark.parametrize("name", ["gpt_oss", "gpt_oss-no-bias-mqa"])
def test_sinks_take_a_share_of_every_row(name):
    _, oracle = pair(name)
    sinks = [oracle.f.sinks(layer) for layer in range(L)]
    assert all(s.abs().min() > 1e-3 for s in sinks)


@pytest.mark.parametrize("scorer", ["l1", "l2", "proximity", "projection", "gradient", "fisher"])
@pytest.mark.parametrize("name", TINY)
def test_scores_are_shares(name, scorer):
    _, oracle = pair(name)
    ids, options = IDS[:4], {}
    if scorer == "fisher":
        options["probes"] = np.random.default_rng(0).normal(size=(2, 31))
    run = oracle.run(ids)
    weights = oracle.weights(ids, scorer, **options)
    total, weight, share_of = {}, {}, shares(weights)
    assert set(weights) == set(share_of) == set(run.vectors)
    for edge, w in weights.items():
        assert w >= 0
        node = edge[1], edge[4]
        total[node] = total.get(node, 0) + share_of[edge]
        weight[node] = weight.get(node, 0) + w
    for edge, w in weights.items():
        assert share_of[edge] * weight[edge[1], edge[4]] == pytest.approx(w)
    nodes, _ = reachable(run.vectors, (oracle.top, 3))
    for node, value in total.items():
        assert value == pytest.approx(1) or (value == 0 and node not in nodes)
        if scorer in ("gradient", "fisher"):  # what cannot reach the prediction does not move it
            assert (value > 0) == (node in nodes)


@pytest.mark.parametrize("name", ["gpt2", "nemotron", "llama", "gemma2", "cohere"])
def test_the_last_node_is_read_through_the_final_norms_linear_part(name):
    hf, oracle = pair(name)
    run, last = full_run(name), (oracle.top, N - 1)
    module = hf.get_submodule(oracle.f.stem + oracle.f.final)
    state = torch.tensor(run.nodes[last]).float()[None, None]
    with torch.no_grad():
        out, zero = module(state)[0, 0].double().numpy(), getattr(module, "bias", None)
    norm = oracle.f.final_norm()
    total = sum(
        norm.linear_part(torch.tensor(v), torch.tensor(run.nodes[last])).numpy()
        for edge, v in run.vectors.items()
        if (edge[1], edge[4]) == last
    )
    if last in run.biases:
        assert not run.biases[last].any()
    total = total + (0 if zero is None else zero.detach().double().numpy())
    np.testing.assert_allclose(total, out, rtol=1e-4, atol=1e-5)
    # A LayerNorm sees no constant shift, so the shift has no weight at the last node.
    shift = norm.linear_part(torch.ones(oracle.f.D).double(), torch.tensor(run.nodes[last]))
    assert (shift.abs().max() < 1e-12) == norm.centred
    weights, edge = oracle.weights(IDS, "l1"), ("mlp", oracle.top, -1, N - 1, N - 1)
    expected = norm.linear_part(torch.tensor(run.vectors[edge]), torch.tensor(run.nodes[last]))
    assert weights[edge] == pytest.approx(float(expected.abs().sum()))


def test_norms_of_the_tiny_models_are_not_trivial():
    for name in TINY:
        hf, _ = pair(name)
        gains = norm_gains(hf)
        for key, value in hf.named_parameters():
            if key in gains:
                assert 0.05 < (value - gains[key]).std() < 0.6, (name, key)
            else:
                assert value.abs().max() > 1e-2, (name, key)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_can_be_saved_and_loaded(name, tmp_path):
    save_tiny(tmp_path / name, name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert type(model) is TINY[name][0]
    assert model.config.vocab_size == 300
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([IDS])).logits).all()
