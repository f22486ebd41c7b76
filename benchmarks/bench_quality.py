"""Do the demo model's traces mean something? Mean TV by size against the random baseline.

Inputs: the shipped sentences, and, where at hand, the WikiText-2 test corpus cut to 24 tokens.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from graphtrace.corpus import read_corpus
from graphtrace.loading import demo_folder, load_model
from graphtrace.tokenizing import tokenize
from graphtrace.tracing import trace

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2-test.jsonl"
SIZES = (1e-3, 2e-3, 1e-2, 2e-2, 0.1)


def mean_tv(model, inputs) -> pd.DataFrame:
    """One row per scorer: mean TV at each of SIZES."""
    rows = []
    for scorer in ("l1", "random"):
        curves = [trace(model, ids, scorer=scorer, sizes=SIZES).curve for ids in inputs]
        tv = np.mean([curve.tv[:-1] for curve in curves], axis=0)
        rows.append({"scorer": scorer} | {f"{s:g}": x for s, x in zip(SIZES, tv, strict=True)})
    return pd.DataFrame(rows)


def tables(limit: int = 200) -> dict[str, pd.DataFrame]:
    """Title -> table."""
    model = load_model("demo")
    sentences = [
        tokenize(model, x).token_ids for x in read_corpus(demo_folder() / "sentences.jsonl")
    ]
    lengths = [len(ids) for ids in sentences]
    title = f"Mean TV, {len(sentences)} demo sentences of {min(lengths)} to {max(lengths)} tokens"
    found = {title: mean_tv(model, [ids.tolist() for ids in sentences])}
    if WIKITEXT.exists():
        tokens = [tokenize(model, x).token_ids[:24].tolist() for x in read_corpus(WIKITEXT)]
        long = [ids for ids in tokens if len(ids) == 24][:limit]
        found[f"Mean TV, {len(long)} WikiText-2 test inputs cut to 24 tokens"] = mean_tv(
            model, long
        )
    return found
