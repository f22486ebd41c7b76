"""Reference means: how their texts are read, from Python and from the command line."""

import json

import command_line
import pytest
import torch
from tiny_models import save_tiny

import graphtrace as gt
from graphtrace.errors import InputError, OptionError
from graphtrace.reference_means import load_means, reference_means

TEXTS = ["the cat sat on the mat", "a dog and a cat"]
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}then {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return gt.load_model(folder)


def ids_of(model, text, **options):
    return model.tokenizer(text, **options)["input_ids"]


def same(found, expected):
    assert found.provenance.inputs == expected.provenance.inputs
    assert torch.equal(found.means.attention_LHD, expected.means.attention_LHD)
    assert torch.equal(found.means.mlp_LD, expected.means.mlp_LD)


def test_bos_as_asked(model):
    plain = [ids_of(model, text) for text in TEXTS]
    assert all(ids[0] == model.tokenizer.bos_token_id for ids in plain)
    same(reference_means(model, TEXTS), reference_means(model, plain))
    bare = reference_means(model, TEXTS, bos="no")
    same(bare, reference_means(model, [ids[1:] for ids in plain]))
    assert bare.id != reference_means(model, TEXTS).id
    assert bare.provenance.n_tokens == sum(map(len, plain)) - 2


def test_chats_through_the_template(model):
    bos = model.tokenizer.bos_token
    written = [f"{bos}system be brief {bos}user {text} then " for text in TEXTS]
    expected = [ids_of(model, text, add_special_tokens=False) for text in written]
    found = reference_means(model, TEXTS, chat=True, system="be brief")
    same(found, reference_means(model, expected))


def test_options_are_checked_before_any_input_is_read(model):
    for options, message in [
        ({"bos": "maybe"}, "maybe"),
        ({"system": "be brief"}, "add --chat"),
    ]:
        with pytest.raises(OptionError, match=message):
            reference_means(model, iter(["the cat"]), **options)
    with pytest.raises(OptionError, match="no chat template"):
        reference_means(gt.load_model("demo"), ["the cat"], chat=True)
    with pytest.raises(InputError, match="no input could be read"):
        reference_means(model, ["the cat " * 900])


def test_the_command_reads_chats(model, folder, tmp_path):
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    lines = [json.dumps({"messages": chat}) for chat in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))

    def run(*options):
        means = ("reference-means", "chats.jsonl", "--out", "means.safetensors")
        return command_line.run(*means, "--model", folder, *options, cwd=tmp_path)

    done = run("--chat", "--system", "be brief", "--bos", "no")
    assert done.code == 0, done.err
    found = load_means(tmp_path / "means.safetensors")
    same(found, reference_means(model, chats, chat=True, system="be brief", bos="no"))
    (tmp_path / "means.safetensors").unlink()
    for options, message, rc in [
        ((), "add --chat", 1),
        (("--system", "x"), "add --chat", 2),
        (("--bos", "maybe", "--chat"), "none of auto, yes, no", 2),
    ]:
        done = run(*options)
        assert done.code == rc, (options, done.err)
        assert message in done.err
        assert len(done.err.splitlines()) == 1
        assert not (tmp_path / "means.safetensors").exists()
