"""Tokens as text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_tiny
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from graphtrace.tokens import bytes_as_text, is_byte_level, special_ids, token_texts


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_tiny(tmp_path_factory.mktemp("tokenizer")))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_byte_level_tokens_spell_the_text(byte_level, text):
    ids = byte_level(text, add_special_tokens=False)["input_ids"]
    raw = b""
    for piece in token_texts(byte_level, ids):
        if piece.startswith("<0x"):
            assert piece.count("<0x") * 6 == len(piece)
            raw += bytes(int(part[:2], 16) for part in piece.split("<0x")[1:])
        else:
            raw += piece.encode()
    # A text may itself spell "<0x41>"; those are the only ones that may differ.
    assert raw == text.encode() or "<0x" in text


def test_fragments_specials_and_spaces(byte_level):
    assert bytes_as_text("é".encode()[:1]) == "<0xC3>"
    assert bytes_as_text(b"a" + "é".encode() + b"\xff") == "aé<0xFF>"
    ids = byte_level("the cat\n")["input_ids"]
    texts = token_texts(byte_level, ids)
    assert texts[0] == "<s>"
    assert "".join(texts[1:]) == "the cat\n"
    assert special_ids(byte_level) == {0}
    assert special_ids(None) == set()


def test_sentencepiece_style_pieces():
    vocab = {"<s>": 0, "▁the": 1, "é": 2, "<0xE2>": 3, "<0x0A>": 4, "▁": 5}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<s>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert not is_byte_level(tokenizer)
    assert token_texts(tokenizer, list(range(6))) == ["<s>", " the", "é", "<0xE2>", "\n", " "]


def test_ids_beyond_the_vocabulary_have_a_name(byte_level):
    assert token_texts(byte_level, [5000]) == ["<id 5000>"]
