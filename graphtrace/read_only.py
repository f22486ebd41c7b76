"""`check_read_only`: Cypher that would change a store, a file or the engine is refused.

A check of tokens, not of text: strings, comments, names in backticks, properties, labels, map keys
and aliases may be called `set` or `delete`. Stores are opened for reading besides; this check gives
the clear message, and catches what the engine allows to a reader (EXPORT, INSTALL, CALL).
"""

from graphtrace.cypher_files import Token, tokens
from graphtrace.errors import QueryError, ReadOnlyError

# fmt: off
_REFUSED = frozenset((
    "ALTER", "ATTACH", "BEGIN", "CHECKPOINT", "COMMENT", "COMMIT", "COPY", "CREATE", "DELETE",
    "DENY", "DETACH", "DROP", "DUMP", "EXPORT", "FORCE", "FOREACH", "GRANT", "IMPORT", "INSERT",
    "INSTALL", "LOAD", "MERGE", "REMOVE", "RENAME", "REVOKE", "ROLLBACK", "SET", "START", "STOP",
    "TERMINATE", "UNINSTALL", "UPDATE", "USE",
))
_CALLS = frozenset((
    "current_setting", "db_version", "show_connection", "show_functions", "show_indexes",
    "show_macros", "show_tables", "show_warnings", "stats_info", "storage_info", "table_info",
    "db.labels", "db.propertykeys", "db.relationshiptypes", "db.schema.visualization",
    "db.schema.nodetypeproperties", "db.schema.reltypeproperties", "dbms.components",
))
# A variable may have a clause's name: `MATCH (start:State) RETURN start.id`. No clause's name comes
# before these signs, nor where a value is due and what follows goes on after a value.
_BEFORE_NAMES = frozenset(".:|&!")
_AFTER_NAMES = frozenset(".,)]}:=<>+-*/%^|")
_BEFORE_VALUES = frozenset((
    "RETURN", "WITH", "DISTINCT", "BY", "WHERE", "AND", "OR", "XOR", "NOT", "IN", "WHEN", "THEN",
    "ELSE", "AS", "YIELD", "LIMIT", "SKIP", "UNWIND", *",=<>+-*/%^([",
))
_AFTER_VALUES = frozenset((
    "", "AS", "ORDER", "SKIP", "LIMIT", "WHERE", "AND", "OR", "XOR", "IS", "IN", "ASC",
    "ASCENDING", "DESC", "DESCENDING", "STARTS", "ENDS", "CONTAINS", "WHEN", "THEN", "ELSE", "END",
))
# fmt: on


def check_read_only(text: str) -> None:
    """Raise ReadOnlyError where Cypher is not one statement that only reads, QueryError where it
    holds no statement or a quote that never ends."""
    found = list(tokens(text))
    while found and found[-1].text == ";":
        found.pop()
    if not found:
        raise QueryError("the query is empty; give Cypher, or a name that `graphtrace queries` has")
    for index, token in enumerate(found):
        if token.kind == "bad":
            raise QueryError(
                f"the query has a {token.text} at character {token.start} that never ends"
            )
        if token.text == ";":
            raise ReadOnlyError("a query is one statement; this text has several")
        if token.kind != "word":
            continue
        word = token.text.upper()
        if (word in _REFUSED or word == "CALL") and not _is_name(found, index):
            if word == "CALL" and _call_reads(found, index):
                continue
            raise ReadOnlyError(f"queries only read: {_shown(found, index)} is refused")


def _is_name(found: list[Token], index: int) -> bool:
    """Whether a word is a property, label, type, map key, alias or variable."""
    before, prior = (found[index - n].text.upper() if index >= n else "" for n in (1, 2))
    after = found[index + 1].text.upper() if index + 1 < len(found) else ""
    if before in _BEFORE_NAMES or after in _AFTER_NAMES:
        return True
    if before == "AS" and prior not in _BEFORE_VALUES | _BEFORE_NAMES:  # a variable may be `as`
        return True
    if before in {"(", "["} and after == "{":  # a pattern: (start {site: 'block'})
        return True
    return before in _BEFORE_VALUES and after in _AFTER_VALUES


def _call_reads(found: list[Token], index: int) -> bool:
    rest = [token.text for token in found[index + 1 :]]
    if rest[:1] in (["{"], ["("]):
        return True  # a subquery, whose own words are checked like all others
    name, at = "", 0
    while at < len(rest) and (rest[at] == "." or rest[at].replace("_", "a").isalnum()):
        name += rest[at]
        at += 1
    return name.lower() in _CALLS and rest[at : at + 1] == ["("]


def _shown(found: list[Token], index: int) -> str:
    return " ".join(token.text for token in found[index : index + 3])
