"""Made-up traces for the tests of everything behind the model: right in form, random in content."""

import dataclasses

import numpy as np
from oracles import best_first

from graphtrace import schema
from graphtrace.layout import GraphLayout
from graphtrace.sizes import SIZE_GRID
from graphtrace.subgraph import component_index
from graphtrace.traces import Curve, Input, ModelInfo, Settings, Trace

WORDS = [" the", " cat", " sat", " on", " a", " mat", ",", " and", " then", " it", " left", "\n"]


def model_info(n_layers=2, n_heads=2, name="toy", parallel=False, windows=None) -> ModelInfo:
    return ModelInfo(
        id=f"{name}@0123456789ab",
        name=name,
        revision="0123456789ab",
        family="llama",
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=16,
        n_params=1000,
        dtype="float32",
        parallel=parallel,
        windows=windows,
    )


def synthetic_trace(
    seed=0, n=5, model=None, name=None, keep=None, labels=None, meta=None, text=None
) -> Trace:
    """A trace with random scores (shares of each node), its true best-first ranks and a falling
    curve. keep: edges kept, all by default."""
    rng = np.random.default_rng(seed)
    model = model or model_info()
    layout = GraphLayout(n, model.n_layers, model.n_heads, model.parallel, model.windows)
    columns = layout.columns
    weight = rng.gamma(0.3, size=layout.n_edges)
    weight[columns.kind == schema.RESIDUAL] *= 20
    target = columns.level.astype(np.int64) * n + columns.target
    total = np.bincount(target, weight, minlength=layout.n_levels * n)
    score = (weight / total[target]).astype(np.float32)
    source = (columns.level.astype(np.int64) - 1) * n + columns.source
    rank = best_first(layout.offsets, source, score, layout.output)
    order = np.argsort(rank)
    ranked = columns._replace(score=score).take(order)
    grid = np.array([*SIZE_GRID, 1.0])
    k = np.floor(grid * layout.n_edges).astype(np.int64)
    tv = np.clip(0.9 - 0.17 * np.log10(1 + 5000 * k / layout.n_edges) + rng.normal(0, 0.01), 0, 1)
    tv[-1] = 0
    probs = np.sort(rng.dirichlet(np.ones(10)))[::-1].astype(np.float32)
    top_ids = np.arange(10, dtype=np.int32)
    top_tokens = WORDS[:10]
    curve = Curve(
        n_edges=layout.n_edges,
        grid=grid,
        k=k,
        tv=tv,
        kl=2 * tv,
        top1=tv < 0.4,
        nucleus=np.where(tv < 0.1, 90, np.where(tv < 0.4, 10, 0)).astype(np.int32),
        p_predicted=1 - tv,
        top_ids=np.tile(top_ids, (len(k), 1)),
        top_tokens=[top_tokens] * len(k),
        top_probs=np.tile(probs, (len(k), 1)),
    )
    component = component_index(layout, ranked)
    n_components = len(schema.components(model.n_layers, model.n_heads, model.parallel))
    counts = np.stack([np.bincount(component[:x], minlength=n_components) for x in k])
    ids = rng.integers(0, len(WORDS), n).astype(np.int32)
    tokens = ["<s>", *[WORDS[i] for i in ids[1:]]]
    special = np.zeros(n, bool)
    special[0] = True
    return Trace(
        model=model,
        input=Input(
            name=name or f"line-{seed}",
            text=text if text is not None else "".join(tokens[1:]),
            corpus="synthetic",
            continuation=" mat",
            meta=meta or {"difficulty": seed % 3},
            labels=labels or {},
        ),
        settings=Settings(),
        token_ids=ids,
        tokens=tokens,
        special=special,
        position=n - 1,
        ranked=ranked.take(slice(0, keep)),
        curves=(curve,),
        entropy=float(rng.uniform(1, 5)),
        predicted_id=0,
        predicted=top_tokens[0],
        top_ids=top_ids,
        top_tokens=top_tokens,
        top_probs=probs,
        mass90_edges=layout.n_edges // 2,
        score_gini=0.8,
        component_counts=counts,
        loss=float(rng.uniform(1, 8)),
        version="0.1.0",
    )


def with_curves(trace: Trace, *kinds: str, lift: float = 0.0, points=slice(None)) -> Trace:
    """The trace with one curve per kind (as `Curve.kind` writes it), told apart by their TV.

    lift: added to the TV, so that two makings of one kind differ. points: the grid's points that
    are kept, the counts of components with them.
    """
    made = []
    for i, kind in enumerate(kinds):
        mode, ablation, ablate = kind.split(":")
        ablation, _, reference = ablation.partition("@")
        curve = trace.curves[0]
        arrays = {
            name: value[points]
            for name, value in vars(curve).items()
            if isinstance(value, np.ndarray | list)
        }
        arrays["tv"] = np.clip(arrays["tv"] + lift + 0.01 * i, 0, 1)
        made.append(
            dataclasses.replace(
                curve,
                mode=mode,
                ablation=ablation,
                ablate=ablate,
                reference=reference or None,
                **arrays,
            )
        )
    counts = trace.component_counts[points]
    return dataclasses.replace(trace, curves=tuple(made), component_counts=counts)


def with_experts(trace: Trace, chosen=2, first_layer=1, share=0.3) -> Trace:
    """The trace as of a model with experts from `first_layer` on, `chosen` for each token."""
    rng = np.random.default_rng(len(trace.token_ids))
    shape = (trace.model.n_layers, len(trace.token_ids), chosen)
    experts = rng.integers(0, 64, shape).astype(np.int16)
    experts[:first_layer] = -1
    return dataclasses.replace(trace, experts=experts, mlp_active_share=share)
