"""The catalogue's files, its checks, and Cypher that would write."""

import re

import pytest
from builders import model_info, synthetic_trace
from hypothesis import given
from hypothesis import strategies as st

from graphtrace import catalogue as module
from graphtrace.archive_write import write_traces
from graphtrace.catalogue import TYPES, catalogue, find_query, parse_query, returned_columns
from graphtrace.cypher_files import cypher_folder, parameters, statements, tokens
from graphtrace.errors import (
    OptionError,
    QueryError,
    QueryNotFoundError,
    QueryParameterError,
    ReadOnlyError,
    SizeError,
    TraceNotFoundError,
)
from graphtrace.ingestion import ingest
from graphtrace.read_only import _REFUSED, check_read_only
from graphtrace.stores.base import open_store

GOOD = """// name: demo
// summary: a demonstration
// params: model STRING, size DOUBLE = 0.001, n INTEGER = 3, deep BOOLEAN = true
// returns: trace STRING, n INTEGER
// stores: embedded
// free comment: $not_a_parameter
MATCH (t:Trace {model: $model})
WHERE t.n_edges > $size AND t.n_kept > $n AND $deep
RETURN t.id AS trace, count(*) AS n ORDER BY trace
"""


def write(folder, text, name="demo"):
    path = folder / f"{name}.cypher"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path):
    query = parse_query(write(tmp_path, GOOD))
    assert [str(p) for p in query.params] == [
        "model STRING",
        "size DOUBLE = 0.001",
        "n INTEGER = 3",
        "deep BOOLEAN = true",
    ]
    assert query.params[0].required
    assert not query.params[1].required
    assert query.returns == (("trace", "STRING"), ("n", "INTEGER"))


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("name: demo", "name: other", 1, "not the file's"),
        ("// summary: a demonstration\n", "", 5, "is not one of"),
        ("// summary:", "// sumary:", 2, "is not one of"),
        ("// summary: a", "// name: a", 2, "once each"),
        ("n INTEGER = 3", "n INTEGER = x", 3, "default"),
        ("n INTEGER = 3", "n NUMBER", 3, "is not `name TYPE`"),
        ("n INTEGER = 3,", "n INTEGER = 3, m STRING,", 3, r"\$m is declared and not used"),
        ("n INTEGER = 3, ", "", 8, r"\$n is used and not declared"),
        ("trace STRING, n INTEGER", "trace STRING", 4, "returns trace, n"),
        ("trace STRING, n", "trace, n", 4, "column 'trace'"),
        ("stores: embedded", "stores: oracle", 5, "embedded, neo4j"),
        ("WHERE t", "SET t.x = 1 WHERE t", 1, "SET t . is refused"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, old, new, line, what):
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(QueryError, match=f"{re.escape(str(path))}:{line}: .*{what}"):
        parse_query(path)


def test_a_missing_header_line_is_named(tmp_path):
    lines = GOOD.splitlines(keepends=True)
    path = write(tmp_path, "".join([*lines[:4], *lines[6:]]))
    with pytest.raises(QueryError, match=r"demo\.cypher:1: the header has no line `// stores:`"):
        parse_query(path)


def test_a_store_overrides_a_query(tmp_path):
    write(tmp_path, GOOD)
    (tmp_path / "neo4j").mkdir()
    write(tmp_path / "neo4j", GOOD.replace("stores: embedded", "stores: neo4j"))
    assert catalogue("embedded", tmp_path)["demo"].stores == ("embedded",)
    assert catalogue("neo4j", tmp_path)["demo"].stores == ("neo4j",)


def test_returned_columns():
    text = "MATCH (n) WITH n.x AS y RETURN DISTINCT [n.a, 1] AS a, f(n, 2) AS `b c`, y ORDER BY a"
    assert returned_columns(text) == ["a", "b c", "y"]
    assert returned_columns("MATCH (n) SET n.x = 1") == []


def test_every_query_is_documented():
    text = (cypher_folder("queries") / "README.md").read_text()
    names = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert names == sorted(catalogue())
    for query in catalogue().values():
        assert f"| `{query.name}` | {query.summary} |" in text
    assert all(name in text for name in TYPES)


def test_unknown_names_suggest():
    with pytest.raises(QueryNotFoundError, match="did you mean minimal-core"):
        find_query("minimalcore")
    with pytest.raises(QueryNotFoundError, match="graphtrace queries"):
        find_query("xyzzy")


# ----------------------------------------------------------------------------- read-only Cypher

WRITES = [
    "CREATE (n:Trace {id: 'x'})",
    "create(n:Trace)",
    "MATCH (n) /* CREATE */ SET n.x = 1",
    "MATCH (n) // comment\nSET n:Other",
    "MATCH (n)\nDETACH\nDELETE n",
    "MATCH (n) DELETE n",
    "MATCH (n) REMOVE n.x",
    "MERGE (n:Trace {id: 'x'})",
    "MATCH (n) WITH n AS set SET set.x = 1",
    "MATCH (n {`a`: 'CREATE'}) CREATE (m)",
    "UNWIND [1] AS x CREATE (:Label {id: x})",
    "MATCH (a) CALL { CREATE (b) RETURN b } RETURN b",
    "MATCH (a) CALL (a) { SET a.x = 1 } RETURN a",
    "MATCH (n) FOREACH (x IN [1] | SET n.x = x)",
    "COPY State FROM 'x.csv'",
    "COPY (MATCH (n) RETURN n) TO 'x.csv'",
    "LOAD FROM '/etc/passwd' RETURN *",
    "LOAD CSV FROM 'file:///x' AS row RETURN row",
    "LOAD EXTENSION json",
    "INSTALL json",
    "DROP TABLE State",
    "ALTER TABLE State ADD x INT64",
    "ATTACH 'x.db' AS y (dbtype duckdb)",
    "DETACH y",
    "EXPORT DATABASE 'x'",
    "IMPORT DATABASE 'x'",
    "CHECKPOINT",
    "BEGIN TRANSACTION",
    "COMMIT",
    "CALL threads=1",
    "CALL apoc.create.node(['A'], {}) YIELD node RETURN node",
    "CALL dbms.shutdown()",
    "CALL CREATE_FTS_INDEX('State', 'x', ['token'])",
    "USE other MATCH (n) RETURN n",
    "COMMENT ON TABLE State IS 'x'",
    "MATCH (n) RETURN n; MATCH (m) RETURN m",
    "RETURN 'it\\'s' ; CREATE (n)",
    "EXPLAIN CREATE (n:Trace)",
    "PROFILE MATCH (n) SET n.x = 1",
    "CREATE MACRO f(x) AS x",
    "GRANT ROLE reader TO alice",
    "MATCH (n) RETURN n.x AS y UNION CREATE (m) RETURN m.x AS y",
    "MATCH (start:State) SET start.x = 1",
    "MATCH (set) DELETE set",
    "UNWIND [1] AS with LOAD WITH HEADERS (x STRING) FROM '/etc/passwd' RETURN x",
    "MATCH (n) RETURN n ORDER BY n.x CALL dbms.shutdown()",
    "START n = node(0) RETURN n",
    "UNWIND [1] AS return EXPORT DATABASE 'x'",
    "MATCH (n) WITH n, 1 AS delete DETACH DELETE n",
]

READS = [
    "RETURN 1",
    "RETURN 1;",
    "MATCH (n) RETURN n.set, n.delete AS create",
    "MATCH (n) RETURN n.x AS set ORDER BY n.create",
    "MATCH (n:Set)-[:CREATE|DELETE]->(m:Merge) RETURN n",
    "MATCH (n {set: 1, delete: 2}) RETURN n",
    "RETURN {create: 1, merge: 2} AS x",
    "RETURN 'CREATE (n)', \"it's SET\" AS x // DELETE\n",
    "RETURN 'a\\'; CREATE (n)' AS x",
    "MATCH (`SET`) RETURN `SET`.x",
    "MATCH (n) /* SET n.x = 1 */ RETURN n",
    "MATCH (n) WHERE n.x = $set RETURN n",
    "CALL show_tables() RETURN *",
    "CALL table_info('State') RETURN name",
    "CALL db.labels() YIELD label RETURN label",
    "MATCH (n) WHERE EXISTS { MATCH (n)-[:SET]->() } RETURN n",
    "MATCH (a) CALL (a) { MATCH (a)-->(b) RETURN b } RETURN b",
    "EXPLAIN MATCH (n) RETURN n",
    "MATCH p = (start:State)-[use:MLP]->(stop) WHERE start.layer = 0 RETURN start, use.rank, stop",
    "MATCH (start)-[:MLP*1..3]->(stop {site: 'block'}) RETURN start.id ORDER BY start.id",
    "MATCH (set:State) WITH set ORDER BY set.id LIMIT 3 RETURN collect(set) AS copies, count(set)",
    "MATCH (copy:State) WITH DISTINCT copy AS c RETURN c",
    "MATCH (update:Trace) RETURN update",
    "UNWIND [1, 2] AS load RETURN load + 1 AS x, [load, -load], CASE WHEN load > 1 THEN load END",
]


@pytest.mark.parametrize("text", WRITES)
def test_writing_is_refused(text):
    with pytest.raises(ReadOnlyError) as error:
        check_read_only(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", READS)
def test_reading_is_not(text):
    check_read_only(text)


@given(st.sampled_from(sorted(_REFUSED)), st.booleans(), st.data())
def test_a_variable_may_have_a_clauses_name(word, lower, data):
    name = word.lower() if lower else word
    texts = [text for text in READS if "start" in text]
    check_read_only(data.draw(st.sampled_from(texts)).replace("start", name))


BEFORE = (
    "UNWIND [1] AS x",
    "MATCH (x)",
    "MATCH (a)-[x]->(b) WITH x",
    "MATCH (n) WITH n WHERE x",
    "MATCH (n) WITH n WHERE n.x",
    "MATCH (n) WITH n WHERE n:x",
    "MATCH (n) WITH n ORDER BY x",
    "MATCH (n) WITH n LIMIT x",
    "MATCH (n) RETURN x",
    "MATCH (n) RETURN n AS x",
    "CALL db.labels() YIELD x",
    "CALL (x) { RETURN 1 AS y }",
)


@pytest.mark.parametrize("before", BEFORE)
def test_a_variable_hides_no_clause(before):
    """Whatever a variable before it is called, a clause that writes is found. Statements of one
    word follow nothing, so that no engine takes them where a value is due."""
    words = re.findall(r"\w+", " ".join((*READS, *WRITES)))
    names = {name for word in (*words, *_REFUSED) for name in (word.lower(), word.upper())}
    for text in WRITES:
        for name in sorted(names) if " " in text and ";" not in text else ():
            with pytest.raises(ReadOnlyError):
                check_read_only(f"{before.replace('x', name)} {text}")


@given(st.text())
def test_text_in_a_string_is_never_a_clause(text):
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    check_read_only(f"RETURN '{quoted} CREATE (n)' AS x")
    with pytest.raises(ReadOnlyError):
        check_read_only(f"MATCH (n) WHERE n.x = '{quoted}' SET n.x = 1")


@given(st.text())
def test_tokens_never_fail_and_lose_nothing(text):
    at = 0
    for token in tokens(text):
        assert token.start >= at
        assert text[token.start : token.start + len(token.text)] == token.text
        at = token.start + len(token.text)


@pytest.mark.parametrize("text", ["RETURN 'x", 'RETURN "x', "RETURN `x", "RETURN 1 /* x"])
def test_unclosed(text):
    with pytest.raises(QueryError, match="never ends"):
        check_read_only(text)
    for empty in ("", " // x", ";"):
        with pytest.raises(QueryError, match="empty"):
            check_read_only(empty)


def test_statements_and_parameters():
    assert statements("A 'x;y'; // b;\n B; ") == ["A 'x;y'", "// b;\n B"]
    assert parameters("$a '$b' `$c` // $d\n $e_1") == {"a", "e_1"}


# ----------------------------------------------------------------------- parameters and choices


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    traces = [synthetic_trace(seed=i, n=4 + i) for i in range(3)]
    traces += [synthetic_trace(seed=8, n=5, model=model_info(name="other"), keep=12)]
    write_traces(folder / "archive", traces, keep="all")
    ingest(folder / "archive", folder / "store")
    with open_store(folder / "store") as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "params", "error", "what"),
    [
        ("trace-edges", {}, QueryParameterError, "needs parameter trace"),
        ("trace-edges", {"trace": "line-1", "siz": 1}, QueryParameterError, "did you mean size"),
        ("trace-edges", {"trace": "line-9"}, TraceNotFoundError, "line-9"),
        ("trace-edges", {"trace": "line-1", "size": 2}, SizeError, "none of"),
        ("trace-edges", {"trace": "line-8", "size": "k:13"}, SizeError, "12 are kept"),
        ("trace-edges", {"trace": "line-1", "size": "k:9999"}, SizeError, "9999"),
        ("minimal-core", {}, QueryParameterError, "several: .*other.*give model"),
        ("minimal-core", {"model": "tow"}, OptionError, "models here: other, toy"),
        ("minimal-core", {"model": "toy", "share": "x"}, QueryParameterError, "'x' is none"),
        ("minimal-core", {"model": "toy", "share": True}, QueryParameterError, "True is none"),
        ("minimal-core", {"model": "toy", "settings": "s1"}, OptionError, "settings here"),
        ("minimal-core", {"model": "toy", "size": "tv:0.5"}, SizeError, "over several"),
        ("minimal-core", {"model": "other", "size": 1.0}, SizeError, "12 are kept"),
        ("top-edges-of-head", {"layer": 1.5, "head": 0}, QueryParameterError, "INTEGER"),
        ("compare-traces", {"trace": "line-1", "other": 3}, QueryParameterError, "STRING"),
    ],
)
def test_what_a_caller_passes_is_checked_first(store, monkeypatch, name, params, error, what):
    store.traces()  # kept while the store is open: what is asked from here on is the query
    asked = []
    monkeypatch.setattr(store, "cypher", lambda *a: asked.append(a))
    with pytest.raises(error, match=what):
        store.query(name, **params)
    assert asked == []


def test_text_values_are_read_as_the_declared_type(store):
    typed = store.query("minimal-core", model="toy", size=0.5, share=0.5)
    text = store.query("minimal-core", model="toy", size="0.5", share="0.5")
    assert len(typed) > 0
    assert typed.equals(text)
    shared = store.query("compare-traces", trace="line-1", other="line-2", size=1, shared="true")
    assert len(shared) == 10


def test_settings_are_never_pooled(tmp_path):
    import dataclasses

    from graphtrace.traces import Settings

    one = synthetic_trace(seed=1)
    two = dataclasses.replace(one, settings=Settings(scorer="random", seed=1))
    write_traces(tmp_path / "archive", [one, two], keep="all")
    ingest(tmp_path / "archive", tmp_path / "store")
    with open_store(tmp_path / "store") as opened:
        with pytest.raises(OptionError, match="mix several settings"):
            opened.query("layer-share", size=0.5)
        found = opened.query("traces-by-density", settings=two.settings.id)
        assert found["trace"].tolist() == [two.id]


def test_an_empty_store_says_so(tmp_path):
    open_store(tmp_path / "store", read_only=False).close()
    with open_store(tmp_path / "store") as opened:
        with pytest.raises(QueryError, match="no traces"):
            opened.query("minimal-core")
        assert len(opened.traces()) == 0


def test_a_query_for_another_store_is_refused(store, monkeypatch):
    monkeypatch.setattr(module, "catalogue", lambda kind: {"demo": GOOD_QUERY})
    with pytest.raises(QueryError, match="does not run on a store of kind embedded"):
        store.query("demo")


GOOD_QUERY = module.Query("demo", "", (), (), ("neo4j",), "RETURN 1", cypher_folder("queries"))
