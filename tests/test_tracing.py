"""A whole trace: its measures against plain definitions, and what it says of itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_forward import OracleModel
from oracles import best_first
from tiny_models import TINY, tiny_model

import graphtrace as gt
from graphtrace import evaluation, schema
from graphtrace.analysis.stats import gini
from graphtrace.distributions import (
    NUCLEUS_PERCENT,
    Reference,
    entropy,
    top_tokens,
)
from graphtrace.errors import (
    EmptyTextError,
    InputError,
    NonFiniteError,
    OptionError,
    TextTooLongError,
    UnsupportedFamilyError,
)
from graphtrace.evaluation import kept_edges
from graphtrace.layout import GraphLayout
from graphtrace.ranking import source_nodes
from graphtrace.score_statistics import gini_of, mass_edges
from graphtrace.sizes import SIZE_GRID
from graphtrace.traces import Input, Trace

IDS = [3, 17, 5, 5, 29, 11, 8]


def distributions(n_max=40):
    return st.integers(2, n_max).flatmap(
        lambda n: st.tuples(
            *[st.lists(st.integers(0, 6), min_size=n, max_size=n) for _ in range(2)]
        )
    )


def softmax(x):
    e = np.exp(np.asarray(x, float) - max(x))
    return e / e.sum()


def plain_nucleus(p, q):
    """The definition, list by list."""

    def top(x, percent):
        tokens = sorted(range(len(x)), key=lambda i: (-x[i], i))
        total, chosen = 0.0, []
        for token in tokens:
            chosen.append(token)
            total += x[token]
            if total >= percent / 100:
                break
        return chosen

    return max([c for c in NUCLEUS_PERCENT if top(p, c) == top(q, c)], default=0)


@settings(max_examples=300, deadline=None)
@given(distributions())
def test_nucleus_is_its_definition(logits):
    log_p, q = np.log(softmax(logits[0])), softmax(logits[1])
    assert Reference.of(log_p).nucleus_agreement(q) == plain_nucleus(np.exp(log_p), q)


@settings(max_examples=100, deadline=None)
@given(distributions())
def test_measures_are_their_definitions(logits):
    p, q = softmax(logits[0]), softmax(logits[1])
    got = Reference.of(np.log(p)).compare(np.log(q))
    assert got.tv == pytest.approx(sum(max(a - b, 0) for a, b in zip(p, q, strict=True)))
    assert got.kl == pytest.approx(
        sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-12
    )
    assert got.top1 == (int(np.argmax(p)) == int(np.argmax(q)))
    assert got.p_predicted == pytest.approx(q[np.argmax(p)])
    assert entropy(np.log(p)) == pytest.approx(-sum(a * math.log(a) for a in p))
    ids, probs = top_tokens(np.log(p))
    assert list(ids) == sorted(range(len(p)), key=lambda i: (-p[i], i))[:10]
    np.testing.assert_allclose(probs, p[ids], rtol=1e-6)


def test_kl_stays_finite_where_q_underflows():
    assert Reference.of(np.log([0.5, 0.5])).compare(np.array([0.0, -2000.0])).kl == pytest.approx(
        0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 2000)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 4))
def test_mass_and_gini_are_their_definitions(values, n_nodes):
    score = np.array(values, np.float32)
    offsets = np.unique(np.linspace(0, len(score), n_nodes + 1).astype(np.int64))
    expected = 0
    for a, b in itertools.pairwise(offsets):
        into = sorted(score[a:b].tolist(), reverse=True)
        expected += next(m for m in range(b - a + 1) if sum(into[:m]) >= 0.9 * sum(into) - 1e-12)
    assert mass_edges(offsets, score, 0.9) == expected
    n, total = len(score), float(score.sum())
    if total == 0:
        assert math.isnan(gini(score))
        assert math.isnan(gini_of(score))
    else:
        pairs = sum(abs(float(a) - float(b)) for a in score for b in score)
        assert gini(score) == pytest.approx(pairs / (2 * n * total), abs=1e-9)
        assert gini_of(score) == pytest.approx(gini(score), abs=1e-12)


def test_the_gini_coefficient_of_scores_of_every_size():
    rng = np.random.default_rng(0)
    score = (rng.random(5000) ** 30).astype(np.float32)
    score[::7] = 0
    assert gini_of(score) == pytest.approx(gini(score), abs=1e-12)


@pytest.mark.parametrize("name", TINY)
def test_a_trace_is_what_the_oracles_say(name):
    hf = tiny_model(name)
    trace = gt.trace(hf, IDS, sizes=[0.001, 0.02, 0.1, 0.4])
    layout, columns = trace.layout, trace.layout.columns
    oracle = OracleModel(hf)
    keys = [(schema.KINDS[kind], *map(int, rest)) for kind, *rest in zip(*columns[:5], strict=True)]
    score_of = {(k, *rest): s for k, *rest, s in _edges(trace)}
    score = np.array([score_of[key] for key in keys], np.float32)
    rank = best_first(layout.offsets, source_nodes(layout), score, layout.output)
    order = np.argsort(rank)
    assert [key[:5] for key in _edges(trace)] == [keys[e] for e in order]
    np.testing.assert_array_equal(trace.curve.k, kept_edges(trace.curve.grid, layout.n_edges))
    full = oracle.run(IDS).logits
    for k, tv, q_predicted in zip(
        trace.curve.k, trace.curve.tv, trace.curve.p_predicted, strict=True
    ):
        kept = {keys[e] for e in order[:k]}
        masked = oracle.run(IDS, lambda *edge, kept=kept: edge in kept).logits
        p, q = softmax(full), softmax(masked)
        assert tv == pytest.approx(0.5 * np.abs(p - q).sum(), abs=2e-4)
        assert q_predicted == pytest.approx(q[p.argmax()], abs=2e-4)
    assert trace.curve.tv[-1] == 0
    assert trace.curve.size[-1] == 1
    assert trace.predicted_id == int(np.argmax(full))
    counts = trace.component_counts
    assert counts.shape == (len(trace.curve.k), len(schema.components(3, 4, layout.parallel)))
    np.testing.assert_array_equal(counts.sum(axis=1), trace.curve.k)
    in_use = trace.components(f"k:{trace.curve.k[2]}").set_index("component")["n_edges"]
    names = [c[0] for c in schema.components(3, 4, layout.parallel)]
    assert dict(zip(names, counts[2], strict=True)) == {name: in_use.get(name, 0) for name in names}


def _edges(trace):
    r = trace.ranked
    return [
        (schema.KINDS[k], int(g), int(h), int(s), int(t), float(x))
        for k, g, h, s, t, x in zip(*r, strict=True)
    ]


def test_the_same_input_gives_the_same_trace_and_row():
    hf = tiny_model("qwen3")
    one, two = gt.trace(hf, IDS), gt.trace(hf, IDS)
    assert one.id == two.id
    assert one.to_row()["content"] == two.to_row()["content"]
    assert list(one.curve.tv) == list(two.curve.tv)
    assert len(one.curve.k) == len(SIZE_GRID) + 1
    again = Trace.from_row(one.to_row())
    assert again.id == one.id
    assert again.density == one.density


@pytest.mark.parametrize("scorer", ["l1", "fisher:2", "random"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mixtral"])
def test_ranks_do_not_depend_on_what_is_computed_beside_them(name, scorer, monkeypatch):
    model = gt.load_model(tiny_model(name))
    texts = [IDS[:n] for n in (3, len(IDS), 5)]
    alone = [gt.trace(model, text, scorer=scorer) for text in texts]
    monkeypatch.setattr(evaluation, "MASK_BYTES", 1)  # one evaluation at a time
    beside = list(gt.trace_many(model, reversed(texts), scorer=scorer))[::-1]
    for one, other in zip(alone, beside, strict=True):
        assert one.id == other.id
        for mine, theirs in zip(one.ranked, other.ranked, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_allclose(one.curve.tv, other.curve.tv, atol=5e-6)


def test_the_random_baseline_is_seeded_and_says_so():
    hf = tiny_model("llama")
    one, two, three = (gt.trace(hf, IDS, scorer="random", seed=s) for s in (1, 1, 2))
    assert list(one.ranked.source) == list(two.ranked.source)
    assert list(one.ranked.source) != list(three.ranked.source)
    ids = {gt.trace(hf, IDS).settings.id, one.settings.id, three.settings.id}
    assert len(ids) == 3
    assert one.settings.seed == 1
    assert gt.trace(hf, IDS, seed=5).settings.id == gt.trace(hf, IDS).settings.id


def test_one_token_and_one_layer():
    trace = gt.trace(tiny_model("llama"), [4])
    assert trace.n_nodes == 7
    assert trace.n_edges == 3 * (4 + 3)
    assert trace.curve.tv[-1] == 0


def test_errors():
    hf = tiny_model("llama")
    with pytest.raises(EmptyTextError, match="nothing to trace"):
        gt.trace(hf, [])
    with pytest.raises(TextTooLongError, match=r"40 tokens .* holds 32"):
        gt.trace(hf, [1] * 40)
    with pytest.raises(InputError, match=r"0 \.\.\. 30"):
        gt.trace(hf, [31])
    with pytest.raises(OptionError, match="without a tokenizer"):
        gt.trace(hf, "some text")
    with pytest.raises(OptionError, match="l1, l2, proximity"):
        gt.trace(hf, IDS, scorer="l3")
    with pytest.raises(OptionError, match=r"\(0, 1\]"):
        gt.trace(hf, IDS, sizes=[0.0, 0.5])
    with pytest.raises(OptionError, match=r"\(0, 1\]"):
        gt.trace(hf, IDS, sizes=[float("nan")])
    with pytest.raises(OptionError, match="device, dtype and revision"):
        gt.load_model(hf, device="cpu")
    hf.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layer 1 .*mlp"):
        gt.trace(hf, IDS)


def test_an_unsupported_family_is_named_with_those_that_are():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=11, hidden_size=8, num_layers=1, num_heads=1, attention_types=[[["global"], 1]]
    )
    with pytest.raises(UnsupportedFamilyError, match=r"GPTNeoForCausalLM.*llama, mistral, mixtral"):
        gt.load_model(GPTNeoForCausalLM(config).eval())


def test_a_model_in_training_mode_is_refused():
    hf = tiny_model("llama").train()
    with pytest.raises(gt.GraphtraceError, match="eval"):
        gt.load_model(hf)


def test_equal_texts_under_two_names_are_two_inputs():
    assert Input("a", "same").id != Input("b", "same").id
    assert Input("a", "same", corpus="x").id == Input("a", "same", corpus="y").id


def test_bfloat16_scores_are_float32():
    hf = tiny_model("llama").to(torch.bfloat16)
    trace = gt.trace(hf, IDS)
    assert trace.ranked.score.dtype == np.float32
    assert trace.model.dtype == "bfloat16"
    assert trace.curve.tv[-1] == 0
    # In bfloat16 sums of shares would be off by percents.
    layout = GraphLayout(len(IDS), 3, 4)
    target = trace.ranked.level.astype(int) * layout.n_tokens + trace.ranked.target
    total = np.bincount(target, trace.ranked.score, minlength=layout.output + 1)
    np.testing.assert_allclose(total[np.unique(target)], 1, atol=1e-5)
