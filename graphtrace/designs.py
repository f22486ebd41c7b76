"""Corpora made so that one thing varies and the rest is held: matched continuations.

Every *ending* is a place in a document. Its texts all end in the same words and are followed by the
same true continuation; they differ in how many of the words that really stand before it they begin
with. So density can be followed by the length of the context with the prediction held
(`analysis.controls`), in true text, never in text that was made up.
"""

import hashlib
import json
import re
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from graphtrace.errors import CorpusError, OptionError
from graphtrace.files import replacing

Unit = Literal["file", "paragraph"]
CONTEXTS = (6, 12, 24, 48, 96)
ENDING_WORDS = 6
CONTINUATION_WORDS = 3
MATCHED = "matched continuations"


class Document(NamedTuple):
    """A text in its words. source: the file's name; start: the number of its first word in the
    file; words: runs of characters that are not white space; before: the white space in front of
    each, as `text_of` writes it; breaks: bool [words], a paragraph begins with this word."""

    source: str
    start: int
    words: list[str]
    before: list[str]
    breaks: np.ndarray


class MatchedDesign(NamedTuple):
    """rows: the corpus, dicts of id, text, continuation, ending, context. design: what it was made
    from and how, JSON values."""

    rows: list[dict[str, Any]]
    design: dict[str, Any]


def matched_continuations(
    files: Sequence[str | Path],
    endings: int = 100,
    *,
    contexts: Sequence[int] = CONTEXTS,
    ending_words: int = ENDING_WORDS,
    continuation_words: int = CONTINUATION_WORDS,
    unit: Unit = "file",
    seed: int = 0,
) -> MatchedDesign:
    """Choose endings in plain text and cut, for each, one text per length of context.

    files: UTF-8 text, paragraphs apart by an empty line. endings: how many, drawn at random
    (`seed`) over all words of all files so that the texts of two share no word, and no two have the
    same last words. contexts: words of a text in all, its ending among them; one of `ending_words`
    is the ending alone. unit: how far the words before an ending may reach, the file or the
    paragraph. The ending and its continuation lie within one paragraph.

    White space is written as one space, between paragraphs as an empty line; words are as they
    are. Raises CorpusError for files that cannot be read, OptionError for numbers that mean nothing
    and where there is no room for so many endings.
    """
    contexts = sorted(contexts)
    _check_numbers(endings, contexts, ending_words, continuation_words, seed)
    if unit not in ("file", "paragraph"):
        raise OptionError(f"unit {unit!r} is neither file nor paragraph")
    if not files:
        raise OptionError("there is no file; name at least one of plain text")
    names = [Path(file).name for file in files]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(
                f"two files are called {name}; an ending's file must be known by name"
            )
    sources, documents = [], []
    for file in files:
        found, digest = _read(Path(file), unit)
        documents += found
        n_words = sum(len(document.words) for document in found)
        sources.append(
            {"file": Path(file).name, "sha256": digest, "n_documents": len(found), "words": n_words}
        )
    places = _choose(documents, endings, contexts[-1], ending_words, continuation_words, seed)
    rows, chosen = [], []
    digits = len(str(len(places)))
    for number, (document, at) in enumerate(places, 1):
        ending = f"e{number:0{digits}d}"
        made = [_row(document, at, ending, length, continuation_words) for length in contexts]
        rows += made
        chosen.append(
            {
                "ending": ending,
                "file": document.source,
                "word": document.start + at,
                "text": text_of(document, at - ending_words, at),
                "inputs": [row["id"] for row in made],
            }
        )
    design = {
        "design": MATCHED,
        "seed": seed,
        "parameters": {
            "contexts": contexts,
            "ending_words": ending_words,
            "continuation_words": continuation_words,
            "unit": unit,
        },
        "sources": sources,
        "n_endings": len(places),
        "n_inputs": len(rows),
        "inputs": [row["id"] for row in rows],
        "endings": chosen,
    }
    return MatchedDesign(rows, design)


def write_matched(found: MatchedDesign, out: str | Path) -> tuple[Path, Path]:
    """Write the corpus as JSON lines, and beside it its design as `<stem>.design.json`.

    `extract OUT --label ending --label context` traces it. Returns both paths. Raises OptionError
    unless `out` ends in .jsonl or where it cannot be written, StorageFullError.
    """
    out = Path(out)
    if out.suffix != ".jsonl":
        raise OptionError(f"{str(out)!r} must end in .jsonl: the corpus is written as JSON lines")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows]
    with replacing(out) as file:
        file.write("".join(lines).encode())
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    corpus = {"file": out.name, "sha256": digest}
    return out, write_design({**found.design, "corpus": corpus}, out.with_suffix(".design.json"))


def write_design(design: dict[str, Any], path: str | Path) -> Path:
    """Write a design as JSON, with the version that made it. Raises OptionError unless the path
    ends in .json or where it cannot be written, StorageFullError."""
    from graphtrace import __version__

    path = check_design_path(path)
    held = {"design": design["design"], "version": __version__, **design}
    with replacing(path) as file:
        file.write((json.dumps(held, ensure_ascii=False, indent=1) + "\n").encode())
    return path


def check_design_path(path: str | Path) -> Path:
    """The path as such; raises OptionError unless it ends in .json."""
    path = Path(path)
    if path.suffix != ".json":
        raise OptionError(f"design {str(path)!r} must end in .json")
    return path


def text_of(document: Document, start: int, stop: int) -> str:
    """Words start ... stop - 1 of a document as text, without white space around it."""
    inside = zip(document.before[start + 1 : stop], document.words[start + 1 : stop], strict=True)
    return document.words[start] + "".join(space + word for space, word in inside)


def _check_numbers(
    endings: int, contexts: list[int], ending_words: int, continuation_words: int, seed: int
) -> None:
    named = {"endings": endings, "ending words": ending_words, "words": continuation_words}
    for name, value in named.items():
        if value < 1:
            raise OptionError(f"{value} {name} are none; take at least 1")
    if seed < 0:
        raise OptionError(f"seed {seed} is negative; take 0 or more")
    if len(set(contexts)) != len(contexts) or len(contexts) < 2:
        raise OptionError(
            f"contexts {', '.join(map(str, contexts)) or 'none'}: give at least two different "
            "lengths, in words"
        )
    if contexts[0] < ending_words:
        raise OptionError(
            f"a context of {contexts[0]} words does not hold an ending of {ending_words}; the "
            "ending's words count as context"
        )


def _read(path: Path, unit: Unit) -> tuple[list[Document], str]:
    """The documents of a file, and the SHA-256 of its bytes."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    # A line of white space alone parts paragraphs; other line ends are those of the page.
    paragraphs = [x.split() for x in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n"))]
    paragraphs = [words for words in paragraphs if words]
    if not paragraphs:
        raise CorpusError(f"{path} is empty: it holds no words")
    parts = [paragraphs] if unit == "file" else [[words] for words in paragraphs]
    documents, start = [], 0
    for part in parts:
        documents.append(_document(path.name, start, part))
        start += len(documents[-1].words)
    return documents, hashlib.sha256(data).hexdigest()


def _document(source: str, start: int, paragraphs: list[list[str]]) -> Document:
    words = [word for paragraph in paragraphs for word in paragraph]
    breaks = np.zeros(len(words), bool)
    breaks[np.cumsum([0, *(len(x) for x in paragraphs[:-1])])] = True
    before = ["\n\n" if first else " " for first in breaks.tolist()]
    return Document(source, start, words, before, breaks)


def _choose(
    documents: list[Document], endings: int, longest: int, ending_words: int, after: int, seed: int
) -> list[tuple[Document, int]]:
    """(document, number of the word that follows) of every ending, in the order of the files."""
    candidates = [_possible(document, longest, ending_words, after) for document in documents]
    owner = np.repeat(np.arange(len(documents)), [len(x) for x in candidates])
    place = np.concatenate(candidates)
    taken: list[list[int]] = [[] for _ in documents]
    seen: set[tuple[str, ...]] = set()
    n_found, span = 0, longest + after
    for i in np.random.default_rng(seed).permutation(len(place)).tolist():
        at, held = int(place[i]), taken[owner[i]]
        words = tuple(documents[owner[i]].words[at - ending_words : at])
        where = bisect(held, at)
        near = held[max(where - 1, 0) : where + 1]
        if words in seen or any(abs(at - other) < span for other in near):
            continue
        held.insert(where, at)
        seen.add(words)
        n_found += 1
        if n_found == endings:
            break
    else:
        raise OptionError(
            f"there is room for {n_found:,} endings and not for {endings:,}: each takes "
            f"{span} words of its own; ask for fewer, take shorter contexts or add files"
        )
    return [(document, at) for document, held in zip(documents, taken, strict=True) for at in held]


def _possible(document: Document, longest: int, ending_words: int, after: int) -> np.ndarray:
    """int64: numbers of words that may follow an ending: enough words before and after, and no
    paragraph begins within the ending, from its second word on, or within the continuation."""
    at = np.arange(longest, len(document.words) - after + 1)
    begun = np.concatenate([[0], np.cumsum(document.breaks)])
    return at[begun[at + after] == begun[at - ending_words + 1]]


def _row(document: Document, at: int, ending: str, context: int, after: int) -> dict[str, Any]:
    return {
        "id": f"{ending}-{context}",
        "text": text_of(document, at - context, at),
        "continuation": document.before[at] + text_of(document, at, at + after),
        "ending": ending,
        "context": context,
    }
