"""Texts and chats as token ids: against the tokenizer's own output put together by hand."""

import json
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_tiny, tiny_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import graphtrace as gt
from graphtrace.corpus import as_input, texts_as_inputs
from graphtrace.errors import (
    CorpusError,
    EmptyTextError,
    InputError,
    MissingPackageError,
    OptionError,
    TextTooLongError,
)
from graphtrace.models import TracedModel
from graphtrace.tokenizing import TextOptions, tokenize
from graphtrace.tokens import special_ids
from graphtrace.traces import Input

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes BOS itself, trims contents and refuses a system message.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system role here') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]{% else %}"
    "{{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
MARKS = ["<|im_start|>", "<|im_end|>"]


def byte_level(bos=True, template=None, eos=None):
    """Byte-level BPE of the tiny model, with the marks of a chat as special tokens."""
    tokenizer = byte_level.base(bos)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if eos:
        tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for bos in (True, False):
        save_tiny(root / str(bos), bos=bos)
    byte_level.base = lambda bos: AutoTokenizer.from_pretrained(root / str(bos))


def word_level(words, bos="<s>", adds=True, normalizer=None):
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: i for i, word in enumerate(words, 3)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Metaspace()
    if normalizer:
        backend.normalizer = normalizer
    if adds:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token="<unk>"
    )


def with_tokenizer(tokenizer, vocab_size=400, limit=64):
    """What tokenize needs of a model."""
    config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=limit)
    return TracedModel(SimpleNamespace(config=config), tokenizer, None, "tiny", "")  # pyright: ignore


def ids(model, text, **options):
    return tokenize(model, text, options=TextOptions(**options)).token_ids.tolist()


def bare(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------------------------- BOS


@pytest.mark.parametrize("adds", [True, False])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=9))
def test_bos_is_there_as_asked(adds, text):
    tokenizer = byte_level(bos=adds)
    model = with_tokenizer(tokenizer)
    if not text.strip():
        with pytest.raises(EmptyTextError):
            ids(model, text)
        return
    own = bare(tokenizer, text)
    assert ids(model, text) == ([0, *own] if adds else own)
    assert ids(model, text, bos="yes") == [0, *own]
    assert ids(model, text, bos="no") == own


@pytest.mark.parametrize(
    ("adds", "text", "bos", "n_bos"),
    [
        (True, "<s>the cat", "no", 1),  # the text's own stays: only the tokenizer's goes
        (False, "<s>the cat", "yes", 1),
        (False, "<s>the cat", "auto", 1),
        (False, "<s>the cat", "no", 1),
        (True, "<s>", "no", 1),
    ],
)
def test_a_bos_in_the_text_counts(adds, text, bos, n_bos):
    model = with_tokenizer(byte_level(bos=adds))
    found = ids(model, text, bos=bos)
    assert found == [0] * n_bos + bare(model.tokenizer, text.removeprefix("<s>"))


@pytest.mark.parametrize("bos", ["auto", "yes"])
def test_a_doubled_bos_is_kept_and_told(bos):
    model = with_tokenizer(byte_level())
    with pytest.warns(UserWarning, match=r"'twice' begins with 2 BOS tokens \(<s>\).*--bos no"):
        found = ids(model, Input("twice", "<s>the cat"), bos=bos)
    assert found[:2] == [0, 0]
    with pytest.warns(UserWarning, match="begins with 3 BOS"):
        ids(model, "<s><s>the cat")


def test_bos_that_cannot_be():
    model = with_tokenizer(word_level(["the"], bos=None, adds=False))
    assert ids(model, "the", bos="no") == [3]
    with pytest.raises(OptionError, match=r"tokenizer of tiny has no BOS token; leave --bos yes"):
        ids(model, "the", bos="yes")
    with pytest.raises(OptionError, match="--bos 'on' is none of auto, yes, no"):
        TextOptions(bos="on")


# ----------------------------------------------------------------------------------- chats


def test_a_chat_is_its_template_read_once():
    tokenizer = byte_level(bos=True, template=CHATML)
    model = with_tokenizer(tokenizer)
    start, end = tokenizer.convert_tokens_to_ids(MARKS)
    words = [bare(tokenizer, text) for text in ("user\nthe cat", "\n", "assistant\n")]
    expected = [start, *words[0], end, *words[1], start, *words[2]]
    # The template writes no BOS, and the tokenizer's own is not put in front of a chat.
    assert ids(model, "the cat", chat=True) == expected
    assert ids(model, "the cat", chat=True, bos="no") == expected
    assert ids(model, "the cat", chat=True, bos="yes") == [0, *expected]
    system = [start, *bare(tokenizer, "system\nbe short"), end, *words[1]]
    assert ids(model, "the cat", chat=True, system="be short") == system + expected
    marked = np.isin(expected, list(special_ids(tokenizer)))
    assert marked.tolist() == [token in (start, end) for token in expected]


def test_messages_are_read_in_their_order():
    tokenizer = byte_level(template=CHATML)
    model = with_tokenizer(tokenizer)
    messages = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "on"},
    ]
    found = tokenize(model, messages, options=TextOptions(chat=True))
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert found.token_ids.tolist() == bare(tokenizer, text + "<|im_start|>assistant\n")
    assert found.input.text == "the cat\nsat\non"
    assert found.input.meta == {"messages": messages}
    line = Input("a", "other text", meta={"messages": messages, "n": 1})
    assert ids(model, line, chat=True) == found.token_ids.tolist()
    # Without --chat the line's text is the input.
    assert ids(model, line) == [0, *bare(tokenizer, "other text")]


def test_a_bos_written_by_the_template():
    tokenizer = byte_level(bos=True, template=INST, eos="<|im_end|>")
    model = with_tokenizer(tokenizer)
    rest = bare(tokenizer, "[INST] the cat [/INST]")
    assert ids(model, " the cat", chat=True) == [0, *rest]
    assert ids(model, " the cat", chat=True, bos="yes") == [0, *rest]
    assert ids(model, " the cat", chat=True, bos="no") == rest
    doubled = with_tokenizer(byte_level(template="{{ bos_token }}" + INST, eos="<|im_end|>"))
    with pytest.warns(UserWarning, match="begins with 2 BOS tokens"):
        assert ids(doubled, "the cat", chat=True) == [0, 0, *rest]


def test_chats_that_cannot_be_read():
    plain, chatty = with_tokenizer(byte_level()), with_tokenizer(byte_level(template=CHATML))
    with pytest.raises(OptionError, match=r"tokenizer of tiny has no chat template; leave --chat"):
        ids(plain, "the cat", chat=True)
    with pytest.raises(OptionError, match="--system is a message of a chat; add --chat"):
        TextOptions(system="be short")
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    line = Input("own", "x\ny", meta={"messages": messages})
    with pytest.raises(InputError, match="'own' has a system message of its own"):
        ids(chatty, line, chat=True, system="be short")
    refusing = with_tokenizer(byte_level(template=INST, eos="<|im_end|>"))
    with pytest.raises(InputError, match=r"template of tiny refuses input 'own': no system role"):
        ids(refusing, line, chat=True)
    broken = with_tokenizer(byte_level(template="{{ messages[0]['content'] + 1 }}"))
    with pytest.raises(InputError, match="refuses input"):
        ids(broken, "the cat", chat=True)
    unfinished = with_tokenizer(byte_level(template="{% for %}"))
    with pytest.raises(InputError, match="refuses input"):
        ids(unfinished, "the cat", chat=True)
    several = with_tokenizer(byte_level(template={"rag": CHATML, "tool_use": CHATML}))
    with pytest.raises(OptionError, match="rag"):
        ids(several, "the cat", chat=True)
    for options in ({}, {"bos": "yes"}):
        with pytest.raises(OptionError, match=r"is a chat, .* add --chat \(chat=True\)"):
            ids(chatty, messages, **options)
        with pytest.raises(OptionError, match=r"'own' is a chat"):
            ids(chatty, line, **options)
    with pytest.raises(CorpusError, match="the 'content' of message 1 is missing"):
        ids(chatty, Input("a", "x", meta={"messages": [{"role": "user"}]}), chat=True)
    with pytest.raises(CorpusError, match="the chat: message 2 is str"):
        ids(chatty, [messages[1], "y"], chat=True)


def test_a_chat_that_ends_with_the_answer_is_told():
    model = with_tokenizer(byte_level(template=CHATML))
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat"}]
    with pytest.warns(UserWarning, match="asked for one more; move that message to `continuation`"):
        ids(model, messages, chat=True)


def test_without_jinja_the_missing_package_is_named(monkeypatch):
    model = with_tokenizer(byte_level(template=CHATML))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingPackageError, match="needs jinja2, which is not installed; pip"):
        ids(model, "the cat", chat=True)


def test_the_first_of_several_templates_named_default():
    model = with_tokenizer(byte_level(template={"default": CHATML, "rag": INST}))
    only = with_tokenizer(byte_level(template=CHATML))
    assert ids(model, "the cat", chat=True) == ids(only, "the cat", chat=True)


# ---------------------------------------------------------------------------- what follows


@pytest.mark.parametrize("template", [CHATML, INST, CHATML + "\n", CHATML + "[go]"])
@pytest.mark.parametrize("bos", ["auto", "yes", "no"])
@pytest.mark.parametrize("continuation", ["the mat", " the mat", "\nthe", "🙂", "<think>"])
def test_the_true_next_token_of_a_chat(template, bos, continuation):
    tokenizer = byte_level(template=template, eos="<|im_end|>")
    model = with_tokenizer(tokenizer)
    options = TextOptions(chat=True, bos=bos)
    found = tokenize(model, "the cat", continuation, options)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}], tokenize=False, add_generation_prompt=True
    )
    before, after = bare(tokenizer, prompt), bare(tokenizer, prompt + continuation)
    known = after[: len(before)] == before
    assert found.next_id == (after[len(before)] if known else None)
    assert found.token_ids.tolist() == ids(model, "the cat", chat=True, bos=bos)
    if continuation == "<think>":
        assert found.next_id == tokenizer.convert_tokens_to_ids("<think>")


def test_a_cut_inside_a_word_leaves_the_next_token_unknown():
    model = with_tokenizer(byte_level(template="{{ messages[0]['content'] }}"))
    for options in (TextOptions(), TextOptions(bos="no"), TextOptions(chat=True)):
        known = tokenize(model, "the cat sat on", " the mat", options)
        assert known.next_id == model.tokenizer.convert_tokens_to_ids("Ġthe")
        assert tokenize(model, "the ca", "t sat", options).next_id is None
        assert tokenize(model, "the cat", None, options).next_id is None


# ------------------------------------------------------------------------------- bad input


def test_a_text_that_yields_no_token():
    drops = normalizers.Replace("\u200b", "")
    model = with_tokenizer(word_level(["the"], normalizer=drops))
    with pytest.raises(EmptyTextError, match=r"tokenizer of tiny makes no token of input 'zero'"):
        ids(model, Input("zero", "\u200b"))
    with pytest.raises(EmptyTextError, match="has no text"):
        ids(model, Input("blank", " \n"))
    assert ids(model, "the") == [1, 3]


def test_characters_that_the_tokenizer_does_not_know_are_told():
    model = with_tokenizer(word_level(["the", "cat"]))
    with pytest.warns(UserWarning, match=r"2 of the 4 tokens of input 'x' are <unk>"):
        assert ids(model, Input("x", "the 猫 ☃")) == [1, 3, 0, 0]
    # An unknown character stands for text; it is no token of a template.
    assert special_ids(model.tokenizer) == {1, 2}
    model.tokenizer.pad_token = "<unk>"
    assert special_ids(model.tokenizer) == {0, 1, 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids(model, "the cat")


def test_too_long_says_both_numbers():
    model = with_tokenizer(byte_level(template=CHATML), limit=10)
    with pytest.raises(TextTooLongError, match=r"'long' has 13 tokens .* of tiny holds 10"):
        ids(model, Input("long", " the" * 12))
    with pytest.raises(TextTooLongError, match="holds 10"):
        ids(model, "the cat sat on", chat=True)
    assert len(ids(model, " the" * 9)) == 10


def test_a_tokenizer_of_another_model_is_told():
    model = with_tokenizer(byte_level(), vocab_size=31)
    with pytest.raises(
        InputError, match=r"has the token id \d+, and those of tiny are 0 \.\.\. 30"
    ):
        ids(model, "the cat")


@pytest.mark.parametrize(
    ("given_ids", "message"),
    [
        ([31], "token id 31, and those of tiny are 0"),
        ([-1, 3], "token id -1"),
        ([2**40], "token id 1099511627776"),
        ([1.5, 2.5], "got 2 values of type float64"),
        ([True, False], "of type bool"),
        ([[1, 2, 3]], r"an array of shape \(1, 3\)"),
        ([[1, 2], [3]], "one row of integers"),
        (["the cat", "a dog"], "several texts go to trace_many"),
        (None, "got NoneType"),
        (5, "got int"),
    ],
)
def test_what_is_no_row_of_token_ids(given_ids, message):
    with pytest.raises(InputError, match=message):
        tokenize(with_tokenizer(None, vocab_size=31), given_ids)


def test_token_ids_are_taken_as_they_are():
    model = with_tokenizer(None, vocab_size=31)
    for row in ([4, 5], (4, 5), np.array([4, 5], np.uint8), torch.tensor([4, 5])):
        found = tokenize(model, row)  # pyright: ignore[reportArgumentType]
        assert found.token_ids.tolist() == [4, 5]
        assert found.token_ids.dtype == np.int32
    with pytest.raises(EmptyTextError):
        tokenize(model, [])
    with pytest.raises(OptionError, match="taken as they are; bos, chat and system"):
        tokenize(model, [4, 5], options=TextOptions(bos="yes"))
    with pytest.raises(OptionError, match="without a tokenizer"):
        tokenize(model, "text")


# ---------------------------------------------------------------------------------- naming


def test_chats_with_the_same_contents_are_not_confused():
    one = [{"role": "user", "content": "a\nb"}]
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    three = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    inputs = [as_input(messages) for messages in (one, two, three)]
    assert {found.text for found in inputs} == {"a\nb"}
    assert len({found.id for found in inputs}) == len({found.name for found in inputs}) == 3
    assert len({replace(found, name="same").id for found in inputs}) == 3
    again = json.loads(json.dumps(inputs[1].meta, sort_keys=True))
    assert replace(inputs[1], meta=again).id == inputs[1].id
    (text,) = texts_as_inputs(["a\nb"])
    assert text.id not in {found.id for found in inputs}
    # A column of that name that is no chat does not count.
    assert replace(text, meta={"messages": 3}).id == text.id


def test_options_of_the_text_reach_the_trace():
    hf = tiny_model("llama")
    model = gt.load_model(hf, tokenizer=word_level(["the", "cat", "[", "]"]))
    model.tokenizer.chat_template = "[ {{ messages[0]['content'] }} ]"
    assert gt.trace(model, "the cat").token_ids.tolist() == [1, 3, 4]
    assert gt.trace(model, "the cat", bos="no").token_ids.tolist() == [3, 4]
    chat = gt.trace(model, "the cat", chat=True, bos="yes")
    assert chat.token_ids.tolist() == [1, 5, 3, 4, 6]
    assert chat.special.tolist() == [True] + [False] * 4
    many = gt.trace_many(model, ["the", [{"role": "user", "content": "cat"}]], chat=True)
    assert [found.token_ids.tolist() for found in many] == [[5, 3, 6], [5, 4, 6]]
    assert len({found.id for found in (chat, gt.trace(model, "the cat"))}) == 2
