"""Masked evaluation beyond its numbers: batches, memory, kinds of evaluation, reference means."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import graphtrace as gt
from graphtrace import evaluation
from graphtrace.edges import unflatten_edges
from graphtrace.errors import (
    InputError,
    ModelError,
    ModelMemoryError,
    NonFiniteError,
    OptionError,
)
from graphtrace.evaluation import (
    Evaluation,
    edge_buckets,
    evaluate_nested,
    masked_logits,
    plan_nested,
)
from graphtrace.forward import run_model
from graphtrace.layout import GraphLayout
from graphtrace.loading import load_model
from graphtrace.masks import NO_EDGE
from graphtrace.reference_means import load_means, reference_means, save_means

IDS = [3, 17, 5, 5, 29, 11, 8]
TEXTS = [[3, 17, 5, 5, 29], [8, 2, 30, 9, 9, 1, 4], [6]]


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def layout(model):
    return GraphLayout(len(IDS), model.n_layers, model.n_heads)


def logits(model, layout, ks, rank=None, how=None):
    rank = np.random.default_rng(0).permutation(layout.n_edges) if rank is None else rank
    return masked_logits(model, torch.tensor(IDS), layout, rank, ks, how)


def test_batching_the_points_changes_no_more_than_rounding(model, layout, monkeypatch):
    ks = [0, 5, 50, 50, 120, layout.n_edges]
    together = logits(model, layout, ks)
    assert torch.equal(together[2], together[3])
    monkeypatch.setattr(evaluation, "MASK_BYTES", 1)
    torch.testing.assert_close(logits(model, layout, ks), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_halves_what_runs_together(model, layout, monkeypatch, error):
    plans = [planned(model, layout, seed) for seed in range(3)]
    expected, tried = evaluate_nested(model, plans), []
    least = evaluation.bytes_per_point(model, len(IDS))

    def small(model, ids_IT, *, plan, **options):
        tried.append((len(ids_IT), plan.room))
        if plan.room > 2 * least or len(ids_IT) > 1:
            raise error
        return run_model(model, ids_IT, plan=plan, **options)

    monkeypatch.setattr(evaluation, "run_model", small)
    for found, logits_PV in zip(evaluate_nested(model, plans), expected, strict=True):
        torch.testing.assert_close(found, logits_PV, rtol=5e-5, atol=5e-5)
    halved = [60 * least >> i for i in range(7)]
    assert tried[:7] == [(3, room) for room in halved]  # rows first, then inputs
    assert halved[-1] <= least < halved[-2]
    assert all(n < 3 for n, _ in tried[7:])
    assert [n for n, room in tried if room <= 2 * least and n == 1] == [1, 1, 1]

    def none(model, ids_IT, **options):
        raise error

    monkeypatch.setattr(evaluation, "run_model", none)
    with pytest.raises(ModelMemoryError, match=r"a text of about \d tokens would fit"):
        evaluate_nested(model, plans)


def planned(model, layout, seed):
    rank = np.random.default_rng(seed).permutation(layout.n_edges)
    k = np.linspace(1, layout.n_edges - 1, 20).astype(np.int64)
    buckets = unflatten_edges(layout, edge_buckets(rank, k), NO_EDGE)
    return plan_nested(torch.tensor(IDS), layout, buckets, len(k))


def test_other_errors_pass(model, layout, monkeypatch):
    def broken(model, ids_BT, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(evaluation, "run_model", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        logits(model, layout, [3])


def test_necessity_is_the_complement_with_every_residual(model, layout):
    kinds = layout.columns.kind
    rank = np.random.default_rng(1).permutation(layout.n_edges)
    k = layout.n_edges // 3
    dropped = (rank < k) & (kinds != 0)
    # The same set of kept edges, written as a trace: all that is not dropped comes first.
    as_trace = np.empty(layout.n_edges, np.int64)
    as_trace[np.argsort(dropped, kind="stable")] = np.arange(layout.n_edges)
    necessity = logits(model, layout, [k], rank, Evaluation(mode="necessity"))
    kept = logits(model, layout, [int((~dropped).sum())], as_trace)
    torch.testing.assert_close(necessity, kept)
    full = logits(model, layout, [layout.n_edges], rank)
    torch.testing.assert_close(logits(model, layout, [0], rank, Evaluation("necessity")), full)


@pytest.mark.parametrize("kind", ["residual", "mlp", "attention"])
def test_kinds_that_are_not_ablated_are_always_kept(model, layout, kind):
    code = {"residual": 0, "mlp": 1, "attention": 2}[kind]
    is_kind = layout.columns.kind == code
    rank = np.random.default_rng(2).permutation(layout.n_edges)
    k = layout.n_edges // 4
    dropped = (rank >= k) & is_kind
    as_trace = np.empty(layout.n_edges, np.int64)
    as_trace[np.argsort(dropped, kind="stable")] = np.arange(layout.n_edges)
    only = logits(model, layout, [k], rank, Evaluation(ablate=(kind,)))
    torch.testing.assert_close(only, logits(model, layout, [int((~dropped).sum())], as_trace))


def test_a_curve_knows_its_kind_and_necessity_starts_at_the_full_model(model):
    trace = gt.trace(model, IDS, mode="necessity", ablate="attention, mlp", sizes=(0.001, 0.5))
    curve = trace.curve
    assert curve.kind == "necessity:zero:mlp,attention"
    assert curve.k[0] == 0
    assert curve.tv[0] == 0
    assert curve.tv[-1] > 0.01
    assert gt.trace(model, IDS, sizes=(0.5,)).curve.tv[-1] == 0


@pytest.mark.parametrize("mode", ["sufficiency", "necessity"])
@pytest.mark.parametrize("ablate", ["residual,mlp,attention", "residual,mlp", "attention"])
def test_the_effective_size_counts_what_the_masks_leave(model, layout, mode, ablate, tmp_path):
    trace = gt.trace(model, IDS, mode=mode, ablate=ablate, sizes=(0.001, 0.1, 0.5))
    kind, rank = layout.columns.kind, np.empty(layout.n_edges, np.int64)
    at = {edge: i for i, edge in enumerate(zip(*layout.columns[:5], strict=True))}
    for r, edge in enumerate(zip(*trace.ranked[:5], strict=True)):
        rank[at[edge]] = r
    masked = np.isin(kind, [["residual", "mlp", "attention"].index(k) for k in ablate.split(",")])
    if mode == "necessity":
        masked &= kind != 0
    expected = [np.sum(~masked | ((rank < k) == (mode == "sufficiency"))) for k in trace.curve.k]
    np.testing.assert_array_equal(trace.edges_left(), expected)
    gt.write_traces(tmp_path / "a", [trace], keep=0.1)
    with gt.open_archive(tmp_path / "a") as archive:
        np.testing.assert_array_equal(archive[trace.id].edges_left(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sufficient"}, "sufficiency, necessity"),
        ({"ablation": "noise"}, "zero, renormalise, mean"),
        ({"ablate": "heads"}, "residual,mlp,attention"),
        ({"ablate": ""}, "residual,mlp,attention"),
        ({"ablation": "mean"}, "reference-means"),
        ({"mode": "necessity", "ablate": "residual"}, "keeps every residual"),
        ({"scorer": "random", "search": "flow"}, "a walk, not a weight"),
        ({"scorer": "l3"}, "l1, l2, proximity"),
        ({"scorer": "fisher:0"}, "fisher:4"),
        ({"scorer": "l1:4"}, "none of"),
        ({"search": "dfs"}, "best-first, flow, path"),
    ],
)
def test_options_that_mean_nothing(model, options, message):
    with pytest.raises(OptionError, match=message):
        gt.trace(model, IDS, **options)


def test_nan_in_a_masked_evaluation_is_said(model, layout, monkeypatch):
    monkeypatch.setattr(evaluation, "run_model", lambda *_, **__: torch.tensor([[float("nan")]]))
    with pytest.raises(NonFiniteError, match="masked evaluation"):
        logits(model, layout, [3])


# Reference means


def test_means_survive_the_file_and_say_where_they_come_from(model, tmp_path):
    found = reference_means(model, TEXTS, corpus="three")
    save_means(found, tmp_path / "deep" / "means.safetensors")
    again = load_means(tmp_path / "deep" / "means.safetensors")
    assert again.provenance == found.provenance
    assert again.id == found.id
    assert all(torch.equal(a, b) for a, b in zip(found.means, again.means, strict=True))
    assert (found.provenance.n_inputs, found.provenance.n_tokens) == (3, 13)
    assert reference_means(model, TEXTS[:2], corpus="three").id != found.id
    trace = gt.trace(model, IDS, ablation="mean", means=str(tmp_path / "deep/means.safetensors"))
    assert trace.curve.reference == found.id
    assert f"mean@{found.id}" in trace.curve.kind


def test_every_pair_and_every_token_counts_once(model):
    whole = reference_means(model, TEXTS)
    parts = [reference_means(model, [ids]) for ids in TEXTS]
    pairs = np.array([len(ids) * (len(ids) + 1) / 2 for ids in TEXTS])
    tokens = np.array([len(ids) for ids in TEXTS])
    for name, weight in (("attention_LHD", pairs), ("mlp_LD", tokens)):
        mixed = sum(
            w * getattr(p.means, name) for w, p in zip(weight / weight.sum(), parts, strict=True)
        )
        torch.testing.assert_close(getattr(whole.means, name), mixed, rtol=1e-5, atol=1e-6)


def test_an_input_that_cannot_be_read_is_counted_and_none_at_all_is_an_error(model):
    found = reference_means(model, [*TEXTS, [], list(range(31)) * 2])
    assert (found.provenance.n_inputs, found.provenance.n_failed) == (3, 2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.means, reference_means(model, TEXTS).means, strict=True)
    )
    with pytest.raises(InputError, match="no input"):
        reference_means(model, [[]])


def test_means_of_another_model_and_other_files_are_refused(model, tmp_path):
    other = reference_means(load_model(tiny_model("llama", seed=1)), TEXTS)
    with pytest.raises(OptionError, match="the reference means are of"):
        gt.trace(model, IDS, ablation="mean", means=other)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no tensors")
    for path in (bad, tmp_path / "absent.safetensors"):
        with pytest.raises(ModelError, match="holds no reference means"):
            load_means(path)
