"""The shipped demo model: its size, its tokenizer, its sentences, and its English."""

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(__file__).parents[1] / "graphtrace" / "demo"
MAX_BYTES = 12_000_000

UNSEEN = (
    "The two girls walked along the river until it began to rain, and then they ran back to the "
    "house. Their mother was standing at the door, and she asked them where they had been. They "
    "told her that they had seen a man with a large black dog, who had spoken to them about the "
    "old bridge. She did not believe a word of it, but she gave them some bread and sent them to "
    "bed."
)
UNSEEN_PERPLEXITY = 30  # measured: 17.1


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    loaded = AutoModelForCausalLM.from_pretrained(
        DEMO, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


def perplexity(model, tokenizer, text: str) -> float:
    """Exponential of the mean loss per token of `text` after `<s>`."""
    tokens_BT = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return math.exp(model(tokens_BT, labels=tokens_BT).loss.item())


def sentences() -> list[dict]:
    """The demo inputs."""
    return [json.loads(line) for line in (DEMO / "sentences.jsonl").read_text().splitlines()]


def test_the_folder_is_small_and_complete():
    names = {path.name for path in DEMO.iterdir() if path.is_file()}
    assert names >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "sentences.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in DEMO.iterdir() if path.is_file()) < MAX_BYTES


def test_the_settings_name_no_place_on_a_machine():
    for path in DEMO.glob("*config.json"):
        text = path.read_text()
        assert "_name_or_path" not in text
        assert "/" not in text


def test_the_shape_is_the_one_on_the_card(model):
    config = model.config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size)
    assert shape == (6, 8, 256)
    assert config.intermediate_size == 640
    assert config.vocab_size == 4096
    assert f"{model.num_parameters():,}" in (DEMO / "README.md").read_text()
    assert json.loads((DEMO / "config.json").read_text())["dtype"] == "float16"


def test_the_tokenizer_prepends_the_first_token(tokenizer):
    ids = tokenizer("A short sentence").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert len(tokenizer) == 4096
    assert tokenizer.model_max_length == 256


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80).filter(lambda text: "<s>" not in text and "<pad>" not in text))
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_sentences_are_24_in_even_groups(tokenizer):
    rows = sentences()
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 24
    groups = [row["group"] for row in rows]
    assert {groups.count(group) for group in set(groups)} == {6}
    lengths = [len(tokenizer(row["text"]).input_ids) for row in rows]
    assert min(lengths) >= 10
    assert max(lengths) <= 25
    for row in rows:
        assert set(row) == {"id", "text", "continuation", "group"}
        assert row["continuation"].startswith(" ")
        # One token, so that its loss is that of a single prediction.
        assert len(tokenizer(row["continuation"], add_special_tokens=False).input_ids) == 1


def test_plain_english_that_it_has_not_seen_is_not_a_surprise(model, tokenizer):
    assert perplexity(model, tokenizer, UNSEEN) < UNSEEN_PERPLEXITY


def test_word_order_matters_to_it(model, tokenizer):
    shuffled = " ".join(sorted(UNSEEN.split()))
    assert perplexity(model, tokenizer, shuffled) > 5 * perplexity(model, tokenizer, UNSEEN)
