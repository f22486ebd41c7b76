"""The text side of training the demo model: paragraphs, the held-out split, tokenizer, windows.

Tensor and array names end in their shape: B windows in a batch, T tokens in a window, N tokens of
the whole corpus.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, PAD = "<s>", "<pad>"
BOS_ID, PAD_ID = 0, 1
MAX_POSITIONS = 256
HELD_OUT_ONE_IN = 50

_TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})
_SENTENCE_END = re.compile(r"(?<=[.!?][\s\"'])\s*(?=[\"'A-Z])")


class Paragraphs(NamedTuple):
    """The paragraphs of one file, in order, split into those to learn from and those held out."""

    name: str
    train: list[str]
    held_out: list[str]
    boost: int  # how many times its sentences begin a window in one pass


class Corpus(NamedTuple):
    """All training sentences as tokens, each in the form it has after `<s>` and after a space."""

    first_ids: list[list[int]]  # per sentence, without a leading space: how a window begins
    ids_N: np.ndarray  # every sentence with its leading space, joined
    offsets: np.ndarray  # where each sentence begins in ids_N, and the end
    starts: np.ndarray  # sentences that begin a window in one pass; boosted ones several times


class HeldOut(NamedTuple):
    """Text to score, as token windows; `bytes` is the UTF-8 length of that text."""

    windows: list[list[int]]
    bytes: int


def normalise(text: str) -> str:
    """Straight quotes, one kind of dash, no `_emphasis_` marks, single spaces."""
    text = text.translate(_TYPOGRAPHY).replace("--", "—")
    text = re.sub(r"_([^_]+)_", r"\1", text)
    return " ".join(text.split())


def is_held_out(paragraph: str) -> bool:
    """Whether a normalised paragraph is held out: the same text gets the same answer everywhere."""
    digest = hashlib.sha256(paragraph.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def read_paragraphs(folder: Path, boost: str, boost_factor: int) -> list[Paragraphs]:
    """The paragraphs of every .txt file in `folder`, in name order.

    Files whose name starts with `boost` count `boost_factor` times (an empty `boost`: none does).
    """
    files = []
    for path in sorted(folder.glob("*.txt")):
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        texts = [text for block in blocks if (text := normalise(block))]
        files.append(
            Paragraphs(
                name=path.stem,
                train=[text for text in texts if not is_held_out(text)],
                held_out=[text for text in texts if is_held_out(text)],
                boost=boost_factor if boost and path.stem.startswith(boost) else 1,
            )
        )
    if not any(file.train for file in files):
        raise ValueError(f"no text to train on in {folder}: expected .txt files with paragraphs")
    return files


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, roughly: an abbreviation before a capital ends one too."""
    return [text for piece in _SENTENCE_END.split(paragraph) if (text := piece.strip())]


def train_tokenizer(files: list[Paragraphs], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that prepends `<s>` and decodes to exactly the text it was given.

    It learns from the training paragraphs alone; `vocab` counts `<s>`, `<pad>` and the 256 bytes.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        [text for file in files for _ in range(file.boost) for text in file.train], trainer
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return wrap_tokenizer(bpe)


def wrap_tokenizer(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers uses and saves it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without `<s>`."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def build_corpus(files: list[Paragraphs], tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """Tokenise every training sentence in both forms and list the window starts of one pass."""
    sentences: list[str] = []
    starts: list[int] = []
    for file in files:
        begin = len(sentences)
        for paragraph in file.train:
            sentences.extend(split_sentences(paragraph))
        starts.extend(list(range(begin, len(sentences))) * file.boost)
    spaced = encode(tokenizer, [" " + sentence for sentence in sentences])
    offsets = np.cumsum([0, *map(len, spaced)])
    ids_N = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in spaced])
    return Corpus(encode(tokenizer, sentences), ids_N, offsets, np.asarray(starts))


def cut_window(corpus: Corpus, sentence: int, tokens: int) -> np.ndarray:
    """`<s>`, the sentence, and what follows it in the corpus, `tokens` long (wraps at the end)."""
    head = [BOS_ID, *corpus.first_ids[sentence]][:tokens]
    begin = corpus.offsets[sentence + 1]
    follow = np.arange(begin, begin + tokens - len(head)) % len(corpus.ids_N)
    return np.concatenate([np.asarray(head), corpus.ids_N[follow]])


class WindowSampler:
    """Draws window starts in a fresh random order each pass; its whole state is `drawn`."""

    def __init__(self, corpus: Corpus, seed: int, drawn: int = 0) -> None:
        self.corpus, self.seed, self.drawn = corpus, seed, drawn
        self._pass, self._order = -1, corpus.starts

    def next_batch(self, windows: int, tokens: int) -> torch.Tensor:
        """The next `windows` windows of `tokens` tokens, `<s>` included: int64 [B, T]."""
        rows = []
        for _ in range(windows):
            this_pass, index = divmod(self.drawn, len(self.corpus.starts))
            if this_pass != self._pass:
                generator = np.random.default_rng([self.seed, this_pass])
                self._pass, self._order = this_pass, generator.permutation(self.corpus.starts)
            rows.append(cut_window(self.corpus, int(self._order[index]), tokens))
            self.drawn += 1
        return torch.from_numpy(np.stack(rows))


def windows_to_score(texts: list[str], tokenizer: PreTrainedTokenizerFast, tokens: int) -> HeldOut:
    """Each text as windows of at most `tokens` tokens, every one beginning with `<s>`."""
    size = tokens - 1
    windows = [
        [BOS_ID, *ids[begin : begin + size]]
        for ids in encode(tokenizer, texts)
        for begin in range(0, len(ids), size)
    ]
    return HeldOut(sorted(windows, key=len), sum(len(text.encode()) for text in texts))
