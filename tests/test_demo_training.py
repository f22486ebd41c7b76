"""The training script on a minuscule model: it writes a loadable folder, resumes, and holds out."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from absent import absent

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import demo_text
import train_demo

WORDS = [
    "the",
    "river",
    "house",
    "old",
    "small",
    "bird",
    "ran",
    "saw",
    "over",
    "Anna",
    "Peter",
    "1902",
]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    """Two files of 300 different paragraphs in all, with a repeated one in each."""
    folder = tmp_path_factory.mktemp("text")
    for name, first in (("book", 0), ("wikitext2-mini", 150)):
        paragraphs = ["CHAPTER “I”"]
        for number in range(first, first + 150):
            picked = [WORDS[(number * k + k * k) % len(WORDS)] for k in range(1, 12)]
            paragraphs.append(f"In {number} {' '.join(picked)}. Then it _stopped_ -- at last.")
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder


@pytest.fixture
def config(text_folder: Path, tmp_path: Path) -> train_demo.TrainConfig:
    """A model of one layer, trained for two steps."""
    return train_demo.TrainConfig(
        data=text_folder,
        out=tmp_path / "out",
        checkpoint=tmp_path / "checkpoint",
        layers=1,
        heads=2,
        width=16,
        ff_width=32,
        vocab=300,
        max_steps=2,
        window=16,
        batch_tokens=64,
        compile=False,
    )


def test_training_writes_a_model_that_transformers_loads(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sentences.jsonl").write_text("kept\n")
    transfer = tmp_path / "transfer.jsonl"
    transfer.write_text(json.dumps({"text": "Anna saw", "continuation": " a bird."}) + "\n")

    report = train_demo.train(replace(config, transfer=transfer))

    assert report["steps"] == 2
    assert report["tokens_seen"] == 2 * 64
    assert set(report["scores"]) == {"all", "boosted", "transfer"}
    assert (config.out / "sentences.jsonl").read_text() == "kept\n"
    assert not list(tmp_path.glob("out.*"))
    tokenizer = AutoTokenizer.from_pretrained(config.out)
    model = AutoModelForCausalLM.from_pretrained(config.out)
    tokens_BT = tokenizer("Anna saw the river", return_tensors="pt").input_ids
    assert tokens_BT[0, 0] == tokenizer.bos_token_id
    assert model(tokens_BT).logits.shape == (*tokens_BT.shape, 300)


def test_resuming_goes_on_from_the_checkpoint(config):
    first = train_demo.train(config)
    second = train_demo.train(replace(config, max_steps=5))
    assert second["steps"] == 5
    assert second["tokens_seen"] == 5 * 64
    assert second["minutes"] > first["minutes"]
    assert second["history"][: len(first["history"])] == first["history"]


def test_a_finished_run_writes_the_same_scores_again(config):
    first = train_demo.train(config)
    again = train_demo.train(config)
    assert again["steps"] == first["steps"]
    assert again["scores"] == first["scores"]


def test_the_sampler_resumes_with_the_windows_that_an_unbroken_run_draws(text_folder):
    files = demo_text.read_paragraphs(text_folder, "wikitext", 3)
    tokenizer = demo_text.train_tokenizer(files, 300)
    corpus = demo_text.build_corpus(files, tokenizer)
    unbroken = demo_text.WindowSampler(corpus, seed=1)
    unbroken.next_batch(7, 16)
    resumed = demo_text.WindowSampler(corpus, seed=1, drawn=7)
    tokens_BT = resumed.next_batch(5, 16)
    assert tokens_BT.tolist() == unbroken.next_batch(5, 16).tolist()
    assert tokens_BT[:, 0].tolist() == [demo_text.BOS_ID] * 5


def test_held_out_paragraphs_are_never_trained_on(text_folder):
    files = demo_text.read_paragraphs(text_folder, "", 1)
    train = {text for file in files for text in file.train}
    held_out = {text for file in files for text in file.held_out}
    assert held_out
    assert not train & held_out
    assert len(held_out) < 0.1 * len(train)
    again = demo_text.read_paragraphs(text_folder, "", 1)
    assert again == files


def test_no_held_out_paragraph_of_the_real_text_is_trained_on():
    folder = Path(__file__).parents[2] / "shared" / "data" / "train"
    if not folder.is_dir():
        absent("the training text is not on this machine")
    files = demo_text.read_paragraphs(folder, "wikitext", 3)
    train = {text for file in files for text in file.train}
    held_out = {text for file in files for text in file.held_out}
    assert not train & held_out
    assert all(file.held_out for file in files)
    characters = [sum(map(len, texts)) for texts in (train, held_out)]
    assert 0.01 < characters[1] / sum(characters) < 0.03


def test_sentences_of_a_paragraph_joined_by_spaces_are_the_paragraph():
    paragraph = 'It rained. "Come in," said Anna. "Who is there?" No one. It was 3.5 miles away.'
    sentences = demo_text.split_sentences(paragraph)
    assert sentences[0] == "It rained."
    assert " ".join(sentences) == paragraph


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no text to train on"):
        demo_text.read_paragraphs(tmp_path, "", 1)


def test_every_setting_is_an_option():
    arguments = ["--layers", "2", "--max-steps", "3", "--no-compile", "--data", "texts"]
    config = train_demo.parse_arguments(arguments)
    expected = {"layers": 2, "max_steps": 3, "compile": False, "data": Path("texts")}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config == replace(train_demo.TrainConfig(), **expected)
