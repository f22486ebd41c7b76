"""Where the Cypher files are: `ingest/` writes, `queries/` reads.

An installed package has them as `graphtrace/_ingest` and `graphtrace/_queries`, a checkout as the
folders beside the package. Also the reading of Cypher text: tokens, and statements of a file.
"""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple


def cypher_folder(name: Literal["ingest", "queries"]) -> Path:
    """The folder of Cypher files of that name."""
    package = Path(str(files("graphtrace")))
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package.parent / name


class Token(NamedTuple):
    """One token of Cypher. kind: word, name (in backticks), string, number, parameter, sign or
    bad (a quote or comment that never ends); text: as written; start: offset in the text."""

    kind: str
    text: str
    start: int


_TOKENS = re.compile(
    r"""
      (?P<skip>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<name>`(?:[^`]|``)*`)
    | (?P<bad>['"`]|/\*)
    | (?P<parameter>\$\w+)
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<word>\w+)
    | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens(text: str) -> Iterator[Token]:
    """The tokens of Cypher text; white space and comments are left out."""
    for match in _TOKENS.finditer(text):
        kind = match.lastgroup
        if kind is not None and kind != "skip":
            yield Token(kind, match[0], match.start())


def statements(text: str) -> list[str]:
    """The statements of a file, split at `;` outside strings and comments."""
    found, start = [], 0
    ends = [token.start for token in tokens(text) if token.text == ";"]
    for end in [*ends, len(text)]:
        part = text[start:end]
        if next(tokens(part), None) is not None:
            found.append(part.strip())
        start = end + 1
    return found


def parameters(text: str) -> set[str]:
    """Names of the `$parameters` of Cypher text."""
    return {token.text[1:] for token in tokens(text) if token.kind == "parameter"}
