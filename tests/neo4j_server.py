"""Real Neo4j servers for the tests: the one that NEO4J_URI names, or one started beside the
checkout with `../shared/neo4j/neo4j`, in a temporary folder, and stopped at the end."""

import os
import resource
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absent import absent

from graphtrace.stores.neo4j_connection import Server

SCRIPT = Path(__file__).parent.parent.parent / "shared" / "neo4j" / "neo4j"
STATE = "graphtrace-test.env"
QUICK = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}
"""A server that lives for seconds is done sooner without the second compiler."""
NAMES = ("NEO4J_URI", "NEO4J_USERNAME", "NEO4J_PASSWORD", "NEO4J_DATABASE")
SERVERS = "GRAPHTRACE_TEST_SERVERS"
"""URIs of servers with one password: processes of the tests need not wait for each other."""


@contextmanager
def started(home: Path, version: str | None = None) -> Iterator[dict[str, str]]:
    """A server in the folder `home`; its environment. Stopped at the end."""
    if not SCRIPT.is_file():
        absent("there is no ../shared/neo4j/neo4j, and NEO4J_URI names no server")
    try:
        yield start(home, version)
    finally:
        subprocess.run([SCRIPT, "kill", str(home)], check=False, capture_output=True)


def start(home: Path, version: str | None = None) -> dict[str, str]:
    """Start the server of a folder, again after a `kill`; its environment."""
    command = [str(SCRIPT), "start", "--home", str(home)]
    command += ["--version", version] if version else []
    if not (home / STATE).exists():  # one that the script draws may begin with a hyphen
        command += ["--password", secrets.token_hex(12)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUICK)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("export ") for line in done.stdout.splitlines()]
    return dict(line.split("=", 1) for line in lines if line.startswith("NEO4J_"))


def given() -> dict[str, str] | None:
    """The environment's server, this process' own where there are several; None where it names
    none."""
    if not os.environ.get("NEO4J_URI"):
        return None
    uris = os.environ.get(SERVERS, "").split() or [os.environ["NEO4J_URI"]]
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found = {name: os.environ[name] for name in NAMES if name in os.environ}
    return found | {"NEO4J_URI": uris[number % len(uris)]}


def empty(url: str) -> None:
    """Remove every node of ours, so that an ingest finds no store. The schema stays, unlike after
    `delete_store`: without it the server would plan every statement anew, which takes seconds."""
    server = Server(url)
    try:
        server.run("MATCH (n:Graphtrace) DETACH DELETE n")
    finally:
        server.close()


def fill_disk(home: Path) -> None:
    """From now on the server of a folder can write to no file, as on a full disk or quota."""
    resource.prlimit(int(_state(home)["pid"]), resource.RLIMIT_FSIZE, (0, 0))


def restart_read_only(home: Path) -> None:
    """Kill the server of a folder and start it again with its database read-only; `start` after a
    `kill` makes it as it was."""
    state = _state(home)
    command = Path("/proc", state["pid"], "cmdline").read_text().split("\0")[:-1]
    kill(home)
    with (home / "conf" / "neo4j.conf").open("a") as file:
        file.write("\nserver.databases.read_only=neo4j\n")
    with (home / "logs" / "console.log").open("ab") as log:
        own = {"NEO4J_HOME": str(home), "NEO4J_CONF": str(home / "conf")} | QUICK
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True, cwd=home
        )
    path = home / STATE
    path.write_text(path.read_text().replace(f"pid={state['pid']}\n", f"pid={process.pid}\n"))
    for _ in range(600):
        assert process.poll() is None, "the read-only server stopped"
        try:
            socket.create_connection(("127.0.0.1", int(state["port"])), timeout=2).close()
            process.returncode = 0  # it is stopped by its id, not waited for
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the read-only server does not answer")


def kill(home: Path) -> None:
    """SIGKILL the server of a folder, as a crash would."""
    subprocess.run([SCRIPT, "kill", str(home)], check=True, capture_output=True)


def _state(home: Path) -> dict[str, str]:
    lines = (home / STATE).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)
