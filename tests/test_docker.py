"""docker/: the compose file, its settings, and what is made for Neo4j Browser."""

import copy
import json
import os
import re
from pathlib import Path

import jsonschema
import neo4j
import neo4j_server
import pytest
import yaml
from absent import absent
from builders import synthetic_trace
from neo4j_import_server import SCRIPT, VERSIONS, rows, script

from graphtrace.archive_write import write_traces
from graphtrace.cypher_files import statements
from graphtrace.export import KIND_COLOURS, SITE_COLOURS
from graphtrace.ingestion import ingest
from graphtrace.schema import KINDS, SITES

HERE = Path(__file__).parent
DOCKER = HERE.parent / "docker"
SPECIFICATION = json.loads((HERE / "compose" / "compose_spec.json").read_text())
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICE = COMPOSE["services"]["neo4j"]
README = (DOCKER / "README.md").read_text()


def check(compose):
    jsonschema.Draft201909Validator(SPECIFICATION).validate(compose)


def test_the_compose_file_is_what_the_specification_says():
    check(COMPOSE)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("services", "neo4j", "port"), ["127.0.0.1:1:1"]),
        (("services", "neo4j", "ports"), "127.0.0.1:1:1"),
        (("services", "neo4j", "healthcheck", "retries"), "four"),
        (("services", "neo4j", "healthcheck", "intervall"), "1s"),
        (("services", "neo4j", "environment", "X"), ["a"]),
        (("services", "neo4j", "image"), 5.26),
        (("services", "neo4j", "ulimits"), {"nofile": "many"}),
        (("volumes", "data"), "x"),
        (("service",), {}),
    ],
)
def test_the_specification_refuses(place, value):
    wrong = copy.deepcopy(COMPOSE)
    inner = wrong
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(wrong)


def test_it_is_pinned_local_and_needs_a_password():
    assert re.fullmatch(r"neo4j:\d+\.\d+\.\d+-community", SERVICE["image"])
    assert len(SERVICE["ports"]) == 2
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in SERVICE["ports"])
    assert re.fullmatch(r"neo4j/\$\{NEO4J_PASSWORD:\?[^}]+\}", SERVICE["environment"]["NEO4J_AUTH"])
    named = {volume.split(":")[0] for volume in SERVICE["volumes"]}
    assert named == set(COMPOSE["volumes"]) == {"data"}
    assert SERVICE["volumes"] == ["data:/data"]
    assert SERVICE["healthcheck"]["test"][0] == "CMD-SHELL"
    # A single $ would be read by compose, not by the container's shell.
    assert not re.search(r"(?<!\$)\$(?!\$)", SERVICE["healthcheck"]["test"][1])


def test_the_readme_names_the_same_version():
    version = SERVICE["image"].partition(":")[2].removesuffix("-community")
    assert set(re.findall(r"(?<![.\d])\d+\.\d+\.\d+(?![.\d])", README)) == {version}
    tarball = README.partition("Without Docker")[2].split("```")[1].strip().splitlines()
    assert len(tarball) == 2
    assert all(f"neo4j-community-{version}" in line for line in tarball)
    assert version == VERSIONS[0]


def settings_of(environment):
    """Neo4j settings of the image's environment: `_` for a dot, `__` for an underscore."""
    found = {}
    for name, value in environment.items():
        if name != "NEO4J_AUTH":
            key = name.removeprefix("NEO4J_").replace("__", "\0").replace("_", ".")
            found[key.replace("\0", "_")] = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value)
    return found


def test_the_server_knows_the_settings(tmp_path):
    if not SCRIPT.exists():
        absent("the real servers of ../shared/neo4j are not here")
    home = tmp_path / "home"
    with (  # of the image's release
        neo4j_server.started(home, VERSIONS[0]) as found,
        neo4j.GraphDatabase.driver(
            found["NEO4J_URI"], auth=(found["NEO4J_USERNAME"], found["NEO4J_PASSWORD"])
        ) as driver,
    ):
        known = {name for (name,) in rows(driver, "SHOW SETTINGS YIELD name")}
    expected = settings_of(SERVICE["environment"])
    assert "server.memory.heap.max_size" in expected
    assert set(expected) <= known
    conf = home / "conf" / "neo4j.conf"
    own = [line for line in conf.read_text().splitlines() if line.partition("=")[0] not in expected]
    conf.write_text("\n".join([*own, *(f"{k}={v}" for k, v in expected.items()), ""]))
    report = script("admin", str(home), "server", "validate-config")
    assert "validation successful" in report
    conf.write_text(f"{conf.read_text()}server.memory.heap.size=1g\n")
    with pytest.raises(AssertionError, match=r"server\.memory\.heap\.size"):
        script("admin", str(home), "server", "validate-config")


# ------------------------------------------------------------------------------- Neo4j Browser

FAVOURITES = statements((DOCKER / "browser.cypher").read_text())


@pytest.fixture
def driver(server):
    auth = (os.environ["NEO4J_USERNAME"], os.environ["NEO4J_PASSWORD"])
    with neo4j.GraphDatabase.driver(server, auth=auth) as opened:
        yield opened


def test_the_favourites_run_and_are_bounded(server, driver, tmp_path):
    labels = [{"group": "ab"[i % 2]} for i in range(3)]
    # Few edges, so that two traces differ in their components.
    traces = [synthetic_trace(seed=i, n=5 + i, labels=labels[i], keep=6) for i in range(3)]
    write_traces(tmp_path / "archive", traces, keep="all")
    ingest(tmp_path / "archive", server)
    n_paths = 0
    for text in FAVOURITES:
        result = driver.execute_query(text)
        assert len(result.records) > 0, text
        nodes = set()
        for record in result.records:
            for value in record.values():
                nodes |= {x.element_id for x in getattr(value, "nodes", ())}
                assert all(
                    "name" in x for x in getattr(value, "nodes", ()) if "Label" not in x.labels
                )
        assert len(nodes) <= 300
        n_paths += len(nodes) > 0
    assert n_paths == 6
    labels = {"embedding": "Embedding", "attention": "Attention", "mlp": "Mlp", "block": "Block"}
    newest = traces[-1]
    found = rows(
        driver,
        "MATCH (:Trace {id: $id})<-[:IN_TRACE]-(s:State) RETURN s.site, labels(s)",
        id=newest.id,
    )
    assert len(found) > 0
    assert all(set(got) == {"State", "Graphtrace", labels[site]} for site, got in found)


def test_every_favourite_has_a_title():
    text = (DOCKER / "browser.cypher").read_text()
    parts = [part.strip().splitlines() for part in text.split(";\n")]
    heads = [part for part in parts if part]
    assert len(heads) == len(FAVOURITES) == 8
    assert all(any(line.startswith("// ") for line in part) for part in heads)


def styles():
    text = (DOCKER / "graphtrace.grass").read_text()
    found = re.findall(r"^(\w+(?:\.\w+)?) \{\n((?:  [\w-]+: [^;\n]+;\n)+)\}\n", text, re.MULTILINE)
    assert text.count("{\n") == len(found)
    return {
        name: dict(re.findall(r"^  ([\w-]+): ([^;]+);$", body, re.MULTILINE))
        for name, body in found
    }


def test_the_style_has_the_colours_of_the_exports():
    found = styles()
    for site in SITES:
        rgb = "#{:02X}{:02X}{:02X}".format(*SITE_COLOURS[site])
        assert found[f"node.{site.capitalize()}"]["color"] == rgb
    for kind in KINDS:
        rgb = "#{:02X}{:02X}{:02X}".format(*KIND_COLOURS[kind])
        assert found[f"relationship.{kind.upper()}"]["color"] == rgb
    assert found["node"]["caption"] == "'{name}'"
    assert all("caption" not in style for name, style in found.items() if name.startswith("node."))
    assert found["relationship.ATTENTION"]["caption"] == "'{head}'"
