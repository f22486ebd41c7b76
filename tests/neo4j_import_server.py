"""A real Neo4j server that is filled by its importer, for tests."""

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import neo4j
import pytest
from absent import absent
from neo4j_server import QUICK

from graphtrace.cypher_files import statements
from graphtrace.neo4j_import import FINISH, ImportFiles

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT.parent / "shared" / "neo4j" / "neo4j"
VERSIONS = ("5.26.30", "2025.12.1")


def script(*arguments, cwd=None) -> str:
    """Run the script that starts and administers servers; what it prints."""
    done = subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd, env=os.environ | QUICK
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def imported(files: ImportFiles, home: Path, version: str) -> Iterator[tuple[neo4j.Driver, str]]:
    """A driver of a started server that holds what the command of an export imports and its
    finish.cypher completes, and what the importer printed; NEO4J_* are set to it."""
    if not SCRIPT.exists():
        absent("the real servers of ../shared/neo4j are not here")
    # A password that the script draws may begin with a hyphen, which looks like an option.
    password = ("--password", secrets.token_hex(12))
    start = ("start", "--home", str(home), "--version", version, *password)
    size = ("--heap", "512m", "--pagecache", "128m")
    script(*start, *size)
    script("kill", str(home))
    arguments = files.command.split()
    assert arguments[0] == "neo4j-admin"
    overwrite = "--overwrite-destination"
    report = script("admin", str(home), *arguments[1:], overwrite, cwd=files.folder)
    found = dict(re.findall(r"export (\w+)=(\S+)", script(*start, *size)))
    try:
        auth = (found["NEO4J_USERNAME"], found["NEO4J_PASSWORD"])
        with (
            pytest.MonkeyPatch.context() as patch,
            neo4j.GraphDatabase.driver(found["NEO4J_URI"], auth=auth) as driver,
        ):
            for name in ("NEO4J_URI", "NEO4J_USERNAME", "NEO4J_PASSWORD", "NEO4J_DATABASE"):
                patch.setenv(name, found[name])
            finish(driver, files.folder)
            yield driver, report
    finally:
        script("kill", str(home))


def finish(driver: neo4j.Driver, folder: Path) -> None:
    """Run finish.cypher as cypher-shell does: statement by statement."""
    with driver.session() as session:
        for statement in statements((folder / FINISH).read_text(encoding="utf-8")):
            session.run(statement).consume()


def rows(driver: neo4j.Driver, text: str, **params) -> list[list]:
    """The rows of a query."""
    return [list(record) for record in driver.execute_query(text, params).records]
