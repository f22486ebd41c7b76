"""Do traces mean something? Mean TV by size on the demo model, with 95 % intervals over inputs:
every scorer with every search, every ablation, and the paper's equation 3 beside what its released
code masks.

Inputs: the WikiText-2 test corpus cut to 24 tokens where it is at hand, else the shipped sentences.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.corpus import read_corpus
from graphtrace.loading import demo_folder, load_model
from graphtrace.reference_means import reference_means
from graphtrace.scoring import SCORERS
from graphtrace.search import SEARCHES
from graphtrace.tokenizing import tokenize
from graphtrace.tracing import trace

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2-test.jsonl"
SIZES = (1e-3, 2e-3, 1e-2, 2e-2, 0.1, 0.2)
N_TOKENS = 24


def mean_tv(model, inputs, **options) -> dict[str, str]:
    """Size -> mean TV over the inputs and its bootstrap interval, of one way to trace them."""
    curves = [trace(model, ids, sizes=SIZES, **options).curve for ids in inputs]
    tv_IP = np.array([curve.tv[: len(SIZES)] for curve in curves])
    interval = bootstrap_mean(tv_IP)
    rows = zip(tv_IP.mean(axis=0), interval.low, interval.high, strict=True)
    cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in rows]
    return {f"{size:g}": cell for size, cell in zip(SIZES, cells, strict=True)}


def texts(model, limit: int) -> tuple[str, list[list[int]]]:
    """What is traced: (name, token ids)."""
    if not WIKITEXT.exists():
        found = [tokenize(model, x) for x in read_corpus(demo_folder() / "sentences.jsonl")]
        return "demo sentences", [tokens.token_ids.tolist() for tokens in found][:limit]
    cut = [tokenize(model, x).token_ids[:N_TOKENS].tolist() for x in read_corpus(WIKITEXT)]
    long = [ids for ids in cut if len(ids) == N_TOKENS]
    return f"WikiText-2 test inputs cut to {N_TOKENS} tokens", long[:limit]


def tables(limit: int = 200) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    model = load_model("demo")
    name, inputs = texts(model, limit)
    name = f"mean TV and 95 % interval by size, demo model, {len(inputs)} {name}"
    pairs = [
        {"scorer": scorer, "search": search, **mean_tv(model, inputs, scorer=scorer, search=search)}
        for scorer in SCORERS
        for search in SEARCHES
        if scorer != "random" or search == "best-first"
    ]
    equation = [
        {"scorer": scorer, "masked": masked, **mean_tv(model, inputs, scorer=scorer, ablate=kinds)}
        for scorer in ("l1", "random")
        for masked, kinds in (
            ("equation 3: residual, mlp, attention", "residual,mlp,attention"),
            ("released code in effect: residual, mlp", "residual,mlp"),
        )
    ]
    means = reference_means(model, list(read_corpus(demo_folder() / "sentences.jsonl")))
    ways = [
        {"mode": mode, "ablation": ablation, **mean_tv(model, inputs, **options)}
        for mode in ("sufficiency", "necessity")
        for ablation in ("zero", "renormalise", "mean")
        for options in [
            {"mode": mode, "ablation": ablation, "means": means if ablation == "mean" else None}
        ]
    ]
    return {
        f"Scorers and searches: {name}": pd.DataFrame(pairs),
        f"Equation 3 and the released code: {name}": pd.DataFrame(equation),
        f"Modes and ablations, l1 best-first: {name}": pd.DataFrame(ways),
    }
