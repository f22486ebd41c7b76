"""bfloat16 and float16 weights: the model's own logits bit for bit, float32 scores."""

import numpy as np
import pytest
import torch
from tiny_models import TINY, tiny_model

import graphtrace as gt
from graphtrace.forward import run_model
from graphtrace.loading import load_model

IDS = [3, 17, 5, 5, 29, 11, 8]
HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", TINY)
def test_the_pass_is_the_models_own(name, dtype):
    hf = tiny_model(name).to(dtype)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        own = hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    assert torch.equal(run_model(load_model(hf), ids), own)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("scorer", ["l1", "proximity", "gradient", "projection"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "granite"])
def test_scores_are_float32_and_near_those_of_float32(name, scorer, dtype):
    half = gt.trace(tiny_model(name).to(dtype), IDS, scorer=scorer, sizes=(0.5,))
    full = gt.trace(tiny_model(name), IDS, scorer=scorer, sizes=(0.5,))
    assert half.ranked.score.dtype == np.float32
    assert half.settings.dtype == str(dtype).removeprefix("torch.")
    frames = [
        t.edges().set_index(["component", "source_position", "target_position"])
        for t in (half, full)
    ]
    mine, theirs = (frame["score"].sort_index().to_numpy() for frame in frames)
    # A backward pass in 8 bits of mantissa is rougher than a forward pass.
    least = 0.8 if (scorer, dtype) == ("gradient", torch.bfloat16) else 0.98
    assert np.corrcoef(mine, theirs)[0, 1] > least
