"""Loading: folders, hub ids, models in memory, and what goes wrong."""

import json
import shutil

import pytest
import torch
from tiny_models import TINY, save_tiny, tiny_model

import graphtrace as gt
from graphtrace.errors import (
    ModelError,
    ModelNotFoundError,
    OptionError,
    UnsupportedFamilyError,
)
from graphtrace.families import FAMILIES
from graphtrace.layout import GraphLayout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


def test_a_local_folder_is_named_by_its_last_part_and_its_weights(folder, tmp_path):
    model = gt.load_model(str(folder))
    assert model.info.name == "tiny-llama"
    assert str(folder.parent) not in model.info.id
    assert model.info.dtype == "float32"
    elsewhere = shutil.copytree(folder, tmp_path / "deep" / "tiny-llama")
    assert gt.load_model(elsewhere).info.id == model.info.id
    assert gt.load_model(save_tiny(tmp_path / "tiny-llama", seed=1)).info.id != model.info.id


def test_from_a_folder_and_from_memory_give_the_same_trace(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "the cat sat on the"
    loaded = gt.trace(str(folder), text)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = gt.trace(gt.load_model(hf, tokenizer=AutoTokenizer.from_pretrained(folder)), text)
    assert list(given.curve.tv) == list(loaded.curve.tv)
    assert given.model.id == loaded.model.id
    assert given.id == loaded.id
    assert loaded.tokens[0] == "<s>"
    assert loaded.special.tolist() == [True] + [False] * (len(loaded.tokens) - 1)
    assert "".join(loaded.tokens[1:]) == text


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window", "phi3", "olmo2", "qwen3"])
def test_every_family_loads_from_a_folder(name, tmp_path):
    trace = gt.trace(str(save_tiny(tmp_path / name, name)), "the cat sat on the mat and the dog")
    assert trace.model.family == name.split("-")[0]
    if "window" in name:
        assert trace.model.windows is not None
        assert trace.n_edges < GraphLayout(trace.position + 1, 3, 4).n_edges


def test_all_families_have_a_tiny_model():
    assert {TINY[name][0].__name__ for name in TINY} == set(FAMILIES)


def test_loss_is_of_the_first_token_of_the_continuation(folder):
    model = gt.load_model(folder)
    longer = model.tokenizer("the cat sat on the mat")["input_ids"]
    known = gt.trace(model, "the cat sat on", continuation=" the mat")
    next_id = longer[len(known.token_ids)]
    with torch.no_grad():
        logits = model.causal_lm(torch.tensor([known.token_ids.tolist()])).logits[0, -1]
    assert known.loss == pytest.approx(-float(logits.double().log_softmax(-1)[next_id]), abs=1e-5)
    assert gt.trace(model, "the cat sat on").loss is None
    # A cut inside a word is tokenized differently: the true next token is not known.
    assert gt.trace(model, "the ca", continuation="t sat").loss is None


def test_what_goes_wrong_has_one_clear_line(folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no model folder '\./nowhere'"):
        gt.load_model("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        gt.load_model(tmp_path / "empty")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        gt.load_model(broken)
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config |= {"architectures": ["GPTJForCausalLM"], "model_type": "gptj"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedFamilyError, match=r"GPTJForCausalLM .*'gptj'.*supported: llama"):
        gt.load_model(other)
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors only"):
        gt.load_model(bare)
    cut = shutil.copytree(folder, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cut"):
        gt.load_model(cut)
    from safetensors.torch import load_file, save_file

    partial = shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 parameters, 'model\.layers\.1\.mlp"):
        gt.load_model(partial)
    with pytest.raises(OptionError, match="float64"):
        gt.load_model(folder, dtype="float64")
    with pytest.raises(OptionError, match="warp"):
        gt.load_model(folder, device="warp")


def test_pickled_weights_are_never_read(folder, tmp_path):
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors only"):
        gt.load_model(pickled)


def test_adapters_must_be_merged():
    hf = tiny_model("llama")
    hf.peft_config = {}
    with pytest.raises(ModelError, match="merge_and_unload"):
        gt.load_model(hf)
