"""Matched continuations: true excerpts that end alike."""

import hashlib
import json
import re
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphtrace.corpus import read_corpus
from graphtrace.designs import matched_continuations, write_design, write_matched
from graphtrace.errors import CorpusError, OptionError


def book(seed=0, n_words=900, paragraph=40, width=9):
    """Hard-wrapped text of numbered words, paragraphs of about `paragraph` words."""
    rng = np.random.default_rng(seed)
    words = [f"w{seed}.{i}{',' if rng.uniform() < 0.1 else ''}" for i in range(n_words)]
    paragraphs, start = [], 0
    while start < n_words:
        stop = start + int(rng.integers(paragraph // 2, 2 * paragraph))
        own = words[start:stop]
        lines = [" ".join(own[i : i + width]) for i in range(0, len(own), width)]
        paragraphs.append("\r\n".join(lines) if seed % 2 else "\n".join(lines))
        start = stop
    return "\n \n".join(paragraphs) + "\n"


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"book {i}.txt" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_text(book(i), newline="")
    return paths


def plain(text):
    """One space between words, paragraphs apart by an empty line: the slow way, by regex."""
    text = re.sub(r"[ \t]*\r?\n[ \t]*", "\n", text)
    text = re.sub(r"\n\n+", "\0", text.strip())
    return re.sub(r"\s+", " ", text).replace("\0", "\n\n")


def check(found, texts, contexts, w, k):
    """Every claim of the docstring, one text at a time."""
    whole = {name: plain(text) for name, text in texts.items()}
    of_ending, used = defaultdict(list), []
    for row in found.rows:
        of_ending[row["ending"]].append(row)
    for entry in found.design["endings"]:
        rows = of_ending[entry["ending"]]
        assert [row["id"] for row in rows] == entry["inputs"]
        assert [row["context"] for row in rows] == sorted(contexts)
        assert len({row["continuation"] for row in rows}) == 1
        longest = rows[-1]["text"]
        follows = rows[0]["continuation"]
        assert follows[0] == " "
        assert len(follows.split()) == k
        assert "\n" not in follows
        assert whole[entry["file"]].count(longest + follows) >= 1
        words = whole[entry["file"]].split()
        assert words[entry["word"] - w : entry["word"]] == entry["text"].split()
        for row in rows:
            assert longest.endswith(row["text"])
            assert row["text"].endswith(entry["text"])
            assert len(row["text"].split()) == row["context"]
        assert len(entry["text"].split()) == w
        assert "\n" not in entry["text"]
        used.append((entry["file"], entry["word"] - max(contexts), entry["word"] + k))
    for file in whole:
        own = sorted(x[1:] for x in used if x[0] == file)
        assert all(a[1] <= b[0] for a, b in pairwise(own)), "texts share words"
    assert len({entry["text"] for entry in found.design["endings"]}) == len(of_ending)


def test_every_text_is_a_true_excerpt(files):
    contexts = (5, 10, 20, 40)
    found = matched_continuations(
        files, 12, contexts=contexts, ending_words=5, continuation_words=2, seed=3
    )
    check(found, {p.name: p.read_text() for p in files}, contexts, 5, 2)
    assert len(found.rows) == found.design["n_inputs"] == 48
    assert found.design["n_endings"] == 12
    assert found.design["inputs"] == [row["id"] for row in found.rows]
    assert len(set(found.design["inputs"])) == 48
    assert found.design["parameters"]["contexts"] == [5, 10, 20, 40]
    assert any("\n\n" in row["text"] for row in found.rows), "contexts reach over paragraphs"
    sources = found.design["sources"]
    assert [x["sha256"] for x in sources] == [
        hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    ]
    assert [x["words"] for x in sources] == [900] * 3
    assert len({x["file"] for x in found.design["endings"]}) > 1


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["file", "paragraph"]),
)
def test_any_numbers(tmp_path_factory, seed, w, k, unit):
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_text(book(seed, 300, paragraph=30), newline="")
    contexts = (w, w + 3, 2 * w + 5)
    found = matched_continuations(
        [path],
        1 if unit == "paragraph" else 3,
        contexts=contexts,
        ending_words=w,
        continuation_words=k,
        unit=unit,
        seed=seed,
    )
    check(found, {"a.txt": path.read_text()}, contexts, w, k)
    if unit == "paragraph":
        assert not any("\n" in row["text"] for row in found.rows)


def test_the_seed_decides(files):
    one, two, other = (matched_continuations(files, 5, seed=s) for s in (1, 1, 2))
    assert one == two
    assert one.rows != other.rows


def test_the_place_is_drawn_evenly(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(f"w{i}" for i in range(400)))
    places = [
        matched_continuations(
            [path], 1, contexts=(2, 10), ending_words=2, continuation_words=1, seed=s
        ).design["endings"][0]["word"]
        for s in range(300)
    ]
    assert min(places) >= 10
    assert max(places) <= 399
    assert np.mean(places) == pytest.approx(204.5, abs=4 * 113 / np.sqrt(300))


def test_repeated_endings_are_taken_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(["again and again"] * 200))
    with pytest.raises(OptionError, match="room for 3 endings and not for 4"):
        matched_continuations([path], 4, contexts=(3, 6), ending_words=3)
    assert len(matched_continuations([path], 3, contexts=(3, 6), ending_words=3).rows) == 6


def test_the_files_read_back_as_a_corpus(files, tmp_path):
    found = matched_continuations(files, 4)
    corpus, design = write_matched(found, tmp_path / "made" / "matched.jsonl")
    inputs = read_corpus(corpus, labels=("ending", "context"))
    assert [x.name for x in inputs] == found.design["inputs"]
    assert [x.text for x in inputs] == [row["text"] for row in found.rows]
    assert [x.continuation for x in inputs] == [row["continuation"] for row in found.rows]
    assert {x.labels["context"] for x in inputs} == {"6", "12", "24", "48", "96"}
    assert {x.labels["ending"] for x in inputs} == {"e1", "e2", "e3", "e4"}
    held = json.loads(design.read_text())
    assert design.name == "matched.design.json"
    digest = hashlib.sha256(corpus.read_bytes()).hexdigest()
    assert held["corpus"] == {"file": "matched.jsonl", "sha256": digest}
    assert {key: held[key] for key in found.design} == found.design
    assert str(tmp_path) not in design.read_text()
    for path in ("a.json", "a.txt", "a"):
        with pytest.raises(OptionError, match=r"must end in \.jsonl"):
            write_matched(found, tmp_path / path)
    with pytest.raises(OptionError, match=r"must end in \.json"):
        write_design(found.design, tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"endings": 0}, "0 endings are none"),
        ({"ending_words": 0}, "0 ending words are none"),
        ({"continuation_words": 0}, "0 words are none"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"contexts": (6,)}, "at least two different"),
        ({"contexts": (6, 6)}, "at least two different"),
        ({"contexts": (5, 12)}, "5 words does not hold an ending of 6"),
        ({"unit": "page"}, "neither file nor paragraph"),
        ({"endings": 500}, r"room for \d+ endings and not for 500: each takes 99 words"),
    ],
)
def test_numbers_that_mean_nothing(files, keywords, message):
    with pytest.raises(OptionError, match=message):
        matched_continuations(files, **{"endings": 3, **keywords})


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n ")
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "short.txt").write_text("only a few words")
    for name, message in (
        ("absent.txt", "absent.txt cannot be read: No such file"),
        ("empty.txt", "holds no words"),
        ("latin.txt", "not UTF-8"),
    ):
        with pytest.raises(CorpusError, match=message):
            matched_continuations([tmp_path / name], 1)
    with pytest.raises(OptionError, match="room for 0 endings"):
        matched_continuations([tmp_path / "short.txt"], 1)
    with pytest.raises(OptionError, match="no file"):
        matched_continuations([], 1)
    with pytest.raises(OptionError, match=r"two files are called short\.txt"):
        matched_continuations([tmp_path / "short.txt"] * 2, 1)
