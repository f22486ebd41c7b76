"""Settings of all tests: no time limits on examples (a first call compiles), and in CI the same
examples in every run."""

import fcntl
import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import neo4j_server
import pytest
from hypothesis import settings

settings.register_profile("graphtrace", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("graphtrace")

# Measures of single traces are kept for passes that are stopped; a test asks for that itself.
os.environ["GRAPHTRACE_CACHE"] = ""


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory):
    """NEO4J_* of a real server whose database the tests may use as they like; see
    `neo4j_server.py`. Skips with a reason where there is none."""
    environment = neo4j_server.given()
    if environment is not None:
        yield environment
        return
    with neo4j_server.started(tmp_path_factory.mktemp("neo4j")) as environment:
        yield environment


@contextmanager
def alone(name):
    """Wait until no other process of the tests is inside with the same name."""
    place = hashlib.sha256(name.encode()).hexdigest()[:12]
    with (Path(tempfile.gettempdir()) / f"graphtrace-tests-{place}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def server(server_environment):
    """URL of a real server that holds no store; its NEO4J_* are set. One module has it at a time,
    since several processes may run the tests."""
    from graphtrace.stores.maintenance import delete_store

    with alone(server_environment["NEO4J_URI"]), pytest.MonkeyPatch.context() as patch:
        for name, value in server_environment.items():
            patch.setenv(name, value)
        delete_store("neo4j://", missing_ok=True)
        yield server_environment["NEO4J_URI"]
