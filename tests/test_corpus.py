"""Corpora: every format gives the same inputs, every mistake is named by file and line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphtrace.corpus import (
    Shard,
    as_input,
    parse_shard,
    read_corpus,
    take_shard,
    texts_as_inputs,
)
from graphtrace.errors import CorpusError, EmptyTextError, InputError, OptionError
from graphtrace.traces import Input

ROWS = [
    {"id": "one", "text": "The cat ", "continuation": " sat", "group": "clean", "pair": "1"},
    {"id": "two", "text": 'a "b", c\td\ne', "continuation": "", "group": "", "pair": "1"},
    {"id": "3", "text": "🙂 é", "continuation": "x", "group": "clean", "pair": "2"},
]


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def delimited(rows, delimiter: str) -> str:
    def cell(value) -> str:
        value = value if isinstance(value, str) else json.dumps(value)
        return '"' + value.replace('"', '""') + '"'

    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "".join(delimiter.join(line) + "\r\n" for line in lines)


def as_file(write, tmp_path, extension: str, rows=ROWS):
    rows = [{**row, "note": "n"} for row in rows]
    bare = extension.removesuffix(".gz")
    if bare == ".parquet":
        path = tmp_path / "corpus.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = {
        ".jsonl": "\n".join(json.dumps(row) for row in rows),
        ".ndjson": "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n",
        ".json": json.dumps(rows, indent=2),
        ".csv": "\ufeff" + delimited(rows, ","),
        ".tsv": delimited(rows, "\t"),
    }[bare].encode()
    return write(f"corpus{extension}", gzip.compress(text) if extension != bare else text)


EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_format_gives_the_same_inputs(write, tmp_path, extension):
    found = read_corpus(as_file(write, tmp_path, extension))
    assert found == [
        Input(
            name="one",
            text="The cat ",
            corpus="corpus",
            continuation=" sat",
            meta={"note": "n"},
            labels={"group": "clean", "pair": "1"},
        ),
        Input(
            name="two",
            text='a "b", c\td\ne',
            corpus="corpus",
            meta={"note": "n"},
            labels={"pair": "1"},
        ),
        Input(
            name="3",
            text="🙂 é",
            corpus="corpus",
            continuation="x",
            meta={"note": "n"},
            labels={"group": "clean", "pair": "2"},
        ),
    ]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_limit_labels_and_columns(write, tmp_path, extension):
    path = as_file(write, tmp_path, extension)
    (first, second) = read_corpus(
        path, limit=2, text_column="id", labels=["note"], id_column="text"
    )
    assert (first.name, first.text, first.labels["note"]) == ("The cat ", "one", "n")
    assert first.meta == second.meta == {}


def test_text_file(write):
    found = read_corpus(write("a.b.txt", " one\r\n\n  \ntwo \n"))
    assert [(x.name, x.text, x.corpus) for x in found] == [
        ("a.b-1", " one", "a.b"),
        ("a.b-4", "two ", "a.b"),
    ]
    # Only a line feed ends a line: other separators may stand in a text.
    (one,) = read_corpus(write("b.txt", "a\u2028b\x0bc\x85d"))
    assert one.text == "a\u2028b\x0bc\x85d"


@pytest.mark.parametrize("column", ["text", "sentence", "prompt"])
def test_default_text_columns(write, column):
    (found,) = read_corpus(write("a.jsonl", json.dumps({"x": 1, column: "hello"})))
    assert (found.text, found.meta) == ("hello", {"x": 1})


def test_text_wins_over_prompt(write):
    (found,) = read_corpus(write("a.jsonl", '{"prompt": "p", "text": "t"}'))
    assert (found.text, found.meta) == ("t", {"prompt": "p"})


def test_values_of_labels_and_ids_are_plain(write):
    text = '{"id": 7, "text": "a", "label": true, "group": 2.0}\n{"text": "b", "label": null}\n'
    first, second = read_corpus(write("a.jsonl", text))
    assert first.labels == {"label": "true", "group": "2"}
    assert (first.name, second.name, second.labels) == ("7", "a-2", {})


def test_parquet_values_become_json(tmp_path):
    from datetime import date

    table = pa.table({"text": ["a"], "when": [date(2024, 2, 1)], "n": [[1, 2]], "raw": [b"x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = read_corpus(tmp_path / "a.parquet")
    assert json.loads(json.dumps(found.meta)) == found.meta
    assert found.meta["when"] == "2024-02-01"


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": oh}\n', {}, r"a\.jsonl, line 2 is not JSON: .*'oh"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', {}, r"line 2 is not JSON: .* at the end"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', {}, r"line 2 is list \[\"b\"\], not an object"),
        ("a.jsonl", "[" * 100_000, {}, r"line 1 is (nested too deeply|not JSON)"),
        ("a.json", '{"text": "a"}', {}, r"a\.json holds dict .*not a list"),
        ("a.json", '[{"text": "a"},\n oops]', {}, r"not JSON: .* line 2, column 2, where 'oops"),
        ("a.json", '[{"text": "a"}, 3]', {}, r"entry 2 is int 3"),
        (
            "a.txt",
            b"fine\nna\xefve\n",
            {},
            r"not UTF-8 at byte 7 \(0xef\), line 2; convert .*iconv",
        ),
        ("a.txt", b"\xef\xbb\xbfok\n\xff", {}, r"not UTF-8 at byte 6 \(0xff\), line 2"),
        ("a.txt", "é".encode("utf-16"), {}, r"UTF-16.*iconv -f UTF-16"),
        ("a.txt.gz", b"not gzip", {}, r"not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"hello world", mtime=0)[:-6], {}, r"not a whole gzip file"),
        ("a.txt", "", {}, r"is empty"),
        ("a.txt", "\n \n", {}, r"is empty"),
        ("a.json", " ", {}, r"is empty"),
        ("a.json", "[]", {}, r"is empty"),
        ("a.csv", "text,id\n", {}, r"is empty"),
        (
            "a.csv",
            "body,id\nx,1\n",
            {},
            r"text, sentence or prompt; its columns: body, id; .*--text-c",
        ),
        ("a.csv", "text,id\nx,1\ny,2,3\n", {}, r"line 3 has 3 cells and the header 2"),
        ("a.csv", 'text,id\n"x\n\ny",1\nz\n', {}, r"line 5 has 1 cells"),
        ("a.csv", 'text,id\n"x" y,1\n', {}, r"a\.csv, line 2"),
        ("a.csv", "text,text\nx,1\n", {}, r"two columns are named 'text'"),
        ("a.csv", "text,id\nx,1\ny,2\nz,1\n", {}, r"line 4 has the id '1' of line 2"),
        ("a.csv", "text,id\nx,1\n ,2\n", {}, r"line 3: 'text' is empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', {}, r"line 2: 'text' is int 5, not a text"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', {}, r"line 2: there is no 'text'"),
        ("a.jsonl", '{"text": "a", "continuation": 3}', {}, r"'continuation' is int 3"),
        ("a.jsonl", '{"text": "a", "group": ["x"]}', {}, r"label 'group' is list"),
        ("a.jsonl", '{"text": "a\\ud83d"}', {}, r"line 1: character 1 is half a surrogate pair"),
        ("a.jsonl", '{"text": "a", "m": {"\\udc00": 1}}', {}, r"line 1: .*surrogate"),
        (
            "a.jsonl",
            '{"text": "a"}',
            {"text_column": "txt"},
            r"no column 'txt' .*did you mean text",
        ),
        (
            "a.jsonl",
            '{"text": "a"}',
            {"labels": ["kind"]},
            r"'kind' \(--label\); its columns: text",
        ),
        ("a.jsonl", '{"text": "a"}', {"id_column": "key"}, r"'key' \(--id-column\)"),
        (
            "a.jsonl",
            '{"text": "a", "key": "1"}\n{"text": "b"}',
            {"id_column": "key"},
            r"line 2: 'key' is empty",
        ),
        ("a.txt", "x", {"labels": ["kind"]}, r"--label kind: a \.txt file has no columns"),
        ("a.docx", "x", {}, r"ends in one of \.txt.*this one in \.docx"),
        ("corpus", "x", {}, r"this one in nothing"),
        ("a.parquet", "PAR1", {}, r"a\.parquet is not a readable Parquet file"),
    ],
)
def test_mistakes_are_named(write, name, content, options, message):
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus(write(name, content), **options)
    assert name in str(caught.value)


CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "me é"}]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_chats_of_every_format(write, tmp_path, extension):
    row = {"id": "one", "messages": CHAT, "group": "a", "continuation": "yes", "k": "v"}
    path = as_file(write, tmp_path, extension, [row])
    (found,) = read_corpus(path, chat=True)
    assert (found.name, found.text, found.continuation) == ("one", "Who?\nme é", "yes")
    assert found.meta == {"messages": CHAT, "note": "n", "k": "v"}
    assert found.labels == {"group": "a"}
    with pytest.raises(CorpusError, match=r"corpus\..* holds chats .*none named text.*add --chat"):
        read_corpus(path)
    (given,) = read_corpus(path, chat=True, text_column="messages")
    assert given == found
    assert read_corpus(path, text_column="k")[0].text == "v"


def test_messages_beside_texts(write):
    rows = [
        {"text": "plain", "messages": CHAT},
        {"text": "only text"},
        {"text": "null", "messages": None},
    ]
    path = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    assert [found.text for found in read_corpus(path)] == ["plain", "only text", "null"]
    one, two, three = read_corpus(path, chat=True)
    assert (one.text, one.meta) == ("Who?\nme é", {"messages": CHAT, "text": "plain"})
    assert (two.text, two.meta) == ("only text", {})
    assert (three.text, three.meta) == ("null", {"messages": None})
    # A column that is named holds the texts or the chats; the others are not looked at.
    named = read_corpus(path, chat=True, text_column="text")
    assert [found.text for found in named] == ["plain", "only text", "null"]
    path = write("b.jsonl", json.dumps({"dialogue": CHAT, "messages": 5}))
    (found,) = read_corpus(path, chat=True, text_column="dialogue")
    assert found.meta == {"messages": CHAT}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", r"'messages' is str \"Hello\", not a list of \{role, content\}"),
        ('{"role": "user"}', r"'messages' is dict .*not a list"),
        (5, r"'messages' is int 5, not a list"),
        ([], r"'messages' is empty; a chat has at least one message"),
        (["Hello"], r"message 1 is str \"Hello\", not an object with role"),
        (
            [CHAT[0], {"role": "user"}],
            r"the 'content' of message 2 is missing; .*\"role\": \"user\"",
        ),
        ([{"from": "human", "value": "x"}], r"the 'role' of message 1 is missing"),
        ([{"role": "user", "content": None}], r"'content' of message 1 is NoneType null"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"'content' of message 1 is list"),
        ([{"role": "user", "content": " "}], r"every message is empty"),
        ([{"role": "user", "content": "\ud83d"}], r"half a surrogate"),
    ],
)
def test_chats_that_are_wrong_are_named(write, messages, message):
    lines = [{"messages": CHAT}, {"messages": messages}]
    path = write("a.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(CorpusError, match=rf"a\.jsonl, line 2: .*{message}"):
        read_corpus(path, chat=True)


def test_a_chat_corpus_without_chats(write):
    path = write("a.jsonl", '{"conversation": "x"}')
    with pytest.raises(CorpusError, match=r"text, sentence or prompt or messages; its columns"):
        read_corpus(path, chat=True)
    path = write("b.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n{"n": 1}')
    with pytest.raises(CorpusError, match="line 2: there is no 'messages'"):
        read_corpus(path, chat=True)
    (found,) = read_corpus(write("c.txt", "just a text"), chat=True)
    assert (found.text, found.meta) == ("just a text", {})


def test_as_input():
    found = as_input(CHAT)
    assert (found.name[:5], len(found.name), found.text) == ("chat-", 11, "Who?\nme é")
    assert as_input("text") == texts_as_inputs(["text"])[0]
    for bad in (5, None, {"role": "user"}):
        with pytest.raises(InputError, match="a string or the messages of a chat; got"):
            as_input(bad)
    with pytest.raises(CorpusError, match="surrogate"):
        as_input([{"role": "user", "content": "a\udcff"}])


def test_missing_file_and_folder(write, tmp_path):
    path = write("sentences.jsonl", '{"text": "a"}')
    with pytest.raises(CorpusError, match=r"no corpus file .*did you mean .*sentences\.jsonl"):
        read_corpus(tmp_path / "sentence.jsonl")
    with pytest.raises(CorpusError, match="no corpus file"):
        read_corpus(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(CorpusError, match="is a folder"):
        read_corpus(path.parent)
    with pytest.raises(OptionError, match="--limit 0"):
        read_corpus(path, limit=0)


def test_texts_as_inputs():
    one, two = texts_as_inputs(["The cat", "A dog", "The cat"])
    assert one.name == texts_as_inputs(["The cat"])[0].name
    assert one.name != two.name
    assert one.name.startswith("text-")
    assert len(one.name) == len("text-") + 6
    assert (one.text, one.corpus) == ("The cat", "")
    with pytest.raises(EmptyTextError):
        texts_as_inputs([""])
    with pytest.raises(CorpusError, match="Unicode"):
        texts_as_inputs(["a\udcff"])


@given(st.integers(0, 40), st.integers(1, 12))
def test_shards_are_disjoint_and_complete(n, count):
    inputs = [Input(name=str(i), text="x") for i in range(n)]
    shards = [take_shard(inputs, Shard(i, count)) for i in range(1, count + 1)]
    names = [x.name for shard in shards for x in shard]
    assert sorted(names, key=int) == [x.name for x in inputs]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for shard in shards:
        assert [x.name for x in shard] == sorted((x.name for x in shard), key=int)


def test_parse_shard():
    assert parse_shard("3/16") == (3, 16)
    assert take_shard([Input("a", "a")], None) == [Input("a", "a")]
    for bad in ("", "3", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/2/3", "²/3", "1.0/2"):
        with pytest.raises(OptionError, match="--shard"):
            parse_shard(bad)
