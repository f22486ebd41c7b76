"""Loading: folders, hub ids, models in memory, and what goes wrong."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from fake_hub import commit_of, fake_hub
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
from graphtrace.loading import load_outline


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


def changed_config(folder, to, **changes):
    """A copy of a model whose config.json differs; a value of None takes the key out."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (to / "config.json").write_text(json.dumps(config))
    return to


def changed_weights(folder, to, change):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


LOADERS = [gt.load_model, load_outline]


@pytest.mark.parametrize("load", LOADERS)
def test_what_is_no_model_is_named(load, folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"^no model folder '\./nowhere'; give"):
        load("./nowhere")
    with pytest.raises(ModelNotFoundError, match=r"\(it is a file\)"):
        load(__file__)
    with pytest.raises(ModelNotFoundError, match="of the form org/name"):
        load("two words")
    with pytest.raises(OptionError, match="--model is empty"):
        load("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json, so it is no model$"):
        load(tmp_path / "empty")
    shutil.copytree(folder, tmp_path / "run" / "checkpoint-5")
    with pytest.raises(ModelNotFoundError, match=r"did you mean '.*/run/checkpoint-5'"):
        load(tmp_path / "run")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter .*merge_and_unload"):
        load(tmp_path / "empty")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json .* cannot be read"):
        load(broken)
    with pytest.raises(ModelError, match=r"config\.json .* cannot be read: .*num_hidden_layers"):
        load(changed_config(folder, tmp_path / "typed", num_hidden_layers="three"))
    with pytest.raises(ModelError, match="gives the model no layer"):
        load(changed_config(folder, tmp_path / "flat", num_hidden_layers=0))
    with pytest.raises(ModelError, match=r"no model can be built from .*/act': KeyError 'nope'"):
        load(changed_config(folder, tmp_path / "act", hidden_act="nope"))
    listed = shutil.copytree(folder, tmp_path / "listed")
    (listed / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json of .* holds no object"):
        load(listed)
    with pytest.raises(ModelError, match="has no model_type"):
        load(changed_config(folder, tmp_path / "llama-typeless", model_type=None))
    gptj = {"architectures": ["GPTJForCausalLM"], "model_type": "gptj"}
    with pytest.raises(UnsupportedFamilyError, match=r"GPTJForCausalLM .*'gptj'.*supported: "):
        load(changed_config(folder, tmp_path / "gptj", **gptj))
    new = {"architectures": ["NovelForCausalLM"], "model_type": "novel"}
    with pytest.raises(UnsupportedFamilyError, match=r"NovelForCausalLM .*'novel'"):
        load(changed_config(folder, tmp_path / "novel", **new))
    t5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
    with pytest.raises(UnsupportedFamilyError, match=r"T5ForConditionalGeneration .*'t5'"):
        load(changed_config(folder, tmp_path / "t5", **t5))
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}
    with pytest.raises(ModelError, match=r"code of its own .*never run"):
        load(changed_config(folder, tmp_path / "x", model_type="x", auto_map=code))
    quantised = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelError, match=r"quantised .*gptq.*float16"):
        load(changed_config(folder, tmp_path / "gptq", quantization_config=quantised))
    tokenless = shutil.copytree(folder, tmp_path / "tokenless")
    (tokenless / "tokenizer.json").unlink()
    (tokenless / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"the tokenizer of .*tokenless"):
        load(tokenless)


def test_a_known_family_is_loaded_without_the_code_that_came_with_it(folder, tmp_path):
    code = {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "configuration_x.X"}
    own = changed_config(folder, tmp_path / "tiny-llama", auto_map=code)
    assert gt.load_model(own).info.id == gt.load_model(folder).info.id


def test_what_is_wrong_with_the_weights_is_named(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no safetensors weights \(it holds no weights at all"):
        gt.load_model(bare)
    cut = shutil.copytree(folder, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"weights of .*cut"):
        gt.load_model(cut)
    name = "model.layers.1.mlp.up_proj.weight"
    partial = changed_weights(folder, tmp_path / "partial", lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=r"lack 1 parameters, 'model\.layers\.1\.mlp"):
        gt.load_model(partial)

    def shorten(weights):
        weights[name] = weights[name][:-1].contiguous()

    with pytest.raises(
        ModelError, match=rf"1 weights of .*short.*'{name}' .*\(19, 24\), not \(20, 24\)"
    ):
        gt.load_model(changed_weights(folder, tmp_path / "short", shorten))


def test_options_that_mean_nothing(folder):
    wrong = [
        ({"dtype": "float64"}, "dtype 'float64' is none of auto, float32"),
        ({"device": "warp"}, "device 'warp' is none of auto, cpu"),
        ({"device": "meta"}, "holds no numbers"),
        ({"revision": "step5"}, "--revision 'step5' is for models on the hub, and .* a folder"),
    ]
    if not torch.cuda.is_available():
        wrong += [
            ({"device": "cuda"}, "'cuda' is not available, there is no GPU here"),
            ({"device": "cuda:3"}, "no GPU here"),
            ({"device": "balanced"}, "'balanced' spreads a model over GPUs and there is none"),
        ]
    for load in LOADERS:
        for options, message in wrong:
            with pytest.raises(OptionError, match=message):
                load(str(folder), **options)
        with pytest.raises(OptionError, match="bundled"):
            load("demo", revision="step5")
    with pytest.raises(ModelError, match="got a int"):
        gt.load_model(5)


def test_pickled_weights_are_never_read(folder, tmp_path):
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"it holds pytorch_model\.bin\).*never read"):
        gt.load_model(pickled)


def test_dtypes(folder):
    full = gt.load_model(folder)
    for name in ("float32", "bfloat16", "float16"):
        model = gt.load_model(folder, dtype=name)
        assert model.info.dtype == name
        for key, value in model.causal_lm.named_parameters():
            expected = full.causal_lm.get_parameter(key).to(getattr(torch, name))
            assert torch.equal(value, expected), key


def test_sharded_weights_and_a_missing_shard(folder, tmp_path):
    whole, sharded = gt.load_model(folder), tmp_path / "tiny-llama"
    whole.causal_lm.save_pretrained(sharded, max_shard_size="20KB")
    whole.tokenizer.save_pretrained(sharded)
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert not (sharded / "model.safetensors").exists()
    assert gt.load_model(sharded).info.id == whole.info.id
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of the {len(shards)} files .*{shards[1].name}"):
        gt.load_model(sharded)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        gt.load_model(sharded)


def test_weights_published_as_mxfp4_are_unpacked(tmp_path):
    """gpt-oss is published so: per 32 values one shared exponent and a 4-bit number each."""
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "tiny", "gpt_oss", hidden_size=32, intermediate_size=32)
    plain = load_file(folder / "model.safetensors")
    steps = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    steps = torch.cat([steps, -steps])
    generator = torch.Generator().manual_seed(0)
    packed, expected = {}, {}
    for key, value in plain.items():
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[key] = value
            continue
        experts, n_in, n_out = value.shape
        code = torch.randint(0, 16, (experts, n_out, n_in // 32, 32), generator=generator)
        scale = torch.randint(124, 128, (experts, n_out, n_in // 32), generator=generator)
        pairs = code.reshape(experts, n_out, n_in // 32, 16, 2)
        packed[f"{key}_blocks"] = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
        packed[f"{key}_scales"] = scale.to(torch.uint8)
        number = steps[code] * 2.0 ** (scale - 127)[..., None]
        expected[key] = number.reshape(experts, n_out, n_in).transpose(1, 2)
    assert len(expected) == 2 * 3
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["x"]}
    (folder / "config.json").write_text(json.dumps(config))
    model = gt.load_model(folder)
    for key, value in expected.items():
        assert torch.equal(model.causal_lm.get_parameter(key), value), key
    assert gt.trace(model, "the cat").model.dtype == "float32"
    assert load_outline(folder).n_layers == 3


# ------------------------------------------------------------------------------- without weights


@pytest.mark.parametrize("name", sorted(TINY))
def test_an_outline_is_the_model_without_its_weights(name, tmp_path):
    folder = save_tiny(tmp_path / name, name)
    outline, model = load_outline(folder), gt.load_model(folder)
    for key in ("n_layers", "n_heads", "d_model", "context_length", "windows", "parallel", "name"):
        assert getattr(outline, key) == getattr(model, key), key
    assert outline.family is model.family
    assert outline.dtype == model.dtype
    shapes = [
        {key: value.shape for key, value in found.causal_lm.named_parameters()}
        for found in (outline, model)
    ]
    assert shapes[0] == shapes[1]
    assert all(value.device.type == "meta" for value in outline.causal_lm.parameters())


def test_an_outline_needs_no_weight_file(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    outline = load_outline(bare, dtype="bfloat16")
    assert outline.dtype == torch.bfloat16
    assert outline.tokenizer("the cat")["input_ids"]


# ------------------------------------------------------------------------------------- the hub

HUB_SCRIPT = """
import json, sys
import graphtrace as gt
from graphtrace.loading import load_outline
found = []
for name, options in json.loads(sys.argv[1]):
    for load in (load_outline, gt.load_model):
        try:
            model = load(name, **options)
            found.append([model.info.id, len(model.tokenizer)])
        except gt.GraphtraceError as error:
            found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""


def load_from_hub(url, home, cases, **variables):
    """What load_outline and load_model give for each case, in a process of its own."""
    env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "", **variables}
    env |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", HUB_SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return list(zip(found[::2], found[1::2], strict=True))


def test_hub_models_are_named_by_their_commit(folder, tmp_path):
    later = save_tiny(tmp_path / "later", seed=2)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    models = {
        "org/tiny": {"main": folder, "step1000": later},
        "org/secret": {"main": folder},
        "org/pickled": {"main": pickled},
    }
    main, step = (f"org/tiny@{commit_of(branch)}" for branch in ("main", "step1000"))
    cases = [
        ("org/tiny", {}),
        ("org/tiny", {"revision": "step1000"}),
        ("org/tiny", {"revision": commit_of("step1000")}),
        ("org/tiny", {"revision": "step100"}),
        ("org/none", {}),
        ("org/secret", {}),
        ("org/pickled", {}),
    ]
    with fake_hub(models, gated={"org/secret"}) as (url, asked):
        found = load_from_hub(url, tmp_path / "home", cases)
        # Pickled weights are not fetched, and nobody is asked to convert them.
        assert not [line for line in asked if "pytorch_model" in line or "/commits/" in line]
    for (outline, loaded), expected in zip(found, [main, step, step], strict=False):
        assert outline == loaded == [expected, 279]
    no_revision, no_model, gated, (outline, no_safetensors) = found[3:]
    assert no_revision[0] == no_revision[1]
    assert no_revision[0][0] == "ModelNotFoundError"
    assert "has no revision 'step100'; did you mean step1000?" in no_revision[0][1]
    assert "'org/none' is neither a local folder nor a model on the hub" in no_model[0][1]
    assert "'org/secret' is gated: ask for access" in gated[0][1]
    assert outline[0].startswith("org/pickled@")
    assert "'org/pickled' has no safetensors weights; pickled ones" in no_safetensors[1]
    # What was fetched is there without the hub; what was not is said to be absent.
    offline = load_from_hub(url, tmp_path / "home", cases[:4], HF_HUB_OFFLINE="1")
    assert [loaded[0] for _, loaded in offline[:3]] == [main, step, step]
    assert "revision 'step100' is neither" in offline[3][0][1]
    assert "cannot be reached" in offline[3][0][1]


# ---------------------------------------------------------------------------------- in memory


def test_adapters_must_be_merged():
    hf = tiny_model("llama")
    hf.peft_config = {}
    with pytest.raises(ModelError, match="merge_and_unload"):
        gt.load_model(hf)


def test_quantised_and_offloaded_weights_are_refused():
    hf = tiny_model("llama")
    hf.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(20, 24, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ModelError, match=r"quantised \('model\.layers\.1\.mlp.*int8"):
        gt.load_model(hf)
    hf = tiny_model("llama")
    hf.is_quantized = True
    with pytest.raises(ModelError, match="quantised"):
        gt.load_model(hf)
    hf = tiny_model("llama")
    hf.model.layers[2].to("meta")
    with pytest.raises(ModelError, match=r"9 of the 30 parameters .* offloaded.*--device balanced"):
        gt.load_model(hf)


def test_what_accelerate_offloads_is_refused(tmp_path):
    from accelerate import cpu_offload

    with pytest.raises(ModelError, match="offloaded"):
        gt.load_model(cpu_offload(tiny_model("llama"), execution_device="cpu"))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "opt"])
def test_a_dispatched_model_is_traced_to_the_same_numbers(name):
    from accelerate import dispatch_model

    ids = [3, 17, 5, 5, 29, 11, 8]
    plain, hf = tiny_model(name), tiny_model(name)
    # As accelerate does it: a block stays whole, everything outside the blocks is placed by itself.
    owners = {key.rpartition(".")[0] for key in hf.state_dict()}
    parts = {re.sub(r"(\.(?:layers|h)\.\d+)\..*", r"\1", owner) for owner in owners}
    dispatched = dispatch_model(hf, device_map=dict.fromkeys(parts, "cpu"), force_hooks=True)
    blocks = {key: m for key, m in dispatched.named_modules() if hasattr(m, "_hf_hook")}
    assert len(blocks) > 10
    before = {
        key: (block._hf_hook, block._old_forward, block.forward) for key, block in blocks.items()
    }
    for scorer in ("l1", "gradient"):
        expected, found = (gt.trace(m, ids, scorer=scorer) for m in (plain, dispatched))
        assert found.to_row()["content"] == expected.to_row()["content"]
        # Hooked projections run on every row, the plain ones on the rows that differ.
        np.testing.assert_allclose(found.curve.tv, expected.curve.tv, atol=5e-6)
        assert found.model.id == expected.model.id
    for key, block in blocks.items():
        assert (block._hf_hook, block._old_forward, block.forward) == before[key], key


# ------------------------------------------------------------------------------------- memory

PEAK_SCRIPT = """
import json, sys, threading, time
import torch
import graphtrace as gt
gt.load_model(sys.argv[1])  # everything that is imported on the way is there
def status(key):
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) for x in lines if x.startswith(key)) * 1024
peak, stop = [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], status("RssAnon"))
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
anon, rss = status("RssAnon"), status("VmRSS")  # ru_maxrss would count the parent's too
watcher.start()
model = gt.load_model(sys.argv[2], dtype=sys.argv[3])
stop.set()
watcher.join()
print(json.dumps({
    "weights": sum(p.numel() * p.element_size() for p in model.causal_lm.parameters()),
    "anon": peak[0] - anon,
    "rss": status("VmHWM") - rss,
}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_are_never_held_twice(folder, tmp_path):
    """A bfloat16 checkpoint of 120 MB read as float32: what is allocated is the float32 weights
    alone. Resident besides are at most the pages of the file, which the system takes back when it
    needs them."""
    extra = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14}
    big = save_tiny(tmp_path / "big", **extra, num_attention_heads=8, num_key_value_heads=8)
    hf = gt.load_model(big).causal_lm.to(torch.bfloat16)
    hf.save_pretrained(big, max_shard_size="30MB")
    (big / "model.safetensors").unlink()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    # Held once as float32; as bfloat16 they stay the pages of the file.
    for dtype, least, most in [("float32", 0.8, 1.25), ("bfloat16", 0.0, 0.35)]:
        command = [sys.executable, "-c", PEAK_SCRIPT, str(folder), str(big), dtype]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        print(dtype, {key: f"{value / 1e6:.0f} MB" for key, value in found.items()})
        assert found["weights"] > 100e6
        assert least * found["weights"] <= found["anon"] < most * found["weights"]
        assert found["rss"] < 1.75 * found["weights"]
