"""`graphtrace archive info|verify|merge`."""

import json

import pytest
from builders import synthetic_trace
from typer.testing import CliRunner

import graphtrace.cli.archive  # noqa: F401  registers the commands
from graphtrace.archive import open_archive
from graphtrace.archive_write import ArchiveWriter, write_traces
from graphtrace.cli.app import app
from graphtrace.errors import ArchiveError


@pytest.fixture
def archive(tmp_path):
    with ArchiveWriter(tmp_path / "a") as writer:
        for seed in range(3):
            writer.write(synthetic_trace(seed, n=3))
        writer.pack()
        writer.fail("x", "line-9", "toy", ValueError("no such token"))
    return tmp_path / "a"


def run(*args):
    return CliRunner().invoke(app, ["archive", *map(str, args)])


def test_info(archive):
    (facts,) = json.loads(run("info", archive, "--format", "json").stdout)
    assert (facts["traces"], facts["packs"], facts["loose"]) == (3, 1, 0)
    assert facts["models"] == "toy: 3"
    shown = run("info", archive)
    assert shown.exit_code == 0
    for text in ("toy: 3", "line-9", "no such token"):
        assert text in shown.stdout


def test_verify_and_set_aside(archive):
    whole = run("verify", archive)
    assert (whole.exit_code, whole.stdout) == (0, "")
    assert "is whole" in whole.stderr
    assert json.loads(run("verify", archive, "--format", "json").stdout) == []
    path = archive / "packs" / "00001.parquet"
    data = bytearray(path.read_bytes())
    data[600] ^= 8  # in the first trace; the footer is far behind
    path.write_bytes(data)
    bad = run("verify", archive, "--format", "json")
    assert bad.exit_code == 1
    assert {row["file"] for row in json.loads(bad.stdout)} == {"packs/00001.parquet"}
    assert "--set-aside" in bad.stderr
    out = run("verify", archive, "--set-aside")
    assert out.exit_code == 1
    assert "graphtrace extract" in out.stderr
    assert run("verify", archive).exit_code == 0
    with open_archive(archive) as found:
        assert len(found) == 2


def test_merge(archive, tmp_path):
    write_traces(tmp_path / "b", [synthetic_trace(seed, n=3) for seed in (2, 3)])
    done = run("merge", archive, tmp_path / "b", "--into", tmp_path / "c")
    assert done.exit_code == 0
    assert "4 traces added" in done.stderr
    assert "1 were there already" in done.stderr
    with open_archive(tmp_path / "c") as found:
        assert len(found) == 4


def test_errors_are_the_librarys(tmp_path):
    for command in (["info"], ["verify"], ["merge", "--into", tmp_path / "c"]):
        result = run(*command[:1], tmp_path / "nowhere", *command[1:])
        assert isinstance(result.exception, ArchiveError)
        assert "nowhere" in str(result.exception)
